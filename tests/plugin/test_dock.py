"""The panel as a user drives it: choose, draw, run, look, move the threshold, cancel."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal
from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsMapCanvas
from qgis.PyQt.QtCore import QPoint, Qt
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QApplication

from miso_qgis.application.inputs import sources_of_choice

LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
NONE = Qt.KeyboardModifier.NoModifier


def wait_until(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.01)


@pytest.fixture
def canvas(qgis_app):
    canvas = QgsMapCanvas()
    canvas.resize(400, 300)
    canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:3338"))
    canvas.setExtent(QgsRectangle(300_000, 1_668_000, 302_650, 1_670_000))
    canvas.show()
    yield canvas
    canvas.hide()
    canvas.deleteLater()


@pytest.fixture
def layers(qgis_new_project, valley):
    """The valley in the project, under names as users give them."""
    project = QgsProject.instance()
    dem = QgsRasterLayer(str(valley / "dem.tif"), "my DEM 50 m")
    nlcd = QgsRasterLayer(str(valley / "nlcd.tif"), "LandCover NLCD2016")
    project.addMapLayers([dem, nlcd])
    yield {"dem": dem, "nlcd": nlcd}
    project.removeAllMapLayers()


@pytest.fixture
def dock(canvas, layers, engine, tiny_model, tmp_path, monkeypatch):
    from miso_qgis.gui import dock as module

    monkeypatch.setattr(module, "bundled_models", lambda: [tiny_model])
    dock = module.MisoDock(canvas)
    dock.ui.outputWidget.setFilePath(str(tmp_path / "results"))
    dock.show()
    yield dock
    dock.close_down()
    dock.hide()
    dock.deleteLater()


def position(canvas, x, y):
    point = canvas.getCoordinateTransform().transform(QgsPointXY(x, y))
    return QPoint(round(point.x()), round(point.y()))


def drag(canvas, start, end):
    viewport = canvas.viewport()
    QTest.mousePress(viewport, LEFT, NONE, position(canvas, *start))
    QTest.mouseMove(viewport, position(canvas, *end))
    QTest.mouseRelease(viewport, LEFT, NONE, position(canvas, *end))


def draw_rectangle(dock, canvas, start=(300_600, 1_669_600), end=(301_400, 1_669_000)):
    QTest.mouseClick(dock.ui.rectangleButton, LEFT)
    drag(canvas, start, end)


def run_and_wait(dock):
    assert dock.ui.runButton.isEnabled(), dock.ui.inputsLabel.text()
    dock.ui.runButton.click()
    wait_until(lambda: not dock.presenter.is_running)


class TestInputs:
    def test_layers_are_chosen_by_their_names(self, dock, layers):
        chosen = {name: combo.currentLayer() for name, combo in dock._input_combos.items()}
        assert chosen == layers
        assert dock.ui.inputsLabel.text() == "Ready: every input has a layer."
        assert dock.ui.runButton.isEnabled()

    @pytest.mark.parametrize("described", [True, False])
    def test_bands_of_one_file_are_inputs_by_their_descriptions(
        self, dock, layers, valley, tiny_model, tmp_path, described
    ):
        path = str(tmp_path / "stack.tif")
        gdal.BuildVRT(path + ".vrt", [str(valley / "nlcd.tif"), str(valley / "dem.tif")], separate=True)
        stack = gdal.Translate(path, path + ".vrt", outputType=gdal.GDT_Float32)
        for number, name in enumerate(("nlcd", "dem"), start=1):
            stack.GetRasterBand(number).SetDescription(name if described else "")
        stack = None
        QgsProject.instance().removeAllMapLayers()
        layer = QgsRasterLayer(path, "stack")
        QgsProject.instance().addMapLayer(layer)
        for combo in dock._input_combos.values():
            assert combo.currentLayer() == (layer if described else None)
            combo.setLayer(layer)
        text = dock.ui.inputsLabel.text()
        assert dock.ui.runButton.isEnabled() == described, text
        if described:
            dock.ui.areaCombo.setCurrentIndex(0)
            inputs = dock.request().layers
            sources, problems = sources_of_choice(dock.request().manifest.inputs, inputs)
            assert {name: source.band for name, source in sources.items()} == {"dem": 2, "nlcd": 1}
            assert problems == []
        else:
            assert '"stack" band 1 is chosen for' in text
            assert "Describe the bands" in text

    def test_problems_are_listed_with_remedies_and_block_the_run(self, dock, layers):
        QgsProject.instance().removeMapLayer(layers["nlcd"])
        wms = QgsRasterLayer("type=xyz&url=https://example.org/{x}/{y}/{z}.png", "tiles", "wms")
        QgsProject.instance().addMapLayer(wms)
        dock._input_combos["dem"].setLayer(wms)
        text = dock.ui.inputsLabel.text()
        assert "Land cover: no layer is chosen. Choose one." in text
        assert 'Layer "tiles"' in text
        assert "Export it" in text
        assert not dock.ui.runButton.isEnabled()

    def test_a_layer_added_later_is_found(self, dock, layers, valley):
        QgsProject.instance().removeMapLayer(layers["nlcd"])
        wait_until(lambda: not dock.ui.runButton.isEnabled(), 5)
        QgsProject.instance().addMapLayer(QgsRasterLayer(str(valley / "nlcd.tif"), "nlcd again"))
        wait_until(dock.ui.runButton.isEnabled, 5)
        assert dock._input_combos["nlcd"].currentLayer().name() == "nlcd again"

    def test_without_the_engine_the_panel_says_so(self, dock, monkeypatch, tmp_path):
        monkeypatch.setenv("MISO_QGIS_ENGINE_ENV", str(tmp_path / "none"))
        dock._check()
        assert "not set up" in dock.ui.engineLabel.text()
        assert dock.ui.engineButton.text() == "Set Up Engine…"
        assert not dock.ui.runButton.isEnabled()


class TestDrawing:
    def test_a_rectangle(self, dock, canvas):
        draw_rectangle(dock, canvas)
        box = dock._drawn.boundingBox()
        pixel = canvas.mapUnitsPerPixel()
        assert box.xMinimum() == pytest.approx(300_600, abs=2 * pixel)
        assert box.yMaximum() == pytest.approx(1_669_600, abs=2 * pixel)
        assert dock.ui.areaCombo.currentData() == "drawn"
        assert "km²" in dock.ui.areaLabel.text()
        assert "ha" in dock.ui.areaLabel.text()
        assert dock._band.asGeometry().area() == pytest.approx(800 * 600, rel=0.05)
        assert canvas.mapTool() is None

    def test_a_polygon_by_clicks_with_one_taken_back(self, dock, canvas):
        QTest.mouseClick(dock.ui.polygonButton, LEFT)
        viewport = canvas.viewport()
        for corner in ((300_600, 1_669_600), (301_600, 1_669_600), (302_000, 1_668_200)):
            QTest.mouseClick(viewport, LEFT, NONE, position(canvas, *corner))
        QTest.keyClick(canvas, Qt.Key.Key_Backspace)
        QTest.mouseClick(viewport, LEFT, NONE, position(canvas, 301_600, 1_669_000))
        QTest.mouseClick(viewport, RIGHT, NONE, position(canvas, 301_600, 1_669_000))
        assert dock._drawn.area() == pytest.approx(1000 * 600 / 2, rel=0.05)

    def test_two_corners_are_no_polygon_and_escape_starts_again(self, dock, canvas):
        QTest.mouseClick(dock.ui.polygonButton, LEFT)
        for corner in ((300_600, 1_669_600), (301_600, 1_669_600)):
            QTest.mouseClick(canvas.viewport(), LEFT, NONE, position(canvas, *corner))
        QTest.mouseClick(canvas.viewport(), RIGHT, NONE, position(canvas, 300_600, 1_669_600))
        assert dock._drawn is None
        QTest.keyClick(canvas, Qt.Key.Key_Escape)
        assert dock._tools[dock.ui.polygonButton]._points == []

    def test_a_click_without_a_drag_draws_nothing(self, dock, canvas):
        draw_rectangle(dock, canvas, (300_600, 1_669_600), (300_600, 1_669_600))
        assert dock._drawn is None

    def test_a_figure_of_eight_becomes_a_valid_area(self, dock, canvas):
        QTest.mouseClick(dock.ui.polygonButton, LEFT)
        for corner in ((300_600, 1_669_600), (301_600, 1_669_000), (301_600, 1_669_600), (300_600, 1_669_000)):
            QTest.mouseClick(canvas.viewport(), LEFT, NONE, position(canvas, *corner))
        QTest.keyClick(canvas, Qt.Key.Key_Return)
        assert dock._drawn.isGeosValid()
        assert dock._drawn.area() > 100_000

    def test_the_drawing_follows_a_change_of_the_maps_crs(self, dock, canvas):
        draw_rectangle(dock, canvas)
        size = dock.ui.areaLabel.text()
        canvas.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
        box = dock._band.asGeometry().boundingBox()
        assert -180 < box.xMinimum() < -140
        assert 60 < box.yMinimum() < 70
        assert dock.ui.areaLabel.text() == size

    def test_a_drawn_area_is_asked_for_before_the_run(self, dock):
        dock.ui.areaCombo.setCurrentIndex(dock.ui.areaCombo.findData("drawn"))
        assert not dock.ui.runButton.isEnabled()
        assert "Draw a rectangle or a polygon" in dock.ui.areaLabel.text()

    def test_the_area_of_a_layer_is_measured(self, dock):
        layer = QgsVectorLayer("Polygon?crs=EPSG:3338", "study area", "memory")
        feature = QgsFeature()
        feature.setGeometry(QgsGeometry.fromRect(QgsRectangle(300_500, 1_668_500, 301_500, 1_669_500)))
        layer.dataProvider().addFeatures([feature])
        QgsProject.instance().addMapLayer(layer)
        dock.ui.areaCombo.setCurrentIndex(dock.ui.areaCombo.findData("layer"))
        dock.ui.areaLayerCombo.setLayer(layer)
        # Albers keeps areas: 1 km2 on the plane is 1 km2 on the ellipsoid.
        assert dock.ui.areaLabel.text() == "1.00 km² (100 ha), about 10,000 pixels of 10 m"
        dock.ui.selectedCheck.setChecked(True)
        assert dock.ui.areaLabel.text() == "No polygon is selected."
        assert not dock.ui.runButton.isEnabled()


class TestRun:
    def test_a_run_adds_a_styled_group_and_leaves_files_where_it_was_told(self, dock, canvas, tmp_path):
        draw_rectangle(dock, canvas)
        seen = []
        dock.presenter.progressed.connect(lambda percent, text: seen.append(percent))
        run_and_wait(dock)
        assert dock.ui.messageLabel.text().startswith("Done."), dock.ui.messageLabel.text()
        assert dock.ui.progressBar.value() == 100
        assert any(0 < percent <= 100 for percent in seen)
        group = QgsProject.instance().layerTreeRoot().children()[0]
        assert group.name().startswith("MISO – drawn area ")
        names = [node.layer().name() for node in group.findLayers()]
        assert names == [
            "MISO and RF at threshold 0.5",
            "Permafrost probability (MISO)",
            "Permafrost probability (Random Forest)",
            "Difference of probability (MISO - RF)",
        ]
        visible = [node.layer().name() for node in group.findLayers() if node.itemVisibilityChecked()]
        assert visible == ["Permafrost probability (MISO)"]
        (folder,) = (tmp_path / "results").iterdir()
        assert {path.name for path in folder.glob("*.tif")} >= {"nsp_probability_miso.tif", "nsp_disagreement.tif"}
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert Path(summary["area_of_interest"]) == folder / "area.gpkg"
        assert Path(summary["area_of_interest"]).is_file()
        assert (folder / "nsp_probability_miso.qml").is_file()

    def test_the_threshold_restyles_at_once_without_a_new_file(self, dock, canvas, tmp_path):
        run_and_wait(dock)
        row = dock.thresholds["miso"]
        layer = row.layer
        assert layer.name() == "Permafrost probability (MISO)"
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.tif")}
        first = layer.renderer().shader().rasterShaderFunction().colorRampItemList()
        assert [item.value for item in first] == [0, 0.2, 0.4, 0.6, 0.8, 1]
        dock.ui.misoSlider.setValue(42)
        items = layer.renderer().shader().rasterShaderFunction().colorRampItemList()
        assert [item.value for item in items][2] == pytest.approx(0.42)
        assert dock.ui.misoSpin.value() == 0.42
        function = layer.renderer().shader().rasterShaderFunction()
        below, above = function.shade(0.4199)[1:4], function.shade(0.4201)[1:4]
        assert sum(below) - sum(above) > 200, "the step at the threshold must be visible"
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.tif")} == files
        # 0.42 is an elevation of 420 m in the tiny model: count it independently.
        values = gdal.Open(layer.source()).ReadAsArray()
        hectares = (values >= np.float32(0.42)).sum() * 0.01
        assert dock.ui.misoAreaLabel.text().startswith(f"{hectares:,.0f} ha")
        started = time.monotonic()
        for value in range(1, 100):
            dock.ui.misoSlider.setValue(value)
        assert time.monotonic() - started < 3
        dock.ui.rampButton.click()
        assert layer.renderer().classificationMax() == 1
        assert len(layer.renderer().shader().rasterShaderFunction().colorRampItemList()) == 6

    def test_other_thresholds_are_compared_into_a_new_layer_that_names_them(self, dock, canvas, tmp_path):
        run_and_wait(dock)
        dock.ui.misoSpin.setValue(0.45)
        dock.ui.rfSpin.setValue(0.46)
        dock.ui.compareButton.click()
        wait_until(lambda: not dock.presenter.is_running)
        group = QgsProject.instance().layerTreeRoot().children()[0]
        layer = group.findLayers()[0].layer()
        assert layer.name() == "MISO and RF at threshold 0.45 / 0.46"
        miso, rf = (gdal.Open(row.layer.source()).ReadAsArray() for row in dock.thresholds.values())
        expected = np.where(miso == -9999, 255, 2 * (miso >= 0.45) + (rf >= 0.46))
        assert np.array_equal(gdal.Open(layer.source()).ReadAsArray(), expected)

    def test_cancel_stops_the_child_within_two_seconds_and_leaves_nothing(
        self, dock, canvas, layers, wide_valley, tmp_path
    ):
        wide = [QgsRasterLayer(str(wide_valley / f"{name}.tif"), name) for name in ("dem", "nlcd")]
        QgsProject.instance().addMapLayers(wide)
        draw_rectangle(dock, canvas, (300_100, 1_669_900), (302_500, 1_668_100))
        dock.ui.areaCombo.setCurrentIndex(dock.ui.areaCombo.findData("whole"))
        for layer in wide:
            dock._input_combos[layer.name()].setLayer(layer)
        dock.ui.runButton.click()
        wait_until(lambda: dock.presenter.process_id > 0)
        process_id = dock.presenter.process_id
        wait_until(lambda: dock.ui.messageLabel.text().startswith("Predicting"))
        assert not dock.ui.runButton.isEnabled()
        started = time.monotonic()
        QTest.mouseClick(dock.ui.cancelButton, LEFT)
        wait_until(lambda: not dock.presenter.is_running)
        assert time.monotonic() - started < 2
        assert not Path(f"/proc/{process_id}").exists()
        assert dock.ui.messageLabel.text() == "Cancelled. Nothing was written."
        assert not list((tmp_path / "results").rglob("*"))
        assert not [layer for layer in QgsProject.instance().mapLayers().values() if "probability" in layer.name()]
        for name, layer in layers.items():
            dock._input_combos[name].setLayer(layer)
        dock.ui.areaCombo.setCurrentIndex(dock.ui.areaCombo.findData("drawn"))
        run_and_wait(dock)
        assert dock.ui.messageLabel.text().startswith("Done.")

    def test_an_engine_that_dies_leaves_the_panel_alive_with_the_cause(self, dock, monkeypatch):
        import sys

        from miso_qgis.application.engine_client import EngineCommand

        fake = str(Path(__file__).parent / "fake_engine.py")
        python = f"{sys.prefix}/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        dock.presenter._command = lambda: EngineCommand(python, ("-I", "-u", fake, "killed"))
        run_and_wait(dock)
        assert "memory ran out" in dock.ui.messageLabel.text()
        assert dock.ui.runButton.isEnabled()

    def test_a_removed_result_leaves_the_threshold_rows_alive(self, dock, canvas):
        run_and_wait(dock)
        QgsProject.instance().removeMapLayer(dock.thresholds["miso"].layer)
        assert dock.thresholds["miso"].layer is None
        dock.ui.misoSlider.setValue(70)
        assert not dock.ui.compareButton.isEnabled()


class TestEngineDialog:
    def test_it_shows_the_plan_before_it_offers_to_start(self, provider, qgis_app, monkeypatch, tmp_path):
        from miso_qgis.gui.engine_dialog import EngineDialog

        monkeypatch.setenv("MISO_QGIS_ENGINE_ENV", str(tmp_path / "engine"))
        dialog = EngineDialog()
        wait_until(lambda: dialog._task is None)
        text = dialog.text.toPlainText()
        assert str(tmp_path / "engine") in text
        assert "onnxruntime" in text
        assert dialog.set_up_button.isEnabled()
        assert not (tmp_path / "engine").exists()
        dialog.folder.setChecked(True)
        assert not dialog.set_up_button.isEnabled()
        (tmp_path / "wheels").mkdir()
        dialog.wheels.setFilePath(str(tmp_path / "wheels"))
        wait_until(lambda: dialog._task is None)
        assert "no wheel of" in dialog.text.toPlainText()
        assert not dialog.set_up_button.isEnabled()
        dialog.deleteLater()
