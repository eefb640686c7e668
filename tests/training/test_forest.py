"""Cross-validation and shipping of a dataset's forests, from files to files."""

import dataclasses
import json

import forest_scene
import numpy as np
import pytest
import rasterio

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.messages import PredictJob, RasterSource
from miso_qgis.engine.predict import predict
from miso_qgis.engine.progress import Silent
from miso_qgis.engine.session import read_model_files
from training import cli, forest_run, outoffold
from training.forest import Recipe, Split, cross_validate, read_tables
from training.forest_export import Compression
from training.forest_fit import ForestSettings, fit_forest
from training.forest_run import load_sites, load_split
from training.forest_search import Search, SearchSpace
from training.forest_ship import ship
from training.forest_size import Places, Variant, measure, table
from training.sites import CLASSES, MISSING, Sites

QUICK = Recipe(settings=ForestSettings(trees=12))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    dataset = forest_scene.write(folder)
    sites = load_sites(dataset)
    return dataset, sites, read_tables(dataset, sites, QUICK)


def halves(sites, fold=None):
    """Two folds, south and north; clusters of ten sites."""
    fold = (sites.y > np.median(sites.y)).astype(int) if fold is None else fold
    return Split("halves", fold, np.arange(len(sites)) // 10)


class TestCrossValidation:
    def test_every_labelled_site_is_predicted_by_the_forest_that_has_not_seen_it(self, scene):
        _, sites, tables = scene
        split = halves(sites)
        found = cross_validate(tables, sites, "soil_order", split, QUICK, simulated=True)
        usable = sites.labelled("soil_order") & tables[50.0].valid
        assert found.id.tolist() == sites.id[usable].tolist()
        assert 0 < usable.sum() < len(sites)
        for fold in (0, 1):
            learn = usable & (split.fold != fold)
            forest = fit_forest(tables[50.0].values[learn], sites.labels["soil_order"][learn], "soil_order",
                                QUICK.settings, QUICK.seed)  # fmt: skip
            held = usable & (split.fold == fold)
            expected = forest.probabilities(tables[50.0].values[held])
            np.testing.assert_array_equal(found.probability[found.fold == fold], expected)
        assert found.classes == CLASSES["soil_order"]
        assert (found.model, found.seed, found.facts["simulated"]) == ("rf", 1, True)

    def test_a_class_absent_from_training_gets_0_in_its_own_column_and_is_told(self, scene):
        _, sites, tables = scene
        labels = sites.labels["soil_order"].copy()
        split = halves(sites)
        labels[(labels == 2) & (split.fold == 1)] = MISSING  # all Gelisols lie in fold 0
        changed = dataclasses.replace(sites, labels={"soil_order": labels})
        notes = []
        found = cross_validate(tables, changed, "soil_order", split, QUICK, simulated=True, note=notes.append)
        gelisols = found.classes.index("Gelisols")
        assert (found.probability[found.fold == 0, gelisols] == 0).all()
        assert found.probability[found.fold == 1, gelisols].max() > 0.5
        (fold,) = [one for one in found.facts["folds"] if one["fold"] == 0]
        assert fold["absent"] == ["Gelisols"]
        assert fold["training"]["Gelisols"] == 0
        assert "no training site of Gelisols; their probability is 0" in "\n".join(notes)

    def test_training_sites_of_one_class_are_an_error_that_says_where(self, scene):
        _, sites, tables = scene
        split = halves(sites)
        labels = np.where(split.fold == 1, 1, sites.labels["nsp"]).astype(np.int8)
        changed = dataclasses.replace(sites, labels={"nsp": labels})
        with pytest.raises(InputError, match=r"Task nsp, split halves, fold 0: all \d+ training sites are present\."):
            cross_validate(tables, changed, "nsp", split, QUICK, simulated=True)

    def test_a_fold_without_labelled_sites_is_told_and_the_others_are_predicted(self, scene):
        _, sites, tables = scene
        split = halves(sites)
        labels = sites.labels["nsp"].copy()
        fold = split.fold.copy()
        fold[:15] = 2
        labels[:15] = MISSING
        changed = dataclasses.replace(sites, labels={"nsp": labels})
        found = cross_validate(tables, changed, "nsp", halves(sites, fold), QUICK, simulated=True)
        assert set(found.fold) == {0, 1}
        assert "nsp, split halves, fold 2: no labelled site to predict" in found.facts["notes"]

    def test_sites_of_no_fold_are_learned_from_and_never_predicted(self, scene):
        _, sites, tables = scene
        fold = np.where(np.arange(len(sites)) < 120, -1, 0)
        found = cross_validate(tables, sites, "nsp", halves(sites, fold), QUICK, simulated=True)
        assert set(found.id) <= set(sites.id[120:])
        (only,) = found.facts["folds"]
        assert sum(only["training"].values()) == int(tables[50.0].valid[:120].sum())

    def test_without_any_site_to_predict_the_error_says_so(self, scene):
        _, sites, tables = scene
        none = halves(sites, np.full(len(sites), -1))
        with pytest.raises(InputError, match=r"Task nsp, split halves: none of its 240 labelled sites"):
            cross_validate(tables, sites, "nsp", none, QUICK, simulated=True)

    def test_what_a_search_chose_is_in_the_facts(self, scene):
        dataset, sites, _ = scene
        recipe = Recipe(
            buffers_m=(50.0, 0.0),
            search=Search(
                iterations=2, folds=3, first=QUICK.settings, space=SearchSpace(trees=(5, 9), max_depth=(2, 5))
            ),
        )
        tables = read_tables(dataset, sites, recipe)
        found = cross_validate(tables, sites, "nsp", halves(sites), recipe, simulated=True)
        for fold in found.facts["folds"]:
            assert fold["buffer_m"] in (0.0, 50.0)
            assert fold["search"]["best"] >= fold["search"]["first"]
            assert fold["search"]["iterations"] == 2
        json.dumps(found.facts)

    def test_several_radii_without_a_search_are_refused(self):
        with pytest.raises(InputError, match=r"Radii of the discs: there are several.*--search"):
            Recipe(buffers_m=(0.0, 50.0))
        with pytest.raises(InputError, match="they are -1 m"):
            Recipe(buffers_m=(-1.0,))


class TestModelFolder:
    @pytest.mark.parametrize("task", ["nsp", "soil_order"])
    def test_the_map_shows_at_each_site_what_the_forest_answers_there(self, scene, tmp_path, task):
        """Training and prediction see the same features, through two different ways of reading."""
        dataset, sites, tables = scene
        shipped = ship(dataset, tables, sites, task, halves(sites), QUICK, tmp_path / "model")
        assert shipped.labels_differing == 0
        inputs = {name: RasterSource(str(dataset.path(s.path)), s.band) for name, s in dataset.sources.items()}
        result = predict(
            PredictJob(str(tmp_path / "model"), inputs, str(tmp_path / "out"), models=("rf",), threads=1), Silent()
        )
        with rasterio.open(result.outputs[f"{task}_probability_rf"]) as source:
            valid = tables[50.0].valid
            read = np.array(list(source.sample(np.stack([sites.x, sites.y], axis=1))))
        assert (read[~valid] == -9999).all()
        expected = shipped.forest.probabilities(tables[50.0].values[valid])
        expected = expected[:, 1:] if task == "nsp" else expected
        assert np.abs(read[valid] - expected).max() < 1e-6

    def test_both_tasks_come_into_one_folder_that_the_engine_accepts(self, scene, tmp_path):
        dataset, sites, tables = scene
        for task in dataset.tasks:
            ship(dataset, tables, sites, task, halves(sites), QUICK, tmp_path)
        files = read_model_files(tmp_path, ("rf",))
        assert set(files.graphs) == {"rf_nsp.onnx", "rf_soil_order.onnx"}
        assert files.manifest.simulated
        assert files.manifest.tasks["soil_order"].classes == CLASSES["soil_order"]
        assert set(files.manifest.trained["random_forest"]) == {"nsp", "soil_order"}
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "SHA256SUMS", "manifest.json", "rf_nsp.onnx", "rf_soil_order.onnx",
        ]  # fmt: skip

    def test_shipping_twice_gives_the_same_bytes(self, scene, tmp_path):
        dataset, sites, tables = scene
        for name in ("a", "b"):
            ship(dataset, tables, sites, "soil_order", halves(sites), QUICK, tmp_path / name)
        for file in ("rf_soil_order.onnx", "manifest.json"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_a_compressed_graph_says_how_far_it_is_off(self, scene, tmp_path):
        dataset, sites, tables = scene
        recipe = dataclasses.replace(QUICK, compression=Compression(leaf_bits=4, threshold_bits=6))
        shipped = ship(dataset, tables, sites, "soil_order", halves(sites), recipe, tmp_path)
        assert 1e-3 < shipped.largest_difference < 1
        assert 0 < shipped.labels_differing < 0.1 * shipped.rows
        trained = read_model_files(tmp_path, ("rf",)).manifest.trained["random_forest"]["soil_order"]
        assert trained["compression"] == {"leaf_bits": 4, "threshold_bits": 6}

    def test_a_folder_of_other_channels_tasks_or_kind_is_refused_and_left_alone(self, scene, tmp_path):
        dataset, sites, tables = scene
        ship(dataset, tables, sites, "nsp", halves(sites), QUICK, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        other = dataclasses.replace(
            dataset,
            simulated=False,
            groups=(*dataset.groups, dataclasses.replace(dataset.groups[0], channels=(
                dataclasses.replace(dataset.groups[0].channels[0], name="red"),
            ))),
        )  # fmt: skip
        with pytest.raises(InputError) as raised:
            ship(other, tables, sites, "nsp", halves(sites), QUICK, tmp_path)
        assert "has no channel red" in str(raised.value)
        assert "it is of simulated data, the dataset is real" in str(raised.value)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestCommand:
    def test_predictions_and_graphs_are_written_and_a_second_run_keeps_them(self, scene, tmp_path, capsys):
        dataset, _, _ = scene
        words = ["random-forest", "--dataset", dataset.folder, "--run", str(tmp_path), "--trees", "8"]
        words += ["--split", "random", "--no-coordinates"]
        assert cli.main(words) == 0
        found = outoffold.load_run(tmp_path)
        assert [one.name for one in found] == ["rf__nsp__random__1", "rf__soil_order__random__1"]
        assert read_model_files(tmp_path / "model", ("rf",)).manifest.forests["nsp"].features[-1].channel == "noise"
        assert "0 of 20,000 labels differ" in capsys.readouterr().out
        stamp = (tmp_path / "predictions" / "rf__nsp__random__1.npz").stat().st_mtime_ns
        assert cli.main(words) == 0
        assert (tmp_path / "predictions" / "rf__nsp__random__1.npz").stat().st_mtime_ns == stamp

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ([], "Run folder: none is given"),
            (["--run", "r", "--task", "depth"], "it has no task depth"),
            (["--run", "r", "--split", "moon"], 'Split "moon": it is unknown'),
            (["--run", "r", "--split", "blocks"], "squares of 10 km."),
            (["--run", "r", "--search", "3", "--score", "beauty"], '"beauty" cannot rank nsp'),
            (["--run", "r", "--leaf-bits", "0"], "Leaf bits: they are 0. 1 to 16 are possible"),
            (["--run", "r", "--trees", "0"], "Forest setting trees: it is 0"),
        ],
    )
    def test_what_cannot_be_done_is_said_without_a_traceback(self, scene, words, text, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["random-forest", "--dataset", scene[0].folder, *words]) == 2
        error = capsys.readouterr().err
        assert text in error
        assert "Traceback" not in error
        assert not list(tmp_path.iterdir())

    def test_predictions_of_another_recipe_are_not_taken_for_those_asked_for(self, scene, tmp_path, capsys):
        words = ["random-forest", "--dataset", scene[0].folder, "--run", str(tmp_path), "--split", "random"]
        assert cli.main([*words, "--task", "nsp", "--trees", "5"]) == 0
        assert cli.main([*words, "--task", "nsp", "--trees", "5", "--leaf-bits", "6", "--jobs", "2"]) == 0
        assert cli.main([*words, "--task", "nsp", "--trees", "6"]) == 2
        assert "they were made with other settings" in capsys.readouterr().err

    def test_wrong_sites_are_all_named(self, tmp_path):
        rows = [
            {"id": "a", "x": "north", "y": 1, "date": "", "nsp": 1, "soil_order": ""},
            {"id": "b", "x": 1, "y": 1, "date": "", "nsp": 1, "soil_order": "Oxisols"},
            {"id": "c", "x": 1, "y": 1, "date": "spring", "nsp": 1, "soil_order": ""},
        ]
        dataset = forest_scene.write(tmp_path, rows=rows)
        with pytest.raises(InputError) as raised:
            load_sites(dataset)
        assert 'Site "a"' in str(raised.value)
        assert "soil_order is 'Oxisols'" in str(raised.value)
        assert 'Site "c"' in str(raised.value)

    def test_blocks_are_dealt_whole(self):
        generator = np.random.default_rng(1)
        x, y = generator.uniform(0, 100_000, (2, 400))
        sites = Sites(np.arange(400).astype(str), x, y, {}, np.full(400, "NaT", "datetime64[D]"))
        split = load_split(sites, "blocks", 1)
        assert all(np.unique(split.fold[split.cluster == one]).size == 1 for one in np.unique(split.cluster))
        assert set(split.fold) == set(range(5))
        assert forest_run.BLOCK_M == 10_000


def test_the_table_of_sizes_measures_the_graph_that_would_be_shipped(scene):
    _, sites, tables = scene
    usable = tables[50.0].valid
    features, labels = tables[50.0].values[usable], sites.labels["nsp"][usable]
    places = Places(features, labels, halves(sites).fold[usable])
    variants = [
        Variant(ForestSettings(trees=20)),
        Variant(ForestSettings(trees=20), Compression(leaf_bits=1, threshold_bits=1)),
    ]
    sizes = measure(variants, "nsp", places, places, features)
    assert sizes[0].nodes == sizes[1].nodes
    assert sizes[1].zipped_bytes < sizes[0].zipped_bytes
    assert sizes[1].scores["pr_auc"] < sizes[0].scores["pr_auc"], "one bit of a threshold cannot be enough"
    assert all(size.px_per_cpu_s > 0 for size in sizes)
    lines = table(sizes).splitlines()
    assert lines[0].startswith("| forest | nodes | MB | MB zipped | px per CPU-s | PR-AUC |")
    assert "leaves 1 bit, thresholds 1 bit" in lines[3]
    assert lines[3].count("| -0.") >= 1
