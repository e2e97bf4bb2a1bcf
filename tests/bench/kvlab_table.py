#!/usr/bin/env python3
"""Rate and quality of the codec on real caches, beside the arithmetic model it must match and beside plain formats.

    python kvlab_table.py --kvlab KVLAB --work DIR --latticekv build/release/bin/latticekv --out docs/results/kvlab_table.md
                          prose=prose.safetensors filler=filler.safetensors

Every NAME=FILE is a cache made with kvlab's dump.py with tokens left to score. For each lattice preset and for --stats own and
profile the cache is compressed, decompressed and judged with evaluate.py; codec_model.py gives the bits and the KL to reach.
Bits are of the whole .lkv file. Run it with an interpreter that has kvlab's requirements. A forward pass takes long, so its
results are kept in DIR, keyed by the bytes of k and v; --model-only fills in what needs no build of ours.
Exits 1 when a line misses its bound: bits within 4 %, KL pooled over the caches at most 1.15 x the model's, exact bit for bit.
"""
import argparse
import ctypes
import ctypes.util
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

PRESETS = {"near": (0.05, 0.06), "fine": (0.10, 0.12), "high": (0.19, 0.22), "balanced": (0.28, 0.32),
           "small": (0.38, 0.45), "tiny": (0.53, 0.62)}
STATS = ("own", "profile")
MAX_BITS_RATIO, MAX_KL_RATIO = 1.04, 1.15
BLOCK = 32  # elements that share a scale in q8_0 and q4_0


def q8_0(x):
    """llama.cpp's q8_0: blocks of 32, one fp16 scale, int8. Returns the packed bytes' count and the copy."""
    b = x.astype(np.float32).reshape(-1, BLOCK)
    d = (np.abs(b).max(1, keepdims=True) / 127).astype(np.float32)
    q = np.rint(np.divide(b, d, out=np.zeros_like(b), where=d > 0)).astype(np.int8)
    d16 = d.astype(np.float16)
    return d16.nbytes + q.nbytes, (q * d16.astype(np.float32)).astype(x.dtype).reshape(x.shape)


def q4_0(x):
    """llama.cpp's q4_0: blocks of 32, one fp16 scale, 4 bits."""
    b = x.astype(np.float32).reshape(-1, BLOCK)
    top = np.take_along_axis(b, np.abs(b).argmax(1)[:, None], 1)
    d = top / -8
    q = np.clip(np.floor(np.divide(b, d, out=np.zeros_like(b), where=d != 0) + 8.5), 0, 15).astype(np.uint8)
    packed = q[:, : BLOCK // 2] | (q[:, BLOCK // 2:] << 4)
    d16 = d.astype(np.float16)
    return d16.nbytes + packed.nbytes, ((q.astype(np.float32) - 8) * d16.astype(np.float32)).astype(x.dtype).reshape(x.shape)


def zstd_bytes(data, level):
    lib = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    lib.ZSTD_compressBound.restype = lib.ZSTD_compress.restype = ctypes.c_size_t
    lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
    lib.ZSTD_compress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
    out = ctypes.create_string_buffer(lib.ZSTD_compressBound(len(data)))
    return lib.ZSTD_compress(out, len(out), data, len(data), level)


def digest(path):
    t = load_file(path)
    h = hashlib.sha256()
    for name in ("k", "v", "keep"):
        if name in t:
            h.update(t[name].tobytes())
    return h.hexdigest()[:24]


class Lab:
    """kvlab's programs, with their results kept in the work directory."""

    def __init__(self, kvlab, work):
        self.kvlab, self.work = kvlab, work
        os.makedirs(work, exist_ok=True)
        self.path = os.path.join(work, "results.json")
        self.kept = json.load(open(self.path)) if os.path.exists(self.path) else {}

    def save(self):
        json.dump(self.kept, open(self.path + ".new", "w"), indent=1)
        os.replace(self.path + ".new", self.path)

    def script(self, name, *args):
        return subprocess.run([sys.executable, os.path.join(self.kvlab, name), *args], check=True, text=True,
                              stdout=subprocess.PIPE).stdout

    def judge(self, cache, recon):
        """KL, top-1 agreement and perplexity change of a reconstructed cache."""
        key = f"judge {digest(cache)} {digest(recon)}"
        if key not in self.kept:
            row = self.script("evaluate.py", cache, recon).splitlines()[-1][41:].split()
            self.kept[key] = {"dppl": float(row[0]), "kl": float(row[2]), "top1": float(row[3])}
            self.save()
        return self.kept[key]

    def run_model(self, cache, profile, preset, stats, chunk, out, *flags):
        """codec_model.py's bits per element; its copy of the cache goes to `out`. profile: a file or "none"."""
        noise, error = PRESETS[preset]
        line = self.script("codec_model.py", cache, profile, out, "--logit-noise", str(noise), "--value-error", str(error),
                           "--stats", stats, "--chunk", str(chunk), *flags)
        return float(line.split(":")[1].split()[0])

    def model(self, cache, profile, preset, stats, chunk):
        noise, error = PRESETS[preset]
        key = f"model {digest(cache)} {hashlib.sha256(open(profile, 'rb').read()).hexdigest()[:24]} {noise} {error} {stats} {chunk}"
        if key not in self.kept:
            out = os.path.join(self.work, "model.safetensors")
            bits = self.run_model(cache, profile, preset, stats, chunk, out)
            self.kept[key] = {"bits": bits, **self.judge(cache, out)}
            self.save()
            os.remove(out)
        return self.kept[key]


def plain(lab, name, cache):
    """Rows of formats that are not ours: (label, bits, judgement or None)."""
    t = load_file(cache)
    elements = t["k"].size + t["v"].size
    raw = t["k"].tobytes() + t["v"].tobytes()
    rows = []
    for level in (3, 19):
        key = f"zstd {digest(cache)} {level}"
        if key not in lab.kept:
            lab.kept[key] = zstd_bytes(raw, level)
            lab.save()
        rows.append((f"zstd -{level} of the raw bytes", 8 * lab.kept[key] / elements, None))
    for label, f in (("q8_0", q8_0), ("q4_0", q4_0)):
        (kb, k), (vb, v) = f(t["k"]), f(t["v"])
        out = os.path.join(lab.work, "plain.safetensors")
        save_file({"k": k, "v": v}, out)
        rows.append((label, 8 * (kb + vb) / elements, lab.judge(cache, out)))
        os.remove(out)
    return rows


def store(work, cli, cache, *flags, decode_flags=()):
    """Compresses and restores; returns (bytes of the file on disk, path of the copy)."""
    lkv, out = os.path.join(work, "ours.lkv"), os.path.join(work, "ours.safetensors")
    subprocess.run([cli, "compress", cache, lkv, *flags], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cli, "decompress", lkv, out, *decode_flags], check=True, stdout=subprocess.DEVNULL)
    return os.path.getsize(lkv), out


def ours(lab, cli, cache, profile, preset, stats, chunk):
    """Compresses and restores; returns (bits per element of the file, path of the copy)."""
    flags = ["--preset", preset, "--chunk", str(chunk)] + (["--profile", profile, "--stats", stats] if preset != "exact" else [])
    size, out = store(lab.work, cli, cache, *flags,
                      decode_flags=["--profile", profile] if preset != "exact" and stats == "profile" else [])
    t = load_file(cache)
    return 8 * size / (t["k"].size + t["v"].size), out


def lattice_rows(lab, a, caches):
    """One row per stats and preset: bits of ours and of the model per cache, KL pooled over caches."""
    rows, failures = [], []
    for stats in STATS:
        for preset in a.presets:
            cells, kl_ours, kl_model = [], 0.0, 0.0
            for name, path in caches:
                m = lab.model(path, a.profile, preset, stats, a.chunk)
                kl_model += m["kl"] / len(caches)
                if a.model_only:
                    continue
                bits, copy = ours(lab, a.latticekv, path, a.profile, preset, stats, a.chunk)
                j = lab.judge(path, copy)
                kl_ours += j["kl"] / len(caches)
                cells.append((name, bits, m["bits"], bits / m["bits"], j["kl"], m["kl"], j["top1"]))
                if bits / m["bits"] > MAX_BITS_RATIO:
                    failures.append(f"{name} {preset} --stats {stats}: {bits:.3f} bits, the model has {m['bits']:.3f}")
            if a.model_only:
                continue
            if kl_ours > MAX_KL_RATIO * kl_model:
                failures.append(f"{preset} --stats {stats}: KL {kl_ours:.5f}, the model has {kl_model:.5f}")
            rows.append((preset, stats, cells, kl_ours, kl_model))
            print(preset, stats, cells, f"KL {kl_ours:.5f} / {kl_model:.5f}", flush=True)
    return rows, failures


def report(a, caches, rows, exact, plain_rows, failures):
    line = []
    put = line.append
    put("# Rate and quality on real caches\n")
    put("Made with `tests/bench/kvlab_table.py`. SmolLM2-135M-Instruct, fp16 in and out, chunks of "
        f"{a.chunk} tokens, scalar CPU codec, profile learnt on another text. `bits` are bits per element of the whole .lkv file "
        "(headers, token ids and the first four exact tokens included); `model` is kvlab's codec_model.py, which has to be met within "
        "4 %; KL is KL(exact || copy) in nats per token, which may be 1.15 x the model's, pooled over the caches.\n")
    for name, path in caches:
        shape = load_file(path)["k"].shape
        put(f"- {name}: {shape[1]} tokens, k and v {shape[0]} layers x {shape[2]} heads x {shape[3]}")
    put("\n| preset | stats | cache | bits | ratio | model | bits / model | KL | model's KL | top-1 |")
    put("|---|---|---|---|---|---|---|---|---|---|")
    for preset, stats, cells, kl_ours, kl_model in rows:
        for name, bits, model_bits, ratio, kl, mkl, top1 in cells:
            put(f"| `{preset}` | {stats} | {name} | {bits:.3f} | {16 / bits:.2f} | {model_bits:.3f} | {ratio:.3f} | {kl:.5f} | {mkl:.5f} | {top1:.3f} |")
    put("\n| preset | stats | pooled KL | model's | ratio |\n|---|---|---|---|---|")
    for preset, stats, _, kl_ours, kl_model in rows:
        put(f"| `{preset}` | {stats} | {kl_ours:.5f} | {kl_model:.5f} | {kl_ours / kl_model:.3f} |")
    put("\n| format | cache | bits | ratio | KL | top-1 |\n|---|---|---|---|---|---|")
    for name, bits, equal in exact:
        put(f"| `exact` | {name} | {bits:.3f} | {16 / bits:.2f} | {'0 (bit for bit)' if equal else 'NOT EQUAL'} | 1.000 |")
    for name, label, bits, j in plain_rows:
        put(f"| {label} | {name} | {bits:.3f} | {16 / bits:.2f} | " + (f"{j['kl']:.5f} | {j['top1']:.3f} |" if j else "0 | 1.000 |"))
    put("\n" + ("All bounds are met." if not failures else "Bounds missed:\n\n" + "\n".join(f"- {f}" for f in failures)))
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    open(a.out, "w").write("\n".join(line) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("caches", nargs="+", metavar="NAME=FILE")
    p.add_argument("--kvlab", required=True)
    p.add_argument("--work", required=True)
    p.add_argument("--latticekv")
    p.add_argument("--profile")
    p.add_argument("--chunk", type=int, default=256)
    p.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    p.add_argument("--out", default="docs/results/kvlab_table.md")
    p.add_argument("--model-only", action="store_true")
    a = p.parse_args()
    a.profile = a.profile or os.path.join(a.kvlab, "data", "profile_smollm2.safetensors")
    if not a.model_only and not a.latticekv:
        p.error("give --latticekv, or --model-only")
    caches = [tuple(c.split("=", 1)) for c in a.caches]
    lab = Lab(a.kvlab, a.work)
    plain_rows = [(name, *row) for name, path in caches for row in plain(lab, name, path)]
    rows, failures = lattice_rows(lab, a, caches)
    if a.model_only:
        return 0
    exact = []
    for name, path in caches:
        bits, copy = ours(lab, a.latticekv, path, a.profile, "exact", "own", a.chunk)
        equal = digest(path) == digest(copy)
        exact.append((name, bits, equal))
        if not equal:
            failures.append(f"{name} exact: k and v differ")
    report(a, caches, rows, exact, plain_rows, failures)
    for f in failures:
        print("missed:", f)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
