"""From a dataset to out-of-fold predictions and a model folder with forests: ``python -m training random-forest``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

import numpy as np
from rasterio.warp import transform as transform_points

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.grid import ALASKA_ALBERS

from . import outoffold, splits
from .dataset import Dataset
from .forest import MODEL, Note, Recipe, Split, cross_validate, read_tables, recorded, silent
from .forest_search import checked_score
from .forest_ship import manifest_for, ship
from .sites import CLASSES, MISSING, Sites

BLOCK_M = 10_000.0  # side of the squares of the split "blocks"


def load_sites(dataset: Dataset) -> Sites:
    """Read a dataset's observations: CSV files with the columns id, x, y, and date, nsp, soil_order where they exist.

    Raises:
        InputError: If a file cannot be read or a value is not understood; all problems at once.
    """
    rows: List[Dict[str, str]] = []
    problems: List[Problem] = []
    for number, observations in enumerate(dataset.observations):
        path = dataset.path(observations.path)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                read = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            problems.append(Problem(f'Observations "{path}"', f"cannot be read ({error}).", "A CSV file is needed."))
            continue
        names = {name: observations.columns.get(name, name) for name in ("id", "x", "y", "date", *CLASSES)}
        for name in ("id", "x", "y"):
            if read and names[name] not in read[0]:
                found = f'it has no column "{names[name]}".'
                problems.append(Problem(f'Observations "{path}"', found, f"The {name} of each site is needed."))
        rows += [{**{n: row.get(c) or "" for n, c in names.items()}, "file": str(number)} for row in read]
    if problems:
        raise InputError.of(problems)
    return _sites(dataset, rows)


def _sites(dataset: Dataset, rows: Sequence[Mapping[str, str]]) -> Sites:
    problems: List[Problem] = []
    places = np.full((2, len(rows)), np.nan)
    labels = {task: np.full(len(rows), MISSING, np.int8) for task in dataset.tasks}
    for index, row in enumerate(rows):
        try:
            places[:, index] = float(row["x"]), float(row["y"])
            for task in dataset.tasks:
                labels[task][index] = _label(task, row[task])
            _date(row["date"])
        except ValueError as error:
            problems.append(Problem(f'Site "{row["id"]}"', f"{error}.", "", "Correct it in the file."))
    if problems:
        raise InputError.of(problems[:20])
    for number, observations in enumerate(dataset.observations):
        mine = np.asarray([row["file"] == str(number) for row in rows], dtype=bool)
        if observations.crs and observations.crs != ALASKA_ALBERS and mine.any():
            moved = transform_points(observations.crs, ALASKA_ALBERS, *(axis[mine].tolist() for axis in places))
            places[:, mine] = moved
    dates = np.asarray([_date(row["date"]) for row in rows], dtype="datetime64[D]")
    ids = np.asarray([row["id"] for row in rows], dtype=np.str_)
    return Sites(ids, places[0], places[1], labels, dates)


def _date(text: str) -> np.datetime64:
    return np.datetime64(text.strip() or "NaT", "D")


def _label(task: str, text: str) -> int:
    words = CLASSES[task]
    if not text.strip():
        return MISSING
    if text in words:
        return words.index(text)
    if len(words) == 2 and text in ("0", "1"):
        return int(text)
    raise ValueError(f"{task} is {text!r}, which is none of {', '.join(words)}")


def load_split(sites: Sites, name: str, seed: int) -> Split:
    """Deal sites into five folds: ``random``, or ``blocks`` (squares of 10 km, dealt whole).

    Raises:
        InputError: If the split is unknown or there are too few sites.
    """
    count = len(sites)
    if name == "random":
        return Split(name, splits.deal_randomly(count, splits.FOLDS, seed), np.arange(count))
    if name != "blocks":
        raise InputError(f'Split "{name}"', "it is unknown.", "random or blocks is needed.", "Choose one of them.")
    corners = np.floor(np.stack([sites.x, sites.y]) / BLOCK_M).astype(np.int64)
    _, cluster = np.unique(corners, axis=1, return_inverse=True)
    cluster = cluster.ravel().astype(np.int64)
    if np.unique(cluster).size < splits.FOLDS:
        found = f"the sites lie in {np.unique(cluster).size} squares of {BLOCK_M / 1000:g} km."
        needed = f"At least {splits.FOLDS} are needed for {splits.FOLDS} folds."
        raise InputError(f'Split "{name}"', found, needed, "Use the random split, or sites of a larger area.")
    return Split(name, splits.deal_blocks(cluster, np.zeros(count, np.int64), splits.FOLDS, seed), cluster)


def run(
    dataset: Dataset,
    folder: Path,
    out: Path,
    recipe: Recipe,
    tasks: Sequence[str] = (),
    split_names: Sequence[str] = ("random", "blocks"),
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
        split_names: Splits (:func:`load_split`).
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
    sites = load_sites(dataset)
    dealt = [load_split(sites, name, recipe.seed) for name in split_names]
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
