"""Writes docs/quality.md from finished cells, and says which bounds were missed."""
import platform

import numpy as np

import kvlab_table as table
import quality_stats as stats
from quality_lab import Setting, git_commit
from quality_peers import NOT_HERE, PEERS
from quality_start import NEEDLES, PACKAGES, TEXTS

SMALL_MASS_KL, SMALL_MASS_BITS = 0.0072, 1.83  # what `small` with attention mass has to reach on kvlab's prose
PROFILE_NAMES = {"energy": "query energy", "none": "none", "statistics": "query energy and statistics"}


class Cells:
    """Finished cells with their pooled figures."""

    def __init__(self, cells, texts):
        self.cells = cells
        self.texts = [t for t in texts if t != NEEDLES]
        self._draws = {}

    def has(self, setting, texts=None):
        return all((setting, t) in self.cells for t in texts or self.texts)

    def settings(self, kinds):
        return [s for s in dict.fromkeys(s for s, _ in self.cells if s.kind in kinds) if self.present(s)]

    def present(self, setting):
        return [t for t in self.texts if (setting, t) in self.cells]

    def partial(self, setting):
        """What to say beside the name of a setting that lacks texts of this report."""
        return "" if self.has(setting) else f" ({', '.join(self.present(setting))} only)"

    def some(self, setting, texts=None):
        return [self.cells[setting, t] for t in texts or self.texts]

    def bits(self, setting, texts=None):
        c = self.some(setting, texts)
        return stats.bits_per_element([x["bytes"] for x in c], [x["elements"] for x in c])

    def kl(self, setting, texts=None):
        return stats.pooled([x["kl"] for x in self.some(setting, texts)])

    def samples(self, setting, texts=None, figure="kl"):
        """The pooled figure under each resample; the same resamples for every setting of the same texts."""
        texts = tuple(texts or self.texts)
        per_text = [x[figure] for x in self.some(setting, texts)]
        if texts not in self._draws:
            self._draws[texts] = stats.Bootstrap([len(x) for x in per_text])
        return self._draws[texts].means(per_text)

    def recall(self, setting):
        c = self.cells.get((setting, NEEDLES))
        return "" if c is None else f"{int(c['exact_facts'].sum())}/{len(c['exact_facts'])}, {c['digits'].mean():.2f}"


def kl_text(value, span=None):
    digits = 5 if value < 0.01 else 4
    text = f"{value:.{digits}f}"
    return text if span is None else f"{text} ({span[0]:.{digits}f} to {span[1]:.{digits}f})"


def row(cells, s):
    """bits | ratio | KL | dPPL | top-1 | facts"""
    texts = cells.present(s)
    bits = cells.bits(s, texts)
    if all(c["exact"] for c in cells.some(s, texts)):
        return f"{bits:.3f} | {16 / bits:.2f} | 0, bit for bit | 0 | 1 | {cells.recall(s)} |"
    d, top = stats.pooled([c["d"] for c in cells.some(s, texts)]), stats.pooled([c["top"] for c in cells.some(s, texts)])
    spread = stats.interval(cells.samples(s, texts, "d"))
    return (f"{bits:.3f} | {16 / bits:.2f} | {kl_text(cells.kl(s, texts), stats.interval(cells.samples(s, texts)))} | "
            f"{100 * np.expm1(d):+.2f} ({100 * np.expm1(spread[0]):+.2f} to {100 * np.expm1(spread[1]):+.2f}) | {top:.3f} | {cells.recall(s)} |")


COLUMNS = "bits | ratio | KL (95 %) | dPPL % (95 %) | top-1 | facts exact, digits |"


def preset_points(cells, profile, mass):
    """Our presets that have all texts."""
    return [s for s in preset_rows(cells, profile, mass) if cells.has(s)]


def preset_rows(cells, profile, mass):
    return [s for s in (Setting("ours", p, profile, mass) for p in table.PRESETS) if cells.present(s)]


def at_equal_kl(cells, ours, peer):
    """How many times smaller than a peer at its KL: interpolated between our presets (value, interval, whether it is only a lower
    bound, since our coarsest preset is finer), and without interpolation: (preset, times), the coarsest preset that is not worse."""
    points = [(cells.bits(s), cells.kl(s)) for s in ours]
    kl, bits = cells.kl(peer), cells.bits(peer)
    need = stats.bits_at_kl(points, kl)
    if need is None:
        return None
    curves = np.array([cells.samples(s) for s in ours]).T
    needs = [stats.bits_at_kl([(b, k) for (b, _), k in zip(points, sample)], q) for sample, q in zip(curves, cells.samples(peer))]
    span = stats.interval([bits / n for n in needs if n is not None])
    b, _, s = min((b, k, i) for i, (b, k) in enumerate(points) if k <= kl)
    return bits / need, span, kl >= max(k for _, k in points), ours[s].name, bits / b


def others(cells):
    return [s for s in cells.settings(("plain", *PEERS)) if s.name != "f16"]


def describe(s):
    """A setting in words."""
    if s.kind in ("ours", "model"):
        parts = [("model of " if s.kind == "model" else "") + f"`{s.name}`", {"none": ""}.get(s.profile, PROFILE_NAMES[s.profile]), "attention mass" if s.mass else ""]
        return ", ".join(p for p in [*parts, " ".join(map(str, s.flags))] if p)
    return peer_name(s)


def peer_name(s):
    return s.name if s.kind == "plain" else f"{s.kind} {PEERS[s.kind][0]} {s.name}"


def sentence(compared):
    """The headline of [(peer setting, at_equal_kl())]."""
    inside, beyond = [c for c in compared if not c[1][2]], [c for c in compared if c[1][2]]

    def span(some, i):
        ends = min(some, key=lambda c: c[1][i]), max(some, key=lambda c: c[1][i])
        return " to ".join(f"{r[i]:.2f} ({peer_name(s)})" for s, r in ends[:1 if len(some) == 1 else 2])

    text = (f"With a model profile's query energy and no other help, files are, at the same KL, **{span(inside, 0)} times smaller** than those of codecs whose "
            "KL lies between those of our presets" if inside else "No codec's KL lies between those of our presets")
    if beyond:
        text += f", and at least {span(beyond, 0)} times smaller than those of codecs whose KL even our coarsest preset beats"
    if compared:
        text += f". Without interpolation (the coarsest preset whose KL is not worse): {span(compared, 4)} times"
    return text + "."


def headline(cells, put):
    variants = [("query energy", "energy", False), ("query energy, attention mass", "energy", True), ("no profile", "none", False)]
    variants = [(label, preset_points(cells, p, m)) for label, p, m in variants if preset_points(cells, p, m)]
    results = {s: [at_equal_kl(cells, ours, s) for _, ours in variants] for s in others(cells) if cells.has(s)}
    put("## How much smaller at equal or better quality\n")
    if variants and variants[0][0] == "query energy":
        put(sentence([(s, r[0]) for s, r in results.items() if r[0]]) + "\n")
    put("KL of a codec is interpolated on our side alone: linear in log bits and log KL between the two presets around it. `at least`: even our "
        "coarsest preset is better than that codec, so its bits are compared and nothing is extrapolated. `finer than ours`: its KL is below "
        "that of our finest lossy preset, so there is nothing to compare with but `exact`.\n")
    put("| codec | bits | KL (95 %) | " + " | ".join(f"times smaller: {label}" for label, _ in variants) + " | without interpolation (query energy) |")
    put("|---" * (4 + len(variants)) + "|")
    for s in sorted(results, key=cells.kl):
        texts = ["finer than ours" if not r else f"at least {r[0]:.2f}" if r[2] else f"{r[0]:.2f} ({r[1][0]:.2f} to {r[1][1]:.2f})" for r in results[s]]
        first = results[s][0] if results[s] else None
        put(f"| {peer_name(s)} | {cells.bits(s):.3f} | {kl_text(cells.kl(s), stats.interval(cells.samples(s)))} | " + " | ".join(texts) +
            " | " + (f"{first[4]:.2f} (`{first[3]}`)" if first else "") + " |")
    put("")


def model_bounds(cells, put, missed):
    """Bits and KL beside codec_model.py's, for the settings whose model was computed in this run."""
    rows, kl_rows = [], []
    for model in dict.fromkeys(s for s, _ in cells.cells if s.kind == "model"):
        ours = Setting("ours", model.name, model.profile, model.mass)
        texts = [t for t in cells.texts if (model, t) in cells.cells and (ours, t) in cells.cells]
        label = f"`{model.name}` | {PROFILE_NAMES[model.profile]} | {'yes' if model.mass else 'no'}"
        ratios = [cells.bits(ours, [t]) / cells.bits(model, [t]) for t in texts]
        for t, r in zip(texts, ratios):
            if r > table.MAX_BITS_RATIO:
                missed.append(f"{label.replace(' |', ',')}, {t}: bits are {r:.3f} of the model's, allowed {table.MAX_BITS_RATIO}")
        if len(texts) < 2:
            continue
        ratio = cells.kl(ours, texts) / cells.kl(model, texts)
        span = stats.interval(cells.samples(ours, texts) / cells.samples(model, texts))
        if ratio > table.MAX_KL_RATIO:
            missed.append(f"{label.replace(' |', ',')}: KL is {ratio:.3f} of the model's, allowed {table.MAX_KL_RATIO}")
        rows.append(f"| {label} | " + ", ".join(f"{cells.bits(ours, [t]):.3f} / {cells.bits(model, [t]):.3f} = {r:.3f}" for t, r in zip(texts, ratios)) +
                    f" | {kl_text(cells.kl(ours, texts))} / {kl_text(cells.kl(model, texts))} | {ratio:.3f} ({span[0]:.3f} to {span[1]:.3f}) |")
        kl_rows.append(", ".join(texts))
    if not rows:
        return
    put("## Beside the arithmetic model\n")
    put(f"`codec_model.py` computed in the same run on the same caches. Bits, of each text: at most {table.MAX_BITS_RATIO} of the model's (which has no "
        f"headers, checksums or token ids). KL, pooled over {kl_rows[0]}: at most {table.MAX_KL_RATIO} of the model's, one-sided; the interval is of the "
        "ratio, both resampled together.\n")
    put(f"| preset | profile | attention mass | bits, ours / model: {kl_rows[0]} | KL, ours / model | ratio of KL (95 %) |\n|---|---|---|---|---|---|")
    for r in rows:
        put(r)
    put("")


def bounds(cells, put, missed):
    mass = Setting("ours", "small", "energy", True)
    put("## Bounds\n")
    if ("prose" in cells.texts) and (mass, "prose") in cells.cells:
        kl, bits = cells.kl(mass, ["prose"]), cells.bits(mass, ["prose"])
        if kl > SMALL_MASS_KL or bits > SMALL_MASS_BITS:
            missed.append(f"`small` with attention mass on prose: KL {kl:.5f} at {bits:.3f} bits, wanted {SMALL_MASS_KL} at {SMALL_MASS_BITS}")
        put(f"- `small` with attention mass on prose: KL {kl_text(kl)} at {bits:.3f} bits; wanted at most {SMALL_MASS_KL} at {SMALL_MASS_BITS}.")
    for (s, t), c in cells.cells.items():
        if s.name == "exact" and not c["exact"]:
            missed.append(f"exact on {t}: the copy differs")
    put("- " + ("Every bound that this run could check is met." if not missed else "Missed:\n" + "\n".join(f"  - {m}" for m in missed)) + "\n")


def presets(cells, put):
    put("## Presets\n\nPooled over " + ", ".join(cells.texts) + "; facts are of the needle cache.\n")
    put("| preset | profile | attention mass | " + COLUMNS + "\n|---|---|---|---|---|---|---|---|---|")
    for profile in PROFILE_NAMES:
        for mass in (False, True):
            for s in preset_rows(cells, profile, mass):
                put(f"| `{s.name}`{cells.partial(s)} | {PROFILE_NAMES[profile]} | {'yes' if mass else 'no'} | {row(cells, s)}")
    exact = Setting("ours", "exact")
    if cells.present(exact):
        put(f"| `exact`{cells.partial(exact)} | | | {row(cells, exact)}")
    put("\n`query energy`: steps from the profile, statistics of each chunk in the file, which decodes without the profile. `query energy and statistics`: the "
        "file needs the profile (stored once for a model, not counted). Attention mass is the writer's and is not stored.\n")


def by_text(cells, put):
    put("## By text\n\nKL and, in brackets, bits. With query energy; no attention mass unless said.\n")
    put("| setting | " + " | ".join(cells.texts) + " |\n" + "|---" * (1 + len(cells.texts)) + "|")
    lines = [(f"`{s.name}`{', attention mass' if m else ''}", s) for m in (False, True) for s in preset_rows(cells, "energy", m)]
    lines += [(f"`{s.name}`, no profile", s) for s in preset_rows(cells, "none", False)] + [(peer_name(s), s) for s in others(cells)]
    lines += [("`exact`", s) for s in (Setting("ours", "exact"),) if cells.present(s)]
    for label, s in lines:
        put(f"| {label} | " + " | ".join(f"{kl_text(cells.kl(s, [t]))} ({cells.bits(s, [t]):.2f})" if (s, t) in cells.cells else "" for t in cells.texts) + " |")
    put("")


def seeds(cells, put):
    put("## The seed pipeline and token eviction\n\nThe published pipeline as `--preset seed` ([seed.md](seed.md)), and `balanced` with the same eviction (`--keep`, by "
        "attention mass). The judge may not attend to an evicted token.\n")
    put("| setting | tokens evicted | " + COLUMNS + "\n|---|---|---|---|---|---|---|---|")
    for s in cells.settings(("ours",)):
        if s.name != "seed" and "--keep" not in s.flags:
            continue
        f = dict(zip(s.flags[::2], s.flags[1::2]))
        name = f"seed K{f['--key-bits']}V{f['--value-bits']}" + (", scales of 8" if "--seed-scales" in f else "") if s.name == "seed" else "`balanced`, query energy"
        put(f"| {name}{cells.partial(s)} | {100 - 100 * float(f.get('--keep', 1)):.0f} % | {row(cells, s)}")
    put("")


def peers(cells, put, lab, left_out):
    put("## Other codecs\n\n| codec | " + COLUMNS + "\n|---|---|---|---|---|---|---|")
    for s in others(cells):
        put(f"| {peer_name(s)}{cells.partial(s)} | {row(cells, s)}")
    put("\nHow their bytes were counted:\n")
    put("- q8_0, q4_0: llama.cpp's formats written anew (numpy), packed bytes of blocks with their f16 scales. fp8_e4m3: one byte an element and an f32 scale "
        "for each layer of keys and of values; the scale is the cache's own, which favours it.")
    notes = {}
    for (s, _), c in cells.cells.items():
        if "note" in c:
            notes.setdefault((s.kind, c["note"]), []).append(c)
    for (kind, note), some in notes.items():
        lean = sum(c.get("lean_bytes", 0) for c in some)
        put(f"- {kind} {PEERS[kind][0]}: {note}" + (f"; its tensors without the pickle around them are {lean / sum(c['bytes'] for c in some):.3f} of that" if lean else "") + ".")
    put("- Their code runs as PyPI ships it, on a CPU, with the distribution's PyTorch; nothing of it is copied or written anew. LMCache is pinned to the last "
        "release line seen whose cachegen kernels have a Python form that needs no library built against CUDA's PyTorch.\n")
    not_run(put, lab, left_out)


def not_run(put, lab, left_out):
    put("## Not run\n")
    for name, reason in {**NOT_HERE, **lab.peers.missing}.items():
        put(f"- {name}: {reason}.")
    places, groups = {}, {}
    for (s, text), reason in left_out.items():
        if s.kind not in lab.peers.missing:
            places.setdefault((s, reason), []).append(text)
    for (s, reason), texts in places.items():
        groups.setdefault((reason, tuple(sorted(texts))), []).append(describe(s))
    for (reason, texts), names in groups.items():
        put(f"- On {', '.join(texts)} ({reason}): {'; '.join(names)}.")
    put("")


def write(lab, a, cells, left_out):
    """The report's text and the missed bounds."""
    out, missed = [], []
    put = out.append
    cells = Cells(cells, a.texts)
    if not cells.texts:
        return "", ["no text was run"]
    body = []
    model_bounds(cells, body.append, missed)
    put("<!-- Generated by tests/bench/quality; do not edit by hand. -->\n# Quality\n")
    some = "" if set(a.texts) >= {*TEXTS, NEEDLES} else f" --texts {' '.join(a.texts)}"
    put(f"Made with `tests/bench/quality --kvlab KVLAB --latticekv LATTICEKV --work DIR{' --quick' if a.quick else ''}{some}` at commit {git_commit()}, "
        f"Python {platform.python_version()}, {', '.join(p for step in PACKAGES for p in step if '==' in p)}, peers " +
        ", ".join(f"{n} {v[0]}" for n, v in PEERS.items()) + ".\n")
    if left_out:
        put("Not every cell was run; what is missing is named under [Not run](#not-run). Comparisons are made of what has all of its texts; other rows name theirs.\n")
    put("SmolLM2-135M-Instruct (30 layers, 3 KV heads of 64), fp16 caches, chunks of 256 tokens. Bits are of the whole .lkv file on disk (headers, checksums, token "
        "ids, exact first tokens) over the elements of k and v; f16 is 16. KL is KL(exact || copy) in nats per token of the text that follows the cached tokens. "
        "The profile was learnt on another text than these.\n")
    for t in cells.texts:
        source, context, scored = TEXTS[t]
        put(f"- {t}: {context} tokens cached, {scored - 1} scored (`{source.replace('kvlab:', 'kvlab/data/') if source.startswith('kvlab:') else 'tests/bench/quality_texts/' + source}`)")
    put("- needles: kvlab's 1,536 tokens with twelve six-digit numbers in them; facts are numbers recalled whole, digits the share of right digits. "
        "Twelve facts are few: one more or less is chance.\n")
    put(f"Pooled figures are means over texts of each text's mean. Intervals: {100 * stats.LEVEL:.0f} % percentile bootstrap, {stats.RESAMPLES} resamples of blocks of "
        f"{stats.BLOCK} consecutive tokens inside each text, the same draws for all settings. They say how sure the figures are for these texts and this model, not "
        "for others.\n")
    headline(cells, put)
    bounds(cells, put, missed)
    presets(cells, put)
    out.extend(body)
    seeds(cells, put)
    peers(cells, put, lab, left_out)
    by_text(cells, put)
    return "\n".join(out).rstrip() + "\n", missed
