"""Runs inside the QGIS desktop (``qgis --code``): uses the panel as a person would and takes a picture of the screen.

Settings come from the environment: MISO_SHOT_DEM, MISO_SHOT_NLCD, MISO_SHOT_MODEL (or empty for the bundled one),
MISO_SHOT_OUT (a folder). Writes ``screen.png`` and ``report.json`` there; an exception goes into the report.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsHillshadeRenderer,
    QgsPointXY,
    QgsProject,
    QgsRasterDataProvider,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QPoint, Qt, QTimer
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QApplication, QDockWidget
from qgis.utils import iface, plugins

OUT = Path(os.environ["MISO_SHOT_OUT"])
report = {"version": Qgis.QGIS_VERSION}


def wait_until(condition, what, limit_s=150):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}")
        QApplication.processEvents()
        time.sleep(0.02)


def drive():
    window, canvas, project = iface.mainWindow(), iface.mapCanvas(), QgsProject.instance()
    window.showMaximized()
    dock = plugins["miso_qgis"].dock
    for other in window.findChildren(QDockWidget):
        if other.isVisible() and other.objectName() not in ("Layers", "MisoPanel"):
            other.hide()
    albers = QgsCoordinateReferenceSystem("EPSG:3338")
    project.setCrs(albers)
    dem = QgsRasterLayer(os.environ["MISO_SHOT_DEM"], "DEM 50 m")
    nlcd = QgsRasterLayer(os.environ["MISO_SHOT_NLCD"], "NLCD 2001 land cover")
    project.addMapLayers([dem, nlcd])
    renderer = QgsHillshadeRenderer(dem.dataProvider(), 1, 315, 45)
    renderer.setZFactor(2)
    dem.setRenderer(renderer)
    dem.dataProvider().enableProviderResampling(True)
    dem.dataProvider().setZoomedInResamplingMethod(QgsRasterDataProvider.ResamplingMethod.Cubic)
    dem.setResamplingStage(Qgis.RasterResamplingStage.Provider)
    dem.brightnessFilter().setBrightness(40)
    for layer in (dem, nlcd):
        project.layerTreeRoot().findLayer(layer.id()).setExpanded(False)
    project.layerTreeRoot().findLayer(nlcd.id()).setItemVisibilityChecked(False)
    dock.toggleViewAction().trigger()
    model = os.environ.get("MISO_SHOT_MODEL")
    if model:
        dock.ui.modelCombo.addItem("tiny", model)
        dock.ui.modelCombo.setCurrentIndex(dock.ui.modelCombo.count() - 1)
    extent = QgsCoordinateTransform(dem.crs(), albers, project).transformBoundingBox(dem.extent())
    QTest.qWait(1500)  # QGIS zooms to the first layer by itself, in the CRS that it had before
    layers_panel = window.findChild(QDockWidget, "Layers")
    window.resizeDocks([layers_panel, dock], [340, 420], Qt.Orientation.Horizontal)
    QTest.qWait(300)
    project.setCrs(albers)
    canvas.setExtent(extent)
    canvas.refresh()
    QTest.qWait(500)
    canvas.waitWhileRendering()
    # A polygon, as a share of the extent: corners, then a right click.
    dock.ui.polygonButton.click()
    shares = ((0.30, 0.28), (0.55, 0.22), (0.78, 0.45), (0.74, 0.72), (0.52, 0.80), (0.36, 0.60))
    for number, (x, y) in enumerate((*shares, shares[-1])):
        point = QgsPointXY(extent.xMinimum() + x * extent.width(), extent.yMinimum() + y * extent.height())
        point = canvas.getCoordinateTransform().transform(point)
        button = Qt.MouseButton.LeftButton if number < len(shares) else Qt.MouseButton.RightButton
        place = QPoint(round(point.x()), round(point.y()))
        QTest.mouseClick(canvas.viewport(), button, Qt.KeyboardModifier.NoModifier, place)
    report["area"] = dock.ui.areaLabel.text()
    dock.ui.outputWidget.setFilePath(str(OUT / "results"))
    if not dock.ui.runButton.isEnabled():
        raise RuntimeError(f"the run button is off: {dock.ui.inputsLabel.text()} {dock.ui.engineLabel.text()}")
    QTest.mouseClick(dock.ui.runButton, Qt.MouseButton.LeftButton)
    wait_until(lambda: not dock.presenter.is_running, "the end of the run")
    report["message"] = dock.ui.messageLabel.text()
    for threshold in (0.6, 0.5):  # moved there and back, as a person would
        dock.ui.misoSpin.setValue(threshold)
    dock.ui.outputWidget.setFilePath("~/permafrost")  # the test's own folder would mean nothing to a reader
    iface.messageBar().clearWidgets()
    QTest.qWait(1500)
    canvas.waitWhileRendering()
    QTest.qWait(500)
    report["metres_per_screen_px"] = canvas.mapUnitsPerPixel()
    # Where the map is on the screen: without a window manager the window does not fill it.
    corner, size = canvas.viewport().mapToGlobal(QPoint(0, 0)), canvas.viewport().size()
    report["map_box"] = [corner.x(), corner.y(), corner.x() + size.width(), corner.y() + size.height()]
    report["layers"] = [layer.name() for layer in project.mapLayers().values()]
    QApplication.primaryScreen().grabWindow(0).save(str(OUT / "screen.png"))
    dock.ui.grab().save(str(OUT / "panel.png"))


def main():
    try:
        drive()
    except Exception:  # the outermost edge: the test reads what happened
        report["error"] = traceback.format_exc()
        QApplication.primaryScreen().grabWindow(0).save(str(OUT / "screen.png"))
    (OUT / "report.json").write_text(json.dumps(report), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # a normal quit would ask whether to save the project


QTimer.singleShot(2000, main)
