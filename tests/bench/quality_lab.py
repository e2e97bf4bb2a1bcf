"""The laboratory of the quality report: texts, caches, what each setting stores, and how good the copies are.

kvlab's model is loaded once and the exact pass of a text is shared by all its copies. Results are kept in the work directory,
keyed by the bytes they came from, so that an interrupted run resumes.
"""
import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import kvlab_table as table
from quality_start import NEEDLES, TEXTS

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to store a cache. kind: ours, model, plain or a peer's name."""
    kind: str
    name: str
    profile: str = "none"  # none | energy (query energy, own statistics) | statistics (the profile's)
    mass: bool = False
    flags: tuple = ()

    def label(self):
        return " ".join([self.kind, self.name, self.profile, "mass" if self.mass else "", *map(str, self.flags)])


def fp8_e4m3(x):
    """FP8 e4m3, one f32 scale for each layer of a plane that maps its largest magnitude to 448. Bytes and the copy."""
    y = x.astype(np.float32)
    scale = (np.abs(y).max(axis=(1, 2, 3), keepdims=True) / 448).astype(np.float32)
    y = np.divide(y, scale, out=np.zeros_like(y), where=scale > 0)
    step = np.exp2(np.maximum(np.floor(np.log2(np.maximum(np.abs(y), 1e-30))), -6) - 3)  # subnormals below 2^-6
    return x.size + scale.nbytes, (np.clip(np.rint(y / step) * step, -448, 448) * scale).astype(x.dtype)


PLAIN = {"f16": lambda x: (x.nbytes, x), "fp8_e4m3": fp8_e4m3, "q8_0": table.q8_0, "q4_0": table.q4_0}


class Lab(table.Lab):
    def __init__(self, kvlab, work, cli, profile, peers):
        super().__init__(kvlab, work)
        self.cli, self.profile, self.peers = cli, profile, peers
        self.cli_digest = hashlib.sha256(open(cli, "rb").read()).hexdigest()[:24]
        os.makedirs(os.path.join(work, "judged"), exist_ok=True)
        sys.path.insert(0, kvlab)
        import needles
        import smollm2
        self.needles, self.smollm2 = needles, smollm2
        self._model, self._exact, self.digests = None, {}, {}

    def engine(self):
        if self._model is None:
            self._model = self.smollm2.Model()
        return self._model

    # --- caches

    def cache(self, text):
        """The file with a text's exact cache, made when it is not there yet."""
        path = os.path.join(self.work, f"{text}.safetensors")
        if not os.path.exists(path):
            part = path + ".new"
            if text == NEEDLES:
                self.script("needles.py", "make", os.path.join(self.kvlab, "data", "needle_filler.txt"), part)
            else:
                name, context, scored = TEXTS[text]
                source = os.path.join(self.kvlab, "data", name[6:]) if name.startswith("kvlab:") else os.path.join(HERE, "quality_texts", name)
                self.script("dump.py", source, part, "--context", str(context), "--eval", str(scored))
            os.replace(part, path)
        if text not in self.digests:
            self.digests[text] = table.digest(path)
        return path

    def elements(self, text):
        with safe_open(self.cache(text), "numpy") as f:
            return 2 * int(np.prod(f.get_slice("k").get_shape()))

    # --- what a setting stores

    def _key(self, setting, text):
        own = {"ours": self.cli_digest, "model": "", "plain": ""}
        by = own[setting.kind] if setting.kind in own else self.peers.version(setting.kind)
        self.cache(text)
        return f"stored {by} {self.digests[text]} {setting.label()}"

    def finished(self, setting, text):
        """Whether an earlier run has left the cell."""
        row = self.kept.get(self._key(setting, text))
        return row is not None and os.path.exists(self._judged(text, row["digest"]))

    def stored(self, setting, text):
        """{"bytes" or "bits", "digest" of the copy}, and the path of the copy or None when it is not at hand."""
        key = self._key(setting, text)
        if self.finished(setting, text):
            return self.kept[key], None
        row, copy = getattr(self, f"_store_{setting.kind}", self._store_peer)(setting, self.cache(text), os.path.join(self.work, "copy.safetensors"))
        row["digest"] = table.digest(copy)
        self.kept[key] = row
        self.save()
        return row, copy

    def _profile_flags(self, setting):
        return {"none": ([], []), "energy": (["--profile", self.profile, "--stats", "own"], []),
                "statistics": (["--profile", self.profile, "--stats", "profile"], ["--profile", self.profile])}[setting.profile]

    def _store_ours(self, setting, cache, out):
        encode, decode = self._profile_flags(setting)
        flags = ["--preset", setting.name, "--threads", "1", *encode, *(["--importance"] if setting.mass else []), *map(str, setting.flags)]
        size, copy = table.store(self.work, self.cli, cache, *flags, decode_flags=decode)
        return {"bytes": size}, copy

    def _store_model(self, setting, cache, out):
        bits = self.run_model(cache, "none" if setting.profile == "none" else self.profile, setting.name,
                              "profile" if setting.profile == "statistics" else "own", 256, out, *(["--importance"] if setting.mass else []))
        return {"bits": bits}, out

    def _store_plain(self, setting, cache, out):
        t = load_file(cache)
        (kb, k), (vb, v) = (PLAIN[setting.name](t[n]) for n in ("k", "v"))
        save_file({"k": k, "v": v}, out)
        return {"bytes": kb + vb}, out

    def _store_peer(self, setting, cache, out):
        return self.peers.store(setting, cache, out, cache != self.cache(NEEDLES)), out

    # --- how good a copy is

    def _judged(self, text, digest):
        return os.path.join(self.work, "judged", f"{self.digests[text]}-{digest}.npz")

    def _log_probs(self, text, k, v, keep=None):
        m, ids = self.engine(), self._exact[text]["ids"]
        return m.log_probs(m.forward(ids[k.shape[1]:], (k, v), keep)[0])[:-1]

    def judge(self, text, row, copy):
        """Per-token figures of a text's copy: kl, d (log-probability lost on the real token), top (argmax agrees)."""
        path = self._judged(text, row["digest"])
        if not os.path.exists(path):
            if text not in self._exact:
                e = load_file(self.cache(text))
                self._exact = {text: {"ids": e["token_ids"]}}  # one text's log-probabilities at a time: 100 MB
                self._exact[text]["p"] = self._log_probs(text, e["k"], e["v"])
            r, p, ids = load_file(copy), self._exact[text]["p"], self._exact[text]["ids"]
            q = self._log_probs(text, r["k"], r["v"], r["keep"].astype(bool) if "keep" in r else None)
            at, t = np.arange(len(p)), ids[r["k"].shape[1] + 1:]
            self._keep_arrays(path, kl=(np.exp(p) * (p - q)).sum(-1), d=p[at, t] - q[at, t], top=p.argmax(-1) == q.argmax(-1))
        with np.load(path) as f:
            return {n: f[n] for n in f.files}

    def recall(self, row, copy):
        """Per fact of the needle cache: share of digits that come back, and whether all do."""
        path = self._judged(NEEDLES, row["digest"])
        if not os.path.exists(path):
            m, r = self.engine(), load_file(copy)
            codes = json.loads(safe_open(self.cache(NEEDLES), "numpy").metadata()["codes"])
            keep = r["keep"].astype(bool) if "keep" in r else None
            hits = []
            for word, code in codes.items():
                q = m.tokenizer.encode(f"\nThe secret number of the {word} is").ids
                a = m.tokenizer.encode(f" {code}").ids
                lp = m.log_probs(m.forward(np.array(q + a), (r["k"], r["v"]), keep)[0][len(q) - 1: -1])
                hits.append(lp.argmax(-1) == np.array(a))
            self._keep_arrays(path, digits=np.array([h.mean() for h in hits]), exact_facts=np.array([h.all() for h in hits]))
        with np.load(path) as f:
            return {n: f[n] for n in f.files}

    @staticmethod
    def _keep_arrays(path, **arrays):
        np.savez(path + ".new.npz", **arrays)
        os.replace(path + ".new.npz", path)

    def cell(self, setting, text):
        """Everything about a setting on a text: stored bytes or bits, per-token figures or recall."""
        row, copy = self.stored(setting, text)
        figures = self.recall(row, copy) if text == NEEDLES else self.judge(text, row, copy)
        elements = self.elements(text)
        stored = row["bytes"] if "bytes" in row else row["bits"] * elements / 8
        return {"setting": setting, "text": text, "bytes": stored, "elements": elements, "exact": row["digest"] == self.digests[text],
                **{n: row[n] for n in ("note", "lean_bytes") if n in row}, **figures}


def git_commit():
    done = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or "unknown"
