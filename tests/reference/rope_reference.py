#!/usr/bin/env python3
"""Rotary angles of every scaling against transformers' own functions.

transformers comes from PyPI into a venv of the build folder; its rotary functions need torch, which is taken from the system
(Debian and Ubuntu: python3-torch). What is missing is said and the test skipped."""
import json
import math
import os
import subprocess
import sys
import unittest

TRANSFORMERS = "transformers==4.46.3"  # the newest that the packaged torch 1.13 serves
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that distribution packages belong to
ANGLES = os.path.join(os.environ["LATTICEKV_BIN_DIR"], "rope_angles")
VENV = os.environ["LATTICEKV_VENV"]

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
CASES = [  # head_dim, base, positions of the unscaled model, partial rotary factor, sequence, scaling
    (64, 10000.0, 2048, 1.0, 300, None),
    (128, 500000.0, 8192, 0.5, 5000, None),
    (64, 10000.0, 2048, 1.0, 6000, LINEAR),
    (128, 10000.0, 4096, 1.0, 3000, {"rope_type": "dynamic", "factor": 2.0}),
    (128, 10000.0, 4096, 1.0, 16384, {"rope_type": "dynamic", "factor": 2.0}),
    (128, 500000.0, 8192, 1.0, 100000, LLAMA3),
    (64, 500000.0, 8192, 1.0, 9000, {**LLAMA3, "factor": 32.0}),
    (128, 1000000.0, 32768, 1.0, 120000, {"rope_type": "yarn", "factor": 4.0}),
    (64, 10000.0, 4096, 1.0, 90000, {"rope_type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 1}),
    (128, 10000.0, 4096, 0.5, 8000, {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}),
]


def reenter():
    """Makes the venv if need be and runs this file in it; a message instead when that fails."""
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(SYSTEM_PYTHON):
        return f"there is no {SYSTEM_PYTHON}"
    have_torch = subprocess.run([SYSTEM_PYTHON, "-c", "import torch"], capture_output=True).returncode == 0
    if not have_torch:
        return "torch is not installed for the system's Python (python3-torch)"
    if subprocess.run([python, "-c", "import transformers"], capture_output=True).returncode if os.path.exists(python) else 1:
        for command in ([SYSTEM_PYTHON, "-m", "venv", "--system-site-packages", VENV],
                        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", TRANSFORMERS, "numpy<2"]):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                return f"'{' '.join(command)}' failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    os.execv(python, [python, os.path.abspath(__file__), "--inside", *sys.argv[1:]])


class Config:
    """What transformers' functions read of a model's configuration."""

    def __init__(self, head_dim, base, positions, partial, scaling):
        self.head_dim, self.hidden_size, self.num_attention_heads = head_dim, head_dim, 1
        self.rope_theta, self.max_position_embeddings, self.partial_rotary_factor = base, positions, partial
        self.rope_scaling = scaling


def ours(head_dim, tokens, **metadata):
    words = [f"{k}={v}" for k, v in metadata.items()]
    done = subprocess.run([ANGLES, str(head_dim), str(tokens), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    pick = lambda name: [tuple(map(float, l[1:])) for l in lines if l[0] == name]
    return pick("attention")[0][0], [a[0] for a in pick("angle")], pick("sincos")


class RopeReference(unittest.TestCase):
    def test_every_scaling_agrees_with_transformers(self):
        if REASON:
            self.skipTest(REASON)
        import torch
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        torch.set_default_dtype(torch.float64)
        for head_dim, base, positions, partial, tokens, scaling in CASES:
            with self.subTest(scaling=scaling, head_dim=head_dim):
                kind = scaling["rope_type"] if scaling else "default"
                config = Config(head_dim, base, positions, partial, scaling)
                frequencies, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=tokens)
                metadata = {"rope_base": base, "rope_layout": "neox", "rope_dims": int(head_dim * partial)}
                if scaling:
                    metadata["rope_scaling"] = json.dumps({"original_max_position_embeddings": positions, **scaling})
                factor, angles, sincos = ours(head_dim, tokens, **metadata)
                self.assertAlmostEqual(factor, attention, delta=1e-12)
                self.assertEqual(len(angles), len(frequencies))
                for pair, (a, f) in enumerate(zip(angles, frequencies.tolist())):
                    # transformers computes parts of it in binary32.
                    self.assertAlmostEqual(a, f, delta=3e-6 * f, msg=f"pair {pair}")
                    angle = (tokens - 1) * a
                    self.assertAlmostEqual(sincos[pair][0], math.cos(angle), delta=1e-6)
                    self.assertAlmostEqual(sincos[pair][1], math.sin(angle), delta=1e-6)


if __name__ == "__main__":
    REASON = None
    if "--inside" not in sys.argv:
        REASON = reenter()
    unittest.main(argv=[a for a in sys.argv if a != "--inside"])
