"""Tests of the plugin inside QGIS. They run against the assembled plugin, never against the checkout's package."""

import os
import shutil
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = Path(os.environ.get("QGIS_PLUGINPATH") or REPOSITORY / "build").absolute()

if not (PLUGINS / "miso_qgis" / "metadata.txt").is_file():
    pytest.exit(f"There is no assembled plugin in {PLUGINS}. Run: python3 build.py", returncode=2)
# "python -m pytest" puts the checkout first; what is tested is what is shipped.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY]
sys.path.insert(0, str(PLUGINS))

import miso_qgis  # noqa: E402

if Path(miso_qgis.__file__).absolute().parent != PLUGINS / "miso_qgis":
    pytest.exit(f"miso_qgis was imported from {miso_qgis.__file__}, not from {PLUGINS}", returncode=2)


@pytest.fixture(scope="session")
def plugins() -> Path:
    """Folder that holds the assembled plugin."""
    return PLUGINS


@pytest.fixture(scope="module")
def provider(qgis_app, qgis_processing):
    """The provider, registered for one module; the test of the plugin's life registers its own."""
    from qgis.core import QgsApplication

    from miso_qgis.provider import MisoProvider

    provider = MisoProvider()
    QgsApplication.processingRegistry().addProvider(provider)
    yield provider
    QgsApplication.processingRegistry().removeProvider(provider)


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The engine's Python; skips where the environment has not been made."""
    from miso_qgis.application.engine_environment import ENVIRONMENT_VARIABLE, interpreter_of

    folder = Path(os.environ.get(ENVIRONMENT_VARIABLE) or REPOSITORY / ".venv" / "engine")
    if not interpreter_of(folder).exists():
        pytest.skip(f"no engine environment in {folder}; python3 build.py test makes it")
    if not (PLUGINS / "miso_qgis" / "engine" / "launch.py").is_file():
        pytest.skip("the engine's launcher is not there")
    return interpreter_of(folder)


@pytest.fixture
def engine(engine_python, monkeypatch) -> Path:
    """Lets the plugin find the engine; returns its Python."""
    monkeypatch.setenv("MISO_QGIS_ENGINE_ENV", str(engine_python.parent.parent))
    return engine_python


@pytest.fixture(scope="session")
def model() -> Path:
    """The bundled model; skips where there is none yet."""
    folder = PLUGINS / "miso_qgis" / "models" / "cpcrw"
    if not (folder / "manifest.json").is_file():
        pytest.skip("models/cpcrw is not there")
    return folder


@pytest.fixture(scope="session")
def valley(tmp_path_factory) -> Path:
    """A small simulated landscape, EPSG:3338, 50 m: dem.tif and nlcd.tif. Asymmetric, with a hole, odd sizes."""
    return write_valley(tmp_path_factory.mktemp("valley"), 41, 53, 50)


@pytest.fixture(scope="session")
def wide_valley(tmp_path_factory) -> Path:
    """The same on 2300 x 2600 pixels of 10 m: a run that takes long enough to be cancelled."""
    return write_valley(tmp_path_factory.mktemp("wide"), 2300, 2600, 10)


def write_valley(folder: Path, height: int, width: int, cell_m: float) -> Path:
    import numpy as np
    from osgeo import gdal, osr

    rows, columns = np.mgrid[0:height, 0:width].astype("float64") * (41 / height)
    dem = 300 + 4.0 * np.abs(columns - 20 - 5 * np.sin(rows / 9)) + 1.5 * rows
    nlcd = np.where(dem < 340, 90, np.where(columns > 30, 42, 41)).astype("uint8")
    dem[5:8, 40:44] = -9999
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(3338)
    for name, array, data_type, nodata in (("dem", dem, gdal.GDT_Float32, -9999), ("nlcd", nlcd, gdal.GDT_Byte, 0)):
        dataset = gdal.GetDriverByName("GTiff").Create(str(folder / f"{name}.tif"), width, height, 1, data_type)
        dataset.SetGeoTransform((300_000, cell_m, 0, 1_670_000, 0, -cell_m))
        dataset.SetProjection(reference.ExportToWkt())
        dataset.GetRasterBand(1).SetNoDataValue(nodata)
        dataset.GetRasterBand(1).WriteArray(array)
        dataset = None
    return folder


@pytest.fixture(scope="session")
def qgis_process(plugins, tmp_path_factory):
    """A function that runs qgis_process with the plugin on: (arguments, **variables) -> CompletedProcess."""
    import subprocess

    program = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
    if program is None:
        pytest.skip("qgis_process is not installed")
    home = tmp_path_factory.mktemp("home")
    profile = home / "config" / "profiles" / "default" / "QGIS"
    profile.mkdir(parents=True)
    (profile / "QGIS3.ini").write_text("[PythonPlugins]\nmiso_qgis=true\n", encoding="utf-8")
    (home / "run").mkdir(mode=0o700)
    base = dict(
        os.environ,
        QT_QPA_PLATFORM="offscreen",
        HOME=str(home),
        XDG_RUNTIME_DIR=str(home / "run"),
        QGIS_CUSTOM_CONFIG_PATH=str(home / "config"),
        QGIS_PLUGINPATH=str(plugins),
    )
    base.setdefault("MISO_QGIS_ENGINE_ENV", str(REPOSITORY / ".venv" / "engine"))

    def run(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        words = [program, *(str(argument) for argument in arguments)]
        return subprocess.run(words, env={**base, **variables}, capture_output=True, text=True, timeout=300)

    def start(*arguments: object) -> "subprocess.Popen[str]":
        words = [program, *(str(argument) for argument in arguments)]
        return subprocess.Popen(words, env=base, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    run.start = start
    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder whose answer is known: the probability by both models is the elevation / 1000 m."""
    return write_tiny(tmp_path_factory, "manifest(simulated=False)", "rf_scale=0.001, rf_offset=0.05")


# Elevations of the valley (300 to 480 m) become probabilities from 0 to 1, so that all orders occur.
TWO_TASKS = "scale=0.0055, offset=-1.65, rf_scale=0.0055, rf_offset=-1.6"


@pytest.fixture(scope="session")
def two_task_model(tmp_path_factory) -> Path:
    """A model folder with both tasks and a forest for each, said to be trained on simulated data."""
    return write_tiny(tmp_path_factory, "two_tasks()", TWO_TASKS)


@pytest.fixture(scope="session")
def order_model(tmp_path_factory) -> Path:
    """A model folder of soil orders alone, without a forest: what an imported checkpoint gives."""
    made = "two_tasks(tasks={'soil_order': tiny_models.SOIL_ORDER}, forests={}, simulated=False)"
    return write_tiny(tmp_path_factory, made, TWO_TASKS)


def write_tiny(tmp_path_factory, manifest: str, options: str) -> Path:
    import subprocess

    python = REPOSITORY / ".venv" / "training" / "bin" / "python"
    if not python.exists():
        pytest.skip("no training environment: the tests' models are built with the onnx package")
    folder = tmp_path_factory.mktemp("model") / "tiny"
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; import tiny_models;"
        f"tiny_models.write_model(Path(sys.argv[3]), tiny_models.{manifest}, {options})"
    )
    subprocess.run([python, "-c", code, REPOSITORY, REPOSITORY / "tests" / "engine", folder], check=True, timeout=120)
    return folder
