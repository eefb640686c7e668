"""The zip obeys the rules of plugins.qgis.org, and is the same wherever and whenever it is made."""

import configparser
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import pytest

from development import package
from development.project import ROOT


def members(archive):
    with zipfile.ZipFile(archive) as opened:
        return opened.infolist()


def test_another_checkout_gives_the_same_bytes(archive, tmp_path):
    """Times, modes, caches and the order in the file system are not in the zip."""
    copy = tmp_path / "another place"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("development", "miso_qgis", "models"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore, copy_function=shutil.copyfile)
    for name in ("build.py", "metadata.txt", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    (copy / "miso_qgis" / "__pycache__").mkdir()
    (copy / "miso_qgis" / "__pycache__" / "plugin.cpython-311.pyc").write_bytes(b"stale")
    (copy / "miso_qgis" / "plugin.py").chmod(stat.S_IRWXU)
    digests = [hashlib.sha256(archive.read_bytes()).hexdigest()]
    for seed in ("1", "2"):
        code = "from development import package; package.write_zip(enforce_budgets=False)"
        # The copy's code is what must run, not this checkout's.
        variables = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(copy)}
        subprocess.run([sys.executable, "-c", code], cwd=copy, env=variables, check=True)
        digests.append(hashlib.sha256((copy / "dist" / archive.name).read_bytes()).hexdigest())
    assert len(set(digests)) == 1


def test_the_assembled_folder_is_the_zip(archive):
    folder = package.assemble()
    assembled = {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(archive) as opened:
        assert {name: opened.read(name) for name in opened.namelist()} == assembled


def test_the_layout_is_one_folder_with_what_every_plugin_needs(archive):
    names = [member.filename for member in members(archive)]
    assert names[0].startswith("miso_qgis/")
    assert {name.split("/")[0] for name in names} == {"miso_qgis"}
    assert {"miso_qgis/__init__.py", "miso_qgis/metadata.txt", "miso_qgis/LICENSE"} <= set(names)
    assert names == sorted(set(names))


def test_no_path_leaves_the_folder_and_no_cache_or_test_is_in_it(archive):
    for member in members(archive):
        name = member.filename
        parts = name.split("/")
        assert not name.startswith("/"), name
        assert not re.search(r"\\|:", name), name
        assert not {"..", "__MACOSX", ".git", "__pycache__", "tests", "test", "training"} & set(parts), name
        assert not name.endswith((".pyc", ".pyo", ".part", ".tmp", ".orig")), name
        assert not any(part.startswith(".") for part in parts), name


def test_every_member_is_intact_and_a_plain_file(archive):
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
    for member in members(archive):
        assert stat.S_ISREG(member.external_attr >> 16), member.filename
        assert not (member.external_attr >> 16) & 0o111, f"{member.filename} is executable"


def test_the_sizes_are_within_the_budgets(archive, rules):
    assert archive.stat().st_size < rules["zip_bytes"] == package.WHOLE_ZIP_BYTES
    for part, size in package.part_sizes(archive).items():
        assert size <= package.BUDGETS_BYTES[part], part or "all else"


def test_a_part_over_its_budget_stops_the_zip(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "DIST", tmp_path)
    monkeypatch.setitem(package.BUDGETS_BYTES, "", 1000)
    with pytest.raises(package.BuildError, match=r"all else: .* 1000 are allowed"):
        package.write_zip()
    assert list(tmp_path.iterdir()) == []


def test_the_models_digests_are_those_of_their_files(unpacked):
    folders = sorted(path.parent for path in unpacked.glob("models/*/manifest.json"))
    assert folders, "no model is in the zip"
    for folder in folders:
        listed = dict(line.split(None, 1)[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
        found = {name.lstrip("*"): value for name, value in listed.items()}
        assert {"encoder.onnx", "decoder.onnx", "manifest.json", "MODEL_CARD.md"} <= {p.name for p in folder.iterdir()}
        for name, value in found.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value, name
        assert {path.name for path in folder.glob("*.onnx")} <= set(found)


# --- metadata.txt ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metadata(unpacked):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string((unpacked / "metadata.txt").read_text(encoding="utf-8"))
    assert parser.sections() == ["general"]
    return parser["general"]


def test_metadata_has_every_required_key_without_markup(metadata, rules):
    for key in rules["required_metadata"]:
        assert metadata.get(key, "").strip(), key
        assert not re.search(r"<[a-zA-Z/]", metadata[key]), key
    assert "/" not in metadata["author"]
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", metadata["email"])


def test_the_version_is_numeric_and_the_changelog_has_it_or_what_comes(metadata):
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"Unreleased", metadata["version"]} & set(headings)


def test_metadata_says_what_qgis_and_the_reviewers_look_for(metadata, rules, unpacked):
    assert metadata["qgisMinimumVersion"] == "3.22"
    assert metadata["qgisMaximumVersion"] == "4.99"
    assert "supportsQt6" not in metadata
    assert metadata["hasProcessingProvider"] == "yes"
    assert metadata["category"] in rules["categories"]
    assert metadata["server"] == "False"
    assert "plugin" not in metadata["name"].lower()
    icon = unpacked / metadata["icon"]
    assert icon.read_bytes()[:4] == b"\x89PNG"
    about = " ".join(metadata["about"].split())
    for word in ("Alaska", "onnxruntime", "External dependency", ".onnx"):
        assert word in about, word


def test_the_licence_is_the_general_public_licence(unpacked):
    text = (unpacked / "LICENSE").read_text(encoding="utf-8")
    assert "GNU GENERAL PUBLIC LICENSE" in text
    assert "Version 2, June 1991" in text


@pytest.mark.parametrize("key", ["homepage", "tracker", "repository"])
def test_the_links_answer(metadata, key):
    link = metadata[key]
    if "example.org" in link:
        pytest.skip(f"{key} is a placeholder until the owner names it: {link}")
    request = urllib.request.Request(link, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status < 400
    except urllib.error.HTTPError as error:
        pytest.fail(f"{key} {link} answers {error.code}")
    except urllib.error.URLError as error:
        pytest.skip(f"{key} {link} was not checked, no network: {error.reason}")
