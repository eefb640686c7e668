"""Spatial folds: clusters as scikit-learn finds them, balance, kNNDM, released files, faults, pictures."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.cluster import DBSCAN

from miso_qgis.engine.errors import InputError
from training import cli, split_pictures
from training import spatial_splits as splits
from training.dataset import Dataset
from training.sites import CLASSES, MISSING, Sites


def make_sites(places, nsp=None, orders=None, seed=0):
    places = np.asarray(places, dtype=float)
    generator = np.random.default_rng(seed)
    nsp = generator.integers(-1, 2, len(places)) if nsp is None else np.asarray(nsp)
    orders = generator.integers(-1, 7, len(places)) if orders is None else np.asarray(orders)
    return Sites(
        id=np.array([str(100 + i) for i in range(len(places))]),
        x=places[:, 0],
        y=places[:, 1],
        labels={"nsp": nsp.astype(np.int8), "soil_order": orders.astype(np.int8)},
        date=np.full(len(places), np.datetime64("NaT"), "datetime64[D]"),
    )


def surveys(count=600, seed=1, side=200_000.0):
    """Places clustered along a few routes, as surveys are, in a square."""
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0, side, (25, 2))
    return centres[generator.integers(0, 25, count)] + generator.normal(0, 1500.0, (count, 2))


def same_partition(first, second):
    pairs = {(a, b) for a, b in zip(first, second)}
    return len(pairs) == len(set(first)) == len(set(second))


def dbscan(places, distance):
    labels = DBSCAN(eps=distance, min_samples=2).fit(places).labels_.copy()
    noise = labels < 0
    labels[noise] = labels.max() + 1 + np.arange(noise.sum())
    return labels


def area(count=2500, side=200_000.0):
    return split_pictures.lattice((0, 0, side, side), count)


# --- clusters ---

LINE = np.column_stack([np.arange(40) * 700.0 + (np.arange(40) % 7 == 0) * 600, np.arange(40) * 350.0])
GRID = np.array([(x, y) for x in range(12) for y in range(9)], float) * 1000.0
POINTS = {
    "surveys": surveys(),
    "far from the origin": surveys() + np.array([1.4e6, 2.3e6]),
    "with repeated places": np.concatenate([surveys(200), surveys(200)[:80]]),
    "millimetres apart": np.concatenate([surveys(100), surveys(100)[:50] + 1e-3]),
    "a grid whose steps are the distance": GRID,
    "on a line": LINE,
    "on a line, in disorder": LINE[np.random.default_rng(3).permutation(40)],
    "three": np.array([[0, 0], [900, 0], [5000, 0]], float),
    "one": np.array([[5.0, 7.0]]),
    "one place twice": np.array([[5.0, 7.0], [5.0, 7.0]]),
}


@pytest.mark.parametrize("distance", [1_000.0, 10_000.0])
@pytest.mark.parametrize("name", POINTS)
def test_clusters_are_those_of_dbscan_with_noise_as_singletons(name, distance):
    places = POINTS[name]
    found = splits.clusters_within(places, distance)
    assert same_partition(found, dbscan(places, distance))
    assert sorted(set(found)) == list(range(found.max() + 1))


def test_a_chain_joins_and_a_gap_parts():
    # By hand: 0-800-1600 are joined by steps of 800 m, 2601 is 1001 m from the last.
    places = np.array([[1600.0, 0.0], [0.0, 0.0], [2601.0, 0.0], [800.0, 0.0]])
    assert list(splits.clusters_within(places, 1000.0)) == [0, 0, 1, 0]
    assert list(splits.clusters_within(places, 1001.0)) == [0, 0, 0, 0]


# --- folds ---


@pytest.mark.parametrize("name", ["SH-1km", "SH-10km"])
def test_no_site_is_tested_within_the_buffer_of_one_trained_on(name):
    places = surveys()
    split = splits.make_split(name, make_sites(places), seed=1)
    for number in range(split.folds):
        tested, trained = places[split.test(number)], places[split.train[number]]
        assert cdist(tested, trained).min() > splits.BUFFER_M[name]
    assert (split.train.sum(axis=0) == split.folds - 1).all()


def test_folds_are_balanced_by_size_and_by_the_labels_of_every_task():
    generator = np.random.default_rng(5)
    places = np.concatenate([surveys(1500), generator.uniform(0, 2_000_000.0, (1500, 2))])
    nsp = np.where(generator.random(3000) < 0.2, 1, 0)
    nsp[generator.random(3000) < 0.5] = MISSING
    sites = make_sites(places, nsp)
    clusters = splits.clusters_within(places, 1000.0)
    assert 1000 < clusters.max() < 2500
    fold = splits.deal(clusters, sites, 5, seed=1)
    assert all(np.unique(fold[clusters == cluster]).size == 1 for cluster in range(clusters.max() + 1))
    sizes = np.bincount(fold)
    assert sizes.max() - sizes.min() <= 0.02 * 3000
    for task, values in sites.labels.items():
        for index in range(len(CLASSES[task])):
            counts = np.bincount(fold[values == index], minlength=5)
            assert counts.max() - counts.min() <= max(6, 0.15 * counts.mean()), (task, index, counts)


def test_the_seed_decides_and_repeats():
    sites = make_sites(surveys())
    first, again, other = (splits.make_split("SH-1km", sites, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.fold, again.fold)
    assert not np.array_equal(first.fold, other.fold)
    assert np.array_equal(first.cluster, other.cluster)


def test_random_folds_differ_by_one_site_and_keep_clusters_for_resampling():
    sites = make_sites(surveys(601))
    split = splits.make_split("random", sites, seed=1)
    assert sorted(np.bincount(split.fold)) == [120, 120, 120, 120, 121]
    assert same_partition(split.cluster, dbscan(np.column_stack([sites.x, sites.y]), 1000.0))


def test_a_split_follows_its_sites():
    sites = make_sites(surveys())
    split = splits.make_split("SH-1km", sites, seed=1)
    chosen = sites.labelled("nsp")
    part = split.subset(chosen)
    assert np.array_equal(part.fold, split.fold[chosen])
    assert part.train.shape == (5, chosen.sum())


# --- faults ---


def test_fewer_clusters_than_folds_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"form 2 clusters, fewer than 5 folds.*smaller distance"):
        splits.make_split("SH-10km", make_sites(np.array([[0, 0], [1, 1], [2, 2], [3, 3], [90_000, 0]])), seed=1)
    with pytest.raises(InputError, match="5 folds of 3 sites"):
        splits.make_split("random", make_sites(np.zeros((3, 2))), seed=1)
    with pytest.raises(InputError, match="Known splits are random"):
        splits.make_split("SH-5km", make_sites(surveys()), seed=1)


def test_a_fold_that_would_train_on_one_class_is_an_error():
    # All presences in one far cluster: the fold that tests it trains on absences only.
    places = np.concatenate([surveys(100, side=50_000.0), np.full((20, 2), 900_000.0)])
    nsp = np.r_[np.zeros(100), np.ones(20)]
    with pytest.raises(InputError, match=r"trains on only absent of nsp"):
        splits.make_split("SH-10km", make_sites(places, nsp), seed=1, folds=2)


def test_a_fold_that_tests_one_class_only_is_told():
    nsp = np.zeros(600)
    nsp[:3] = 1
    split = splits.make_split("random", make_sites(surveys(), nsp, np.full(600, 2)), seed=1)
    assert sum("tests no present (nsp)" in note for note in split.notes) >= 2
    assert any("all labels of soil_order are Gelisols" in note for note in split.notes)


def test_a_fold_without_points_is_an_error_and_one_without_labels_is_told():
    sites = make_sites(surveys(60), np.r_[np.full(30, MISSING), np.arange(30) % 2])
    train = np.ones((2, 60), dtype=bool)
    train[1, :30] = False
    empty = splits.Split("mine", 0, np.r_[np.full(30, 1), np.full(30, -1)].astype(np.int16), np.arange(60), train)
    with pytest.raises(InputError, match="fold 0 tests no site"):
        splits.check(empty, sites)
    train[0, 30:] = False
    train[1, 30:] = True
    half = dataclasses.replace(empty, fold=np.r_[np.full(30, 1), np.zeros(30)].astype(np.int16), train=train)
    with pytest.raises(InputError, match="fold 0 trains on no label of nsp"):
        splits.check(half, sites)


def test_a_fold_cannot_train_on_what_it_tests():
    with pytest.raises(ValueError, match="tests sites that it trains on"):
        splits.Split("mine", 0, np.zeros(3, np.int16), np.arange(3), np.ones((1, 3), bool))


# --- distances and kNNDM ---


def test_distances_by_hand():
    places = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 16.0]])
    assert list(splits.nearest(places)) == [5.0, 5.0, 12.0]
    assert list(splits.nearest(np.array([[0.0, 5.0]]), places)) == [pytest.approx(np.sqrt(10))]
    fold = np.array([0, 0, 1], np.int16)
    split = splits.Split("mine", 0, fold, np.arange(3), fold[None, :] != np.array([[0], [1]]))
    # Fold 0 tests the first two against the third: sqrt(9 + 256) and 12; fold 1 the third against them: 12.
    assert sorted(splits.test_to_train(split, places)) == [12.0, 12.0, pytest.approx(np.sqrt(265))]
    # Moving mass: distances 12, 12, 16.28 against 2, 2, 2: mean difference, as one lies wholly above the other.
    found = splits.distances(split, make_sites(places), np.array([[0.0, 2.0], [3.0, 6.0], [3.0, 14.0]]))
    assert found["W_m"] == pytest.approx((10 + 10 + np.sqrt(265) - 2) / 3)


def test_knndm_resembles_the_area_more_than_the_other_splits_do():
    places = surveys(400)
    sites, wanted = make_sites(places), area()
    found = {name: splits.make_split(name, sites, 1, 5, wanted) for name in splits.SPATIAL_SPLITS}
    w = {name: splits.distances(split, sites, wanted)["W_m"] for name, split in found.items()}
    assert w["kNNDM"] < min(w["random"], w["SH-1km"], w["SH-10km"])
    facts = found["kNNDM"].facts
    # Its W, computed again without the code under test.
    fold = found["kNNDM"].fold
    tested = np.concatenate([cdist(places[fold == k], places[fold != k]).min(axis=1) for k in range(5)])
    again = wasserstein_distance(tested, cdist(wanted, places).min(axis=1))
    assert facts["W_m"] == pytest.approx(again, rel=1e-9)
    assert facts["W_random_m"] == pytest.approx(
        splits.distances(splits.Split("r", 1, *_random(400)), sites, wanted)["W_m"], rel=1e-9
    )
    assert np.bincount(fold).max() <= 200


def _random(count):
    fold = splits.random_folds(count, 5, 1).astype(np.int16)
    return fold, np.arange(count), fold[None, :] != np.arange(5)[:, None]


def test_knndm_takes_random_folds_where_sites_are_spread_like_the_area():
    places = np.random.default_rng(2).uniform(0, 200_000.0, (300, 2))
    split = splits.make_split("kNNDM", make_sites(places), 1, 5, area())
    assert split.facts["chosen"].startswith("random")
    assert np.array_equal(split.fold, splits.random_folds(300, 5, 1))


def test_knndm_builds_its_tree_of_some_of_many_sites(monkeypatch):
    monkeypatch.setattr(splits, "TREE_SITES", 100)
    monkeypatch.setattr(splits, "TRIED", 8)
    places = surveys(400)
    sites = make_sites(places)
    first, again = (splits.make_split("kNNDM", sites, 1, 5, area()) for _ in range(2))
    assert first.facts["chosen"] == "clusters"
    assert first.facts["W_m"] < first.facts["W_random_m"]
    assert np.array_equal(first.fold, again.fold)


# --- released files ---


def released(tmp_path, content, name="kfold.json"):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def test_a_split_comes_back_from_the_file_that_was_written(tmp_path):
    sites = make_sites(surveys())
    split = splits.make_split("SH-10km", sites, seed=1)
    splits.write_released(split, sites, tmp_path / "SH-10km.json")
    found = splits.read_released(tmp_path / "SH-10km.json", sites)
    assert np.array_equal(found.fold, split.fold)
    assert np.array_equal(found.train, split.train)
    assert found.name == "SH-10km"
    assert found.facts["unknown_ids"] == 0


def test_eleven_folds_keep_their_order(tmp_path):
    sites = make_sites(surveys(66), np.arange(66) % 2)
    ids = [int(name) for name in sites.id]
    content = {
        f"fold_{k}": {"train": [i for i in ids if i % 11 != k], "test": [i for i in ids if i % 11 == k]}
        for k in range(11)
    }
    found = splits.read_released(released(tmp_path, content), sites)
    assert list(found.fold) == [i % 11 for i in ids]


def test_a_flat_file_is_one_fold_and_unknown_and_missing_ids_are_told(tmp_path):
    sites = make_sites(surveys(60), np.arange(60) % 2)
    content = {"train": [100 + i for i in range(40)] + [7, 8], "test": [str(140 + i) for i in range(15)]}
    found = splits.read_released(released(tmp_path, content), sites)
    assert found.folds == 1
    assert found.test(0).sum() == 15
    assert found.train[0].sum() == 40
    assert (found.fold == -1).sum() == 45
    text = " ".join(found.notes)
    assert "2 identifiers of the file are no site's" in text
    assert "5 sites are in no fold (155" in text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"train": [1, 2], "test": [3]}, "none of its 3 identifiers is that of a site"),
        ({"fold_0": {"train": [100, 101], "test": [101]}}, "trains on 1 sites that it tests"),
        ({"fold_0": {"train": [100], "test": [101, 101]}}, "lists 101 twice"),
        (
            {"a": {"train": [100], "test": [101]}, "b": {"train": [100], "test": [101]}},
            "tests 1 sites that another fold tests",
        ),
        ({"fold_0": {"train": [100]}}, "another form"),
        ([1, 2], "another form"),
        ({}, "another form"),
        ({"fold_0": {"train": [[1]], "test": [2]}}, "another form"),
    ],
)
def test_released_files_that_contradict_themselves_are_refused(tmp_path, content, word):
    with pytest.raises(InputError, match=word):
        splits.read_released(released(tmp_path, content), make_sites(surveys(60)))


def test_a_released_file_that_is_cut_off_is_refused(tmp_path):
    path = released(tmp_path, {"train": [1], "test": [2]})
    path.write_text(path.read_text()[:9])
    with pytest.raises(InputError, match=r"kfold\.json.*cannot be read"):
        splits.read_released(path, make_sites(surveys(60)))


# --- pictures ---


def test_a_lattice_fills_its_polygons_evenly():
    import shapely

    ring = shapely.Point(0, 0).buffer(100.0).difference(shapely.Point(0, 0).buffer(50.0))
    places = split_pictures.lattice((-100, -100, 100, 100), 1000, [ring])
    assert len(places) == pytest.approx(1000, rel=0.05)
    radius = np.hypot(*places.T)
    assert radius.min() > 49.9
    assert radius.max() < 100.0


def test_pictures_show_every_fold_and_the_table_says_what_they_show(tmp_path, monkeypatch):
    monkeypatch.setenv("MISO_DATA", str(tmp_path / "none"))
    sites = make_sites(surveys(200))
    made, result = split_pictures.describe_splits(sites, tmp_path / "out", "Made up", names=("random", "SH-10km"))
    assert [split.name for split in made] == ["random", "SH-10km"]
    assert "no coast file" in result["area"]["title"]
    for name in ("folds_random", "folds_SH-10km", "distances"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(pixels) > 300_000
        if name.startswith("folds"):
            for colour in split_pictures._COLOURS[:5]:
                rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
                assert (np.abs(pixels.astype(int) - rgb).max(axis=1) < 8).sum() > 50, (name, colour)
    stored = json.loads((tmp_path / "out" / "splits.json").read_text())
    assert stored["splits"]["random"]["tests"] == [40] * 5
    assert stored["splits"]["SH-10km"]["distances_m"]["test_to_train"]["0.05"] > 10_000
    assert not list((tmp_path / "out").glob(".*"))


def test_a_split_that_cannot_be_made_does_not_hold_up_the_others(tmp_path):
    places = surveys(60, side=1000.0)
    made, result = split_pictures.describe_splits(
        make_sites(places, np.arange(60) % 2), tmp_path, "Close by", names=("random", "SH-10km"), folds=3
    )
    assert [split.name for split in made] == ["random"]
    assert "1 cluster, fewer than 3 folds" in result["problems"][0]
    with pytest.raises(InputError, match="fewer than 3 folds"):
        split_pictures.describe_splits(make_sites(places), tmp_path, "Close by", names=("SH-10km",), folds=3)


def box_dataset(simulated, bounds):
    return Dataset(
        format=1,
        name="box",
        title="Box",
        simulated=simulated,
        licence="CC0-1.0",
        citation="none",
        bounds=bounds,
        inputs={},
        sources={},
        groups=(),
        observations=(),
        tasks=("nsp",),
        resolution_m=1000.0,
    )


def test_the_area_of_a_dataset_is_its_land_unless_it_is_simulated(monkeypatch):
    import shapely

    monkeypatch.setattr(split_pictures, "read_coast", lambda: (shapely.box(0, 0, 50_000, 100_000),))
    bounds = (5.0, 5.0, 100_005.0, 100_005.0)
    real = split_pictures.area_of(box_dataset(False, bounds), make_sites(surveys(10)), 1000)
    assert real.title == 'dataset "box", land'
    assert real.places[:, 0].max() < 50_000
    assert len(real.places) == pytest.approx(1000, rel=0.1)
    made_up = split_pictures.area_of(box_dataset(True, bounds), make_sites(surveys(10)), 1000)
    assert made_up.title == 'dataset "box" (simulated)'
    assert made_up.places[:, 0].max() > 95_000
    far = split_pictures.area_of(box_dataset(False, (600_005.0, 5.0, 700_005.0, 100_005.0)), make_sites(surveys(10)))
    assert far.title == 'dataset "box"'


@pytest.mark.real_data
@pytest.mark.skipif(split_pictures.coast_file() is None, reason="the coast is not beside the checkout")
def test_the_coast_lies_in_alaska():
    import shapely

    west, south, east, north = shapely.total_bounds(list(split_pictures.read_coast()))
    assert (west, south, east, north) == pytest.approx((-2_200_000, 400_000, 1_500_000, 2_400_000), abs=60_000)


def test_the_command_writes_pictures_and_split_files(tmp_path, capsys):
    file = tmp_path / "sites.csv"
    generator = np.random.default_rng(0)
    rows = [f"{i},{-150 + 4 * generator.random():.4f},{63 + 2 * generator.random():.4f},{i % 2}" for i in range(60)]
    file.write_text("\n".join(["id,lon,lat,nsp", *rows]))
    out = tmp_path / "out"
    assert cli.main(["splits", str(file), "--out", str(out), "--splits", "SH-1km", "--folds", "3"]) == 0
    assert "SH-1km: tests 20 20 20" in capsys.readouterr().out
    released_file = str(out / "SH-1km.json")
    again = ["splits", str(file), "--out", str(out / "again"), "--splits", "--released", released_file]
    assert cli.main(again) == 0
    assert json.loads((out / "again" / "SH-1km.json").read_text()) == json.loads((out / "SH-1km.json").read_text())
