"""The model card of any run: what it was trained on, how good it is, where it must not be used. Markdown.

Written from a report's numbers (:mod:`training.report`) and what is known about the data. The bundled watershed model
has a card of its own (:mod:`training.card`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .dataset import Dataset
from .outoffold import OutOfFold
from .report_comparison import TASK_TITLES, is_simulated, main_split, title_of
from .sites import Sites

Json = Dict[str, Any]

METHOD = (
    "Method: Lin, Chen et al., Fine-Scale Soil Mapping in Alaska with Multimodal Machine Learning, arXiv:2506.17302."
)
NOT_RECORDED = "not recorded"
SIMULATED = (
    "**SIMULATED. Trained and scored on invented data; it says nothing about any real place. Not for decisions.**"
)
LIMITS = (
    "Near-surface permafrost means frozen ground within 1 m as the field record defines it; deeper permafrost "
    "counts as absent.",
    "Satellite imagery lags thaw: where permafrost has gone, the surface may look as before for years, and the "
    "model follows the surface.",
    "Observations lie where people went, along roads, rivers and airstrips. Scores are scores at such places; away "
    "from them look at the split with the largest gap between training and test, and at the area of applicability.",
    "Probabilities are those of a model, not frequencies of the land, unless the calibration above says so.",
)


@dataclass(frozen=True)
class About:
    """What is known about a run besides its scores.

    Attributes:
        title: Of the data.
        simulated: Whether the data is invented.
        licence: Of the data.
        citation: Of the data.
        period: First and last year of the observations, if known.
        undated: Observations without a date.
        area: Where the sites lie, in words.
        channels: {group: names of its channels}.
        models: {model: settings that its predictions tell}.
    """

    title: str = ""
    simulated: bool = False
    licence: str = NOT_RECORDED
    citation: str = NOT_RECORDED
    period: Optional[Tuple[int, int]] = None
    undated: int = 0
    area: str = NOT_RECORDED
    channels: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    models: Tuple[Tuple[str, str], ...] = ()


def about(
    predictions: Sequence[OutOfFold], dataset: Optional[Dataset], simulated: bool, sites: Optional[Sites] = None
) -> About:
    """Gather what predictions, dataset and sites say of themselves.

    The facts of predictions may hold ``dataset`` (``name``, ``title``, ``licence``, ``citation``, ``simulated``) and
    ``period`` (first and last year); a dataset's own description takes precedence.
    """
    told: Json = {}
    period: Optional[Tuple[int, int]] = None
    for oof in predictions:
        entry = oof.facts.get("dataset")
        told = {**(entry if isinstance(entry, dict) else {}), **told}
        period = period or _years(oof.facts.get("period"))
    undated = 0
    if sites is not None:
        known = sites.date[~np.isnat(sites.date)]
        undated = int(sites.date.size - known.size)
        years = known.astype("datetime64[Y]").astype(int) + 1970
        period = (int(years.min()), int(years.max())) if years.size else period
    channels: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    if dataset is not None:
        told = {**told, "title": dataset.title, "licence": dataset.licence, "citation": dataset.citation}
        channels = tuple((group.name, tuple(channel.name for channel in group.channels)) for group in dataset.groups)
    return About(
        title=str(told.get("title") or told.get("name") or ""),
        simulated=simulated or any(is_simulated(oof) for oof in predictions),
        licence=str(told.get("licence") or NOT_RECORDED),
        citation=str(told.get("citation") or NOT_RECORDED),
        period=period,
        undated=undated,
        area=_area(predictions),
        channels=channels,
    )


def _years(value: object) -> Optional[Tuple[int, int]]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        try:
            return int(str(value[0])[:4]), int(str(value[1])[:4])
        except ValueError:
            return None
    return None


def _area(predictions: Sequence[OutOfFold]) -> str:
    x = np.concatenate([oof.x for oof in predictions])
    y = np.concatenate([oof.y for oof in predictions])
    if not x.size:
        return NOT_RECORDED
    west, east, south, north = (int(round(v, -2)) for v in (x.min(), x.max(), y.min(), y.max()))
    size = f"{(x.max() - x.min()) / 1000:,.0f} x {(y.max() - y.min()) / 1000:,.0f} km"
    return f"sites within {size}: EPSG:3338, x {west:,} to {east:,}, y {south:,} to {north:,} m"


def write(facts: About, data: Json) -> str:
    """Write the card.

    Args:
        facts: About the data.
        data: A report's numbers.
    """
    tasks = list(dict.fromkeys(one["task"] for one in data["comparisons"]))
    lines = [f"# {facts.title or 'Soil models'}", ""]
    lines += [SIMULATED, ""] if facts.simulated else []
    lines += [f"Predicts {' and '.join(TASK_TITLES.get(task, task) for task in tasks)} from rasters of the area.", ""]
    lines += ["## How good it is", ""]
    comparison = data["manifest"]["scores"].get("comparison")
    lines += [comparison, ""] if comparison else []
    for task in tasks:
        lines += _scores([one for one in data["comparisons"] if one["task"] == task])
    lines += ["## Calibration", "", *_calibration(data), ""]
    lines += ["## Where it must not be used", "", *[f"- {limit}" for limit in limits(facts)], ""]
    lines += ["## What it was trained on", "", *_data(facts, data), ""]
    lines += ["## Licence and citation", "", f"- Data: {facts.licence}.", f"- Cite: {_sentence(facts.citation)}"]
    lines += [f"- {METHOD}", ""]
    return "\n".join(lines)


def limits(facts: About) -> List[str]:
    """Return the limits that follow from the kind of data, for card and manifest."""
    if facts.simulated:
        return ["Simulated: no use on any real place.", *LIMITS[3:]]
    if facts.period is None:
        dates = "The dates of the observations are not recorded: permafrost may have thawed since."
    else:
        first, last = facts.period
        dates = (
            f"Labels are from {first} to {last}. There is no time in the model: what was frozen then may have thawed "
            "since, and one place seen at different times may have different labels."
        )
    if facts.undated:
        dates += f" {facts.undated:,} observations have no date."
    return [dates, *LIMITS]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _scores(by_split: Sequence[Json]) -> List[str]:
    binary = len(by_split[0]["classes"]) == 2
    task = by_split[0]["task"]
    shown: Tuple[Tuple[str, str], ...] = (
        (("ROC-AUC", "roc_auc"), ("PR-AUC", "pr_auc"), ("P1", "half/precision/present"), ("R1", "half/recall/present"),
         ("accuracy", "half/accuracy"), ("P1 at equal recall", "equal_recall/precision/present"))
        if binary
        else (("F1", "argmax/f1"), ("precision", "argmax/precision"), ("recall", "argmax/recall"),
              ("macro F1", "argmax/macro_f1"))
    )  # fmt: skip
    heading = TASK_TITLES.get(task, task)
    lines = [f"### {heading[0].upper()}{heading[1:]}", ""]
    lines += ["Out of fold, all folds together; in brackets, 95 % intervals from resampling clusters of sites.", ""]
    lines.append("| split | model | " + " | ".join(title for title, _ in shown) + " |")
    lines.append("|---" * (len(shown) + 2) + "|")
    for one in by_split:
        for model, row in one["pooled"].items():
            cells = " | ".join(_cell(row[name]) for _, name in shown)
            lines.append(f"| {one['split']} | {title_of(model)} | {cells} |")
    return [*lines, "", *_verdicts(by_split, shown), ""]


def _cell(made: Mapping[str, Any]) -> str:
    if made["value"] is None:
        return f"– ({made.get('reason', 'not defined')})"
    if made["low"] is None:
        return f"{made['value']:.3f}"
    return f"{made['value']:.3f} ({made['low']:.3f} to {made['high']:.3f})"


def _verdicts(by_split: Sequence[Json], shown: Sequence[Tuple[str, str]]) -> List[str]:
    lines: List[str] = []
    for one in by_split:
        for model, row in one["differences"].items():
            words = [f"{title} {_word(row[name])}" for title, name in shown if row[name]["value"] is not None]
            if words:
                pair = f"{title_of(one['reference'])} against {title_of(model)}"
                lines.append(f"- {one['split']}, {pair}: {', '.join(words)}.")
    if lines:
        lines.insert(0, "")
        lines.insert(0, "A difference counts only if its interval excludes 0; otherwise none is shown:")
    return lines


def _word(made: Mapping[str, Any]) -> str:
    if made["low"] is None:
        return "not known"
    word = "above" if made["low"] > 0 else "below" if made["high"] < 0 else "no difference shown"
    return f"{word} ({made['value']:+.3f})"


def _calibration(data: Json) -> List[str]:
    lines: List[str] = []
    for task, entry in data["manifest"]["tasks"].items():
        splits = [one["split"] for one in data["comparisons"] if one["task"] == task]
        split = main_split(splits)
        for model, by_split in entry["calibration"].items():
            found = by_split.get(split)
            if not found:
                continue
            name = f"{TASK_TITLES.get(task, task)}, {title_of(model)}, fitted on {split}"
            if found["method"] == "none":
                lines.append(f"- {name}: probabilities are raw; {found['reason']}.")
                continue
            loss, error = found["scores"]["log_loss"], found["scores"]["ece"]
            lines.append(
                f"- {name}: {found['method']}; out of fold the log loss goes from {loss['before']:.3f} to "
                f"{loss['after']:.3f}, the calibration error from {error['before']:.3f} to {error['after']:.3f}."
            )
    return lines or ["Not measured."]


def _data(facts: About, data: Json) -> List[str]:
    period = f"{facts.period[0]} to {facts.period[1]}" if facts.period else NOT_RECORDED
    lines = [f"- Data: {facts.title or NOT_RECORDED}.", f"- Period of the observations: {period}."]
    lines.append(f"- Area: {facts.area}.")
    for one in data["comparisons"]:
        some = one["sites"][one["reference"]][0]
        per_class = ", ".join(f"{count:,} {name}" for name, count in some["per_class"].items())
        lines.append(
            f"- {TASK_TITLES.get(one['task'], one['task'])}, split {one['split']}: {some['sites']:,} sites "
            f"({per_class}) in {len(some['folds'])} folds, {one['clusters']:,} clusters; seeds "
            f"{', '.join(str(seed) for seed in one['seeds'][one['reference']])}."
        )
    for group, names in facts.channels:
        lines.append(f"- Channels, {group}: {', '.join(names)}.")
    return lines
