#!/usr/bin/env python3
"""One process puts a real cache, others get it back and look at it."""
import json
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import compare_cache  # noqa: E402
import safetensors_file  # noqa: E402
from daemon import PROFILE, SAMPLE, DaemonTest, binary, cli, cli_json  # noqa: E402


class ServiceRoundTrip(DaemonTest):
    def put(self, session, *flags, server=None):
        return cli("put", SAMPLE, "--server", server or self.server, "--session", session, *flags)

    def get(self, session, name, *flags, server=None):
        cli("get", "--server", server or self.server, "--session", session, self.path(name), *flags)
        return self.path(name)

    def test_exact_comes_back_bit_for_bit_over_both_transports(self):
        self.put("a", "--preset", "exact")
        for server in (self.daemon.socket, self.daemon.tcp):
            self.assertEqual(compare_cache.main(["exact", SAMPLE, self.get("a", "out", server=server)]), 0)

    def test_lossy_is_what_a_local_encode_gives(self):
        self.put("a", "--preset", "balanced", "--profile", PROFILE)
        served = self.get("a", "served")
        cli("compress", SAMPLE, self.path("a.lkv"), "--preset", "balanced", "--profile", PROFILE, "--stats", "auto")
        cli("decompress", self.path("a.lkv"), self.path("local"), "--profile", PROFILE)
        self.assertEqual(compare_cache.main(["exact", self.path("local"), served]), 0)

    def test_mass_and_eviction_are_what_a_local_encode_gives(self):
        flags = ("--preset", "small", "--importance", "--keep", "0.6", "--chunk", "64")
        put = json.loads(self.put("e", *flags, "--json").stdout)
        self.assertEqual(put["evicted_tokens"], 102)  # of 256
        done = cli("get", "--server", self.server, "--session", "e", self.path("no"), expect=1)
        self.assertIn("evicted", done.stderr)
        self.assertFalse(os.path.exists(self.path("no")))
        served = self.get("e", "served", "--accept-evicted")
        cli("compress", SAMPLE, self.path("e.lkv"), *flags)
        cli("decompress", self.path("e.lkv"), self.path("local"))
        self.assertEqual(compare_cache.main(["exact", self.path("local"), served]), 0)
        keep = [safetensors_file.read(path)[0]["keep"].data for path in (self.path("local"), served)]
        self.assertEqual(keep[0], keep[1])
        self.assertEqual(keep[0].count(0), 102)
        blocks = cli_json("session", "e", "--server", self.server)["block_list"]
        self.assertEqual(sum(block["evicted_tokens"] for block in blocks), 102)
        explained = cli_json("explain", blocks[0]["key"], "--server", self.server)
        self.assertEqual(explained["reason"], "EVICTED_TOKENS")
        # The whole prompt is stored beside it, under names of its own.
        self.put("whole", "--preset", "small", "--chunk", "64")
        self.get("whole", "whole")

    def test_seed_bits_go_over_the_wire(self):
        flags = ("--preset", "seed", "--key-bits", "5", "--value-bits", "4", "--seed-scales", "group", "--seed-delta", "off")
        self.put("s", *flags)
        served = self.get("s", "served")
        cli("compress", SAMPLE, self.path("s.lkv"), *flags)
        cli("decompress", self.path("s.lkv"), self.path("local"))
        self.assertEqual(compare_cache.main(["exact", self.path("local"), served]), 0)
        cli("put", SAMPLE, "--server", self.server, "--session", "t", "--preset", "high", "--key-bits", "3", expect=2)

    def test_second_put_stores_nothing_new_and_better_replaces(self):
        self.put("a", "--preset", "high")
        first = self.daemon.stats()
        self.put("b", "--preset", "small")  # what is there is better: shared
        second = self.daemon.stats()
        self.assertEqual(int(second["blocks"]), int(first["blocks"]))
        self.assertEqual(int(second["stored_bytes"]), int(first["stored_bytes"]))
        self.put("c", "--preset", "exact")
        self.assertGreater(int(self.daemon.stats()["stored_bytes"]), int(first["stored_bytes"]))
        self.assertEqual(compare_cache.main(["exact", SAMPLE, self.get("a", "out")]), 0)

    def test_what_the_operator_sees(self):
        self.put("demo", "--preset", "high", "--profile", PROFILE)
        sessions = json.dumps(cli_json("sessions", "--server", self.server))
        self.assertIn("demo", sessions)
        session = cli_json("session", "demo", "--server", self.server)
        text = json.dumps(session)
        self.assertIn("SmolLM2", text)
        self.assertIn("5898240", text)
        blocks = json.dumps(cli_json("blocks", "--server", self.server))
        self.assertIn("high", blocks.lower())
        for command in ("sessions", "blocks", "stats", "verify"):
            self.assertTrue(cli(command, "--server", self.server).stdout.strip())
        self.assertTrue(cli("session", "demo", "--server", self.server).stdout.strip())

    def test_namespaces_and_unknown_sessions(self):
        self.put("a", "--namespace", "one", "--preset", "tiny")
        for flags in (("--namespace", "two"), ()):
            done = cli("get", "--server", self.server, "--session", "a", self.path("no"), *flags, expect=1)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
            self.assertFalse(os.path.exists(self.path("no")))
        done = cli("put", SAMPLE, "--server", self.server, "--session", "d", "--durable", expect=1)
        self.assertIn("disk", done.stderr)

    def test_a_second_daemon_on_the_same_socket_is_refused(self):
        second = subprocess.run([binary("latticekvd"), f"--listen={self.server}"], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(second.returncode, 0)
        self.put("a", "--preset", "tiny")  # the first one is not disturbed

    def test_other_hosts_need_insecure_said_aloud(self):
        done = subprocess.run([binary("latticekvd"), "--listen=0.0.0.0:0"], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--insecure", done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
