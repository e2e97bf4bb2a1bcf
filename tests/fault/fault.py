#!/usr/bin/env python3
"""Disks that fail under the real daemon: full, read-only, gone, damaged. What docs/operations.md says of each is what must happen.

A full and a read-only disk need a tmpfs of their own, so root that may mount; without that those tests say so and are skipped.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import safetensors_file  # noqa: E402
from daemon import SAMPLE, Daemon, cli  # noqa: E402

WAIT_S = 60


class Fault(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="lkv")
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.disk = os.path.join(self.directory, "disk")
        self.daemon = None

    def start(self, disk_bytes=1 << 30, memory_bytes=64 << 20):
        self.daemon = Daemon(self.directory, memory_bytes, [f"--disk_dir={self.disk}", f"--disk_bytes={disk_bytes}"])
        self.addCleanup(self.daemon.kill)

    def restart(self, **kwargs):
        self.assertEqual(self.daemon.stop(), 0)
        self.start(**kwargs)

    def mount(self, size):
        os.makedirs(self.disk, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.disk], stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True) if os.geteuid() == 0 and shutil.which("mount") else None
        if done is None or done.returncode != 0:
            self.skipTest("a tmpfs cannot be mounted here: " + (done.stderr.strip() if done else "not root"))
        self.addCleanup(subprocess.run, ["umount", "-l", self.disk], check=False)

    def remount(self, how):
        subprocess.run(["mount", "-o", f"remount,{how}", self.disk], check=True)

    def put(self, session, durable=True, expect=0):
        return cli("put", SAMPLE, "--server", self.daemon.socket, "--session", session, "--preset", "exact", "--namespace", session,
                   *(["--durable"] if durable else []), expect=expect)

    def assert_served(self, session):
        out = os.path.join(self.directory, "out.safetensors")
        cli("get", "--server", self.daemon.socket, "--namespace", session, "--session", session, out)
        got, want = safetensors_file.read(out)[0], safetensors_file.read(SAMPLE)[0]
        for name in ("k", "v"):
            self.assertEqual(got[name].data, want[name].data)
        os.remove(out)

    def wait_for_state(self, state):
        deadline = time.monotonic() + WAIT_S
        while True:
            stats = self.daemon.stats()
            if stats["disk_state"] == state:
                return stats
            self.assertLess(time.monotonic(), deadline, f"disk_state stays {stats['disk_state']}: {stats['disk_reason']}")
            time.sleep(0.05)

    def test_full_disk(self):
        """Durable puts are refused with a reason, others and reads go on; once there is room again so are durable ones."""
        self.mount("100m")
        self.start(disk_bytes=128 << 20)
        ballast = os.path.join(self.disk, "ballast")
        self.put("first")
        with open(ballast, "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(1 << 16))
            except OSError:
                pass
        refused = None
        for n in range(20):
            done = self.put(f"full-{n}", expect=None)
            if done.returncode != 0:
                refused = done
                break
        self.assertIsNotNone(refused, "a full disk took 20 caches")
        self.assertEqual(refused.returncode, 1)
        self.assertIn("not durable", refused.stderr)
        self.assertNotEqual(self.wait_for_state("memory only")["disk_reason"], "")
        self.assert_served("first")
        self.put("memory", durable=False)
        self.assert_served("memory")
        os.remove(ballast)
        self.wait_for_state("ok")
        self.put("after")
        self.assert_served("after")
        self.restart()
        self.assert_served("first")
        self.assert_served("after")

    def test_read_only_disk(self):
        self.mount("64m")
        self.start()
        self.put("first")
        self.assertEqual(self.daemon.stop(), 0)
        self.remount("ro")
        # A daemon starts on a read-only disk, serves what is there and keeps the rest in memory.
        self.start()
        self.wait_for_state("memory only")
        self.assert_served("first")
        refused = self.put("second", expect=1)
        self.assertIn("not durable", refused.stderr)
        self.assert_served("second")
        self.remount("rw")
        self.wait_for_state("ok")
        self.put("third")
        self.restart()
        for session in ("first", "third"):
            self.assert_served(session)

    def test_directory_deleted(self):
        self.start()
        self.put("first")
        # By another name first: a daemon that notices the first file's end must find no directory to begin anew in.
        os.rename(self.disk, self.disk + ".gone")
        shutil.rmtree(self.disk + ".gone")
        refused = self.put("second", expect=1)
        self.assertIn("not durable", refused.stderr)
        stats = self.wait_for_state("memory only")
        self.assertNotEqual(stats["disk_reason"], "")
        self.assert_served("second")
        os.mkdir(self.disk)
        self.wait_for_state("ok")
        self.put("third")
        self.restart()
        self.assert_served("third")

    def test_damaged_segments(self):
        """Damaged records cost themselves only: found, counted, logged, misses with a reason; never served."""
        self.start()
        self.put("hurt")
        for n in range(3):
            self.put(f"sound-{n}")
        self.assertEqual(self.daemon.stop(), 0)
        # The first record's frame: the caches lie one behind the other in the order of their puts.
        path = min(os.path.join(self.disk, n) for n in os.listdir(self.disk) if n.startswith("segment"))
        with open(path, "r+b") as f:
            f.seek(1 << 20)
            byte = f.read(1)
            f.seek(1 << 20)
            f.write(bytes([byte[0] ^ 0x20]))
        self.start()
        verified = cli("verify", "--server", self.daemon.socket, expect=1)
        self.assertIn("1", verified.stdout + verified.stderr)
        self.assertEqual(int(self.daemon.stats()["damaged_records"]), 1)
        out = os.path.join(self.directory, "out.safetensors")
        got = cli("get", "--server", self.daemon.socket, "--namespace", "hurt", "--session", "hurt", out, expect=1)
        self.assertNotEqual(got.stderr, "")
        for n in range(3):
            self.assert_served(f"sound-{n}")
        deadline = time.monotonic() + WAIT_S
        while "damaged records" not in self.daemon.output():
            self.assertLess(time.monotonic(), deadline, "the log says nothing:\n" + self.daemon.output())
            time.sleep(0.1)
        self.put("hurt")
        self.assert_served("hurt")

    def test_disk_smaller_than_its_cap(self):
        """Segments leave the journal its room, and old blocks go: a cap that is too high is a smaller one."""
        self.mount("64m")
        self.start(disk_bytes=1 << 30, memory_bytes=32 << 20)
        for n in range(14):  # about 80 MB
            self.put(f"c{n}")
            self.assert_served(f"c{n}")
        stats = self.daemon.stats()
        self.assertEqual(stats["disk_state"], "ok", stats["disk_reason"])
        self.restart(disk_bytes=1 << 30, memory_bytes=32 << 20)
        self.assert_served("c13")
        self.put("again")
        self.assert_served("again")

    def test_second_daemon_is_refused(self):
        self.start()
        done = subprocess.run([os.path.join(os.environ["LATTICEKV_BIN_DIR"], "latticekvd"), f"--listen=unix:{self.directory}/other",
                               f"--disk_dir={self.disk}", "--disk_bytes=100000000"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertIn("another process holds", done.stderr)


if __name__ == "__main__":
    unittest.main()
