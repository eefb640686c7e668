"""Scores of out-of-fold predictions for both tasks, with intervals from resampling clusters of sites.

Owns what is measured of one model's :class:`~training.outoffold.OutOfFold` (Task 1: precision and recall of both
classes, accuracy; Task 2: support-weighted and per class), at which operating points, and with which uncertainty. Every
measure is a function of weights on clusters, so that the value (all weights 1) and each bootstrap draw come from one
piece of code.

Names of measures. ``<point>/<measure>`` or ``<point>/<measure>/<class>`` at an operating point (``half``: 0.5 of a
binary task; ``argmax``: the most probable class; ``equal_recall``; ``equal_area``), and without a point for what needs
no decision: ``roc_auc``, ``pr_auc``, ``brier``, ``log_loss``, ``ece``.

A measure that is not defined (a class is absent, nothing was called present) is NaN, and :func:`reason` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .metrics import BOOTSTRAP_SEED, DRAWS, HALF, INTERVAL, Ranking
from .outoffold import OutOfFold

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HALF_POINT, ARGMAX, EQUAL_RECALL, EQUAL_AREA = "half", "argmax", "equal_recall", "equal_area"
MATCHED = (EQUAL_RECALL, EQUAL_AREA)
ECE_BINS = 15
# A probability of exactly 0 at a present site would make the mean log loss infinite: one site would outvote all others.
LOG_LOSS_FLOOR = 1e-6
# Fewer draws than this share with a value, and the quantiles would speak of an unusual selection of draws.
DEFINED_SHARE = 0.5
FEW_CLUSTERS = 20
_CHUNK_VALUES = 250_000  # sites x draws held at once: 2 MB per array, which stays in the processor's cache


@dataclass(frozen=True)
class Draws:
    """How often each cluster is drawn: the same draws for all models make their differences paired.

    Attributes:
        clusters: Distinct clusters, sorted, (C,).
        times: Number of times each is drawn, (C, D).
    """

    clusters: IntArray
    times: NDArray[np.uint16]

    def index(self, clusters: IntArray) -> IntArray:
        """Return the row of :attr:`times` of each of ``clusters``."""
        found = np.searchsorted(self.clusters, clusters)
        if found.size and not np.array_equal(self.clusters[np.minimum(found, self.clusters.size - 1)], clusters):
            raise ValueError("a cluster is not among those that were drawn from")
        return found.astype(np.int64)


def draw_clusters(clusters: IntArray, draws: int = DRAWS, seed: int = BOOTSTRAP_SEED) -> Draws:
    """Draw as many clusters as there are, with replacement, ``draws`` times.

    Args:
        clusters: Cluster of each site, or the distinct clusters.
        draws: Number of draws.
        seed: Seed of the draws.
    """
    unique = np.unique(clusters).astype(np.int64)
    if not unique.size:
        return Draws(unique, np.zeros((0, draws), np.uint16))
    times = np.random.default_rng(seed).multinomial(unique.size, np.full(unique.size, 1.0 / unique.size), size=draws)
    return Draws(unique, np.ascontiguousarray(times.T).astype(np.uint16))


@dataclass(frozen=True)
class Decisions:
    """What each site is called at one operating point.

    Attributes:
        called: Index of the class, (N,); in one-against-rest readings 1 is the class and 0 the rest.
        thresholds: {fold: threshold}; empty for 0.5 and the most probable class.
        reason: Why there are no decisions; empty if there are.
    """

    called: NDArray[np.int8]
    thresholds: Dict[int, float]
    reason: str = ""


def half(oof: OutOfFold) -> Decisions:
    """Decide a binary task at 0.5 (0.5 itself counts as present), another by its most probable class."""
    if len(oof.classes) == 2:
        return Decisions((oof.probability[:, 1] >= HALF).astype(np.int8), {})
    return Decisions(oof.probability.argmax(axis=1).astype(np.int8), {})


def matched(oof: OutOfFold, positive: int, point: str, target: float) -> Decisions:
    """Decide one class against the rest at thresholds that reach a target on the *other* folds.

    For fold k the threshold is the largest value at which the out-of-fold probabilities of the sites outside k reach
    the target, so that no label and no score of k chooses the threshold that k is judged at.

    Args:
        oof: Predictions.
        positive: Index of the class.
        point: ``equal_recall`` (target: recall of the class) or ``equal_area`` (target: share of sites called so).
        target: In (0, 1]; NaN if the model that sets it has none.
    """
    scores, present = oof.probability[:, positive], oof.label == positive
    if not target > 0:
        return Decisions(_undecided(oof), {}, "the model that sets the target calls no site so")
    folds = np.unique(oof.fold)
    if folds.size < 2:
        return Decisions(_undecided(oof), {}, "one fold only: there are no other folds to choose a threshold on")
    thresholds: Dict[int, float] = {}
    for fold in folds:
        others = oof.fold != fold
        chosen = others & present if point == EQUAL_RECALL else others
        if not chosen.any():
            name = oof.classes[positive]
            return Decisions(_undecided(oof), {}, f"outside fold {fold} no site is {name}: no threshold can be chosen")
        descending = np.sort(scores[chosen])[::-1]
        # 1e-12: 0.8 of 5 sites is 4 sites, whatever the last bit of the product says.
        thresholds[int(fold)] = float(descending[max(int(np.ceil(target * descending.size - 1e-12)), 1) - 1])
    limit = np.asarray([thresholds[int(fold)] for fold in oof.fold])
    return Decisions((scores >= limit).astype(np.int8), thresholds)


def _undecided(oof: OutOfFold) -> NDArray[np.int8]:
    return np.full(oof.label.size, -1, np.int8)


@dataclass(frozen=True)
class Targets:
    """What the thresholds at equal recall and equal area aim at, per class that is read against the rest.

    Attributes:
        recall: {class index: recall}.
        area: {class index: share of sites}.
    """

    recall: Dict[int, float]
    area: Dict[int, float]

    def of(self, point: str) -> Dict[int, float]:
        """Return the targets of an operating point."""
        return self.recall if point == EQUAL_RECALL else self.area


def positives(classes: Sequence[str]) -> Tuple[int, ...]:
    """Return the classes that are read one against the rest: *present* of a binary task, else every class."""
    return (1,) if len(classes) == 2 else tuple(range(len(classes)))


def targets_of(oof: OutOfFold, recall: Optional[float] = None) -> Targets:
    """Return the recall and the predicted share that a reference model has at 0.5 (or by its most probable class).

    Args:
        oof: The reference model's predictions.
        recall: Use this recall instead, for every class.
    """
    called = half(oof).called
    found: Dict[int, float] = {}
    area: Dict[int, float] = {}
    for positive in positives(oof.classes):
        present = oof.label == positive
        found[positive] = float((called[present] == positive).mean()) if present.any() else float("nan")
        area[positive] = float((called == positive).mean()) if called.size else float("nan")
    return Targets(dict.fromkeys(found, recall) if recall is not None else found, area)


@dataclass(frozen=True)
class Judged:
    """One model's predictions with its decisions.

    Attributes:
        oof: The predictions.
        plain: Decisions at 0.5, or by the most probable class.
        matched: {point: {class index: decisions}}.
    """

    oof: OutOfFold
    plain: Decisions
    matched: Dict[str, Dict[int, Decisions]]

    @property
    def binary(self) -> bool:
        """Whether the task has two classes."""
        return len(self.oof.classes) == 2

    def subset(self, chosen: NDArray[np.generic]) -> Judged:
        """Return the chosen sites (mask or indices) with the decisions that were made for them."""

        def part(made: Decisions) -> Decisions:
            return Decisions(made.called[chosen], made.thresholds, made.reason)

        return Judged(
            subset(self.oof, chosen),
            part(self.plain),
            {point: {k: part(made) for k, made in by.items()} for point, by in self.matched.items()},
        )


def subset(oof: OutOfFold, chosen: NDArray[np.generic]) -> OutOfFold:
    """Return the chosen sites (mask or indices)."""
    arrays = {name: getattr(oof, name)[chosen] for name in ("id", "x", "y", "label", "fold", "cluster", "probability")}
    return OutOfFold(oof.model, oof.task, oof.split, oof.seed, oof.classes, facts=oof.facts, **arrays)


def judge(oof: OutOfFold, targets: Targets) -> Judged:
    """Decide every site at every operating point."""
    by = {point: {k: matched(oof, k, point, t) for k, t in targets.of(point).items()} for point in MATCHED}
    return Judged(oof, half(oof), by)


# --- measures as functions of weights on clusters ---


def measures(judged: Judged, index: IntArray, times: FloatArray) -> Dict[str, FloatArray]:
    """Return every measure for each column of weights.

    Args:
        judged: N sites.
        index: Row of ``times`` of each site, (N,).
        times: Weights of clusters, (C, D), not negative.

    Returns:
        {name: (D,)}, NaN where a measure is not defined.
    """
    oof, classes = judged.oof, judged.oof.classes
    plain = confusion(oof.label, judged.plain.called, len(classes), index, times)
    result = _binary(plain, classes, HALF_POINT) if judged.binary else _multiclass(plain, classes)
    for point, by in judged.matched.items():
        for positive, made in by.items():
            suffix = "" if judged.binary else f"/{classes[positive]}"
            names = ("absent", "present") if judged.binary else ("rest", classes[positive])
            if made.reason:
                result.update({name: np.full(times.shape[1], np.nan) for name in _matched_names(point, names, suffix)})
                continue
            counts = confusion((oof.label == positive).astype(np.int8), made.called, 2, index, times)
            every = _binary(counts, names, point)
            result.update(every if judged.binary else _one_against_rest(every, point, names[1]))
    result.update(_ranked(oof, index, times))
    result.update(_proper(oof, index, times))
    return result


def observed(judged: Judged) -> Dict[str, float]:
    """Return every measure of the sites as they are."""
    index = np.zeros(judged.oof.label.size, np.int64)
    return {name: float(value[0]) for name, value in measures(judged, index, np.ones((1, 1))).items()}


def bootstrap(judged: Judged, draws: Draws) -> Dict[str, FloatArray]:
    """Return every measure's distribution over the draws, {name: (D,)}."""
    return measures(judged, draws.index(judged.oof.cluster), draws.times.astype(np.float64))


def calibration_measures(oof: OutOfFold, draws: Optional[Draws] = None) -> Dict[str, FloatArray]:
    """Return Brier score, log loss and calibration error alone, (D,) each; of the sites as they are without draws."""
    if draws is None:
        return _proper(oof, np.zeros(oof.label.size, np.int64), np.ones((1, 1)))
    return _proper(oof, draws.index(oof.cluster), draws.times.astype(np.float64))


def confusion(
    label: NDArray[np.generic], called: NDArray[np.generic], classes: int, index: IntArray, times: FloatArray
) -> FloatArray:
    """Return weighted counts, (D, K, K): rows are what the sites are, columns what they are called."""
    cell = np.asarray(label, np.int64) * classes + np.asarray(called, np.int64)
    per_cluster = _per_cluster(cell, classes**2, index, times.shape[0])
    counts: FloatArray = (times.T @ per_cluster).reshape(-1, classes, classes)
    return counts


def _per_cluster(
    cell: IntArray, cells: int, index: IntArray, clusters: int, value: Optional[FloatArray] = None
) -> FloatArray:
    """Sum ``value`` (default 1) per cluster and cell, (C, cells)."""
    flat = np.bincount(index * cells + cell, weights=value, minlength=clusters * cells)
    sums: FloatArray = flat.astype(np.float64).reshape(clusters, cells)
    return sums


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide, NaN where the denominator is 0."""
    out: FloatArray = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _binary(counts: FloatArray, names: Sequence[str], point: str) -> Dict[str, FloatArray]:
    """Precision, recall, F1 of both classes, accuracy, balanced accuracy, and the share called the second."""
    result: Dict[str, FloatArray] = {}
    total = counts.sum(axis=(1, 2))
    for k, name in enumerate(names):
        true, is_so, called = counts[:, k, k], counts[:, k, :].sum(axis=1), counts[:, :, k].sum(axis=1)
        result[f"{point}/precision/{name}"] = ratio(true, called)
        result[f"{point}/recall/{name}"] = ratio(true, is_so)
        result[f"{point}/f1/{name}"] = np.where(is_so > 0, ratio(2 * true, is_so + called), np.nan)
    result[f"{point}/accuracy"] = ratio(np.trace(counts, axis1=1, axis2=2), total)
    result[f"{point}/balanced_accuracy"] = (
        result[f"{point}/recall/{names[0]}"] + result[f"{point}/recall/{names[1]}"]
    ) / 2
    result[f"{point}/share"] = ratio(counts[:, :, 1].sum(axis=1), total)
    return result


def _matched_names(point: str, names: Sequence[str], suffix: str) -> List[str]:
    every = _binary(np.ones((1, 2, 2)), names, point)
    return list(every if not suffix else _one_against_rest(every, point, names[1]))


def _one_against_rest(every: Mapping[str, FloatArray], point: str, name: str) -> Dict[str, FloatArray]:
    result = {f"{point}/{m}/{name}": every[f"{point}/{m}/{name}"] for m in ("precision", "recall", "f1")}
    return {**result, f"{point}/share/{name}": every[f"{point}/share"]}


def _multiclass(counts: FloatArray, classes: Sequence[str]) -> Dict[str, FloatArray]:
    """Measures of the most probable class: support-weighted, macro, and per class.

    In the weighted and macro precision a class that has sites but is never called counts 0, as in scikit-learn and the
    paper; its own precision is NaN. :func:`conventions` says where this was done. Classes without sites have no weight.
    """
    support, called = counts.sum(axis=2), counts.sum(axis=1)  # (D, K)
    true = np.diagonal(counts, axis1=1, axis2=2)
    precision, recall = ratio(true, called), ratio(true, support)
    f1 = np.where(support > 0, ratio(2 * true, support + called), np.nan)
    total = support.sum(axis=1)
    result: Dict[str, FloatArray] = {"argmax/accuracy": ratio(true.sum(axis=1), total)}
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        filled = np.where((support > 0) & np.isfinite(values), values, 0.0)
        result[f"argmax/{name}"] = ratio((filled * support).sum(axis=1), total)
        for k, of in enumerate(classes):
            result[f"argmax/{name}/{of}"] = values[:, k]
    filled = np.where(support > 0, f1, 0.0)
    result["argmax/macro_f1"] = ratio(filled.sum(axis=1), (support > 0).sum(axis=1).astype(np.float64))
    for k, of in enumerate(classes):
        result[f"argmax/share/{of}"] = ratio(called[:, k], total)
    return result


def rank_measures(
    positive: NDArray[np.bool_], scores: FloatArray, index: IntArray, times: FloatArray
) -> Tuple[FloatArray, FloatArray]:
    """Return ROC-AUC and PR-AUC (average precision) for each column of weights, (D,) each.

    Sites are sorted once; sites with equal scores are one step of the curve.
    """
    count, draws = scores.size, times.shape[1]
    roc, average = np.full(draws, np.nan), np.full(draws, np.nan)
    if not count or positive.all() or not positive.any():
        return roc, average
    ranking = Ranking(positive.astype(np.int8), scores)
    ends = np.searchsorted(-scores[ranking.order], -ranking.thresholds, side="right") - 1
    rows, is_so = index[ranking.order], positive[ranking.order]
    step = max(1, _CHUNK_VALUES // count)
    for start in range(0, draws, step):
        weights = times[rows, start : start + step]  # (N, chunk)
        both, true = np.cumsum(weights, axis=0), np.cumsum(weights * is_so[:, None], axis=0)
        if ends.size < count:
            both, true = both[ends], true[ends]
        gain = np.diff(true, axis=0, prepend=0.0)
        false_gain = np.diff(both, axis=0, prepend=0.0) - gain
        pairs = (false_gain * (true - gain / 2.0)).sum(axis=0)
        # No weight so far means no gain either, so what stands for 0 / 0 does not matter.
        precise = (gain * true / np.maximum(both, 1e-12)).sum(axis=0)
        roc[start : start + step] = ratio(pairs, true[-1] * (both[-1] - true[-1]))
        average[start : start + step] = np.where(both[-1] > true[-1], ratio(precise, true[-1]), np.nan)
    return roc, average


def _ranked(oof: OutOfFold, index: IntArray, times: FloatArray) -> Dict[str, FloatArray]:
    """ROC-AUC and PR-AUC: of *present*, or of each class against the rest and their mean over classes that have one."""
    chosen = positives(oof.classes)
    found = {k: rank_measures(oof.label == k, oof.probability[:, k], index, times) for k in chosen}
    result: Dict[str, FloatArray] = {}
    for position, name in enumerate(("roc_auc", "pr_auc")):
        if len(chosen) == 1:
            result[name] = found[chosen[0]][position]
            continue
        for k in chosen:
            result[f"{name}/{oof.classes[k]}"] = found[k][position]
        every = np.stack([found[k][position] for k in chosen])
        result[name] = ratio(np.nansum(every, axis=0), np.isfinite(every).sum(axis=0).astype(np.float64))
    return result


def _proper(oof: OutOfFold, index: IntArray, times: FloatArray) -> Dict[str, FloatArray]:
    """Brier score, log loss and expected calibration error.

    Binary: squared error of the probability of *present*, and bins of that probability. Else: the sum of squares over
    classes (Brier 1950), and bins of the highest probability against whether its class is right.
    """
    count = oof.label.size
    if not count:
        return {name: np.full(times.shape[1], np.nan) for name in ("brier", "log_loss", "ece")}
    own = oof.probability[np.arange(count), oof.label]
    if len(oof.classes) == 2:
        squared = (oof.probability[:, 1] - oof.label) ** 2
    else:
        squared = ((oof.probability - np.eye(len(oof.classes))[oof.label]) ** 2).sum(axis=1)
    sums = np.stack([np.ones(count), squared, -np.log(np.maximum(own, LOG_LOSS_FLOOR))])
    one = np.zeros(count, np.int64)
    total = [times.T @ _per_cluster(one, 1, index, times.shape[0], values)[:, 0] for values in sums]
    confidence, right = confidence_of(oof)
    bins = equal_width_bins(confidence)
    parts = [
        times.T @ _per_cluster(bins, ECE_BINS, index, times.shape[0], values)
        for values in (confidence, right.astype(np.float64))
    ]
    gap = np.abs(parts[0] - parts[1]).sum(axis=1)
    return {
        "brier": ratio(total[1], total[0]),
        "log_loss": ratio(total[2], total[0]),
        "ece": ratio(gap, total[0]),
    }


def confidence_of(oof: OutOfFold) -> Tuple[FloatArray, NDArray[np.bool_]]:
    """Return what calibration is about: a probability per site, and whether the thing happened, (N,) each.

    The probability of *present* of a binary task; else the highest probability, and whether its class is right.
    """
    if len(oof.classes) == 2:
        return oof.probability[:, 1], oof.label == 1
    best = oof.probability.argmax(axis=1)
    return oof.probability[np.arange(best.size), best], best == oof.label


def equal_width_bins(values: FloatArray, bins: int = ECE_BINS) -> IntArray:
    """Return the bin of each probability: ``bins`` of equal width over [0, 1], the upper edge in the last."""
    return np.minimum((values * bins).astype(np.int64), bins - 1)


# --- why a measure is NaN, and what was counted by convention ---


def reason(judged: Judged, name: str) -> str:
    """Say why a measure of these sites is not defined."""
    oof = judged.oof
    if not oof.label.size:
        return "no sites"
    parts = name.split("/")
    if parts[0] in MATCHED:
        by = judged.matched[parts[0]]
        of = oof.classes.index(parts[2]) if len(parts) == 3 else -1
        made = by.get(of, next(iter(by.values())))  # a binary task has one entry, for both of its classes
        if made.reason:
            return made.reason
    if len(parts) == 3:
        sites = int((oof.label == oof.classes.index(parts[2])).sum()) if parts[2] in oof.classes else 0
        return f"no site is called {parts[2]}" if parts[1] == "precision" and sites else f"no site is {parts[2]}"
    if parts[0] in ("roc_auc", "pr_auc") and len(parts) == 2:
        sites = int((oof.label == oof.classes.index(parts[1])).sum())
        return f"{'no' if not sites else 'every'} site is {parts[1]}"
    present = np.unique(oof.label)
    if present.size == 1:
        return f"one class only: every site is {oof.classes[int(present[0])]}"
    return "a part of it is not defined"


def conventions(judged: Judged) -> List[str]:
    """List what was counted by convention: classes that have sites but are never called count precision 0 in means."""
    if judged.binary:
        return []
    called = set(np.unique(judged.plain.called).tolist())
    missed = [judged.oof.classes[k] for k in np.unique(judged.oof.label) if int(k) not in called]
    return [f"never predicted, so counted with precision 0 in weighted means: {', '.join(missed)}"] if missed else []


# --- intervals and means over folds ---


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; either may be NaN, and then ``reason`` says why."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    reason: str = ""

    @property
    def verdict(self) -> int:
        """1 if the interval of a difference lies above 0, -1 below, 0 if it holds 0 or is not known."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def estimate(value: float, distribution: FloatArray, clusters: int, reason: str = "") -> Estimate:
    """Join a value and its bootstrap distribution; draws in which the measure is not defined are left out."""
    if not np.isfinite(value):
        return Estimate(float("nan"), reason=reason or "not defined")
    if clusters < 2:
        return Estimate(value, reason="one cluster only: no interval")
    defined = distribution[np.isfinite(distribution)]
    if defined.size < DEFINED_SHARE * distribution.size or not defined.size:
        return Estimate(value, reason=f"defined in {defined.size} of {distribution.size} draws only: no interval")
    low, high = np.percentile(defined, INTERVAL)
    return Estimate(value, float(low), float(high), reason)


@dataclass(frozen=True)
class FoldMean:
    """Mean of a measure over folds, as the literature reports it.

    Attributes:
        value: Mean over the folds in which it is defined.
        spread: Standard deviation over them (n - 1), NaN below two.
        defined: Number of folds in which it is defined.
        folds: Number of folds.
        reason: Why it is not defined in the others.
    """

    value: float
    spread: float
    defined: int
    folds: int
    reason: str = ""


def fold_means(judged: Judged) -> Dict[str, FoldMean]:
    """Return each measure's mean over folds."""
    return mean_over_folds([judged])


def mean_over_folds(per_seed: Sequence[Judged]) -> Dict[str, FoldMean]:
    """Return each measure's mean over the folds of all seeds."""
    parts = [part for judged in per_seed for part in _folds(judged)]
    found = [observed(part) for _, part in parts]
    result: Dict[str, FoldMean] = {}
    for name in found[0] if found else ():
        values = np.asarray([row[name] for row in found])
        defined = values[np.isfinite(values)]
        reasons = [
            f"fold {fold}: {reason(part, name)}" for (fold, part), value in zip(parts, values) if not np.isfinite(value)
        ]
        spread = float(np.std(defined, ddof=1)) if defined.size > 1 else float("nan")
        mean = float(defined.mean()) if defined.size else float("nan")
        result[name] = FoldMean(mean, spread, int(defined.size), len(parts), "; ".join(dict.fromkeys(reasons)))
    return result


def _folds(judged: Judged) -> Iterator[Tuple[int, Judged]]:
    for fold in np.unique(judged.oof.fold):
        yield int(fold), judged.subset(judged.oof.fold == fold)
