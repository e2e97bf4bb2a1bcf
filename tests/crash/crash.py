#!/usr/bin/env python3
"""kill -9 of the real daemon at random moments under concurrent durable puts; what was acknowledged must be there again.

LATTICEKV_CRASH_ROUNDS (default 10) says how often, LATTICEKV_CRASH_BLOCKS (default 0) how many blocks must have been acknowledged in
the end, LATTICEKV_SEED seeds the moments. Clients log an acknowledgement when it arrives, outside of the daemon. After each kill the daemon starts
again, once in four rounds it is killed again while it starts; then, before any client has registered anything, a session is read through the
command line, all blocks of this round and a sample of the earlier ones are compared byte for byte, and after the last round all of them.
"""
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from daemon import Daemon, binary, cli, cli_json  # noqa: E402

ROUNDS = int(os.environ.get("LATTICEKV_CRASH_ROUNDS", "10"))
MIN_BLOCKS = int(os.environ.get("LATTICEKV_CRASH_BLOCKS", "0"))
SEED = int(os.environ.get("LATTICEKV_SEED", "1"))
CLIENTS = 4
SAMPLE = 200
BLOCKS_OF_SECOND_ROUNDS = 40  # acknowledged, at least, before the kill
# Small, so that most blocks have to come from disk; the disk holds everything.
MEMORY_BYTES = 8 << 20
DISK_BYTES = 8 << 30


class Crash(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="lkv")
        self.addCleanup(self.directory.cleanup)
        self.random = random.Random(SEED)
        self.log_path = os.path.join(self.directory.name, "acknowledged")
        self.flags = [f"--disk_dir={os.path.join(self.directory.name, 'disk')}", f"--disk_bytes={DISK_BYTES}"]
        self.start_seconds, self.own_seconds = [], []
        self.daemon = None
        self.addCleanup(lambda: self.daemon and self.daemon.kill())

    def start(self):
        began = time.monotonic()
        self.daemon = Daemon(self.directory.name, MEMORY_BYTES, self.flags)
        self.start_seconds.append(time.monotonic() - began)
        # What the daemon says of itself, without the time until it runs at all.
        told = re.search(r"started in ([0-9.]+) s", self.daemon.output())
        self.own_seconds.append(float(told.group(1)))

    def lines(self):
        try:
            with open(self.log_path) as f:
                return f.read().splitlines()
        except FileNotFoundError:
            return []

    def put_and_kill(self, round_number):
        clients = [subprocess.Popen([binary("crash_client"), "put", self.daemon.socket, self.log_path, str(i), str(round_number)],
                                    stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for i in range(CLIENTS)]
        before = len(self.lines())
        time.sleep(self.random.uniform(0.05, 1.5))
        # Every second round however slow machine and disk are.
        while round_number % 2 and len(self.lines()) - before < BLOCKS_OF_SECOND_ROUNDS and any(c.poll() is None for c in clients):
            time.sleep(0.02)
        self.daemon.kill()
        for client in clients:
            _, err = client.communicate(timeout=60)
            # One that had not begun finds nobody; that is no fault.
            if client.returncode != 0 and "UNAVAILABLE" not in err:
                self.fail(f"round {round_number}: a client ended with {client.returncode}: {err}")

    def kill_while_starting(self):
        process = subprocess.Popen([binary("latticekvd"), f"--listen={self.daemon.socket}", f"--memory_bytes={MEMORY_BYTES}", *self.flags],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(self.random.uniform(0, 0.1))
        process.kill()
        process.wait()

    def check(self, lines):
        path = os.path.join(self.directory.name, "to_check")
        with open(path, "w") as f:
            f.write("\n".join(lines) + "\n")
        done = subprocess.run([binary("crash_client"), "check", self.daemon.socket, path], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1800)
        self.assertEqual(done.returncode, 0, done.stderr[:4000] + "\n" + self.daemon.output()[-4000:])
        self.assertEqual(json.loads(done.stdout)["checked"], len(lines))

    def check_a_session(self, lines):
        """A session whose blocks were all acknowledged comes back whole, by name alone."""
        sequences = {}
        for line in lines:
            worker, round_number, number, start, tokens, _ = line.split()
            sequences.setdefault((worker, round_number, number), []).append(int(tokens))
        whole = [s for s, tokens in sequences.items() if len(tokens) == 4]
        if not whole:
            return
        chosen = self.random.choice(whole)
        out = os.path.join(self.directory.name, "out.safetensors")
        name = "s-" + "-".join(chosen)
        cli("get", "--server", self.daemon.socket, "--namespace", "crash", "--session", name, out)
        session = cli_json("session", name, "--server", self.daemon.socket, "--namespace", "crash")
        self.assertEqual(int(session["tokens"]), sum(sequences[chosen]))
        os.remove(out)
        self.sessions_read += 1

    def test_nothing_acknowledged_is_lost(self):
        print(f"seed {SEED}, {ROUNDS} rounds", flush=True)
        self.sessions_read = 0
        self.start()
        seen = 0
        for round_number in range(ROUNDS):
            self.put_and_kill(round_number)
            lines = self.lines()
            new, old = lines[seen:], lines[:seen]
            seen = len(lines)
            if self.random.random() < 0.25:
                self.kill_while_starting()
            self.start()
            if new:
                self.check_a_session(new)
            to_check = new + self.random.sample(old, min(SAMPLE, len(old)))
            if to_check:
                self.check(to_check)
            print(f"round {round_number}: {len(new)} blocks acknowledged, {len(to_check)} compared, started in {self.start_seconds[-1]:.2f} s, "
                  f"{self.own_seconds[-1]:.2f} of them the daemon's", flush=True)
        lines = self.lines()
        self.assertGreaterEqual(len(lines), ROUNDS // 2 * BLOCKS_OF_SECOND_ROUNDS, "too few blocks were acknowledged: the test shows nothing")
        self.assertGreaterEqual(len(lines), MIN_BLOCKS)
        self.assertGreater(self.sessions_read, 0)
        self.check(lines)
        verified = cli_json("verify", "--server", self.daemon.socket)
        self.assertEqual(int(verified["blocks_corrupt"]), 0)
        stats = self.daemon.stats()
        self.assertEqual(self.daemon.stop(), 0)
        print(f"{ROUNDS} rounds: {len(lines)} blocks acknowledged and all of them right, {self.sessions_read} sessions read by name; "
              f"start after a kill took {max(self.start_seconds):.2f} s at most, by the daemon's own account {max(self.own_seconds):.2f} s; "
              f"{stats['disk_blocks']} blocks on disk")


if __name__ == "__main__":
    unittest.main()
