"""The zip, unpacked into an empty profile as QGIS's plugin manager does it, runs a prediction there."""

import json
import subprocess
import zipfile

import pytest

from development.demo import run_algorithm
from development.environments import python_of
from development.project import BUILD, ROOT


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The simulated valley, made by the engine's Python."""
    folder = tmp_path_factory.mktemp("sample")
    code = "from pathlib import Path; from training.simulation import simulate_valley; import sys;"
    code += "simulate_valley(Path(sys.argv[1]), 7)"
    command = [python_of("engine"), "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", folder]
    subprocess.run(command, check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def area(sample):
    """A rectangle inside the valley, 900 m by 700 m, in the valley's own CRS, which is not that of the results."""
    from osgeo import gdal, ogr

    dem = gdal.Open(str(sample / "dem.tif"))
    left, width, _, top, _, height = dem.GetGeoTransform()
    x, y = left + width * (dem.RasterXSize // 2), top + height * (dem.RasterYSize // 2)
    path = sample / "area.gpkg"
    dataset = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    layer = dataset.CreateLayer("area", dem.GetSpatialRef(), ogr.wkbPolygon)
    feature = ogr.Feature(layer.GetLayerDefn())
    corners = f"{x} {y}, {x + 900} {y}, {x + 900} {y + 700}, {x} {y + 700}, {x} {y}"
    feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POLYGON (({corners}))"))
    layer.CreateFeature(feature)
    del feature, layer, dataset  # GDAL writes the file when the last of them goes
    return path


def test_the_zip_predicts_in_an_empty_profile(installation, archive, sample, area, tmp_path):
    from osgeo import gdal

    plugins = tmp_path / "config" / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(plugins)
    variables = installation.environment(tmp_path, plugins=tmp_path / "nothing")
    command = [installation.process, "plugins", "enable", "miso_qgis"]
    enabled = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert enabled.returncode == 0, enabled.stderr
    outputs = {
        "OUTPUT_NSP_MISO": tmp_path / "miso.tif",
        "OUTPUT_NSP_RF": tmp_path / "rf.tif",
        "OUTPUT_DISAGREEMENT": tmp_path / "disagreement.tif",
        "OUTPUT_SUMMARY": tmp_path / "summary.json",
    }
    inputs = {"MODEL": "cpcrw", "DEM": sample / "dem.tif", "LAYERS": sample / "nlcd.tif", "AOI": area}
    document = run_algorithm(installation, variables, "predict", {**inputs, **outputs})
    assert document["results"]["OUTPUT_NSP_MISO"] == str(outputs["OUTPUT_NSP_MISO"])
    for key in ("OUTPUT_NSP_MISO", "OUTPUT_NSP_RF"):
        values = gdal.Open(str(outputs[key])).ReadAsArray()
        valid = values[values != -9999]
        # 900 m by 700 m in pixels of 10 m, but for those that its slanting edges cut and the scale of two projections.
        assert valid.size == pytest.approx(90 * 70, rel=0.02)
        assert valid.min() >= 0
        assert valid.max() <= 1
        assert valid.std() > 0
    classes = set(gdal.Open(str(outputs["OUTPUT_DISAGREEMENT"])).ReadAsArray().ravel().tolist())
    assert classes <= {0, 1, 2, 3, 255}
    assert json.loads(outputs["OUTPUT_SUMMARY"].read_text(encoding="utf-8"))


def test_the_engine_answers_from_the_shipped_folder_with_the_locked_packages_only():
    command = [python_of("engine"), "-m", "miso_qgis.engine", "--help"]
    done = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in ("predict", "terrain", "compare", "probe"):
        assert name in done.stdout
