#!/usr/bin/env python3
"""One process prefills a prompt with a transformers model and stores its cache on a daemon, another restores it and goes on.

    generate.py store|run --model FILE.gguf --server ADDR --prompt FILE --prompt-tokens N --presets exact,high

Both run the prompt's last token alone, since kernels round a row of a large batch differently than a single one. Prints JSON.
"""
import argparse
import json
import time

import torch
from safetensors.numpy import load_file
from transformers import DynamicCache

import latticekv as lkv
import smollm2
from prefix_cache import PrefixCache, layers_of


def run(model, ids, past):
    """Log-probabilities after each of `ids`, which follow what `past` holds, and the cache then."""
    with torch.no_grad():
        output = model(torch.tensor([ids]), past_key_values=past, use_cache=True)
    return torch.log_softmax(output.logits[0].double(), -1), output.past_key_values


def run_prompt(model, ids, past, cached):
    if cached < len(ids) - 1:
        _, past = run(model, ids[cached:-1], past)
    return run(model, ids[-1:], past)


def greedy(model, scores, past, count):
    out = []
    while len(out) < count:
        out.append(int(scores[-1].argmax()))
        scores, past = run(model, out[-1:], past)
    return out


def copy_of(past):
    out = DynamicCache()
    for layer, (keys, values) in enumerate(layers_of(past)):
        out.update(keys.clone(), values.clone(), layer)
    return out


def evaluate(model, ids, continuation, past, cached, generate):
    """(generated tokens, log-probabilities over the continuation, seconds to the first token)"""
    start = time.monotonic()
    scores, past = run_prompt(model, ids, past, cached)
    seconds = time.monotonic() - start
    teacher = run(model, continuation, copy_of(past))[0]
    return greedy(model, scores, past, generate), torch.cat([scores[-1:], teacher]), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["store", "run"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--compare", type=int, default=32, help="tokens of the text after the prompt to compare predictions on")
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--presets", default="exact,high", help="each is stored in a namespace of its name")
    parser.add_argument("--profile", help="model profile, a safetensors file (docs/format/profile.md)")
    a = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = smollm2.load(a.model)
    with open(a.prompt, encoding="utf8") as f:
        text = tokenizer.encode(f.read()).ids
    ids, continuation = text[: a.prompt_tokens], text[a.prompt_tokens: a.prompt_tokens + a.compare]
    profile = lkv.ModelProfile(**load_file(a.profile)) if a.profile else None
    result = {}
    with lkv.connect(a.server) as client:
        names = a.presets.split(",")
        caches = {name: PrefixCache(client, model, name, lkv.Preset[name.upper()], profile, revision="Q4_1") for name in names}
        if a.command == "store":
            scores, past = run_prompt(model, ids, DynamicCache(), 0)
            for name, cache in caches.items():
                put = cache.store(ids, past, session="prompt")
                result[name] = {"raw_bytes": put.raw_bytes, "stored_bytes": put.stored_bytes}
            result["tokens"] = greedy(model, scores, past, a.generate)
        else:
            tokens, exact, seconds = evaluate(model, ids, continuation, DynamicCache(), 0, a.generate)
            result["prefill"] = {"tokens": tokens, "first_token_s": seconds, "text": tokenizer.decode(tokens)}
            for name, cache in caches.items():
                start = time.monotonic()
                past, restored = cache.restore(ids, len(ids) - 1)
                restore_s = time.monotonic() - start
                tokens, scores, seconds = evaluate(model, ids, continuation, past, restored, a.generate)
                result[name] = {"tokens": tokens, "restored_tokens": restored, "first_token_s": restore_s + seconds,
                                "kl_nats": float((exact.exp() * (exact - scores)).sum(-1).mean()),
                                "top1_agreement": float((exact.argmax(-1) == scores.argmax(-1)).double().mean())}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
