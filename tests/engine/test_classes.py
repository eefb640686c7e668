"""Tasks of several classes: seven probabilities and the most probable order, by both models, from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import scenes
import tiny_models
from test_predict import run

from miso_qgis.engine import predict as engine
from miso_qgis.engine.classes import SOIL_ORDER_COLOURS, class_codes, class_colour
from miso_qgis.engine.compare import compare
from miso_qgis.engine.errors import InputError, RuntimeFailure
from miso_qgis.engine.messages import CompareJob, RasterSource
from miso_qgis.engine.progress import Silent

ORDERS = tiny_models.ORDERS
KEYS = [f"soil_order_{what}_{model}" for what in ("probability", "dominant") for model in ("miso", "rf")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose values reach from 0 to 1 over the scene, so that all seven orders occur; RF is shifted."""
    folder = tmp_path_factory.mktemp("classes")
    model = tiny_models.write_model(
        folder / "model", tiny_models.two_tasks(), scale=0.0052, offset=-1.56, rf_scale=0.0052, rf_offset=-1.50
    )
    return folder, model, run(folder, model)


def bands(path):
    with rasterio.open(path) as source:
        return source.read()


def expected(offset):
    """Seven probabilities at every pixel, straight from the scene."""
    value = np.clip(0.0052 * scenes.elevation_on().astype(np.float64) + offset, 0, 1)
    return tiny_models.tents(value, 7)


VALID = scenes.classes() != 0


@pytest.mark.parametrize(("model", "offset"), [("miso", -1.56), ("rf", -1.50)])
def test_seven_bands_hold_the_probabilities_and_sum_to_1(made, model, offset):
    got = bands(made[2].outputs[f"soil_order_probability_{model}"])
    assert got.shape == (7, *VALID.shape)
    assert ((got == -9999) == ~VALID).all()
    # One window blends into the next within float32 of values up to 6 (tents of a plane in steps).
    np.testing.assert_allclose(got[:, VALID], expected(offset)[:, VALID], atol=2e-4)
    np.testing.assert_allclose(got[:, VALID].sum(axis=0), 1, atol=1e-6)


def test_bands_are_described_by_order_and_tagged(made):
    for model in ("miso", "rf"):
        with rasterio.open(made[2].outputs[f"soil_order_probability_{model}"]) as source:
            assert source.descriptions == ORDERS
            assert source.nodata == -9999
            assert source.profile["tiled"]
            assert source.tags()["MISO_SIMULATED"] == "yes"
            assert source.tags(3)["STATISTICS_MAXIMUM"]


@pytest.mark.parametrize("model", ["miso", "rf"])
def test_the_dominant_order_is_the_band_with_the_largest_probability(made, model):
    probabilities = bands(made[2].outputs[f"soil_order_probability_{model}"])
    path = made[2].outputs[f"soil_order_dominant_{model}"]
    (codes,) = bands(path)
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, np.where(VALID, probabilities.argmax(axis=0) + 1, 255))
    assert set(np.unique(codes)) - {1} == {2, 3, 4, 5, 6, 7, 255}
    assert 0 not in codes
    with rasterio.open(path) as source:
        assert source.nodata == 255
        assert source.colormap(1)[3] == (102, 119, 205, 255)  # Gelisols
        assert source.colormap(1)[255] == (0, 0, 0, 0)
        assert source.descriptions[0].endswith("1 Andisols, 2 Entisols, 3 Gelisols, 4 Histosols, 5 Inceptisols, "
                                               "6 Mollisols, 7 Spodosols")  # fmt: skip


def test_permafrost_beside_it_is_what_it_is_alone(made, tmp_path):
    folder, _, result = made
    spec = tiny_models.manifest()
    alone = tiny_models.write_model(
        tmp_path / "model", spec, scale=0.0052, offset=-1.56, rf_scale=0.0052, rf_offset=-1.50
    )
    other = run(tmp_path, alone)
    for key in ("nsp_probability_miso", "nsp_probability_rf", "nsp_disagreement", "nsp_difference"):
        np.testing.assert_array_equal(bands(result.outputs[key]), bands(other.outputs[key]), err_msg=key)
    assert sorted(set(result.outputs) - set(other.outputs)) == sorted(KEYS)
    assert {path.stem for path in (folder / "out").iterdir()} == set(result.outputs)


def test_the_summary_holds_areas_by_order(made):
    with open(made[2].outputs["summary"], encoding="utf-8") as file:
        summary = json.load(file)
    about = summary["classes"]["soil_order"]
    assert about["codes"] == {name: code for code, name in enumerate(ORDERS, 1)}
    maps = {model: bands(made[2].outputs[f"soil_order_dominant_{model}"])[0] for model in ("miso", "rf")}
    for model, codes in maps.items():
        # A pixel of 10 m is 0.01 ha.
        wanted = {name: pytest.approx(0.01 * (codes == code).sum()) for code, name in enumerate(ORDERS, 1)}
        assert about["hectares_most_probable"][model] == wanted
        assert sum(about["hectares_most_probable"][model].values()) == pytest.approx(summary["hectares_valid"])
        sums = bands(made[2].outputs[f"soil_order_probability_{model}"])[:, VALID].sum(axis=1, dtype=np.float64)
        assert list(about["hectares_expected"][model].values()) == pytest.approx(list(0.01 * sums), abs=1e-3)
    assert about["hectares_same_class"] == pytest.approx(0.01 * (maps["miso"] == maps["rf"])[VALID].sum())
    assert 0 < about["hectares_same_class"] < summary["hectares_valid"]


@pytest.mark.parametrize("block", [1, 3])
def test_blocks_and_threads_do_not_change_a_single_bit(made, block, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK_WINDOWS", block)
    result = run(tmp_path, made[1], threads=3)
    for key in KEYS:
        np.testing.assert_array_equal(bands(result.outputs[key]), bands(made[2].outputs[key]), err_msg=key)


def test_percent_has_seven_bands_of_bytes_and_the_same_dominant_order(made, tmp_path):
    result = run(tmp_path, made[1], percent=True)
    percent = bands(result.outputs["soil_order_probability_miso"])
    plain = bands(made[2].outputs["soil_order_probability_miso"])
    assert percent.dtype == np.uint8
    np.testing.assert_array_equal(percent, np.where(VALID, np.rint(plain * 100), 255))
    key = "soil_order_dominant_miso"
    np.testing.assert_array_equal(bands(result.outputs[key]), bands(made[2].outputs[key]))


@pytest.mark.parametrize("models", [("miso",), ("rf",)])
def test_one_model_alone_gives_its_own_layers(made, models, tmp_path):
    result = run(tmp_path, made[1], models=models)
    (name,) = models
    assert {key for key in result.outputs if key.startswith("soil_order")} == {key for key in KEYS if name in key}
    for key in (key for key in KEYS if name in key):
        np.testing.assert_array_equal(bands(result.outputs[key]), bands(made[2].outputs[key]), err_msg=key)
    assert "hectares_same_class" not in result.summary["classes"]["soil_order"]


def test_a_forest_for_one_task_only_is_enough(tmp_path):
    spec = tiny_models.two_tasks()
    model = tiny_models.write_model(
        tmp_path / "model", replace(spec, forests={"soil_order": spec.forests["soil_order"]})
    )
    result = run(tmp_path, model)
    assert "nsp_disagreement" not in result.outputs
    assert {"nsp_probability_miso", *KEYS} <= set(result.outputs)


def test_a_model_of_soil_orders_alone_runs(tmp_path):
    spec = tiny_models.two_tasks()
    spec = replace(spec, tasks={"soil_order": spec.tasks["soil_order"]}, forests={})
    result = run(tmp_path, tiny_models.write_model(tmp_path / "model", spec), models=("miso",))
    assert set(result.outputs) == {"soil_order_probability_miso", "soil_order_dominant_miso", "summary"}


def test_codes_are_alphabetical_whatever_the_order_of_the_outputs(made, tmp_path):
    """A network whose outputs come in another order gives the same codes for the same orders."""
    spec = tiny_models.two_tasks()
    turned = replace(spec.tasks["soil_order"], classes=ORDERS[::-1])
    model = tiny_models.write_model(
        tmp_path / "model", replace(spec, tasks={"soil_order": turned}, forests={}), scale=0.0052, offset=-1.56
    )
    result = run(tmp_path, model, models=("miso",))
    (codes,) = bands(result.outputs["soil_order_dominant_miso"])
    (straight,) = bands(made[2].outputs["soil_order_dominant_miso"])
    ties = np.isclose(np.sort(expected(-1.56), axis=0)[-1], 0.5, atol=1e-3)
    np.testing.assert_array_equal(codes[VALID & ~ties], 8 - straight[VALID & ~ties])
    with rasterio.open(result.outputs["soil_order_probability_miso"]) as source:
        assert source.descriptions == ORDERS[::-1]
    assert list(result.summary["classes"]["soil_order"]["hectares_expected"]["miso"]) == list(ORDERS[::-1])


def test_classes_that_do_not_exclude_one_another_are_refused(tmp_path):
    """A network exported with a sigmoid per class runs, and its maps would look right."""
    folder = tiny_models.write_model(tmp_path / "model", tiny_models.two_tasks())
    from onnx import helper

    nodes = [helper.make_node("Expand", ["half", "shape"], ["probabilities"]),
             helper.make_node("Shape", ["features"], ["rows"], end=1),
             helper.make_node("Concat", ["rows", "seven"], ["shape"], axis=0)]  # fmt: skip
    constants = [tiny_models.constant("half", 0.5), tiny_models.constant("seven", [7], np.int64)]
    data = tiny_models.model_bytes(
        [nodes[1], nodes[2], nodes[0]], [("features", ["M", 2])], [("probabilities", ["M", 7])], constants
    )
    (folder / "rf_soil_order.onnx").write_bytes(data)
    tiny_models.write_sums(folder)
    with pytest.raises(RuntimeFailure, match=r"rf_soil_order.onnx.*7 classes sum to 1 only within 2\.5"):
        run(tmp_path, folder)
    assert not (tmp_path / "out").exists()


def test_a_class_map_is_no_probability_map(made, tmp_path):
    """Codes 1 to 7 would otherwise be read as percent."""
    paths = [made[2].outputs[f"soil_order_dominant_{model}"] for model in ("miso", "rf")]
    job = CompareJob(*(RasterSource(path) for path in paths), str(tmp_path / "d.tif"))
    with pytest.raises(InputError, match="colour table"):
        compare(job, Silent())


def test_a_comparison_of_simulated_maps_says_that_they_are(made, tmp_path):
    paths = [made[2].outputs[f"nsp_probability_{model}"] for model in ("miso", "rf")]
    compare(CompareJob(*(RasterSource(path) for path in paths), str(tmp_path / "d.tif")), Silent())
    with rasterio.open(tmp_path / "d.tif") as source:
        assert source.tags()["MISO_SIMULATED"] == "yes"
    # One order against another works band by band.
    orders = [RasterSource(made[2].outputs[f"soil_order_probability_{model}"], 3) for model in ("miso", "rf")]
    result = compare(CompareJob(*orders, str(tmp_path / "g.tif"), summary=str(tmp_path / "s.json")), Silent())
    first, second = (bands(source.path)[2] >= 0.5 for source in orders)
    assert result.summary["pixels"]["both"] == (first & second & VALID).sum()


def test_every_order_has_a_colour_of_its_own_and_other_classes_get_one():
    assert class_codes(("b", "c", "a")) == {"a": 1, "b": 2, "c": 3}
    assert tuple(SOIL_ORDER_COLOURS) == ORDERS
    assert len(set(SOIL_ORDER_COLOURS.values())) == 7
    assert class_colour("Gelisols", 3) == (102, 119, 205)
    assert len({class_colour(name, code) for code, name in enumerate("abcdefg", 1)}) == 7
