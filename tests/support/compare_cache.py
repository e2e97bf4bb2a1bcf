#!/usr/bin/env python3
"""Compares a KV cache with the copy that came back. Standard library only.

    compare_cache.py exact A.safetensors B.safetensors            k, v and token ids equal bit for bit
    compare_cache.py lossy A.safetensors B.safetensors --profile P.safetensors
                     --max-logit-noise 0.19 --max-value-error 0.22

`lossy` measures what the copy costs a reader, independently of what the codec says of itself: logit noise,
sqrt(mean over key vectors of sum_c E[q_c^2] err_c^2 / head_dim) in nats, and value error, the rms relative error of value
vectors. Vectors that came back bit for bit are left out. Prints one line; exits 1 when the copies differ more than allowed.
"""
import argparse
import json
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_file  # noqa: E402

# What measured errors may be over what a preset names: kContractSlack of core/codec/presets.h.
CONTRACT_SLACK = 1.05


class Mismatch(Exception):
    pass


def check_shape(a, b):
    for name in ("k", "v"):
        if name not in b:
            raise Mismatch(f"the copy has no tensor {name}")
        if a[name].dtype != b[name].dtype or a[name].shape != b[name].shape:
            raise Mismatch(f"{name} was {a[name].dtype} {a[name].shape} and came back as {b[name].dtype} {b[name].shape}")
    tokens = a["k"].shape[1]
    if "token_ids" in a:
        if "token_ids" not in b:
            raise Mismatch("the copy has no token ids")
        ours, theirs = a["token_ids"].values()[:tokens], b["token_ids"].values()[:tokens]
        if list(ours) != list(theirs):
            raise Mismatch("the token ids differ")


def exact(a, b):
    check_shape(a, b)
    for name in ("k", "v"):
        if a[name].data != b[name].data:
            at = next(i for i, (x, y) in enumerate(zip(a[name].data, b[name].data)) if x != y)
            raise Mismatch(f"{name} differs from byte {at} on")
    return {"equal": True}


def vectors(tensor):
    """Yields (layer, head, vector) of a [layers, tokens, heads, head_dim] tensor."""
    layers, tokens, heads, dim = tensor.shape
    x, at = tensor.values(), 0
    for layer in range(layers):
        for _ in range(tokens):
            for head in range(heads):
                yield layer, head, x[at: at + dim]
                at += dim


def energy_by_head(profile, shape):
    layers, _, heads, dim = shape
    w = profile["query_energy"].values()
    half = dim // 2
    out = {}
    for layer in range(layers):
        for head in range(heads):
            at = (layer * heads + head) * half
            pair = w[at: at + half]
            floor = 1e-4 * sum(pair) / half
            out[layer, head] = [max(e, floor) for e in pair] * 2
    return out


def measure(a, b, profile):
    """Returns logit noise (None without a profile), value error, and how many vectors came back exact."""
    dim = a["k"].shape[3]
    energy = energy_by_head(profile, a["k"].shape) if profile else None
    noise, keys, same = 0.0, 0, 0
    for (layer, head, x), (_, _, y) in zip(vectors(a["k"]), vectors(b["k"])):
        if x == y:
            same += 1
            continue
        keys += 1
        if energy:
            noise += sum(e * (p - q) * (p - q) for e, p, q in zip(energy[layer, head], x, y)) / dim
    error, values = 0.0, 0
    for (_, _, x), (_, _, y) in zip(vectors(a["v"]), vectors(b["v"])):
        if x == y:
            same += 1
            continue
        norm = sum(p * p for p in x)
        values += 1
        error += sum((p - q) * (p - q) for p, q in zip(x, y)) / norm if norm else math.inf
    return {"logit_noise": math.sqrt(noise / keys) if energy and keys else (0.0 if energy else None),
            "value_error": math.sqrt(error / values) if values else 0.0,
            "exact_vectors": same}


def lossy(a, b, profile, max_logit_noise, max_value_error):
    check_shape(a, b)
    m = measure(a, b, profile)
    if max_logit_noise and m["logit_noise"] is not None and not m["logit_noise"] <= CONTRACT_SLACK * max_logit_noise:
        raise Mismatch(f"logit noise is {m['logit_noise']:.4f} nats, {max_logit_noise} was asked for")
    if max_value_error and not m["value_error"] <= CONTRACT_SLACK * max_value_error:
        raise Mismatch(f"value error is {m['value_error']:.4f}, {max_value_error} was asked for")
    return m


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mode", choices=("exact", "lossy"))
    p.add_argument("original")
    p.add_argument("copy")
    p.add_argument("--profile")
    p.add_argument("--max-logit-noise", type=float, default=0)
    p.add_argument("--max-value-error", type=float, default=0)
    p.add_argument("--json", action="store_true")
    a = p.parse_args(argv)
    try:
        original, copy = safetensors_file.read(a.original)[0], safetensors_file.read(a.copy)[0]
        if a.mode == "exact":
            result = exact(original, copy)
        else:
            profile = safetensors_file.read(a.profile)[0] if a.profile else None
            result = lossy(original, copy, profile, a.max_logit_noise, a.max_value_error)
    except (Mismatch, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if a.json:
        print(json.dumps(result))
    elif a.mode == "exact":
        print("equal bit for bit")
    else:
        noise = "not measured" if result["logit_noise"] is None else f"{result['logit_noise']:.4f} nats"
        print(f"logit noise {noise}, value error {result['value_error']:.4f}, {result['exact_vectors']} vectors bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
