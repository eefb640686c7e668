"""Where the project's files lie, and how a step says what it does and runs a program.

Every other module of this package stands on this one.
"""

from __future__ import annotations

import configparser
import contextlib
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, Mapping, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "miso_qgis"
BUILD = ROOT / "build"
DIST = ROOT / "dist"
CACHE = ROOT / ".cache"
ENVIRONMENTS = ROOT / ".venv"


class BuildError(Exception):
    """Raised when a step cannot go on: one sentence on what is wrong, one on what to do."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str) -> None:
    """Print one line at once, so that it stands in the right order between the lines of programs."""
    print(text, flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"== {title}")
    started = time.monotonic()
    yield
    say(f"   {title}: {time.monotonic() - started:.1f} s")


def run(
    command: Sequence[object],
    *,
    env: Optional[Mapping[str, str]] = None,
    cwd: Path = ROOT,
    check: bool = True,
    quiet: bool = False,
    timeout_s: Optional[float] = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program without a keyboard.

    Args:
        command: Program and arguments.
        env: The whole environment; None inherits it.
        cwd: Folder to run in.
        check: Raise when it fails.
        quiet: Keep its output (in ``stdout``, both streams) and show it only when it fails.
        timeout_s: Longest it may take, seconds.

    Raises:
        BuildError: If it fails, is not there, or takes too long.
    """
    words = [str(word) for word in command]
    shown = " ".join(shlex.quote(word) for word in words)
    sys.stdout.flush()
    try:
        done = subprocess.run(
            words,
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{words[0]} is not there, so this could not run: {shown}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"This took longer than {timeout_s:.0f} s and was ended: {shown}") from error
    if check and done.returncode != 0:
        if quiet:
            say(done.stdout[-6000:].rstrip())
        raise BuildError(f"This failed with exit code {done.returncode}: {shown}")
    return done


def metadata() -> Dict[str, str]:
    """The plugin's metadata.txt, the only place where the version is written."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the keys are case-sensitive
    parser.read_string((ROOT / "metadata.txt").read_text(encoding="utf-8"))
    return dict(parser["general"])


def digest(*paths: Path, extra: str = "") -> str:
    """SHA-256 over the contents of files, and any further text, for stamps."""
    state = hashlib.sha256(extra.encode("utf-8"))
    for path in paths:
        state.update(path.read_bytes())
    return state.hexdigest()


def environment(**changes: Optional[str]) -> Dict[str, str]:
    """A copy of this process's environment with changes; None removes a variable."""
    result = dict(os.environ)
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    return result
