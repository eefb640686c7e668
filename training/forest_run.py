"""From a dataset to out-of-fold predictions and a model folder with forests: ``python -m training random-forest``."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

import numpy as np

from miso_qgis.engine.errors import InputError

from . import outoffold
from .dataset import Dataset
from .forest import MODEL, Note, Recipe, cross_validate, read_tables, recorded, silent
from .forest_search import checked_score
from .forest_ship import manifest_for, ship
from .surveys import assign_folds, load_sites


def run(
    dataset: Dataset,
    folder: Path,
    out: Path,
    recipe: Recipe,
    tasks: Sequence[str] = (),
    split_names: Sequence[str] = ("random", "SH-1km"),
    note: Note = silent,
) -> List[Path]:
    """Cross-validate and ship the forests of a dataset.

    Predictions that the run folder holds already are left as they are, so that a broken run continues where it stopped.

    Args:
        dataset: The training area.
        folder: Run folder, gets ``predictions/rf__<task>__<split>__<seed>.npz``.
        out: Model folder, gets ``rf_<task>.onnx``.
        recipe: How forests are made.
        tasks: Tasks of the dataset; none takes all.
        split_names: Splits (:func:`training.surveys.assign_folds`), dealt as for MISO.
        note: Told what is done.

    Returns:
        What was written, or was there.

    Raises:
        InputError: As the steps say, and if predictions that are there were made by another recipe.
    """
    wanted = tuple(tasks) or dataset.tasks
    unknown = [task for task in wanted if task not in dataset.tasks]
    if unknown:
        needed = f"Its tasks are {', '.join(dataset.tasks)}."
        raise InputError(f'Dataset "{dataset.name}"', f"it has no task {', '.join(unknown)}.", needed, "Choose those.")
    for task in wanted:  # what would fail at the end fails now
        if recipe.search is not None:
            checked_score(recipe.search, task)
        manifest_for(dataset, task, out)
    sites, _ = load_sites(dataset)
    dealt = [assign_folds(sites, name, recipe.seed, dataset) for name in split_names]
    tables = read_tables(dataset, sites, recipe)
    note(next(iter(tables.values())).report() or f"{len(sites):,} sites, all with features")
    written: List[Path] = []
    for task in wanted:
        for split in dealt:
            path = folder / outoffold.FOLDER / f"{MODEL}__{task}__{split.name}__{recipe.seed}.npz"
            if path.is_file():
                _check_same(path, recipe)
            else:
                path = cross_validate(tables, sites, task, split, recipe, dataset.simulated, note).save(path.parent)
            written.append(path)
        # The search for the shipped forest parts none of the largest clusters that were dealt.
        coarsest = min(dealt, key=lambda split: np.unique(split.cluster).size)
        shipped = ship(dataset, tables, sites, task, coarsest, recipe, out)
        note(str(shipped))
        written.append(shipped.path)
    return written


def _check_same(path: Path, recipe: Recipe) -> None:
    """Refuse to take predictions of another recipe for those that are asked for."""
    if outoffold.load(path).facts.get("recipe") != recorded(recipe):
        raise InputError(
            f'Predictions "{path}"',
            "they were made with other settings, features or search.",
            "A run folder holds one recipe.",
            "Name another run folder, or remove the file.",
        )
