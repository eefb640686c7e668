"""The Random Forest of a dataset: how one is made, and its cross-validation per task and split.

What it sees is :mod:`training.forest_features`, how settings are searched :mod:`training.forest_search`, how it gets
into a model folder :mod:`training.forest_ship`. The watershed's protocol has its own forest, :mod:`training.baselines`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np
import sklearn
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.progress import Progress

from .dataset import Dataset
from .forest_export import EXACT, Compression
from .forest_features import BUFFER_M, SiteFeatures, feature_specs, read_features
from .forest_fit import PAPER, FittedForest, ForestSettings, absent_classes, count_classes, fit_forest
from .forest_search import Found, Search, search
from .outoffold import OutOfFold
from .sites import CLASSES, Sites

MODEL = "rf"
Note = Callable[[str], None]
Tables = Mapping[float, SiteFeatures]


@dataclass(frozen=True)
class Split:
    """How sites are held out.

    Attributes:
        name: ``random``, ``blocks``, ``SH-1km``...
        fold: Fold that holds each site out, from 0; -1 for a site that is never held out and always learned from, (N,).
        cluster: Cluster of each site, (N,): what the search never parts and the evaluation resamples.
    """

    name: str
    fold: NDArray[np.integer[Any]]
    cluster: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Recipe:
    """How forests are made.

    Attributes:
        buffers_m: Radii of the discs; the search chooses among several.
        coordinates: Whether x and y are among the features, as in the paper.
        settings: Settings where nothing is searched.
        search: The search; None takes ``settings``.
        compression: What may be rounded in the exported graph.
        seed: Of forests, search and folds.
        jobs: Processor threads.
    """

    buffers_m: Tuple[float, ...] = (BUFFER_M,)
    coordinates: bool = True
    settings: ForestSettings = PAPER
    search: Optional[Search] = None
    compression: Compression = EXACT
    seed: int = 1
    jobs: int = 1

    def __post_init__(self) -> None:
        if not self.buffers_m or min(self.buffers_m) < 0 or len(set(self.buffers_m)) != len(self.buffers_m):
            found = f"they are {', '.join(f'{buffer:g}' for buffer in self.buffers_m) or 'none'} m."
            raise InputError("Radii of the discs", found, "Different radii of 0 m or more are needed.", "Use 50, say.")
        if len(self.buffers_m) > 1 and self.search is None:
            needed = "One radius is needed, or a search that chooses among them."
            raise InputError("Radii of the discs", "there are several.", needed, "Name one, or add --search 100.")


def recorded(recipe: Recipe) -> Dict[str, Any]:
    """Return, as JSON values, what of a recipe decides the out-of-fold predictions."""
    facts = asdict(recipe)
    for name in ("jobs", "compression"):
        del facts[name]
    plain: Dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def silent(text: str) -> None:
    """Tell nobody."""
    del text


def read_tables(dataset: Dataset, sites: Sites, recipe: Recipe, progress: Optional[Progress] = None) -> Tables:
    """Read the sites' features for every radius of a recipe, in one pass over the rasters."""
    wanted = {buffer: feature_specs(dataset.channels, buffer, recipe.coordinates) for buffer in recipe.buffers_m}
    everything = list(dict.fromkeys(feature for features in wanted.values() for feature in features))
    table = read_features(dataset, sites.x, sites.y, everything, progress)
    return {buffer: table.columns(features) for buffer, features in wanted.items()}


@dataclass(frozen=True)
class Made:
    """A fitted forest, the radius of its discs, and the search that chose its settings, if there was one."""

    forest: FittedForest
    buffer_m: float
    found: Optional[Found]

    def facts(self) -> Dict[str, Any]:
        """Return what a fold's record says of its forest."""
        facts: Dict[str, Any] = {"settings": asdict(self.forest.settings), "buffer_m": self.buffer_m}
        if self.found is not None:
            best = max(value for _, _, value in self.found.tried)
            facts["search"] = {
                "iterations": len(self.found.tried),
                "score": self.found.score,
                "best": best,
                "first": self.found.tried[0][2],
                "seconds": round(self.found.seconds, 1),
            }
        return facts


def make(
    tables: Tables, learn: NDArray[np.bool_], labels: NDArray[np.int8], split: Split, task: str, r: Recipe, where: str
) -> Made:
    """Search, where the recipe says so, and fit on the sites that ``learn`` marks; ``where`` is for messages."""
    features = {buffer: table.values[learn] for buffer, table in tables.items()}
    settings, buffer_m, found = r.settings, r.buffers_m[0], None
    if r.search is not None:
        found = search(features, labels[learn], split.cluster[learn], task, r.search, r.seed, r.jobs, where)
        settings, buffer_m = found.best, found.buffer_m
    forest = fit_forest(features[buffer_m], labels[learn], task, settings, r.seed, r.jobs, where)
    return Made(forest, buffer_m, found)


def usable_sites(tables: Tables, sites: Sites, task: str) -> NDArray[np.bool_]:
    """Where a site has a label of ``task`` and features of every radius, (N,)."""
    usable: NDArray[np.bool_] = sites.labelled(task) & np.all([table.valid for table in tables.values()], axis=0)
    return usable


def cross_validate(
    tables: Tables, sites: Sites, task: str, split: Split, recipe: Recipe, simulated: bool, note: Note = silent
) -> OutOfFold:
    """Predict every labelled site by a forest that has not seen the site's fold.

    Args:
        tables: Features of the sites by radius (:func:`read_tables`).
        sites: The sites.
        task: Key of :data:`training.sites.CLASSES`.
        split: Folds and clusters of the sites.
        recipe: How forests are made.
        simulated: Whether the data are simulated; kept in the facts.
        note: Told after each fold, and what was left out.

    Returns:
        Predictions of the sites that have a label, features and a fold. ``facts`` holds the settings of each fold, the
        classes that its training sites lack, and what was left out.

    Raises:
        InputError: If no fold holds a site, or the training sites of a fold are of fewer than two classes.
    """
    started = time.monotonic()
    usable, labels = usable_sites(tables, sites, task), sites.labels[task]
    held = usable & (split.fold >= 0)
    notes = _left_out(tables, sites, task)
    numbers = [int(fold) for fold in np.unique(split.fold) if fold >= 0]
    if not held.any():
        found = f"none of its {int(sites.labelled(task).sum()):,} labelled sites has features and a fold."
        needed = "Folds that hold labelled sites inside the rasters are needed."
        raise InputError(f"Task {task}, split {split.name}", found, needed, "Check the sites' places and the split.")
    probability = np.full((len(sites), len(CLASSES[task])), np.nan)
    folds: List[Dict[str, Any]] = []
    for fold in numbers:
        test, learn = held & (split.fold == fold), usable & (split.fold != fold)
        where = f"split {split.name}, fold {fold}"
        if not test.any():
            notes.append(f"{task}, {where}: no labelled site to predict")
            continue
        made = make(tables, learn, labels, split, task, recipe, where)
        absent = absent_classes(labels[learn], task)
        if absent:
            notes.append(f"{task}, {where}: no training site of {', '.join(absent)}; their probability is 0")
        probability[test] = made.forest.probabilities(tables[made.buffer_m].values[test])
        counts = {"fold": fold, "training": count_classes(labels[learn], task), "test": int(test.sum())}
        folds.append({**counts, "absent": absent, **made.facts()})
        note(f"{task}, {where}: {int(learn.sum()):,} sites to learn from, {int(test.sum()):,} predicted")
    for text in notes:
        note(text)
    facts = {
        "recipe": recorded(recipe),
        "folds": folds,
        "notes": notes,
        "features": [asdict(feature) for feature in next(iter(tables.values())).features],
        "simulated": simulated,
        "seconds": round(time.monotonic() - started, 1),
        "scikit-learn": sklearn.__version__,
    }
    return OutOfFold(
        model=MODEL,
        task=task,
        split=split.name,
        seed=recipe.seed,
        classes=CLASSES[task],
        id=sites.id[held],
        x=sites.x[held],
        y=sites.y[held],
        label=labels[held],
        fold=split.fold[held].astype(np.int16),
        cluster=split.cluster[held].astype(np.int64),
        probability=probability[held],
        facts=facts,
    )


def _left_out(tables: Tables, sites: Sites, task: str) -> List[str]:
    report = next(iter(tables.values())).report()
    unlabelled = int((~sites.labelled(task)).sum())
    notes = [report] if report else []
    return [*notes, f"{task}: {unlabelled:,} of {len(sites):,} sites have no label"] if unlabelled else notes
