"""Folds of scattered sites: Random, SH-1km, SH-10km, kNNDM, and split files that were released.

A *split* says for every fold which sites are trained on and which are tested. *SH* is spatial hold-out: sites closer
than a distance end in one fold, through any number of sites in between (DBSCAN, Ester et al. 1996, with two points as
the smallest cluster; Lin, Chen et al., arXiv:2506.17302). *kNNDM* chooses folds whose distances from tested to trained
sites resemble those from the places of prediction to the sites (Linnenbrink et al. 2024, GMD 17, 5897-5912).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import Delaunay, QhullError, cKDTree
from scipy.stats import ks_2samp, wasserstein_distance

from miso_qgis.engine.errors import InputError

from .sites import CLASSES, MISSING, Sites

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SPATIAL_SPLITS = ("random", "SH-1km", "SH-10km", "kNNDM")
BUFFER_M: Mapping[str, float] = {"SH-1km": 1_000.0, "SH-10km": 10_000.0}
# Units of resampling where a split has no clusters of its own: neighbours within 1 km are no independent evidence.
RESAMPLING_M = 1_000.0
FOLDS = 5
# kNNDM: no fold may hold more than MAX_SHARE of the sites; TRIED numbers of clusters are tried; the tree of clusters is
# built of at most TREE_SITES sites, because it needs all pairs, N^2 / 2 x 8 bytes. Sites count as clustered below
# SIGNIFICANCE. Share and significance are those of the paper's implementation (R package CAST).
MAX_SHARE = 0.5
TRIED = 40
TREE_SITES = 6_000
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Split:
    """Folds of N sites.

    Attributes:
        name: ``random``, ``SH-1km``, ``SH-10km``, ``kNNDM``, or a released file's name.
        seed: That it was made with; 0 where chance had no part.
        fold: Fold that tests each site, (N,) int16; -1 where none does.
        cluster: Unit of resampling of each site, (N,) int64.
        train: Which sites each fold trains on, (K, N).
        notes: What a reader should know: unequal folds, missing classes, sites without a fold.
        facts: Figures worth keeping, JSON values.
    """

    name: str
    seed: int
    fold: NDArray[np.int16]
    cluster: IntArray
    train: BoolArray
    notes: Tuple[str, ...] = ()
    facts: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = self.fold.size
        if self.cluster.shape != (count,) or self.train.shape[1:] != (count,):
            raise ValueError("fold, cluster and train must be of the same sites")
        for number in range(self.folds):
            if (self.train[number] & (self.fold == number)).any():
                raise ValueError(f"fold {number} tests sites that it trains on")

    @property
    def folds(self) -> int:
        """Number of folds."""
        return int(self.train.shape[0])

    def test(self, number: int) -> BoolArray:
        """Where the sites are that fold ``number`` tests, (N,)."""
        chosen: BoolArray = self.fold == number
        return chosen

    def subset(self, chosen: NDArray[np.generic]) -> Split:
        """Return the split of the sites that ``chosen`` (mask or indices) picks, in step with :meth:`Sites.subset`."""
        return Split(
            self.name, self.seed, self.fold[chosen], self.cluster[chosen], self.train[:, chosen], self.notes, self.facts
        )


def make_split(
    name: str,
    sites: Sites,
    seed: int,
    folds: int = FOLDS,
    area: Optional[FloatArray] = None,
) -> Split:
    """Make one of :data:`SPATIAL_SPLITS`.

    Args:
        name: Which.
        sites: All sites, of all tasks: one split serves them all.
        seed: Of the dealing.
        folds: How many.
        area: Places of prediction, (M, 2) in EPSG:3338; needed for kNNDM.

    Raises:
        InputError: If there are fewer sites or clusters than folds, or a fold would train on one class only.
    """
    if name not in SPATIAL_SPLITS:
        known = f"Known splits are {', '.join(SPATIAL_SPLITS)}."
        raise InputError(f'Split "{name}"', "there is none of this name.", known, "Choose one of them.")
    if folds < 2 or len(sites) < folds:
        needed = "At least two folds, and a site for each, are needed."
        raise InputError(f'Split "{name}"', f"{folds} folds of {len(sites)} sites.", needed, "Choose fewer folds.")
    places = np.column_stack([sites.x, sites.y])
    facts: Dict[str, Any] = {}
    if name in BUFFER_M:
        clusters = clusters_within(places, BUFFER_M[name])
        fold = deal(clusters, sites, folds, seed)
        largest = int(np.bincount(clusters).max())
        facts = {"clusters": int(clusters.max()) + 1, "largest_cluster": largest, "buffer_m": BUFFER_M[name]}
    elif name == "random":
        clusters = clusters_within(places, RESAMPLING_M)
        fold = random_folds(len(sites), folds, seed)
    else:
        if area is None:
            raise ValueError("kNNDM needs the places of prediction")
        clusters, fold, facts = knndm(places, area, folds, seed)
    numbers = np.arange(folds)[:, None]
    split = Split(name, seed, fold.astype(np.int16), clusters, fold[None, :] != numbers, (), facts)
    return _with_notes(split, check(split, sites))


def _with_notes(split: Split, notes: Sequence[str]) -> Split:
    return Split(split.name, split.seed, split.fold, split.cluster, split.train, (*split.notes, *notes), split.facts)


# --- clusters ---


def clusters_within(places: FloatArray, distance_m: float) -> IntArray:
    """Number sites so that two have the same number if a chain of sites, each step within ``distance_m``, joins them.

    This is DBSCAN with two points as the smallest cluster and every noise point a cluster of its own. The chains are
    sought among the edges of the Delaunay triangulation, which hold the minimum spanning tree: memory grows with N,
    not with the number of close pairs (38,000 clustered sites have tens of millions within 10 km).

    Args:
        places: (N, 2), m.
        distance_m: Longest step, inclusive.

    Returns:
        (N,), 0 to the number of clusters - 1, in order of first appearance.
    """
    unique, back = np.unique(places, axis=0, return_inverse=True)
    back = back.reshape(-1)
    first, second = _edges(unique)
    close = np.hypot(*(unique[first] - unique[second]).T) <= distance_m
    graph = coo_matrix((np.ones(int(close.sum())), (first[close], second[close])), shape=(len(unique), len(unique)))
    _, found = connected_components(graph, directed=False)
    return _in_order(found[back])


def _edges(places: FloatArray) -> Tuple[IntArray, IntArray]:
    """Return pairs of distinct places, (N, 2), that hold their minimum spanning tree."""
    centred = places - places.mean(axis=0)  # qhull's tolerance grows with the coordinates
    if len(places) < 4:
        first, second = np.triu_indices(len(places), 1)
        return first.astype(np.int64), second.astype(np.int64)
    try:
        triangles = Delaunay(centred)
    except QhullError:  # all on one line: neighbours along it
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        order = np.argsort(centred @ direction, kind="stable").astype(np.int64)
        return order[:-1], order[1:]
    corners = triangles.simplices
    # Places nearer to another one than qhull can tell are left out of the triangles, and listed with that one.
    pairs = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]], triangles.coplanar[:, [0, 2]]])
    return pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64)


def _in_order(labels: NDArray[np.generic]) -> IntArray:
    _, first, back = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(first.size)
    ordered: IntArray = rank[back.reshape(-1)]
    return ordered


# --- folds ---


def random_folds(count: int, folds: int, seed: int) -> IntArray:
    """Deal sites by chance into folds whose sizes differ by one at most, (count,)."""
    fold: IntArray = np.random.default_rng(seed).permutation(np.arange(count, dtype=np.int64) % folds)
    return fold


def deal(clusters: IntArray, sites: Sites, folds: int, seed: int) -> IntArray:
    """Deal whole clusters into folds of like size and like labels.

    The largest cluster first, those of one size in random order, each goes where the folds' shares, of the sites and of
    every class of every task, end up least unequal (sum of squares); ties by chance.

    Returns:
        Fold of each site, (N,).

    Raises:
        InputError: If there are fewer clusters than folds.
    """
    count = int(clusters.max()) + 1
    if count < folds:
        raise InputError(
            "Spatial split",
            f"the sites form {count} cluster{'s' if count > 1 else ''}, fewer than {folds} folds.",
            "Every fold needs a cluster of its own.",
            "Choose fewer folds, a smaller distance, or observations of a wider area.",
        )
    generator = np.random.default_rng(seed)
    columns = [np.ones(len(sites))]
    for task, values in sites.labels.items():
        columns += [(values == index).astype(np.float64) for index in range(len(CLASSES[task]))]
    # (clusters, columns): what each cluster brings, as a share of all; columns without any site count nothing.
    brings = np.stack([np.bincount(clusters, column, count) for column in columns], axis=1)
    totals = brings.sum(axis=0)
    brings = brings[:, totals > 0] / totals[totals > 0]
    # Sizes matter as much as all classes together.
    weights = np.full(brings.shape[1], 1.0 / max(brings.shape[1] - 1, 1))
    weights[0] = 1.0
    order = np.lexsort((generator.random(count), -np.bincount(clusters)))
    has = np.zeros((folds, brings.shape[1]))
    chosen = np.empty(count, np.int64)
    for cluster in order:
        # Adding b to a share s changes the sum of squares by b (2 s + b); the part without s is the same everywhere.
        cost = (has * brings[cluster]) @ weights
        best = np.flatnonzero(cost <= cost.min() + 1e-12)
        fold = int(best[0] if best.size == 1 else generator.choice(best))
        chosen[cluster] = fold
        has[fold] += brings[cluster]
    return chosen[clusters]


# --- kNNDM ---


def nearest(places: FloatArray, others: Optional[FloatArray] = None) -> FloatArray:
    """Return the distance from each place to the nearest of ``others``, or to the nearest other place, (N,), m."""
    if others is None:
        return np.asarray(cKDTree(places).query(places, k=2)[0])[:, 1]
    return np.asarray(cKDTree(others).query(places)[0])


def test_to_train(split: Split, places: FloatArray) -> FloatArray:
    """Return the distance from each tested site to the nearest one its fold trains on, (tested,), m."""
    parts = []
    for number in range(split.folds):
        tested = split.test(number)
        if tested.any() and split.train[number].any():
            parts.append(nearest(places[tested], places[split.train[number]]))
    return np.concatenate(parts) if parts else np.empty(0)


def _fold_distances(places: FloatArray, fold: IntArray, folds: int) -> FloatArray:
    distances = np.empty(len(places))
    for number in range(folds):
        tested = fold == number
        distances[tested] = nearest(places[tested], places[~tested])
    return distances


def knndm(places: FloatArray, area: FloatArray, folds: int, seed: int) -> Tuple[IntArray, IntArray, Dict[str, Any]]:
    """Find folds whose test-to-train distances resemble the prediction-to-sample distances.

    Where the sites are not clustered compared with the area (a one-sided Kolmogorov-Smirnov test finds their
    neighbours no nearer than those of the places of prediction), random folds resemble them already. Else sites are
    clustered, from few to many clusters, the clusters merged into folds, and the partition taken whose distances have
    the least Wasserstein distance W (m) to those of the area.

    Args:
        places: Sites, (N, 2), m.
        area: Places of prediction, (M, 2), m.
        folds: How many.
        seed: Of random folds and, above ``TREE_SITES``, of the sites in the tree.

    Returns:
        Cluster of each site, fold of each site, and facts: W of the partition and of random folds, what was chosen.
    """
    wanted = nearest(area, places)
    own = nearest(places)
    chance = random_folds(len(places), folds, seed)
    chance_w = float(wasserstein_distance(_fold_distances(places, chance, folds), wanted))
    facts: Dict[str, Any] = {"W_random_m": chance_w, "W_m": chance_w, "clusters": None, "places": len(area)}
    resampling = clusters_within(places, RESAMPLING_M)
    # "greater": the distribution function of the sites' distances lies above, that is, they are shorter.
    if ks_2samp(own, wanted, alternative="greater", method="asymp").pvalue >= SIGNIFICANCE:
        return resampling, chance, {**facts, "chosen": "random: the sites are not clustered compared with the area"}
    best: Optional[Tuple[float, IntArray, IntArray, int]] = None
    numbers = np.unique(np.round(np.geomspace(folds, max(len(places) - 2, folds), TRIED)).astype(int))
    for number, clusters in _clusterings(places, numbers, seed):
        fold = _merge(places, clusters, folds)
        if np.bincount(fold, minlength=folds).max() > MAX_SHARE * len(places) or np.unique(fold).size < folds:
            continue
        w = float(wasserstein_distance(_fold_distances(places, fold, folds), wanted))
        if best is None or w < best[0]:
            best = w, clusters, fold, number
    if best is None or best[0] >= chance_w:
        return resampling, chance, {**facts, "chosen": "random: no clustering comes closer"}
    w, clusters, fold, number = best
    return _in_order(clusters), fold, {**facts, "W_m": w, "clusters": int(number), "chosen": "clusters"}


def _clusterings(places: FloatArray, numbers: IntArray, seed: int) -> Iterator[Tuple[int, IntArray]]:
    """Yield partitions into about each of ``numbers`` clusters, cut from one tree (Ward's)."""
    chosen = np.arange(len(places))
    if len(places) > TREE_SITES:
        chosen = np.random.default_rng(seed).choice(len(places), TREE_SITES, replace=False)
    # The others join the cluster of the nearest site that was chosen; chosen sites are their own nearest.
    owner = np.asarray(cKDTree(places[chosen]).query(places)[1])
    tree = linkage(places[chosen], method="ward")
    for number in numbers[numbers < chosen.size]:
        yield int(number), fcluster(tree, int(number), criterion="maxclust").astype(np.int64)[owner] - 1


def _merge(places: FloatArray, clusters: IntArray, folds: int) -> IntArray:
    """Merge clusters into folds: those of a fold's size or more first, the others in turn along the longest axis."""
    found, labels, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    labels = labels.reshape(-1)
    centred = places - places.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    position = np.bincount(labels, centred @ axis) / sizes
    order = np.argsort(position, kind="stable")
    large = [index for index in order if sizes[index] >= len(places) / folds]
    small = [index for index in order if sizes[index] < len(places) / folds]
    fold = np.empty(found.size, np.int64)
    for turn, index in enumerate(large):
        fold[index] = turn % folds
    free = list(range(len(large), folds)) or list(range(folds))
    for turn, index in enumerate(small):
        fold[index] = free[turn % len(free)]
    return fold[labels]


# --- checks ---


def check(split: Split, sites: Sites) -> Tuple[str, ...]:
    """Look at the folds of every task.

    Returns:
        Notes: folds much larger than others, classes that a fold does not test.

    Raises:
        InputError: If a fold tests nothing, or would train on one class only; all problems at once.
    """
    problems = []
    notes: List[str] = []
    sizes = [int(split.test(number).sum()) for number in range(split.folds)]
    for number, size in enumerate(sizes):
        if size == 0 or not split.train[number].any():
            problems.append(f"fold {number} {'tests' if size == 0 else 'trains on'} no site")
    mean = sum(sizes) / max(len(sizes), 1)
    if split.folds > 1 and max(sizes) > 1.5 * mean:
        notes.append(
            f"fold {int(np.argmax(sizes))} tests {max(sizes)} of {sum(sizes)} sites; means over folds hide that"
        )
    for task, values in sites.labels.items():
        if not (values != MISSING).any():
            continue
        present = np.unique(values[values != MISSING])
        for number in range(split.folds):
            trained = np.unique(values[split.train[number] & (values != MISSING)])
            tested = np.unique(values[split.test(number) & (values != MISSING)])
            if trained.size < 2 and present.size > 1 and sizes[number]:
                has = f"only {CLASSES[task][trained[0]]}" if trained.size else "no label"
                problems.append(f"fold {number} trains on {has} of {task}")
            if tested.size == 0:
                notes.append(f"fold {number} tests no site with a label of {task}")
            elif tested.size < present.size:
                lost = ", ".join(CLASSES[task][index] for index in present if index not in tested)
                notes.append(f"fold {number} tests no {lost} ({task})")
        if present.size < 2:
            notes.append(f"all labels of {task} are {CLASSES[task][present[0]]}: nothing can be learned")
    if problems:
        raise InputError(
            f'Split "{split.name}"',
            "; ".join(problems) + ".",
            "Every fold needs sites to test and two classes to train on.",
            "Choose fewer folds, another seed, another split, or more observations.",
        )
    return tuple(notes)


def table(split: Split, sites: Sites) -> Dict[str, Any]:
    """Return sizes and labels by fold as JSON values."""
    result: Dict[str, Any] = {"tests": [int(split.test(k).sum()) for k in range(split.folds)]}
    result["trains"] = [int(split.train[k].sum()) for k in range(split.folds)]
    for task, values in sites.labels.items():
        result[task] = {
            name: [int((values[split.test(k)] == index).sum()) for k in range(split.folds)]
            for index, name in enumerate(CLASSES[task])
        }
    return result


# --- split files ---


def read_released(path: Path, sites: Sites, resampling_m: float = RESAMPLING_M) -> Split:
    """Read folds as a file gives them, by the sites' identifiers.

    Two forms: ``{"fold_0": {"train": [ids], "test": [ids]}, ...}``, and flat ``{"train": [ids], "test": [ids]}``, which
    is one fold. Identifiers may be numbers or texts. They are used as they are; identifiers that no site has and sites
    that no fold names are told in the notes.

    Raises:
        InputError: If the file is of another form, names none of the sites, or tests a site twice or where it trains.
    """
    what = f'Split file "{Path(path).name}"'
    needed = 'The form {"fold_0": {"train": [...], "test": [...]}, ...} or {"train": [...], "test": [...]} is needed.'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(what, f"cannot be read ({error}).", needed, "Copy it again.") from error
    folds = _released_folds(content)
    if folds is None:
        raise InputError(what, "is of another form.", needed, "Choose the split file.")
    index_of = {str(name): index for index, name in enumerate(sites.id)}
    fold = np.full(len(sites), -1, np.int16)
    train = np.zeros((len(folds), len(sites)), dtype=bool)
    problems: List[str] = []
    unknown: Counter[str] = Counter()
    for number, (name, parts) in enumerate(folds):
        for part, ids in parts.items():
            twice = [one for one, count in Counter(ids).items() if count > 1]
            if twice:
                problems.append(f"{name} lists {twice[0]} twice in {part}")
            unknown.update(one for one in set(ids) if one not in index_of)
        both = set(parts["train"]) & set(parts["test"])
        if both:
            problems.append(f"{name} trains on {len(both)} sites that it tests (for example {min(both)})")
        tested = np.array([index_of[one] for one in parts["test"] if one in index_of], dtype=np.int64)
        again = tested[fold[tested] >= 0]
        if again.size:
            problems.append(f"{name} tests {again.size} sites that another fold tests ({sites.id[again[0]]})")
        fold[tested] = number
        train[number, [index_of[one] for one in parts["train"] if one in index_of]] = True
    if not (fold >= 0).any() and not problems:
        problems.append(f"none of its {len(unknown)} identifiers is that of a site (a site: {sites.id[0]})")
    if problems:
        raise InputError(what, "; ".join(problems) + ".", "Disjoint folds of the sites are needed.", "Correct it.")
    notes = _released_notes(folds, fold, train, unknown, sites)
    facts = {"file": Path(path).name, "unknown_ids": len(unknown)}
    cluster = clusters_within(np.column_stack([sites.x, sites.y]), resampling_m)
    split = Split(Path(path).stem, 0, fold, cluster, train, notes, facts)
    return _with_notes(split, check(split, sites))


def _released_folds(content: Any) -> Optional[List[Tuple[str, Dict[str, List[str]]]]]:  # noqa: ANN401  # reason: JSON
    def parts(value: Any) -> bool:  # noqa: ANN401
        return (
            isinstance(value, dict)
            and set(value) == {"train", "test"}
            and all(isinstance(ids, list) and all(isinstance(one, (int, str)) for one in ids) for ids in value.values())
        )

    if parts(content):
        content = {"the only fold": content}
    if not (isinstance(content, dict) and content and all(parts(value) for value in content.values())):
        return None
    # fold_10 comes after fold_9.
    names = sorted(content, key=lambda name: [int(part) if part.isdigit() else part for part in _digits(name)])
    return [(name, {part: [str(one) for one in ids] for part, ids in content[name].items()}) for name in names]


def _digits(name: str) -> List[str]:
    head = name.rstrip("0123456789")
    return [head, name[len(head) :] or "0"]


def _released_notes(
    folds: Sequence[Tuple[str, Dict[str, List[str]]]],
    fold: NDArray[np.int16],
    train: BoolArray,
    unknown: Mapping[str, int],
    sites: Sites,
) -> Tuple[str, ...]:
    notes = []
    if unknown:
        some = ", ".join(sorted(unknown)[:5])
        notes.append(f"{len(unknown)} identifiers of the file are no site's (dropped in reading? {some})")
    absent = (fold < 0) & ~train.any(axis=0)
    if absent.any():
        some = ", ".join(str(one) for one in sites.id[absent][:5])
        notes.append(f"{int(absent.sum())} sites are in no fold ({some})")
    for number, (name, _) in enumerate(folds):
        rest = (fold >= 0) & (fold != number) & ~train[number] if len(folds) > 1 else np.zeros(fold.size, bool)
        if rest.any():
            notes.append(f"{name} neither trains on nor tests {int(rest.sum())} sites that other folds test")
    return tuple(notes)


def write_released(split: Split, sites: Sites, path: Path) -> None:
    """Write a split in the form that :func:`read_released` reads, whole or not at all."""
    content = {
        f"fold_{number}": {
            "train": [str(one) for one in sites.id[split.train[number]]],
            "test": [str(one) for one in sites.id[split.test(number)]],
        }
        for number in range(split.folds)
    }
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def distances(split: Split, sites: Sites, area: FloatArray) -> Dict[str, Any]:
    """Compare a split's test-to-train distances with those from the area of prediction to the sites.

    Returns:
        JSON values: quantiles (m) of the three distances, and the Wasserstein distance W (m) between the first two.
    """
    places = np.column_stack([sites.x, sites.y])
    tested, wanted = test_to_train(split, places), nearest(area, places)
    own = nearest(places) if len(places) > 1 else np.empty(0)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    result: Dict[str, Any] = {
        name: {f"{share:g}": float(np.quantile(values, share)) for share in shares if values.size}
        for name, values in (("test_to_train", tested), ("prediction_to_sample", wanted), ("sample_to_sample", own))
    }
    result["W_m"] = float(wasserstein_distance(tested, wanted)) if tested.size else math.nan
    return result
