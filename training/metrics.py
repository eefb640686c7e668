"""Measures of a probability map against labels, weighted so that the block bootstrap is one pass per draw.

Labels are 1 present, 0 absent; scores are probabilities of present. numpy only; the tests compare with scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HALF = 0.5
EQUAL_RECALL = 0.80
DRAWS = 1000
BOOTSTRAP_SEED = 20250617
INTERVAL = (2.5, 97.5)  # percent

RANKED = ("roc_auc", "pr_auc", "precision_at_equal_recall_curve")
DECIDED = ("f1", "precision", "recall")
METRICS = (*RANKED, *(f"{name}_half" for name in DECIDED), *(f"{name}_equal_recall" for name in DECIDED))


class Ranking:
    """Places sorted by score, once; every rank measure for any weights follows without sorting again.

    Places with equal scores count as one step of the curve, as a threshold cannot part them.
    """

    def __init__(self, labels: NDArray[np.generic], scores: NDArray[np.generic]) -> None:
        values: FloatArray = np.asarray(scores, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("scores must be finite: a place without a prediction cannot be ranked")
        self.order = np.argsort(-values, kind="stable")
        self._positive = np.asarray(labels)[self.order] == 1
        descending = values[self.order]
        self._ends = np.append(np.flatnonzero(np.diff(descending)), descending.size - 1)
        self.thresholds: FloatArray = descending[self._ends]

    def counts(self, weights: Optional[FloatArray] = None) -> Tuple[FloatArray, FloatArray]:
        """Return weighted true and false positives at each of :attr:`thresholds` (score >= threshold), (T,) each."""
        ordered = np.ones(self.order.size) if weights is None else weights[self.order]
        true = np.cumsum(np.where(self._positive, ordered, 0.0))[self._ends]
        return true, np.cumsum(ordered)[self._ends] - true

    def measure(self, weights: Optional[FloatArray] = None, recall: float = EQUAL_RECALL) -> Dict[str, float]:
        """Return ``roc_auc``, ``pr_auc`` (average precision) and the precision where recall first reaches ``recall``.

        NaN where a class has no weight.
        """
        true, false = self.counts(weights)
        if true[-1] <= 0 or false[-1] <= 0:
            return dict.fromkeys(RANKED, float("nan"))
        hit, alarm = true / true[-1], false / false[-1]
        # Thresholds above every weighted place have no precision; they add nothing to the sum either.
        precision = np.divide(true, true + false, out=np.ones_like(true), where=(true + false) > 0)
        area = float(np.sum(np.diff(alarm, prepend=0.0) * (hit + np.concatenate([[0.0], hit[:-1]])) / 2.0))
        average = float(np.sum(np.diff(hit, prepend=0.0) * precision))
        return dict(zip(RANKED, (area, average, float(precision[_first_reaching(hit, recall)]))))

    def threshold_at_recall(self, recall: float) -> float:
        """Return the largest threshold at which at least ``recall`` of the present places score as high or higher."""
        true, _ = self.counts()
        if true[-1] <= 0:
            raise ValueError("recall is undefined: no place is present")
        return float(self.thresholds[_first_reaching(true / true[-1], recall)])

    def curve(self, thresholds: FloatArray) -> Tuple[FloatArray, FloatArray]:
        """Return precision and recall at ``thresholds`` (T,); precision is 1 where nothing scores that high."""
        true, false = self.counts()
        # Number of steps with a score >= threshold; the thresholds of the steps descend.
        steps = np.searchsorted(-self.thresholds, -np.asarray(thresholds), side="right")
        true, false = np.append(0.0, true)[steps], np.append(0.0, false)[steps]
        total = true + false
        return np.divide(true, total, out=np.ones_like(true), where=total > 0), true / self._positive.sum()


def _first_reaching(rising: FloatArray, level: float) -> int:
    # 1e-12: 0.8 of 5 places is 4 places, whatever the last bit of 4 / 5 says.
    return int(np.argmax(rising >= level - 1e-12))


def precision_recall_f1(
    labels: NDArray[np.generic], decided: NDArray[np.bool_], weights: Optional[FloatArray] = None
) -> Tuple[float, float, float]:
    """Return precision, recall and F1 of the decided places; a measure without any denominator is 0."""
    weights = np.ones(decided.size) if weights is None else weights
    present = np.asarray(labels) == 1
    return _rates(
        weights[present & decided].sum(), weights[~present & decided].sum(), weights[present & ~decided].sum()
    )


def equal_recall_thresholds(
    labels: NDArray[np.generic], scores: NDArray[np.generic], folds: IntArray, recall: float = EQUAL_RECALL
) -> Dict[int, float]:
    """Return for each fold the threshold that reaches ``recall`` on the out-of-fold scores of the *other* folds."""
    return {
        int(fold): Ranking(labels[folds != fold], scores[folds != fold]).threshold_at_recall(recall)
        for fold in np.unique(folds)
    }


@dataclass(frozen=True)
class Scored:
    """Out-of-fold probabilities of one model, split and seed for one set of places.

    Attributes:
        labels: 1 present, 0 absent, (N,).
        scores: Probabilities, (N,).
        blocks: 1 km block of each place, (N,): the unit of the bootstrap.
        threshold: Equal-recall threshold that applies to each place (that of its fold), (N,).
    """

    labels: NDArray[np.uint8]
    scores: FloatArray
    blocks: IntArray
    threshold: FloatArray

    def measure(self) -> Dict[str, float]:
        """Return every metric of :data:`METRICS`."""
        return _measure(self, Ranking(self.labels, self.scores), None)


def _measure(scored: Scored, ranking: Ranking, weights: Optional[FloatArray]) -> Dict[str, float]:
    result = ranking.measure(weights)
    for suffix, threshold in (("half", np.float64(HALF)), ("equal_recall", scored.threshold)):
        precision, recall, f1 = precision_recall_f1(scored.labels, scored.scores >= threshold, weights)
        result.update({f"precision_{suffix}": precision, f"recall_{suffix}": recall, f"f1_{suffix}": f1})
    return result


def block_draws(blocks: IntArray, draws: int = DRAWS, seed: int = BOOTSTRAP_SEED) -> Dict[int, IntArray]:
    """Return how often each block is drawn, {block: (draws,)}; as many blocks are drawn as there are."""
    unique = np.unique(blocks)
    times = np.random.default_rng(seed).multinomial(unique.size, np.full(unique.size, 1.0 / unique.size), size=draws)
    return {int(block): times[:, i].astype(np.int64) for i, block in enumerate(unique)}


def bootstrap(per_seed: Sequence[Scored], draws: Dict[int, IntArray]) -> Dict[str, FloatArray]:
    """Return each metric's bootstrap distribution, {metric: (draws,)}: the mean over seeds within a draw.

    The same ``draws`` for two models make the distributions paired: subtract them draw by draw.
    """
    count = len(next(iter(draws.values())))
    total: Dict[str, FloatArray] = {name: np.zeros(count) for name in METRICS}
    for scored in per_seed:
        ranking = Ranking(scored.labels, scored.scores)
        unique, inverse = np.unique(scored.blocks, return_inverse=True)
        times = np.stack([draws[int(block)] for block in unique]).astype(np.float64)  # (B, draws)
        decided = {
            "half": _block_counts(scored, np.full(inverse.size, HALF), inverse),
            "equal_recall": _block_counts(scored, scored.threshold, inverse),
        }
        for draw in range(count):
            for name, value in ranking.measure(times[inverse, draw]).items():
                total[name][draw] += value
            for suffix, counts in decided.items():
                rates = _rates(*(counts @ times[:, draw]))
                for name, value in zip(("precision", "recall", "f1"), rates):
                    total[f"{name}_{suffix}"][draw] += value
    return {name: values / len(per_seed) for name, values in total.items()}


def interval(distribution: FloatArray) -> Tuple[float, float]:
    """Return the 2.5 and 97.5 % quantiles; draws in which a metric is undefined are left out."""
    low, high = np.nanpercentile(distribution, INTERVAL)
    return float(low), float(high)


def _block_counts(scored: Scored, threshold: FloatArray, inverse: IntArray) -> FloatArray:
    """True positives, false positives and misses per block, (3, B)."""
    present, decided = scored.labels == 1, scored.scores >= threshold
    kinds = (present & decided, ~present & decided, present & ~decided)
    return np.stack([np.bincount(inverse, weights=kind, minlength=int(inverse.max()) + 1) for kind in kinds])


def _rates(true: float, false: float, missed: float) -> Tuple[float, float, float]:
    precision = float(true / (true + false)) if true + false > 0 else 0.0
    recall = float(true / (true + missed)) if true + missed > 0 else 0.0
    f1 = float(2 * true / (2 * true + false + missed)) if true + false + missed > 0 else 0.0
    return precision, recall, f1
