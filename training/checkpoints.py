"""Checkpoints of a training stage: whole or absent, recognised by their digest, the last two kept.

One folder per stage. ``<step>-<digest>.pt`` holds the full state after so many steps; ``final-<digest>.pt``, which
takes their place at the end, holds the averaged weights. The digest in the name is the beginning of the file's SHA-256:
a file that was cut off or altered is told apart from a good one before anything of it is used.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from miso_qgis.engine.errors import InputError

FORMAT = 1
KEPT = 2
_DIGITS = 16
_NAME = re.compile(r"(\d{9}|final)-([0-9a-f]{16})\.pt")

State = Dict[str, Any]


def save(folder: Path, step: int, state: State) -> Path:
    """Write the state after ``step`` steps; older ones but the last are removed."""
    path = _write(folder, f"{step:09d}", {"format": FORMAT, "step": step, **state})
    for _, old in stored(folder)[:-KEPT]:
        old.unlink()
    return path


def finish(folder: Path, fingerprint: str, parameters: Dict[str, Tensor], facts: State) -> Path:
    """Write a stage's result and remove what was needed to get there."""
    path = _write(
        folder, "final", {"format": FORMAT, "fingerprint": fingerprint, "parameters": parameters, "facts": facts}
    )
    for _, old in stored(folder):
        old.unlink()
    return path


def stored(folder: Path) -> List[Tuple[int, Path]]:
    """Checkpoints of a stage by step, oldest first; whether they are whole is not looked at."""
    found = []
    for path in folder.glob("*.pt") if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and match[1] != "final":
            found.append((int(match[1]), path))
    return sorted(found)


def result(folder: Path, fingerprint: str) -> Optional[State]:
    """The finished result of a stage: ``parameters`` and ``facts``; None if it is not finished.

    Raises:
        InputError: If it is damaged or belongs to another run.
    """
    for path in sorted(folder.glob("final-*.pt")) if folder.is_dir() else ():
        return _checked(path, fingerprint, "Remove the file and run the stage again.")
    return None


def is_finished(folder: Path) -> bool:
    """Whether a stage has left its result, whole or not."""
    return any(folder.glob("final-*.pt"))


def latest(folder: Path, fingerprint: str, *, previous: bool = False) -> Optional[State]:
    """The newest state of a stage, or the one before; None if there is none.

    Raises:
        InputError: If it is damaged or belongs to another run; the message says what is left.
    """
    found = stored(folder)
    if not found:
        return None
    if previous:
        if len(found) < 2:
            raise InputError(
                f'Checkpoints "{folder}"',
                f"there is none before that of step {found[-1][0]}.",
                "",
                f'Remove "{found[-1][1].name}" to begin the stage again.',
            )
        found = found[:-1]
    remedy = f'Remove "{found[-1][1].name}" to begin the stage again.'
    if len(found) > 1:
        remedy = f"The one of step {found[-2][0]} is there as well: go on from it with --from-previous."
    return _checked(found[-1][1], fingerprint, remedy)


def _checked(path: Path, fingerprint: str, remedy: str) -> State:
    what = f'Checkpoint "{path}"'
    match = _NAME.fullmatch(path.name)
    needed = "A checkpoint that this run wrote is needed."
    if match is None or _digest(path) != match[2]:
        raise InputError(what, "it is cut off or altered (its digest is not that of its name).", needed, remedy)
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise InputError(what, f"its format is {state.get('format')}.", f"Format {FORMAT} is needed.", remedy)
    if state["fingerprint"] != fingerprint:
        found = "it was made with another configuration, other data or other sites."
        raise InputError(what, found, needed, "Use another run folder.")
    return state


def _write(folder: Path, stem: str, state: State) -> Path:
    """Write under a temporary name, flush to the disk, rename; leftovers of a killed run go first."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink()
    part = folder / f".{stem}.part"
    with part.open("wb") as target:
        torch.save(state, target)
        target.flush()
        os.fsync(target.fileno())
    path = folder / f"{stem}-{_digest(part)}.pt"
    for other in folder.glob(f"{stem}-*.pt"):  # a damaged one of the same step
        if other != path:
            other.unlink()
    os.replace(part, path)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:_DIGITS]
