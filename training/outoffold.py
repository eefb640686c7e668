"""Out-of-fold predictions of one model for one task and split: what every evaluation, calibration and card starts from.

One file per model, task, split and seed, ``<model>__<task>__<split>__<seed>.npz``, in a run's folder ``predictions``.
Each site is predicted by the model that did not see the site's fold.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError

FOLDER = "predictions"


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities at N labelled sites, all arrays in the same order.

    Attributes:
        model: ``miso``, ``rf``, or another short name.
        task: Key of :data:`training.sites.CLASSES`.
        split: Name of the split: ``random``, ``SH-1km``, ``SH-10km``, ``blocks``...
        seed: Of folds and model.
        classes: Names of the classes, in order.
        id: Site identifiers, (N,) str.
        x: Easting in EPSG:3338, m, (N,).
        y: Northing, likewise.
        label: Class index, (N,) int8, never missing.
        fold: Number of the fold that held the site out, (N,) int16.
        cluster: Unit of resampling (spatial cluster or block), (N,) int64.
        probability: (N, K) float64 with K = len(classes), rows sum to 1 (binary: absent, present).
        facts: JSON values worth keeping: settings per fold, seconds, versions, whether the data is simulated.
    """

    model: str
    task: str
    split: str
    seed: int
    classes: Tuple[str, ...]
    id: NDArray[np.str_]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    label: NDArray[np.int8]
    fold: NDArray[np.int16]
    cluster: NDArray[np.int64]
    probability: NDArray[np.float64]
    facts: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, classes = self.label.size, len(self.classes)
        for name in ("id", "x", "y", "fold", "cluster"):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, {count} sites need ({count},)")
        if self.probability.shape != (count, classes):
            raise ValueError(f"probability has shape {self.probability.shape}, ({count}, {classes}) is needed")
        if count and not (self.label.min() >= 0 and self.label.max() < classes):
            raise ValueError(f"labels must be 0 to {classes - 1}")
        if not (np.isfinite(self.probability).all() and np.allclose(self.probability.sum(axis=1), 1.0, atol=1e-4)):
            raise ValueError("probabilities of a site must be finite and sum to 1")

    @property
    def name(self) -> str:
        """Name of the file, without suffix."""
        return f"{self.model}__{self.task}__{self.split}__{self.seed}"

    def save(self, folder: Path) -> Path:
        """Store in ``folder``, whole or not at all; returns the path."""
        path = Path(folder) / f"{self.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        stored: Dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        stored.update({name: np.asarray(json.dumps(stored[name])) for name in _TEXTS})
        part = path.with_name(f".{path.stem}.part.npz")
        np.savez_compressed(part, **stored)
        os.replace(part, path)
        return path


_TEXTS = ("model", "task", "split", "seed", "classes", "facts")


def load(path: Path) -> OutOfFold:
    """Read one file.

    Raises:
        InputError: If it cannot be read or is not of this form.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            values: Dict[str, Any] = {name: stored[name] for name in stored.files}
        values.update({name: json.loads(str(values[name])) for name in _TEXTS})
        values["classes"] = tuple(values["classes"])
        return OutOfFold(**values)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f'Predictions "{path}"',
            f"cannot be read ({error}).",
            "A file that training wrote is needed.",
            "Make it again, or remove it from the run's folder.",
        ) from error


def load_run(run: Path) -> List[OutOfFold]:
    """Read all predictions of a run folder, in order of their names.

    Raises:
        InputError: If there are none, or one cannot be read.
    """
    paths = sorted(Path(run, FOLDER).glob("*__*__*__*.npz"))
    if not paths:
        raise InputError(
            f'Run folder "{run}"',
            f'has no out-of-fold predictions in "{FOLDER}".',
            "Files <model>__<task>__<split>__<seed>.npz are needed.",
            "Run the models' cross-validation first (python -m training cross-validate --help).",
        )
    return [load(path) for path in paths]
