#!/usr/bin/env python3
"""One transformers process stores the cache of a prompt, a fresh one restores it and goes on: same text with exact, a small divergence with high."""
import json
import math
import os
import statistics
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import python_env  # noqa: E402

# The last release that runs on the torch that Debian 12 packages.
PACKAGES = ["transformers==4.46.3", "gguf==0.19.0", "numpy<2"]
TORCH_PYTHON = "/usr/bin/python3"

if __name__ == "__main__":
    python_env.enter("transformers", [PACKAGES], base=TORCH_PYTHON, needs_module="torch",
                     hint="install python3-torch")

import safetensors_file  # noqa: E402
from daemon import PROFILE, SAMPLE, SOURCE_DIR, DaemonTest, cli, cli_json  # noqa: E402

# Debian's torch comes with a reference BLAS: a token of prefill takes a tenth of a second.
PROMPT_TOKENS, COMPARE_TOKENS = 96, 32
MODEL = ""


class Transformers(DaemonTest):
    memory_bytes = 512 << 20

    def generate(self, command, *flags):
        script = os.path.join(SOURCE_DIR, "client", "examples", "transformers", "generate.py")
        done = subprocess.run([sys.executable, script, command, "--model", MODEL, "--server", self.server, "--prompt",
                               os.path.join(SOURCE_DIR, "tests", "data", "lighthouse.txt"), "--prompt-tokens", str(PROMPT_TOKENS), *flags],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1500)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_query_energy_by_hooks_is_the_model_s(self):
        """Of the text that the sample cache was made of, with another implementation: the energies agree, and a profile is learnt from them."""
        script = os.path.join(SOURCE_DIR, "client", "examples", "transformers", "query_energy.py")
        tokens = 64
        done = subprocess.run([sys.executable, script, "--model", MODEL, "--text", os.path.join(SOURCE_DIR, "tests", "data", "harbour.txt"),
                               "--tokens", str(tokens), self.path("hooked.safetensors")],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1500)
        self.assertEqual(done.returncode, 0, done.stderr)
        hooked, sample = (safetensors_file.read(path)[0] for path in (self.path("hooked.safetensors"), SAMPLE))
        self.assertEqual(list(hooked["token_ids"].values()), list(sample["token_ids"].values())[:tokens])
        ours, theirs = ([math.log(e) for e in t["query_energy"].values()] for t in (hooked, sample))
        self.assertEqual(hooked["query_energy"].shape, sample["query_energy"].shape)
        # 64 of the 256 tokens: the same model, a shorter average.
        error = [a - b for a, b in zip(ours, theirs)]
        spread = statistics.pstdev(theirs)
        print(f"query energy: {statistics.mean(error):.4f} mean, {statistics.pstdev(error):.4f} rms error of a log energy whose spread is {spread:.3f}")
        self.assertLess(abs(statistics.mean(error)), 0.1)
        self.assertLess(statistics.pstdev(error), 0.3 * spread)
        learnt = cli_json("profile", "learn", self.path("hooked.safetensors"), SAMPLE, self.path("profile.safetensors"))
        self.assertEqual((learnt["tokens"], learnt["query_energy"]), (tokens + 256, True))
        cli("compress", SAMPLE, self.path("a.lkv"), "--profile", self.path("profile.safetensors"), "--embed-profile")

    def test_exact_gives_the_same_text_and_high_a_small_divergence(self):
        stored = self.generate("store", "--profile", PROFILE)
        run = self.generate("run", "--compare", str(COMPARE_TOKENS))
        for name in ("exact", "high"):
            print(f"{name}: {run[name]['restored_tokens']} of {PROMPT_TOKENS} tokens restored, first token after {run[name]['first_token_s']:.2f} s "
                  f"(prefill {run['prefill']['first_token_s']:.2f} s), {stored[name]['stored_bytes']} of {stored[name]['raw_bytes']} bytes stored, "
                  f"KL {run[name]['kl_nats']:.6f} nats over {COMPARE_TOKENS + 1} positions, top-1 {run[name]['top1_agreement']:.3f}", flush=True)
            self.assertEqual(run[name]["restored_tokens"], PROMPT_TOKENS - 1)
            self.assertLess(run[name]["first_token_s"], run["prefill"]["first_token_s"])
        self.assertEqual(len(stored["tokens"]), 64)
        self.assertEqual(run["prefill"]["tokens"], stored["tokens"])
        self.assertEqual(run["exact"]["tokens"], stored["tokens"])
        self.assertEqual(run["exact"]["kl_nats"], 0)
        self.assertGreater(run["high"]["kl_nats"], 0)
        self.assertLess(run["high"]["kl_nats"], 0.02)
        self.assertLess(stored["high"]["stored_bytes"], stored["high"]["raw_bytes"] / 7)


if __name__ == "__main__":
    found = subprocess.run([os.path.join(SOURCE_DIR, "deploy", "engines"), "model"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode != 0:
        python_env.skip(f"the model cannot be had: {found.stderr.strip()}")
    MODEL = found.stdout.strip()
    unittest.main()
