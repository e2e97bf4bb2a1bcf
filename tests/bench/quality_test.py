"""The quality report's arithmetic: bytes of what is stored on a small made-up cache, the bootstrap of KL, interpolation at equal KL."""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support")]
import python_env  # noqa: E402

try:
    import numpy as np
    from safetensors.numpy import save_file
except ImportError:
    if os.environ.get("LATTICEKV_PYTHON_ENV") == "quality":
        raise
    try:
        home = os.path.join(os.environ["LATTICEKV_BUILD_DIR"], "python-quality")
        python = python_env.environment(home, [["numpy>=1.24", "safetensors>=0.4"]])
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        python_env.skip(f"numpy and safetensors could not be installed ({error})")
    os.execve(python, [python, *sys.argv], {**os.environ, "LATTICEKV_PYTHON_ENV": "quality"})

import kvlab_table as table  # noqa: E402
import quality_lab as lab  # noqa: E402
import quality_stats as stats  # noqa: E402

SEED = int(os.environ.get("LATTICEKV_SEED", "7"))
SHAPE = (2, 48, 2, 32)  # layers, tokens, heads, dim


def planes():
    rng = np.random.default_rng(SEED)
    return {n: rng.normal(0, 1 + i, SHAPE).astype(np.float16) for i, n in enumerate("kv")}


class Bytes(unittest.TestCase):
    def test_plain_formats_count_payload_and_scales(self):
        x = planes()["k"]
        for name, want in (("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("fp8_e4m3", 8 + 32 * SHAPE[0] / x.size)):
            size, copy = lab.PLAIN[name](x)
            self.assertAlmostEqual(stats.bits_per_element([size], [x.size]), want, places=9, msg=name)
            self.assertEqual((copy.shape, copy.dtype), (x.shape, x.dtype))

    def test_fp8_keeps_its_own_values_and_rounds_others_within_half_a_step(self):
        values = np.array([448, 240, 1.125, 0.0625, 2 ** -9, 0, -3.5, -448], np.float16).reshape(1, 1, 1, 8)
        np.testing.assert_array_equal(lab.fp8_e4m3(values)[1], values)
        x = planes()["v"]
        error = np.abs(lab.fp8_e4m3(x)[1].astype(np.float32) - x.astype(np.float32))
        scale = np.abs(x.astype(np.float32)).max((1, 2, 3), keepdims=True) / 448
        self.assertTrue((error <= np.maximum(np.abs(x.astype(np.float32)) / 16, scale * 2 ** -10) * 1.01 + 1e-4).all())

    def test_files_count_whole_and_pool_by_elements(self):
        self.assertEqual(stats.bits_per_element([100, 300], [100, 100]), 16)
        self.assertEqual(stats.bits_per_element([10, 90], [10, 30]), 20)
        with tempfile.TemporaryDirectory() as d:
            cache = os.path.join(d, "cache.safetensors")
            save_file({**planes(), "token_ids": np.arange(SHAPE[1], dtype=np.int32)}, cache, {"rope_base": "10000.0", "rope_layout": "neox"})
            cli = os.path.join(os.environ["LATTICEKV_BIN_DIR"], "latticekv")
            for flags, exact in ((["--preset", "exact"], True), (["--preset", "high"], False)):
                size, copy = table.store(d, cli, cache, *flags)
                listed = {e.name: e.stat().st_size for e in os.scandir(d)}
                self.assertEqual(size, listed["ours.lkv"])
                self.assertEqual(table.digest(cache) == table.digest(copy), exact)


class Bootstrap(unittest.TestCase):
    def test_a_constant_has_no_spread_and_texts_weigh_the_same(self):
        b = stats.Bootstrap([100, 300], resamples=200)
        figures = [np.full(100, 1.0), np.full(300, 3.0)]
        self.assertEqual(stats.interval(b.means(figures)), (2.0, 2.0))
        self.assertEqual(stats.pooled(figures), 2.0)
        with self.assertRaises(ValueError):
            b.means([figures[0]])

    def test_independent_tokens_give_the_textbook_interval(self):
        x = np.random.default_rng(SEED).normal(5, 2, 4096)
        low, high = stats.interval(stats.Bootstrap([4096]).means([x]))
        self.assertAlmostEqual((high - low) / (2 * 1.96 * x.std() / 64), 1, delta=0.25)
        self.assertTrue(low < x.mean() < high)

    def test_correlated_tokens_give_a_wider_one(self):
        x = np.repeat(np.random.default_rng(SEED).normal(0, 1, 512), 8)  # runs of eight alike: sqrt(8) times wider
        wide = np.std(stats.Bootstrap([4096]).means([x])) / np.std(stats.Bootstrap([4096], block=1).means([x]))
        self.assertTrue(2 < wide < 3.6, wide)

    def test_settings_are_resampled_together(self):
        b = stats.Bootstrap([512], resamples=500)
        x = np.random.default_rng(SEED).gamma(0.3, 1, 512)
        low, high = stats.interval(b.means([1.1 * x]) / b.means([x]))
        self.assertAlmostEqual(low, 1.1)
        self.assertAlmostEqual(high, 1.1)


class EqualKl(unittest.TestCase):
    POINTS = [(4, 0.001), (2, 0.016), (1, 0.256)]  # KL = 0.256 / bits^4

    def test_a_power_law_is_interpolated_exactly(self):
        for bits in (1.3, 2, 3.7):
            self.assertAlmostEqual(stats.bits_at_kl(self.POINTS, 0.256 / bits ** 4), bits)

    def test_outside_nothing_is_extrapolated(self):
        self.assertEqual(stats.bits_at_kl(self.POINTS, 5.0), 1)
        self.assertIsNone(stats.bits_at_kl(self.POINTS, 0.0009))

    def test_a_beaten_point_counts_for_nothing(self):
        self.assertAlmostEqual(stats.bits_at_kl(self.POINTS + [(3, 0.02)], 0.256 / 2.5 ** 4), 2.5)


if __name__ == "__main__":
    print(f"LATTICEKV_SEED={SEED}", flush=True)
    unittest.main()
