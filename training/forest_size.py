"""What a smaller Random Forest costs: bytes in the zip, speed, and scores against the paper's 253 trees.

Every variant is fitted per fold, exported, and scored by what its *graph* answers on the held-out places, so that
compression counts as well; its bytes and speed are those of a forest fitted on all places.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
from numpy.typing import NDArray

from .forest_export import EXACT, Compression, export_forest
from .forest_fit import PAPER, FittedForest, ForestSettings, fit_forest
from .forest_search import macro_f1, negative_log_loss, pr_auc
from .forest_ship import class_probabilities, session_of
from .sites import CLASSES

SPEED_ROWS = 50_000


@dataclass(frozen=True)
class Variant:
    """A size of forest: its settings and what is rounded in the exported graph."""

    settings: ForestSettings = PAPER
    compression: Compression = EXACT

    def __str__(self) -> str:
        """Write it as in the table's first column."""
        words = [str(self.settings)]
        if self.compression.leaf_bits is not None:
            words.append(f"leaves {self.compression.leaf_bits} bit")
        if self.compression.threshold_bits is not None:
            words.append(f"thresholds {self.compression.threshold_bits} bit")
        return ", ".join(words)


@dataclass(frozen=True)
class Places:
    """Features (N, F), class indices (N,) and folds (N,) of places to learn from or to score on."""

    features: NDArray[np.float32]
    labels: NDArray[np.integer[Any]]
    folds: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Size:
    """What was measured of a variant.

    Attributes:
        variant: The variant.
        nodes: Of all trees.
        graph_bytes: Of the ONNX file.
        zipped_bytes: The same deflated as in the plugin's zip.
        px_per_cpu_s: Rows per second of processor time in the runtime with one thread, rows in map order.
        scores: ``pr_auc`` (binary tasks), ``macro_f1``, ``log_loss``, on held-out places pooled over the folds.
    """

    variant: Variant
    nodes: int
    graph_bytes: int
    zipped_bytes: int
    px_per_cpu_s: float
    scores: Dict[str, float]


def measure(
    variants: Sequence[Variant],
    task: str,
    learn: Places,
    score: Places,
    map_rows: NDArray[np.float32],
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> List[Size]:
    """Measure variants of a forest.

    Args:
        variants: What to try; the first is what the others are compared with in :func:`table`.
        task: Key of :data:`training.sites.CLASSES`.
        learn: Places to learn from.
        score: Places to score on; may be the same.
        map_rows: Features of neighbouring pixels in map order, (N, F), for the speed.
        seed: Of the forests.
        note: Told after each variant.
    """
    sizes: List[Size] = []
    for variant in variants:
        whole = fit_forest(learn.features, learn.labels, task, variant.settings, seed)
        content = _content(whole, variant)
        scores = scores_of(score.labels, _out_of_fold(variant, task, learn, score, seed))
        sizes.append(
            Size(
                variant,
                sum(int(estimator.tree_.node_count) for estimator in whole.model.estimators_),
                len(content),
                len(zlib.compress(content, 9)),
                speed(content, map_rows),
                scores,
            )
        )
        note(f"{variant}: {sizes[-1].zipped_bytes / 1e6:.2f} MB")
    return sizes


def scores_of(labels: NDArray[np.integer[Any]], probabilities: NDArray[np.float64]) -> Dict[str, float]:
    """Return the scores of the table."""
    known = np.asarray(labels, dtype=np.int64)
    scores = {"pr_auc": pr_auc(known, probabilities)} if probabilities.shape[1] == 2 else {}
    loss = -negative_log_loss(known, probabilities)
    return {**scores, "macro_f1": macro_f1(known, probabilities), "log_loss": loss}


def speed(content: bytes, rows: NDArray[np.float32]) -> float:
    """Return rows per second of processor time, one thread, in the engine's portions of 20,000 rows."""
    session = session_of(content)
    repeated = np.concatenate([rows] * max(1, -(-SPEED_ROWS // len(rows))))[:SPEED_ROWS]
    session.run(None, {"features": repeated[:100]})
    started = time.process_time()
    for start in range(0, len(repeated), 20_000):
        session.run(None, {"features": repeated[start : start + 20_000]})
    return len(repeated) / (time.process_time() - started)


def table(sizes: Sequence[Size]) -> str:
    """Return a Markdown table; scores of all but the first row are differences from it."""
    names = list(sizes[0].scores)
    titles = {"pr_auc": "PR-AUC", "macro_f1": "macro F1", "log_loss": "log loss"}
    head = ["forest", "nodes", "MB", "MB zipped", "px per CPU-s", *(titles[name] for name in names)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for number, size in enumerate(sizes):
        values = [
            f"{size.scores[n]:.4f}" if not number else f"{size.scores[n] - sizes[0].scores[n]:+.4f}" for n in names
        ]
        cells = [
            str(size.variant),
            f"{size.nodes:,}",
            f"{size.graph_bytes / 1e6:.2f}",
            f"{size.zipped_bytes / 1e6:.2f}",
            f"{size.px_per_cpu_s:,.0f}",
            *values,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _content(forest: FittedForest, variant: Variant) -> bytes:
    proto = export_forest(forest.model, len(CLASSES[forest.task]), variant.compression)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _out_of_fold(variant: Variant, task: str, learn: Places, score: Places, seed: int) -> NDArray[np.float64]:
    pooled = np.full((len(score.labels), len(CLASSES[task])), np.nan)
    for fold in np.unique(score.folds):
        chosen, held = learn.folds != fold, score.folds == fold
        where = f"fold {fold}"
        forest = fit_forest(learn.features[chosen], learn.labels[chosen], task, variant.settings, seed, where=where)
        (answer,) = session_of(_content(forest, variant)).run(None, {"features": score.features[held]})
        pooled[held] = class_probabilities(answer)
    return pooled
