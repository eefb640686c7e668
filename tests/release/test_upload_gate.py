"""The scanners of plugins.qgis.org find nothing in the zip, with no waiver; and the same scan does find what is bad."""

import json
import re
import shutil
import subprocess
import sys

import pytest

# Return values of addParameter, an intentional interface: noise for Processing algorithms. QGS105 forbids what every
# classFactory is given.
FLAKE8_QGIS_NOISE = ["QGS105", "QGS201", "QGS202"]


def tool(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    return done


def bandit(folder, rules):
    enabled = [code for code in rules["bandit"] if code not in rules["bandit_retired"]]
    done = tool("bandit", "-q", "-f", "json", "-t", ",".join(enabled), "-r", folder, cwd=folder.parent)
    report = json.loads(done.stdout)
    assert not report["errors"], report["errors"]
    return [f"{each['test_id']} {each['filename']}:{each['line_number']}" for each in report["results"]]


def secrets(folder, rules):
    off = [word for name in rules["detect_secrets_off"] for word in ("--disable-plugin", name)]
    done = tool("detect_secrets", "scan", "--all-files", "--exclude-files", "metadata.txt", *off, ".", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # the program exits with 0 whatever it finds
    rows = [(name, each) for name, found in report["results"].items() for each in found]
    return [f"{each['type']} {name}:{each['line_number']}" for name, each in rows]


def flake8(folder, codes, ignore=()):
    # Neither the project's settings nor a user's, and no line that asks to be left out.
    words = ["flake8", "--isolated", "--disable-noqa", "--max-line-length=120", f"--select={','.join(codes)}"]
    done = tool(*words, f"--extend-ignore={','.join(ignore) or 'X'}", ".", cwd=folder)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bandit_finds_nothing(unpacked, rules):
    assert bandit(unpacked, rules) == []


def test_detect_secrets_finds_nothing(unpacked, rules):
    assert secrets(unpacked, rules) == []


def test_flake8_finds_nothing_of_what_is_shown_to_approvers(unpacked, rules):
    assert flake8(unpacked, rules["flake8"]) == []


def test_flake8_qgis_finds_nothing(unpacked):
    assert flake8(unpacked, ["QGS"], FLAKE8_QGIS_NOISE) == []


def test_nothing_is_waived(unpacked):
    hidden = [path.name for path in unpacked.rglob(".*")]
    assert hidden == []
    waiver = re.compile(r"#\s*nosec|pragma: allowlist secret")
    for path in unpacked.rglob("*.py"):
        found = waiver.findall(path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found}"


def test_no_file_is_a_program(unpacked, rules):
    for path in unpacked.rglob("*"):
        assert path.suffix.lower() not in rules["suspicious_suffixes"], path
        if path.is_file():
            assert path.read_bytes()[:4] not in (b"\x7fELF", b"MZ\x90\x00", b"\xcf\xfa\xed\xfe"), path


def test_every_binary_is_a_model_or_a_picture(unpacked):
    for path in unpacked.rglob("*"):
        if path.is_file() and b"\0" in path.read_bytes():
            assert path.suffix in (".onnx", ".png", ".qm"), path


@pytest.mark.parametrize(
    ("scan", "line"),
    [
        (bandit, "import subprocess\nsubprocess.run(['ls'])\n"),
        (bandit, "def f(x):\n    assert x\n"),
        (secrets, 'DIGEST = "' + "0f1e2d3c4b5a69788796a5b4c3d2e1f0" * 2 + '"\n'),
        (lambda folder, rules: flake8(folder, rules["flake8"]), "print(undefined_name)\n"),
        (lambda folder, rules: flake8(folder, ["QGS"], FLAKE8_QGIS_NOISE), "from PyQt5.QtCore import Qt\n"),
    ],
    ids=["subprocess", "assert", "digest", "undefined", "pyqt5"],
)
def test_the_scan_finds_what_is_bad(unpacked, rules, tmp_path, scan, line):
    folder = tmp_path / "miso_qgis"
    shutil.copytree(unpacked, folder)
    before = scan(folder, rules)
    (folder / "bad.py").write_text(line, encoding="utf-8")
    assert len(scan(folder, rules)) > len(before)
