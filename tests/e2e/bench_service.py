"""`latticekv bench service` measures what it says: every row moved bytes and is told apart."""
import json
import os
import subprocess
import unittest

LATTICEKV = os.path.join(os.environ["LATTICEKV_BIN_DIR"], "latticekv")
SMALL = ["--layers", "2", "--heads", "1", "--tokens", "64", "--seconds", "0.5", "--workers", "2", "--memory-mb", "64"]


class BenchServiceTest(unittest.TestCase):
    def rows(self, *flags):
        done = subprocess.run([LATTICEKV, "bench", "service", "--json", *SMALL, *flags], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)["rows"]

    def test_every_system_moves_bytes_both_ways(self):
        rows = self.rows("--chunks", "32", "--presets", "balanced", "--transports", "unix")
        self.assertEqual([(r["direction"], r["system"]) for r in rows],
                         [(d, s) for d in ("put", "get") for s in ("latticekv", "echo", "redis")])
        for row in rows:
            if "note" in row:
                self.assertEqual(row["system"], "redis")
                continue
            self.assertGreater(row["operations"], 0)
            self.assertEqual(row["operation_bytes"], 2 * 2 * 64 * 64 * 2)
            self.assertGreater(row["p99_ms"], 0)
            self.assertGreaterEqual(row["p99_ms"], row["p50_ms"])
            self.assertGreater(row["cpu_seconds"], 0)
            if row["system"] == "latticekv":
                self.assertGreater(row["codec_cpu_seconds"], 0)

    def test_the_worker_compresses_and_decompresses(self):
        rows = self.rows("--chunks", "32", "--presets", "balanced", "--transports", "unix", "--systems", "latticekv", "--wire", "raw,frames")
        self.assertEqual([(r["direction"], r["wire"]) for r in rows], [(d, w) for d in ("put", "get") for w in ("raw", "frames")])
        for row in rows:
            self.assertGreater(row["operations"], 0)

    def test_rows_are_printed_as_they_are_measured(self):
        # Read as soon as there is something, the first row comes without the last. On a busy machine whoever reads late finds them all: then
        # once more.
        for _ in range(10):
            with subprocess.Popen([LATTICEKV, "bench", "service", *SMALL, "--chunks", "32", "--presets", "balanced", "--systems", "latticekv",
                                   "--transports", "shm,unix"], stdout=subprocess.PIPE) as running:
                at_first = b""
                while self.count_rows(at_first) == 0:
                    read = os.read(running.stdout.fileno(), 1 << 16)
                    self.assertTrue(read, at_first)
                    at_first += read
                whole = at_first + running.stdout.read()
                self.assertEqual(running.wait(), 0)
            self.assertIn(b"\nrows", b"\n" + at_first)
            self.assertEqual(self.count_rows(whole), 4, whole)
            if self.count_rows(at_first) < 4:
                break
        else:
            self.fail("every row was there with the first one")

    @staticmethod
    def count_rows(text):
        """Whole lines of `text` that are rows of measurements."""
        return sum(line.startswith((b"put", b"get")) and b" latticekv " in line for line in text.split(b"\n")[:-1])

    def test_a_wrong_word_is_wrong_usage(self):
        done = subprocess.run([LATTICEKV, "bench", "service", "--systems", "memcached"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("memcached", done.stderr)


if __name__ == "__main__":
    unittest.main()
