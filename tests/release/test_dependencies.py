"""The arrows of docs/architecture.md: who may import whom."""

import ast
import json
import subprocess
import sys

import pytest

from development.environments import python_of
from development.project import BUILD, ROOT

PACKAGE = BUILD / "miso_qgis"
# Of the engine, what QGIS's own Python may load: standard library only, imported by both sides.
SHARED = {"errors", "messages", "manifest", "schema", "classes"}
# May import of the plugin (engine: only the shared modules).
ARROWS = {
    "application": {"application", "engine"},
    "algorithms": {"algorithms", "application", "engine"},
    "gui": {"gui", "application", "engine"},
    "engine": {"engine"},
    "provider.py": {"algorithms", "application", "engine"},
    "plugin.py": {"gui", "algorithms", "application", "provider", "engine"},
}
IN_QGIS = {"qgis", "osgeo", "numpy", "processing", "miso_qgis"}


def files_of(part):
    path = PACKAGE / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imports(path):
    """(line, absolute dotted name) of every import of a file, those inside functions too."""
    package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{prefix}.{alias.name}"


@pytest.mark.parametrize("part", ARROWS)
def test_the_arrows_inside_the_plugin(part):
    files = files_of(part)
    assert files
    for path in files:
        for line, name in imports(path):
            words = name.split(".")
            if words[0] != "miso_qgis" or len(words) < 2:
                continue
            assert words[1] in ARROWS[part], f"{path.name}:{line} imports {name}"
            if part != "engine" and words[1] == "engine" and len(words) > 2:
                assert words[2] in SHARED, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("part", ["application", "algorithms", "gui", "provider.py", "plugin.py"])
def test_in_qgis_nothing_from_pip_is_imported(part):
    for path in files_of(part):
        for line, name in imports(path):
            top = name.split(".")[0]
            assert top in IN_QGIS or top in sys.stdlib_module_names, f"{path.name}:{line} imports {name}"


@pytest.mark.parametrize("part", ["application", "algorithms"])
def test_below_the_gui_nothing_knows_a_widget(part):
    for path in files_of(part):
        for line, name in imports(path):
            assert not name.startswith(("qgis.gui", "qgis.PyQt.QtWidgets", "qgis.utils")), f"{path.name}:{line} {name}"


def test_the_package_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in found if "__future__" not in ast.unparse(node)] == []


def loaded(python, code, *path):
    """Top-level names of the modules that a fresh Python has loaded after ``code``."""
    script = f"import sys, json; sys.path[:0] = {[str(each) for each in path]!r}\n{code}\n"
    script += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def import_all(package, folder):
    names = [
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).replace(".__init__", "")
        for path in sorted(folder.rglob("*.py"))
        if path.stem not in ("__main__", "launch")  # these run when imported
    ]
    return "\n".join(f"import {name}" for name in names)


def test_the_modules_of_both_sides_need_the_standard_library_only():
    code = "\n".join(f"import miso_qgis.engine.{name}" for name in sorted(SHARED))
    names = loaded(sys.executable, code, BUILD)
    ours = {"miso_qgis", "__main__"}
    third = {name for name in names if name not in sys.stdlib_module_names and name not in ours}
    # Files that site-packages load at start (.pth) are not of our doing.
    assert third <= loaded(sys.executable, "pass"), third


def test_the_engine_knows_neither_qgis_nor_training():
    code = import_all("miso_qgis.engine", PACKAGE / "engine")
    names = loaded(python_of("engine"), code, BUILD)
    assert "rasterio" in names
    assert not names & {"qgis", "PyQt5", "PyQt6", "torch", "sklearn", "onnx", "training", "pytest"}


def test_training_knows_no_qgis():
    names = loaded(python_of("training"), import_all("training", ROOT / "training"), BUILD, ROOT)
    assert {"torch", "miso_qgis"} <= names
    assert not names & {"qgis", "PyQt5", "PyQt6", "osgeo"}


def test_the_sample_is_prepared_without_torch_and_scikit_learn():
    names = loaded(python_of("engine"), "import training.cli, training.sample", BUILD, ROOT)
    assert not names & {"torch", "sklearn", "onnx"}


def test_nothing_shipped_knows_training():
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, name in imports(path):
            assert name.split(".")[0] not in ("training", "development", "tests"), f"{path.name}:{line} imports {name}"


def test_build_needs_the_standard_library_only():
    """As any Python starts it: isolated, without site-packages."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import build, json;"
    code += "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    third = set(json.loads(done.stdout)) - set(sys.stdlib_module_names) - {"__main__", "build", "development"}
    assert third == set()
