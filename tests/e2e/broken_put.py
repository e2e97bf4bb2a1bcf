#!/usr/bin/env python3
"""Clients that are killed in the middle of a put leave nothing visible behind, and the daemon gets its memory back."""
import os
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import compare_cache  # noqa: E402
import safetensors_file  # noqa: E402
from daemon import SAMPLE, DaemonTest, binary, cli, cli_json  # noqa: E402


class BrokenPut(DaemonTest):
    memory_bytes = 512 << 20
    flags = ("--learn_profiles=false",)  # what learning holds counts as used memory, and here all of it must come back

    def long_cache(self, repeat=6):
        """The sample's tokens several times over, other ids each time: many chunks, so that there is a middle."""
        tensors, metadata = safetensors_file.read(SAMPLE)
        layers = tensors["k"].shape[0]
        out = {}
        for name in ("k", "v"):
            t = tensors[name]
            size = len(t.data) // layers
            out[name] = safetensors_file.Tensor(t.dtype, [layers, t.shape[1] * repeat] + t.shape[2:],
                                                b"".join(t.data[l * size: (l + 1) * size] * repeat for l in range(layers)))
        ids = range(t.shape[1] * repeat)
        out["token_ids"] = safetensors_file.Tensor("I32", [len(ids)], b"".join(i.to_bytes(4, "little") for i in ids))
        safetensors_file.write(self.path("long.safetensors"), out, metadata)
        return self.path("long.safetensors")

    def test_killed_clients_leave_whole_blocks_or_nothing(self):
        cache = self.long_cache()
        delays = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]
        for i, delay in enumerate(delays):
            client = subprocess.Popen([binary("latticekv"), "put", cache, "--server", self.server, "--session", f"s{i}", "--preset", "exact",
                                       "--namespace", f"n{i}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL)
            time.sleep(delay)
            client.kill()
            client.wait()
        # Streams end, staging comes back: in the end what is used is what is stored.
        deadline = time.monotonic() + 60
        while True:
            stats = self.daemon.stats()
            idle = int(stats.get("open_streams", 0)) == 0 and int(stats["memory_used_bytes"]) == int(stats["stored_bytes"])
            if idle or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self.assertTrue(idle, stats)
        # Whatever is visible is whole: verify decodes all of it, and each session is a prefix of the cache, bit for bit.
        cli("verify", "--server", self.server)
        whole, _ = safetensors_file.read(cache)
        layers, _, heads, dim = whole["k"].shape
        partial = 0
        for i in range(len(delays)):
            done = cli("get", "--server", self.server, "--namespace", f"n{i}", "--session", f"s{i}", self.path(f"o{i}"), expect=None)
            if done.returncode != 0:
                continue
            partial += 1
            got, _ = safetensors_file.read(self.path(f"o{i}"))
            tokens, row = got["k"].shape[1], heads * dim * 2
            self.assertEqual(tokens % 256, 0)
            for name in ("k", "v"):
                for l in range(layers):
                    a = whole[name].data[l * whole["k"].shape[1] * row:][: tokens * row]
                    self.assertEqual(a, got[name].data[l * tokens * row: (l + 1) * tokens * row])
        print(f"{partial} of {len(delays)} killed puts had whole blocks stored")
        # And the same session can be put again.
        cli("put", cache, "--server", self.server, "--namespace", "n0", "--session", "s0", "--preset", "exact")
        cli("get", "--server", self.server, "--namespace", "n0", "--session", "s0", self.path("again"))
        self.assertEqual(compare_cache.main(["exact", cache, self.path("again")]), 0)


if __name__ == "__main__":
    unittest.main()
