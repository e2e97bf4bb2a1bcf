#!/usr/bin/env python3
"""Writes core/codec/entropy_tables.inc, the fixed tables of the frame format.

    python3 core/codec/make_tables.py > core/codec/entropy_tables.inc      (needs scipy)

Each table gives the frequency, out of 1024, of the integers it can code under a Student t distribution with 8
degrees of freedom and the table's spread; see docs/format/frame.md, "Entropy tables". The output is committed and
normative: this program only says where the numbers come from.
"""
import math

import numpy as np
from scipy.stats import t as student

TOTAL, TABLES, DF = 1024, 12, 8
E8_MEAN_SQUARE = 0.0716821


def limit(sigma):
    return max(2, math.ceil(6 * sigma))


def masses(sigma, first, last, offset):
    k = np.arange(first, last + 1)
    edge = np.concatenate([[-np.inf], k[:-1] + 0.5 + offset, [np.inf]])
    return k, np.diff(student.cdf(edge / (sigma * math.sqrt((DF - 2) / DF)), DF))


def apportion(k, p):
    """Integers >= 1 with sum TOTAL near p * TOTAL; what is over goes where it costs least."""
    p = p / p.sum()
    f = np.maximum(1, np.floor(p * TOTAL)).astype(int)
    while f.sum() != TOTAL:
        d = 1 if f.sum() < TOTAL else -1
        # Change in cost of the whole table when entry i moves by d.
        gain = np.where(f + d >= 1, p * np.log2(np.maximum(f + d, 1) / f), -np.inf)
        f[int(np.argmax(gain))] += d
    return f


def rows():
    for i in range(TABLES):
        sigma = 2.0 ** ((i - 7) / 2)
        n = limit(sigma)
        for half in (0, 1):
            first, last = (-n, n) if not half else (-n, n - 1)
            k, p = masses(sigma, first, last, 0.5 * half)
            for subset in ("all", "even", "odd"):
                keep = np.ones(len(k), bool) if subset == "all" else (k % 2 == (subset == "odd"))
                yield i, half, subset, k[keep], apportion(k[keep], p[keep])


def main():
    print("// Made by core/codec/make_tables.py; normative, do not edit.")
    print("// Heads in order of sigma index, coset (integer, half), subset (all, even, odd): {first symbol, stride, count,")
    print("// index of the first frequency}.")
    flat, heads = [], []
    for i, half, subset, k, f in rows():
        heads.append((int(k[0]), 1 if subset == "all" else 2, len(k), len(flat)))
        flat += list(f)
    print(f"inline constexpr int kEntropyTables = {TABLES};")
    print("inline constexpr EntropyTableHead kEntropyTableHeads[] = {")
    for h in heads:
        print("    {%d, %d, %d, %d}," % h)
    print("};")
    print("inline constexpr uint16_t kEntropyFrequencies[] = {")
    for at in range(0, len(flat), 20):
        print("    " + " ".join(f"{v}," for v in flat[at: at + 20]))
    print("};")
    print("// 16 log2 sqrt(2^(2 s / 16) + mean square error of E8) for s = -64 .. 48, rounded.")
    noise = [round(8 * math.log2(2 ** (2 * s / 16) + E8_MEAN_SQUARE)) for s in range(-64, 49)]
    print("inline constexpr int8_t kSigmaWithNoise16[] = {")
    for at in range(0, len(noise), 20):
        print("    " + " ".join(f"{v}," for v in noise[at: at + 20]))
    print("};")
    print("// round(256 * log2(1024 / f)) for f = 0 .. 1024 (0: unused): the encoder's cost of a symbol.")
    print("inline constexpr uint16_t kCost256[] = {")
    cost = [0] + [round(256 * math.log2(TOTAL / f)) for f in range(1, TOTAL + 1)]
    for at in range(0, len(cost), 20):
        print("    " + " ".join(f"{v}," for v in cost[at: at + 20]))
    print("};")
    print("// round(2^32 * 2^((j + 0.5) / 16)): thresholds of the integer logarithm.")
    print("inline constexpr uint64_t kLogThresholds[] = {")
    print("    " + ", ".join(f"{round(2 ** 32 * 2 ** ((j + 0.5) / 16))}u" for j in range(16)) + "};")
    print("// round(2^31 * 2^(-j / 16)): factors that take a profile's mean to steps.")
    print("inline constexpr uint32_t kDownFactors[] = {")
    print("    " + ", ".join(f"{round(2 ** 31 * 2 ** (-j / 16))}u" for j in range(16)) + "};")


if __name__ == "__main__":
    main()
