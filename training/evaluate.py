"""From stored out-of-fold predictions to the tables of docs/validation.md and the figures of a manifest.

Owns how the protocol's results are gathered and written; refits nothing. A model whose predictions are incomplete has
no figures at all: its rows read "not yet run".
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from . import cpcrw, predictions
from .metrics import (
    EQUAL_RECALL,
    METRICS,
    Ranking,
    Scored,
    block_draws,
    bootstrap,
    equal_recall_thresholds,
    interval,
)
from .observations import Observations
from .predictions import Predictions

MISO = "miso"
MODELS: Mapping[str, str] = {
    MISO: "MISO (small)",
    "rf": "Random Forest",
    "rf_coordinates": "Random Forest + coordinates",
    "logistic": "Logistic regression",
}
TARGETS: Mapping[str, str] = {"map": "all open cells", "points": "sampled points"}
SPLIT_TITLES: Mapping[str, str] = {
    "blocks": "Blocks (1 km, five folds)",
    "sector": "Sector (four parts, each held out)",
    "random": "Random (five folds; optimistic by construction)",
}
COLUMNS: Mapping[str, str] = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "precision_at_equal_recall_curve": "P at R 0.80",
    "f1_half": "F1",
    "precision_half": "P",
    "recall_half": "R",
    "f1_equal_recall": "F1 eq.",
    "precision_equal_recall": "P eq.",
    "recall_equal_recall": "R eq.",
}
MAIN = ("roc_auc", "pr_auc", "precision_at_equal_recall_curve", "f1_half", "f1_equal_recall")
CURVE_THRESHOLDS = np.round(np.linspace(0.0, 1.0, 101), 2)
START, END = "<!-- results: start (python -m training evaluate) -->", "<!-- results: end -->"

Json = Dict[str, Any]


class Places:
    """The places that predictions belong to: each seed's sample, and the open cells."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.cells = cpcrw.load_open_cells()
        self.points: Dict[int, Observations] = {seed: cpcrw.load_observations(seed) for seed in seeds}
        self._folds: Dict[Tuple[str, int, str], NDArray[np.int64]] = {}

    def of(self, target: str, seed: int) -> Observations:
        """Return the places of a target: ``points`` or ``map``."""
        return self.points[seed] if target == "points" else self.cells

    def folds(self, split: str, seed: int, target: str) -> NDArray[np.int64]:
        """Return the fold of each of these places; dealt once."""
        key = (split, seed, target)
        if key not in self._folds:
            self._folds[key] = cpcrw.folds(self.of(target, seed), split, seed)
        return self._folds[key]


class Gathered:
    """Predictions of one split for all seeds, with places and folds.

    Attributes:
        split: Name of the split.
        complete: Models that have predictions for every seed, in table order.
        networks: How many networks MISO averaged, by what its runs say of themselves.
    """

    def __init__(self, folder: Path, split: str, seeds: Sequence[int], places: Places) -> None:
        self.split, self._seeds, self._places = split, tuple(seeds), places
        found: Dict[str, List[Optional[Predictions]]] = {
            model: [predictions.load(folder, model, split, seed) for seed in seeds] for model in MODELS
        }
        self.runs = {model: sum(p is not None for p in stored) for model, stored in found.items()}
        self._stored = {model: [p for p in stored if p is not None] for model, stored in found.items()}
        self.complete = [model for model, count in self.runs.items() if count == len(self._seeds)]
        trained = [stored.facts.get("training", {}) for stored in self._stored[MISO]]
        self.networks = {int(facts["members"]) for facts in trained if "members" in facts}

    def scored(self, model: str, target: str) -> List[Scored]:
        """Return one :class:`Scored` per seed; thresholds are chosen on the points of the other folds."""
        result = []
        for seed, stored in zip(self._seeds, self._stored[model]):
            points, places = self._places.points[seed], self._places.of(target, seed)
            folds = self._places.folds(self.split, seed, "points")
            thresholds = equal_recall_thresholds(points.label, stored.points, folds)
            scores = stored.points if target == "points" else stored.cells
            if scores.size != len(places):
                raise ValueError(f"{model}, {self.split}, seed {seed}: {scores.size} values for {len(places)} places")
            of_place = self._places.folds(self.split, seed, target)
            threshold = np.asarray([thresholds[int(fold)] for fold in of_place])
            result.append(Scored(places.label, scores.astype(np.float64), places.block_id, threshold))
        return result

    def fold_means(self, model: str, target: str) -> Dict[str, float]:
        """Return each metric's mean over folds and seeds: the literature's way."""
        values: Dict[str, List[float]] = {name: [] for name in METRICS}
        for seed, scored in zip(self._seeds, self.scored(model, target)):
            folds = self._places.folds(self.split, seed, target)
            for fold in np.unique(folds):
                chosen = folds == fold
                arrays = (scored.labels, scored.scores, scored.blocks, scored.threshold)
                for name, value in Scored(*(array[chosen] for array in arrays)).measure().items():
                    values[name].append(value)
        return {name: float(np.mean(found)) for name, found in values.items()}


def evaluate(folder: Path, seeds: Sequence[int] = cpcrw.SEEDS, note: Callable[[str], None] = lambda text: None) -> Json:
    """Compute everything that the protocol names from the predictions in ``folder``.

    Returns:
        JSON values: ``tables[split][target][model][metric] -> {mean, seeds, low, high}``, ``differences[split][target]
        [baseline][metric] -> {mean, low, high}`` (MISO minus baseline), ``fold_means[split][target][model][metric]``,
        ``runs[split][model]`` (seeds that have predictions), ``networks`` (how many MISO averaged: one number, if all
        runs are alike), ``thresholds`` and ``curves`` for the manifest.
    """
    places = Places(seeds)
    draws = block_draws(places.cells.block_id)
    result: Json = {"seeds": list(seeds), "recall": EQUAL_RECALL}
    parts = ("tables", "differences", "fold_means", "runs")
    result.update({part: {} for part in parts})
    gathered = {split: Gathered(folder, split, seeds, places) for split in SPLIT_TITLES}
    for split, found in gathered.items():
        result["runs"][split] = found.runs
        for part in parts[:3]:
            result[part][split] = {target: {} for target in TARGETS}
        for target in TARGETS:
            distributions = {}
            for model in found.complete:
                scored = found.scored(model, target)
                distributions[model] = bootstrap(scored, draws)
                result["tables"][split][target][model] = _row(scored, distributions[model])
                result["fold_means"][split][target][model] = found.fold_means(model, target)
                note(f"{split}, {target}: {MODELS[model]}")
            result["differences"][split][target] = _differences(result["tables"][split][target], distributions)
    result["thresholds"] = {
        model: {"equal_recall": _overall_threshold(gathered["blocks"].scored(model, "points"))}
        for model in gathered["blocks"].complete
    }
    result["networks"] = sorted({count for found in gathered.values() for count in found.networks})
    result["curves"] = _curves(gathered)
    return result


def _row(scored: Sequence[Scored], distribution: Mapping[str, NDArray[np.float64]]) -> Json:
    per_seed = [one.measure() for one in scored]
    row: Json = {}
    for name in METRICS:
        values = [measured[name] for measured in per_seed]
        low, high = interval(distribution[name])
        row[name] = {"mean": float(np.mean(values)), "seeds": values, "low": low, "high": high}
    return row


def _differences(table: Json, distributions: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Json:
    if MISO not in table:
        return {}
    result: Json = {}
    for baseline in table:
        if baseline == MISO:
            continue
        result[baseline] = {}
        for name in METRICS:
            low, high = interval(distributions[MISO][name] - distributions[baseline][name])
            mean = table[MISO][name]["mean"] - table[baseline][name]["mean"]
            result[baseline][name] = {"mean": mean, "low": low, "high": high}
    return result


def _pooled(scored: Sequence[Scored]) -> Ranking:
    return Ranking(np.concatenate([s.labels for s in scored]), np.concatenate([s.scores for s in scored]))


def _overall_threshold(scored: Sequence[Scored]) -> float:
    """Threshold for use in maps: recall 0.80 on all out-of-fold points of all seeds."""
    return float(round(_pooled(scored).threshold_at_recall(EQUAL_RECALL), 4))


def _curves(gathered: Mapping[str, Gathered]) -> Json:
    """Precision and recall by threshold on all open cells, seeds pooled: {model: {split: {...}}}."""
    curves: Json = {}
    for split, found in gathered.items():
        for model in found.complete:
            precision, recall = _pooled(found.scored(model, "map")).curve(CURVE_THRESHOLDS)
            curves.setdefault(model, {})[split] = {
                "threshold": CURVE_THRESHOLDS.tolist(),
                "precision": np.round(precision, 4).tolist(),
                "recall": np.round(recall, 4).tolist(),
            }
    return curves


def manifest_entries(result: Json) -> Tuple[Json, Json, Json]:
    """Return what a manifest takes from a result: thresholds, curves (MISO and the shipped forest), and scores."""
    shipped = (MISO, "rf")
    scores: Json = {"protocol": "docs/validation.md", "seeds": result["seeds"], "recall": result["recall"]}
    scores["map"] = {
        split: {
            model: {name: {k: round(v[k], 4) for k in ("mean", "low", "high")} for name, v in row.items()}
            for model, row in tables["map"].items()
        }
        for split, tables in result["tables"].items()
    }
    scores["miso_minus_baseline"] = {
        split: {
            model: {name: {k: round(v[k], 4) for k in ("mean", "low", "high")} for name, v in row.items()}
            for model, row in tables["map"].items()
        }
        for split, tables in result["differences"].items()
    }
    return (
        {model: result["thresholds"][model] for model in shipped if model in result["thresholds"]},
        {model: result["curves"][model] for model in shipped if model in result["curves"]},
        scores,
    )


def markdown(result: Json) -> str:
    """Write the results as the generated part of docs/validation.md."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"Means over seeds {seeds}, ± half their range; below, 95 % interval of the block bootstrap. P, R, F1 without",
        "mark are at threshold 0.5; *eq.* is the threshold chosen for recall 0.80 on the other folds; *P at R 0.80* is",
        "read off the model's own curve.",
        "",
    ]
    if result["networks"]:
        counts = " or ".join(map(str, result["networks"]))
        lines += [f"MISO is the average of {counts} networks here.", ""]
    for split, title in SPLIT_TITLES.items():
        lines += [f"### {title}", ""]
        for target, words in TARGETS.items():
            lines += [f"Scored on {words}:", "", *_table(result, split, target), ""]
        lines += ["MISO minus baseline, on all open cells:", "", *_difference_table(result, split), ""]
        lines += ["Means over folds (and seeds), on all open cells:", "", *_fold_table(result, split), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(result: Json, split: str, target: str) -> List[str]:
    lines = ["| model | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    table = result["tables"][split][target]
    for model, title in MODELS.items():
        cells = [_cell(table[model][name]) for name in COLUMNS] if model in table else _absent(result, split, model)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _cell(entry: Json) -> str:
    spread = (max(entry["seeds"]) - min(entry["seeds"])) / 2
    return f"{entry['mean']:.3f} ±{spread:.3f}<br>{entry['low']:.3f}–{entry['high']:.3f}"


def _absent(result: Json, split: str, model: str) -> List[str]:
    runs = result["runs"][split][model]
    text = "not yet run" if runs == 0 else f"not yet run ({runs} of {len(result['seeds'])} seeds)"
    return [text] + [""] * (len(COLUMNS) - 1)


def _difference_table(result: Json, split: str) -> List[str]:
    lines = ["| against | " + " | ".join(COLUMNS[name] for name in MAIN) + " |", "|---" * (len(MAIN) + 1) + "|"]
    found = result["differences"][split]["map"]
    for model, title in MODELS.items():
        if model == MISO:
            continue
        cells = [_verdict(found[model][name]) for name in MAIN] if model in found else ["not yet run", "", "", "", ""]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _verdict(entry: Json) -> str:
    word = "MISO better" if entry["low"] > 0 else "MISO worse" if entry["high"] < 0 else "level"
    return f"{entry['mean']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f})<br>{word}"


def _fold_table(result: Json, split: str) -> List[str]:
    lines = ["| model | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    table = result["fold_means"][split]["map"]
    for model, title in MODELS.items():
        cells = [f"{table[model][name]:.3f}" for name in COLUMNS] if model in table else _absent(result, split, model)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def write_section(document: Path, text: str, start: str = START, end: str = END) -> None:
    """Replace what stands between two marker lines of a document; all else stays as it is.

    Raises:
        ValueError: If the document does not hold each marker once, in order.
    """
    content = document.read_text(encoding="utf-8")
    if content.count(start) != 1 or content.count(end) != 1 or content.index(start) > content.index(end):
        raise ValueError(f'"{document}" does not hold the markers "{start}" and "{end}" once each, in this order')
    before, after = content.split(start)[0], content.split(end)[1]
    part = document.with_suffix(".part.md")
    part.write_text(f"{before}{start}\n\n{text.rstrip()}\n\n{end}{after}", encoding="utf-8")
    os.replace(part, document)


def save_result(result: Json, path: Path) -> None:
    """Write the result as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.json")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
