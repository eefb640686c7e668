"""An imported checkpoint in QGIS: thirteen inputs, from nine single bands or one file of nine bands; a band missing.

The checkpoint has the released names, random weights and as little width as goes; its map means nothing. The training
environment makes it, because QGIS's Python has no torch.
"""

import os
import subprocess

import numpy as np
import pytest
from conftest import REPOSITORY
from osgeo import gdal
from qgis.core import QgsProcessingException, QgsProcessingFeedback

HEIGHT, WIDTH = 40, 56

MAKE = """
import sys
root, out, height, width = sys.argv[1:5]
sys.path[:0] = [root, root + "/tests/training"]
import torch
from pathlib import Path
from released_checkpoints import Sizes, released_state
from released_scene import BANDS, stack_bands, write_rasters
from training import cli
torch.set_num_threads(1)
tiny = Sizes(depths=(1,), heads=(2,), widths=((8, 16),), embedding=12)
torch.save({"model": released_state(tiny, seed=3)}, out + "/best_model.pth")
assert cli.main(["import-released", out + "/best_model.pth", "--task", "nsp", "--out", out + "/model"]) == 0
paths = write_rasters(Path(out, "in"), int(height), int(width))
stack_bands(paths, Path(out, "stack.tif"))
stack_bands(paths, Path(out, "unnamed.tif"), ("",) * 9)
stack_bands(paths, Path(out, "eight.tif"), ("",) + BANDS[1:])
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Folder with model/, the rasters in/, and stacks of the nine bands: all, none, and eight of them described."""
    python = REPOSITORY / ".venv" / "training" / "bin" / "python"
    if not python.exists():
        pytest.skip("no training environment: importing a checkpoint needs torch")
    folder = tmp_path_factory.mktemp("imported")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [python, "-c", MAKE, REPOSITORY, folder, str(HEIGHT), str(WIDTH)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def bands(imported):
    """Paths of the nine single bands."""
    coarse = ("dem", "annual_precipitation", "summer_warmth_index", "january_minimum_temperature")
    paths = [path for path in sorted((imported / "in").glob("*.tif")) if path.stem not in coarse]
    assert len(paths) == 9
    return paths


@pytest.fixture(scope="module")
def expected(imported, engine_python):
    """The map of the engine's own command line, to which every input is named: no matching."""
    command = [engine_python, "-m", "miso_qgis.engine", "predict", "--model", imported / "model", "--models", "miso"]
    for path in sorted((imported / "in").glob("*.tif")):
        command += ["--input", f"{path.stem}={path}"]
    command += ["--output", imported / "out"]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return pixels(imported / "out" / "nsp_probability_miso.tif")


def pixels(path):
    return gdal.Open(str(path)).ReadAsArray()


def parameters(imported, layers):
    climate = ("annual_precipitation", "summer_warmth_index", "january_minimum_temperature")
    return {
        "MODEL": str(imported / "model"),
        "DEM": str(imported / "in" / "dem.tif"),
        "LAYERS": [str(path) for path in (*layers, *(imported / "in" / f"{name}.tif" for name in climate))],
        "MODELS": [0],
    }


class Said(QgsProcessingFeedback):
    """Remembers what was said."""

    def __init__(self):
        super().__init__(False)
        self.lines = []

    def pushInfo(self, info):
        self.lines.append(info)

    def reportError(self, error, fatalError=False):
        self.lines.append(error)


def run(values, feedback=None):
    import processing

    return processing.run("miso:predict", values, feedback=feedback or Said())


def refused(values):
    feedback = Said()
    with pytest.raises(QgsProcessingException) as raised:
        run({**values, "OUTPUT_NSP_MISO": "TEMPORARY_OUTPUT"}, feedback)
    text = "\n".join([*feedback.lines, str(raised.value)])
    assert "Traceback" not in text
    return text


class TestMap:
    def test_one_file_of_nine_bands_gives_what_the_command_line_gives(
        self, provider, engine, imported, expected, tmp_path
    ):
        feedback, out = Said(), tmp_path / "map.tif"
        run({**parameters(imported, [imported / "stack.tif"]), "OUTPUT_NSP_MISO": str(out)}, feedback)
        found = pixels(out)
        assert np.array_equal(found, expected)
        assert found.shape == (HEIGHT, WIDTH)
        valid = found[found != -9999]
        assert valid.size > 0.9 * found.size
        assert valid.std() > 1e-3
        stack = f'layer "stack", {imported / "stack.tif"}'
        assert f"Input swir_2: {stack}, band 9" in feedback.lines
        assert f"Input red: {stack}, band 1" in feedback.lines

    def test_nine_files_named_after_a_scene_in_any_order(self, provider, engine, imported, expected, bands, tmp_path):
        """The name scene_red_edge_1 holds the word red, and yet is not the red band."""
        renamed = [tmp_path / f"scene_{path.name}" for path in bands]
        for path, copy in zip(bands, renamed):
            copy.write_bytes(path.read_bytes())
        run({**parameters(imported, renamed[::-1]), "OUTPUT_NSP_MISO": str(tmp_path / "map.tif")})
        assert np.array_equal(pixels(tmp_path / "map.tif"), expected)

    def test_qgis_process_with_nine_files(self, qgis_process, engine, imported, expected, bands, tmp_path):
        values = parameters(imported, bands)
        words = [f"LAYERS={path}" for path in values.pop("LAYERS")] + [f"OUTPUT_NSP_MISO={tmp_path / 'map.tif'}"]
        words += [f"MODEL={values['MODEL']}", f"DEM={values['DEM']}", "MODELS=0"]
        done = qgis_process("run", "miso:predict", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert np.array_equal(pixels(tmp_path / "map.tif"), expected)


class TestMissingBands:
    def test_a_missing_file_is_named_and_no_other_band_stands_in(self, provider, engine, imported, bands):
        text = refused(parameters(imported, [path for path in bands if path.stem != "red"]))
        assert "Input red (Sentinel-2 red (B04)): no layer was recognised by its name" in text
        assert "one of these words is needed: red, b04, b4" in text
        assert text.count("no layer was recognised") == 1

    def test_a_band_without_a_description_is_given_as_the_reason(self, provider, engine, imported):
        text = refused(parameters(imported, [imported / "unnamed.tif"]))
        assert text.count("no layer was recognised") == 9
        assert '"unnamed" (9 bands, 8 of them without a description)' in text
        assert "Describe the bands in the file" in text

    def test_one_undescribed_band_among_nine(self, provider, engine, imported):
        text = refused(parameters(imported, [imported / "eight.tif"]))
        assert "Input red (Sentinel-2 red (B04)): no layer was recognised" in text
        assert text.count("no layer was recognised") == 1

    def test_without_a_dem_and_climate(self, provider, engine, imported):
        values = {**parameters(imported, []), "DEM": None, "LAYERS": [str(imported / "stack.tif")]}
        text = refused(values)
        assert text.count("no layer was recognised") == 4
        assert "Input dem (Digital elevation model)" in text
        assert "Input summer_warmth_index" in text
