"""Runs a test under a virtual environment of the build directory that holds the latticekv package and what else the test needs.

LATTICEKV_BUILD_DIR names the build directory. Without a network to install from, the test says so and is skipped.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

SOURCE_DIR = os.environ.get("LATTICEKV_SOURCE_DIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD_DIR = os.environ.get("LATTICEKV_BUILD_DIR", "")
SKIPPED = 77  # ctest's SKIP_RETURN_CODE of these tests
INSTALL_TIMEOUT_S = 900
CLIENT_REQUIREMENTS = ("grpcio>=1.51", "protobuf>=3.20.2", "numpy>=1.21", "google-crc32c>=1.5", "setuptools>=61", "wheel")


def skip(why):
    print(f"skipped: {why}", flush=True)
    sys.exit(SKIPPED)


def _run(command, **kwargs):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=INSTALL_TIMEOUT_S, **kwargs)
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"{command[0]} failed")


def _package_digest():
    """Changes with the package's sources and the protocol."""
    digest = hashlib.sha256()
    for top in (os.path.join(SOURCE_DIR, "client", "python"), os.path.join(SOURCE_DIR, "proto")):
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(f for f in folders if f not in ("build", "__pycache__") and not f.endswith(".egg-info"))
            for name in sorted(names):
                if not name.endswith((".py", ".toml", ".proto", ".typed", ".md")):
                    continue
                with open(os.path.join(folder, name), "rb") as f:
                    digest.update(f"{name}\0".encode() + f.read())
    return digest.hexdigest()


def _install_package(python):
    with tempfile.TemporaryDirectory(prefix="lkv") as work:
        copy = os.path.join(work, "python")
        shutil.copytree(os.path.join(SOURCE_DIR, "client", "python"), copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--force-reinstall", copy],
             env={**os.environ, "LATTICEKV_PROTO_DIR": os.path.join(SOURCE_DIR, "proto")})


def environment(home, steps, base=None):
    """The interpreter of a virtual environment at `home` with what `steps` (argument lists for pip install) bring; made anew when
    they have changed. base: as for ensure(). RuntimeError when it cannot be had."""
    python = os.path.join(home, "bin", "python")
    wanted = hashlib.sha256(repr((steps, base)).encode()).hexdigest()
    if _stamp(home, "requirements") != wanted:
        shutil.rmtree(home, ignore_errors=True)
        _run([base, "-m", "venv", "--system-site-packages", home] if base else [sys.executable, "-m", "venv", home])
        for step in steps:
            _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
        _set_stamp(home, "requirements", wanted)
    return python


def ensure(name, extra_steps=(), base=None):
    """The interpreter of environment `name`, made or brought up to date. extra_steps: argument lists for pip install, in order. base: an
    interpreter whose own packages the environment sees. RuntimeError when it cannot be had."""
    if not BUILD_DIR:
        raise RuntimeError("LATTICEKV_BUILD_DIR is not set")
    home = os.path.join(BUILD_DIR, f"python-{name}")
    os.makedirs(BUILD_DIR, exist_ok=True)
    with open(home + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        python = environment(home, [list(CLIENT_REQUIREMENTS), *map(list, extra_steps)], base)
        package = _package_digest()
        if _stamp(home, "package") != package:
            _install_package(python)
            _set_stamp(home, "package", package)
    return python


def _stamp(home, what):
    try:
        with open(os.path.join(home, f"latticekv-{what}")) as f:
            return f.read()
    except OSError:
        return ""


def _set_stamp(home, what, value):
    with open(os.path.join(home, f"latticekv-{what}"), "w") as f:
        f.write(value)


def enter(name, extra_steps=(), base=None, needs_module=None, hint=""):
    """Goes on with the running script under environment `name`; skips the test when that cannot be had, or when `base` lacks
    `needs_module`. Call it first."""
    if os.environ.get("LATTICEKV_PYTHON_ENV") == name:
        return
    try:
        if needs_module and subprocess.run([base, "-c", f"import {needs_module}"], stdin=subprocess.DEVNULL, capture_output=True).returncode != 0:
            skip(f"{base} has no {needs_module}; {hint}")
        python = ensure(name, extra_steps, base)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        skip(f"the Python packages it needs could not be installed ({error})")
    os.environ["LATTICEKV_PYTHON_ENV"] = name
    os.execv(python, [python, *sys.argv])
