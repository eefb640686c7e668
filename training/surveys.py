"""Where training takes sites and folds from: a dataset's observations, and spatial splits or released split files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

from miso_qgis.engine.errors import InputError

from .dataset import Dataset
from .readers import read_observations
from .sites import Sites
from .spatial_splits import SPATIAL_SPLITS, Split, make_split, read_released
from .split_pictures import area_of


def load_sites(dataset: Dataset) -> Tuple[Sites, Dict[str, Any]]:
    """Read a dataset's observations; returns them and what was dropped or changed, as JSON values.

    Raises:
        InputError: If a file cannot be read or no site is left.
    """
    sites, report = read_observations(dataset)
    return sites, report.json()


def assign_folds(sites: Sites, split: str, seed: int, dataset: Dataset) -> Split:
    """Deal sites into folds.

    Args:
        sites: The sites.
        split: One of :data:`training.spatial_splits.SPATIAL_SPLITS`, or the path of a released split file.
        seed: Of the dealing; a split file ignores it.
        dataset: Whose area is predicted: kNNDM asks how far it lies from the sites.

    Raises:
        InputError: If there is no such split, or these sites cannot be dealt so.
    """
    if split.lower().endswith(".json"):
        return read_released(Path(split), sites)
    if split not in SPATIAL_SPLITS:
        needed = f"{', '.join(SPATIAL_SPLITS)}, or the path of a split file (.json), is needed."
        raise InputError(f'Split "{split}"', "is unknown.", needed, "Choose one of them.")
    area = area_of(dataset, sites).places if split == "kNNDM" else None
    return make_split(split, sites, seed, area=area)
