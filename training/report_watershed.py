"""The watershed's protocol predictions in the form that the report reads.

``runs/predictions`` holds files ``<model>__<split>__<seed>.npz`` of :mod:`training.predictions`: probabilities without
places. This module puts the places, open labels, folds and blocks of :mod:`training.cpcrw` beside them. Nothing is
refitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError

from . import cpcrw, predictions, splits
from .observations import Observations
from .outoffold import OutOfFold
from .sites import CLASSES

POINTS, MAP = "points", "map"
TARGETS = (POINTS, MAP)
FACTS = {
    "dataset": {
        "name": "cpcrw",
        "title": "Caribou-Poker Creeks Research Watershed, open part",
        "simulated": False,
        "licence": "MIT (Alter, Pradhan and Wagner)",
        "citation": "Alter, Pradhan and Wagner, Using an observation-based map of permafrost extent to inform "
        "permafrost predictions in a large Alaskan watershed.",
    },
    "labels": "a field-based map of permafrost with 50 m cells, sampled",
}


def protocol_files(folder: Path) -> List[Tuple[Path, str, str, int]]:
    """Return the protocol's files in ``folder``: path, model, split, seed."""
    found: List[Tuple[Path, str, str, int]] = []
    for path in sorted(Path(folder).glob("*__*__*.npz")):
        parts = path.stem.split("__")
        if len(parts) == 3 and parts[1] in splits.SPLITS and parts[2].isdigit():
            found.append((path, parts[0], parts[1], int(parts[2])))
    return found


def load_protocol(folder: Path, target: str = POINTS) -> List[OutOfFold]:
    """Read all protocol predictions of a folder.

    Args:
        folder: Folder of the files.
        target: ``points`` (the 4,000 sampled points of each seed) or ``map`` (all open cells, the same for each seed).

    Raises:
        InputError: If a file does not belong to the protocol's places, or the watershed's labels are not at hand.
    """
    cells = cpcrw.load_open_cells()
    points: Dict[int, Observations] = {}
    folds: Dict[Tuple[str, int], NDArray[np.int64]] = {}
    result: List[OutOfFold] = []
    for path, model, split, seed in protocol_files(folder):
        stored = predictions.load(folder, model, split, seed)
        if stored is None:  # removed since it was listed
            continue
        if target == POINTS and seed not in points:
            points[seed] = cpcrw.load_observations(seed)
        places = points[seed] if target == POINTS else cells
        if (split, seed) not in folds:
            folds[split, seed] = cpcrw.folds(places, split, seed)
        values = stored.points if target == POINTS else stored.cells
        if values.size != len(places):
            raise InputError(
                f'Predictions "{path}"',
                f"hold {values.size} values for {len(places)} places.",
                "Predictions of the watershed's protocol are needed.",
                "Make them again (python -m training miso, baselines).",
            )
        result.append(_out_of_fold(places, values, folds[split, seed], model, split, seed, stored.facts))
    return result


def _out_of_fold(
    places: Observations,
    present: NDArray[np.float32],
    fold: NDArray[np.int64],
    model: str,
    split: str,
    seed: int,
    facts: Optional[Dict[str, object]],
) -> OutOfFold:
    probability = present.astype(np.float64)
    # A 50 m cell is sampled once at most, so it identifies its point.
    names = [f"r{row}c{column}" for row, column in zip(places.cell_row, places.cell_col)]
    return OutOfFold(
        model=model,
        task="nsp",
        split=split,
        seed=seed,
        classes=CLASSES["nsp"],
        id=np.asarray(names, dtype=np.str_),
        x=places.x.astype(np.float64),
        y=places.y.astype(np.float64),
        label=places.label.astype(np.int8),
        fold=fold.astype(np.int16),
        cluster=places.block_id.astype(np.int64),
        probability=np.stack([1.0 - probability, probability], axis=1),
        facts={**FACTS, "model": facts or {}},
    )
