"""The algorithms from end to end: toolbox, models, batch and qgis_process give what the engine's command line gives."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsFeature,
    QgsGeometry,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeatureSourceDefinition,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterRasterLayer,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)

IDS = ["miso:compare", "miso:map", "miso:predict", "miso:setupengine", "miso:terrain"]
PARAMETERS = {
    "setupengine": ["SOURCE", "WHEELS", "GPU", "DRY_RUN"],
    "terrain": ["DEM", "LOAD", "OUTPUT"],
    "predict": [
        *("MODEL", "DEM", "LAYERS", "AOI", "MODELS", "THRESHOLD", "CRS", "RESOLUTION", "PERCENT", "PROVIDER"),
        *("OUTPUT_NSP_MISO", "OUTPUT_NSP_RF", "OUTPUT_DISAGREEMENT"),
        *("OUTPUT_DOMINANT_MISO", "OUTPUT_DOMINANT_RF", "OUTPUT_SOIL_ORDER_MISO", "OUTPUT_SOIL_ORDER_RF"),
        "OUTPUT_SUMMARY",
    ],
    "compare": [
        *("MISO", "RF", "THRESHOLD_MISO", "THRESHOLD_RF"),
        *("OUTPUT_DISAGREEMENT", "OUTPUT_DIFFERENCE", "OUTPUT_SUMMARY"),
    ],
}
# A part of the valley with its hole, in the valley's CRS.
AREA = "POLYGON((300600 1669900, 302400 1669900, 302400 1668900, 301500 1668500, 300600 1668900, 300600 1669900))"


def pixels(path):
    dataset = gdal.Open(str(path))
    return dataset.GetRasterBand(1).ReadAsArray()


def run(name, parameters, feedback=None, context=None):
    import processing

    return processing.run(f"miso:{name}", parameters, feedback=feedback or QgsProcessingFeedback(), context=context)


def area_layer(crs="EPSG:3338", *more):
    layer = QgsVectorLayer(f"Polygon?crs={crs}", "area", "memory")
    features = []
    for wkt in (AREA, *more):
        feature = QgsFeature()
        geometry = QgsGeometry.fromWkt(wkt)
        if crs != "EPSG:3338":
            from qgis.core import QgsCoordinateTransform

            source, target = QgsCoordinateReferenceSystem("EPSG:3338"), QgsCoordinateReferenceSystem(crs)
            geometry = geometry.densifyByDistance(20)
            geometry.transform(QgsCoordinateTransform(source, target, QgsProject.instance()))
        feature.setGeometry(geometry)
        features.append(feature)
    layer.dataProvider().addFeatures(features)
    return layer


@pytest.fixture(scope="module")
def by_command_line(engine_python, tiny_model, valley, tmp_path_factory):
    """Results of the engine's own command line, without QGIS. A function of further arguments."""

    def predict(*arguments):
        folder = tmp_path_factory.mktemp("cli")
        repository = Path(__file__).resolve().parents[2]
        command = [engine_python, "-m", "miso_qgis.engine", "predict", "--model", tiny_model]
        command += [
            "--input",
            f"dem={valley / 'dem.tif'}",
            "--input",
            f"nlcd={valley / 'nlcd.tif'}",
            "--output",
            folder,
        ]
        environment = dict(os.environ, PYTHONPATH=str(repository))
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return folder

    return predict


def engines_of(process_id):
    """Process ids of the engines that a process has started."""
    found = []
    tasks = Path(f"/proc/{process_id}/task")
    for children in tasks.glob("*/children") if tasks.exists() else ():
        for child in children.read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if command.exists() and b"launch.py" in command.read_bytes():
                found.append(int(child))
    return found


def wait_until(condition, limit_s):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def inputs(valley, tiny_model):
    return {"MODEL": str(tiny_model), "DEM": str(valley / "dem.tif"), "LAYERS": [str(valley / "nlcd.tif")]}


class TestDeclaration:
    def test_the_provider_offers_the_algorithms_of_the_contract(self, provider):
        assert sorted(algorithm.id() for algorithm in provider.algorithms()) == IDS

    @pytest.mark.parametrize("name", list(PARAMETERS))
    def test_parameters_have_their_names_and_each_a_help(self, provider, name):
        algorithm = QgsApplication.processingRegistry().algorithmById(f"miso:{name}")
        parameters = algorithm.parameterDefinitions()
        assert [parameter.name() for parameter in parameters] == PARAMETERS[name]
        assert all(len(parameter.help()) > 10 for parameter in parameters)

    def test_help_is_plain_text_without_a_desktop(self, provider):
        for algorithm in provider.algorithms():
            assert "<" not in algorithm.shortHelpString()
            assert len(algorithm.shortHelpString()) > 80
            assert algorithm.icon().availableSizes() or not algorithm.icon().isNull()
            assert algorithm.flags() & QgsProcessingAlgorithm.Flag.FlagSupportsBatch

    def test_without_the_engine_algorithms_say_how_to_get_it(self, provider, monkeypatch, tmp_path):
        monkeypatch.setenv("MISO_QGIS_ENGINE_ENV", str(tmp_path))
        for algorithm in provider.algorithms():
            can, why = algorithm.canExecute()
            assert can == (algorithm.name() in ("setupengine", "map"))
            assert can or "miso:setupengine" in why


class TestTerrain:
    def test_seven_rasters_on_the_grid_of_the_dem(self, provider, engine, valley, tmp_path):
        result = run("terrain", {"DEM": str(valley / "dem.tif"), "OUTPUT": str(tmp_path / "t")})
        names = sorted(path.stem for path in (tmp_path / "t").glob("*.tif"))
        assert names == sorted(key.lower() for key in result if key != "OUTPUT")
        assert len(names) == 7
        for key in result.keys() - {"OUTPUT"}:
            layer = QgsRasterLayer(result[key], key)
            assert (layer.width(), layer.height()) == (53, 41)
        assert np.array_equal(pixels(result["ELEVATION"]), pixels(valley / "dem.tif"))
        assert (pixels(result["SLOPE"])[5:8, 40:44] == -9999).all()


class TestPredict:
    def test_the_toolbox_gives_what_the_command_line_gives(
        self, provider, engine, valley, tiny_model, by_command_line, tmp_path
    ):
        expected = by_command_line("--threshold", "0.4")
        outputs = {
            "OUTPUT_NSP_MISO": str(tmp_path / "deeper" / "miso.tif"),
            "OUTPUT_NSP_RF": str(tmp_path / "rf.tif"),
            "OUTPUT_DISAGREEMENT": str(tmp_path / "both.tif"),
            "OUTPUT_SUMMARY": str(tmp_path / "summary.json"),
        }
        result = run("predict", {**inputs(valley, tiny_model), "THRESHOLD": 0.4, **outputs})
        assert {key: result[key] for key in outputs} == outputs
        assert np.array_equal(pixels(result["OUTPUT_NSP_MISO"]), pixels(expected / "nsp_probability_miso.tif"))
        assert np.array_equal(pixels(result["OUTPUT_NSP_RF"]), pixels(expected / "nsp_probability_rf.tif"))
        assert np.array_equal(pixels(result["OUTPUT_DISAGREEMENT"]), pixels(expected / "nsp_disagreement.tif"))
        values = pixels(result["OUTPUT_NSP_MISO"])
        assert 0.3 <= values[values != -9999].min() < values.max() <= 0.6  # the elevation in km
        assert (values == -9999).any()
        assert "pixels" in json.loads((tmp_path / "summary.json").read_text())
        assert sorted(path.name for path in tmp_path.rglob("*.tif")) == ["both.tif", "miso.tif", "rf.tif"]
        for layer in ("deeper/miso", "rf", "both"):
            assert (tmp_path / f"{layer}.qml").is_file()
        assert QgsRasterLayer(outputs["OUTPUT_DISAGREEMENT"], "x").renderer().type() == "paletted"

    @pytest.mark.parametrize("crs", ["EPSG:3338", "EPSG:4326", "EPSG:32606"])
    def test_an_area_in_any_crs_cuts_the_map(
        self, provider, engine, valley, tiny_model, by_command_line, tmp_path, crs
    ):
        from miso_qgis.application.areas import write_area

        layer = area_layer(crs)
        area = write_area((f.geometry() for f in layer.getFeatures()), layer.crs(), tmp_path / "area.gpkg")
        expected = pixels(by_command_line("--aoi", area) / "nsp_probability_miso.tif")
        output, summary = str(tmp_path / "miso.tif"), tmp_path / "summary.json"
        asked = {"AOI": layer, "MODELS": [0], "OUTPUT_NSP_MISO": output, "OUTPUT_SUMMARY": str(summary)}
        run("predict", {**inputs(valley, tiny_model), **asked})
        found = pixels(output)
        assert np.array_equal(found, expected)
        # The file that the engine read was temporary; the layer's name says more.
        assert json.loads(summary.read_text())["area_of_interest"] == layer.name()
        # Pixels of 100 m2; the hole of the DEM lies partly in the polygon.
        assert found[found != -9999].size == pytest.approx(QgsGeometry.fromWkt(AREA).area() / 100, rel=0.05)

    def test_only_the_selected_polygons_are_predicted(self, provider, engine, valley, tiny_model, tmp_path):
        far = "POLYGON((300000 1668100, 300100 1668100, 300100 1668000, 300000 1668000, 300000 1668100))"
        layer = area_layer("EPSG:3338", far)
        QgsProject.instance().addMapLayer(layer)
        layer.selectByIds([max(layer.allFeatureIds())])
        source = QgsProcessingFeatureSourceDefinition(layer.id(), selectedFeaturesOnly=True)
        output = str(tmp_path / "miso.tif")
        run("predict", {**inputs(valley, tiny_model), "AOI": source, "MODELS": [0], "OUTPUT_NSP_MISO": output})
        QgsProject.instance().removeMapLayer(layer)
        found = pixels(output)
        assert 100 <= found[found != -9999].size <= 121  # 100 m by 100 m, not aligned to the pixels

    def test_percent_has_its_own_nodata_and_style(self, provider, engine, valley, tiny_model, tmp_path):
        output = tmp_path / "miso.tif"
        run("predict", {**inputs(valley, tiny_model), "MODELS": [0], "PERCENT": True, "OUTPUT_NSP_MISO": str(output)})
        values = pixels(output)
        assert values.dtype == np.uint8
        assert 30 <= values[values != 255].min() < values[values != 255].max() <= 60
        renderer = QgsRasterLayer(str(output), "x").renderer()
        assert renderer.classificationMax() == 100

    def test_layers_are_loaded_with_name_and_style(self, provider, engine, valley, tiny_model, qgis_new_project):
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        feedback = QgsProcessingFeedback()
        parameters = {
            **inputs(valley, tiny_model),
            **dict.fromkeys(("OUTPUT_NSP_MISO", "OUTPUT_DISAGREEMENT"), QgsProcessing.TEMPORARY_OUTPUT),
        }
        import processing

        processing.runAndLoadResults("miso:predict", parameters, feedback=feedback, context=context)
        layers = {layer.name(): layer for layer in QgsProject.instance().mapLayers().values()}
        assert set(layers) == {"Permafrost probability (MISO)", "MISO and RF at threshold 0.5"}
        assert layers["Permafrost probability (MISO)"].renderer().classificationMax() == 1
        assert layers["MISO and RF at threshold 0.5"].renderer().type() == "paletted"

    def test_what_is_not_asked_for_is_not_expected(self, provider, engine, valley, tiny_model, tmp_path):
        """With MISO alone, the default outputs of the other models are left out instead of reported as missing."""
        temporary = dict.fromkeys(("OUTPUT_NSP_MISO", "OUTPUT_NSP_RF", "OUTPUT_DISAGREEMENT"), "TEMPORARY_OUTPUT")
        result = run("predict", {**inputs(valley, tiny_model), "MODELS": [0], **temporary})
        assert "OUTPUT_NSP_RF" not in result
        assert Path(result["OUTPUT_NSP_MISO"]).is_file()


class Recorder(QgsProcessingFeedback):
    """Remembers errors; cancels when the engine begins to report."""

    def __init__(self, cancel=False):
        super().__init__(False)
        self.errors, self.cancels, self.cancelled_at = [], cancel, None

    def reportError(self, error, fatalError=False):
        self.errors.append(error)

    def setProgressText(self, text):
        if self.cancels and self.cancelled_at is None and text.startswith("Predicting"):
            self.cancelled_at = time.monotonic()
            self.cancel()


class TestRefusals:
    def refused(self, name, parameters):
        feedback = Recorder()
        with pytest.raises(QgsProcessingException) as raised:
            run(name, parameters, feedback=feedback)
        text = "\n".join([*feedback.errors, str(raised.value)])
        assert "Traceback" not in text
        return text

    def test_all_problems_of_the_inputs_at_once(self, provider, engine, valley, tiny_model, tmp_path):
        gdal.GetDriverByName("MEM")
        scene = tmp_path / "scene_2016.tif"
        scene.write_bytes((valley / "nlcd.tif").read_bytes())
        dem = QgsRasterLayer("type=xyz&url=https://example.org/{x}/{y}/{z}.png", "relief service", "wms")
        QgsProject.instance().addMapLayer(dem)
        text = self.refused("predict", {"MODEL": str(tiny_model), "DEM": dem, "LAYERS": [str(scene)]})
        QgsProject.instance().removeMapLayer(dem)
        assert 'Layer "relief service"' in text
        assert "raw data" in text
        assert "Input nlcd (Land cover): no layer was recognised" in text
        assert '"scene_2016"' in text

    def test_two_layers_that_fit_equally_well(self, provider, engine, valley, tiny_model, tmp_path):
        twin = tmp_path / "other" / "nlcd.tif"
        twin.parent.mkdir()
        twin.write_bytes((valley / "nlcd.tif").read_bytes())
        layers = [str(valley / "nlcd.tif"), str(twin)]
        text = self.refused("predict", {"MODEL": str(tiny_model), "DEM": str(valley / "dem.tif"), "LAYERS": layers})
        assert "several layers fit equally well" in text

    def test_an_output_that_is_an_input(self, provider, engine, valley, tiny_model, tmp_path):
        dem = tmp_path / "dem.tif"
        dem.write_bytes((valley / "dem.tif").read_bytes())
        before = dem.read_bytes()
        parameters = {**inputs(valley, tiny_model), "DEM": str(dem), "OUTPUT_NSP_MISO": str(dem)}
        assert "it is also the input dem" in self.refused("predict", parameters)
        assert dem.read_bytes() == before

    def test_a_folder_that_is_no_model(self, provider, engine, valley, tmp_path):
        parameters = {"MODEL": str(tmp_path), "DEM": str(valley / "dem.tif"), "OUTPUT_NSP_MISO": "TEMPORARY_OUTPUT"}
        assert "manifest.json cannot be read" in self.refused("predict", parameters)

    def test_an_altered_model(self, provider, engine, valley, tiny_model, tmp_path):
        import shutil

        model = tmp_path / "model"
        shutil.copytree(tiny_model, model)
        graph = bytearray((model / "decoder.onnx").read_bytes())
        graph[len(graph) // 2] ^= 1
        (model / "decoder.onnx").write_bytes(graph)
        output = tmp_path / "miso.tif"
        text = self.refused("predict", {**inputs(valley, model), "MODELS": [0], "OUTPUT_NSP_MISO": str(output)})
        assert "decoder.onnx" in text
        assert not list(tmp_path.glob("*.tif"))

    def test_a_folder_that_cannot_be_made(self, provider, engine, valley, tiny_model, tmp_path):
        (tmp_path / "file").touch()
        parameters = {**inputs(valley, tiny_model), "OUTPUT_NSP_MISO": str(tmp_path / "file" / "miso.tif")}
        assert "it cannot be made" in self.refused("predict", parameters)

    def test_a_target_in_degrees(self, provider, engine, valley, tiny_model):
        parameters = {**inputs(valley, tiny_model), "CRS": "EPSG:4326", "OUTPUT_NSP_MISO": "TEMPORARY_OUTPUT"}
        assert "degree" in self.refused("predict", parameters)

    def test_an_empty_area(self, provider, engine, valley, tiny_model):
        layer = QgsVectorLayer("Polygon?crs=EPSG:3338", "empty", "memory")
        parameters = {**inputs(valley, tiny_model), "AOI": layer, "OUTPUT_NSP_MISO": "TEMPORARY_OUTPUT"}
        assert "it holds no polygon" in self.refused("predict", parameters)

    def test_without_the_engine(self, provider, valley, tiny_model, monkeypatch, tmp_path):
        monkeypatch.setenv("MISO_QGIS_ENGINE_ENV", str(tmp_path / "none"))
        parameters = {**inputs(valley, tiny_model), "OUTPUT_NSP_MISO": "TEMPORARY_OUTPUT"}
        assert "miso:setupengine" in self.refused("predict", parameters)

    def test_cancel_leaves_nothing(self, provider, engine, wide_valley, tiny_model, tmp_path):
        feedback = Recorder(cancel=True)
        outputs = {"OUTPUT_NSP_MISO": str(tmp_path / "miso.tif"), "OUTPUT_NSP_RF": str(tmp_path / "rf.tif")}
        with pytest.raises(QgsProcessingException):
            run("predict", {**inputs(wide_valley, tiny_model), **outputs}, feedback=feedback)
        assert feedback.cancelled_at is not None, feedback.errors
        assert time.monotonic() - feedback.cancelled_at < 2.0
        assert list(tmp_path.iterdir()) == []


class TestCompare:
    def test_classes_and_difference(self, provider, engine, valley, tiny_model, by_command_line, tmp_path):
        folder = by_command_line()
        miso, rf = folder / "nsp_probability_miso.tif", folder / "nsp_probability_rf.tif"
        outputs = {"OUTPUT_DISAGREEMENT": str(tmp_path / "d.tif"), "OUTPUT_DIFFERENCE": str(tmp_path / "s.tif")}
        parameters = {"MISO": str(miso), "RF": str(rf), "THRESHOLD_MISO": 0.45, "THRESHOLD_RF": 0.46, **outputs}
        run("compare", parameters)
        first, second = pixels(miso), pixels(rf)
        valid = (first != -9999) & (second != -9999)
        expected = np.where(valid, 2 * (first >= 0.45) + (second >= 0.46), 255)
        assert np.array_equal(pixels(tmp_path / "d.tif"), expected)
        assert {0, 1, 3, 255} <= set(np.unique(expected))
        np.testing.assert_allclose(pixels(tmp_path / "s.tif")[valid], (first - second)[valid], atol=1e-6)


class TestOtherWays:
    def test_qgis_process_gives_the_same_numbers(self, qgis_process, valley, tiny_model, by_command_line, tmp_path):
        expected = by_command_line()
        words = [f"MODEL={tiny_model}", f"DEM={valley / 'dem.tif'}", f"LAYERS={valley / 'nlcd.tif'}"]
        words += [f"OUTPUT_NSP_MISO={tmp_path / 'miso.tif'}", f"OUTPUT_NSP_RF={tmp_path / 'rf.tif'}"]
        done = qgis_process("--json", "run", "miso:predict", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert np.array_equal(pixels(tmp_path / "miso.tif"), pixels(expected / "nsp_probability_miso.tif"))
        words = [
            f"MISO={tmp_path / 'miso.tif'}",
            f"RF={tmp_path / 'rf.tif'}",
            f"OUTPUT_DISAGREEMENT={tmp_path / 'd.tif'}",
        ]
        done = qgis_process("run", "miso:compare", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert np.array_equal(pixels(tmp_path / "d.tif"), pixels(expected / "nsp_disagreement.tif"))
        words = [f"DEM={valley / 'dem.tif'}", f"OUTPUT={tmp_path / 'terrain'}"]
        done = qgis_process("run", "miso:terrain", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list((tmp_path / "terrain").glob("*.tif"))) == 7
        words = [f"MISO={tmp_path / 'miso.tif'}", f"RF={tmp_path / 'rf.tif'}", f"DISAGREEMENT={tmp_path / 'd.tif'}"]
        words += [f"DEM={valley / 'dem.tif'}", "DATA=Made up", f"OUTPUT={tmp_path / 'map.png'}"]
        done = qgis_process("run", "miso:map", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert gdal.Open(str(tmp_path / "map.png")).RasterXSize == 3000

    def test_qgis_process_fails_with_words_and_a_status(self, qgis_process, tiny_model, valley, tmp_path):
        words = [f"MODEL={tiny_model}", f"DEM={valley / 'dem.tif'}", f"OUTPUT_NSP_MISO={tmp_path / 'miso.tif'}"]
        done = qgis_process("run", "miso:predict", "--", *words)
        assert done.returncode != 0
        assert "no layer was recognised" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert not list(tmp_path.iterdir())

    def test_qgis_process_help_documents_every_parameter(self, qgis_process):
        text = qgis_process("help", "miso:predict").stdout
        assert all(f"{name}:" in text for name in PARAMETERS["predict"])
        assert "<p>" not in text

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_when_qgis_process_ends_the_engine_ends(
        self, qgis_process, engine, wide_valley, tiny_model, tmp_path, number
    ):
        words = [f"MODEL={tiny_model}", f"DEM={wide_valley / 'dem.tif'}", f"LAYERS={wide_valley / 'nlcd.tif'}"]
        words += [f"OUTPUT_NSP_MISO={tmp_path / 'miso.tif'}"]
        process = qgis_process.start("run", "miso:predict", "--", *words)
        wait_until(lambda: engines_of(process.pid), 30)
        time.sleep(1.5)
        (child,) = engines_of(process.pid)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode != 0
        wait_until(lambda: not Path(f"/proc/{child}").exists(), 3)
        assert not (tmp_path / "miso.tif").exists()
        # After SIGINT the engine cleans up; after SIGKILL too, because its input closes.
        assert list(tmp_path.iterdir()) == []

    def test_a_model_of_the_designer_runs_predict_and_compare(self, provider, engine, valley, tiny_model, tmp_path):
        model = QgsProcessingModelAlgorithm("Two steps", "tests")
        for name in ("DEM", "NLCD"):
            model.addModelParameter(QgsProcessingParameterRasterLayer(name, name), QgsProcessingModelParameter(name))
        source = QgsProcessingModelChildParameterSource
        predict = QgsProcessingModelChildAlgorithm("miso:predict")
        predict.setChildId("predict")
        predict.addParameterSources("MODEL", [source.fromStaticValue(str(tiny_model))])
        predict.addParameterSources("DEM", [source.fromModelParameter("DEM")])
        predict.addParameterSources("LAYERS", [source.fromModelParameter("NLCD")])
        model.addChildAlgorithm(predict)
        compare = QgsProcessingModelChildAlgorithm("miso:compare")
        compare.setChildId("compare")
        compare.addParameterSources("MISO", [source.fromChildOutput("predict", "OUTPUT_NSP_MISO")])
        compare.addParameterSources("RF", [source.fromChildOutput("predict", "OUTPUT_NSP_RF")])
        output = QgsProcessingModelOutput("CLASSES", "CLASSES")
        output.setChildOutputName("OUTPUT_DISAGREEMENT")
        output.setChildId("compare")
        compare.setModelOutputs({"CLASSES": output})
        model.addChildAlgorithm(compare)
        context, feedback = QgsProcessingContext(), Recorder()
        parameters = {
            "DEM": str(valley / "dem.tif"),
            "NLCD": str(valley / "nlcd.tif"),
            "compare:CLASSES": str(tmp_path / "classes.tif"),
        }
        _, good = model.run(parameters, context, feedback)
        assert good, feedback.errors
        assert set(np.unique(pixels(tmp_path / "classes.tif"))) <= {0, 1, 2, 3, 255}

    def test_batch_rows_are_independent(self, provider, engine, valley, tiny_model, tmp_path):
        """Each row of a batch is one run of one instance with its own parameters; here two rows, one after the "
        "other."""
        algorithm = QgsApplication.processingRegistry().createAlgorithmById("miso:predict")
        shares = []
        for row, threshold in enumerate((0.35, 0.5)):
            summary = tmp_path / f"{row}.json"
            parameters = {**inputs(valley, tiny_model), "THRESHOLD": threshold, "OUTPUT_SUMMARY": str(summary)}
            parameters["OUTPUT_DISAGREEMENT"] = str(tmp_path / f"{row}.tif")
            assert algorithm.asPythonCommand(parameters, QgsProcessingContext())
            _, good = algorithm.create().run(parameters, QgsProcessingContext(), Recorder())
            assert good
            shares.append((pixels(tmp_path / f"{row}.tif") == 3).mean())
        assert shares[0] > shares[1]


@pytest.mark.real_data
class TestBundledModel:
    def test_the_bundled_model_predicts_without_naming_it(self, provider, engine, model, valley, tmp_path):
        output = str(tmp_path / "miso.tif")
        parameters = {"DEM": str(valley / "dem.tif"), "LAYERS": [str(valley / "nlcd.tif")], "OUTPUT_NSP_MISO": output}
        run("predict", {**parameters, "AOI": area_layer()})
        values = pixels(output)
        values = values[values != -9999]
        assert values.size > 10_000
        assert values.min() >= 0
        assert values.max() <= 1
        assert values.std() > 0.01
