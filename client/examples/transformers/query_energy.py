#!/usr/bin/env python3
"""Query energy of a transformers model by forward hooks, and a cache to learn a model profile from.

    query_energy.py --model FILE.gguf --text FILE --tokens N OUT.safetensors

OUT holds k, v, token_ids and query_energy, as `latticekv profile learn` takes them. Texts of different kinds make a better profile: run this
once for each and give all files to one `profile learn`.
"""
import argparse
import functools
import json

import torch


class QueryEnergy:
    """Watches the queries of a model with rotary pairs half a head apart (Llama, Qwen, Mistral, Gemma, ...):

        with QueryEnergy(model) as energy:
            model(ids)                            # as many tokens and texts as you like
        save_file({"query_energy": energy.per_pair(), ...}, path)

    The hook sits on what makes the queries, before their rotary embedding: rotation does not change the energy of a pair. Where queries are
    normalised by head (a module `q_norm`), that is behind the projection and is watched instead. An attention factor on top of the rotation (yarn)
    multiplies every query: give it as `factor`."""

    def __init__(self, model, factor=1.0):
        config = model.config
        self._heads = config.num_attention_heads
        self._kv_heads = getattr(config, "num_key_value_heads", None) or self._heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._factor = factor
        attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
        if not attentions:
            raise ValueError("the model has no module q_proj; hook what makes its queries")
        self._sums = [torch.zeros(self._heads, self._head_dim, dtype=torch.float64) for _ in attentions]
        self._tokens = [0] * len(attentions)
        self._handles = [(getattr(attention, "q_norm", None) or attention.q_proj).register_forward_hook(functools.partial(self._add, layer))
                         for layer, attention in enumerate(attentions)]

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for handle in self._handles:
            handle.remove()

    def _add(self, layer, _module, _inputs, output):
        queries = output.detach().reshape(-1, self._heads, self._head_dim).double()
        self._sums[layer] += queries.square().sum(0).cpu()
        self._tokens[layer] += queries.shape[0]

    def per_pair(self):
        """[layers, kv_heads, head_dim / 2]: E[q^2] of a channel, over the query heads that share a key head and both channels of a pair."""
        if not all(self._tokens):
            raise ValueError("the model has not run yet")
        energy = torch.stack([total / tokens for total, tokens in zip(self._sums, self._tokens)]) * self._factor**2
        by_group = energy.reshape(len(self._sums), self._kv_heads, -1, 2, self._head_dim // 2)
        return by_group.mean((2, 3)).float()


def main():
    from safetensors.torch import save_file
    from transformers import DynamicCache

    import smollm2
    from prefix_cache import layers_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("out")
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = smollm2.load(a.model)
    with open(a.text, encoding="utf8") as f:
        ids = torch.tensor([tokenizer.encode(f.read()).ids[: a.tokens]])
    with QueryEnergy(model) as energy, torch.no_grad():
        # A cache that is handed in comes back as one; without it some releases of transformers return tuples.
        cache = model(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    # [1, heads, tokens, head_dim] of each layer to [layers, tokens, heads, head_dim].
    k, v = (torch.stack([planes[i][0].transpose(0, 1) for planes in layers_of(cache)]).half().contiguous() for i in (0, 1))
    save_file({"k": k, "v": v, "token_ids": ids[0].int(), "query_energy": energy.per_pair().contiguous()}, a.out,
              {"model": model.config._name_or_path, "rope_base": str(model.config.rope_theta), "rope_layout": "neox"})
    print(json.dumps({"tokens": ids.shape[1], "layers": k.shape[0]}))


if __name__ == "__main__":
    main()
