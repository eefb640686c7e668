"""The three virtual environments under ``.venv``: engine, training, test.

Each carries a stamp of what it was made from. An unchanged stamp means nothing to do; a missing or another one means
that the environment is made from nothing again, so that what is there is always what the files say.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List, Sequence

from .project import CACHE, ENVIRONMENTS, ROOT, BuildError, digest, run, say, step
from .qgis import Qgis

TRAINING_REQUIREMENTS = ROOT / "training" / "requirements.txt"
TEST_REQUIREMENTS = ROOT / "tests" / "requirements.txt"
# The pins of training and its tools have wheels from here on.
TRAINING_PYTHON = (3, 11)
PIP_INSTALL = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off")
PIP_PATIENCE = ("--retries", "5", "--timeout", "60")
ENGINE_STAMP = "miso-engine.json"


def python_of(name: str) -> Path:
    """The interpreter of an environment."""
    return ENVIRONMENTS / name / "bin" / "python"


def ensure_engine(qgis: Qgis) -> Path:
    """Make the engine's environment as a user does: by the plugin's own algorithm. Returns its Python.

    The algorithm itself finds out whether anything needs to be done.
    """
    folder = ENVIRONMENTS / "engine"
    if folder.is_dir() and not (folder / ENGINE_STAMP).is_file():
        say(f"   {folder.relative_to(ROOT)} was not made by the plugin and is made anew")
        shutil.rmtree(folder)
    scratch = CACHE / "engine-profile"
    variables = qgis.enable_plugin(scratch)
    with step("engine environment, by miso:setupengine"):
        done = run([qgis.process, "run", "miso:setupengine"], env=variables, check=False, quiet=True)
        if done.returncode != 0:
            say(done.stdout[-6000:])
            raise BuildError("The engine's environment could not be made: the lines above say why.")
    return python_of("engine")


def ensure_training() -> Path:
    """Make the environment of training, with the tools that check it. Returns its Python."""
    base = _training_base()
    version = run([base, "--version"], quiet=True).stdout.strip()
    return _ensure("training", base, [], TRAINING_REQUIREMENTS, digest(TRAINING_REQUIREMENTS, extra=version))


def ensure_test(qgis: Qgis) -> Path:
    """Make the environment of the plugin's tests: QGIS's own Python and packages, and pytest. Returns its Python."""
    version = run([qgis.python, "--version"], quiet=True).stdout.strip()
    stamp = digest(TEST_REQUIREMENTS, extra=f"{version} {qgis.python}")
    return _ensure("test", qgis.python, ["--system-site-packages"], TEST_REQUIREMENTS, stamp)


def _ensure(name: str, base: Path, options: Sequence[str], requirements: Path, wanted: str) -> Path:
    folder = ENVIRONMENTS / name
    stamp = folder / "miso-stamp"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python_of(name)
    with step(f"environment {name}, from {requirements.relative_to(ROOT)}"):
        shutil.rmtree(folder, ignore_errors=True)
        run([base, "-m", "venv", *options, folder], quiet=True)
        run([python_of(name), *PIP_INSTALL, *PIP_PATIENCE, "-r", requirements], quiet=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python_of(name)


def _training_base() -> Path:
    names: List[str] = ["/usr/bin/python3", *(f"python3.{minor}" for minor in (13, 12, 11)), "python3"]
    code = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < {TRAINING_PYTHON!r})"
    for name in names:
        path = shutil.which(name)
        if path and run([path, "-c", code], check=False, quiet=True).returncode == 0:
            return Path(path)
    wanted = ".".join(map(str, TRAINING_PYTHON))
    raise BuildError(f"Training and its tests need Python {wanted} or newer with the venv module; none was found.", 2)
