"""The engine as a child process: the seam, real kills, cancel, a full disk, hostile places (rows R3, R5, R6, R17)."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scenes
import tiny_models

from miso_qgis.engine.messages import (
    CompareJob,
    Failure,
    Note,
    PredictJob,
    ProbeJob,
    Progress,
    RasterSource,
    Result,
    TerrainJob,
    read_event,
    write_job,
)

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "miso_qgis" / "engine" / "launch.py"
# What QGIS's own installers set, and what would lead the child astray.
# Another PROJ's database: the system's where there is one, else a folder that is not there.
FOREIGN = dict.fromkeys(("PROJ_LIB", "PROJ_DATA"), "/usr/share/proj")
FOREIGN.update(dict.fromkeys(("GDAL_DATA", "GDAL_DRIVER_PATH"), "/usr/share/gdal"))
HOSTILE = {"PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere.py", **FOREIGN}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def big_scene(tmp_path_factory):
    """A scene that takes a few seconds: 2100 x 2300 px."""
    folder = tmp_path_factory.mktemp("big")
    plane = scenes.elevation_on(height=2100, width=2300)
    dem = scenes.write_raster(folder / "dem.tif", plane, nodata=-9999.0)
    nlcd = scenes.write_raster(folder / "nlcd.tif", np.full(plane.shape, 41, np.uint8), nodata=0)
    return {"dem": dem, "nlcd": nlcd}


def predict_job(model, paths, output, **changes):
    inputs = {name: RasterSource(path) for name, path in paths.items()}
    return PredictJob(str(model), inputs, str(output), **{"threads": 1, **changes})


def start(tmp_path, job, **options):
    tmp_path.mkdir(parents=True, exist_ok=True)
    path = tmp_path / "job.json"
    path.write_text(job if isinstance(job, str) else write_job(job), encoding="utf-8")
    command = [sys.executable, "-I", "-u", str(LAUNCH), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **HOSTILE}, cwd=tmp_path, **{**pipes, **options})


def run(tmp_path, job, **options):
    """Run a job to its end with stdin open; return status, events and the log."""
    child = start(tmp_path, job, **options)
    lines = child.stdout.read().decode("ascii").splitlines()
    log = child.stderr.read().decode()
    status = child.wait(60)
    child.stdin.close()
    return status, [read_event(line) for line in lines], log


def wait_for_window(child, share=0.3):
    """Read events until the run is past ``share``."""
    for line in child.stdout:
        event = read_event(line.decode())
        if isinstance(event, Progress) and event.total and event.done / event.total >= share:
            return
    raise AssertionError(child.stderr.read().decode())


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


def test_a_run_speaks_json_lines_and_ends_with_its_result(model, tmp_path):
    status, events, log = run(tmp_path, predict_job(model, scenes.scene(tmp_path / "in"), tmp_path / "out"))
    assert status == 0, log
    assert log == ""
    assert isinstance(events[-1], Result)
    assert any(isinstance(event, Progress) for event in events)
    assert any(isinstance(event, Note) for event in events)
    shares = [event.done / event.total for event in events if isinstance(event, Progress) and event.total]
    assert shares == sorted(shares)
    assert sorted(events[-1].outputs) == [
        "nsp_difference",
        "nsp_disagreement",
        "nsp_probability_miso",
        "nsp_probability_rf",
        "summary",
    ]
    for key, path in events[-1].outputs.items():
        assert Path(path) == tmp_path / "out" / (key + (".json" if key == "summary" else ".tif"))
        assert Path(path).is_file()
    assert json.loads(Path(events[-1].outputs["summary"]).read_text(encoding="utf-8")) == events[-1].summary
    assert len(everything_in(tmp_path / "out")) == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ('{"kind": "dance"}', "kind must be one of"),
        ('{"kind": "probe", "surprise": 1}', "surprise"),
        ('{"kind": "predict", "model": "m"}', "missing"),
    ],
)
def test_a_job_that_is_not_understood_is_refused(text, words, tmp_path):
    status, events, log = run(tmp_path, text)
    assert status == 2
    assert isinstance(events[-1], Failure)
    assert events[-1].code == "bad_input"
    assert words in events[-1].problems[0].found
    assert "Traceback" not in log


def test_bad_input_becomes_a_failure_with_every_problem(model, tmp_path):
    paths = scenes.scene(tmp_path / "in")
    os.remove(paths["dem"])
    os.truncate(paths["nlcd"], 0)
    status, events, log = run(tmp_path, predict_job(model, paths, tmp_path / "out"))
    assert status == 2
    assert (events[-1].code, len(events[-1].problems)) == ("bad_input", 2)
    assert "Traceback" not in log
    assert everything_in(tmp_path / "out") == []


def test_what_libraries_print_does_not_reach_the_messages(tmp_path):
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import importlib.util, os, sys\n"
        f"spec = importlib.util.spec_from_file_location('launch', {str(LAUNCH)!r})\n"
        "launch = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(launch)\n"
        "stream = launch._take_stdout()\n"
        "print('from Python'); os.write(1, b'from C\\n'); os.system('echo from a child')\n"
        "stream.write('message\\n'); stream.flush()\n"
    )
    done = subprocess.run([sys.executable, str(noisy)], capture_output=True, text=True, check=True)
    assert done.stdout == "message\n"
    assert sorted(done.stderr.split("\n")) == ["", "from C", "from Python", "from a child"]


def test_terrain_compare_and_probe_run_through_the_same_seam(model, tmp_path):
    dem = scenes.write_elevation(tmp_path / "dem.tif")
    status, events, log = run(tmp_path, TerrainJob(RasterSource(dem), str(tmp_path / "terrain")))
    assert status == 0, log
    assert "slope" in events[-1].outputs

    one = scenes.write_raster(tmp_path / "one.tif", scenes.elevation_on() / 1000)
    job = CompareJob(RasterSource(one), RasterSource(one), str(tmp_path / "d.tif"), summary=str(tmp_path / "s.json"))
    status, events, log = run(tmp_path, job)
    assert status == 0, log
    assert events[-1].summary["share_in_agreement"] == 1.0

    status, events, log = run(tmp_path, ProbeJob(str(model)))
    assert status == 0, log
    assert events[-1].summary["model"]["provider"] == "cpu"
    assert events[-1].summary["versions"]["onnxruntime"]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8])
def test_closing_stdin_ends_the_child_within_two_seconds_and_leaves_nothing(share, model, big_scene, tmp_path):
    child = start(tmp_path, predict_job(model, big_scene, tmp_path / "out"))
    wait_for_window(child, share)
    closed = time.monotonic()
    child.stdin.close()
    rest = child.stdout.read().decode().splitlines()
    assert child.wait(5) == 3
    assert time.monotonic() - closed < 2.0
    assert everything_in(tmp_path / "out") == []
    last = read_event(rest[-1])
    assert (last.code, "Traceback" in child.stderr.read().decode()) == ("cancelled", False)


def test_a_parent_that_dies_takes_the_child_with_it(model, big_scene, tmp_path):
    # All pipes close at once, as when QGIS is killed: the child can neither report nor log.
    child = start(tmp_path, predict_job(model, big_scene, tmp_path / "out"))
    wait_for_window(child)
    for pipe in (child.stdout, child.stderr, child.stdin):
        pipe.close()
    closed = time.monotonic()
    child.wait(5)
    assert time.monotonic() - closed < 2.0
    assert everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels(number, model, big_scene, tmp_path):
    child = start(tmp_path, predict_job(model, big_scene, tmp_path / "out"))
    wait_for_window(child)
    child.send_signal(number)
    rest = child.stdout.read().decode().splitlines()
    assert child.wait(5) == 3
    assert read_event(rest[-1]).code == "cancelled"
    assert everything_in(tmp_path / "out") == []


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.93])
def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_cleans_up(share, model, big_scene, tmp_path):
    output = tmp_path / "out"
    child = start(tmp_path, predict_job(model, big_scene, output))
    wait_for_window(child, share)
    child.kill()
    child.wait()
    left = everything_in(output)
    assert all(name.startswith(".miso-part-") for name in left), left
    assert left, "killed too late to leave anything"

    status, _, log = run(tmp_path, predict_job(model, scenes.scene(tmp_path / "in"), output))
    assert status == 0, log
    assert not [name for name in everything_in(output) if name.startswith(".miso-part-")]


def test_a_running_neighbour_is_not_swept(model, big_scene, tmp_path):
    output = tmp_path / "out"
    slow = start(tmp_path / "slow", predict_job(model, big_scene, output, outputs=renamed(tmp_path, "slow")))
    wait_for_window(slow)
    status, _, log = run(tmp_path / "quick", predict_job(model, scenes.scene(tmp_path / "in"), output))
    assert status == 0, log
    rest = slow.stdout.read().decode().splitlines()
    assert slow.wait(60) == 0
    assert isinstance(read_event(rest[-1]), Result)
    slow.stdin.close()


def renamed(tmp_path, word):
    keys = ("nsp_probability_miso", "nsp_probability_rf", "nsp_disagreement", "nsp_difference")
    places = {key: str(tmp_path / "out" / f"{word}_{key}.tif") for key in keys}
    return {**places, "summary": str(tmp_path / "out" / f"{word}.json")}


@pytest.mark.parametrize("limit", [0, 20_000, 4_000_000, 19_000_000])
def test_a_full_disk_is_named_and_leaves_nothing(limit, model, big_scene, tmp_path):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    status, events, log = run(tmp_path, predict_job(model, big_scene, tmp_path / "out"), preexec_fn=no_large_files)
    assert status == 1, log
    assert events[-1].code == "bad_output"
    text = str(events[-1].problems[0])
    assert str(tmp_path / "out") in text
    assert "MB are free" in text
    assert "are needed" in text
    assert everything_in(tmp_path / "out") == []


def test_too_little_space_is_told_before_anything_is_computed(model, tmp_path):
    paths = scenes.scene(tmp_path / "in")
    # A grid of 10^11 pixels: no disk holds it. The inputs overlap it, so that only space stands in the way.
    job = predict_job(model, paths, tmp_path / "out", crs="EPSG:3338", resolution_m=0.001, models=("rf",))
    status, events, _ = run(tmp_path, job)
    assert status == 1
    assert "MB are free" in events[-1].problems[0].found
    assert everything_in(tmp_path / "out") == []


def test_an_output_folder_that_cannot_be_one_is_refused(model, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, events, log = run(tmp_path, predict_job(model, scenes.scene(tmp_path / "in"), tmp_path / "out"))
    assert (status, events[-1].code) == (1, "bad_output"), log
    assert "nothing can be written there" in events[-1].problems[0].found


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(model, tmp_path):
    paths = scenes.scene(tmp_path / "in")
    (tmp_path / "out").mkdir(mode=0o500)
    status, events, log = run(tmp_path, predict_job(model, paths, tmp_path / "out"))
    assert (status, events[-1].code) == (1, "bad_output"), log


def test_a_read_only_file_system_is_refused(model, tmp_path):
    # /proc takes no files from anybody, root included.
    status, events, log = run(tmp_path, predict_job(model, scenes.scene(tmp_path / "in"), "/proc/miso"))
    assert (status, events[-1].code) == (1, "bad_output"), log


def test_older_results_are_replaced_all_together(model, tmp_path):
    paths = scenes.scene(tmp_path / "in")
    output = tmp_path / "out"
    assert run(tmp_path, predict_job(model, paths, output))[0] == 0
    (output / "nsp_probability_miso.tif.aux.xml").write_text("<PAMDataset/>")
    before = scenes.read(output / "nsp_probability_miso.tif")
    job = predict_job(model, paths, output, percent=True)
    assert run(tmp_path, job)[0] == 0
    after = scenes.read(output / "nsp_probability_miso.tif")
    assert (before.dtype, after.dtype) == (np.float32, np.uint8)
    assert not (output / "nsp_probability_miso.tif.aux.xml").exists()
    assert len(everything_in(output)) == 5


def test_a_result_that_cannot_be_replaced_keeps_the_old_ones(model, tmp_path, monkeypatch):
    from miso_qgis.engine import outputs, predict
    from miso_qgis.engine.errors import OutputError
    from miso_qgis.engine.progress import Silent

    paths = scenes.scene(tmp_path / "in")
    job = predict_job(model, paths, tmp_path / "out")
    predict.predict(job, Silent())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    replace = os.replace

    def locked(source, target):
        # The file is held open by another program: it can be moved away, but its name not be given to the new one.
        if Path(target).name == "nsp_difference.tif" and Path(source).suffix != ".old":
            raise PermissionError(13, "The process cannot access the file because it is being used")
        replace(source, target)

    monkeypatch.setattr(outputs.os, "replace", locked)
    with pytest.raises(OutputError, match=r"nsp_difference.tif.*cannot be replaced.*being used"):
        predict.predict(job, Silent())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_files_carry_what_the_contract_lists(model, tmp_path):
    _, events, _ = run(tmp_path, predict_job(model, scenes.scene(tmp_path / "in"), tmp_path / "out"))
    with rasterio.open(events[-1].outputs["nsp_probability_miso"]) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (dataset.nodata, dataset.dtypes, dataset.units) == (-9999.0, ("float32",), ("1",))
        assert dataset.descriptions == ("Probability of near-surface permafrost, MISO",)
        values = dataset.read(1, masked=True).astype(np.float64)
        statistics = {key: float(value) for key, value in dataset.tags(1).items()}
        assert statistics["STATISTICS_MEAN"] == pytest.approx(values.mean())
        assert statistics["STATISTICS_STDDEV"] == pytest.approx(values.std())
        assert statistics["STATISTICS_MAXIMUM"] == values.max()
        tags = dataset.tags()
    assert tags["MISO_MODEL"] == "tiny 1"
    assert len(tags["MISO_MODEL_DIGEST"]) == 64
    assert "dem.tif#1" in tags["MISO_INPUTS"]
    assert "onnxruntime" in tags["MISO_VERSIONS"]
    assert json.loads(tags["MISO_JOB"])["kind"] == "predict"
    with rasterio.open(events[-1].outputs["nsp_disagreement"]) as dataset:
        assert (dataset.nodata, dataset.colormap(1)[3]) == (255.0, (0, 114, 178, 255))
        assert "0 neither, 1 RF only, 2 MISO only, 3 both" in dataset.descriptions[0]


def command_line(*arguments, **options):
    command = [sys.executable, "-m", "miso_qgis.engine", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_the_command_line_prints_paths_and_no_bar_without_a_terminal(model, tmp_path):
    paths = scenes.scene(tmp_path / "in")
    inputs = [part for name, path in paths.items() for part in ("--input", f"{name}={path}")]
    done = command_line("predict", "--model", model, *inputs, "--output", tmp_path / "out", "--threads", 1)
    assert done.returncode == 0, done.stderr
    printed = dict(line.split("\t") for line in done.stdout.splitlines())
    assert Path(printed["nsp_probability_rf"]).is_file()
    assert "#" not in done.stderr
    assert "lack data" in done.stderr

    bad = command_line("predict", "--model", model, "--input", "dem=gone.tif", "--output", tmp_path / "out")
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 2
    assert "Traceback" not in bad.stderr


@pytest.mark.parametrize("foreign", [FOREIGN, dict.fromkeys(FOREIGN, "/nowhere")], ids=["system", "nowhere"])
def test_paths_of_another_gdal_and_proj_do_no_harm(foreign, model, tmp_path):
    # QGIS's launchers and the OSGeo4W shell set them; rasterio then finds no CRS at all.
    inputs = [part for name, path in scenes.scene(tmp_path / "in").items() for part in ("--input", f"{name}={path}")]
    arguments = ("predict", "--model", model, *inputs, "--output", tmp_path / "out", "--crs", "EPSG:32606")
    done = command_line(*arguments, env={**os.environ, **foreign})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [[], ["predict"], ["terrain"], ["compare"], ["probe"]])
def test_help_names_every_option(command):
    done = command_line(*command, "--help")
    assert done.returncode == 0
    assert "usage" in done.stdout
    if command == ["predict"]:
        for option in (
            "--model",
            "--input",
            "--aoi",
            "--crs",
            "--resolution",
            "--threshold",
            "--percent",
            "--provider",
        ):
            assert option in done.stdout


def test_an_unknown_option_is_bad_input():
    assert command_line("predict", "--nonsense").returncode == 2


def test_control_c_cancels_the_command_line(model, big_scene, tmp_path):
    inputs = [part for name, path in big_scene.items() for part in ("--input", f"{name}={path}")]
    command = [sys.executable, "-m", "miso_qgis.engine", "predict", "--model", str(model), *inputs]
    child = subprocess.Popen([*command, "--output", str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not any(name.endswith("working.tif") for name in everything_in(tmp_path / "out")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 3
    assert "cancelled" in child.stderr.read().decode()
    assert everything_in(tmp_path / "out") == []
