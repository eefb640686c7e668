"""Area of applicability: how far a place lies from the training data, in the features that matter to the model.

Dissimilarity index and threshold of Meyer and Pebesma (2021), Predicting into unknown space? Estimating the area of
applicability of spatial prediction models, Methods in Ecology and Evolution 12:1620. Features are standardised by their
training mean and standard deviation and multiplied by their importance. The *dissimilarity index* (DI) of a place is
its distance to the nearest training point, divided by the mean distance between training points. The threshold is the
upper whisker (third quartile and 1.5 times the interquartile range, at most the maximum) of the DI of the training
points, each measured against the points of *other* folds: as far as cross-validation has tried the model.

Form in a model folder: ``manifest.applicability`` holds :meth:`TrainingSummary.to_json`, and beside the graphs lies
``applicability.csv``, (R, F) with a line of names: the reference points, standardised and weighted already. It is text,
because whoever reviews a plugin can read it. numpy and scipy only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from miso_qgis.engine.errors import InputError, ModelFolderError

FloatArray = NDArray[np.float64]

FORM = 1
FILE = "applicability.csv"
REFERENCES = 3000
WHISKER = 1.5
_BLOCK = 1000


@dataclass(frozen=True)
class TrainingSummary:
    """What is kept of the training features, F of them.

    Attributes:
        names: Names of the features, in order.
        mean: Training mean, (F,), in the features' units.
        sd: Training standard deviation (n - 1), (F,); 1 for a feature that never varied.
        weight: Importance, (F,), not negative, largest 1; 0 for a feature that never varied.
        mean_distance: Mean distance between training points, standardised and weighted.
        threshold: DI above which a place is outside the area of applicability.
        sites: Number of training points.
        references: Points that stand for them, standardised and weighted, (R, F) float32.
        gap: Largest distance of a training point from the nearest reference, as a DI: a DI is at most this much larger
            than it would be with all training points. 0 if all were kept.
    """

    names: Tuple[str, ...]
    mean: FloatArray
    sd: FloatArray
    weight: FloatArray
    mean_distance: float
    threshold: float
    sites: int
    references: NDArray[np.float32]
    gap: float

    def to_json(self) -> Dict[str, Any]:
        """Return all but the references: the manifest's ``applicability``."""
        return {
            "form": FORM,
            "features": list(self.names),
            "mean": [_rounded(value) for value in self.mean],
            "sd": [_rounded(value) for value in self.sd],
            "weight": [_rounded(value) for value in self.weight],
            "mean_distance": _rounded(self.mean_distance),
            "threshold": _rounded(self.threshold),
            "sites": self.sites,
            "references": FILE,
            "reference_count": int(self.references.shape[0]),
            "reference_gap": _rounded(self.gap),
        }


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def training_summary(
    features: FloatArray,
    folds: NDArray[np.generic],
    weights: FloatArray,
    names: Sequence[str],
    references: int = REFERENCES,
) -> TrainingSummary:
    """Summarise the features of N training points.

    Args:
        features: (N, F), in the features' units.
        folds: Fold of each point in the cross-validation whose scores are reported, (N,).
        weights: Importance of each feature, (F,); negative ones count as 0.
        names: Names of the features.
        references: How many points are kept at most.

    Raises:
        InputError: If values are missing, there are fewer than two folds, or no feature with weight varies.
    """
    values = np.asarray(features, dtype=np.float64)
    _check(values, folds, weights, names)
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    varies = sd > 1e-12 * np.maximum(np.abs(mean), 1.0)
    weight = np.where(varies, np.maximum(np.asarray(weights, dtype=np.float64), 0.0), 0.0)
    if not weight.max(initial=0.0) > 0:
        raise InputError(
            "Area of applicability",
            "no feature varies among the training points and has a positive importance.",
            "At least one such feature is needed.",
            "Look at the features and importances of the Random Forest.",
        )
    weight = weight / weight.max()
    sd = np.where(varies, sd, 1.0)
    points = (values - mean) / sd * weight
    distance = mean_distance(points)
    index = fold_distances(points, folds) / distance
    kept, gap = spread_points(points, references)
    return TrainingSummary(
        names=tuple(names),
        mean=mean,
        sd=sd,
        weight=weight,
        mean_distance=distance,
        threshold=whisker(index),
        sites=int(values.shape[0]),
        references=points[kept].astype(np.float32),
        gap=gap / distance,
    )


def _check(values: FloatArray, folds: NDArray[np.generic], weights: FloatArray, names: Sequence[str]) -> None:
    if values.ndim != 2 or values.shape[1] != len(names) or np.shape(weights) != (len(names),):
        raise ValueError(f"features {values.shape}, weights {np.shape(weights)} and {len(names)} names do not fit")
    if np.shape(folds) != (values.shape[0],):
        raise ValueError(f"folds have shape {np.shape(folds)}, {values.shape[0]} points need ({values.shape[0]},)")
    missing = [name for name, column in zip(names, values.T) if not np.isfinite(column).all()]
    if missing:
        raise InputError(
            "Area of applicability",
            f"features have missing values at training points: {', '.join(missing)}.",
            "Complete features are needed.",
            "Leave out the points without values.",
        )
    if np.unique(folds).size < 2:
        raise InputError(
            "Area of applicability",
            f"the training points are in {np.unique(folds).size} fold(s).",
            "At least two folds are needed: the threshold is a distance to the points of other folds.",
            "Use the folds of the cross-validation.",
        )


def mean_distance(points: FloatArray) -> float:
    """Return the mean Euclidean distance over all pairs of different points, in blocks of rows."""
    squares, total, count = (points**2).sum(axis=1), 0.0, points.shape[0]
    for start in range(0, count, _BLOCK):
        part = slice(start, start + _BLOCK)
        between = squares[part, None] + squares[None] - 2.0 * points[part] @ points.T
        own = np.arange(between.shape[0])
        between[own, start + own] = 0.0  # rounding would leave sqrt(1e-16) there
        total += float(np.sqrt(np.maximum(between, 0.0)).sum())
    return total / float(count * (count - 1))


def fold_distances(points: FloatArray, folds: NDArray[np.generic]) -> FloatArray:
    """Return each point's distance to the nearest point of another fold, (N,)."""
    result = np.empty(points.shape[0])
    for fold in np.unique(folds):
        own = folds == fold
        result[own] = cKDTree(points[~own]).query(points[own])[0]
    return result


def whisker(index: FloatArray) -> float:
    """Return the upper whisker: the third quartile and 1.5 interquartile ranges, at most the maximum."""
    low, high = np.percentile(index, [25, 75])
    return min(float(high + WHISKER * (high - low)), float(index.max()))


def spread_points(points: FloatArray, limit: int) -> Tuple[NDArray[np.int64], float]:
    """Choose at most ``limit`` points so that none is far from a chosen one (greedy k-centre).

    Starts at the point nearest to the mean, then always takes the point farthest from those taken.

    Returns:
        Indices of the chosen, and the largest distance of any point from the nearest chosen one.
    """
    if points.shape[0] <= limit:
        return np.arange(points.shape[0]), 0.0
    chosen = np.empty(limit, dtype=np.int64)
    chosen[0] = int(((points - points.mean(axis=0)) ** 2).sum(axis=1).argmin())
    squared = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    for i in range(1, limit):
        chosen[i] = int(squared.argmax())
        np.minimum(squared, ((points - points[chosen[i]]) ** 2).sum(axis=1), out=squared)
    return np.sort(chosen), float(np.sqrt(squared.max()))


def dissimilarity(summary: TrainingSummary, features: FloatArray) -> FloatArray:
    """Return the dissimilarity index of places.

    Args:
        summary: Of the training points.
        features: (M, F), in the features' units; a place with a missing value gets NaN.

    Returns:
        (M,), not negative; a place is inside the area of applicability if it is at most ``summary.threshold``.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(summary.names):
        raise ValueError(f"features have shape {values.shape}, (M, {len(summary.names)}) is needed")
    # A feature without weight is no part of the distance, so it may be missing.
    used = summary.weight > 0
    points = ((values - summary.mean) / summary.sd * summary.weight)[:, used]
    complete = np.isfinite(points).all(axis=1)
    result = np.full(values.shape[0], np.nan)
    tree = cKDTree(summary.references.astype(np.float64)[:, used])
    if complete.any():
        result[complete] = tree.query(points[complete])[0] / summary.mean_distance
    return result


def inside(summary: TrainingSummary, index: FloatArray) -> NDArray[np.bool_]:
    """Return where a dissimilarity index is within the threshold; False where it is NaN."""
    return np.asarray(index <= summary.threshold)


def save(summary: TrainingSummary, folder: Path) -> Dict[str, Any]:
    """Write ``applicability.csv`` into a model folder, whole or not at all; returns the manifest's entry."""
    path = Path(folder) / FILE
    part = path.with_name(".applicability.part.csv")
    # Nine digits bring a float32 back as it was.
    np.savetxt(part, summary.references, fmt="%.9g", delimiter=",", header=",".join(summary.names), comments="")
    os.replace(part, path)
    return summary.to_json()


def load(entry: Mapping[str, Any], folder: Path) -> TrainingSummary:
    """Read a summary from a manifest's entry and its model folder.

    Raises:
        ModelFolderError: If the entry is of another form or the references do not fit it.
    """
    path = Path(folder) / FILE
    try:
        if entry.get("form") != FORM:
            raise ValueError(f"form {entry.get('form')!r} is not {FORM}")
        names = tuple(str(name) for name in entry["features"])
        with path.open(encoding="utf-8") as file:
            if file.readline().rstrip("\n") != ",".join(names):
                raise ValueError(f"{FILE} names other features than the manifest")
            references = np.loadtxt(file, dtype=np.float32, delimiter=",", ndmin=2)
        if references.shape != (entry["reference_count"], len(names)):
            raise ValueError(f"{FILE} holds {references.shape}, not ({entry['reference_count']}, {len(names)})")
        mean, sd, weight = (np.asarray(entry[key], dtype=np.float64) for key in ("mean", "sd", "weight"))
        if not mean.shape == sd.shape == weight.shape == (len(names),):
            raise ValueError("mean, sd and weight do not have one value per feature")
        return TrainingSummary(
            names=names,
            mean=mean,
            sd=sd,
            weight=weight,
            mean_distance=float(entry["mean_distance"]),
            threshold=float(entry["threshold"]),
            sites=int(entry["sites"]),
            references=references.astype(np.float32),
            gap=float(entry["reference_gap"]),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ModelFolderError(
            f'Model folder "{folder}"',
            f"the area of applicability cannot be read ({error}).",
            f"The manifest's entry and {FILE} that training wrote together are needed.",
            "Copy the model folder again from where you got it.",
        ) from error
