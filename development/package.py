"""Assemble the plugin's folder and write it as a zip whose bytes depend on nothing but its contents."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from .project import BUILD, DIST, PACKAGE, ROOT, BuildError, metadata, say

# The upload at plugins.qgis.org refuses more than this.
WHOLE_ZIP_BYTES = 25_000_000
# Zipped bytes of each part; the rest of the zip is the last.
BUDGETS_BYTES: Dict[str, int] = {"models/cpcrw": 9_000_000, "models/alaska-simulated": 10_000_000, "": 4_000_000}
UNWANTED_FOLDERS = {"__pycache__", "tests", "test"}
UNWANTED_SUFFIXES = {".pyc", ".pyo", ".orig", ".rej", ".swp", ".part", ".tmp"}
# The earliest time that a zip can hold: every entry has it.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
FILE_MODE = 0o100644


def contents() -> List[Tuple[str, Path]]:
    """(path below the plugin's folder, file) of everything that belongs to the plugin, sorted by path."""
    found = {name: ROOT / name for name in ("metadata.txt", "LICENSE")}
    for top, below in ((ROOT / PACKAGE, ""), (ROOT / "models", "models/")):
        for path in _files(top) if top.is_dir() else ():
            found[below + path.relative_to(top).as_posix()] = path
    return sorted(found.items())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix in UNWANTED_SUFFIXES or path.name.endswith(".aux.xml"):
            continue
        if path.is_dir():
            if path.name not in UNWANTED_FOLDERS:
                yield from _files(path)
        else:
            yield path


def assemble() -> Path:
    """Bring ``build/miso_qgis`` up to date; files that have not changed are left alone. Returns its path."""
    target = BUILD / PACKAGE
    wanted = dict(contents())
    if target.is_dir():
        for path in sorted(target.rglob("*"), reverse=True):
            name = path.relative_to(target).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in wanted and "__pycache__" not in path.parts:
                path.unlink()
    for name, source in wanted.items():
        copy = target / name
        if not copy.is_file() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    return target


def zip_path() -> Path:
    """Where the zip of this version lies."""
    return DIST / f"{PACKAGE}-{metadata()['version']}.zip"


def write_zip(target: Optional[Path] = None, *, enforce_budgets: bool = True) -> Path:
    """Write the zip and say how large its parts are. Returns its path.

    Args:
        target: Where to; ``dist/miso_qgis-<version>.zip`` if None.
        enforce_budgets: Keep no zip of which a part is larger than its budget.

    Raises:
        BuildError: If a part is too large and budgets are enforced.
    """
    target = target or zip_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, source in contents():
            entry = zipfile.ZipInfo(f"{PACKAGE}/{name}", ZIP_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, so that the mode below is read on every system
            entry.external_attr = FILE_MODE << 16
            archive.writestr(entry, source.read_bytes())
    problems = check_budgets(unfinished)
    if problems and enforce_budgets:
        unfinished.unlink()
        raise BuildError("The zip is too large. " + " ".join(problems))
    unfinished.replace(target)
    say(f"wrote {target}")
    return target


def part_sizes(archive_path: Path) -> Dict[str, int]:
    """Zipped bytes of each part of :data:`BUDGETS_BYTES`; ``""`` is everything that is in no other part."""
    sizes = dict.fromkeys(BUDGETS_BYTES, 0)
    with zipfile.ZipFile(archive_path) as archive:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            part = next(part for part in BUDGETS_BYTES if not part or name.startswith(part + "/"))
            sizes[part] += entry.compress_size
    return sizes


def check_budgets(archive_path: Path) -> List[str]:
    """Say each part's size, and return a sentence for each that is over its budget."""
    problems = []
    whole = archive_path.stat().st_size
    rows = [("whole zip", whole, WHOLE_ZIP_BYTES - 1)]
    rows += [(part or "all else", size, BUDGETS_BYTES[part]) for part, size in part_sizes(archive_path).items()]
    for name, size, budget in rows:
        say(f"   {name:<24} {size / 1e6:7.2f} MB of {budget / 1e6:.0f} MB")
        if size > budget:
            problems.append(f"{name}: {size} bytes, and {budget} are allowed.")
    return problems
