"""What MISO is measured against: Random Forest with and without coordinates, and logistic regression.

All learn from the same points and channels as MISO; features are the engine's disc means, the same function that
prediction uses. The forest without coordinates is also shipped (:func:`ship_forest`).
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import onnxruntime
import sklearn
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from miso_qgis.engine import forest
from miso_qgis.engine.errors import RuntimeFailure

from . import cpcrw, metrics, predictions, splits
from .cpcrw import WatershedStack
from .forest_export import PARITY, export_forest
from .observations import Observations
from .predictions import Predictor

FloatArray = NDArray[np.float32]
Classifier = Any  # scikit-learn's classifiers share no type
Settings = Dict[str, Any]

TREES = 253  # the paper's search found this number
SEARCH_TREES = 100  # ranks settings as well as 253 in the time of 100
INNER_FOLDS = 4
# The paper's setting first; then leaves that average more (points of a transect resemble each other) and less depth.
FOREST_SETTINGS: Tuple[Settings, ...] = (
    {"max_depth": 16, "min_samples_leaf": 1, "min_samples_split": 5},
    {"max_depth": 16, "min_samples_leaf": 5, "min_samples_split": 5},
    {"max_depth": 16, "min_samples_leaf": 15, "min_samples_split": 5},
    {"max_depth": 16, "min_samples_leaf": 40, "min_samples_split": 5},
    {"max_depth": 8, "min_samples_leaf": 1, "min_samples_split": 5},
    {"max_depth": 8, "min_samples_leaf": 15, "min_samples_split": 5},
    {"max_depth": None, "min_samples_leaf": 1, "min_samples_split": 2},
)
LOGISTIC_SETTINGS: Tuple[Settings, ...] = tuple({"C": c} for c in (0.001, 0.01, 0.1, 1.0, 10.0))


@dataclass(frozen=True)
class Baseline:
    """A kind of model with the settings that its inner cross-validation tries.

    Attributes:
        name: Name in files and tables.
        coordinates: Whether x and y are among its features.
        make: Makes an unfitted classifier from settings, seed and whether it is only for the search.
        settings: Candidates, the paper's or plainest first.
    """

    name: str
    coordinates: bool
    make: Callable[[Settings, int, bool], Classifier]
    settings: Tuple[Settings, ...]


def _forest(settings: Settings, seed: int, search: bool) -> RandomForestClassifier:
    trees = SEARCH_TREES if search else TREES
    return RandomForestClassifier(n_estimators=trees, random_state=seed, n_jobs=-1, **settings)


def _logistic(settings: Settings, seed: int, search: bool) -> Pipeline:
    del search  # it is fast enough to search as it is
    return make_pipeline(
        FunctionTransformer(_unskewed),
        StandardScaler(),
        LogisticRegression(max_iter=2000, random_state=seed, **settings),
    )


def _unskewed(features: FloatArray) -> FloatArray:
    """Take the logarithm of stream power, whose values span six powers of ten: a linear model sees nothing else."""
    column = [feature.channel for feature in cpcrw.forest_features(False)].index("stream_power_index")
    result = features.copy()
    result[:, column] = np.log1p(np.maximum(features[:, column], 0.0))
    return result


BASELINES: Mapping[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("rf", False, _forest, FOREST_SETTINGS),
        Baseline("rf_coordinates", True, _forest, FOREST_SETTINGS),
        Baseline("logistic", False, _logistic, LOGISTIC_SETTINGS),
    )
}


class FeatureMap:
    """Features of every cell of the 10 m grid, looked up at places.

    Attributes:
        names: Features in order.
    """

    def __init__(self, stack: WatershedStack, coordinates: bool) -> None:
        features = cpcrw.forest_features(coordinates)
        self.names = tuple(feature.channel for feature in features)
        halo = forest.halo_px(features, stack.grid.resolution)
        # The grid covers the rasters, so there is nothing but nodata around it.
        around = np.pad(stack.channels, ((0, 0), (halo, halo), (halo, halo)), constant_values=np.nan)
        self._map = forest.forest_features(around, cpcrw.channel_specs(), features, stack.grid, 0, 0, halo)

    def at(self, places: Observations) -> FloatArray:
        """Return the features at places, (N, F) float32."""
        return self.at_cells(places.row, places.col)

    def at_cells(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> FloatArray:
        """Return the features of cells of the 10 m grid, (N, F) float32."""
        return np.ascontiguousarray(self._map[:, rows, columns].T)


def tuned(
    baseline: Baseline, features: FloatArray, labels: NDArray[np.uint8], blocks: NDArray[np.int64], seed: int
) -> Settings:
    """Choose settings by inner cross-validation on the given (training) places: four folds of 1 km blocks, ROC-AUC.

    The first of equally good settings wins.
    """
    inner = splits.deal_blocks(blocks, labels, INNER_FOLDS, seed)
    scores: List[float] = []
    for settings in baseline.settings:
        probabilities = np.full(labels.size, np.nan)
        for fold in range(INNER_FOLDS):
            model = baseline.make(settings, seed, True).fit(features[inner != fold], labels[inner != fold])
            probabilities[inner == fold] = model.predict_proba(features[inner == fold])[:, 1]
        scores.append(metrics.Ranking(labels, probabilities).measure()["roc_auc"])
    return baseline.settings[int(np.argmax(scores))]


def fit_baseline(
    baseline: Baseline, table: FeatureMap, training: Observations, seed: int
) -> Tuple[Classifier, Settings]:
    """Tune and fit a baseline on training points; return the classifier and the settings chosen."""
    features = table.at(training)
    settings = tuned(baseline, features, training.label, training.block_id, seed)
    return baseline.make(settings, seed, False).fit(features, training.label), settings


def fitter(baseline: Baseline, table: FeatureMap, chosen: List[Settings]) -> Callable[[Observations, int], Predictor]:
    """Return the function that :func:`training.predictions.out_of_fold` wants; ``chosen`` collects the settings."""

    def fit(training: Observations, seed: int) -> Predictor:
        model, settings = fit_baseline(baseline, table, training, seed)
        chosen.append(settings)

        def predict(places: Observations) -> NDArray[np.generic]:
            probabilities: NDArray[np.generic] = model.predict_proba(table.at(places))[:, 1]
            return probabilities

        return predict

    return fit


def predict_out_of_fold(
    names: Sequence[str],
    split_names: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Run the protocol's folds for baselines and store their predictions in ``folder``.

    What is stored already is left as it is, so that a broken run continues where it stopped.
    """
    stack, cells = cpcrw.load_stack(), cpcrw.load_open_cells()
    tables: Dict[bool, FeatureMap] = {}
    for name in names:
        baseline = BASELINES[name]
        if baseline.coordinates not in tables:
            tables[baseline.coordinates] = FeatureMap(stack, baseline.coordinates)
        for seed in seeds:
            points = cpcrw.load_observations(seed)
            for split in split_names:
                if predictions.file_of(folder, name, split, seed).is_file():
                    continue
                chosen: List[Settings] = []
                started = time.monotonic()
                fit = fitter(baseline, tables[baseline.coordinates], chosen)
                found = predictions.out_of_fold(fit, split, seed, points=points, cells=cells)
                seconds = round(time.monotonic() - started, 1)
                facts = {"settings": chosen, "seconds": seconds, "scikit-learn": sklearn.__version__}
                predictions.save(dataclasses.replace(found, facts=facts), folder, name, split, seed)
                note(f"{name}, {split}, seed {seed}: {seconds:.0f} s")


def ship_forest(folder: Path, seed: int) -> Settings:
    """Fit the forest without coordinates on all points of ``seed`` and write ``rf_nsp.onnx`` into ``folder``.

    The file is compared with scikit-learn on every open cell before it takes its name.

    Returns:
        The settings that inner cross-validation chose.

    Raises:
        RuntimeFailure: If a probability of the written graph differs by more than 1e-6.
    """
    stack, points, cells = cpcrw.load_stack(), cpcrw.load_observations(seed), cpcrw.load_open_cells()
    table = FeatureMap(stack, coordinates=False)
    model, settings = fit_baseline(BASELINES["rf"], table, points, seed)
    content = export_forest(model, 2).SerializeToString(deterministic=True)
    features = table.at(cells)
    (found,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        None, {"features": features}
    )
    difference = float(np.abs(found[:, 0] - model.predict_proba(features)[:, 1]).max())
    if not difference <= PARITY:
        raise RuntimeFailure(
            "Exported Random Forest",
            f"differs from scikit-learn by {difference:.2g}.",
            f"At most {PARITY:g} is allowed.",
            "Nothing was written; look for a change in scikit-learn's trees or in ONNX Runtime.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".rf_nsp.part.onnx"
    part.write_bytes(content)
    os.replace(part, folder / "rf_nsp.onnx")
    return settings
