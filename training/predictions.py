"""Out-of-fold predictions: made the same way for every model, stored so that the evaluation need not refit anything.

Owns the loop over folds and the files ``<model>__<split>__<seed>.npz``. A model is a function here: no torch, no
scikit-learn.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np
from numpy.typing import NDArray

from . import cpcrw, splits
from .observations import Observations

Predictor = Callable[[Observations], NDArray[np.generic]]
Fit = Callable[[Observations, int], Predictor]


@dataclass(frozen=True)
class Predictions:
    """Probabilities of *present* for one model, split and seed, each by the model that did not see the place's fold.

    Attributes:
        points: For the sampled points of the seed, in their order, (4000,) float32.
        cells: For all open cells, in their order, (30374,) float32.
        facts: What may be worth knowing later: settings chosen per fold, seconds, versions. JSON values only.
    """

    points: NDArray[np.float32]
    cells: NDArray[np.float32]
    facts: Dict[str, Any] = field(default_factory=dict)


def out_of_fold(
    fit: Fit,
    split: str,
    seed: int,
    *,
    points: Optional[Observations] = None,
    cells: Optional[Observations] = None,
    note: Callable[[str], None] = lambda text: None,
) -> Predictions:
    """Fit once per fold on the points of the other folds; predict the fold's points and cells.

    Args:
        fit: Called with the training points and a seed (the same for all folds); returns a predictor, which is called
            with places (in any number, not only in the fold's order) and returns a probability for each.
        split: ``blocks``, ``random`` or ``sector``.
        seed: Seed of sample, folds and model.
        points: The seed's sample, if it is at hand.
        cells: The open cells, if they are at hand.
        note: Told after each fold.

    Raises:
        ValueError: If the predictor returns anything but one finite probability for each place.
    """
    points = points if points is not None else cpcrw.load_observations(seed)
    cells = cells if cells is not None else cpcrw.load_open_cells()
    point_folds, cell_folds = cpcrw.folds(points, split, seed), cpcrw.folds(cells, split, seed)
    result = Predictions(np.full(len(points), np.nan, np.float32), np.full(len(cells), np.nan, np.float32))
    for fold in np.unique(cell_folds):
        predict = fit(points.subset(point_folds != fold), seed)
        for values, places, held_out in (
            (result.points, points, point_folds == fold),
            (result.cells, cells, cell_folds == fold),
        ):
            values[held_out] = _checked(predict(places.subset(held_out)), int(held_out.sum()))
        note(f"{split}, seed {seed}: fold {fold + 1} of {cell_folds.max() + 1}")
    return result


def _checked(probabilities: NDArray[np.generic], count: int) -> NDArray[np.float32]:
    values = np.asarray(probabilities, dtype=np.float32)
    if values.shape != (count,):
        raise ValueError(f"a predictor returned shape {values.shape} for {count} places")
    if not (np.isfinite(values).all() and values.min(initial=0.0) >= 0 and values.max(initial=1.0) <= 1):
        raise ValueError("a predictor returned values that are not probabilities")
    return values


def file_of(folder: Path, model: str, split: str, seed: int) -> Path:
    """Return where the predictions of a model, split and seed are stored."""
    if split not in splits.SPLITS:
        raise ValueError(f"unknown split {split!r}; known splits are {', '.join(splits.SPLITS)}")
    return Path(folder) / f"{model}__{split}__{seed}.npz"


def save(predictions: Predictions, folder: Path, model: str, split: str, seed: int) -> Path:
    """Store predictions, whole or not at all."""
    path = file_of(folder, model, split, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(
        part, points=predictions.points, cells=predictions.cells, facts=np.asarray(json.dumps(predictions.facts))
    )
    os.replace(part, path)
    return path


def load(folder: Path, model: str, split: str, seed: int) -> Optional[Predictions]:
    """Load stored predictions; None if there are none."""
    path = file_of(folder, model, split, seed)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return Predictions(stored["points"], stored["cells"], json.loads(str(stored["facts"])))
