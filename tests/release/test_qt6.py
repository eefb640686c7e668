"""The plugin can load on Qt 6: looked up in the code, because no Qt 6 QGIS is packaged to run it on."""

import ast
import enum
import importlib
import inspect
from pathlib import Path

import pytest

# Gone or moved in Qt 6 or PyQt 6.
GONE = {"exec_", "QRegExp", "QDesktopWidget", "qApp", "resources_rc", "setMargin", "QWIDGETSIZE_MAX"}


def python_files(unpacked):
    for part in ("plugin.py", "provider.py", "algorithms", "gui", "application"):
        path = unpacked / part
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imported_names(tree):
    """Local name -> object, for what is imported from qgis."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qgis"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(module, alias.name, None)
    return found


def short_enums(source):
    """Enum members that are reached through their class and not through their enum: ``Qt.LeftButton``."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = resolve(node.value, names)
        if not inspect.isclass(owner) or issubclass(owner, (int, enum.Enum)):
            continue
        value = inspect.getattr_static(owner, node.attr, None)
        value = getattr(owner, node.attr, None) if value is not None else None
        if isinstance(value, (int, enum.Enum)) and type(value) not in (int, bool):
            found.append(f"line {node.lineno}: {owner.__name__}.{node.attr}")
    return found


def resolve(node, names):
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        return getattr(owner, node.attr, None) if owner is not None else None
    return None


def test_the_search_finds_short_enums_and_leaves_scoped_ones():
    source = (
        "from qgis.PyQt.QtCore import Qt\nfrom qgis.PyQt.QtWidgets import QMessageBox as Box\n"
        "from qgis.core import QgsTask, QgsMapLayerProxyModel\n"
        "a = Qt.LeftButton, Box.Warning, QgsTask.CanCancel, QgsMapLayerProxyModel.RasterLayer\n"
        "b = Qt.MouseButton.LeftButton, Box.Icon.Warning, QgsTask.Flag.CanCancel\n"
    )
    lines = short_enums(source)
    assert len(lines) == 4
    assert all(line.startswith("line 4:") for line in lines)


def test_enums_are_scoped_inside_functions_too(unpacked):
    found = {path.name: short_enums(path.read_text(encoding="utf-8")) for path in python_files(unpacked)}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_qt_is_imported_through_qgis_and_nothing_that_qt6_dropped_is_used(unpacked):
    for path in python_files(unpacked):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith(("PyQt", "PySide", "sip")), f"{path.name}:{node.lineno}"
                names = {alias.name for alias in node.names}
                if node.module == "qgis.PyQt.QtGui":
                    # They live in QtWidgets before Qt 6, and QGIS lets both versions find them there.
                    assert not names & {"QAction", "QActionGroup", "QShortcut"}, f"{path.name}:{node.lineno}"
                assert not names & GONE, f"{path.name}:{node.lineno}"
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith(("PyQt", "PySide")) for alias in node.names), path.name
            elif isinstance(node, ast.Attribute):
                assert node.attr not in GONE, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("suffix", ["ui", "py"])
def test_there_are_files_to_look_at(unpacked, suffix):
    assert list(Path(unpacked, "gui").rglob(f"*.{suffix}"))


def test_the_forms_scope_their_enums_by_class_only(unpacked):
    """uic of Qt 6 resolves ``Qt::Vertical`` itself, but not members of classes that QGIS promotes."""
    for path in unpacked.rglob("*.ui"):
        text = path.read_text(encoding="utf-8")
        assert "<set>Qgs" not in text, path.name
        assert "<enum>Qgs" not in text, path.name
