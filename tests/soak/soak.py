#!/usr/bin/env python3
"""Eight client processes mix put, look-up, get and delete at a memory cap that forces eviction.

LATTICEKV_SOAK_SECONDS (default 10) says for how long. Each client compares every byte it is served with a local encode and
decode of the same chunk; here the daemon's own account and its resident memory are held against the cap.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from daemon import Daemon, binary  # noqa: E402

SECONDS = float(os.environ.get("LATTICEKV_SOAK_SECONDS", "10"))
CLIENTS = 8
MEMORY_BYTES = 8 << 20
# What the process takes beside the cap: code, gRPC's buffers (8 streams of messages up to 4 MiB each way), allocator slack.
RESIDENT_ALLOWANCE_BYTES = 160 << 20
SANITIZED = os.environ.get("LATTICEKV_SANITIZE", "") != ""


class Soak(unittest.TestCase):
    def test_mixed_load_at_the_cap(self):
        with tempfile.TemporaryDirectory(prefix="lkv") as directory:
            daemon = Daemon(directory, MEMORY_BYTES)
            try:
                self.run_load(daemon)
                self.assertEqual(daemon.stop(), 0)
            finally:
                daemon.kill()

    def run_load(self, daemon):
        clients = [subprocess.Popen([binary("soak_client"), daemon.socket, str(SECONDS), str(i)], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(CLIENTS)]
        highest = 0
        while any(c.poll() is None for c in clients):
            stats = daemon.stats()
            self.assertLessEqual(int(stats["memory_used_bytes"]), MEMORY_BYTES)
            highest = max(highest, int(stats["memory_used_bytes"]))
            time.sleep(0.25)
        total = {}
        for c in clients:
            out, err = c.communicate()
            self.assertEqual(c.returncode, 0, err)
            for name, n in json.loads(out).items():
                total[name] = total.get(name, 0) + n
        stats = daemon.stats()
        resident = daemon.resident_bytes()
        print(f"{CLIENTS} clients, {SECONDS:.0f} s: {total}")
        print(f"daemon: peak {stats['memory_peak_bytes']} of {MEMORY_BYTES} bytes, {stats['evicted_blocks']} blocks evicted, "
              f"{stats['blocks']} stored, resident at most {resident >> 20} MiB")
        self.assertLessEqual(int(stats["memory_peak_bytes"]), MEMORY_BYTES)
        self.assertEqual(int(stats["memory_capacity_bytes"]), MEMORY_BYTES)
        self.assertGreater(int(stats["evicted_blocks"]), 0, "the cap forced no eviction: the load is too small")
        self.assertEqual(int(stats["corrupt_blocks"]), 0)
        for name in ("puts", "blocks_put", "blocks_had", "hits", "gets", "session_gets", "deletes", "blocks_compared", "exact_compared"):
            self.assertGreater(total[name], 0, f"the load did none of: {name}")
        if not SANITIZED:
            self.assertLess(resident, MEMORY_BYTES + RESIDENT_ALLOWANCE_BYTES)


if __name__ == "__main__":
    unittest.main()
