"""Which model to prefer here: sentences derived from intervals, never from values alone.

A difference counts only if its 95 % interval excludes 0; otherwise the text says "no difference shown", which is not
"no difference". Where the decision is a matter of costs, the text names the costs instead of a model.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from .report_comparison import Assessed, Json, preferred_method, title_of
from .report_polygons import SMALL, SMALL_CLUSTERS, ByPolygon
from .scores import Estimate

Paragraph = Tuple[str, str]  # what is compared, what to make of it
NO_DIFFERENCE = "no difference shown"
# What speaks for a model whatever its threshold: order of the places, and what it finds at equal cost.
DECISIVE_NSP = ("pr_auc", "roc_auc", "equal_recall/precision/present", "equal_area/recall/present")
DECISIVE_ORDER = ("argmax/f1", "argmax/macro_f1", "pr_auc", "roc_auc")
_NAMES: Mapping[str, str] = {
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "equal_recall/precision/present": "precision at equal recall",
    "equal_area/recall/present": "recall at equal predicted area",
    "argmax/f1": "weighted F1",
    "argmax/macro_f1": "F1 averaged over orders",
}


def signed(made: Estimate, factor: float = 1.0, digits: int = 3) -> str:
    """Write a difference with its interval: ``+0.021 (-0.010 to +0.056)``."""
    low, high = made.low * factor, made.high * factor
    text = f"{made.value * factor:+.{digits}f}"
    return f"{text} ({low:+.{digits}f} to {high:+.{digits}f})" if np.isfinite(low) else text


def verdict(made: Estimate, reference: str, other: str) -> str:
    """Say who is better in one measure where more is better."""
    return {1: f"{reference} better", -1: f"{other} better", 0: NO_DIFFERENCE}[made.verdict]


def conclusion(found: Mapping[str, Estimate], decisive: Sequence[str], reference: str, other: str) -> str:
    """Weigh the decisive measures: a preference only if those that differ all point the same way."""
    signs = {name: found[name].verdict for name in decisive if name in found and np.isfinite(found[name].low)}
    if not signs:
        return f"Nothing can be said: no measure of {reference} and {other} has an interval."
    better = [_NAMES[name] for name, sign in signs.items() if sign > 0]
    worse = [_NAMES[name] for name, sign in signs.items() if sign < 0]
    if better and not worse:
        return f"Prefer {reference}: {_list(better)} {_are(better)} better{_rest(signs)}."
    if worse and not better:
        return f"Prefer {other}: {_list(worse)} {_are(worse)} better{_rest(signs)}."
    if better and worse:
        return f"It depends: {reference} is better in {_list(better)}, {other} in {_list(worse)}."
    return f"No preference: {NO_DIFFERENCE} in {_list([_NAMES[name] for name in signs])}."


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _are(words: Sequence[str]) -> str:
    return "is" if len(words) == 1 else "are"


def _rest(signs: Mapping[str, int]) -> str:
    level = [_NAMES[name] for name, sign in signs.items() if sign == 0]
    return f"; {NO_DIFFERENCE} in {_list(level)}" if level else ""


def on_permafrost(assessed: Assessed) -> List[Paragraph]:
    """Return a paragraph per other model for Task 1."""
    reference = title_of(assessed.comparison.reference)
    texts: List[Paragraph] = []
    for model, found in assessed.differences.items():
        other = title_of(model)
        parts = [conclusion(found, DECISIVE_NSP, reference, other)]
        recall, precision = found["half/recall/present"], found["half/precision/present"]
        parts.append(_operating_point(recall, precision, reference, other))
        if assessed.comparison.split == "random":
            parts.append("Random folds speak of places between surveyed ones, not of ground that nobody has visited.")
        texts.append((f"Split {assessed.comparison.split}, {reference} against {other}", " ".join(filter(None, parts))))
    return texts


def _operating_point(recall: Estimate, precision: Estimate, reference: str, other: str) -> str:
    """Say what the threshold of 0.5 does, which is a choice of threshold and no merit of a model."""
    if not (np.isfinite(recall.low) and np.isfinite(precision.low)):
        return ""
    if recall.verdict == 0 and precision.verdict == 0:
        return f"At 0.5, {NO_DIFFERENCE} in recall or precision."
    more = {1: reference, -1: other}
    parts = []
    if recall.verdict:
        points = signed(_towards(recall), 100, 1)
        parts.append(f"{more[recall.verdict]} finds more of what is there: recall {points} points")
    if precision.verdict:
        points = signed(_towards(precision), 100, 1)
        parts.append(f"{more[precision.verdict]} has fewer false alarms: precision {points} points")
    text = f"At 0.5, {'; '.join(parts)}"
    if recall.verdict * precision.verdict < 0:
        finder = more[recall.verdict]
        return (
            f"{text}. Take {finder} as it stands where missing permafrost costs more than a visit in vain, or move the "
            "other model's threshold, which the rows at equal recall compare."
        )
    return text + "."


def _towards(made: Estimate) -> Estimate:
    """Turn a difference so that it is that of the better model."""
    return made if made.verdict > 0 else Estimate(-made.value, -made.high, -made.low)


def on_orders(assessed: Assessed) -> List[Paragraph]:
    """Return a paragraph per other model for Task 2."""
    reference = title_of(assessed.comparison.reference)
    texts: List[Paragraph] = []
    for model, found in assessed.differences.items():
        other = title_of(model)
        by_order = {of: found[f"argmax/f1/{of}"] for of in assessed.comparison.classes}
        better = [of for of, made in by_order.items() if made.verdict > 0]
        worse = [of for of, made in by_order.items() if made.verdict < 0]
        parts = [conclusion(found, DECISIVE_ORDER, reference, other)]
        if better:
            parts.append(f"By order, {reference} is better in F1 for {_list(better)}.")
        if worse:
            parts.append(f"{other} is better in F1 for {_list(worse)}.")
        level = [of for of, made in by_order.items() if made.verdict == 0 and np.isfinite(made.low)]
        if level:
            parts.append(f"For {_list(level)}: {NO_DIFFERENCE}.")
        unknown = [of for of, made in by_order.items() if not np.isfinite(made.low)]
        if unknown:
            parts.append(f"Too few sites to tell for {_list(unknown)}.")
        texts.append((f"Split {assessed.comparison.split}, {reference} against {other}", " ".join(filter(None, parts))))
    return texts


def on_probabilities(assessed: Assessed) -> List[Paragraph]:
    """Say whose probabilities are nearer to what happened, and whether calibration helps out of fold."""
    reference = title_of(assessed.comparison.reference)
    texts: List[Paragraph] = []
    for model, found in assessed.differences.items():
        other = title_of(model)
        parts = []
        for name, words in (("brier", "Brier score"), ("log_loss", "log loss")):
            made = found[name]
            # Less is better here.
            nearer = verdict(Estimate(-made.value, -made.high, -made.low), reference, other)
            parts.append(f"{words} {signed(made)}: {nearer}")
        texts.append((f"Raw probabilities, {reference} against {other}", f"Less is better: {'; '.join(parts)}."))
    for model, methods in assessed.calibrated.items():
        texts.append((f"Calibration of {title_of(model)}", _calibration_text(methods)))
    return texts


def _calibration_text(methods: Mapping[str, Json]) -> str:
    method = preferred_method(methods)
    if not method:
        tried = ", ".join(
            f"{name} {signed(found['change']['log_loss'])}"
            for name, found in methods.items()
            if np.isfinite(found["change"]["log_loss"].value)
        )
        why = f"no method lowers the log loss out of fold ({tried or 'not defined'})"
        return f"Keep the raw probabilities; {why}."
    change = methods[method]["change"]["log_loss"]
    sure = "" if change.verdict < 0 else f", but the interval holds 0: {NO_DIFFERENCE}"
    return f"{method.capitalize()} changes the log loss out of fold by {signed(change)}{sure}."


def on_polygons(found: ByPolygon, reference_model: str, models: Sequence[str]) -> List[Paragraph]:
    """Say where the reference is better, worse, or not told apart, in accuracy; small polygons are left out."""
    reference = title_of(reference_model)
    large = [one for one in found.polygons if not one.small]
    texts: List[Paragraph] = []
    for model in models:
        if model == reference_model:
            continue
        groups: Dict[int, List[str]] = {1: [], 0: [], -1: []}
        for one in large:
            if model in one.differences:
                groups[one.differences[model].verdict].append(one.name)
        parts = [
            f"{words} in {_list(groups[sign])}."
            for sign, words in (
                (1, f"{reference} is better"),
                (-1, f"{title_of(model)} is better"),
                (0, NO_DIFFERENCE.capitalize()),
            )
            if groups[sign]
        ]
        if len(large) > 1 and (groups[1] or groups[-1]):
            parts.append("One polygon in twenty shows a difference by chance alone.")
        small = len(found.polygons) - len(large)
        if small:
            parts.append(f"Not judged: {small} with fewer than {SMALL} sites or {SMALL_CLUSTERS} clusters.")
        if parts:
            texts.append((f"Accuracy, {reference} against {title_of(model)}", " ".join(parts)))
    return texts


def on_maps() -> str:
    """Say what maps cannot say."""
    return (
        "Two maps cannot say which of them is right: there is no truth in this section. Where they disagree is where a "
        "visit teaches most; the sections above say what to expect of each model's calls."
    )
