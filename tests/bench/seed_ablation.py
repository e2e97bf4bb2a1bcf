#!/usr/bin/env python3
"""The seed pipeline's twelve negative results, tried on a real cache; writes docs/results/seed_ablation.md.

    python seed_ablation.py --kvlab KVLAB --cache prose.safetensors --out docs/results/seed_ablation.md

CACHE is made by kvlab's dump.py. The list is the appendix "Failed Approaches (12 Experiments)" of the NexusQuant paper (PyPI
nexusquant-kv, paper/ of its repository). Every row stores the whole cache in numpy, counts bytes (zstd level 22 of the points,
16 bits for each scale) and lets kvlab's model read the copy: KL(exact || copy) in nats per token. Run it with an interpreter
that has kvlab's requirements; about 10 CPU minutes.
"""
import argparse
import os
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from kvlab_table import zstd_bytes

EVICTED = 0.34  # share of the tokens; `high` of the package evicts 35 %
SINKS, RECENT = 4, 64  # tokens that every scorer keeps
SEED = 1


def nearest(x, strict):
    """Doubled points [..., 8] next to x. Integers of even sum, or half-integers: of even sum when strict (E8), else of any."""
    def even(y):
        r = np.rint(y)
        at = np.abs(y - r).argmax(-1)[..., None]
        fix = (r.sum(-1).astype(np.int64) & 1)[..., None] * np.where(np.take_along_axis(y - r, at, -1) >= 0, 1.0, -1.0)
        np.put_along_axis(r, at, np.take_along_axis(r, at, -1) + fix, -1)
        return r
    whole, half = even(x), (even(x - 0.5) if strict else np.rint(x - 0.5)) + 0.5
    closer = ((x - half) ** 2).sum(-1) < ((x - whole) ** 2).sum(-1)
    return np.rint(2 * np.where(closer[..., None], half, whole))


def hadamard(dim):
    h = np.ones((1, 1))
    while len(h) < dim:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(dim)


class Pipeline:
    """The seed pipeline on one cache. Planes are [layers, tokens, heads, channels]; keys without rotary embedding."""

    def __init__(self, kvlab, cache):
        sys.path.insert(0, kvlab)
        import codec_model
        import smollm2
        self.rotate, self.model = codec_model.rotate, smollm2.Model()
        e = load_file(cache)
        self.base = float(safe_open(cache, "numpy").metadata()["rope_base"])
        self.stored_k, self.stored_v, self.ids, self.mass = e["k"], e["v"], e["token_ids"], e["attention_mass"]
        self.k, self.v = self.rotate(e["k"].astype(np.float64), self.base, -1), e["v"].astype(np.float64)
        self.tokens = self.k.shape[1]
        self.energy = e["query_energy"].astype(np.float64)
        self.exact = self._log_probs(self.stored_k, self.stored_v, None)

    def _log_probs(self, k, v, keep):
        return self.model.log_probs(self.model.forward(self.ids[self.tokens:], (k, v), keep)[0])[:-1]

    def kl(self, k, v, keep=None):
        """KL of a copy whose keys have no rotary embedding yet."""
        copy = self.rotate(k, self.base, 1).astype(np.float16)
        q = self._log_probs(copy, v.astype(np.float16), keep)
        return float((np.exp(self.exact) * (self.exact - q)).sum(-1).mean())

    def points(self, x, bits, rotation, strict=False):
        """Doubled points and scales of a plane; rotation [..., channels, channels] acts on the right."""
        steps = 2 ** (bits - 1)
        y = x @ rotation
        scale = (np.abs(y).max(-1, keepdims=True) / steps).astype(np.float16).astype(np.float64)
        unit = np.divide(y, scale, out=np.zeros_like(y), where=scale > 0)
        p = nearest(unit.reshape(*y.shape[:-1], -1, 8), strict).reshape(y.shape)
        return np.clip(p, -2 * steps, 2 * steps).astype(np.int8), scale

    @staticmethod
    def coded_bits(points, scale):
        """Stored bits: differences of neighbouring tokens modulo 256, a zstd frame for each layer; scales as they are."""
        delta = np.diff(points, axis=1, prepend=np.int8(0)).transpose(0, 2, 1, 3)
        return 8 * sum(zstd_bytes(layer.tobytes(), 22) for layer in delta) + 16 * scale.size

    def plane(self, x, bits, rotation=None, strict=False, keep=None):
        """The copy of a plane and its stored bits; tokens that are not kept cost nothing."""
        r = hadamard(x.shape[-1]) if rotation is None else rotation
        p, s = self.points(x, bits, r, strict)
        kept = slice(None) if keep is None else keep
        return (p / 2.0 * s) @ np.swapaxes(r, -1, -2), self.coded_bits(np.ascontiguousarray(p[:, kept]), s[:, kept])

    def row(self, key_bits=3, value_bits=2, keep=None, **how):
        """(bits per element of the whole cache, KL)."""
        k, kb = self.plane(self.k, key_bits, keep=keep, **how)
        v, vb = self.plane(self.v, value_bits, keep=keep, **({} if "rotation" in how else how))
        return (kb + vb) / (k.size + v.size), self.kl(k, v, keep)

    # --- which tokens go

    def keep(self, score):
        """Keep-mask [tokens] that drops the EVICTED share of lowest score, first and recent tokens excepted."""
        s = np.array(score, np.float64)
        s[:SINKS] = s[-RECENT:] = np.inf
        mask = np.ones(self.tokens, bool)
        mask[np.argsort(s, kind="stable")[: round(EVICTED * self.tokens)]] = False
        return mask

    def window_mass(self, window):
        """Attention that the last `window` cached tokens pay to each token, summed over layers and heads."""
        at = self.tokens - window
        past = (self.stored_k[:, :at], self.stored_v[:, :at])
        return self.model.forward(self.ids[at: self.tokens], past, stats=True)[2].sum(0)


def scorers(p):
    total = p.mass[:, : p.tokens].sum(0)
    keep = p.keep(total)
    yield "1", "scored by attention mass, masked", p.row(keep=keep)
    rate = p.mass[:, : p.tokens] / (p.tokens - np.arange(p.tokens) + 32)
    yield "1", "scored by attention for each query that could see the token (as `--keep` does), masked", p.row(keep=p.keep((rate / rate[:, SINKS:].sum(1, keepdims=True)).sum(0)))
    yield "1", "scored by the norm of keys, masked", p.row(keep=p.keep(np.sqrt((p.k ** 2).sum(-1)).mean((0, 2))))
    yield "1", "random, masked", p.row(keep=p.keep(np.random.default_rng(SEED).random(p.tokens)))
    k, kb = p.plane(p.k, 3, keep=keep)
    v, vb = p.plane(p.v, 2, keep=keep)
    k[:, ~keep] = v[:, ~keep] = 0
    yield "2", "scored by attention mass, zeroed and attended to", ((kb + vb) / (k.size + v.size), p.kl(k, v))
    for window in (16, 64, 256):
        yield "11", f"scored by the attention of the last {window} tokens, masked", p.row(keep=p.keep(p.window_mass(window)))
    yield "8", "K2V2, nothing evicted", p.row(2, 2)
    yield "8", "K2V2, scored by attention mass, masked", p.row(2, 2, keep=keep)
    yield "8", "K3V3, scored by attention mass, masked", p.row(3, 3, keep=keep)


def sign_residual(p):
    """Keys of 2 bits and the signs of their residual under a random rotation (QJL, Zandieh et al. 2024), with its norm as f16."""
    k, kb = p.plane(p.k, 2)
    v, vb = p.plane(p.v, 2)
    d = k.shape[-1]
    s = np.random.default_rng(SEED).standard_normal((d, d))
    left = p.k - k
    norm = np.sqrt((left ** 2).sum(-1, keepdims=True)).astype(np.float16).astype(np.float64)
    back = np.sqrt(np.pi / 2) / d * norm * (np.sign(left @ s.T) @ s)
    return (kb + vb + left.size + 16 * norm.size) / (k.size + v.size), p.kl(k + back, v)


def across_layers(p):
    """Points of a layer stored as differences to the layer before."""
    bits, h = 0, hadamard(p.k.shape[-1])
    for x, b in ((p.k, 3), (p.v, 2)):
        q, s = p.points(x, b, h)
        bits += 8 * sum(zstd_bytes(layer.tobytes(), 22) for layer in np.diff(q, axis=0, prepend=np.int8(0)).transpose(0, 2, 1, 3)) + 16 * s.size
    return bits / (p.k.size + p.v.size)


def principal(x):
    """Eigenvectors of every head's channels [layers, heads, channels, components], largest variance first."""
    free = x[:, SINKS:] - x[:, SINKS:].mean(1, keepdims=True)
    return np.linalg.eigh(np.einsum("lthc,lthd->lhcd", free, free))[1][..., ::-1]


def components(p, key_bits, value_bits, share):
    """Principal components in place of Hadamard; the last ones dropped. Vectors are f16 and counted."""
    total, copies = 0, []
    for x, b in ((p.k, key_bits), (p.v, value_bits)):
        r = principal(x).astype(np.float16).astype(np.float64)
        kept = int(share * x.shape[-1])
        y = np.einsum("lthc,lhcd->lthd", x, r)[..., :kept]
        q, s = p.points(y, b, np.eye(kept))
        total += p.coded_bits(q, s) + 16 * r[..., :kept].size
        copies.append(np.einsum("lthd,lhcd->lthc", q / 2.0 * s, r[..., :kept]))
    return total / (p.k.size + p.v.size), p.kl(*copies)


def merged(p):
    """Tokens that would be evicted are merged into the kept token before them instead: means, weighted alike."""
    keep = p.keep(p.mass[:, : p.tokens].sum(0))
    owner = np.maximum.accumulate(np.where(keep, np.arange(p.tokens), 0))
    count = np.bincount(owner, minlength=p.tokens)[:, None, None]
    planes = []
    for x in (p.k, p.v):
        y = np.zeros_like(x)
        np.add.at(y, (slice(None), owner), x)
        planes.append(y / np.maximum(count, 1))
    k, kb = p.plane(planes[0], 3, keep=keep)
    v, vb = p.plane(planes[1], 2, keep=keep)
    return (kb + vb) / (k.size + v.size), p.kl(k, v, keep)


def by_variance(p, bits_of):
    """Uniform steps for all channels of a layer's plane (reverse water-filling: equal distortion), and steps from query energy,
    both with ideal coding of points (entropy of each channel's own symbols); keys of the same noise in total bits."""
    rows = []
    for weighted in (False, True):
        w = np.concatenate([p.energy, p.energy], -1)[:, None] if weighted else np.ones((1, 1, 1, 1))
        low, high = 1e-3, 1e3
        for _ in range(18):  # the step at which the bits come out
            mid = np.sqrt(low * high)
            copy, bits = entropy_coded(p, p.k, mid / np.sqrt(np.maximum(w, 1e-4 * w.mean(-1, keepdims=True))))
            low, high = (mid, high) if bits > bits_of else (low, mid)
        rows.append((bits, p.kl(copy, p.v)))
    return rows


def entropy_coded(p, x, step):
    """Strict E8 of x minus its channel means; bits an element: entropy of every channel's symbols."""
    step = np.broadcast_to(step, x.shape)
    mean = x[:, SINKS:].mean(1, keepdims=True)
    q = nearest(((x - mean) / step).reshape(*x.shape[:-1], -1, 8), True).reshape(x.shape)
    bits = 0.0
    for channel in np.moveaxis(q[:, SINKS:], 1, -1).reshape(-1, x.shape[1] - SINKS).astype(np.int64):
        n = np.unique(channel, return_counts=True)[1] / channel.size
        bits -= (n * np.log2(n)).sum() * channel.size
    copy = q / 2.0 * step + mean
    copy[:, :SINKS] = x[:, :SINKS]
    return copy, bits / x.size


def rows(p):
    yield "", "K3V2, as the pipeline does it", p.row()
    yield from scorers(p)
    yield "3", "K3V2, strict E8 (half-integers of even sum)", p.row(strict=True)
    yield "4", "K3V2, 2 bits and the residual's signs for keys", sign_residual(p)
    yield "5", "K3V2, differences to the layer before instead of the token before", (across_layers(p), None)
    (uniform, weighted) = by_variance(p, 2.0)
    yield "7", "keys alone, entropy-coded: one step for a layer's channels (water-filling of energy)", uniform
    yield "7", "keys alone, entropy-coded: steps from query energy", weighted
    yield "9", "K2V3", p.row(2, 3)
    yield "10", "K3V2, principal components instead of Hadamard, all of them", components(p, 3, 2, 1)
    yield "10", "K4V3, the first three quarters of the principal components", components(p, 4, 3, 0.75)
    yield "12", "tokens merged into the kept one before them, instead of evicted", merged(p)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--kvlab", required=True)
    a.add_argument("--cache", required=True)
    a.add_argument("--out", required=True)
    a = a.parse_args()
    p = Pipeline(a.kvlab, a.cache)
    lines = ["# The seed pipeline's negative results, tried on a real cache", "",
             "Made with `tests/bench/seed_ablation.py`. SmolLM2-135M-Instruct, 30 layers of 3 heads of 64 channels, "
             f"{p.tokens} tokens of prose cached, {len(p.exact)} scored. Bits: zstd level 22 of the points' differences, a layer's plane a "
             "frame, and f16 scales, over the elements of the whole cache. KL in nats per token of the text that follows. Evicting rows drop "
             f"{EVICTED:.0%} of the tokens and keep the first {SINKS} and the last {RECENT}. The number is the one in the source's list.", "",
             "| number | what | bits | KL |", "|---|---|---|---|"]
    for number, what, (bits, kl) in rows(p):
        lines.append(f"| {number} | {what} | {bits:.3f} | {'the same' if kl is None else f'{kl:.4f}'} |")
        print(lines[-1], flush=True)
    with open(a.out, "w", encoding="utf8") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
