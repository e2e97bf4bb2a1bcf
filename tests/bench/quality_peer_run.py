"""Runs one codec of another project on a cache, inside that codec's environment; see quality_peers.py.

    quality_peer_run.py PEER CACHE.safetensors COPY.safetensors 0|1 [settings]         0: bytes are not wanted where counting them is slow

Writes the copy that the peer's own code makes and prints a JSON line: the bytes that a decoder needs and how they were counted.
"""
import json
import os
import sys
import tempfile
import types

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def vectors_first(x):
    """[layers, tokens, heads, dim] as one [1, heads, tokens, dim] float tensor a layer."""
    return [torch.from_numpy(layer).float().permute(1, 0, 2)[None] for layer in x]


def tokens_first(layers):
    return np.stack([t[0].permute(1, 0, 2).numpy() for t in layers]).astype(np.float16)


def kakeyalattice(t, base, count, variant, q_range):
    """Per-vector codec on keys as cached; the package has no serialiser, only a round trip and a count of bits."""
    from kakeyalattice import V14KakeyaZamirLatticeGPU, V15KakeyaZamirE8GPU
    k, v = t["k"], t["v"]
    codec = {"d4": V14KakeyaZamirLatticeGPU, "e8": V15KakeyaZamirE8GPU}[variant](D=k.shape[-1], q_range=int(q_range), device="cpu")
    copies = [codec.roundtrip(torch.from_numpy(x).float()).numpy().astype(np.float16) for x in (k, v)]
    vectors = (k.size + v.size) // k.shape[-1]
    return *copies, {"bytes": -(-vectors * codec.bits_per_token_per_head // 8),
                           "note": "no serialiser: the package's own bits_per_token_per_head, for every vector, packed without gaps"}


def nexus_payload(t, base, key_bits, value_bits):
    """What a decoder of the package's pipeline needs, in bytes: doubled lattice points through the package's index coder, f16 scales,
    the header of its own accounting."""
    from nexusquant.core.compression_accounting import _HEADER_SIZE, _compress_raw_zstd, _compress_with_delta_zstd
    from nexusquant.core.e8_lattice import E8Lattice
    from nexusquant.core.hadamard import hadamard_matrix
    from nexusquant.core.rope_utils import inverse_rope
    layers, tokens, heads, dim = t["k"].shape
    total = _HEADER_SIZE
    for name, bits in (("k", key_bits), ("v", value_bits)):
        coords = []
        for x in vectors_first(t[name]):
            y = (inverse_rope(x[0], base=base) if name == "k" else x[0]) @ hadamard_matrix(dim).float()
            scale = y.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 2 ** (bits - 1)
            points = E8Lattice.nearest_point((y / scale).reshape(-1, 8)).clamp(-2 ** (bits - 1), 2 ** (bits - 1))
            coords.append((points * 2).round().to(torch.int8).numpy().reshape(-1))
            total += 2 * scale.numel()
        flat = np.concatenate(coords)
        coders = [lambda level: _compress_raw_zstd(flat, level), lambda level: _compress_with_delta_zstd(flat, tokens, layers * heads, level)]
        total += len(min(coders, key=lambda c: len(c(3)))(22))  # the package's level is 22, which is slow: choose at 3
    return total


def nexusquant(t, base, count, key_bits, value_bits):
    from nexusquant.pipeline import NexusQuantQuantOnly
    key_bits, value_bits = int(key_bits), int(value_bits)
    cache = types.SimpleNamespace(key_cache=vectors_first(t["k"]), value_cache=vectors_first(t["v"]))
    NexusQuantQuantOnly(rope_base=base, key_bits=key_bits, value_bits=value_bits).compress(cache)
    return tokens_first(cache.key_cache), tokens_first(cache.value_cache), {
        "bytes": nexus_payload(t, base, key_bits, value_bits) if count else 0,
        "note": "compress() returns tensors: points and f16 scales serialised with the package's own zstd coder and header, "
                "differences on or off, the smaller; keys and values apart"}


def lmcache(t, base, count):
    """cachegen's encoder and decoder on chunks of 256 tokens, the package's own Python kernels, its pickle as stored."""
    import lmcache.c_ops  # noqa: F401  chooses the kernels
    from lmcache.storage_backend.serde import cachegen_basics, cachegen_decoder, cachegen_encoder
    k, v = torch.from_numpy(t["k"]), torch.from_numpy(t["v"])
    layers, tokens, heads, dim = k.shape
    with tempfile.TemporaryDirectory() as d:  # it takes the number of layers from a model's config.json
        with open(os.path.join(d, "config.json"), "w") as f:
            json.dump({"model_type": "llama", "num_hidden_layers": layers}, f)
        config = cachegen_basics.CacheGenConfig.from_model_name(d)
    key_bins, value_bins = torch.zeros(layers), torch.zeros(layers)
    for bins, specs in ((key_bins, config.kspecs), (value_bins, config.vspecs)):
        for s in specs:
            bins[s.start_layer:s.end_layer] = s.bins
    size, lean, parts = 0, 0, []
    for s in range(0, tokens, 256):
        kv = torch.stack([k[:, s:s + 256], v[:, s:s + 256]], 1)
        n = kv.shape[2]
        data = cachegen_encoder.encode_function(kv, config, key_bins, value_bins, n).to_bytes()
        size += len(data)
        o = cachegen_basics.CacheGenGPUEncoderOutput.from_bytes(data)
        lean += sum(x.numel() * x.element_size() for x in (o.cdf, o.max_tensors_key, o.max_tensors_value, *[y for c in o.data_chunks for y in (c.bytestream, c.bytestream_lengths)]))
        key, value = cachegen_decoder.decode_function_gpu(o.cdf, o.data_chunks, layers, n, torch.zeros((n, 2 * layers * heads * dim), dtype=torch.uint8))
        parts.append((cachegen_decoder.do_dequantize(key, key_bins, o.max_tensors_key), cachegen_decoder.do_dequantize(value, value_bins, o.max_tensors_value)))
    join = lambda i: torch.cat([p[i] for p in parts], 1).reshape(k.shape).numpy().astype(np.float16)
    return join(0), join(1), {"bytes": size, "lean_bytes": lean, "note": "its own serialiser (pickle), chunks of 256 tokens"}


def main(peer, cache, out, count, *settings):
    torch.set_num_threads(1)
    with safe_open(cache, "numpy") as f:
        base = float(f.metadata()["rope_base"])
    t = load_file(cache)
    k, v, result = {"kakeyalattice": kakeyalattice, "nexusquant-kv": nexusquant, "lmcache": lmcache}[peer](t, base, count == "1", *settings)
    save_file({"k": np.ascontiguousarray(k), "v": np.ascontiguousarray(v)}, out)  # save_file writes memory as it lies
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
