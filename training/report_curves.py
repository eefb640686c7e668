"""Curves over probability: precision-recall, ROC, reliability, costs of thresholds, and how probabilities spread.

Each is computed for one class of a task against the rest (*present* of a binary task) from one model's predictions,
one per seed. Curves pool the seeds; tables with intervals are means over seeds within a draw, as all scores are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from . import scores
from .metrics import Ranking
from .outoffold import OutOfFold
from .report_comparison import estimate_json, mean_defined, number
from .scores import Draws, Estimate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Json = Dict[str, Any]

CURVE_POINTS = 300
RELIABILITY_BINS = 10
HISTOGRAM_BINS = 10
TABLE_THRESHOLDS = np.round(np.arange(0.05, 1.0, 0.05), 2)
MANIFEST_THRESHOLDS = np.round(np.linspace(0.0, 1.0, 101), 2)
VISITS = 100


def _pooled(oofs: Sequence[OutOfFold], positive: int) -> Tuple[NDArray[np.bool_], FloatArray]:
    return (
        np.concatenate([oof.label == positive for oof in oofs]),
        np.concatenate([oof.probability[:, positive] for oof in oofs]),
    )


def rank_curves(oofs: Sequence[OutOfFold], positive: int) -> Json:
    """Return the precision-recall and ROC curves, at most :data:`CURVE_POINTS` steps of each.

    Returns:
        ``recall``, ``precision``, ``false_alarm_rate`` and ``threshold``, lists of one length, recall rising; empty
        lists where a class is absent.
    """
    present, values = _pooled(oofs, positive)
    if present.all() or not present.any():
        return {"recall": [], "precision": [], "false_alarm_rate": [], "threshold": []}
    ranking = Ranking(present.astype(np.int8), values)
    true, false = ranking.counts()
    kept = np.unique(np.round(np.linspace(0, true.size - 1, CURVE_POINTS)).astype(int))
    true, false, thresholds = true[kept], false[kept], ranking.thresholds[kept]
    return {
        "recall": [number(v) for v in true / present.sum()],
        "precision": [number(v) for v in true / (true + false)],
        "false_alarm_rate": [number(v) for v in false / (~present).sum()],
        "threshold": [number(v) for v in thresholds],
    }


def histogram(oofs: Sequence[OutOfFold], positive: int) -> List[Optional[float]]:
    """Return the share of sites in each tenth of probability, all folds and seeds merged (the paper's Figure 5)."""
    _, values = _pooled(oofs, positive)
    counts = np.bincount(scores.equal_width_bins(values, HISTOGRAM_BINS), minlength=HISTOGRAM_BINS)
    return [number(v) for v in counts / max(values.size, 1)]


# --- reliability ---


@dataclass(frozen=True)
class ReliabilityBin:
    """One bin of a reliability diagram.

    Attributes:
        mean: Mean probability.
        share: Share of sites where it happened, with interval.
        sites: Number of sites, over all seeds.
    """

    mean: float
    share: Estimate
    sites: int


def reliability(
    oofs: Sequence[OutOfFold], draws: Draws, positive: Optional[int] = None, bins: int = RELIABILITY_BINS
) -> List[ReliabilityBin]:
    """Compare probabilities with what happened, in bins of nearly equal numbers of sites.

    Equal numbers, because probabilities crowd near 0 and 1; equal probabilities are never parted, so there may be fewer
    bins.

    Args:
        oofs: One per seed.
        draws: Of the clusters.
        positive: Class that is read against the rest; default: what calibration is about
            (:func:`training.scores.confidence_of`).
        bins: How many at most.
    """
    if not sum(oof.label.size for oof in oofs):
        return []
    parts = [_what_happened(oof, positive) for oof in oofs]
    pooled = np.concatenate([values for values, _ in parts])
    inner = np.unique(np.quantile(pooled, np.linspace(0, 1, bins + 1)[1:-1]))
    clusters = draws.clusters.size
    sites, mean, happened = (np.zeros((clusters, inner.size + 1)) for _ in range(3))
    for oof, (values, right) in zip(oofs, parts):
        cell = np.searchsorted(inner, values, side="right")
        index = draws.index(oof.cluster)
        for total, weight in ((sites, np.ones_like(values)), (mean, values), (happened, right.astype(np.float64))):
            np.add.at(total, (index, cell), weight)
    drawn = scores.ratio(draws.times.T @ happened, draws.times.T @ sites)  # (D, bins)
    result: List[ReliabilityBin] = []
    for k in np.flatnonzero(sites.sum(axis=0)):
        count = sites[:, k].sum()
        share = scores.estimate(float(happened[:, k].sum() / count), drawn[:, k], int((sites[:, k] > 0).sum()))
        result.append(ReliabilityBin(float(mean[:, k].sum() / count), share, int(count)))
    return result


def _what_happened(oof: OutOfFold, positive: Optional[int]) -> Tuple[FloatArray, NDArray[np.bool_]]:
    if positive is None:
        return scores.confidence_of(oof)
    return oof.probability[:, positive], oof.label == positive


def reliability_json(bins: Sequence[ReliabilityBin]) -> List[Json]:
    """Return bins as JSON."""
    return [{"mean": number(b.mean), "share": estimate_json(b.share), "sites": b.sites} for b in bins]


# --- what a threshold costs ---


@dataclass(frozen=True)
class ThresholdRow:
    """What a threshold means in the field.

    Attributes:
        threshold: Probability from which on a site is called so.
        precision: Of 1 called site, how many are so.
        recall: Of 1 site that is so, how many are called.
        f1: Harmonic mean of both.
        share: Of all sites, how many are called.
    """

    threshold: float
    precision: Estimate
    recall: Estimate
    f1: Estimate
    share: Estimate

    @property
    def hits(self) -> Estimate:
        """Finds among 100 visits to called places."""
        return _scaled(self.precision, VISITS, 0.0)

    @property
    def false_alarms(self) -> Estimate:
        """Visits in vain among 100."""
        return _scaled(self.precision, -VISITS, VISITS)


def _scaled(made: Estimate, factor: float, offset: float) -> Estimate:
    ends = sorted((made.low * factor + offset, made.high * factor + offset))  # both are NaN, or neither
    return Estimate(made.value * factor + offset, ends[0], ends[1], made.reason)


def threshold_table(
    oofs: Sequence[OutOfFold], draws: Draws, positive: int, thresholds: FloatArray = TABLE_THRESHOLDS
) -> List[ThresholdRow]:
    """Return precision, recall, F1 and predicted share at each threshold, with intervals.

    Args:
        oofs: One per seed.
        draws: Of the clusters.
        positive: Class that is read against the rest.
        thresholds: Rising, (T,).
    """
    names = ("precision", "recall", "f1", "share")
    values: Dict[str, List[FloatArray]] = {name: [] for name in names}
    drawn: Dict[str, List[FloatArray]] = {name: [] for name in names}
    once, times = np.ones((1, draws.clusters.size)), draws.times.T.astype(np.float64)
    for oof in oofs:
        counts = _counts_from(oof, draws, positive, thresholds)  # (C, 2, T): present, absent; called at T or above
        sums = _per_cluster(oof, draws, positive)
        for target, weights in ((values, once), (drawn, times)):
            called = np.tensordot(weights, counts, axes=1)  # (D, 2, T)
            total = weights @ sums  # (D, 2)
            for name, found in zip(names, _rates(called, total)):
                target[name].append(found)
    clusters = int(np.unique(np.concatenate([oof.cluster for oof in oofs])).size)
    mean = {name: mean_defined(np.stack(values[name]))[0] for name in names}
    spread = {name: mean_defined(np.stack(drawn[name])) for name in names}
    why = {"precision": "no site is called so", "recall": "no site is so", "f1": "no site is so", "share": "no sites"}
    return [
        ThresholdRow(
            float(threshold),
            *(scores.estimate(float(mean[name][t]), spread[name][:, t], clusters, why[name]) for name in names),
        )
        for t, threshold in enumerate(thresholds)
    ]


def _counts_from(oof: OutOfFold, draws: Draws, positive: int, thresholds: FloatArray) -> FloatArray:
    """Sites of each cluster that score at or above each threshold, (C, 2, T)."""
    steps = np.searchsorted(thresholds, oof.probability[:, positive], side="right")  # thresholds that are reached
    counts = np.zeros((draws.clusters.size, 2, thresholds.size + 1))
    np.add.at(counts, (draws.index(oof.cluster), (oof.label != positive).astype(int), steps), 1.0)
    reached: FloatArray = np.cumsum(counts[:, :, ::-1], axis=2)[:, :, ::-1][:, :, 1:]
    return reached


def _per_cluster(oof: OutOfFold, draws: Draws, positive: int) -> FloatArray:
    sums = np.zeros((draws.clusters.size, 2))
    np.add.at(sums, (draws.index(oof.cluster), (oof.label != positive).astype(int)), 1.0)
    return sums


def _rates(called: FloatArray, total: FloatArray) -> Tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    true, both = called[:, 0], called.sum(axis=1)
    present = np.broadcast_to(total[:, :1], true.shape)
    every = np.broadcast_to(total.sum(axis=1, keepdims=True), true.shape)
    f1 = np.where(present > 0, scores.ratio(2 * true, present + both), np.nan)
    return scores.ratio(true, both), scores.ratio(true, present), f1, scores.ratio(both, every)


def threshold_json(rows: Sequence[ThresholdRow]) -> List[Json]:
    """Return a threshold table as JSON."""
    names = ("precision", "recall", "f1", "share", "hits", "false_alarms")
    return [{"threshold": row.threshold, **{name: estimate_json(getattr(row, name)) for name in names}} for row in rows]


def manifest_curve(oofs: Sequence[OutOfFold], draws: Draws, positive: int) -> Json:
    """Return a manifest's curve of one model and split.

    ``threshold``, ``precision``, ``recall`` as the plugin reads them (precision is 1 where nothing is called), and
    beside them ``precision_low``, ``precision_high``, ``recall_low``, ``recall_high``, equal to the value where there
    is no interval.
    """
    rows = threshold_table(oofs, draws, positive, MANIFEST_THRESHOLDS)
    curve: Dict[str, List[float]] = {"threshold": [row.threshold for row in rows]}
    for name, undefined in (("precision", 1.0), ("recall", 0.0)):
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            curve[name + suffix] = [_or(getattr(row, name), part, undefined) for row in rows]
    return curve


def _or(made: Estimate, part: str, undefined: float) -> float:
    value = made.value if np.isfinite(made.value) else undefined
    found = float(getattr(made, part))
    return round(found if np.isfinite(found) else value, 4)
