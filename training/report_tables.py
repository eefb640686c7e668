"""Tables of the report: cells with their intervals, written as HTML and as CSV from one description.

The tables that the paper has keep its form: percent, mean over folds. All others are on a scale of 0 to 1, pooled over
folds, with 95 % intervals. A cell that is not defined holds a dash, and a footnote says why.
"""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from . import scores
from .report_advice import NO_DIFFERENCE, signed
from .report_comparison import Assessed, Json, preferred_method, title_of
from .report_curves import ThresholdRow
from .report_figures import MEASURES
from .report_polygons import HIDDEN, SMALL, SMALL_CLUSTERS, ByPolygon
from .scores import Estimate, FoldMean

DASH = "–"
POINT_TITLES: Mapping[str, str] = {
    scores.HALF_POINT: "at 0.5",
    scores.EQUAL_RECALL: "at equal recall",
    scores.EQUAL_AREA: "at equal predicted area",
}
TASK1_COLUMNS = (
    ("P0", "precision/absent"),
    ("R0", "recall/absent"),
    ("P1", "precision/present"),
    ("R1", "recall/present"),
    ("Acc", "accuracy"),
)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What stands in it.
        below: Interval or spread, in smaller type.
        reason: Why it is not defined; becomes a footnote.
        small: Whether it is greyed, because few sites are behind it.
    """

    text: str
    below: str = ""
    reason: str = ""
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: Stem of its CSV file.
        title: Heading.
        caption: What the reader must know to read it.
        header: Column names.
        rows: Cells, as many per row as there are columns.
        labels: How many columns, from the left, are labels and not figures.
    """

    name: str
    title: str
    caption: str
    header: Tuple[str, ...]
    rows: Tuple[Tuple[Cell, ...], ...]
    labels: int = 2
    notes: Tuple[str, ...] = field(default=())

    def to_html(self) -> str:
        """Write the table with its footnotes."""
        reasons: Dict[str, str] = {}
        body = "\n".join(
            "<tr>" + "".join(self._cell(cell, i, reasons) for i, cell in enumerate(row)) + "</tr>" for row in self.rows
        )
        head = "".join(
            f'<th scope="col"{"" if i >= self.labels else " class=label"}>{html.escape(name)}</th>'
            for i, name in enumerate(self.header)
        )
        notes = [f"<sup>{mark}</sup> {html.escape(why)}" for why, mark in reasons.items()]
        notes += [html.escape(note) for note in self.notes]
        foot = f'<p class="notes">{"<br>".join(notes)}</p>' if notes else ""
        caption = f"<b>{html.escape(self.title)}.</b> {html.escape(self.caption)}"
        name = "table-" + "".join(c if c.isalnum() else "-" for c in self.name)
        return (
            f'<div class="table"><p class="caption" id="{name}">{caption}</p><div class="wide">'
            f'<table aria-labelledby="{name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            f"{foot}</div>"
        )

    def _cell(self, cell: Cell, column: int, reasons: Dict[str, str]) -> str:
        mark = ""
        if cell.reason:
            mark = f"<sup>{reasons.setdefault(cell.reason, _mark(len(reasons)))}</sup>"
        below = f"<small>{html.escape(cell.below)}</small>" if cell.below else ""
        kind = " ".join(word for word in ("label" if column < self.labels else "", "few" if cell.small else "") if word)
        attribute = f' class="{kind}"' if kind else ""
        return f"<td{attribute}>{html.escape(cell.text)}{mark}{below}</td>"

    def to_csv(self) -> str:
        """Write the table as CSV; what stands below a figure gets a column of its own, a dash is an empty field."""
        double = [any(row[i].below for row in self.rows) for i in range(len(self.header))]
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        header: List[str] = []
        for name, two in zip(self.header, double):
            header += [name, f"{name} (interval or sd)"] if two else [name]
        writer.writerow([*header, "not defined because"])
        for row in self.rows:
            values: List[str] = []
            for cell, two in zip(row, double):
                text = "" if cell.text == DASH else cell.text
                values += [text, cell.below] if two else [text]
            writer.writerow([*values, "; ".join(dict.fromkeys(cell.reason for cell in row if cell.reason))])
        return target.getvalue()


def _mark(index: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[index] if index < len(letters) else letters[index // 26 - 1] + letters[index % 26]


# --- cells ---


def percent(mean: FoldMean) -> Cell:
    """Write a mean over folds as the paper does, with its standard deviation over folds."""
    if not np.isfinite(mean.value):
        return Cell(DASH, reason=mean.reason or "not defined in any fold")
    spread = f"± {100 * mean.spread:.1f}" if np.isfinite(mean.spread) else ""
    left_out = f"{mean.defined} of {mean.folds} folds ({mean.reason})" if mean.defined < mean.folds else ""
    return Cell(f"{100 * mean.value:.2f}", spread, left_out)


def value(made: Estimate, factor: float = 1.0, digits: int = 3, small: bool = False) -> Cell:
    """Write an estimate with its interval."""
    if not np.isfinite(made.value):
        return Cell(DASH, reason=made.reason or "not defined", small=small)
    below = ""
    if np.isfinite(made.low):
        below = f"{made.low * factor:.{digits}f} to {made.high * factor:.{digits}f}"
    return Cell(f"{made.value * factor:.{digits}f}", below, "" if below else made.reason, small)


def _difference(made: Estimate, less_is_better: bool = False) -> Cell:
    if not np.isfinite(made.value):
        return Cell(DASH, reason=made.reason or "not defined")
    sign = -made.verdict if less_is_better else made.verdict
    word = {1: "better", -1: "worse", 0: NO_DIFFERENCE}[sign]
    return Cell(signed(made).split(" ")[0], f"{made.low:+.3f} to {made.high:+.3f}, {word}", "")


# --- tables ---


def sites_table(by_split: Sequence[Assessed]) -> Table:
    """Count sites per class, folds and clusters: what every other figure rests on."""
    classes = by_split[0].comparison.classes
    rows: List[Tuple[Cell, ...]] = []
    for assessed in by_split:
        comparison = assessed.comparison
        for seed, oof in comparison.members[comparison.reference].items():
            counts = np.bincount(oof.label, minlength=len(classes))
            sizes = [int((oof.fold == fold).sum()) for fold in np.unique(oof.fold)]
            rows.append(
                (
                    Cell(comparison.split),
                    Cell(str(seed)),
                    Cell(f"{oof.label.size:,}"),
                    *(Cell(f"{count:,}", f"{100 * count / max(oof.label.size, 1):.1f} %") for count in counts),
                    Cell(str(len(sizes)), f"{min(sizes, default=0):,} to {max(sizes, default=0):,}"),
                    Cell(f"{np.unique(oof.cluster).size:,}"),
                )
            )
    header = ("split", "seed", "sites", *classes, "folds", "clusters")
    name = f"sites_{by_split[0].comparison.task}"
    return Table(name, "Sites", _SITES, header, tuple(rows))


_SITES = (
    "Labelled sites of each class, folds (below: sites in the smallest and largest), and clusters that are resampled."
)


def task1_table(by_split: Sequence[Assessed], point: str) -> Table:
    """The paper's Table 1 at one operating point."""
    rows = [
        (
            Cell(a.comparison.split),
            Cell(title_of(model)),
            *(percent(a.folds[model][f"{point}/{measure}"]) for _, measure in TASK1_COLUMNS),
        )
        for a in by_split
        for model in a.comparison.members
    ]
    caption = (
        "Precision and recall of absence (0) and presence (1), accuracy; percent, mean over folds (± sd over folds)."
    )
    if point != scores.HALF_POINT:
        caption += f" Thresholds reach, on the other folds, what {_reference(by_split)} has at 0.5: {_aim(point)}."
    header = ("split", "model", *(title for title, _ in TASK1_COLUMNS))
    return Table(f"table1_{point}", f"Table 1, {POINT_TITLES[point]}", caption, header, tuple(rows))


def _aim(point: str) -> str:
    return "its recall" if point == scores.EQUAL_RECALL else "its share of sites called present"


def _reference(by_split: Sequence[Assessed]) -> str:
    return title_of(by_split[0].comparison.reference)


def task2_table(by_split: Sequence[Assessed]) -> Table:
    """The paper's Table 2."""
    names = (("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"), ("macro F1", "macro_f1"))
    rows = [
        (Cell(a.comparison.split), Cell(title_of(model)), *(percent(a.folds[model][f"argmax/{m}"]) for _, m in names))
        for a in by_split
        for model in a.comparison.members
    ]
    notes = tuple(
        dict.fromkeys(f"{a.comparison.split}: {n}" for a in by_split for n in a.notes if "never predicted" in n)
    )
    caption = (
        "Soil order by the most probable class: weighted by the number of sites of each order, and F1 averaged over "
        "the orders; percent, mean over folds (± sd over folds)."
    )
    header = ("split", "model", *(title for title, _ in names))
    return Table("table2", "Table 2", caption, header, tuple(rows), notes=notes)


POOLED_NSP = ("roc_auc", "pr_auc", "half/f1/present", "half/precision/present", "half/recall/present")
MATCHED_NSP = (
    "equal_recall/precision/present",
    "equal_recall/recall/present",
    "equal_area/precision/present",
    "equal_area/recall/present",
)
POOLED_ORDER = ("argmax/f1", "argmax/precision", "argmax/recall", "argmax/macro_f1", "roc_auc", "pr_auc")
PROPER = ("brier", "log_loss", "ece")
_SHORT: Mapping[str, str] = {
    **MEASURES,
    "half/f1/present": "F1",
    "half/precision/present": "P",
    "half/recall/present": "R",
    "equal_recall/precision/present": "P at equal recall",
    "equal_recall/recall/present": "R at equal recall",
    "equal_area/precision/present": "P at equal area",
    "equal_area/recall/present": "R at equal area",
    "argmax/f1": "F1",
    "argmax/precision": "P",
    "argmax/recall": "R",
    "brier": "Brier",
}


def pooled_tables(by_split: Sequence[Assessed]) -> List[Table]:
    """Scores of all folds' sites together, with intervals from resampling clusters; two tables of a binary task."""
    task = by_split[0].comparison.task
    caption = (
        f"All folds together, mean over seeds; below, 95 % interval from resampling clusters of sites "
        f"({_draws(by_split)} draws)."
    )
    if len(by_split[0].comparison.classes) != 2:
        caption += " ROC-AUC and PR-AUC: each order against the rest, averaged over orders."
        return [_pooled(by_split, POOLED_ORDER, f"pooled_{task}", "Scores with intervals", caption)]
    matched = (
        "All folds together: the presences found and the share of calls that are right, at thresholds which reach, on "
        f"the other folds, what {_reference(by_split)} has at 0.5."
    )
    return [
        _pooled(by_split, POOLED_NSP, f"pooled_{task}", "Scores with intervals, at 0.5", caption),
        _pooled(by_split, MATCHED_NSP, f"matched_{task}", "Scores with intervals, at matched thresholds", matched),
    ]


def _pooled(by_split: Sequence[Assessed], names: Sequence[str], name: str, title: str, caption: str) -> Table:
    rows = [
        (Cell(a.comparison.split), Cell(title_of(model)), *(value(a.pooled[model][measure]) for measure in names))
        for a in by_split
        for model in a.comparison.members
    ]
    return Table(name, title, caption, ("split", "model", *(_SHORT[measure] for measure in names)), tuple(rows))


def _draws(by_split: Sequence[Assessed]) -> str:
    return f"{by_split[0].draws.times.shape[1]:,}"


def differences_tables(by_split: Sequence[Assessed]) -> List[Table]:
    """Reference minus each other model, from paired draws: one table per split where models are paired."""
    binary = len(by_split[0].comparison.classes) == 2
    names = (*(POOLED_NSP + MATCHED_NSP if binary else POOLED_ORDER), *PROPER)
    reference = _reference(by_split)
    tables: List[Table] = []
    for a in by_split:
        if not a.differences:
            continue
        rows = [
            (Cell(MEASURES[name]), *(_difference(row[name], name in PROPER) for row in a.differences.values()))
            for name in names
        ]
        caption = (
            f"Split {a.comparison.split}: {reference} minus the other model, the same draws for both. Better and worse "
            f"are said of {reference}, and only where the 95 % interval excludes 0."
        )
        header = ("measure", *(f"against {title_of(model)}" for model in a.differences))
        name = f"differences_{a.comparison.task}_{a.comparison.split}"
        tables.append(Table(name, "Differences", caption, header, tuple(rows), 1))
    return tables


def order_table(assessed: Assessed) -> Table:
    """Each order against the rest: F1, areas, and what is found at equal recall and equal area."""
    columns = (
        ("F1", "argmax/f1/{}"), ("P", "argmax/precision/{}"), ("R", "argmax/recall/{}"), ("ROC-AUC", "roc_auc/{}"),
        ("PR-AUC", "pr_auc/{}"), ("P eq. recall", "equal_recall/precision/{}"),
        ("R eq. recall", "equal_recall/recall/{}"), ("R eq. area", "equal_area/recall/{}"),
    )  # fmt: skip
    rows = [
        (Cell(of), Cell(title_of(model)), *(value(assessed.pooled[model][name.format(of)]) for _, name in columns))
        for of in assessed.comparison.classes
        for model in assessed.comparison.members
    ]
    caption = (
        f"Split {assessed.comparison.split}. F1, P, R by the most probable order; areas and the last three columns "
        "by the order's own probability, cut where the other folds reach what the reference reaches."
    )
    return Table("orders", "By order", caption, ("order", "model", *(title for title, _ in columns)), tuple(rows))


def threshold_rows(tables: Mapping[str, Sequence[ThresholdRow]], split: str, every: int = 2) -> Table:
    """What thresholds cost in the field; every second one, the CSV has the same."""
    rows = [
        (
            Cell(title_of(model)),
            Cell(f"{row.threshold:.2f}"),
            value(row.precision),
            value(row.recall),
            value(row.f1),
            value(row.hits, digits=0),
            value(row.false_alarms, digits=0),
            value(row.share, 100.0, 1),
        )
        for model, found in tables.items()
        for row in found[every - 1 :: every]
    ]
    caption = (
        f"Split {split}. Of 100 visits to sites called present at the threshold: hits, and visits in vain. Recall is "
        "the share of the permafrost sites that is called; the rest is overlooked."
    )
    header = ("model", "threshold", "precision", "recall", "F1", "hits / 100", "false alarms / 100", "called, %")
    return Table("thresholds", "What a threshold costs", caption, header, tuple(rows))


def calibration_table(by_split: Sequence[Assessed]) -> Table:
    """Calibration error before and after, out of fold."""
    task = by_split[0].comparison.task
    rows: List[Tuple[Cell, ...]] = []
    for a in by_split:
        for model, methods in a.calibrated.items():
            head = (Cell(a.comparison.split), Cell(title_of(model)))
            rows.append((*head, Cell("raw"), *(value(a.pooled[model][name]) for name in PROPER), Cell("")))
            chosen = preferred_method(methods)
            for method, found in methods.items():
                words = method + (" (chosen)" if method == chosen else "")
                cells = tuple(value(found["nested"][name]) for name in PROPER)
                rows.append(
                    (*head, Cell(words), *cells, Cell(_parameters(found["final"]), reason="; ".join(found["reasons"])))
                )
    caption = (
        "Each fold is calibrated by what was fitted on the other folds; the parameters are those of the fit on all "
        "folds. A method is chosen if it lowers the log loss."
    )
    header = ("split", "model", "method", *(_SHORT[name] for name in PROPER), "fitted on all folds")
    return Table(f"calibration_{task}", "Calibration", caption, header, tuple(rows), labels=3)


def _parameters(final: Json) -> str:
    if final["method"] == "temperature":
        return f"T = {final['temperature']:.3f}"
    if final["method"] == "beta" and len(final["coefficients"]) == 1:
        a, b, c = final["coefficients"][0]
        return f"a = {a:.2f}, b = {b:.2f}, c = {c:+.2f}"
    if final["method"] == "isotonic" and len(final["knots"]) == 1:
        return f"{len(final['knots'][0][0])} knots"
    return str(final.get("reason", "one per order"))


# --- polygons ---


_GREYED = f"Polygons with fewer than {SMALL} sites or {SMALL_CLUSTERS} clusters are greyed."


def polygon_table(found: ByPolygon, assessed: Assessed) -> Table:
    """Sites, shares, accuracy and difference of each polygon and model."""
    binary = len(assessed.comparison.classes) == 2
    rows: List[Tuple[Cell, ...]] = []
    for one in found.polygons:
        for model in assessed.comparison.members:
            small = one.small
            cells = [Cell(one.name, small=small), Cell(title_of(model), small=small)]
            cells += [Cell(f"{one.sites:,.0f}", small=small), Cell(str(one.clusters), small=small)]
            if binary:
                cells.append(Cell(f"{100 * one.observed['present']:.1f}", small=small))
                cells.append(value(one.predicted[model]["half"], 100, 1, small))
            cells.append(value(one.accuracy[model], 100, 1, small))
            made = one.differences.get(model)
            cells.append(value(made, 100, 1, small) if made is not None else Cell("", small=small))
            rows.append(tuple(cells))
    header = ["polygon", "model", "sites", "clusters"]
    header += ["observed, %", "predicted, %"] if binary else []
    header += ["accuracy, %", f"{_reference([assessed])} minus it"]
    notes = (
        f"{found.outside:,.0f} sites lie in no polygon.",
        *((f"{found.overlapping} sites lie in polygons of two names; the first counts.",) if found.overlapping else ()),
    )
    caption = f"Split {assessed.comparison.split}; below, 95 % intervals. {_GREYED}"
    name = f"polygons_{assessed.comparison.task}_{found.layer}"
    return Table(name, f"By polygon of {found.layer}", caption, tuple(header), tuple(rows), 2, notes)


def table3(found: ByPolygon, assessed: Assessed) -> Table:
    """The paper's Table 3: share of each order's sites called right, within polygons."""
    classes = assessed.comparison.classes
    shown = [of for of in classes if any(of in one.by_class[assessed.comparison.reference] for one in found.polygons)]
    rows: List[Tuple[Cell, ...]] = []
    for one in found.polygons:
        if not one.by_class[assessed.comparison.reference]:
            continue
        for model in assessed.comparison.members:
            cells = [Cell(one.name, small=one.small), Cell(title_of(model), small=one.small)]
            for of in shown:
                made = one.by_class[model].get(of)
                cells.append(value(made, 100, 1, one.small) if made else Cell("", small=True))
            rows.append(tuple(cells))
    caption = (
        f"Split {assessed.comparison.split}. Percent of the sites of each order that are called so. Orders with "
        f"fewer than {HIDDEN} sites in a polygon are hidden. {_GREYED}"
    )
    return Table(f"table3_{found.layer}", "Table 3", caption, ("polygon", "model", *shown), tuple(rows))
