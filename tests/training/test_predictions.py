"""The loop over folds, the stored predictions, and the evaluation made of them, on an invented map."""

import dataclasses
import json

import numpy as np
import pytest

from training import cpcrw, metrics, predictions, splits, watershed

evaluate = pytest.importorskip("training.evaluate")

SEEDS = (1, 2)
QUICK = ("blocks",)


@pytest.fixture(autouse=True)
def invented_map(monkeypatch):
    """Present in stripes; 4,500 open cells; few draws, so that the test is quick."""
    rows, columns = np.indices(watershed.SHAPE)
    labels = ((rows + columns) % 40 < 13).astype(np.uint8)
    labels[(rows < 80) | (rows >= 125) | (columns < 100) | (columns >= 200)] = watershed.LABEL_NODATA
    monkeypatch.setattr(cpcrw, "_labels", lambda: labels)
    sample = cpcrw.sample_transects
    monkeypatch.setattr(cpcrw, "sample_transects", lambda labels, grid, seed: sample(labels, grid, seed, points=500))
    monkeypatch.setattr(evaluate, "block_draws", lambda blocks: metrics.block_draws(blocks, draws=20))


def _fit_position(strength):
    """A model that knows the stripes, as far as ``strength`` (0: nothing; 1: all)."""

    def fit(training, seed):
        def predict(places):
            noise = np.random.default_rng(seed).random(len(places))
            return strength * places.label + (1 - strength) * noise

        return predict

    return fit


def _store(folder, model, strength, seeds=SEEDS, split_names=splits.SPLITS):
    for split in split_names:
        for seed in seeds:
            found = predictions.out_of_fold(_fit_position(strength), split, seed)
            predictions.save(found, folder, model, split, seed)


@pytest.mark.parametrize("split", splits.SPLITS)
def test_no_place_is_predicted_by_a_model_that_learned_from_its_fold(split):
    points, cells = cpcrw.load_observations(1), cpcrw.load_open_cells()
    fold_of = {"points": cpcrw.folds(points, split, 1), "cells": cpcrw.folds(cells, split, 1)}
    cell_fold = np.full(watershed.SHAPE, -1)
    cell_fold[cells.cell_row, cells.cell_col] = fold_of["cells"]

    def fit(training, seed):
        seen = set(cell_fold[training.cell_row, training.cell_col])

        def predict(places):
            assert not seen & set(cell_fold[places.cell_row, places.cell_col])
            return np.full(len(places), next(iter(set(cell_fold[places.cell_row, places.cell_col]))) / 10)

        return predict

    found = predictions.out_of_fold(fit, split, 1)
    assert found.points == pytest.approx(fold_of["points"] / 10)
    assert found.cells == pytest.approx(fold_of["cells"] / 10)


@pytest.mark.parametrize("wrong", [np.nan, 1.5, -0.1])
def test_values_that_are_no_probabilities_are_refused(wrong):
    with pytest.raises(ValueError, match="not probabilities"):
        predictions.out_of_fold(lambda training, seed: lambda places: np.full(len(places), wrong), "blocks", 1)


def test_wrong_number_of_values_is_refused():
    with pytest.raises(ValueError, match="returned shape"):
        predictions.out_of_fold(lambda training, seed: lambda places: np.zeros((len(places), 1)), "blocks", 1)


def test_stored_predictions_come_back_with_their_facts(tmp_path):
    made = predictions.out_of_fold(_fit_position(0.5), "sector", 1)
    predictions.save(dataclasses.replace(made, facts={"epochs": 3}), tmp_path, "miso", "sector", 1)
    found = predictions.load(tmp_path, "miso", "sector", 1)
    assert np.array_equal(found.cells, made.cells)
    assert found.facts == {"epochs": 3}
    assert predictions.load(tmp_path, "miso", "sector", 2) is None
    assert [path.name for path in tmp_path.iterdir()] == ["miso__sector__1.npz"]


def test_every_split_has_a_title():
    assert set(evaluate.SPLIT_TITLES) == set(splits.SPLITS)


def test_incomplete_model_has_no_figures_and_reads_not_yet_run(tmp_path):
    _store(tmp_path, "rf", 0.3)
    _store(tmp_path, "miso", 0.5, seeds=(1,))
    result = evaluate.evaluate(tmp_path, SEEDS)
    assert set(result["tables"]["blocks"]["map"]) == {"rf"}
    assert result["differences"]["blocks"]["map"] == {}
    text = evaluate.markdown(result)
    assert "| MISO (small) | not yet run (1 of 2 seeds) |" in text
    assert "| Logistic regression | not yet run |" in text
    thresholds, curves, _ = evaluate.manifest_entries(result)
    assert set(thresholds) == set(curves) == {"rf"}


def test_better_model_is_called_better_and_equal_ones_level(tmp_path):
    _store(tmp_path, "miso", 0.4)
    _store(tmp_path, "rf", 0.2)
    _store(tmp_path, "logistic", 0.4)
    result = evaluate.evaluate(tmp_path, SEEDS)
    found = result["differences"]["blocks"]["map"]
    assert found["rf"]["roc_auc"]["low"] > 0
    assert found["logistic"]["roc_auc"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    text = evaluate.markdown(result)
    assert "MISO better" in text
    assert "level" in text
    assert "MISO worse" not in text
    json.dumps(result, allow_nan=False)


def test_table_holds_the_mean_over_seeds_of_the_pooled_metric(tmp_path):
    _store(tmp_path, "rf", 0.3)
    result = evaluate.evaluate(tmp_path, SEEDS)
    cells = cpcrw.load_open_cells()
    expected = [
        metrics.Ranking(cells.label, predictions.load(tmp_path, "rf", "blocks", seed).cells).measure()["roc_auc"]
        for seed in SEEDS
    ]
    entry = result["tables"]["blocks"]["map"]["rf"]["roc_auc"]
    assert entry["seeds"] == pytest.approx(expected, abs=1e-9)
    assert entry["mean"] == pytest.approx(np.mean(expected))
    assert entry["low"] < entry["mean"] < entry["high"]


def test_threshold_for_maps_reaches_the_recall_on_the_points(tmp_path):
    _store(tmp_path, "rf", 0.3)
    result = evaluate.evaluate(tmp_path, SEEDS)
    threshold = result["thresholds"]["rf"]["equal_recall"]
    hits = [
        predictions.load(tmp_path, "rf", "blocks", seed).points[cpcrw.load_observations(seed).label == 1] >= threshold
        for seed in SEEDS
    ]
    assert np.concatenate(hits).mean() == pytest.approx(0.80, abs=0.01)
    curve = result["curves"]["rf"]["blocks"]
    assert len(curve["threshold"]) == len(curve["precision"]) == len(curve["recall"]) == 101
    assert curve["recall"][0] == 1.0
    assert np.all(np.diff(curve["recall"]) <= 0)


def test_section_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{evaluate.START}\nold\n{evaluate.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        evaluate.write_section(page, "new\n")
    assert page.read_text(encoding="utf-8") == f"before\n{evaluate.START}\n\nnew\n\n{evaluate.END}\nafter\n"


def test_page_without_markers_is_left_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no markers\n", encoding="utf-8")
    with pytest.raises(ValueError, match="does not hold the markers"):
        evaluate.write_section(page, "new")
    assert page.read_text(encoding="utf-8") == "no markers\n"
