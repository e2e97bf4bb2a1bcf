#!/usr/bin/env python3
"""compress, inspect and decompress on a real cache: every preset, chunk sizes, dtypes, and what happens with bad input."""
import json
import os
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import compare_cache  # noqa: E402
import safetensors_file  # noqa: E402
from daemon import PROFILE, SAMPLE, cli, cli_json  # noqa: E402

PRESETS = {"near": (.05, .06), "fine": (.10, .12), "high": (.19, .22), "balanced": (.28, .32), "small": (.38, .45), "tiny": (.53, .62)}


class CliRoundTrip(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="lkv")
        self.addCleanup(shutil.rmtree, self.directory, True)

    def path(self, name):
        return os.path.join(self.directory, name)

    def small_sample(self, layers=2):
        """The first layers of the sample: comparing is plain Python and slow."""
        tensors, metadata = safetensors_file.read(SAMPLE)
        out = dict(tensors)
        for name in ("k", "v", "query_energy", "attention_mass"):
            t = tensors[name]
            out[name] = safetensors_file.Tensor(t.dtype, [layers] + t.shape[1:], t.data[: len(t.data) // t.shape[0] * layers])
        path = self.path("small.safetensors")
        safetensors_file.write(path, out, metadata)
        profile, _ = safetensors_file.read(PROFILE)
        for name, t in profile.items():
            profile[name] = safetensors_file.Tensor(t.dtype, [layers] + t.shape[1:], t.data[: len(t.data) // t.shape[0] * layers])
        safetensors_file.write(self.path("small_profile.safetensors"), profile)
        return path, self.path("small_profile.safetensors")

    def compare(self, mode, a, b, *args):
        self.assertEqual(compare_cache.main([mode, a, b, *map(str, args)]), 0)

    def test_every_preset_keeps_its_promise_and_shrinks(self):
        sample, profile = self.small_sample()
        sizes = []
        for preset, (noise, error) in PRESETS.items():
            for stats in ("own", "profile", "auto"):
                with self.subTest(preset=preset, stats=stats):
                    cli("compress", sample, self.path("a.lkv"), "--preset", preset, "--profile", profile, "--stats", stats)
                    needed = ["--profile", profile] if stats != "own" else []
                    cli("decompress", self.path("a.lkv"), self.path("b.safetensors"), *needed)
                    if stats == "own":
                        sizes.append(os.path.getsize(self.path("a.lkv")))
                    if stats != "auto":
                        self.compare("lossy", sample, self.path("b.safetensors"), "--profile", profile,
                                     "--max-logit-noise", noise, "--max-value-error", error)
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.assertLess(sizes[-1], sizes[0] / 2.5)

    def test_exact_is_bit_for_bit(self):
        for chunk in (16, 100, 256):
            cli("compress", SAMPLE, self.path("a.lkv"), "--preset", "exact", "--chunk", chunk)
            cli("decompress", self.path("a.lkv"), self.path("b.safetensors"))
            self.compare("exact", SAMPLE, self.path("b.safetensors"))

    def test_inspect_counts_every_byte(self):
        cli("compress", SAMPLE, self.path("a.lkv"), "--preset", "high", "--profile", PROFILE, "--embed-profile", "--stats", "profile")
        shown = cli_json("inspect", self.path("a.lkv"))
        self.assertIn("high", json.dumps(shown))
        self.assertIn(str(os.path.getsize(self.path("a.lkv"))), json.dumps(shown))
        cli("decompress", self.path("a.lkv"), self.path("b.safetensors"))  # the profile travels in the file

    def test_short_chunks_and_other_dtypes(self):
        sample, profile = self.small_sample()
        tensors, metadata = safetensors_file.read(sample)
        for dtype in ("BF16", "F32"):
            import struct
            converted = dict(tensors)
            for name in ("k", "v"):
                values = tensors[name].values()
                data = struct.pack(f"<{len(values)}f", *values)
                if dtype == "BF16":  # truncation is enough for a test cache
                    data = b"".join(data[i + 2: i + 4] for i in range(0, len(data), 4))
                converted[name] = safetensors_file.Tensor(dtype, tensors[name].shape, data)
            source = self.path(f"{dtype}.safetensors")
            safetensors_file.write(source, converted, metadata)
            cli("compress", source, self.path("a.lkv"), "--preset", "fine", "--profile", profile, "--chunk", 48)
            cli("decompress", self.path("a.lkv"), self.path("b.safetensors"), "--profile", profile)
            back, back_metadata = safetensors_file.read(self.path("b.safetensors"))
            self.assertEqual(back["k"].dtype, dtype)
            self.assertEqual(back_metadata["rope_base"], metadata["rope_base"])
            self.compare("lossy", source, self.path("b.safetensors"), "--profile", profile,
                         "--max-logit-noise", 0.11, "--max-value-error", 0.13)

    def test_bad_input_gives_one_sentence_and_leaves_nothing(self):
        cli("compress", SAMPLE, self.path("a.lkv"), "--preset", "high", "--profile", PROFILE, "--stats", "profile")
        with open(self.path("a.lkv"), "rb") as f:
            blob = f.read()

        def damaged(name, data):
            with open(self.path(name), "wb") as f:
                f.write(data)
            return self.path(name)

        flipped = bytearray(blob)
        flipped[len(blob) * 2 // 3] ^= 4
        with open(SAMPLE, "rb") as f:
            head = f.read(5000)
        cases = [
            ("decompress", damaged("cut.lkv", blob[: len(blob) // 2]), self.path("o")),
            ("decompress", damaged("flip.lkv", bytes(flipped)), self.path("o"), "--profile", PROFILE),
            ("decompress", damaged("text.lkv", b"hello\n" * 100), self.path("o")),
            ("decompress", damaged("empty.lkv", b""), self.path("o")),
            ("decompress", self.path("absent.lkv"), self.path("o")),
            ("decompress", self.path("a.lkv"), self.path("o")),  # without its profile
            ("compress", damaged("cut.safetensors", head), self.path("o")),
            ("compress", PROFILE, self.path("o")),
            ("compress", SAMPLE, self.path("o"), "--preset", "huge"),
            ("compress", SAMPLE, self.path("o"), "--stats", "profile"),
            ("inspect", damaged("text.lkv", b"hello\n" * 100)),
            ("put", SAMPLE, "--server", "unix:" + self.path("nobody.sock"), "--session", "s"),
        ]
        for case in cases:
            with self.subTest(case=case):
                done = cli(*case, expect=None)
                self.assertIn(done.returncode, (1, 2), done.stderr)
                self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
                self.assertFalse(os.path.exists(self.path("o")), "a failed command left a file")
        needs = cli("decompress", self.path("a.lkv"), self.path("o"), expect=1).stderr
        self.assertRegex(needs, "[0-9a-f]{64}")

    def test_wrong_usage_exits_2(self):
        for args in ((), ("nonsense",), ("compress",), ("compress", SAMPLE), ("get", "--server", "x")):
            with self.subTest(args=args):
                self.assertEqual(cli(*args, expect=None).returncode, 2)
        self.assertIn("usage", cli("compress", "--help").stdout)


if __name__ == "__main__":
    unittest.main()
