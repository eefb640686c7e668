"""The real QGIS desktop under Xvfb: a person draws an area, runs, and sees the layers. Makes the guide's screenshot."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from osgeo import gdal
from qgis.PyQt.QtGui import QImage

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOT = REPOSITORY / "docs" / "images" / "dock.png"
UPDATE = "MISO_UPDATE_SCREENSHOTS"


@pytest.fixture(scope="module")
def sample(engine_python, tmp_path_factory):
    """The demo's sample: the watershed where it can be had without network, else the simulated valley."""
    folder = tmp_path_factory.mktemp("sample")
    command = [engine_python, "-m", "training", "sample", "--out", folder]
    subprocess.run(command, env=dict(os.environ, PYTHONPATH=str(REPOSITORY)), check=True, timeout=300)
    return folder


@pytest.mark.slow
def test_a_person_draws_an_area_runs_and_sees_the_layers(sample, plugins, engine_python, request, tmp_path):
    program = shutil.which("qgis.bin") or shutil.which("qgis")
    if program is None or shutil.which("xvfb-run") is None:
        pytest.skip("the QGIS desktop or xvfb-run is not installed")
    bundled = (plugins / "miso_qgis" / "models" / "cpcrw" / "manifest.json").is_file()
    model = "" if bundled else str(request.getfixturevalue("tiny_model"))
    log = run_desktop(program, sample, plugins, engine_python, model, tmp_path)
    assert (tmp_path / "report.json").is_file(), log[-3000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "error" not in report, report["error"]
    assert report["message"].startswith("Done."), report["message"]
    assert "km²" in report["area"]
    assert "Permafrost probability (MISO)" in report["layers"]
    image = QImage(str(tmp_path / "screen.png"))
    assert (image.width(), image.height()) == (1600, 1240)
    left, top, right, bottom = report["map_box"]
    blue = sum(is_map_blue(image.pixelColor(x, y)) for x in range(left, right, 5) for y in range(top, bottom, 5))
    expected = present_m2(tmp_path / "results") / (5 * report["metres_per_screen_px"]) ** 2
    assert expected > 50, "the map has too little permafrost to be looked for on the screen"
    assert blue == pytest.approx(expected, rel=0.25), "the screen does not show the map's permafrost"
    kind = json.loads((sample / "sample.json").read_text(encoding="utf-8"))["kind"]
    if bundled and kind == "watershed" and os.environ.get(UPDATE):
        SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "screen.png", SCREENSHOT)


def present_m2(results):
    """Area that the map calls permafrost at 0.5, m2."""
    (path,) = results.rglob("nsp_probability_miso.tif")
    dataset = gdal.Open(str(path))
    return 100.0 * int((dataset.ReadAsArray() >= 0.5).sum())  # pixels of 10 m


def is_map_blue(colour):
    """The colours above the threshold, which nothing else on the screen has."""
    return colour.blue() > colour.red() + 40 and colour.blue() > 70


def run_desktop(program, sample, plugins, engine_python, model, folder):
    profile = folder / "profiles" / "profiles" / "default" / "QGIS"
    profile.mkdir(parents=True)
    settings = "[PythonPlugins]\nmiso_qgis=true\n[qgis]\nshowTips=false\ncheckVersion=false\n"
    settings += "[locale]\noverrideFlag=true\nuserLocale=en_US\n"
    # Otherwise QGIS asks which of two WGS 84 to NAD83 transformations is meant, and waits.
    settings += "[app]\nprojections\\promptWhenMultipleTransformsExist=false\n"
    settings += "[projections]\npromptWhenMultipleTransformsExist=false\n"
    (profile / "QGIS3.ini").write_text(settings, encoding="utf-8")
    for name, mode in (("home", 0o755), ("runtime", 0o700)):
        (folder / name).mkdir(mode=mode)
    variables = {name: value for name, value in os.environ.items() if name not in ("QT_QPA_PLATFORM", "DISPLAY")}
    # Set by pytest-qgis for its own process; the desktop gets a profile of its own.
    for name in ("QGIS_CUSTOM_CONFIG_PATH", "QGIS_OPTIONS_PATH"):
        variables.pop(name, None)
    variables.update(
        QGIS_PLUGINPATH=str(plugins),
        HOME=str(folder / "home"),
        XDG_RUNTIME_DIR=str(folder / "runtime"),
        MISO_QGIS_ENGINE_ENV=str(engine_python.parent.parent),
        MISO_SHOT_DEM=str(sample / "dem.tif"),
        MISO_SHOT_NLCD=str(sample / "nlcd.tif"),
        MISO_SHOT_MODEL=model,
        MISO_SHOT_OUT=str(folder),
    )
    script = Path(__file__).parent / "desktop_script.py"
    command = f'(openbox || true) >/dev/null 2>&1 & exec "{program}" --nologo --noversioncheck'
    command += f' --profiles-path "{folder / "profiles"}" --code "{script}"'
    screen = ["xvfb-run", "-a", "-s", "-screen 0 1600x1240x24 +extension GLX", "sh", "-c", command]
    # A group of its own, so that a desktop that waits for an answer can be ended with its X server.
    process = subprocess.Popen(
        screen, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=150)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "the desktop did not end within 150 s\n" + process.communicate()[0]
