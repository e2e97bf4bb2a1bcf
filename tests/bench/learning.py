#!/usr/bin/env python3
"""What channel statistics cost and save on texts of four kinds: sent with every chunk, out of profiles, learnt by the daemon.

    tests/bench/learning.py --bin build/release/bin --kvlab KVLAB [--caches DIR] [--out docs/results/learning.md]

KVLAB is kvlab's folder (SmolLM2 in numpy); its interpreter is this one. Caches of the first 768 tokens of each text (to learn from) and of the 512 tokens
behind them (to store) are made once and kept in DIR. Everything is stored on real daemons with the preset `balanced` and the same query energy, that of
tests/data; bits are stored bytes of the blocks' frames over the elements.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
DATA = os.path.join(ROOT, "tests", "data")
TEXTS = {"prose": "lighthouse.txt", "code": "texts/code.txt", "dialogue": "texts/dialogue.txt", "german": "texts/german.txt"}
LEARN_TOKENS, STORED_TOKENS = 768, 512
CHUNKS = (256, 64, 16)


def make_caches(kvlab, folder):
    """Caches of each text's two parts, unless they are there."""
    wanted = [(kind, part) for kind in TEXTS for part in ("learn", "test")]
    if all(os.path.exists(os.path.join(folder, f"{kind}_{part}.safetensors")) for kind, part in wanted):
        return
    sys.path.insert(0, kvlab)
    import numpy as np
    from safetensors.numpy import save_file
    from smollm2 import Model
    model = Model()
    for kind, name in TEXTS.items():
        with open(os.path.join(DATA, name), encoding="utf8") as f:
            ids = np.array(model.tokenizer.encode(f.read()).ids, np.int32)
        parts = {"learn": ids[:LEARN_TOKENS], "test": ids[LEARN_TOKENS: LEARN_TOKENS + STORED_TOKENS]}
        if len(parts["test"]) < STORED_TOKENS:
            raise SystemExit(f"{name} has {len(ids)} tokens, need {LEARN_TOKENS + STORED_TOKENS}")
        for part, tokens in parts.items():
            _, (k, v), _, energy = model.forward(tokens, stats=True)
            save_file({"k": k, "v": v, "token_ids": tokens, "query_energy": energy.astype(np.float32)}, os.path.join(folder, f"{kind}_{part}.safetensors"),
                      {"model": "SmolLM2-135M-Instruct Q4_1", "rope_base": str(model.rope_base), "rope_layout": "neox"})


class Bench:
    def __init__(self, caches, work):
        from daemon import PROFILE, Daemon, cli, cli_json
        import safetensors_file
        self._daemon_class, self._cli, self._cli_json, self._caches, self._work = Daemon, cli, cli_json, caches, work
        tensors, _ = safetensors_file.read(PROFILE)
        self._energy = tensors["query_energy"]
        self._files = safetensors_file
        self.energy_profile = self.path("energy.safetensors")
        safetensors_file.write(self.energy_profile, {"query_energy": self._energy})

    def path(self, name):
        return os.path.join(self._work, name)

    def cache(self, kind, part):
        return os.path.join(self._caches, f"{kind}_{part}.safetensors")

    def learn(self, kind):
        """A profile with the statistics of this kind's text and the common query energy."""
        out = self.path(f"{kind}.safetensors")
        self._cli("profile", "learn", self.cache(kind, "learn"), out)
        tensors, _ = self._files.read(out)
        tensors["query_energy"] = self._energy
        self._files.write(out, tensors)
        return out

    def daemon(self, folder, learning):
        return self._daemon_class(folder, memory_bytes=1 << 30, flags=[f"--learn_profiles={'true' if learning else 'false'}", f"--disk_dir={folder}/disk", "--disk_bytes=1000000000"])

    def put(self, daemon, kind, part, chunk, profile, time_of=1):
        """Bits per element. time_of: another one, and the same text is not there already."""
        name = f"n{chunk}-{time_of}"
        args = ["put", self.cache(kind, part), "--server", daemon.socket, "--session", f"{kind}-{part}", "--namespace", name, "--chunk", str(chunk),
                "--preset", "balanced", "--profile", profile]
        result = self._cli_json(*args)
        return 16 * result["stored_bytes"] / result["raw_bytes"]  # f16

    def bits_on(self, daemon, profile):
        return {kind: {chunk: self.put(daemon, kind, "test", chunk, profile) for chunk in CHUNKS} for kind in TEXTS}

    def bits(self, profile):
        """{kind: {chunk: bits}} of the test texts with a fixed profile."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            daemon = self.daemon(folder, learning=False)
            try:
                return self.bits_on(daemon, profile)
            finally:
                daemon.stop()

    def learnt(self, texts):
        """The same with what a daemon has learnt that stored these (kind, chunk) in this order; tokens that it learnt from, and what its log says of each
        version. It is started again without learning before the test texts come."""
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            daemon = self.daemon(folder, learning=True)
            try:
                for n, (kind, chunk) in enumerate(texts):
                    self.put(daemon, kind, "learn", chunk, self.energy_profile, texts[:n + 1].count((kind, chunk)))
                    settle(daemon)
                tokens = daemon.stats()["layout_states"][0]["learnt_tokens"]
                versions = re.findall(r"version (\d+) of its learnt profile, [0-9a-f]+(?:, takes ([0-9.]+) % fewer bytes)?", daemon.output())
                daemon.stop()
                daemon = self.daemon(folder, learning=False)
                bits = self.bits_on(daemon, self.energy_profile)
                in_use = next(p["version"] for p in daemon.stats()["layout_states"][0]["profiles"] if p["in_use"])
                if in_use != int(versions[-1][0]):
                    raise SystemExit(f"version {in_use} is in use after the restart, not the last one of {versions}")
                return bits, told(tokens, versions)
            finally:
                daemon.stop()


def told(tokens, versions):
    later = [f"version {n}, which takes {saved} % fewer bytes of the chunk that it was tried on," for n, saved in versions if saved]
    return f"{tokens} tokens learnt from; " + (" and ".join(later) + " came" if later else "no second version came")


def settle(daemon):
    """Until what was put is learnt from: nothing has changed for a while."""
    before, same = None, 0
    while same < 4:
        time.sleep(2)
        now = [(s["learnt_tokens"], len(s["profiles"])) for s in daemon.stats()["layout_states"]]
        same = same + 1 if now == before else 0
        before = now


def table(columns):
    lines = ["| text | chunk | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for kind in TEXTS:
        for chunk in CHUNKS:
            lines.append(f"| {kind} | {chunk} | " + " | ".join(f"{column[kind][chunk]:.3f}" for column in columns.values()) + " |")
    lines.append("| **mean** | | " + " | ".join(f"**{sum(c[k][n] for k in TEXTS for n in CHUNKS) / len(TEXTS) / len(CHUNKS):.3f}**" for c in columns.values()) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--kvlab", required=True)
    parser.add_argument("--caches", default="")
    parser.add_argument("--out", default="")
    a = parser.parse_args()
    os.environ["LATTICEKV_BIN_DIR"] = os.path.abspath(a.bin)
    with tempfile.TemporaryDirectory(prefix="lkv") as work:
        caches = a.caches or work
        os.makedirs(caches, exist_ok=True)
        make_caches(a.kvlab, caches)
        bench = Bench(caches, work)
        own_profiles = {kind: bench.bits(bench.learn(kind)) for kind in TEXTS}
        foreign = {kind: {chunk: sum(own_profiles[other][kind][chunk] for other in TEXTS if other != kind) / (len(TEXTS) - 1) for chunk in CHUNKS} for kind in TEXTS}
        worst = {kind: {chunk: max(own_profiles[other][kind][chunk] for other in TEXTS if other != kind) for chunk in CHUNKS} for kind in TEXTS}
        own = {kind: own_profiles[kind][kind] for kind in TEXTS}
        two, two_told = bench.learnt([("prose", 256), ("code", 256)])
        # The third and fourth come between two looks; stored again, they are looked at.
        four, four_told = {}, {}
        for chunk in CHUNKS:
            four[chunk], four_told[chunk] = bench.learnt([(kind, chunk) for kind in [*TEXTS, "dialogue", "german"]])
        columns = {"none: own statistics in every chunk": bench.bits(bench.energy_profile), "foreign profile, worst": worst, "foreign profile, mean": foreign,
                   "own profile": own, "learnt: prose, code": two, **{f"learnt: all four in chunks of {chunk}": four[chunk] for chunk in CHUNKS}}
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    four_lines = "\n".join(f"  in chunks of {chunk}: {four_told[chunk]}{';' if chunk != CHUNKS[-1] else '.'}" for chunk in CHUNKS)
    text = f"""# Learnt statistics: bits per element on four kinds of text

Made by `tests/bench/learning.py --bin build/release/bin --kvlab KVLAB --out docs/results/learning.md` (commit {commit}). SmolLM2-135M, 30 layers of 3 heads of 64 channels,
f16; preset `balanced`; {STORED_TOKENS} tokens of each text stored on a daemon, in chunks of 256, 64 and 16; stored bytes of the frames over all
elements, the first 4 tokens of each text, which are exact, included. The same query energy everywhere (tests/data/smollm2_profile.safetensors, of yet another
text), so that the columns differ in means and spreads alone. The encoder takes a tile's own statistics where they are smaller, in every column.

{table(columns)}

* *none*: the profile has query energy alone.
* *foreign profile*: `latticekv profile learn` on {LEARN_TOKENS} tokens of one of the other three texts; the worst of them, and their mean.
* *own profile*: on the {LEARN_TOKENS} tokens before those that are stored, of the same text.
* *learnt: prose, code*: by a daemon that stored {LEARN_TOKENS} tokens of each of these two before ({two_told}).
* *learnt: all four*: by one that stored {LEARN_TOKENS} tokens of each of the four, in the table's order, and then dialogue and German again, since the first time
  falls between two looks. Whether a new version pays is tried on the last chunk of a look, as it is stored, so it depends on the length of chunks:
{four_lines}

Prose is `tests/data/lighthouse.txt`; code, dialogue and German are in `tests/data/texts`.
"""
    print(text)
    if a.out:
        with open(a.out, "w", encoding="utf8") as f:
            f.write(text)


if __name__ == "__main__":
    main()
