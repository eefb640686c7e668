"""Random search of a forest's settings by inner cross-validation that never parts a cluster.

The paper's search of 100 iterations gave 253 trees, at least 5 samples to split, depth 16; what ranges it drew from it
does not say, ours are in :class:`SearchSpace`. Sites of one cluster (a transect, a spatial cluster of the split)
resemble one another; were they parted, the deepest forest would always win.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, log_loss
from sklearn.model_selection import StratifiedGroupKFold

from miso_qgis.engine.errors import InputError

from .forest_fit import PAPER, ForestSettings, fit_forest
from .sites import CLASSES

ITERATIONS = 100
INNER_FOLDS = 4
Score = Callable[[NDArray[np.int64], NDArray[np.float64]], float]


@dataclass(frozen=True)
class SearchSpace:
    """What settings are drawn from, ends included, uniformly (trees: uniformly in the logarithm)."""

    trees: Tuple[int, int] = (50, 500)
    min_samples_split: Tuple[int, int] = (2, 20)
    max_depth: Tuple[int, int] = (4, 32)
    min_samples_leaf: Tuple[int, int] = (1, 1)

    def draw(self, generator: np.random.Generator) -> ForestSettings:
        """Return one setting."""
        low, high = np.log(self.trees[0]), np.log(self.trees[1])
        return ForestSettings(
            trees=round(float(np.exp(generator.uniform(low, high)))),
            min_samples_split=int(generator.integers(*self.min_samples_split, endpoint=True)),
            max_depth=int(generator.integers(*self.max_depth, endpoint=True)),
            min_samples_leaf=int(generator.integers(*self.min_samples_leaf, endpoint=True)),
        )


@dataclass(frozen=True)
class Search:
    """A search.

    Attributes:
        iterations: Settings tried.
        folds: Inner folds.
        score: Word of :data:`SCORES`; empty takes the task's usual one.
        first: Settings that are tried first, so that a search never ends with worse ones.
        space: What is drawn from; the radius of the discs is drawn from those that the features were read with.
    """

    iterations: int = ITERATIONS
    folds: int = INNER_FOLDS
    score: str = ""
    first: ForestSettings = PAPER
    space: SearchSpace = SearchSpace()


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: The best settings.
        buffer_m: The radius that they were tried with.
        score: Word of the score.
        tried: Settings, radius and score of everything that was tried; greater is better.
        seconds: How long it took.
    """

    best: ForestSettings
    buffer_m: float
    score: str
    tried: Tuple[Tuple[ForestSettings, float, float], ...]
    seconds: float


def pr_auc(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Average precision of class 1 of a binary task."""
    return float(average_precision_score(labels == 1, probabilities[:, 1]))


def negative_log_loss(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Minus the mean log loss; a probability of 0 counts as 2e-16, so that it is never infinite."""
    return -float(log_loss(labels, probabilities, labels=np.arange(probabilities.shape[1])))


def macro_f1(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Mean F1 over the classes that occur among the labels."""
    decided = probabilities.argmax(axis=1)
    return float(f1_score(labels, decided, labels=np.unique(labels), average="macro", zero_division=0.0))


SCORES = {"pr_auc": pr_auc, "log_loss": negative_log_loss, "macro_f1": macro_f1}


def usual_score(task: str) -> str:
    """Return the score by which a task's settings are ranked unless another is named."""
    return "pr_auc" if len(CLASSES[task]) == 2 else "macro_f1"


def inner_folds(
    labels: NDArray[np.integer[Any]], clusters: NDArray[np.integer[Any]], folds: int, seed: int, where: str = ""
) -> NDArray[np.int64]:
    """Deal clusters into folds with nearly equal shares of every class (scikit-learn's StratifiedGroupKFold).

    Returns:
        Fold of each site, (N,), from 0; a cluster is never parted.

    Raises:
        InputError: If there are fewer clusters than folds.
    """
    count = np.unique(clusters).size
    if count < folds:
        raise InputError(
            "Search of the forest's settings" + (f", {where}" if where else ""),
            f"the training sites lie in {count} clusters.",
            f"At least {folds} clusters are needed for {folds} inner folds.",
            "Leave the search out (--search 0), or use a split with smaller clusters.",
        )
    result = np.full(labels.size, -1, np.int64)
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    # It refuses to deal when every class has fewer sites than there are folds, and warns when one has.
    kinds = labels if np.bincount(labels).max() >= folds else np.zeros_like(labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(dealer.split(np.zeros((labels.size, 1)), kinds, clusters)):
            result[held_out] = fold
    return result


def search(
    features: Mapping[float, NDArray[np.float32]],
    labels: NDArray[np.integer[Any]],
    clusters: NDArray[np.integer[Any]],
    task: str,
    wanted: Search,
    seed: int = 1,
    jobs: int = 1,
    where: str = "",
) -> Found:
    """Search settings on training sites.

    Every setting is scored on the pooled predictions of the inner folds; the first of equally good ones wins. The same
    seed gives the same result.

    Args:
        features: Radius of the discs, m -> (N, F), all finite; the first radius is the one of the first setting.
        labels: Class indices, (N,).
        clusters: Cluster of each site, (N,).
        task: Key of :data:`training.sites.CLASSES`.
        wanted: See :class:`Search`.
        seed: Of the draw, the inner folds and the forests.
        jobs: Processor threads.
        where: Words for messages.

    Raises:
        InputError: If the score is unknown, there are too few clusters, or an inner fold has one class only.
    """
    name = checked_score(wanted, task)
    started = time.monotonic()
    dealt = inner_folds(labels, clusters, wanted.folds, seed, where)
    tried: List[Tuple[ForestSettings, float, float]] = []
    for settings, buffer_m in candidates(wanted, list(features), seed):
        table = features[buffer_m]
        pooled = np.zeros((labels.size, len(CLASSES[task])))
        for fold in np.unique(dealt):
            learn = dealt != fold
            inner = f"{where}, inner fold {fold + 1}" if where else f"inner fold {fold + 1}"
            forest = fit_forest(table[learn], labels[learn], task, settings, seed, jobs, inner)
            pooled[~learn] = forest.probabilities(table[~learn])
        tried.append((settings, buffer_m, SCORES[name](np.asarray(labels, np.int64), pooled)))
    best = tried[int(np.argmax([value for _, _, value in tried]))]
    return Found(best[0], best[1], name, tuple(tried), time.monotonic() - started)


def candidates(wanted: Search, buffers: Sequence[float], seed: int) -> List[Tuple[ForestSettings, float]]:
    """Return the settings and radii that a search tries: its first with the first radius, then random ones."""
    generator = np.random.default_rng(seed)
    drawn = [
        (wanted.space.draw(generator), buffers[int(generator.integers(len(buffers)))])
        for _ in range(wanted.iterations - 1)
    ]
    return [(wanted.first, buffers[0]), *drawn]


def checked_score(wanted: Search, task: str) -> str:
    """Return the word of the score that ranks a task's settings.

    Raises:
        InputError: If it is unknown, or cannot rank this task.
    """
    name = wanted.score or usual_score(task)
    usable = [word for word in SCORES if word != "pr_auc" or len(CLASSES[task]) == 2]
    if name not in usable:
        needed = f"One of {', '.join(usable)} is needed."
        raise InputError("Score of the search", f'"{name}" cannot rank {task}.', needed, "Choose one of them.")
    return name
