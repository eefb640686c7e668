"""Terrain covariates against values worked by hand and laws that hold for any DEM; SAGA: test_terrain_saga.py."""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from miso_qgis.engine.errors import Cancelled, InputError, OutputError
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Silent
from miso_qgis.engine.terrain import DESCRIPTIONS, NODATA, SEVEN, UNITS, derive_terrain, tpi_statistics, write_terrain

ROOT = Path(__file__).resolve().parents[2]
WATERSHED = ROOT.parent / "shared" / "data" / "cpcrw_50m" / "elevation.tif"
NORTH_UP = Affine(10, 0, 500000, 0, -10, 7200000)


def hills(height=41, width=53, seed=0, holes=True):
    """A smooth random surface in float32 (as files hold it), without level ground, with nodata inside and outside."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(height, width)).cumsum(0).cumsum(1) * 2 + 400
    z = z.astype(np.float32).astype(np.float64)
    if holes:
        z[9, 11] = np.nan
        z[20:23, 30:37] = np.nan
        z[:, 0][:15] = np.nan
        z[-6:, -9:] = np.nan
    return z


def write_dem(path, values, transform=NORTH_UP, crs="EPSG:32606", nodata=-9999.0, dtype="float32", **profile):
    height, width = values.shape
    kinds = {"driver": "GTiff", "count": 1, "crs": crs, "transform": transform, "nodata": nodata, "dtype": dtype}
    with rasterio.open(path, "w", height=height, width=width, **{**kinds, **profile}) as dataset:
        filled = values if nodata is None else np.where(np.isnan(values), nodata, values)
        dataset.write(filled.astype(dtype), 1)
    return RasterSource(str(path))


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1, masked=True).astype(np.float64).filled(np.nan)


def turn_apart(first, second):
    """Smallest angle between two aspects, degrees."""
    return np.abs((first - second + 180.0) % 360.0 - 180.0)


# --- worked by hand ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "east", "north"),
    [(0, 0, 1), (45, 1, 1), (90, 1, 0), (135, 1, -1), (180, 0, -1), (225, -1, -1), (270, -1, 0), (315, -1, 1)],
)
def test_a_plane_that_falls_to_one_side_has_that_aspect_and_its_slope(aspect, east, north):
    row, column = np.mgrid[:15, :17]
    # It falls 3 m per 30 m cell along the axis, or along both axes on the diagonals.
    found = derive_terrain(1000.0 - 3.0 * (east * column - north * row), 30.0)
    inner = (slice(4, -4), slice(4, -4))
    assert np.all(turn_apart(found["aspect"][inner], aspect) < 1e-5)
    slope = math.degrees(math.atan(0.1 * math.hypot(east, north)))
    np.testing.assert_allclose(found["slope"][inner], slope, rtol=1e-6)
    np.testing.assert_allclose(found["maximum_curvature"][inner], 0.0, atol=1e-12)


def test_the_last_row_of_a_plane_keeps_half_of_its_slope():
    row, _ = np.mgrid[:15, :17]
    slope = derive_terrain(1000.0 - 3.0 * row, 30.0)["slope"]
    half = math.degrees(math.atan(0.05))  # of the nine rows of its window, five exist; the others count as level
    np.testing.assert_allclose(slope[[0, -1], 4:-4], half, rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "mixed", "expected"),
    [
        # z = p x^2 + q y^2 + mixed x y has the greatest curvature -p - q + sqrt((p - q)^2 + mixed^2) (Wood 1996).
        (1e-3, 3e-3, 0.0, -2e-3),  # a bowl: hollow in every direction, least so along x
        (-1e-3, -3e-3, 0.0, 6e-3),  # a dome
        (-1e-3, 1e-3, 0.0, 2e-3),  # a saddle
        (0.0, 0.0, 2e-3, 2e-3),
        (1e-3, 1e-3, 4e-3, 2e-3),
    ],
)
def test_maximum_curvature_of_second_degree_surfaces_is_exact(p, q, mixed, expected):
    row, column = np.mgrid[:13, :11]
    x, y = (column - 5) * 20.0, (6 - row) * 20.0
    found = derive_terrain(500.0 + p * x * x + q * y * y + mixed * x * y, 20.0)
    np.testing.assert_allclose(found["maximum_curvature"][4:-4, 4:-4], expected, rtol=1e-5)


def test_aspect_of_a_cone_points_away_from_its_top():
    row, column = np.mgrid[:61, :61]
    x, y = column - 30, 30 - row
    found = derive_terrain(900.0 - 5.0 * np.hypot(x, y), 30.0)
    outward = np.degrees(np.arctan2(x, y)) % 360.0
    for i, j in [(10, 30), (30, 50), (50, 30), (30, 10), (12, 48), (48, 48), (48, 12), (12, 12)]:
        assert turn_apart(found["aspect"][i, j], outward[i, j]) < 1e-4
    far = (np.hypot(x, y) > 20) & (np.abs(x) < 26) & (np.abs(y) < 26)
    assert turn_apart(found["aspect"], outward)[far].max() < 0.2
    # The window's 9 cells see the cone's sideways bend, which takes some of the slope away.
    np.testing.assert_allclose(found["slope"][far], math.degrees(math.atan(5 / 30)), rtol=0.01)


def test_topographic_position_of_one_raised_cell():
    z = np.full((15, 15), 100.0)
    z[7, 7] = 149.0
    found = derive_terrain(z, 10.0, tpi_statistics=(0.0, 1.0, 0.0, 1.0))["topographic_position_index"]
    assert found[7, 7] == pytest.approx(48.0)  # 49 m above 48 of the 49 cells of the large disc
    assert found[7, 8] == pytest.approx(-49 / 5)  # the small disc has 5 cells, one of them raised
    assert found[8, 8] == pytest.approx(-1.0)  # diagonal: only the large disc sees it
    assert found[7, 12] == 0.0


def test_all_water_of_a_bowl_reaches_its_lowest_cell():
    row, column = np.mgrid[:11, :13]
    x, y = column - 6.0, row - 5.0
    # 0.3 m per cell of tilt leave the lowest cell where it is but give it a slope of 0.6 m over two cells of 10 m.
    found = derive_terrain(100.0 + x * x + y * y + 0.3 * x, 10.0)
    assert found["stream_power_index"][5, 6] == pytest.approx(11 * 13 * 100.0 * 0.03)


def test_level_ground_has_the_values_that_saga_gives_it():
    found = derive_terrain(np.full((10, 12), 321.0), 10.0)
    for name, value in {"slope": 0, "aspect": 270, "maximum_curvature": 0, "topographic_position_index": 0}.items():
        assert np.all(found[name] == value), name
    assert np.all(found["stream_power_index"] == 0)
    # One cell of 10 m in each catchment, slope of 0.01 degrees: ln(10 / tan(0.01 deg)).
    np.testing.assert_allclose(found["saga_wetness_index"], math.log(10 / math.tan(math.radians(0.01))), rtol=1e-6)


def test_wetness_around_a_hollow_of_one_cell():
    z = np.full((9, 9), 100.0)
    z[4, 4] = 99.0
    wetness = derive_terrain(z, 10.0)["saga_wetness_index"]
    # The hollow drains its eight neighbours: 9 cells; all others 1. Level cells take all of a neighbour's area, first
    # the diagonal ones from the hollow, then all from those. Its direct neighbours slope (1 m over 20 m) and take less.
    slope = math.atan(0.05)
    less = 9 * 0.1 ** (slope * math.exp(10**slope))
    level = math.tan(math.radians(0.01))
    assert wetness[0, 0] == pytest.approx(math.log(9 * 10 / level))
    assert wetness[4, 4] == pytest.approx(math.log((5 * 9 + 4 * less) / 9 * 10 / level))
    beside = math.tan(slope + math.radians(0.01))
    assert wetness[4, 5] == pytest.approx(math.log((6 * 9 + 3 * less) / 9 * 10 / beside))


# --- laws -------------------------------------------------------------------------------------------------------------


def same(first, second, names=SEVEN):
    for name in names:
        tolerance = 1e-5 * (np.nanstd(second[name]) or 1.0)
        difference = first[name].astype(np.float64) - second[name]
        if name == "aspect":
            difference = turn_apart(first[name].astype(np.float64), second[name])
        assert np.array_equal(np.isnan(first[name]), np.isnan(second[name])), name
        assert np.nanmax(np.abs(difference)) <= tolerance, name


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turning_the_dem_turns_the_covariates_and_the_aspect(quarters):
    z = hills()
    expected = {name: np.rot90(values, quarters) for name, values in derive_terrain(z, 10.0).items()}
    expected["aspect"] = (expected["aspect"] - 90.0 * quarters) % 360.0  # rot90 turns against the clock
    same(derive_terrain(np.rot90(z, quarters), 10.0), expected)


def test_mirroring_the_dem_mirrors_the_covariates_and_the_aspect():
    z = hills()
    expected = {name: values[:, ::-1] for name, values in derive_terrain(z, 10.0).items()}
    expected["aspect"] = (360.0 - expected["aspect"]) % 360.0
    same(derive_terrain(z[:, ::-1], 10.0), expected)


def test_raising_the_dem_changes_elevation_only():
    z = hills()
    raised = derive_terrain(z + 512.0, 10.0)
    np.testing.assert_allclose(raised.pop("elevation"), z + 512.0, rtol=1e-6)
    same(raised, derive_terrain(z, 10.0), raised)


def test_a_dem_of_twice_the_size_is_half_as_curved():
    z = hills()
    once, twice = derive_terrain(z, 10.0), derive_terrain(2.0 * z, 20.0)
    once["maximum_curvature"] = once["maximum_curvature"] / 2.0
    once["stream_power_index"] = once["stream_power_index"] * 4.0
    once["saga_wetness_index"] = once["saga_wetness_index"] + math.log(2.0)
    same(twice, once, [name for name in SEVEN if name != "elevation"])


def test_water_ends_in_pits_and_none_is_lost():
    z = hills()
    padded = np.pad(z, 1, constant_values=np.nan)
    around = np.stack([np.roll(padded, (m, k), (0, 1)) for m in (-1, 0, 1) for k in (-1, 0, 1) if m or k])
    pits = ~np.isnan(z) & ~np.any(around < padded, axis=0)[1:-1, 1:-1]
    found = derive_terrain(z, 10.0)

    def difference(axis):
        before, after = (np.roll(padded, shift, axis) for shift in (1, -1))
        rise, fall = after - padded, padded - before
        rise, fall = np.where(np.isnan(rise), fall, rise), np.where(np.isnan(fall), rise, fall)
        return np.nan_to_num((rise + fall) / 20.0)[1:-1, 1:-1]

    gradient = np.hypot(difference(0), difference(1))
    assert np.all(gradient[pits] > 0)
    in_pits = found["stream_power_index"][pits].astype(np.float64) / gradient[pits] / 100.0
    assert in_pits.sum() == pytest.approx(np.count_nonzero(~np.isnan(z)), rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_missing_cells_are_missing_in_all_seven_and_nowhere_else(bad):
    z = hills(holes=False)
    z[3:6, 40:44] = bad
    z[30, 7] = bad
    for name, values in derive_terrain(z, 10.0).items():
        assert values.dtype == np.float32
        assert np.array_equal(np.isnan(values), ~np.isfinite(z)), name


def test_an_island_of_one_cell_has_values():
    z = np.full((9, 9), np.nan)
    z[4, 4] = 50.0
    found = derive_terrain(z, 10.0)
    assert {name: float(values[4, 4]) for name, values in found.items() if name != "saga_wetness_index"} == {
        "elevation": 50.0,
        "aspect": 270.0,
        "slope": 0.0,
        "maximum_curvature": 0.0,
        "topographic_position_index": 0.0,
        "stream_power_index": 0.0,
    }
    assert np.isfinite(found["saga_wetness_index"][4, 4])


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", ">f4"])
def test_any_real_type_and_memory_order_gives_the_same(dtype):
    z = np.round(hills(holes=False) % 200.0)
    same(derive_terrain(np.asfortranarray(z.astype(dtype)), 10.0), derive_terrain(z, 10.0))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dem(tmp_path):
    return write_dem(tmp_path / "dem.tif", hills())


# The overlap of 64 cells covers small rasters whole: with 0 and 3 cells, water and suction do cross between blocks.
@pytest.mark.parametrize("overlap_px", [0, 3, 64])
@pytest.mark.parametrize("block_px", [7, 16, 40, 512])
def test_blocks_give_what_the_whole_array_gives(tmp_path, dem, block_px, overlap_px, monkeypatch):
    monkeypatch.setattr("miso_qgis.engine.terrain._OVERLAP_PX", overlap_px)
    paths = write_terrain(dem, tmp_path / "out", Silent(), block_px=block_px)
    whole = derive_terrain(hills(), 10.0)
    assert list(paths) == list(SEVEN)
    for name, path in paths.items():
        # Sums over cells run in another order, which float32 hardly ever shows.
        np.testing.assert_allclose(read(path), whole[name], rtol=2e-7, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("overlap_px", [0, 3])
def test_a_stream_that_winds_across_block_borders_loses_no_water(tmp_path, overlap_px, monkeypatch):
    monkeypatch.setattr("miso_qgis.engine.terrain._OVERLAP_PX", overlap_px)
    # A trench that snakes through the whole raster, deeper at every step: its last cell drains everything on the way.
    z = np.full((36, 35), 1000.0)
    step = 0
    for i in range(1, 35, 2):
        columns = range(1, 34) if (i // 2) % 2 == 0 else range(33, 0, -1)
        for j in columns:
            z[i, j] = 500.0 - 0.25 * step
            step += 1
        if i + 2 < 35:
            z[i + 1, j] = 500.0 - 0.25 * step
            step += 1
    source = write_dem(tmp_path / "dem.tif", z)
    paths = write_terrain(source, tmp_path / "out", Silent(), block_px=6)
    for name, values in derive_terrain(z, 10.0).items():
        np.testing.assert_allclose(read(paths[name]), values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("overlap_px", [0, 3])
def test_suction_crosses_block_borders_over_level_water(tmp_path, overlap_px, monkeypatch):
    monkeypatch.setattr("miso_qgis.engine.terrain._OVERLAP_PX", overlap_px)
    row, column = np.mgrid[:40, :45]
    z = np.where(column < 8, 200.0 - 3 * column + 0.1 * np.abs(row - 33), 150.0)  # a slope, and a lake at its foot
    paths = write_terrain(write_dem(tmp_path / "dem.tif", z), tmp_path / "out", Silent(), block_px=9)
    name = "saga_wetness_index"
    wetness = read(paths[name])
    np.testing.assert_allclose(wetness, derive_terrain(z.astype(np.float32), 10.0)[name], rtol=1e-6)
    assert np.ptp(wetness[:, 11:]) < 1e-6  # all of the lake, whichever block it lies in, has what its wettest cell has
    assert wetness[0, 44] > math.log(2 * 10 / math.tan(math.radians(0.01)))


def test_files_say_what_they_hold_on_the_grid_of_the_dem(tmp_path, dem):
    paths = write_terrain(dem, tmp_path / "out", Silent(), covariates=(*SEVEN, "aspect_sin", "aspect_cos"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(f"{name}.tif" for name in paths)
    for name, path in paths.items():
        with rasterio.open(path) as dataset, rasterio.open(dem.path) as original:
            assert (dataset.crs, dataset.transform, dataset.shape) == (original.crs, original.transform, original.shape)
            assert (dataset.dtypes, dataset.nodata, dataset.count) == (("float32",), NODATA, 1)
            assert dataset.profile["tiled"]
            assert dataset.profile["compress"] == "deflate"
            assert (dataset.descriptions[0], dataset.units[0]) == (DESCRIPTIONS[name], UNITS[name])
        assert np.array_equal(np.isnan(read(path)), np.isnan(hills())), name
    aspect = np.radians(read(paths["aspect"]))
    np.testing.assert_allclose(read(paths["aspect_sin"]), np.sin(aspect), atol=1e-6)
    np.testing.assert_allclose(read(paths["aspect_cos"]), np.cos(aspect), atol=1e-6)


@pytest.mark.parametrize("flip", ["south-up", "east-left", "both"])
def test_flipped_rasters_give_the_same_values_at_the_same_places(tmp_path, dem, flip):
    z = hills()
    height, width = z.shape
    rows = -1 if flip != "east-left" else 1
    columns = -1 if flip != "south-up" else 1
    left, top = (0 if columns > 0 else 10 * width), (0 if rows > 0 else 10 * height)
    transform = Affine(10 * columns, 0, 500000 + left, 0, -10 * rows, 7200000 - top)
    flipped = write_dem(tmp_path / "flipped.tif", z[::rows, ::columns], transform=transform)
    straight = write_terrain(dem, tmp_path / "a", Silent())
    turned = write_terrain(flipped, tmp_path / "b", Silent(), block_px=16)
    for name in SEVEN:
        with rasterio.open(turned[name]) as dataset:
            assert dataset.transform == transform
        # Blocks cut the raster elsewhere, so that sums differ in their last digits.
        np.testing.assert_allclose(
            read(turned[name])[::rows, ::columns], read(straight[name]), rtol=2e-7, atol=1e-6, err_msg=name
        )


def test_scale_and_offset_are_applied(tmp_path):
    raw = np.round(hills(holes=False))
    source = write_dem(tmp_path / "scaled.tif", raw, dtype="int16", nodata=-32768)
    with rasterio.open(source.path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.25,), (100.0,)
    paths = write_terrain(source, tmp_path / "out", Silent())
    for name, values in derive_terrain(raw * 0.25 + 100.0, 10.0).items():
        np.testing.assert_allclose(read(paths[name]), values, rtol=2e-7, atol=1e-6, err_msg=name)


def test_undeclared_nan_and_infinity_are_missing(tmp_path):
    z = hills(holes=False)
    z[5:8, 5:8] = np.nan
    z[25, 25] = np.inf
    paths = write_terrain(write_dem(tmp_path / "d.tif", z, nodata=None), tmp_path / "out", Silent())
    for name, path in paths.items():
        assert np.array_equal(np.isnan(read(path)), ~np.isfinite(z)), name


def test_a_mask_band_makes_cells_missing(tmp_path):
    z = hills(holes=False)
    source = write_dem(tmp_path / "d.tif", z, nodata=None)
    mask = np.ones(z.shape, dtype=bool)
    mask[10:14, 3:9] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source.path, "r+") as dataset:
        dataset.write_mask(mask)
    paths = write_terrain(source, tmp_path / "out", Silent())
    assert np.array_equal(~np.isnan(read(paths["saga_wetness_index"])), mask)


def test_another_band_than_the_first_can_be_the_dem(tmp_path):
    kinds = {"driver": "GTiff", "dtype": "float32", "crs": "EPSG:3338", "transform": NORTH_UP}
    with rasterio.open(tmp_path / "d.tif", "w", height=12, width=14, count=2, **kinds) as dataset:
        dataset.write(np.zeros((12, 14), np.float32), 1)
        dataset.write(hills(12, 14, holes=False).astype(np.float32), 2)
    paths = write_terrain(RasterSource(str(tmp_path / "d.tif"), 2), tmp_path / "out", Silent())
    np.testing.assert_allclose(read(paths["elevation"]), hills(12, 14, holes=False), rtol=1e-6)


def test_feet_of_the_crs_become_metres(tmp_path):
    z = hills(holes=False)
    feet = write_dem(tmp_path / "d.tif", z, crs="EPSG:2225", transform=Affine(30, 0, 6e6, 0, -30, 2e6))
    paths = write_terrain(feet, tmp_path / "out", Silent(), covariates=("slope",))
    expected = derive_terrain(z, 30 * 1200 / 3937)["slope"]  # the US survey foot
    np.testing.assert_allclose(read(paths["slope"]), expected, rtol=1e-6)


def test_given_statistics_make_parts_agree_with_the_whole(tmp_path):
    whole = write_dem(tmp_path / "whole.tif", hills())
    part = write_dem(tmp_path / "part.tif", hills()[:, :30])
    statistics = tpi_statistics(whole)
    name = "topographic_position_index"
    a = write_terrain(whole, tmp_path / "a", Silent(), covariates=(name,))[name]
    b = write_terrain(part, tmp_path / "b", Silent(), covariates=(name,), tpi_statistics=statistics)[name]
    alone = write_terrain(part, tmp_path / "c", Silent(), covariates=(name,))[name]
    np.testing.assert_allclose(read(b)[:, :26], read(a)[:, :26], atol=1e-6)
    assert np.nanmax(np.abs(read(alone)[:, :26] - read(a)[:, :26])) > 0.01


# --- what is refused --------------------------------------------------------------------------------------------------


def sheared(path):
    return write_dem(path, hills(), transform=Affine(10, 2, 500000, 1, -10, 7200000))


def with_unit(path):
    source = write_dem(path, hills())
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_unit(1, "ft")
    return source


def truncated(path):
    write_dem(path, hills(200, 200, holes=False))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return RasterSource(str(path))


def not_a_raster(path):
    path.write_text("elevation\n")
    return RasterSource(str(path))


REFUSED = {
    "geographic": (
        lambda p: write_dem(p, hills(), crs="EPSG:4326", transform=Affine(1e-3, 0, -147, 0, -1e-3, 65)),
        ["EPSG:4326", "degree", "Reproject", "EPSG:3338"],
    ),
    "no CRS": (lambda p: write_dem(p, hills(), crs=None), ["has no CRS", "Assign"]),
    "rotated": (sheared, ["rotated or sheared", "Reproject"]),
    "non-square": (
        lambda p: write_dem(p, hills(), transform=Affine(10, 0, 500000, 0, -10.2, 7200000)),
        ["10 x 10.2", "Square cells", "Resample"],
    ),
    "too small": (lambda p: write_dem(p, np.ones((8, 40))), ["40 x 8", "9 x 9", "larger area"]),
    "all nodata": (lambda p: write_dem(p, np.full((20, 20), np.nan)), ["no valid cell", "nodata value"]),
    "undeclared -9999": (lambda p: write_dem(p, np.nan_to_num(hills(), nan=-9999), nodata=None), ["-9999", "nodata"]),
    "undeclared -3.4e38": (
        lambda p: write_dem(p, np.nan_to_num(hills(), nan=-3.4e38), nodata=None),
        ["-3.4e+38", "nodata"],
    ),
    "feet": (with_unit, ['"ft"', "metres", "0.3048"]),
    "complex": (lambda p: write_dem(p, hills(), dtype="complex64", nodata=None), ["complex64", "Choose another band"]),
    "truncated": (truncated, ["cannot be read", "rows", "again"]),
    "not a raster": (not_a_raster, ["cannot be opened", "Check the path"]),
    "missing": (lambda p: RasterSource(str(p)), ["cannot be opened", "Check the path"]),
    "no such band": (lambda p: RasterSource(write_dem(p, hills()).path, 3), ["no band 3", "Choose"]),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_unusable_dems_are_refused_with_what_to_do(tmp_path, fault):
    make, words = REFUSED[fault]
    source = make(tmp_path / "bad dem.tif")
    with pytest.raises(InputError) as caught:
        write_terrain(source, tmp_path / "out", Silent())
    text = str(caught.value)
    assert "bad dem.tif" in text
    for word in words:
        assert word in text
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_all_faults_of_the_header_are_told_at_once(tmp_path):
    source = write_dem(tmp_path / "d.tif", np.ones((5, 5)), crs=None, transform=Affine(10, 0, 0, 0, -30, 0))
    with pytest.raises(InputError) as caught:
        write_terrain(source, tmp_path / "out", Silent())
    assert len(caught.value.problems) == 3


def test_cells_within_one_percent_of_square_are_accepted(tmp_path):
    source = write_dem(tmp_path / "d.tif", hills(), transform=Affine(10, 0, 500000, 0, -10.05, 7200000))
    assert write_terrain(source, tmp_path / "out", Silent())["slope"].exists()


def test_an_unknown_covariate_is_refused_with_the_known_ones(tmp_path, dem):
    with pytest.raises(InputError, match=r"'tpi': it is not known.*topographic_position_index"):
        write_terrain(dem, tmp_path / "out", Silent(), covariates=("tpi",))


@pytest.mark.parametrize("size", [0.0, -10.0, math.nan, math.inf])
def test_a_cell_size_that_is_no_length_is_refused(size):
    with pytest.raises(InputError, match="cell size"):
        derive_terrain(hills(), size)


def test_the_dem_is_never_overwritten(tmp_path):
    source = write_dem(tmp_path / "elevation.tif", hills())
    before = (tmp_path / "elevation.tif").read_bytes()
    with pytest.raises(OutputError, match=r'same file as input "dem".*another folder'):
        write_terrain(source, tmp_path, Silent())
    assert (tmp_path / "elevation.tif").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["elevation.tif"]


# --- faults -----------------------------------------------------------------------------------------------------------


class Watcher(Silent):
    """Keeps reports; cancels when asked for the ``limit``-th time."""

    def __init__(self, limit=None):
        self.limit, self.asked, self.reports = limit, 0, []

    def report(self, done, total, text=""):
        self.reports.append((done / total, text))

    def raise_if_cancelled(self):
        self.asked += 1
        if self.limit is not None and self.asked > self.limit:
            raise Cancelled


def test_progress_rises_from_nothing_to_all_and_is_asked_before_every_block(tmp_path, dem):
    watcher = Watcher()
    write_terrain(dem, tmp_path / "out", watcher, block_px=16)
    shares = [share for share, _ in watcher.reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len({text for _, text in watcher.reports}) == 4
    blocks = math.ceil(41 / 16) * math.ceil(53 / 16)
    assert watcher.asked >= 4 * blocks


def test_cancelling_at_any_moment_leaves_nothing_and_keeps_older_results(tmp_path, dem):
    watcher = Watcher()
    write_terrain(dem, tmp_path / "full", watcher, block_px=32)
    older = tmp_path / "older"
    older.mkdir()
    (older / "slope.tif").write_bytes(b"an older result")
    for limit in range(watcher.asked):
        for folder in (tmp_path / "new", older):
            with pytest.raises(Cancelled):
                write_terrain(dem, folder, Watcher(limit), block_px=32)
        assert not (tmp_path / "new").exists()
        assert [p.name for p in older.iterdir()] == ["slope.tif"]
    assert (older / "slope.tif").read_bytes() == b"an older result"


def test_a_folder_that_cannot_be_made_is_named(tmp_path, dem):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"file.*nothing can be written there.*another folder"):
        write_terrain(dem, tmp_path / "file" / "out", Silent())


def test_too_little_space_is_told_before_the_work_starts(tmp_path, dem, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("miso_qgis.engine.outputs.shutil.disk_usage", lambda path: usage)
    watcher = Watcher()
    with pytest.raises(OutputError, match=r"MB are free.*are needed.*Free some space"):
        write_terrain(dem, tmp_path / "out", watcher)
    assert watcher.reports == []
    assert not (tmp_path / "out").exists()


def write_with_limit(source, folder, covariates, limit_bytes):
    """Run in a child in which no file can grow beyond a limit, as on a full disk."""
    code = f"""
        import resource, sys
        from pathlib import Path
        from miso_qgis.engine.errors import OutputError
        from miso_qgis.engine.messages import RasterSource
        from miso_qgis.engine.progress import Silent
        from miso_qgis.engine.terrain import derive_terrain, write_terrain
        import numpy as np
        derive_terrain(np.ones((9, 9)), 1.0)  # compile, and write the compiler's cache, before the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
        try:
            write_terrain(RasterSource({source.path!r}), Path({str(folder)!r}), Silent(), covariates={covariates!r})
        except OutputError as error:
            print(error)
            sys.exit(7)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(os.name != "posix", reason="file size limits need POSIX")
@pytest.mark.parametrize(
    ("covariates", "share"),
    # A scratch plane of float64 is larger than any result. Where there is none, the last bytes of a result are written
    # when it is closed, and GDAL tells nobody that they were not.
    [(SEVEN, 0.01), (SEVEN, 0.9), (SEVEN, None), (("slope",), 0.05), (("slope",), 0.999), (("slope",), None)],
)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, covariates, share):
    noise = np.random.default_rng(3).uniform(100, 900, size=(200, 200))
    source = write_dem(tmp_path / "dem.tif", noise)
    largest = 8 * noise.size
    if covariates != SEVEN:
        largest = write_terrain(source, tmp_path / "free", Silent(), covariates=covariates)["slope"].stat().st_size
    limit = 2 * largest if share is None else int(share * largest)
    done = write_with_limit(source, tmp_path / "out", covariates, limit)
    if share is None:  # the same run with room enough: the test can fail
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 7, done.stdout + done.stderr
    for words in (str(tmp_path / "out"), "needed", "folder"):
        assert words in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_area(tmp_path):
    peaks = []
    for size in (1000, 3000):
        row, column = np.mgrid[:size, :size].astype(np.float32)
        source = write_dem(tmp_path / f"{size}.tif", 300 + 40 * np.sin(row / 60) * np.cos(column / 90), tiled=True)
        code = f"""
            from pathlib import Path
            from miso_qgis.engine.messages import RasterSource
            from miso_qgis.engine.progress import Silent
            from miso_qgis.engine.terrain import write_terrain
            write_terrain(RasterSource({source.path!r}), Path({str(tmp_path / "out")!r}), Silent())
            # Not ru_maxrss, which a child inherits from the process that started it.
            print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
        """
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
        peaks.append(float(done.stdout) / 1024)
    # Whole planes of the larger one would be 8 times 64 MB more.
    assert peaks[1] - peaks[0] < 60


# --- the watershed ----------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(not WATERSHED.exists(), reason=f"{WATERSHED.name} of the watershed is not beside the checkout")
def test_every_cell_of_the_watershed_has_all_seven(tmp_path):
    paths = write_terrain(RasterSource(str(WATERSHED)), tmp_path, Silent())
    valid = ~np.isnan(read(WATERSHED))
    assert valid.sum() == 40_649
    for name, path in paths.items():
        assert np.array_equal(~np.isnan(read(path)), valid), name
    slope, wetness = read(paths["slope"]), read(paths["saga_wetness_index"])
    elevation, position = read(paths["elevation"]), read(paths["topographic_position_index"])
    assert slope[valid].max() < 45
    # Wet ground is level and low, for the watershed and for its surroundings.
    for other in (slope, elevation, position):
        assert np.corrcoef(wetness[valid], other[valid])[0, 1] < -0.2
