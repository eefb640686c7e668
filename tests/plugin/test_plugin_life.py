"""The plugin as a guest in QGIS: it loads with nothing installed, leaves no trace, and will run on Qt 6."""

import ast
import gc
import subprocess
import sys
from pathlib import Path

import pytest
from qgis.core import QgsApplication, QgsProject
from qgis.gui import QgsMapToolPan
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QObject
from qgis.PyQt.QtWidgets import QAction, QDockWidget

GUI_SIDE = ("gui", "algorithms", "application")
ENGINE_MODULES = {"errors", "manifest", "messages", "schema", "classes"}


def sources(plugins, *folders):
    package = plugins / "miso_qgis"
    files = [package / "__init__.py", package / "plugin.py", package / "provider.py"]
    for folder in folders or GUI_SIDE:
        files += sorted((package / folder).rglob("*.py"))
    assert len(files) > 10
    return files


class Iface(QObject):
    """Counts what the plugin adds and takes away."""

    def __init__(self, canvas, window):
        super().__init__()
        self.canvas, self.window, self.added = canvas, window, []

    def mapCanvas(self):
        return self.canvas

    def mainWindow(self):
        return self.window

    def addDockWidget(self, area, dock):
        self.window.addDockWidget(area, dock)
        self.added.append(("dock", dock))

    def removeDockWidget(self, dock):
        self.window.removeDockWidget(dock)
        self.added.remove(("dock", dock))

    def addToolBarIcon(self, action):
        self.added.append(("toolbar", action))

    def removeToolBarIcon(self, action):
        self.added.remove(("toolbar", action))

    def addPluginToRasterMenu(self, name, action):
        self.added.append((name, action))

    def removePluginRasterMenu(self, name, action):
        self.added.remove((name, action))


def settle():
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QCoreApplication.processEvents()
    gc.collect()


@pytest.fixture
def iface(qgis_canvas, qgis_parent):
    from qgis.PyQt.QtWidgets import QMainWindow

    window = QMainWindow()
    yield Iface(qgis_canvas, window)
    window.deleteLater()


def test_twenty_cycles_of_load_and_unload_leave_nothing(iface, qgis_new_project):
    import miso_qgis

    project = QgsProject.instance()
    registry = QgsApplication.processingRegistry()

    def cycle():
        plugin = miso_qgis.classFactory(iface)
        plugin.initGui()
        assert registry.providerById("miso") is not None
        action = next(thing for word, thing in iface.added if word == "toolbar")
        assert action.objectName() == "misoTogglePanel"
        assert not action.icon().isNull()
        action.trigger()
        assert not plugin.dock.isHidden()
        # A drawing tool in use and an area on the map, as after an hour of work.
        plugin.dock.ui.rectangleButton.click()
        assert iface.canvas.mapTool() is not None
        plugin.unload()
        settle()

    def count():
        return (
            len(iface.canvas.scene().items()),
            len(iface.window.findChildren(QDockWidget)),
            len(iface.window.findChildren(QAction)),
            len([item for item in gc.get_objects() if type(item).__module__.startswith("miso_qgis")]),
            project.receivers(project.layersAdded),
            project.receivers(project.layersRemoved),
            iface.canvas.receivers(iface.canvas.destinationCrsChanged),
        )

    cycle()
    before = count()
    for _ in range(20):
        cycle()
    assert count() == before
    assert iface.added == []
    assert registry.providerById("miso") is None
    assert iface.canvas.mapTool() is None or isinstance(iface.canvas.mapTool(), QgsMapToolPan)


def test_the_plugin_loads_with_no_package_installed(plugins):
    """In a fresh process, where importing any pip package of the engine fails."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"onnxruntime", "rasterio", "scipy", "pyogrio", "shapely", "numba", "torch", "pandas"}:
            raise ModuleNotFoundError("refused " + name)
sys.meta_path.insert(0, Refuse())
from qgis.core import QgsApplication
application = QgsApplication([], True)
application.initQgis()
import miso_qgis
before = set(sys.modules)
plugin = miso_qgis.classFactory(None)
plugin.initProcessing()
from miso_qgis.gui import dock
algorithms = QgsApplication.processingRegistry().providerById("miso").algorithms()
can, why = next(a for a in algorithms if a.name() == "predict").canExecute()
print(len(algorithms), can, why, "subprocess" in {n for n in set(sys.modules) - before if n.startswith("miso")})
sys.stdout.flush()
import os; os._exit(0)
"""
    import os

    variables = dict(
        os.environ, PYTHONPATH=f"{plugins}:{os.environ.get('PYTHONPATH', '')}", QT_QPA_PLATFORM="offscreen"
    )
    variables["MISO_QGIS_ENGINE_ENV"] = "/nowhere"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("5 False The engine is not set up yet."), done.stdout + done.stderr


def test_arrows(plugins):
    """The side inside QGIS imports qgis, osgeo, numpy, the standard library, and of the engine the shared modules."""
    allowed = set(sys.stdlib_module_names) | {"qgis", "osgeo", "numpy", "processing"}
    for path in sources(plugins):
        folder = path.parent.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
                assert tops <= allowed, f"{path}: {tops - allowed}"
                assert not tops & {"subprocess", "multiprocessing"}, f"{path}: the engine is driven with QProcess"
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module.split(".")[0] in allowed, f"{path}: {node.module}"
                assert not node.module.startswith(("PyQt", "PySide", "qgis._")), f"{path}: {node.module}"
            elif isinstance(node, ast.ImportFrom):
                parts = (node.module or "").split(".")
                if parts[0] == "engine":
                    assert parts[1] in ENGINE_MODULES, f"{path}: {node.module}"
                if folder == "application":
                    assert parts[0] not in ("gui", "algorithms"), f"{path}: {node.module}"
                if folder == "algorithms":
                    assert parts[0] != "gui", f"{path}: {node.module}"


def test_only_gui_knows_widgets(plugins):
    for path in sources(plugins, "algorithms", "application"):
        text = path.read_text(encoding="utf-8")
        assert "QtWidgets" not in text, path
        assert "qgis.gui" not in text or path.name == "plugin.py", path


def test_enums_are_fully_scoped_for_qt_6(plugins):
    """``Qt.LeftButton`` is gone in Qt 6; ``Qt.MouseButton.LeftButton`` works in both. Looks into every method body."""
    classes = {"Qt", "Qgis", "QEvent", "QProcess", "QPainter", "QDialogButtonBox", "QStandardPaths", "QFont"}
    # Capitalised attributes that are functions, classes or signals, not members of an enum.
    names = {"QgsPalettedRasterRenderer.Class", "QgsColorRampShader.ColorRampItem", "QgsProcessingContext.LayerDetails"}
    names |= {"QgsVectorFileWriter.SaveVectorOptions", "QgsLayoutExporter.ImageExportSettings", "Qgis.QGIS_VERSION_INT"}
    names |= {"QgsProcessing.TEMPORARY_OUTPUT"}
    for path in sources(plugins):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            owner, member = node.value.id, node.attr
            is_qt = owner in classes or (owner.startswith("Qgs") and owner[3:4].isupper())
            if not is_qt or not member[:1].isupper() or f"{owner}.{member}" in names:
                continue
            scoped = isinstance(parents.get(node), ast.Attribute)
            annotation = isinstance(parents.get(node), (ast.arg, ast.AnnAssign, ast.FunctionDef, ast.Subscript))
            assert scoped or annotation, f"{path}:{node.lineno}: {owner}.{member} is not fully scoped"


def test_what_qt_6_and_reviewers_refuse_is_not_used(plugins):
    for path in sources(plugins):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert"
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("exec_", "QRegExp", "qApp"), f"{path}:{node.lineno}: {node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module == "qgis.PyQt.QtGui":
                assert "QAction" not in {alias.name for alias in node.names}, path
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}: bare except"
                assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "eval", "exec"), f"{path}:{node.lineno}: {node.func.id}"


def test_importing_the_package_does_nothing(plugins):
    tree = ast.parse((plugins / "miso_qgis" / "__init__.py").read_text(encoding="utf-8"))
    kinds = [type(node).__name__ for node in tree.body]
    assert kinds == ["Expr", "ImportFrom", "FunctionDef"]
    assert Path(plugins / "miso_qgis" / "resources" / "icon.png").is_file()
