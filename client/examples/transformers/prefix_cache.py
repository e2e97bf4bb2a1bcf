"""The key-value cache of a Hugging Face transformers model on a LatticeKV daemon.

    cache = PrefixCache(client, model)
    past, restored = cache.restore(ids, max_tokens=len(ids) - 1)     # a DynamicCache, how many tokens it holds
    output = model(torch.tensor([ids[restored:]]), past_key_values=past, use_cache=True)
    cache.store(ids, output.past_key_values)
"""
import hashlib

import torch
from transformers import DynamicCache

import latticekv as lkv

_DTYPES = {torch.float16: lkv.DType.F16, torch.bfloat16: lkv.DType.BF16, torch.float32: lkv.DType.F32}


def weights_digest(model):
    """SHA-256 over the weights: two models that share a name never share a cache."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def layout_of(model, revision=""):
    """What the bytes of the model's cache mean. ValueError for models whose cache is more than keys and values of all tokens."""
    config = model.config
    if getattr(config, "sliding_window", None) or getattr(config, "layer_types", None) and set(config.layer_types) != {"full_attention"}:
        raise ValueError("models with a sliding window are not supported")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return lkv.Layout.uniform(config._name_or_path or config.model_type, layers=config.num_hidden_layers, kv_heads=heads, head_dim=head_dim,
                              dtype=_DTYPES[model.dtype], rope=lkv.Rope.of_config(config, head_dim), revision=revision or weights_digest(model))


def layers_of(cache):
    """[(keys, values)] of a DynamicCache, [batch, heads, tokens, head_dim] each, in releases before and after its layers became objects."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache))


class PrefixCache:
    """Stores and restores caches of one sequence (batch of 1)."""

    def __init__(self, client, model, namespace="", preset=lkv.Preset.DEFAULT, profile=None, revision=""):
        """profile: a latticekv.ModelProfile in the model's channel order, or None."""
        self._client, self._preset, self._device = client, preset, model.device
        self._layout = client.register_layout(layout_of(model, revision), namespace=namespace, profile=profile)

    def store(self, ids, cache, session=""):
        """Stores what `cache` holds of the tokens `ids`. Returns a latticekv.PutResult."""
        planes = [(keys[0].transpose(0, 1), values[0].transpose(0, 1)) for keys, values in layers_of(cache)]
        return self._client.put(self._layout, ids[: planes[0][0].shape[0]], planes, preset=self._preset, session=session)

    def restore(self, ids, max_tokens):
        """A DynamicCache with the longest stored prefix of `ids`, at most `max_tokens` of them, and its length. When nothing can be restored, for
        whatever reason, an empty one and 0: an engine can always do without."""
        try:
            with self._client.stream(self._layout, tokens=ids, torch=True) as reader:
                cache = DynamicCache()
                for layer, (keys, values) in reader:
                    count = min(reader.token_count, max_tokens)
                    cache.update(*(x[:count].transpose(0, 1).unsqueeze(0).to(self._device) for x in (keys, values)), layer)
                count = min(reader.token_count, max_tokens)
        except lkv.LatticeKVError:
            return DynamicCache(), 0
        if count == 0:
            return DynamicCache(), 0
        if any(keys.shape[2] != count for keys, _ in layers_of(cache)):  # a block turned out damaged after its first layers
            whole, cache = cache, DynamicCache()
            for layer, (keys, values) in enumerate(layers_of(whole)):
                cache.update(keys[:, :, :count], values[:, :, :count], layer)
        return cache, count
