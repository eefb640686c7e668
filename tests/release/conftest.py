"""Tests of what is shipped: the zip, the gate of plugins.qgis.org, the arrows, the locks, the repository."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # after the built plugin, which is what is tested

from development import package, qgis  # noqa: E402


@pytest.fixture(scope="session")
def rules():
    """The upload gate's rules."""
    return json.loads(Path(__file__).with_name("gate_rules.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """The zip, written from the working tree. One test judges its size, so that the others can judge the rest."""
    return package.write_zip(tmp_path_factory.mktemp("zip") / package.zip_path().name, enforce_budgets=False)


@pytest.fixture(scope="session")
def unpacked(archive, tmp_path_factory) -> Path:
    """The plugin's folder as the zip unpacks it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder / "miso_qgis"


def pytest_generate_tests(metafunc):
    if "installation" in metafunc.fixturenames:
        found = qgis.prepared_installations()
        metafunc.parametrize("installation", found, ids=[f"qgis-{each.version}" for each in found], scope="session")
