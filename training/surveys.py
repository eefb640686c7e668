"""Where training takes sites and folds from: the two functions that readers and spatial splits are put behind."""

from __future__ import annotations

import csv
import re
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError

from .dataset import Dataset
from .sites import CLASSES, MISSING, Sites
from .splits import FOLDS, deal_blocks, deal_randomly


def load_sites(dataset: Dataset) -> Tuple[Sites, Dict[str, Any]]:
    """Read a dataset's observations; returns them and a report of what was left out.

    Reads CSV files with the columns id, x, y, date, nsp, soil_order (class indices, empty where there is none).
    """
    rows: List[Dict[str, str]] = []
    for item in dataset.observations:
        path = dataset.path(item.path)
        try:
            with path.open(encoding="utf-8", newline="") as source:
                found = list(csv.DictReader(source))
        except OSError as error:
            needed = "A CSV file with the columns id, x, y, date, nsp, soil_order is needed."
            raise InputError(f'Observations "{path}"', f"cannot be read ({error}).", needed, "Correct it.") from error
        renamed = {item.columns.get(name, name): name for name in ("id", "x", "y", "date", *CLASSES)}
        rows += [{renamed.get(key, key): value for key, value in row.items()} for row in found]
    labels = {
        task: np.asarray([int(row.get(task) or MISSING) for row in rows], dtype=np.int8) for task in dataset.tasks
    }
    sites = Sites(
        np.asarray([row["id"] for row in rows], dtype=np.str_),
        np.asarray([float(row["x"]) for row in rows]),
        np.asarray([float(row["y"]) for row in rows]),
        labels,
        np.asarray([row.get("date") or "NaT" for row in rows], dtype="datetime64[D]"),
    )
    return sites, {"read": len(sites)}


class Folds(NamedTuple):
    """A split of N sites into K folds.

    Attributes:
        fold: Fold that tests each site, (N,); -1 where none does.
        cluster: Unit of resampling of each site, (N,).
        train: Which sites each fold's networks learn from, (K, N).
    """

    fold: NDArray[np.int16]
    cluster: NDArray[np.int64]
    train: NDArray[np.bool_]

    @classmethod
    def complementary(cls, fold: NDArray[np.integer[Any]], cluster: NDArray[np.int64]) -> Folds:
        """Each fold learns from all sites that it does not test."""
        numbers = np.arange(int(fold.max()) + 1)
        return cls(fold.astype(np.int16), cluster, numbers[:, None] != fold[None, :])


def assign_folds(sites: Sites, split: str, seed: int, dataset: Dataset) -> Folds:
    """Deal sites into folds.

    ``random`` deals single sites, ``blocks-<km>km`` squares of that side counted from (0, 0) of EPSG:3338.

    Args:
        sites: The sites.
        split: Name of the split.
        seed: Of the dealing.
        dataset: Whose area is predicted, for splits that ask how far it lies from the sites.

    Raises:
        InputError: If there is no such split.
    """
    if split == "random":
        return Folds.complementary(deal_randomly(len(sites), FOLDS, seed), np.arange(len(sites), dtype=np.int64))
    if not re.fullmatch(r"blocks-[0-9.]+km", split):
        needed = "random, or blocks-<side>km (blocks-10km), is needed."
        raise InputError(f'Split "{split}"', "is unknown.", needed, "Choose one of them.")
    side_m = 1000.0 * float(split.removeprefix("blocks-").removesuffix("km"))
    rows, columns = np.floor(sites.y / side_m).astype(np.int64), np.floor(sites.x / side_m).astype(np.int64)
    blocks = np.unique(np.stack([rows, columns], axis=1), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    first = next(iter(sites.labels.values()))
    return Folds.complementary(deal_blocks(blocks, (first == 1).astype(np.int64), FOLDS, seed), blocks)
