"""Statistics of the quality report: bits from bytes, pooled KL with a block bootstrap, interpolation at equal KL. numpy alone."""
import numpy as np

BLOCK = 32  # tokens that are drawn together: neighbours' KL is correlated
RESAMPLES = 2000
LEVEL = 0.95


def bits_per_element(stored_bytes, elements):
    """Bits per element of files together: total bits over total elements."""
    return 8 * sum(stored_bytes) / sum(elements)


class Bootstrap:
    """Resamples tokens in blocks of consecutive ones, inside each text apart; texts stay what they are.

    lengths: scored tokens of each text. All settings are resampled with the same draws, so that differences and ratios of
    settings are paired.
    """

    def __init__(self, lengths, resamples=RESAMPLES, block=BLOCK, seed=1):
        rng = np.random.default_rng(seed)
        self.draws = []
        for n in lengths:
            starts = rng.integers(0, n, (resamples, -(-n // block)))
            self.draws.append(((starts[:, :, None] + np.arange(block)) % n).reshape(resamples, -1)[:, :n])

    def means(self, per_text):
        """per_text: one array of per-token figures per text. The mean over texts of each text's mean, per resample."""
        if len(per_text) != len(self.draws) or any(len(x) != d.shape[1] for x, d in zip(per_text, self.draws)):
            raise ValueError("one array per text, each with as many tokens as the text has scored")
        return np.mean([np.asarray(x, np.float64)[d].mean(1) for x, d in zip(per_text, self.draws)], axis=0)


def pooled(per_text):
    """The mean over texts of each text's mean."""
    return float(np.mean([np.mean(x) for x in per_text]))


def interval(samples, level=LEVEL):
    """Percentile interval."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bits_at_kl(points, kl):
    """Bits at which a codec with `points` [(bits, KL)] reaches `kl`: linear in log bits and log KL between neighbours.

    None where kl is finer than the finest point; the coarsest point's bits, which are then an upper bound, where kl is coarser
    than it. A point that another one beats in bits and KL counts for nothing.
    """
    front = []
    for bits, q in sorted(points):
        if not front or q < front[-1][1]:
            front.append((bits, q))
    if kl >= front[0][1]:
        return front[0][0]
    for (b0, k0), (b1, k1) in zip(front, front[1:]):
        if kl >= k1:
            at = (np.log(kl) - np.log(k0)) / (np.log(k1) - np.log(k0))
            return float(np.exp(np.log(b0) + at * (np.log(b1) - np.log(b0))))
    return None
