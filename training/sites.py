"""Observations of any source as one table: places, dates, and a label for each task that may be missing.

Owns the tasks' classes and the form that readers (:mod:`training.readers`), splits, training and evaluation share. A
*site* is one observation: two observations in one cell stay two sites.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Dict, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
LabelArray = NDArray[np.int8]

# Outputs of each task in order; a label is an index into them. NSP is binary: its network has one output, the second.
CLASSES: Mapping[str, Tuple[str, ...]] = {
    "nsp": ("absent", "present"),
    "soil_order": ("Andisols", "Entisols", "Gelisols", "Histosols", "Inceptisols", "Mollisols", "Spodosols"),
}
MISSING = -1


def outputs(task: str) -> int:
    """Number of outputs of a network for ``task``: 1 for a binary task."""
    count = len(CLASSES[task])
    return 1 if count == 2 else count


@dataclass(frozen=True)
class Sites:
    """N observations, all arrays in the same order.

    Attributes:
        id: Identifier in the source, unique, (N,) str.
        x: Easting in EPSG:3338, m, (N,) float64.
        y: Northing, likewise.
        labels: {task: (N,) int8}, index into ``CLASSES[task]``, ``MISSING`` where there is none.
        date: Day of observation, (N,) datetime64[D], NaT where unknown.
        source: Where each came from, (N,) str.
    """

    id: NDArray[np.str_]
    x: FloatArray
    y: FloatArray
    labels: Dict[str, LabelArray]
    date: NDArray[np.datetime64]
    source: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))

    def __post_init__(self) -> None:
        if self.source.size == 0 and self.id.size:
            object.__setattr__(self, "source", np.full(self.id.size, "", dtype=np.str_))
        count = self.id.size
        arrays = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "labels"}
        arrays.update({f"labels of {task}": values for task, values in self.labels.items()})
        for name, values in arrays.items():
            if values.shape != (count,):
                raise ValueError(f"{name} has shape {values.shape}, {count} sites need ({count},)")
        for task, values in self.labels.items():
            if task not in CLASSES:
                raise ValueError(f"unknown task {task!r}; known tasks are {', '.join(CLASSES)}")
            if values.size and not (values.min() >= MISSING and values.max() < len(CLASSES[task])):
                raise ValueError(f"labels of {task} must be {MISSING} to {len(CLASSES[task]) - 1}")

    def __len__(self) -> int:
        """Return the number of sites."""
        return int(self.id.size)

    def subset(self, chosen: NDArray[np.generic]) -> Sites:
        """Return the sites that ``chosen`` (mask or indices) picks."""
        parts: Dict[str, Any] = {
            item.name: getattr(self, item.name)[chosen] for item in fields(self) if item.name != "labels"
        }
        return Sites(labels={task: values[chosen] for task, values in self.labels.items()}, **parts)

    def labelled(self, task: str) -> NDArray[np.bool_]:
        """Where a label of ``task`` is known, (N,)."""
        known: NDArray[np.bool_] = self.labels[task] != MISSING
        return known
