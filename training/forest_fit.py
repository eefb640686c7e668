"""Fitting one Random Forest, whatever classes its training sites hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from miso_qgis.engine.errors import InputError

from .sites import CLASSES


@dataclass(frozen=True)
class ForestSettings:
    """Settings of a forest; the defaults are what the paper's random search found.

    Attributes:
        trees: Number of trees.
        min_samples_split: Sites that a node needs to be split further.
        max_depth: Splits from the root to a leaf at most; None does not limit it.
        min_samples_leaf: Sites that a leaf holds at least. The paper does not search it; larger leaves make a smaller
            file.
    """

    trees: int = 253
    min_samples_split: int = 5
    max_depth: Optional[int] = 16
    min_samples_leaf: int = 1

    def __post_init__(self) -> None:
        least = {"trees": 1, "min_samples_split": 2, "max_depth": 1, "min_samples_leaf": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                what = f"Forest setting {name}"
                raise InputError(what, f"it is {value}.", f"At least {low} is needed.", "Choose a larger number.")

    def __str__(self) -> str:
        """Write the settings as a table row does: "253 trees, split 5, depth 16, leaf 1"."""
        depth = "any" if self.max_depth is None else str(self.max_depth)
        return f"{self.trees} trees, split {self.min_samples_split}, depth {depth}, leaf {self.min_samples_leaf}"

    def classifier(self, seed: int, jobs: int = 1) -> RandomForestClassifier:
        """Return an unfitted classifier; the number of jobs does not change what it learns."""
        return RandomForestClassifier(
            n_estimators=self.trees,
            min_samples_split=self.min_samples_split,
            max_depth=self.max_depth,
            min_samples_leaf=self.min_samples_leaf,
            random_state=seed,
            n_jobs=jobs,
        )


PAPER = ForestSettings()


@dataclass(frozen=True)
class FittedForest:
    """A fitted forest that answers for every class of its task.

    Attributes:
        model: scikit-learn's forest; its labels are indices into ``CLASSES[task]``.
        task: Key of :data:`training.sites.CLASSES`.
        settings: What it was fitted with.
    """

    model: RandomForestClassifier
    task: str
    settings: ForestSettings

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return (N, K) with K the task's classes in order; 0 in the column of a class that training did not hold."""
        result = np.zeros((len(features), len(CLASSES[self.task])))
        if len(features):
            result[:, self.model.classes_.astype(int)] = self.model.predict_proba(features)
        return result


def fit_forest(
    features: NDArray[np.float32],
    labels: NDArray[np.integer[Any]],
    task: str,
    settings: ForestSettings = PAPER,
    seed: int = 1,
    jobs: int = 1,
    where: str = "",
) -> FittedForest:
    """Fit a forest.

    Args:
        features: (N, F), all finite.
        labels: Indices into ``CLASSES[task]``, none missing, (N,).
        task: Key of :data:`training.sites.CLASSES`.
        settings: See :class:`ForestSettings`.
        seed: Of the forest.
        jobs: Processor threads.
        where: Words for messages, such as "fold 2".

    Raises:
        InputError: If there are no sites, or all are of one class.
    """
    if not np.isfinite(features).all():
        raise ValueError("features must be finite: sites without features are left out before fitting")
    present = np.unique(labels)
    if present.size < 2:
        name = f"Task {task}" + (f", {where}" if where else "")
        only = f"all {labels.size:,} training sites are {CLASSES[task][present[0]]}" if present.size else "no site"
        raise InputError(
            name,
            f"{only}." if present.size else "it has no training site with a label and features.",
            "A forest needs training sites of at least two classes.",
            "Use fewer folds or another split, or add observations of the other classes.",
        )
    model = settings.classifier(seed, jobs).fit(features, np.asarray(labels, dtype=np.int64))
    return FittedForest(model, task, settings)


def absent_classes(labels: NDArray[np.integer[Any]], task: str) -> List[str]:
    """Return the classes of a task that the labels do not hold."""
    return [name for index, name in enumerate(CLASSES[task]) if not (labels == index).any()]


def count_classes(labels: NDArray[np.integer[Any]], task: str) -> Dict[str, int]:
    """Return how many labels each class has; missing labels do not count."""
    return {name: int((labels == index).sum()) for index, name in enumerate(CLASSES[task])}
