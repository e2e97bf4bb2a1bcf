#!/usr/bin/env python3
"""The quality report: what each setting stores and how well a model reads the copy, beside other codecs. See tests/bench/quality --help."""
import fcntl
import os
import resource
import sys
import time

import kvlab_table as table
import quality_lab
import quality_report
from quality_lab import Setting
from quality_peers import Peers
from quality_start import NEEDLES, TEXTS, arguments

MODEL_TEXTS = ("prose", "filler")  # where codec_model.py's bits and KL are computed anew
QUICK_PRESETS = ("high", "balanced", "small")
EVICTED = (10, 34, 59)  # percent
PEER_SETTINGS = (Setting("nexusquant-kv", "K3V2", flags=(3, 2)), Setting("lmcache", "cachegen"), Setting("kakeyalattice", "E8 Q=10", flags=("e8", 10)))
MORE_PEER_SETTINGS = (
    *(Setting("kakeyalattice", f"{lattice.upper()} Q={q}", flags=(lattice, q)) for lattice, q in (("e8", 5), ("d4", 10), ("e8", 38))),
    *(Setting("nexusquant-kv", f"K{k}V{v}", flags=(k, v)) for k, v in ((3, 3), (2, 2))))


def keep(percent):
    return ("--keep", f"{1 - percent / 100:.2f}")


def seed(k, v, *more):
    return Setting("ours", "seed", flags=("--key-bits", k, "--value-bits", v, *more))


def settings(presets, quick):
    """All settings, the most wanted first, each with the texts it is run on."""
    texts, everywhere = tuple(TEXTS), (*TEXTS, NEEDLES)
    wave = []
    add = lambda where, *some: wave.extend((s, where) for s in some)
    add(everywhere, *(Setting("ours", p, "energy") for p in presets), Setting("ours", "exact"))
    add(everywhere, *(Setting("plain", n) for n in ("q4_0", "q8_0", "fp8_e4m3")), *PEER_SETTINGS)
    add(MODEL_TEXTS, *(Setting("model", p, "energy") for p in presets))
    add(everywhere, *(Setting("ours", p, "energy", mass=True) for p in presets), *(seed(k, v) for k, v in ((3, 3), (3, 2), (2, 2))))
    if quick:
        return wave
    add(everywhere, *MORE_PEER_SETTINGS)
    add(texts, *(Setting("ours", p) for p in presets))
    add(everywhere, *(seed(3, 2, *keep(e)) for e in EVICTED), *(Setting("ours", "balanced", "energy", flags=keep(e)) for e in EVICTED))
    add(MODEL_TEXTS, *(Setting("model", p, "energy", mass=True) for p in presets), *(Setting("model", p, "statistics") for p in presets))
    add(texts, *(Setting("ours", p, "statistics") for p in presets))
    add(MODEL_TEXTS, *(Setting("model", p) for p in presets))
    add(texts, *(Setting("ours", p, mass=True) for p in presets), seed(3, 3, "--seed-scales", "group"))
    return wave


def run(lab, a, wave):
    """The cells that could be had, and the reasons of the others: {(setting, text): cell}, {(setting, text): reason}."""
    cells, left_out = {}, {}
    wanted = [(s, [t for t in texts if t in a.texts]) for s, texts in wave]
    total = sum(len(t) for _, t in wanted)
    until = time.monotonic() + 60 * a.minutes if a.minutes else None
    # text by text inside a group of settings of one kind, since the exact pass is kept for one text at a time
    groups = []
    for s, texts in wanted:
        if not groups or groups[-1][0] != s.kind:
            groups.append((s.kind, []))
        groups[-1][1].append((s, texts))
    for _, group in groups:
        for text in a.texts:
            for s, texts in group:
                if text not in texts:
                    continue
                if until and time.monotonic() > until and not lab.finished(s, text):
                    left_out[s, text] = "--minutes was over"
                    continue
                try:
                    cells[s, text] = lab.cell(s, text)
                except RuntimeError as reason:
                    left_out[s, text] = str(reason)
                    continue
                c = cells[s, text]
                figure = f"facts {c['exact_facts'].sum()}" if text == NEEDLES else f"KL {c['kl'].mean():.5f}"
                print(f"[{len(cells)}/{total}] {text} {s.label()}: {8 * c['bytes'] / c['elements']:.3f} bits, {figure}", flush=True)
    return cells, left_out


def main():
    a = arguments()
    lock = open(os.path.join(a.work, "lock"), "w")  # copies and results of two runs in one directory would get mixed up
    fcntl.flock(lock, fcntl.LOCK_EX)
    profile = os.path.join(a.kvlab, "data", "profile_smollm2.safetensors")
    lab = quality_lab.Lab(a.kvlab, a.work, a.latticekv, profile, Peers(a.work, not a.no_peers))
    cells, left_out = run(lab, a, settings(QUICK_PRESETS if a.quick else list(table.PRESETS), a.quick))
    spent = sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    print(f"{spent / 60:.1f} CPU minutes")
    text, missed = quality_report.write(lab, a, cells, left_out)
    os.makedirs(os.path.dirname(os.path.abspath(a.out)), exist_ok=True)
    with open(a.out, "w") as f:
        f.write(text)
    for m in missed:
        print("missed:", m)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
