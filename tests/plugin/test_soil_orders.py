"""A model of two tasks in the toolbox, in the terminal and in the panel; one of soil orders alone; names, styles."""

import json

import numpy as np
import pytest
from osgeo import gdal
from qgis.core import QgsProcessingContext, QgsProcessingException, QgsProcessingFeedback, QgsProject, QgsRasterLayer
from test_algorithms import Recorder, inputs, run
from test_dock import canvas, layers, run_and_wait  # noqa: F401  # fixtures

ORDERS = ("Andisols", "Entisols", "Gelisols", "Histosols", "Inceptisols", "Mollisols", "Spodosols")
PREDICTED = ("DOMINANT_MISO", "DOMINANT_RF", "SOIL_ORDER_MISO", "SOIL_ORDER_RF")


def bands(path):
    return gdal.Open(str(path)).ReadAsArray()


def outputs_in(folder, names):
    return {f"OUTPUT_{name}": str(folder / f"{name.lower()}.tif") for name in names}


def check_maps(folder):
    """Seven probabilities that sum to 1, their largest as code 1 to 7, the same pixels empty everywhere."""
    for model in ("miso", "rf"):
        probabilities, codes = bands(folder / f"soil_order_{model}.tif"), bands(folder / f"dominant_{model}.tif")
        assert probabilities.shape == (7, *codes.shape)
        valid = codes != 255
        assert (probabilities[:, ~valid] == -9999).all()
        np.testing.assert_allclose(probabilities[:, valid].sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(codes[valid], probabilities.argmax(axis=0)[valid] + 1)
        assert len(set(np.unique(codes[valid]))) >= 5
        dataset = gdal.Open(str(folder / f"soil_order_{model}.tif"))
        assert tuple(dataset.GetRasterBand(n).GetDescription() for n in range(1, 8)) == ORDERS


class TestToolbox:
    def test_both_tasks_in_one_run(self, provider, engine, valley, two_task_model, tmp_path):
        names = [*PREDICTED, "NSP_MISO", "NSP_RF", "DISAGREEMENT"]
        summary = tmp_path / "summary.json"
        feedback = Warnings()
        parameters = {**inputs(valley, two_task_model), **outputs_in(tmp_path, names), "OUTPUT_SUMMARY": str(summary)}
        result = run("predict", parameters, feedback=feedback)
        assert set(result) == {f"OUTPUT_{name}" for name in [*names, "SUMMARY"]}
        check_maps(tmp_path)
        about = json.loads(summary.read_text(encoding="utf-8"))["classes"]["soil_order"]
        assert about["hectares_most_probable"]["miso"]["Gelisols"] > 0
        assert "simulated data" in " ".join(feedback.warnings)

    def test_layers_are_loaded_with_style_and_a_mark_that_they_are_simulated(
        self, provider, engine, valley, two_task_model, qgis_new_project
    ):
        import processing

        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        wanted = ("OUTPUT_DOMINANT_MISO", "OUTPUT_SOIL_ORDER_RF", "OUTPUT_NSP_RF")
        parameters = {**inputs(valley, two_task_model), **dict.fromkeys(wanted, "TEMPORARY_OUTPUT")}
        processing.runAndLoadResults("miso:predict", parameters, feedback=QgsProcessingFeedback(), context=context)
        loaded = {layer.name(): layer for layer in QgsProject.instance().mapLayers().values()}
        assert set(loaded) == {
            "Simulated: Most probable soil order (MISO)",
            "Simulated: Soil order probabilities (Random Forest), Gelisols shown",
            "Simulated: Permafrost probability (Random Forest)",
        }
        dominant = loaded["Simulated: Most probable soil order (MISO)"].renderer()
        assert [(item.value, item.label) for item in dominant.classes()] == list(enumerate(ORDERS, 1))
        shown = loaded["Simulated: Soil order probabilities (Random Forest), Gelisols shown"].renderer()
        assert shown.usesBands() == [3]
        assert shown.classificationMax() == 1

    def test_a_style_lies_beside_each_result_also_in_percent(self, provider, engine, valley, two_task_model, tmp_path):
        parameters = {**inputs(valley, two_task_model), "MODELS": [0], "PERCENT": True}
        run("predict", {**parameters, **outputs_in(tmp_path, ("DOMINANT_MISO", "SOIL_ORDER_MISO"))})
        assert bands(tmp_path / "soil_order_miso.tif").dtype == np.uint8
        probabilities = QgsRasterLayer(str(tmp_path / "soil_order_miso.tif"), "x")
        assert probabilities.renderer().usesBands() == [3]
        assert probabilities.renderer().classificationMax() == 100
        dominant = QgsRasterLayer(str(tmp_path / "dominant_miso.tif"), "x")
        assert [item.label for item in dominant.renderer().classes()] == list(ORDERS)

    def test_a_model_of_permafrost_alone_leaves_the_orders_out(self, provider, engine, valley, tiny_model, tmp_path):
        outputs = outputs_in(tmp_path, ("DOMINANT_MISO", "NSP_MISO"))
        assert set(run("predict", {**inputs(valley, tiny_model), **outputs})) == {"OUTPUT_NSP_MISO"}
        assert not (tmp_path / "dominant_miso.tif").exists()

    def test_a_model_of_soil_orders_alone(self, provider, engine, valley, order_model, tmp_path):
        outputs = outputs_in(tmp_path, ("DOMINANT_MISO", "NSP_MISO", "DISAGREEMENT"))
        result = run("predict", {**inputs(valley, order_model), "MODELS": [0], **outputs})
        assert set(result) == {"OUTPUT_DOMINANT_MISO"}
        assert set(np.unique(bands(tmp_path / "dominant_miso.tif"))) <= {1, 2, 3, 4, 5, 6, 7, 255}

    def test_what_a_model_could_give_is_named_when_nothing_of_it_is_asked_for(
        self, provider, engine, valley, order_model, tmp_path
    ):
        feedback = Recorder()
        parameters = {**inputs(valley, order_model), "MODELS": [0], **outputs_in(tmp_path, ("NSP_MISO",))}
        with pytest.raises(QgsProcessingException) as raised:
            run("predict", parameters, feedback=feedback)
        text = "\n".join([*feedback.errors, str(raised.value)])
        assert "Choose at least one of OUTPUT_DOMINANT_MISO, OUTPUT_SOIL_ORDER_MISO" in text

    def test_a_forest_is_missed_in_words(self, provider, engine, valley, order_model):
        feedback = Recorder()
        with pytest.raises(QgsProcessingException) as raised:
            run("predict", {**inputs(valley, order_model), "OUTPUT_DOMINANT_RF": "TEMPORARY_OUTPUT"}, feedback=feedback)
        assert "has no Random Forest" in "\n".join([*feedback.errors, str(raised.value)])

    def test_a_class_map_cannot_be_compared_as_probability(self, provider, engine, valley, two_task_model, tmp_path):
        run("predict", {**inputs(valley, two_task_model), **outputs_in(tmp_path, ("DOMINANT_MISO", "DOMINANT_RF"))})
        feedback = Recorder()
        maps = {"MISO": str(tmp_path / "dominant_miso.tif"), "RF": str(tmp_path / "dominant_rf.tif")}
        with pytest.raises(QgsProcessingException) as raised:
            run("compare", {**maps, "OUTPUT_DISAGREEMENT": str(tmp_path / "d.tif")}, feedback=feedback)
        assert "colour table" in "\n".join([*feedback.errors, str(raised.value)])


class Warnings(QgsProcessingFeedback):
    """Remembers warnings."""

    def __init__(self):
        super().__init__(False)
        self.warnings = []

    def pushWarning(self, warning):
        self.warnings.append(warning)


class TestTerminal:
    def test_a_two_task_model_folder_runs_through_qgis_process(self, qgis_process, valley, two_task_model, tmp_path):
        words = [f"MODEL={two_task_model}", f"DEM={valley / 'dem.tif'}", f"LAYERS={valley / 'nlcd.tif'}"]
        words += [f"{key}={path}" for key, path in outputs_in(tmp_path, [*PREDICTED, "NSP_MISO"]).items()]
        done = qgis_process("run", "miso:predict", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        check_maps(tmp_path)
        assert bands(tmp_path / "nsp_miso.tif").ndim == 2
        assert (tmp_path / "dominant_rf.qml").is_file()


class TestPanel:
    @pytest.fixture
    def dock_of(self, canvas, layers, engine, tmp_path, monkeypatch):  # noqa: F811
        from miso_qgis.gui import dock as module

        opened = []

        def open_with(model):
            monkeypatch.setattr(module, "bundled_models", lambda: [model])
            dock = module.MisoDock(canvas)
            dock.ui.outputWidget.setFilePath(str(tmp_path / "results"))
            opened.append(dock)
            return dock

        yield open_with
        for dock in opened:
            dock.close_down()
            dock.deleteLater()

    def test_a_run_adds_the_orders_beside_permafrost_and_marks_what_is_simulated(self, dock_of, two_task_model):
        dock = dock_of(two_task_model)
        assert "simulated data" in dock.ui.modelLabel.text()
        run_and_wait(dock)
        assert dock.ui.messageLabel.text().startswith("Done."), dock.ui.messageLabel.text()
        group = QgsProject.instance().layerTreeRoot().children()[0]
        assert group.name().startswith("Simulated: MISO – ")
        assert [node.layer().name() for node in group.findLayers()] == [
            "Simulated: MISO and RF at threshold 0.5",
            "Simulated: Permafrost probability (MISO)",
            "Simulated: Permafrost probability (Random Forest)",
            "Simulated: Difference of probability (MISO - RF)",
            "Simulated: Most probable soil order (MISO)",
            "Simulated: Most probable soil order (Random Forest)",
            "Simulated: Soil order probabilities (MISO), Gelisols shown",
            "Simulated: Soil order probabilities (Random Forest), Gelisols shown",
        ]
        visible = [node.layer().name() for node in group.findLayers() if node.itemVisibilityChecked()]
        assert visible == ["Simulated: Permafrost probability (MISO)"]
        assert dock.thresholds["miso"].layer.name() == "Simulated: Permafrost probability (MISO)"
        dock.ui.misoSpin.setValue(0.6)
        dock.ui.compareButton.click()
        from test_dock import wait_until

        wait_until(lambda: not dock.presenter.is_running)
        assert group.findLayers()[0].layer().name() == "Simulated: MISO and RF at threshold 0.6 / 0.5"

    def test_with_orders_alone_the_most_probable_one_is_shown_and_no_threshold_is_offered(self, dock_of, order_model):
        dock = dock_of(order_model)
        assert "has no Random Forest" in dock.ui.inputsLabel.text()
        dock.ui.modelsCombo.setCurrentText("MISO")
        run_and_wait(dock)
        group = QgsProject.instance().layerTreeRoot().children()[0]
        shown = [(node.layer().name(), node.itemVisibilityChecked()) for node in group.findLayers()]
        assert shown == [
            ("Most probable soil order (MISO)", True),
            ("Soil order probabilities (MISO), Gelisols shown", False),
        ]
        assert dock.thresholds["miso"].layer is None
        assert not dock.ui.compareButton.isEnabled()
