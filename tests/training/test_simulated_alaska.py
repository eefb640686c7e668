"""The simulated landscape: units, truth, surveys, and that half of its causes really hide in the pattern."""

import csv
import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from scipy import ndimage

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import AKVEG_ORIGIN
from training import simulated_alaska as alaska
from training import simulated_alaska_climate as climates
from training import simulated_alaska_reflectance as reflectance
from training import simulated_alaska_relief as reliefs
from training import simulated_alaska_survey as surveys
from training import simulated_alaska_truth as truths
from training.dataset import read_dataset
from training.sites import CLASSES

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = alaska.Settings(seed=3, side_km=5.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("simulated") / "alaska"
    alaska.simulate_alaska(path, SETTINGS)
    return path


@pytest.fixture(scope="module")
def ground():
    """Everything that the image is made of, before the image."""
    relief = reliefs.make_relief(SETTINGS.chance(0), SETTINGS.side_px)
    climate, exposure = climates.make_climate(SETTINGS.chance(1), relief), climates.make_exposure(relief)
    return relief, climate, exposure, truths.make_patterns(SETTINGS.chance(2), relief, exposure)


def cells(folder, name):
    with rasterio.open(folder / name) as source:
        return source.read()


def sites(folder):
    with (folder / "sites.csv").open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


# Files and units


def test_rasters_lie_on_the_akveg_grid_are_tiled_and_say_that_they_are_simulated(folder):
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as source:
            assert source.tags()["SIMULATED"] == "yes"
            assert all(text.startswith("SIMULATED") for text in source.descriptions)
            assert source.crs.to_epsg() == 3338
            assert source.compression.value == "DEFLATE"
            if source.res == (10.0, 10.0):
                assert (source.transform.c - AKVEG_ORIGIN[0]) % 10 == 0
                assert (AKVEG_ORIGIN[1] - source.transform.f) % 10 == 0
                assert source.shape == (500, 500)
                assert source.profile["tiled"]
            else:
                assert source.res == (800.0, 800.0)


def test_values_are_in_the_units_and_ranges_of_the_description(folder):
    dataset = read_dataset(folder)
    for name, spec in dataset.inputs.items():
        source = dataset.sources[name]
        with rasterio.open(dataset.path(source.path)) as raster:
            values = raster.read(source.band, masked=True)
            assert raster.units[source.band - 1] == spec.unit
        assert np.ma.count_masked(values) == 0
        assert spec.range[0] <= values.min() < values.max() <= spec.range[1], name
    bands = cells(folder, "sentinel2.tif")
    nsp = cells(folder, "truth_nsp.tif")[0]
    red, nir, swir = (bands[n].astype(float) for n in (0, 6, 7))
    land = ndimage.binary_erosion(nsp != 255, iterations=2)
    water = ndimage.binary_erosion(nsp == 255, iterations=2)
    # What any July scene shows: leaves shine in the near infrared, water is black in the short wave.
    assert bands.dtype == np.uint16
    assert 0.5 < np.median((nir - red)[land] / (nir + red)[land]) < 0.9
    assert np.median(swir[water]) < 150 < 800 < np.median(swir[land])
    warmth = cells(folder, "summer_warmth_index.tif")
    assert 25 < warmth.min() < warmth.max() < 67.4
    assert cells(folder, "january_minimum_temperature.tif").min() > -39.8
    assert cells(folder, "annual_precipitation.tif").min() > 200


def test_the_engine_reads_all_channels_everywhere(folder, tmp_path):
    dataset = read_dataset(folder)
    assert dataset.simulated
    assert [group.name for group in dataset.groups] == ["satellite", "covariates"]
    # 19 channels of the paper, aspect as sine and cosine.
    assert [len(group.channels) for group in dataset.groups] == [9, 8 + 3]
    assert dataset.grid.shape == (500, 500)
    with dataset.stack(tmp_path) as stack:
        values = stack.read(0, 0, 500, 500)
        assert stack.masked_out_of_range == {}
    assert np.isfinite(values).all()
    assert np.array_equal(values[0], cells(folder, "sentinel2.tif")[0])
    names = [channel.name for channel in dataset.channels]
    assert np.allclose(values[names.index("elevation")], cells(folder, "dem.tif")[0])
    # Standardised with the statistics of this very DEM, each scale has mean 0; the larger of the two stays near it.
    assert abs(values[names.index("topographic_position_index")].mean()) < 0.3


def test_readme_summary_and_access_say_that_they_are_simulated(folder):
    assert (folder / "README.txt").read_text(encoding="utf-8").splitlines()[0].startswith("SIMULATED")
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["simulated"] is True
    meta, _, _, fields = pyogrio.raw.read(folder / "access.gpkg")
    assert set(fields[list(meta["fields"]).index("simulated")]) == {"yes"}
    assert {"river", "road"} <= set(fields[list(meta["fields"]).index("kind")])


# Truth


def test_permafrost_is_drawn_with_its_probability_in_every_cell(folder):
    nsp, probability = cells(folder, "truth_nsp.tif")[0], cells(folder, "truth_nsp_probability.tif")[0]
    assert np.array_equal(nsp == 255, probability == -9999)
    present, chance = nsp[nsp != 255].astype(float), probability[nsp != 255].astype(float)
    assert chance.min() >= 0
    assert chance.max() <= 1
    for low, high in ((0, 0.02), (0.02, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.98), (0.98, 1.01)):
        part = (chance >= low) & (chance < high)
        spread = math.sqrt((chance[part] * (1 - chance[part])).sum())
        assert abs(present[part].sum() - chance[part].sum()) < 4.5 * spread + 1, (low, high)
    # Each cell by itself: the residuals of neighbours are not correlated.
    residual = np.where(nsp == 255, 0, nsp - probability)
    pairs = residual[:, 1:] * residual[:, :-1]
    assert abs(pairs.sum()) < 4.5 * math.sqrt((pairs**2).sum())


def test_soil_orders_follow_permafrost(folder):
    nsp, order = cells(folder, "truth_nsp.tif")[0], cells(folder, "truth_soil_order.tif")[0]
    percent = cells(folder, "truth_soil_order_probability.tif")
    assert np.array_equal(nsp == 255, order == 255)
    assert (percent[:, nsp == 255] == 255).all()
    assert np.abs(percent[:, nsp != 255].astype(int).sum(axis=0) - 100).max() <= 4  # rounded to whole per cent
    codes = CLASSES["soil_order"]
    frozen = np.bincount(order[nsp == 1], minlength=7) / (nsp == 1).sum()
    thawed = np.bincount(order[nsp == 0], minlength=7) / (nsp == 0).sum()
    assert frozen[codes.index("Gelisols")] == pytest.approx(0.92, abs=0.01)
    assert frozen[codes.index("Histosols")] == pytest.approx(0.03, abs=0.005)
    assert thawed[codes.index("Gelisols")] == pytest.approx(0.015, abs=0.003)
    for index in range(7):
        drawn, expected = (order == index).sum(), percent[index][nsp != 255].astype(float).sum() / 100
        assert drawn == pytest.approx(expected, rel=0.05, abs=600)


def test_the_two_kinds_of_causes_weigh_the_same(ground):
    relief, climate, exposure, patterns = ground
    land = relief.water < 0.5
    for part in truths.logit_parts(relief, climate, exposure, patterns):
        assert part[land].mean() == pytest.approx(0, abs=1e-3)
        assert part[land].std() == pytest.approx(1, abs=1e-3)


def test_shares_at_the_sites_are_those_that_are_wanted(ground):
    relief, climate, exposure, patterns = ground
    rows, columns = (part[::7] for part in np.nonzero(relief.water < 0.5))
    present = truths.nsp_probability(truths.logit_parts(relief, climate, exposure, patterns), (rows, columns))
    assert present[rows, columns].mean() == pytest.approx(0.227, abs=1e-3)
    scores = truths.order_scores(relief, climate, exposure, patterns)
    _, overall = truths.order_probability(scores, present, (rows, columns))
    means = dict(zip(CLASSES["soil_order"], overall[:, rows, columns].mean(axis=1)))
    assert np.allclose(overall.sum(axis=0), 1, atol=1e-4)
    for order, share in truths.ORDER_SHARES.items():
        assert means[order] == pytest.approx(share, abs=0.002), order
    assert means["Gelisols"] == pytest.approx(0.227 * 0.92 + 0.773 * 0.015, abs=0.002)


def test_best_scores_are_those_of_scikit_learn_and_of_the_probabilities(ground):
    metrics = pytest.importorskip("sklearn.metrics")
    relief, climate, exposure, patterns = ground
    at = np.nonzero(relief.water < 0.5)
    present = truths.nsp_probability(truths.logit_parts(relief, climate, exposure, patterns), at)
    orders = truths.order_probability(truths.order_scores(relief, climate, exposure, patterns), present, at)
    truth = truths.draw_truth(np.random.default_rng(5), relief, present, orders)
    found = truths.best_scores(truth, at)
    nsp, guess = truth.nsp[at], present[at] > 0.5
    precision, recall, _, _ = metrics.precision_recall_fscore_support(nsp, guess)
    assert [found["nsp"][key] for key in ("P0", "P1", "R0", "R1")] == pytest.approx(
        [*(100 * precision), *(100 * recall)]
    )
    # A Bernoulli draw agrees with its likelier side with probability max(p, 1 - p).
    assert found["nsp"]["Acc"] == pytest.approx(100 * np.maximum(present[at], 1 - present[at]).mean(), abs=0.3)
    likeliest = truth.order_probability[:, at[0], at[1]].argmax(axis=0)
    weighted = metrics.precision_recall_fscore_support(
        truth.soil_order[at], likeliest, average="weighted", zero_division=0
    )
    assert list(found["soil_order"].values()) == pytest.approx([100 * value for value in weighted[:3]])
    assert found["soil_order"]["R"] == pytest.approx(
        100 * truth.order_probability[:, at[0], at[1]].max(axis=0).mean(), abs=0.5
    )


def test_best_scores_are_reported(folder):
    best = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["best_possible_percent"]
    assert 90 < best["everywhere"]["nsp"]["Acc"] < 99
    assert set(best["at_sites"]["soil_order"]) == {"P", "R", "F1"}
    assert f"Acc {best['everywhere']['nsp']['Acc']:.1f}" in (folder / "README.txt").read_text(encoding="utf-8")


# Pattern


def area_under_curve(positive, negative):
    """Chance that a value of the first kind exceeds one of the second (Mann-Whitney)."""
    negative = np.sort(negative)
    return float(np.searchsorted(negative, positive).mean() / negative.size)


def local_deviation(values):
    mean = ndimage.uniform_filter(values, 5)
    return np.sqrt(np.maximum(ndimage.uniform_filter(values * values, 5) - mean * mean, 0))


@pytest.mark.parametrize("kind", ["polygons", "tracks"])
def test_pattern_is_in_the_arrangement_of_cells_and_not_in_single_ones(ground, kind):
    """The same land with the pattern everywhere and nowhere: bands of 10 m have the same values, otherwise arranged."""
    relief, climate, exposure, patterns = ground
    room = getattr(patterns, "polygon_room" if kind == "polygons" else "track_room")
    nothing = np.zeros_like(room)
    images = []
    for share in (nothing, (room > 0.9).astype(np.float32)):
        changed = dataclasses.replace(patterns, **{"polygons": nothing, "tracks": nothing, kind: share})
        images.append(reflectance.make_bands(np.random.default_rng(8), relief, climate, exposure, changed))
    where = ndimage.binary_erosion((room > 0.9) & (relief.water == 0), iterations=3)
    assert where.sum() > 3000
    for index, band in enumerate(reflectance.BANDS):
        without, with_it = (image[index][where].astype(float) for image in images)
        # Patches of 100 m leave few independent values, whose mean scatters by 1 % of the reflectance.
        assert with_it.mean() == pytest.approx(without.mean(), rel=0.03), band.name
        single = area_under_curve(with_it, without)
        arranged = area_under_curve(*(local_deviation(image[index].astype(float))[where] for image in images[::-1]))
        assert abs(single - 0.5) < 0.03, band.name
        if band.name in ("red", "green", "blue"):
            assert arranged > 0.8, band.name
            assert with_it.std() == pytest.approx(without.std(), rel=0.12), band.name


def test_texture_has_one_distribution_whatever_the_pattern(ground):
    relief, _, _, patterns = ground
    texture = reflectance.make_texture(np.random.default_rng(4), relief, patterns)
    for where in (patterns.polygons > 0.9, patterns.tracks > 0.9, patterns.polygons + patterns.tracks < 0.05):
        assert where.sum() > 2000
        assert texture[where].mean() == pytest.approx(0, abs=0.15)  # patches of 100 m leave few independent values
        assert texture[where].std() == pytest.approx(1, abs=0.12)
    polygons, without = patterns.polygons > 0.9, (patterns.polygon_room > 0.9) & (patterns.polygons < 0.1)
    fine = local_deviation(texture)
    assert area_under_curve(fine[polygons], fine[without]) > 0.95


def test_stripes_run_down_the_slope(ground):
    # A plane that falls to the south-east: along it cells are alike, across it they are not.
    rows, columns = np.indices((160, 160))
    plane = (500.0 - 0.8 * (rows + columns)).astype(np.float32)
    stripes = reflectance._stripes(np.random.default_rng(2), plane)[30:-30, 30:-30]
    along = np.corrcoef(stripes[:-4, :-4].ravel(), stripes[4:, 4:].ravel())[0, 1]
    across = np.corrcoef(stripes[:-4, 4:].ravel(), stripes[4:, :-4].ravel())[0, 1]
    assert along > 0.6
    assert abs(across) < 0.15


# Surveys


def test_labels_are_the_truth_at_the_place(folder):
    rows = sites(folder)
    places = [(float(row["x"]), float(row["y"])) for row in rows]
    for name, column, read in (
        ("truth_nsp.tif", "nsp", int),
        ("truth_soil_order.tif", "soil_order", CLASSES["soil_order"].index),
    ):
        with rasterio.open(folder / name) as source:
            true = np.asarray([value[0] for value in source.sample(places)])
        assert 255 not in true  # nobody digs in open water
        known = [n for n, row in enumerate(rows) if row[column]]
        assert 0 < len(known) < len(rows)
        assert [read(rows[n][column]) for n in known] == true[known].tolist()


def test_every_site_is_unique_dated_and_has_a_label(folder):
    rows = sites(folder)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["nsp"] or row["soil_order"] for row in rows)
    dates = np.asarray([row["date"] for row in rows], dtype="datetime64[D]")
    years = dates.astype("datetime64[Y]").astype(int) + 1970
    assert 1952 <= years.min() < 1998 < years.max() <= 2023
    day = (dates - dates.astype("datetime64[Y]")).astype(int) + 1
    assert day.min() >= 150
    assert day.max() <= 260


@pytest.fixture(scope="module")
def flat():
    """A large level lowland with a river through its middle: enough survey for shares, at little cost."""
    side, level = 1200, np.zeros((1200, 1200), dtype=np.float32)
    course = np.stack([np.full(side, 600.0), np.arange(side - 1.0, -1.0, -1.0)], axis=1)
    distance = np.abs(np.arange(side) - 600.0)[:, None].repeat(side, axis=1).astype(np.float32) * 10
    basin = np.zeros((side, side), dtype=np.uint8)
    water = (distance < 50).astype(np.float32)
    relief = reliefs.Relief(
        level, water, water > 0, level + 1, level, level, distance, distance, level, level + 1, basin, course
    )
    exposure = climates.Exposure(level + 5, level + 1, level + 1, level)
    return relief, exposure, surveys.make_survey(np.random.default_rng(6), relief, exposure)


def test_surveys_are_clustered_and_record_what_surveys_record(flat):
    relief, _, survey = flat
    assert survey.row.size == round(144 * surveys.SITES_PER_KM2)
    assert survey.has_nsp.mean() == pytest.approx(0.43, abs=0.08)
    assert survey.has_order.mean() == pytest.approx(0.85, abs=0.06)
    assert (survey.has_nsp | survey.has_order).all()
    assert (relief.water[survey.cells] == 0).all()
    found = surveys.clustering(survey.column * 10, survey.row * 10, 144e6)
    assert found["clark_evans"] < 0.4
    assert 8 <= found["clusters_1km"] <= 20  # one per stop: there are so many splits of 1 km


def test_stones_hide_permafrost_on_steep_ground_only(flat):
    relief, exposure, _ = flat
    steep = dataclasses.replace(exposure, slope_deg=exposure.slope_deg + 20)
    found = [surveys.make_survey(np.random.default_rng(6), relief, e) for e in (exposure, steep)]
    assert found[1].has_nsp.mean() < found[0].has_nsp.mean() - 0.03
    assert all((survey.has_nsp | survey.has_order).all() for survey in found)


def test_clark_evans_index_of_known_arrangements():
    # A square lattice of spacing d has the density 1 / d^2: R = d * 2 * sqrt(1 / d^2) = 2 exactly.
    x, y = (part.ravel() * 100.0 for part in np.meshgrid(np.arange(30), np.arange(30)))
    assert surveys.clustering(x, y, 900 * 100.0**2)["clark_evans"] == pytest.approx(2)
    # Random places: 1, but for the edge, which lengthens the distances of a few.
    x, y = np.random.default_rng(1).uniform(0, 1e4, (2, 3000))
    assert surveys.clustering(x, y, 1e8)["clark_evans"] == pytest.approx(1, abs=0.05)
    # Three places in a row, 400 m and 900 m apart, and one 5 km off.
    counts = surveys.clustering(np.asarray([0.0, 400, 1300, 6300]), np.zeros(4), 1e8)
    assert [counts[f"clusters_{km}km"] for km in ("0.5", "1", "2", "3")] == [3, 2, 2, 2]


# Ground and climate


def test_noise_is_standard_and_smooth():
    field = reliefs.smooth_noise(np.random.default_rng(0), (211, 140), 12.0)
    assert field.mean() == pytest.approx(0, abs=1e-5)
    assert field.std() == pytest.approx(1, abs=1e-5)
    assert np.abs(np.diff(field, axis=0)).max() < 0.4
    far = np.corrcoef(field[:-60].ravel(), field[60:].ravel())[0, 1]
    assert abs(far) < 0.35


def test_water_of_a_worked_example_runs_to_the_outlet():
    # 9 drains to its lowest neighbour in the middle (4), that to the outlet (1) at the corner; the pit (2) fills.
    surface = np.asarray([[9.0, 8, 7], [8, 4, 6], [1, 5, 2]])
    outlet = np.zeros((3, 3), dtype=bool)
    outlet[2, 0] = True
    filled, order, receiver = reliefs._drainage(surface, outlet, np.ones((3, 3)))
    assert filled[2, 2] == pytest.approx(4.0, abs=1e-3)
    assert receiver.reshape(3, 3)[1, 1] == 6
    assert receiver.reshape(3, 3)[2, 2] in (4, 7)
    area = reliefs._accumulate(order, receiver).reshape(3, 3)
    assert area[2, 0] == 9  # every cell's water leaves there
    carved = reliefs._carved(surface, outlet, np.ones((3, 3)))
    assert carved[1, 1] == 2.0  # cut down to let the pit out
    assert carved[0, 0] == 9.0


def test_water_runs_down_and_lakes_are_level(ground):
    relief = ground[0]
    assert np.isfinite(relief.elevation).all()
    assert (relief.drained_px >= 1).all()
    assert relief.drained_px.max() > 5000
    hills = relief.lowland < 0.1
    assert 0.1 < hills.mean() < 0.9
    slope = ground[2].slope_deg
    assert np.median(slope[hills]) > 3 * np.median(slope[~hills & (relief.water < 0.5)])
    still = (relief.water > 0.5) & ~relief.river & (relief.floodplain < 0.1)
    labels, count = ndimage.label(still)
    assert count
    sizes = ndimage.sum(still, labels, range(1, count + 1))
    largest = labels == int(np.argmax(sizes)) + 1
    assert np.ptp(relief.elevation[largest]) < 6.0  # overlapping lakes keep their own levels
    assert (relief.shore_distance_m[relief.water > 0.5] == 0).all()


def test_climate_rasters_are_means_of_800_m_with_a_ring(ground):
    relief, climate, _, _ = ground
    coarse = climate.coarse()["summer_warmth_c"]
    # 5 km are 6.25 cells: seven and the ring.
    assert coarse.shape == (9, 9)
    assert coarse[1, 1] == pytest.approx(climate.summer_warmth_c[:80, :80].mean(), abs=1e-3)
    assert coarse[0, 0] == coarse[1, 1]
    high = relief.elevation > np.quantile(relief.elevation, 0.95)
    low = relief.elevation < np.quantile(relief.elevation, 0.2)
    assert climate.summer_warmth_c[high].mean() < climate.summer_warmth_c[low].mean()
    assert climate.precipitation_mm[high].mean() > climate.precipitation_mm[low].mean()
    valley = (relief.lowland < 0.1) & (relief.above_stream_m < 5)
    ridge = (relief.lowland < 0.1) & (relief.above_stream_m > 100)
    assert climate.january_c[valley].mean() < climate.january_c[ridge].mean()  # cold air pools


def test_sun_shines_on_south_slopes():
    rows = np.arange(60, dtype=np.float32)[:, None].repeat(60, axis=1)
    relief = reliefs.Relief(*(np.ones((60, 60), np.float32),) * 11, np.zeros((2, 2)))
    exposures = [
        climates.make_exposure(dataclasses.replace(relief, elevation=height)) for height in (-3 * rows, 3 * rows)
    ]
    # Falling with the row is falling southwards: the slope faces the sun. 3 m in 10 m are 16.70 degrees.
    assert exposures[0].sun[30, 30] > 1 > exposures[1].sun[30, 30]
    assert exposures[0].slope_deg[30, 30] == pytest.approx(16.70, abs=0.01)
    # At the overpass (height 44 degrees, azimuth 172): sin(44) cos(16.70) + cos(44) sin(16.70) cos(8), over sin(44).
    assert exposures[0].noon[30, 30] == pytest.approx(1.2525, abs=2e-3)


# Seeds, failures, command line


def digests(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())}


def test_same_seed_same_bytes_and_another_seed_another_landscape(tmp_path):
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        alaska.simulate_alaska(tmp_path / name, alaska.Settings(seed, 3.0))
    first, again, other = (digests(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert set(first) == set(other)
    assert [name for name in first if first[name] == other[name]] == []


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(landscape, path):
        raise OSError("the disk is full")

    monkeypatch.setattr(alaska, "make_landscape", lambda settings, note: None)
    monkeypatch.setattr(alaska, "_write_rasters", lambda landscape, folder: (folder / "half.tif").write_text("x"))
    monkeypatch.setattr(alaska, "_write_sites", full)
    with pytest.raises(OSError, match="disk is full"):
        alaska.simulate_alaska(tmp_path / "out", alaska.Settings(1, 3.0))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder") as caught:
        alaska.simulate_alaska(tmp_path)
    assert "--out" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("seed", "side", "words"), [(1, 0.5, "3 to 30 km"), (1, math.nan, "km"), (-1, 5.0, "seed")])
def test_settings_that_cannot_be_made_are_refused(seed, side, words):
    with pytest.raises(InputError, match=words):
        alaska.Settings(seed, side)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "training", "simulate", *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_makes_a_landscape(tmp_path):
    found = run("--alaska", "--out", tmp_path / "a", "--side-km", "3", "--seed", "2")
    assert found.returncode == 0, found.stderr
    assert alaska.SENTENCE in found.stdout
    assert read_dataset(tmp_path / "a").bounds == alaska.Settings(2, 3.0).bounds
    again = run("--alaska", "--out", tmp_path / "a", "--side-km", "3")
    assert again.returncode == 2
    assert "nothing is overwritten" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_small_valley_has_no_size_option(tmp_path):
    found = run("--out", tmp_path / "valley", "--side-km", "5")
    assert found.returncode == 2
    assert "--alaska" in found.stderr
    assert not (tmp_path / "valley").exists()


def test_landscape_needs_neither_torch_nor_scikit_learn():
    code = (
        "import sys; import training.simulated_alaska;"
        "print(sorted({'torch', 'sklearn', 'onnx', 'matplotlib', 'qgis'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_picture_shows_the_landscape(folder, tmp_path):
    images = pytest.importorskip("matplotlib.image")
    from training.simulated_alaska_picture import picture

    picture(folder, tmp_path / "picture.png", width_in=8.0, dpi=60)
    image = images.imread(tmp_path / "picture.png")[:, :, :3]  # 0 to 1
    assert image.shape[1] == 480
    assert image.std(axis=(0, 1)).min() > 0.08
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
