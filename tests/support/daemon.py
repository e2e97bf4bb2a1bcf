"""Starts latticekvd and latticekv as real processes for the end-to-end tests. Standard library only.

LATTICEKV_BIN_DIR names the folder of the binaries, LATTICEKV_SOURCE_DIR the repository.
"""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

BIN_DIR = os.environ.get("LATTICEKV_BIN_DIR", "")
SOURCE_DIR = os.environ.get("LATTICEKV_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
SAMPLE = os.path.join(SOURCE_DIR, "tests", "data", "smollm2_256.safetensors")
PROFILE = os.path.join(SOURCE_DIR, "tests", "data", "smollm2_profile.safetensors")
START_TIMEOUT_S = 60
CALL_TIMEOUT_S = 240


def binary(name):
    path = os.path.join(BIN_DIR, name)
    if not os.path.exists(path):
        raise RuntimeError(f"{path} is not there; build it and set LATTICEKV_BIN_DIR")
    return path


def cli(*args, expect=0):
    """Runs `latticekv ARGS`; returns the finished process. expect: the exit code it must have, None for any."""
    done = subprocess.run([binary("latticekv"), *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=CALL_TIMEOUT_S)
    if expect is not None and done.returncode != expect:
        raise AssertionError(f"latticekv {' '.join(map(str, args))}: exit {done.returncode}, not {expect}\n{done.stdout}{done.stderr}")
    return done


def cli_json(*args):
    return json.loads(cli(*args, "--json").stdout)


class Daemon:
    """A running latticekvd on a unix socket and on a free TCP port of 127.0.0.1."""

    def __init__(self, directory, memory_bytes=256 << 20, flags=()):
        self.socket = "unix:" + os.path.join(directory, "d.sock")
        self.log_path = os.path.join(directory, "latticekvd.log")
        port_file = os.path.join(directory, "port")
        if os.path.exists(port_file):
            os.remove(port_file)  # of a daemon before this one
        self.log = open(self.log_path, "w")
        self.process = subprocess.Popen(
            [binary("latticekvd"), f"--listen={self.socket},127.0.0.1:0", f"--memory_bytes={memory_bytes}",
             f"--port_file={port_file}", *flags], stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._read_port(port_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError("latticekvd did not start:\n" + self.output())
            time.sleep(0.02)
        self.tcp = f"127.0.0.1:{self._read_port(port_file)}"

    @staticmethod
    def _read_port(path):
        try:
            with open(path) as f:
                lines = f.read().splitlines()
            return next((int(a.rsplit(":", 1)[1]) for a in lines if not a.startswith("unix:")), None)
        except (OSError, ValueError):
            return None

    def output(self):
        with open(self.log_path) as f:
            return f.read()

    def stats(self):
        return cli_json("stats", "--server", self.socket)

    def resident_bytes(self):
        """The highest so far."""
        return self._status_bytes("VmHWM")

    def heap_bytes(self):
        """Resident now, of no file and no shared memory."""
        return self._status_bytes("RssAnon")

    def _status_bytes(self, name):
        with open(f"/proc/{self.process.pid}/status") as f:
            for line in f:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} in /proc")

    def resident_now_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.log.close()
        return code

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


class DaemonTest(unittest.TestCase):
    """A test case with a temporary directory and a daemon that has to end cleanly."""

    memory_bytes = 256 << 20
    flags = ()

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="lkv")
        self.addCleanup(shutil.rmtree, self.directory, True)
        self.daemon = Daemon(self.directory, self.memory_bytes, self.flags)
        self.addCleanup(self.daemon.kill)
        self.server = self.daemon.socket

    def tearDown(self):
        if self.daemon.process.poll() is None:
            self.assertEqual(self.daemon.stop(), 0, "the daemon's exit code")
        else:
            self.fail(f"the daemon died with {self.daemon.process.returncode}:\n{self.daemon.output()}")

    def path(self, name):
        return os.path.join(self.directory, name)
