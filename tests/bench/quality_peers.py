"""Other codecs, each in a virtual environment of its own with pinned packages, run through quality_peer_run.py.

The packages want PyTorch; PyPI's wheel for x86-64 Linux brings gigabytes of CUDA, so the environments see the distribution's
python3-torch instead. Without it or without a network a peer is left out with the reason.
"""
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import python_env  # noqa: E402

BASE = "/usr/bin/python3"  # the distribution's, which python3-torch belongs to
COMMON = ["numpy==1.26.4", "safetensors==0.8.0"]
# name: version, packages installed with their dependencies, packages installed without (what they list needs CUDA or a newer torch)
PEERS = {
    "kakeyalattice": ("1.5.0", COMMON, ["kakeyalattice==1.5.0"]),
    "nexusquant-kv": ("0.6.3", [*COMMON, "zstandard==0.25.0"], ["nexusquant-kv==0.6.3"]),
    "lmcache": ("0.4.5", [*COMMON, "numba==0.68.1", "transformers==4.38.2", "cachetools==8.0.2", "nvtx==0.2.17"], ["lmcache==0.4.5"]),
}

NOT_HERE = {"lmcache TurboQuant": "does not run here, as both directions (release 0.5.6) are Triton kernels for CUDA with no form for a CPU"}


class Peers:
    def __init__(self, work, enabled=True):
        self.work, self.enabled = work, enabled
        self.ready, self.missing = {}, {}

    def version(self, name):
        return f"{name} {PEERS[name][0]}"

    def python(self, name):
        """The peer's interpreter; RuntimeError with the reason when it cannot be had."""
        if not self.enabled:
            self.missing[name] = "left out by --no-peers"
        if name in self.missing:
            raise RuntimeError(self.missing[name])
        if name not in self.ready:
            try:
                if subprocess.run([BASE, "-c", "import torch"], stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
                    raise RuntimeError(f"{BASE} has no torch; install python3-torch")
                _, packages, bare = PEERS[name]
                self.ready[name] = python_env.environment(os.path.join(self.work, f"python-{name}"), [packages, ["--no-deps", *bare]], BASE)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                self.missing[name] = f"could not be installed ({error})"
                raise RuntimeError(self.missing[name]) from error
        return self.ready[name]

    def store(self, setting, cache, out, count):
        """Runs the peer on a cache: its copy goes to `out`; returns {"bytes": what it stores, 0 unless `count`, "note": how that was counted}."""
        command = [self.python(setting.kind), os.path.join(HERE, "quality_peer_run.py"), setting.kind, cache, out, "1" if count else "0", *map(str, setting.flags)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.missing[setting.kind] = "does not run here: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(self.missing[setting.kind])
        return json.loads(done.stdout.splitlines()[-1])
