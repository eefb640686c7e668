"""What a model folder's manifest takes from scored predictions: thresholds, curves, calibration, scores.

The entries are those of :class:`miso_qgis.engine.manifest.TaskSpec` (``thresholds``, ``curves``, ``calibration``) and
``Manifest.scores``. Everything is out of fold except the parameters of a calibration, which are fitted on all folds.
"""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np

from . import scores
from .report_comparison import (
    FOREST,
    MISO,
    Assessed,
    estimate_json,
    main_split,
    manifest_calibration,
    title_of,
)
from .report_curves import manifest_curve

Json = Dict[str, Any]
SHIPPED = (MISO, FOREST)
_SCORES = (
    "roc_auc", "pr_auc", "half/f1/present", "half/precision/present", "half/recall/present",
    "equal_recall/precision/present", "argmax/f1", "argmax/precision", "argmax/recall", "argmax/macro_f1",
    "brier", "log_loss", "ece",
)  # fmt: skip


def task_entries(assessed: Sequence[Assessed], task: str) -> Json:
    """Return a task's ``thresholds``, ``curves`` and ``calibration``.

    Curves and thresholds are those of a binary task; orders are decided by the most probable one. The equal-recall
    threshold of a model is the largest at which it finds, over all folds of the main split, the share of the presences
    that the reference finds at 0.5.
    """
    of_task = {a.comparison.split: a for a in assessed if a.comparison.task == task}
    entries: Json = {"thresholds": {}, "curves": {}, "calibration": manifest_calibration(list(of_task.values()), task)}
    if not of_task or len(next(iter(of_task.values())).comparison.classes) != 2:
        return entries
    main = of_task[main_split(list(of_task))]
    for model in main.judged:
        if model in SHIPPED:
            found = _equal_recall(main, model)
            entries["thresholds"][model] = {"equal_recall": found} if np.isfinite(found) else {}
            entries["curves"][model] = {
                split: manifest_curve([one.oof for one in a.judged[model]], a.draws, 1)
                for split, a in of_task.items()
                if model in a.judged
            }
    return entries


def _equal_recall(assessed: Assessed, model: str) -> float:
    reference = assessed.judged[assessed.comparison.reference]
    target = float(np.mean([scores.targets_of(one.oof).recall[1] for one in reference]))
    present = np.concatenate([one.oof.probability[one.oof.label == 1, 1] for one in assessed.judged[model]])
    if not present.size or not target > 0:
        return float("nan")
    return round(float(np.sort(present)[::-1][max(int(np.ceil(target * present.size - 1e-12)), 1) - 1]), 4)


def score_entries(assessed: Sequence[Assessed]) -> Json:
    """Return ``Manifest.scores``: estimates and differences by task and split, and a sentence for the interface."""
    result: Json = {"pooled": {}, "reference_minus_other": {}}
    for a in assessed:
        task, split = a.comparison.task, a.comparison.split
        kept = {m: {k: estimate_json(v) for k, v in row.items() if k in _SCORES} for m, row in a.pooled.items()}
        result["pooled"].setdefault(task, {})[split] = kept
        result["reference_minus_other"].setdefault(task, {})[split] = {
            m: {k: estimate_json(v) for k, v in row.items() if k in _SCORES} for m, row in a.differences.items()
        }
    sentence = comparison_sentence(assessed)
    return {**result, "comparison": sentence} if sentence else result


def comparison_sentence(assessed: Sequence[Assessed]) -> str:
    """Say in one sentence how MISO compares with the Random Forest, split by split; empty if they were not compared."""
    parts: List[str] = []
    for a in assessed:
        if a.comparison.reference != MISO or FOREST not in a.differences or len(a.comparison.classes) != 2:
            continue
        made = a.differences[FOREST]["pr_auc"]
        if np.isfinite(made.low):
            word = {1: "above", 0: "level", -1: "below"}[made.verdict]
            values = " against ".join(f"{a.pooled[model]['pr_auc'].value:.3f}" for model in (MISO, FOREST))
            parts.append(f"{word} on {a.comparison.split} (PR-AUC {values})")
    return f"In validation, {title_of(MISO)} against the {title_of(FOREST)}: {', '.join(parts)}." if parts else ""
