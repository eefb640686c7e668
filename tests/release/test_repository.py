"""What is tracked: none of other people's data, no path of one machine, nothing too large."""

import re
import shutil
import subprocess

import pytest

from development.project import ROOT

SIBLING = ROOT.parent / "shared"
REPOSITORY_BYTES = 40_000_000
FILE_BYTES = 4_000_000


def git(*words):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so what is tracked is not known")
    command = ["git", "-c", f"safe.directory={ROOT}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def tracked():
    """Path -> blob id of every tracked file."""
    rows = (line.split(None, 3) for line in git("ls-files", "--stage").splitlines())
    return {path: blob for _, blob, _, path in rows}


@pytest.mark.real_data
@pytest.mark.parametrize("part", ["data", "conformance"])
def test_nothing_of_the_sibling_folder_is_committed(part):
    folder = SIBLING / part
    if not folder.is_dir():
        pytest.skip(f"no sibling folder shared/{part} to compare with")
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt"]
    files = [path for path in files if path.stat().st_size > 1024]
    assert files
    blobs = set(git("hash-object", "--no-filters", *map(str, files)).split())
    assert {path for path, blob in tracked().items() if blob in blobs} == set()


def test_no_path_of_one_machine_is_in_a_tracked_file():
    s = "/"  # put together here, so that this file does not match itself
    machine = re.compile(rf"(?<![\w.]){s}(work|root){s}|{s}home{s}[a-z]|{s}tmp{s}[A-Za-z]".encode())
    found = []
    for path in tracked():
        content = (ROOT / path).read_bytes() if (ROOT / path).is_file() else b""
        if b"\0" not in content[:8192]:
            found += [f"{path}: {match.group().decode()}" for match in machine.finditer(content)]
    assert found == []


def test_nothing_is_too_large():
    sizes = {path: (ROOT / path).stat().st_size for path in tracked() if (ROOT / path).is_file()}
    assert sum(sizes.values()) < REPOSITORY_BYTES
    large = {path for path, size in sizes.items() if size > FILE_BYTES}
    assert {path for path in large if not path.startswith("models/")} == set()


def test_what_is_made_is_not_tracked():
    made = re.compile(r"(^|/)(\.venv|\.cache|build|dist|demo-output|runs|__pycache__)/|\.pyc$")
    assert [path for path in tracked() if made.search(path)] == []
