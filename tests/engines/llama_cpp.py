#!/usr/bin/env python3
"""One llama.cpp process stores the cache of a prompt, fresh ones restore it and go on: same text, and sooner."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from daemon import BIN_DIR, PROFILE, SOURCE_DIR, DaemonTest  # noqa: E402

SKIPPED = 77
PROGRAM = os.path.join(BIN_DIR, "latticekv_llama_cpp")
TEXT = os.path.join(SOURCE_DIR, "tests", "data", "lighthouse.txt")
PROMPT_TOKENS, COMPARE_TOKENS = 1500, 128
SHARED_TOKENS = 700
MODEL = ""


class LlamaCpp(DaemonTest):
    memory_bytes = 512 << 20

    def engine(self, command, *flags, prompt=TEXT, tokens=PROMPT_TOKENS):
        # One thread: llama.cpp's threads wait for each other by spinning, which is slow where processors are shared.
        done = subprocess.run([PROGRAM, command, "--model", MODEL, "--server", self.server, "--prompt", prompt, "--prompt-tokens", str(tokens),
                               "--threads", "1", *map(str, flags)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "")
        return json.loads(done.stdout)

    def report(self, name, run, stored):
        print(f"{name}: {run['restored_tokens']} of {run['prompt_tokens']} tokens restored, first token after {run['first_token_ms']:.0f} ms "
              f"(prefill {run['prefill']['first_token_ms']:.0f} ms), {stored['stored_bytes']} of {stored['raw_bytes']} bytes stored, "
              f"KL {run['compared']['kl_nats']:.6f} nats over {run['compared']['positions']} positions, "
              f"top-1 {run['compared']['top1_agreement']:.3f}", flush=True)

    def test_exact_gives_the_same_text_sooner(self):
        stored = self.engine("store", "--preset", "exact", "--session", "exact")
        run = self.engine("run", "--compare", COMPARE_TOKENS)
        self.report("exact", run, stored)
        self.assertEqual(run["restored_tokens"], PROMPT_TOKENS - 1)
        self.assertEqual(len(stored["tokens"]), 64)
        self.assertEqual(run["tokens"], stored["tokens"])
        self.assertEqual(run["text"], stored["text"])
        self.assertEqual(run["prefill"]["tokens"], stored["tokens"])
        self.assertEqual(run["compared"]["kl_nats"], 0)
        self.assertLess(run["first_token_ms"], run["prefill"]["first_token_ms"])

        # Another prompt begins with the same tokens and goes on differently.
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as other:
            with open(TEXT, encoding="utf8") as f:
                shared = f.read(3000)
            other.write(shared + " But the day on which the keepers were told about this was a Sunday, and nobody believed it." * 3)
            other.flush()
            run = self.engine("run", "--compare", 8, prompt=other.name, tokens=SHARED_TOKENS - 20)
        self.report("shared prefix", run, stored)
        self.assertGreater(run["restored_tokens"], 600)
        self.assertLess(run["restored_tokens"], SHARED_TOKENS - 20)
        # Not 0: llama.cpp's kernels round a row differently in batches of other sizes, and the two prompts are cut into other batches.
        self.assertLess(run["compared"]["kl_nats"], 0.02)

    def test_high_reuses_the_prefix_at_a_small_divergence(self):
        # Without flash attention llama.cpp keeps its values transposed.
        attention = ("--flash-attention", "off")
        stored = self.engine("store", "--preset", "high", "--profile", PROFILE, *attention)
        run = self.engine("run", "--compare", COMPARE_TOKENS, *attention)
        self.report("high", run, stored)
        self.assertEqual(run["restored_tokens"], PROMPT_TOKENS - 1)
        self.assertLess(stored["stored_bytes"], stored["raw_bytes"] / 5.5)
        self.assertGreater(run["compared"]["kl_nats"], 0)
        self.assertLess(run["compared"]["kl_nats"], 0.01)
        self.assertLess(run["first_token_ms"], run["prefill"]["first_token_ms"])

    def test_without_the_daemon_the_engine_goes_on(self):
        nobody = "unix:" + self.path("nobody.sock")
        done = subprocess.run([PROGRAM, "run", "--model", MODEL, "--server", nobody, "--prompt", TEXT, "--prompt-tokens", "20", "--generate", "4",
                               "--threads", "1"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["restored_tokens"], 0)
        self.assertIn("nothing restored", done.stderr)


def main():
    global MODEL
    if not os.path.exists(PROGRAM):
        print(f"skipped: {PROGRAM} is not built; configure with -DLATTICEKV_LLAMA_CPP=$(deploy/engines llama_cpp)")
        sys.exit(SKIPPED)
    found = subprocess.run([os.path.join(SOURCE_DIR, "deploy", "engines"), "model"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode != 0:
        print(f"skipped: the model cannot be had: {found.stderr.strip()}")
        sys.exit(SKIPPED)
    MODEL = found.stdout.strip()
    unittest.main()


if __name__ == "__main__":
    main()
