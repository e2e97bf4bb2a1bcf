#!/usr/bin/env python3
"""What short chunks cost: stored bits an element at chunks of 16 to 256 tokens, and how many times those of 256 they are.

short_chunks.py --latticekv BIN [--input CACHE.safetensors --profile PROFILE.safetensors] [--presets balanced,high]

Without --input on a made-up cache of Llama-3.1-8B's shape: 32 layers, 8 heads of 128 channels, 512 tokens, with the profile it was made from.
Prints a Markdown table, as in docs/results/short_chunks.md.
"""
import argparse
import json
import subprocess

CHUNKS = [16, 32, 64, 128, 256]
LLAMA = ["--layers", "32", "--heads", "8", "--head-dim", "128", "--tokens", "512"]


def bits(options, chunk, stats):
    """{preset: stored bits an element, headers and tables included}."""
    source = ["--input", options.input, "--profile", options.profile] if options.input else LLAMA
    command = [options.latticekv, "bench", "codec", "--seconds", "0", "--json", "--presets", options.presets,
               "--chunk", str(chunk), "--stats", stats, *source]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {p["preset"]: p["bits_per_element"] for p in json.loads(done.stdout)["presets"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latticekv", required=True)
    parser.add_argument("--input")
    parser.add_argument("--profile")
    parser.add_argument("--presets", default="balanced")
    options = parser.parse_args()
    if bool(options.input) != bool(options.profile):
        parser.error("--input and --profile go together")
    print("| preset, statistics | " + " | ".join(f"{c} tokens" for c in CHUNKS) + " |")
    print("|---|" + "---|" * len(CHUNKS))
    for stats in ["profile", "own", "auto"]:
        found = {chunk: bits(options, chunk, stats) for chunk in CHUNKS}
        for preset in options.presets.split(","):
            whole = found[CHUNKS[-1]][preset]
            cells = [f"{found[c][preset]:.3f} ({found[c][preset] / whole:.3f})" for c in CHUNKS]
            print(f"| {preset}, {stats} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
