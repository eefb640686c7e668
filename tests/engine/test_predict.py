"""Laws of a whole prediction: what must not matter does not, and nothing is invented, shifted or lost.

Bad input is in test_bad_inputs, faults of the machine in test_launch.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import scenes
import tiny_models

from miso_qgis.engine import predict as engine
from miso_qgis.engine import rasters
from miso_qgis.engine.errors import Cancelled, InputError
from miso_qgis.engine.manifest import ForestFeature, ForestSpec, WindowSpec
from miso_qgis.engine.messages import PredictJob, RasterSource
from miso_qgis.engine.predict import predict
from miso_qgis.engine.progress import Silent

SPECS = [
    WindowSpec(64, 10.0, 40, 48, "cosine"),
    WindowSpec(64, 10.0, 48, 64, "gaussian"),
    WindowSpec(32, 10.0, 12, 28, "cosine"),
    WindowSpec(256, 10.0, 160, 192, "cosine"),
]


def run(folder, model, progress=None, **changes):
    paths = scenes.scene(folder / "in")
    inputs = {name: RasterSource(path) for name, path in paths.items()}
    settings = {"threads": 1, "output_dir": str(folder / "out"), **changes}
    return predict(PredictJob(str(model), inputs, **settings), progress or Silent())


def maps(result):
    return {key: scenes.read(path) for key, path in result.outputs.items() if key != "summary"}


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.size_px}-{s.stride_px}-{s.decode_px}-{s.weight}")
def test_a_model_that_returns_its_input_gives_the_input_unshifted(spec, tmp_path):
    model = tiny_models.write_model(tmp_path / "model", tiny_models.manifest(spec))
    got = maps(run(tmp_path, model))["nsp_probability_miso"]
    valid = scenes.classes() != 0
    np.testing.assert_array_equal(got != -9999.0, valid)
    # The plane rises by 1 m per column and 0.5 m per row: a shift of a hundredth of a pixel would show.
    np.testing.assert_allclose(got[valid] * 1000, scenes.elevation_on()[valid], atol=2e-3)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.size_px}-{s.stride_px}-{s.decode_px}-{s.weight}")
def test_a_constant_model_gives_its_constant_everywhere(spec, tmp_path):
    model = tiny_models.write_model(tmp_path / "model", tiny_models.manifest(spec), scale=0.0, offset=0.37)
    result = run(tmp_path, model)
    for key in ("nsp_probability_miso", "nsp_probability_rf"):
        got = maps(result)[key]
        np.testing.assert_allclose(got[got != -9999.0], 0.37, atol=1e-6)
    assert result.summary["window_disagreement"].get("nsp", 0.0) < 1e-7  # one window has no neighbour


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    model = tiny_models.write_model(folder / "model", tiny_models.manifest(forest_buffer_m=50.0))
    return model, maps(run(folder, model))


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_do_not_change_a_single_bit(block, threads, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK_WINDOWS", block)
    model, expected = reference
    got = maps(run(tmp_path, model, threads=threads))
    for key, values in expected.items():
        np.testing.assert_array_equal(got[key], values, err_msg=key)


def test_the_batch_does_not_change_a_single_bit(reference, tmp_path, monkeypatch):
    model, expected = reference
    original = engine._Run.__init__

    def batched(self, *arguments):
        original(self, *arguments)
        self._batch = 5

    monkeypatch.setattr(engine._Run, "__init__", batched)
    np.testing.assert_array_equal(maps(run(tmp_path, model))["nsp_probability_miso"], expected["nsp_probability_miso"])


def test_the_same_job_twice_gives_the_same_bytes(reference, tmp_path):
    model, _ = reference
    once = {key: values.tobytes() for key, values in maps(run(tmp_path, model)).items()}
    again = {key: values.tobytes() for key, values in maps(run(tmp_path, model)).items()}
    assert once == again


def test_each_model_alone_gives_what_it_gives_beside_the_other(reference, tmp_path):
    model, expected = reference
    for name in ("miso", "rf"):
        result = run(tmp_path / name, model, models=(name,))
        assert set(result.outputs) == {f"nsp_probability_{name}", "summary"}
        np.testing.assert_array_equal(
            maps(result)[f"nsp_probability_{name}"], expected[f"nsp_probability_{name}"], err_msg=name
        )


def test_nodata_is_exactly_the_same_pixels_in_every_output(reference):
    _, expected = reference
    empty = scenes.classes() == 0
    for key, values in expected.items():
        np.testing.assert_array_equal(values == (255 if values.dtype == np.uint8 else -9999.0), empty, err_msg=key)


def test_the_forest_sees_means_of_discs_that_leave_out_what_is_missing(reference):
    _, expected = reference
    dem = scenes.elevation_on().astype(np.float64)
    rows, columns = np.mgrid[-5:6, -5:6]
    disc = rows**2 + columns**2 <= 25  # 50 m are 5 px; 81 of them lie in the disc
    assert disc.sum() == 81
    got = expected["nsp_probability_rf"]
    for row, column in [(0, 0), (3, 140), (50, 70), (96, 10)]:
        seen = [
            dem[row + r, column + c]
            for r, c in zip(rows[disc], columns[disc])
            if 0 <= row + r < scenes.HEIGHT and 0 <= column + c < scenes.WIDTH
        ]
        assert got[row, column] * 1000 == pytest.approx(np.mean(seen), abs=1e-3)


def test_coordinates_are_alaska_albers_metres_whatever_the_target_crs(tmp_path):
    spec = tiny_models.manifest()
    spec = replace(spec, forests={"nsp": ForestSpec("rf_nsp.onnx", (ForestFeature("x"), ForestFeature("y")))})
    model = tiny_models.write_model(tmp_path / "model", spec, rf_scale=1e-6)
    result = run(tmp_path, model, models=("rf",), crs="EPSG:32606")
    got = maps(result)["nsp_probability_rf"]
    x, _ = scenes.map_centres(result.outputs["nsp_probability_rf"])
    valid = got != -9999.0
    np.testing.assert_allclose(got[valid] * 1e6, x[valid], atol=0.05)


def test_disagreement_and_difference_follow_from_the_two_maps(tmp_path):
    # MISO falls with height where the forest rises, so that all four classes occur.
    model = tiny_models.write_model(tmp_path / "model", scale=-0.01, offset=4.2, rf_scale=0.02, rf_offset=-7.0)
    result = run(tmp_path, model, threshold=0.3)
    got = maps(result)
    miso, rf = got["nsp_probability_miso"], got["nsp_probability_rf"]
    valid = miso != -9999.0
    expected = np.where(valid, 2 * (miso >= 0.3) + (rf >= 0.3), 255)
    np.testing.assert_array_equal(got["nsp_disagreement"], expected)
    assert {0, 1, 2, 3} >= set(np.unique(expected[valid])) > {1, 2}
    np.testing.assert_array_equal(got["nsp_difference"][valid], (miso - rf)[valid])
    hectares = result.summary["disagreement"]["hectares"]["nsp"]
    names = ("neither", "rf_only", "miso_only", "both")
    # A pixel of 10 m is 0.01 ha.
    assert hectares == {n: pytest.approx((expected == code).sum() * 0.01) for code, n in enumerate(names)}
    above = result.summary["probabilities"]["nsp_probability_miso"]
    assert above["thresholds"] == {"0.5": 0.5, "equal_recall": 0.4}
    assert above["hectares_above"]["equal_recall"] == pytest.approx((miso >= 0.4).sum() * 0.01)


def test_a_probability_equal_to_the_threshold_counts_as_present(tmp_path):
    model = tiny_models.write_model(tmp_path / "model", scale=0.0, offset=0.5)
    result = run(tmp_path, model, threshold=0.5)
    hectares = result.summary["disagreement"]["hectares"]["nsp"]
    assert hectares["both"] == pytest.approx(result.summary["hectares_valid"])


def test_percent_is_rounded_and_0_is_a_value(tmp_path):
    model = tiny_models.write_model(tmp_path / "model", scale=0.01, offset=-3.5)
    plain = maps(run(tmp_path / "a", model))["nsp_probability_miso"]
    percent = maps(run(tmp_path / "b", model, percent=True))["nsp_probability_miso"]
    assert percent.dtype == np.uint8
    np.testing.assert_array_equal(percent == 255, plain == -9999.0)
    valid = percent != 255
    np.testing.assert_array_equal(percent[valid], np.rint(plain[valid] * 100))
    assert {0, 100} <= set(percent[valid])


def test_terrain_channels_are_derived_and_the_map_follows_the_dem(tmp_path):
    model = tiny_models.write_model(tmp_path / "model", tiny_models.manifest(terrain=True))
    got = maps(run(tmp_path, model))["nsp_probability_miso"]
    valid = scenes.classes() != 0
    np.testing.assert_array_equal(got != -9999.0, valid)
    np.testing.assert_allclose(got[valid] * 1000, scenes.elevation_on()[valid], atol=2e-3)


def test_seams_stay_below_what_the_taper_allows(tmp_path):
    # A model that answers with the row in the window: neighbours differ by stride / size everywhere, the worst case.
    # With a ramp of 8 px the weight changes by at most pi / 2 / 8 per pixel, and the picture by that times the gap.
    spec = tiny_models.manifest()
    folder = tiny_models.write_model(tmp_path / "model", replace(spec, forests={}))
    nodes, initializers = tiny_models.to_probability("wide", "nsp", 1 / 64, 0.0)
    from onnx import helper

    shape = tiny_models.constant("shape", [1, 1, -1, 1], np.int64)
    zero = tiny_models.constant("nothing", 0.0)
    work = [
        helper.make_node("Reshape", ["rows", "shape"], ["tall"]),
        helper.make_node("Mul", ["columns", "nothing"], ["flat"]),
        helper.make_node("Add", ["tall", "flat"], ["wide"]),
    ]
    inputs = [("terrain_map", ["N", 1, 64, 64]), ("surface_map", ["N", 3, 64, 64]), ("rows", ["R"]), ("columns", ["Q"])]
    data = tiny_models.model_bytes([*work, *nodes], inputs, [("nsp", ["N", 1, "R", "Q"])], [*initializers, shape, zero])
    (folder / "decoder.onnx").write_bytes(data)
    tiny_models.write_sums(folder)
    result = run(tmp_path, folder, models=("miso",))
    got = maps(result)["nsp_probability_miso"]
    steps = np.abs(np.diff(got[:80, :100], axis=0)).max()
    gap = 40 / 64
    assert 1 / 64 < steps < gap * (np.pi / 2 / 8) + 1 / 64


class Stopping(Silent):
    """Asks to stop at the n-th question, and remembers how often it was asked."""

    def __init__(self, after):
        self.after, self.asked = after, 0

    def raise_if_cancelled(self):
        self.asked += 1
        if self.asked > self.after:
            raise Cancelled


def test_cancelling_at_any_moment_leaves_nothing(reference, tmp_path):
    model, _ = reference
    counting = Stopping(10**9)
    run(tmp_path / "whole", model, counting)
    assert counting.asked > 15
    for after in range(0, counting.asked, 4):
        folder = tmp_path / str(after)
        with pytest.raises(Cancelled):
            run(folder, model, Stopping(after))
        assert not (folder / "out").exists() or not list((folder / "out").iterdir())


def test_a_file_that_breaks_in_the_middle_of_the_run_is_named(reference, tmp_path, monkeypatch):
    model, _ = reference
    original = rasters.WarpedBand.read

    def broken(self, row, column, height, width):
        if row > 20:
            raise rasters._damaged(self.info, OSError("disk error"), (row, column))
        return original(self, row, column, height, width)

    monkeypatch.setattr(rasters.WarpedBand, "read", broken)
    with pytest.raises(InputError, match=r"dem.tif.*disk error"):
        run(tmp_path, model)
    assert not list((tmp_path / "out").iterdir())


def test_the_summary_holds_what_the_issue_lists(reference, tmp_path):
    model, _ = reference
    result = run(tmp_path, model)
    with open(result.outputs["summary"], encoding="utf-8") as file:
        summary = json.load(file)
    assert summary["pixels"] == {"valid": 13794, "nodata": 77, "masked": 0}  # 97 x 143 less a corner of 7 x 11
    assert summary["hectares_valid"] == 137.94
    assert summary["model"]["name"] == "tiny"
    for key in ("provider", "seconds", "mpx_per_s", "versions", "inputs", "window_disagreement", "grid", "notes"):
        assert summary[key] is not None
    assert summary["seconds_in_runtime"] <= summary["seconds"]
