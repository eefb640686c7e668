"""Puts what an evaluation found into the model folder: scores, curves, calibration, applicability, limits, the card.

A folder that was only exported says that nothing is known of how good it is. After this step its manifest carries the
out-of-fold curves that thresholds are chosen by, the calibrations that were found, the training summary for the area of
applicability, and the sentence on how its models compare; the graphs stay as they are.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import numpy as np

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.manifest import Manifest, TaskSpec, read_manifest, write_manifest
from miso_qgis.engine.session import read_model_files

from . import applicability
from .applicability import TrainingSummary
from .bundle import write_sums
from .dataset import Dataset
from .forest import Recipe, read_tables, usable_sites
from .forest_fit import ForestSettings, fit_forest
from .modelfolder import CARD, SIMULATED
from .outoffold import OutOfFold
from .report import Report
from .surveys import load_sites

Json = Dict[str, Any]
# Which of several tasks or splits the area of applicability is made for: permafrost and spatial folds first.
_SPLITS = ("SH-1km", "SH-10km", "kNNDM", "blocks", "random")
_IMPORTANCE_TREES = 100


def describe(folder: Path, report: Report, summary: Optional[TrainingSummary] = None) -> Manifest:
    """Rewrite a model folder's manifest, card and digests by what a report found.

    Args:
        folder: Model folder.
        report: Evaluation of the runs that its models come from.
        summary: Training summary for the area of applicability.

    Returns:
        The new manifest.

    Raises:
        ModelFolderError: If the folder is not a sound model folder.
        InputError: If the report is of other tasks, or of simulated data while the folder claims to be real.
    """
    read_model_files(folder, ())  # a damaged folder must not get fresh digests
    manifest = read_manifest(folder)
    found: Json = report.data["manifest"]
    _check(folder, manifest, report)
    tasks = {name: _task(task, found["tasks"].get(name, {})) for name, task in manifest.tasks.items()}
    scores = {**found["scores"], "runs": report.data["runs"]}
    entries: Json = dict(manifest.applicability)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch)
        if summary is not None:
            entries.update(applicability.save(summary, made))
        new = dataclasses.replace(
            manifest,
            tasks=tasks,
            scores=scores,
            applicability=entries,
            limits=[*([SIMULATED] if manifest.simulated else []), *report.limits],
        )
        write_manifest(new, made)
        (made / CARD).write_bytes(report.card.encode("utf-8"))
        for path in sorted(made.iterdir()):
            os.replace(path, folder / path.name)
    write_sums(folder)
    return read_manifest(folder)


def _check(folder: Path, manifest: Manifest, report: Report) -> None:
    tasks = set(report.data["manifest"]["tasks"])
    if not tasks & set(manifest.tasks):
        raise InputError(
            f'Model folder "{folder}"',
            f"it predicts {', '.join(manifest.tasks)}, and the runs {', '.join(sorted(tasks))}.",
            "Runs of the folder's own models are needed.",
            "Name the run that the model was exported from.",
        )
    if report.data["simulated"] != manifest.simulated:
        words = {True: "simulated", False: "not simulated"}
        raise InputError(
            f'Model folder "{folder}"',
            f"it is {words[manifest.simulated]}, and the runs are {words[report.data['simulated']]}.",
            "Runs of the folder's own models are needed.",
            "Name the run that the model was exported from.",
        )


def _task(task: TaskSpec, found: Mapping[str, Any]) -> TaskSpec:
    """The task with what was found; what the graph applies stays said beside what was found for it."""
    if not found:
        return task
    applied = task.calibration.get("applied", task.calibration)
    return dataclasses.replace(
        task,
        thresholds=found["thresholds"],
        curves=found["curves"],
        calibration={"applied": applied, "found": found["calibration"]},
    )


def training_summary(dataset: Dataset, predictions: Sequence[OutOfFold], seed: int = 1) -> TrainingSummary:
    """Summarise the training sites for the dissimilarity index.

    Features are the channel means within 50 m that the forest sees, without coordinates (a place is not unlike the
    training data because it lies elsewhere); weights are the importances of a forest fitted on all sites; folds are
    those of the first of SH-1km, SH-10km, kNNDM, blocks, random that was predicted.

    Args:
        dataset: The training area.
        predictions: Out-of-fold predictions, for their folds.
        seed: Of the forest.

    Raises:
        InputError: If no predictions are of the dataset's tasks, or its rasters or observations cannot be read.
    """
    usable = [one for one in predictions if one.task in dataset.tasks]
    if not usable:
        raise InputError(
            f'Dataset "{dataset.name}"',
            "none of the runs' predictions are of its tasks.",
            f"Predictions of {' or '.join(dataset.tasks)} are needed.",
            "Name the dataset that the runs were made with.",
        )
    chosen = min(usable, key=lambda one: (dataset.tasks.index(one.task), _rank(one.split), one.seed))
    recipe = Recipe(coordinates=False, settings=ForestSettings(trees=_IMPORTANCE_TREES), seed=seed)
    sites, _ = load_sites(dataset)
    tables = read_tables(dataset, sites, recipe)
    (table,) = tables.values()
    fold_of = dict(zip(chosen.id.tolist(), chosen.fold.tolist()))
    held = usable_sites(tables, sites, chosen.task) & np.asarray([site in fold_of for site in sites.id.tolist()])
    features = table.values[held]
    forest = fit_forest(features, sites.labels[chosen.task][held], chosen.task, recipe.settings, seed)
    folds = np.asarray([fold_of[site] for site in sites.id[held].tolist()])
    names: List[str] = [feature.channel for feature in table.features]
    return applicability.training_summary(features.astype(np.float64), folds, forest.model.feature_importances_, names)


def _rank(split: str) -> int:
    return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)
