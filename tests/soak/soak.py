#!/usr/bin/env python3
"""Eight client processes mix put, look-up, get and delete at a memory cap that forces eviction.

LATTICEKV_SOAK_SECONDS (default 10) says for how long (LATTICEKV_SOAK_MEMORY_MIB and LATTICEKV_SOAK_DISK_MIB set the caps), of each form: memory alone, and memory with a disk tier, both smaller than the
working set, where the last third of the run must take no more memory and descriptors than the second (of a run of seconds: not much more). Each client compares every byte it is served with a local encode and
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
MEMORY_BYTES = int(os.environ.get("LATTICEKV_SOAK_MEMORY_MIB", "8")) << 20
DISK_BYTES = int(os.environ.get("LATTICEKV_SOAK_DISK_MIB", "12")) << 20
# The local encode that every block is compared with knows no profile that the daemon would learn.
FLAGS = ("--learn_profiles=false",)
# Of the means of the second and the last third. Ten minutes with a list of removals that grew to its limit
# passed a mebibyte; a run of seconds has the first use of buffers, arenas and segments in it (on a busy machine 3.85 MiB of heap were
# seen): it finds payloads and streams that leak by the hundred.
GROWTH_ALLOWANCE_BYTES = (1 << 20) if SECONDS >= 60 else (32 << 20)
DESCRIPTORS_ALLOWANCE = CLIENTS if SECONDS >= 60 else 64
# What the process takes beside the cap: code, gRPC's buffers (8 streams of messages up to 4 MiB each way), allocator slack.
RESIDENT_ALLOWANCE_BYTES = 160 << 20
SANITIZED = os.environ.get("LATTICEKV_SANITIZE", "") != ""


class Soak(unittest.TestCase):
    def test_mixed_load_at_the_cap(self):
        with tempfile.TemporaryDirectory(prefix="lkv") as directory:
            daemon = Daemon(directory, MEMORY_BYTES, FLAGS)
            try:
                self.run_load(daemon)
                self.assertEqual(daemon.stop(), 0)
            finally:
                daemon.kill()

    def test_mixed_load_with_a_disk(self):
        with tempfile.TemporaryDirectory(prefix="lkv") as directory:
            disk = os.path.join(directory, "disk")
            daemon = Daemon(directory, MEMORY_BYTES, [*FLAGS, f"--disk_dir={disk}", f"--disk_bytes={DISK_BYTES}"])
            try:
                self.run_load(daemon)
                stats = daemon.stats()
                print(f"disk: peak {stats['disk_peak_bytes']} of {DISK_BYTES} bytes, {stats['evicted_to_disk']} blocks left memory for it, "
                      f"{stats['promoted_blocks']} came back, {stats['disk_evicted_blocks']} dropped for room")
                self.assertEqual(stats["disk_state"], "ok")
                self.assertLessEqual(int(stats["disk_peak_bytes"]), DISK_BYTES)
                self.assertGreater(int(stats["evicted_to_disk"]), 0, "nothing went to disk: the load is too small")
                self.assertEqual(int(stats["damaged_records"]), 0)
                self.assertEqual(daemon.stop(), 0)
            finally:
                daemon.kill()

    def check_growth(self, samples):
        """samples: (resident bytes, descriptors, heap bytes) at equal distances over the run."""
        third = len(samples) // 3
        tenths = [samples[i * (len(samples) - 1) // 10] for i in range(11)]
        print("resident MiB at each tenth of the run: " + ", ".join(f"{s[0] / (1 << 20):.1f}" for s in tenths))
        print("of it heap and stacks: " + ", ".join(f"{s[2] / (1 << 20):.1f}" for s in tenths))
        print("descriptors: " + ", ".join(str(s[1]) for s in tenths))
        second, last = samples[third:2 * third], samples[2 * third:]
        grown, heap_grown = (sum(s[i] for s in last) / len(last) - sum(s[i] for s in second) / len(second) for i in (0, 2))
        print(f"from the second to the last third resident memory grew by {grown / (1 << 20):.2f} MiB, heap and stacks by "
              f"{heap_grown / (1 << 20):.2f} MiB (at most {GROWTH_ALLOWANCE_BYTES / (1 << 20):.0f}), descriptors from at most "
              f"{max(s[1] for s in second)} to at most {max(s[1] for s in last)}")
        if not SANITIZED:
            self.assertLess(grown, GROWTH_ALLOWANCE_BYTES)
            self.assertLess(heap_grown, GROWTH_ALLOWANCE_BYTES)
        self.assertLessEqual(max(s[1] for s in last), max(s[1] for s in second) + DESCRIPTORS_ALLOWANCE)

    def run_load(self, daemon):
        clients = [subprocess.Popen([binary("soak_client"), daemon.socket, str(SECONDS), str(i)], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(CLIENTS)]
        highest = 0
        samples = []
        while any(c.poll() is None for c in clients):
            stats = daemon.stats()
            self.assertLessEqual(int(stats["memory_used_bytes"]), MEMORY_BYTES)
            highest = max(highest, int(stats["memory_used_bytes"]))
            samples.append((daemon.resident_now_bytes(), daemon.descriptors(), daemon.heap_bytes()))
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
        self.check_growth(samples)
        left_memory = int(stats["evicted_blocks"]) + int(stats.get("evicted_to_disk", 0))
        self.assertGreater(left_memory, 0, "the cap forced no eviction: the load is too small")
        self.assertEqual(int(stats["corrupt_blocks"]), 0)
        for name in ("puts", "blocks_put", "blocks_had", "hits", "gets", "session_gets", "deletes", "blocks_compared", "exact_compared"):
            self.assertGreater(total[name], 0, f"the load did none of: {name}")
        if not SANITIZED:
            self.assertLess(resident, MEMORY_BYTES + RESIDENT_ALLOWANCE_BYTES)


if __name__ == "__main__":
    unittest.main()
