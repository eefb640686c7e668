"""What an evaluation writes into a model folder: curves, limits, card, the area of applicability; nothing half-done."""

import forest_scene
import numpy as np
import pytest
import rasterio

from miso_qgis.engine.errors import MisoError
from miso_qgis.engine.messages import PredictJob
from miso_qgis.engine.predict import predict
from miso_qgis.engine.progress import Silent
from miso_qgis.engine.session import read_model_files
from training import applicability, cli, outoffold
from training.applicability import dissimilarity
from training.dataset import read_dataset, write_dataset
from training.forest import Recipe, read_tables
from training.surveys import load_sites


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A forest of made-up land, its run, and its model folder after evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    dataset = forest_scene.write(folder)
    run, model = folder / "run", folder / "model"
    words = ["random-forest", "--dataset", dataset.folder, "--run", str(run), "--out", str(model), "--trees", "9"]
    assert cli.main([*words, "--split", "random"]) == 0
    before = read_model_files(model, ("rf",))
    words = ["evaluate", str(run), "--model", str(model), "--dataset", dataset.folder, "--draws", "40"]
    assert cli.main(words) == 0
    return dataset, run, model, before


def test_the_folder_carries_curves_scores_limits_and_the_card(evaluated):
    _, run, model, before = evaluated
    files = read_model_files(model, ("rf",))  # digests hold
    manifest = files.manifest
    curve = manifest.tasks["nsp"].curves["rf"]["random"]
    assert len(curve["threshold"]) == len(curve["precision"]) == len(curve["recall"])
    (oof,) = (one for one in outoffold.load_run(run) if one.task == "nsp")
    at = curve["threshold"].index(0.5)
    called = oof.probability[:, 1] >= 0.5
    assert curve["recall"][at] == pytest.approx(called[oof.label == 1].mean(), abs=1e-3)
    assert manifest.limits[0].startswith("Simulated")
    assert not any("Not evaluated" in limit for limit in manifest.limits)
    assert set(manifest.scores["pooled"]) == {"nsp", "soil_order"}
    card = (model / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card.splitlines()[2].startswith("**SIMULATED.")
    assert files.graphs == before.graphs
    assert set(manifest.tasks["nsp"].calibration) == {"applied", "found"}


def test_training_sites_are_inside_their_own_area_of_applicability_and_far_values_are_not(evaluated):
    dataset, _, model, _ = evaluated
    summary = applicability.load(read_model_files(model, ("rf",)).manifest.applicability, model)
    sites, _ = load_sites(dataset)
    (table,) = read_tables(dataset, sites, Recipe(coordinates=False)).values()
    features = table.values[table.valid].astype(float)
    assert summary.names == ("wet", "east", "noise")
    assert dissimilarity(summary, features).max() < 1e-3  # every one of them is a reference
    assert (dissimilarity(summary, features + 50 * summary.sd) > summary.threshold).all()


def test_the_map_is_what_it_was_before_the_evaluation_was_put_in(evaluated, tmp_path):
    dataset, _, model, _ = evaluated
    inputs = {
        name: source.__class__(str(dataset.path(source.path)), source.band) for name, source in dataset.sources.items()
    }
    predict(PredictJob(str(model), inputs, str(tmp_path), models=("rf",)), Silent())
    with rasterio.open(tmp_path / "nsp_probability_rf.tif") as source:
        assert np.isfinite(source.read(1, masked=True)).any()


def test_evaluating_twice_changes_nothing_but_what_was_found(evaluated):
    dataset, run, model, _ = evaluated
    first = {path.name: path.read_bytes() for path in model.iterdir()}
    assert cli.main(["evaluate", str(run), "--model", str(model), "--dataset", dataset.folder, "--draws", "40"]) == 0
    assert {path.name: path.read_bytes() for path in model.iterdir()} == first


def test_a_damaged_folder_gets_no_fresh_digests(evaluated, capsys):
    _, run, model, _ = evaluated
    card = model / "MODEL_CARD.md"
    whole = card.read_bytes()
    card.write_bytes(whole + b"and more")
    try:
        assert cli.main(["evaluate", str(run), "--model", str(model), "--draws", "40"]) == 2
        assert "altered or damaged" in capsys.readouterr().err
        with pytest.raises(MisoError):
            read_model_files(model, ("rf",))
    finally:
        card.write_bytes(whole)


def test_scores_of_real_ground_do_not_go_into_a_simulated_folder(evaluated, tmp_path, capsys):
    dataset, _, model, _ = evaluated
    land = tmp_path / "land"
    land.mkdir()
    forest_scene.write(land, simulated=False)
    words = ["random-forest", "--dataset", str(land), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")]
    assert cli.main([*words, "--trees", "5", "--split", "random", "--task", "nsp"]) == 0
    before = (model / "manifest.json").read_bytes()
    assert cli.main(["evaluate", str(tmp_path / "run"), "--model", str(model), "--draws", "40"]) == 2
    assert "it is simulated, and the runs are not simulated" in capsys.readouterr().err
    assert (model / "manifest.json").read_bytes() == before
    assert read_dataset(write_dataset(dataset, tmp_path)).simulated
