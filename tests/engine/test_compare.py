"""Comparing two probability maps."""

import json

import numpy as np
import pytest
import rasterio
import scenes
from rasterio.transform import Affine

from miso_qgis.engine.compare import compare
from miso_qgis.engine.errors import InputError
from miso_qgis.engine.messages import CompareJob, RasterSource
from miso_qgis.engine.progress import Silent

# Worked by hand: every combination at thresholds 0.5 (first) and 0.3 (second), equality counting as present.
FIRST = np.array([[0.1, 0.1, 0.5, 0.9], [0.49, -9999.0, 1.0, 0.0]], np.float32)
SECOND = np.array([[0.1, 0.3, 0.1, 0.8], [0.31, 0.5, -9999.0, 0.29]], np.float32)
CODES = np.array([[0, 1, 2, 3], [1, 255, 255, 0]], np.uint8)


def job(tmp_path, first, second, **changes):
    out = tmp_path / "out"
    places = {"difference": str(out / "difference.tif"), "summary": str(out / "s.json")}
    return CompareJob(
        RasterSource(str(first)),
        RasterSource(str(second)),
        str(out / "disagreement.tif"),
        **{**places, **changes},
    )


def write(tmp_path, name, values, **options):
    return scenes.write_raster(tmp_path / name, values, **{"nodata": -9999.0, **options})


def test_the_classes_are_those_worked_by_hand(tmp_path):
    first, second = write(tmp_path, "a.tif", FIRST), write(tmp_path, "b.tif", SECOND)
    result = compare(job(tmp_path, first, second, second_threshold=0.3), Silent())
    np.testing.assert_array_equal(scenes.read(result.outputs["disagreement"]), CODES)
    expected = np.where(CODES == 255, -9999.0, FIRST - SECOND)
    np.testing.assert_allclose(scenes.read(result.outputs["difference"]), expected, atol=1e-7)
    with open(result.outputs["summary"], encoding="utf-8") as file:
        summary = json.load(file)
    assert summary["pixels"] == {"neither": 2, "second_only": 2, "first_only": 1, "both": 1, "nodata": 2}
    assert summary["hectares"] == {"neither": 0.02, "second_only": 0.02, "first_only": 0.01, "both": 0.01}
    assert summary["share_in_agreement"] == 0.5
    with rasterio.open(result.outputs["disagreement"]) as dataset:
        assert dataset.colormap(1)[2] == (230, 159, 0, 255)
        assert dataset.nodata == 255


def test_percent_and_decimal_numbers_mean_the_same(tmp_path):
    percent = np.where(SECOND == -9999.0, 255, np.rint(SECOND * 100)).astype(np.uint8)
    first, second = write(tmp_path, "a.tif", FIRST), write(tmp_path, "b.tif", percent, nodata=255)
    result = compare(job(tmp_path, first, second, second_threshold=0.3), Silent())
    np.testing.assert_array_equal(scenes.read(result.outputs["disagreement"]), CODES)


def test_a_map_on_another_grid_is_brought_to_the_first(tmp_path):
    first = scenes.write_raster(tmp_path / "a.tif", scenes.elevation_on() / 1000)
    transform = Affine(25, 0, scenes.LEFT - 100, 0, -25, scenes.TOP + 100)
    second = scenes.write_raster(
        tmp_path / "b.tif", scenes.elevation_on(transform=transform, height=50, width=66) / 1000, transform=transform
    )
    result = compare(job(tmp_path, first, second), Silent())
    np.testing.assert_allclose(scenes.read(result.outputs["difference"]), 0.0, atol=2e-5)


def test_a_map_compared_with_itself_differs_nowhere(tmp_path):
    first = scenes.write_raster(tmp_path / "a.tif", scenes.elevation_on() / 1000)
    result = compare(job(tmp_path, first, first), Silent())
    assert (scenes.read(result.outputs["difference"]) == 0.0).all()
    assert result.summary["share_in_agreement"] == 1.0


def too_large(tmp_path, first, second):
    return write(tmp_path, "c.tif", SECOND * 100), {}, ["c.tif", "holds the value", "0 to 1"]


def fill_undeclared(tmp_path, first, second):
    percent = np.where(SECOND == -9999.0, 255, 7).astype(np.uint8)
    return write(tmp_path, "c.tif", percent, nodata=None), {}, ["the value 255", "declare it as nodata"]


def elsewhere(tmp_path, first, second):
    moved = Affine(10, 0, scenes.LEFT + 9000, 0, -10, scenes.TOP)
    return write(tmp_path, "c.tif", SECOND, transform=moved), {}, ["no pixel has a value in both", "309005", "300005"]


def bad_threshold(tmp_path, first, second):
    return second, {"first_threshold": 0.0}, ['Threshold of "MISO"', "between 0 and 1"]


def output_is_input(tmp_path, first, second):
    return second, {"difference": str(first)}, ["same file as input"]


def no_crs(tmp_path, first, second):
    return write(tmp_path, "c.tif", SECOND, crs=None), {}, ['map "RF"', "no coordinate reference system"]


@pytest.mark.parametrize(
    "bad", [too_large, fill_undeclared, elsewhere, bad_threshold, output_is_input, no_crs], ids=lambda bad: bad.__name__
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(bad, tmp_path):
    first, second = write(tmp_path, "a.tif", FIRST), write(tmp_path, "b.tif", SECOND)
    other, changes, words = bad(tmp_path, first, second)
    with pytest.raises(InputError) as caught:
        compare(job(tmp_path, first, other, **changes), Silent())
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
