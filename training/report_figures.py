"""Figures of the report, drawn from scores: one function per figure, one colour per model throughout.

Colours are Okabe and Ito's, which readers with any of the common colour deficiencies tell apart; models differ by
line style or marker as well, so that a grey print is readable. MISO and the Random Forest have the colours that maps
of disagreement give to "MISO only" and "RF only".
"""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, ParamSpec, Sequence, Tuple, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .report_comparison import FOREST, MISO, Assessed, Json, title_of
from .report_curves import HISTOGRAM_BINS, ReliabilityBin, ThresholdRow
from .report_polygons import ByPolygon, PolygonScores
from .scores import Estimate

P = ParamSpec("P")
R = TypeVar("R")

OBSERVED = "#4D4D4D"
GREYED = "#BBBBBB"
MODEL_COLOURS: Mapping[str, str] = {
    MISO: "#E69F00",
    FOREST: "#CC79A7",
    "rf_coordinates": "#56B4E9",
    "logistic": "#009E73",
}
SPARE_COLOURS = ("#0072B2", "#D55E00", "#F0E442", "#000000")
STYLES: Mapping[str, Tuple[str, str]] = {
    MISO: ("-", "o"),
    FOREST: ("--", "s"),
    "rf_coordinates": ("-.", "D"),
    "logistic": (":", "^"),
}
SPARE_STYLES = (((0, (5, 1)), "v"), ((0, (3, 1, 1, 1)), "P"), ((0, (1, 1)), "X"), ((0, (8, 3)), "*"))
# NRCS, Global Soil Regions.
ORDER_COLOURS: Mapping[str, str] = {
    "Andisols": "#FF00C5",
    "Entisols": "#FFAA00",
    "Gelisols": "#6677CD",
    "Histosols": "#895A44",
    "Inceptisols": "#D7D79E",
    "Mollisols": "#267300",
    "Spodosols": "#C29ED7",
}
MEASURES: Mapping[str, str] = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "half/f1/present": "F1 at 0.5",
    "half/recall/present": "recall at 0.5",
    "half/precision/present": "precision at 0.5",
    "half/accuracy": "accuracy at 0.5",
    "equal_recall/precision/present": "precision at equal recall",
    "equal_area/recall/present": "recall at equal area",
    "equal_recall/recall/present": "recall at equal recall",
    "equal_area/precision/present": "precision at equal area",
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "ECE",
    "argmax/precision": "weighted precision",
    "argmax/recall": "weighted recall",
    "argmax/f1": "weighted F1",
    "argmax/macro_f1": "macro F1",
}
WIDTH_IN = 7.4
_RC: Any = {  # matplotlib types its settings by their names
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "miso",  # the same figure gives the same bytes
}


@dataclass(frozen=True)
class Picture:
    """A figure as it goes into the page.

    Attributes:
        data: SVG or PNG bytes.
        kind: ``svg+xml`` or ``png``.
        alt: What it shows, for who cannot see it.
    """

    data: bytes
    kind: str
    alt: str

    @property
    def uri(self) -> str:
        """The figure as a data URI."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode('ascii')}"


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Make a drawing function use the report's style, whatever matplotlib's settings are; they stay as they were."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **keys: P.kwargs) -> R:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **_RC}):
            return draw(*args, **keys)

    return in_style


def canvas(width_in: float, height_in: float, rows: int, columns: int, **keys: Any) -> Tuple[Figure, List[Axes]]:  # noqa: ANN401
    """Return an empty figure in the report's style, with its axes row after row."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **keys)
    return figure, list(axes.ravel())


def picture(figure: Figure, alt: str, kind: str = "svg+xml", dpi: int = 130) -> Picture:
    """Render a figure; an SVG without date, so that it is reproducible."""
    target = io.BytesIO()
    if kind == "png":
        figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    else:
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(target.getvalue(), kind, alt)


def colour_of(model: str, models: Sequence[str]) -> str:
    """Return a model's colour; unknown models take the spare ones in their order among ``models``."""
    if model in MODEL_COLOURS:
        return MODEL_COLOURS[model]
    unknown = [name for name in models if name not in MODEL_COLOURS]
    return SPARE_COLOURS[unknown.index(model) % len(SPARE_COLOURS)]


def style_of(model: str, models: Sequence[str]) -> Tuple[Any, str]:
    """Return a model's line style and marker."""
    if model in STYLES:
        return STYLES[model]
    unknown = [name for name in models if name not in STYLES]
    return SPARE_STYLES[unknown.index(model) % len(SPARE_STYLES)]


def _legend(figure: Figure, models: Sequence[str], observed: bool = False, lines: bool = False) -> None:
    handles: List[object] = [Patch(color=OBSERVED, label="observed")] if observed else []
    for model in models:
        colour, (line, marker) = colour_of(model, models), style_of(model, models)
        handle = (
            Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4, label=title_of(model))
            if lines
            else Patch(color=colour, label=title_of(model))
        )
        handles.append(handle)
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), fontsize=8.5)


def _bars(axes: Axes, x: float, made: Estimate, width: float, colour: str, alpha: float = 1.0) -> None:
    """One bar with its interval; a value that is not defined leaves a dash where the bar would be."""
    if not np.isfinite(made.value):
        axes.text(x, 0, "–", ha="center", va="bottom", color=OBSERVED, fontsize=7)
        return
    axes.bar(x, made.value, width, color=colour, alpha=alpha, linewidth=0)
    if np.isfinite(made.low):
        axes.plot([x, x], [made.low, made.high], color="#222222", linewidth=0.8, solid_capstyle="butt")


# --- scores ---


@styled
def f1_by_class(by_split: Sequence[Assessed]) -> Picture:
    """F1 of each soil order, one panel per split (the paper's Figure 4)."""
    models = list(by_split[0].comparison.members)
    figure, panels = canvas(WIDTH_IN, 0.5 + 1.75 * len(by_split), len(by_split), 1, sharey=True)
    for axes, assessed in zip(panels, by_split):
        classes, names = assessed.comparison.classes, list(assessed.comparison.members)
        width = 0.8 / len(names)
        for i, model in enumerate(names):
            for k, of in enumerate(classes):
                made = assessed.pooled[model][f"argmax/f1/{of}"]
                _bars(axes, k + (i - (len(names) - 1) / 2) * width, made, width * 0.94, colour_of(model, models))
        axes.set_xticks(range(len(classes)), classes)
        axes.set_ylabel("F1")
        axes.set_title(assessed.comparison.split, loc="left")
        axes.set_ylim(0, 1)
        axes.grid(visible=False, axis="x")
    _legend(figure, models)
    return picture(figure, "Bars: F1 of each soil order by model and split, with 95 % intervals.")


@styled
def differences(by_split: Sequence[Assessed], measures: Sequence[str]) -> Picture:
    """Reference minus each other model, with intervals: a panel per split, a row per measure."""
    others = list(dict.fromkeys(model for assessed in by_split for model in assessed.differences))
    models = list(by_split[0].comparison.members)
    height = 0.75 + 0.2 * len(measures) * max(len(others), 1) * 0.75
    figure, panels = canvas(WIDTH_IN, height, 1, len(by_split), sharey=True, sharex=True)
    for axes, assessed in zip(panels, by_split):
        axes.axvline(0, color="#222222", linewidth=0.8)
        for row, name in enumerate(measures):
            for i, other in enumerate(others):
                made = assessed.differences.get(other, {}).get(name)
                if made is None or not np.isfinite(made.value):
                    continue
                y = row + (i - (len(others) - 1) / 2) * 0.7 / max(len(others), 1)
                colour, (_, marker) = colour_of(other, models), style_of(other, models)
                if np.isfinite(made.low):
                    axes.plot([made.low, made.high], [y, y], color=colour, linewidth=1.6)
                filled = colour if made.verdict else "white"
                axes.plot(made.value, y, marker, color=colour, markersize=4.5, markerfacecolor=filled)
        axes.set_title(assessed.comparison.split, loc="left")
        axes.set_xlabel(f"{title_of(assessed.comparison.reference)} minus other")
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(measures)), [MEASURES.get(name, name) for name in measures])
    panels[0].set_ylim(len(measures) - 0.5, -0.5)
    _legend(figure, others, lines=True)
    return picture(figure, "Differences between models with 95 % intervals; a filled mark means that 0 lies outside.")


@styled
def histograms(shares: Mapping[str, Mapping[str, Sequence[Optional[float]]]]) -> Picture:
    """Share of sites in each tenth of probability, a panel per class (the paper's Figure 5).

    Args:
        shares: {title of the panel: {model: ten shares}}.
    """
    models = list(next(iter(shares.values())))
    figure, panels = canvas(WIDTH_IN, 2.5, 1, max(len(shares), 2), sharey=True)
    width = 0.1 * 0.86 / len(models)
    for axes, (title, by_model) in zip(panels, shares.items()):
        centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS
        for i, model in enumerate(models):
            values = [100.0 * (share or 0.0) for share in by_model[model]]
            axes.bar(centres + (i - (len(models) - 1) / 2) * width, values, width, color=colour_of(model, models))
        axes.set_title(title, loc="left")
        axes.set_xlabel("predicted probability")
        axes.set_xlim(0, 1)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("sites (%)")
    for axes in panels[len(shares) :]:
        axes.set_axis_off()
    _legend(figure, models)
    return picture(figure, "Histograms of predicted probabilities, all test folds merged.")


@styled
def rank_curves(curves: Mapping[str, Json], points: Mapping[str, Json], prevalence: float, title: str) -> Picture:
    """Precision-recall and ROC of one class.

    Args:
        curves: {model: from :func:`training.report_curves.rank_curves`}.
        points: {model: {operating point: (recall, precision, false alarm rate)}}.
        prevalence: Share of sites that are so: precision of a guess.
        title: Of the figure.
    """
    models = list(curves)
    figure, (left, right) = canvas(WIDTH_IN, 3.3, 1, 2)
    left.axhline(prevalence, color=GREYED, linewidth=1)
    right.plot([0, 1], [0, 1], color=GREYED, linewidth=1)
    for model, curve in curves.items():
        colour, (line, marker) = colour_of(model, models), style_of(model, models)
        left.plot(curve["recall"], curve["precision"], color=colour, linestyle=line, linewidth=1.5)
        right.plot([0, *curve["false_alarm_rate"]], [0, *curve["recall"]], color=colour, linestyle=line, linewidth=1.5)
        at_half = points[model].get("half")
        if at_half:
            left.plot(at_half[0], at_half[1], marker, color=colour, markeredgecolor="black", markersize=5.5)
            right.plot(at_half[2], at_half[0], marker, color=colour, markeredgecolor="black", markersize=5.5)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    right.set(xlabel="false alarms among absent sites", ylabel="recall", xlim=(0, 1), ylim=(0, 1.01))
    left.set_title(f"{title}: precision and recall", loc="left")
    right.set_title("ROC", loc="left")
    _legend(figure, models, lines=True)
    return picture(figure, f"Precision-recall and ROC curves, {title}; marks are at 0.5.")


@styled
def order_curves(curves: Mapping[str, Mapping[str, Json]], prevalence: Mapping[str, float]) -> Picture:
    """Precision-recall of each order against the rest: {order: {model: curve}}."""
    models = list(next(iter(curves.values())))
    columns = 4
    rows = -(-len(curves) // columns)
    figure, panels = canvas(WIDTH_IN, 0.5 + 1.9 * rows, rows, columns, sharex=True, sharey=True)
    for axes, (order, by_model) in zip(panels, curves.items()):
        for model, curve in by_model.items():
            colour, (line, _) = colour_of(model, models), style_of(model, models)
            axes.plot(curve["recall"], curve["precision"], color=colour, linestyle=line, linewidth=1.3)
        axes.axhline(prevalence.get(order, 0.0), color=GREYED, linewidth=1)
        axes.set_title(order, loc="left")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        if not any(curve["recall"] for curve in by_model.values()):
            axes.text(0.5, 0.5, "no sites", ha="center", color=OBSERVED)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    for axes in panels[max(len(curves) - columns, 0) : len(curves)]:
        axes.tick_params(labelbottom=True)  # of the lowest panel in each column, which need not be in the last row
    figure.supxlabel("recall", fontsize=8.5)
    figure.supylabel("precision", fontsize=8.5)
    _legend(figure, models, lines=True)
    return picture(figure, "Precision-recall curves of each soil order against the rest.")


@styled
def reliability(
    raw: Mapping[str, Sequence[ReliabilityBin]],
    calibrated: Mapping[str, Tuple[str, Sequence[ReliabilityBin]]],
    label: str,
) -> Picture:
    """Reliability diagrams, a panel per model: raw filled, calibrated out of fold hollow.

    Args:
        raw: {model: bins}.
        calibrated: {model: (method, bins)}; models without one are left raw.
        label: What the vertical axis is a share of.
    """
    models = list(raw)
    columns = min(len(models), 4)
    rows = -(-len(models) // columns)
    width = min(WIDTH_IN, 0.6 + 2.3 * columns)
    figure, panels = canvas(width, 0.6 + 2.2 * rows, rows, columns, sharex=True, sharey=True)
    for axes, model in zip(panels, models):
        axes.plot([0, 1], [0, 1], color=GREYED, linewidth=1)
        colour = colour_of(model, models)
        _reliability_line(axes, raw[model], colour, filled=True)
        words = "raw"
        if model in calibrated:
            method, bins = calibrated[model]
            _reliability_line(axes, bins, "#333333", filled=False)
            words = f"raw ●, {method} ○"
        axes.set_title(f"{title_of(model)}\n{words}", loc="left", fontsize=8.5 if columns < 4 else 7.5)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axes in panels[len(models) :]:
        axes.set_axis_off()
    figure.supxlabel("mean predicted probability of the bin", fontsize=8.5)
    figure.supylabel(label, fontsize=8.5)
    return picture(figure, "Reliability diagrams with 95 % intervals, before and after calibration.")


def _reliability_line(axes: Axes, bins: Sequence[ReliabilityBin], colour: str, filled: bool) -> None:
    x, y = [b.mean for b in bins], [b.share.value for b in bins]
    axes.plot(x, y, color=colour, linewidth=0.9, linestyle="-" if filled else ":")
    for b in bins:
        if filled and np.isfinite(b.share.low):
            axes.plot([b.mean, b.mean], [b.share.low, b.share.high], color=colour, linewidth=1.2)
        axes.plot(
            b.mean, b.share.value, "o", color=colour, markersize=4.2, markerfacecolor=colour if filled else "white"
        )


@styled
def thresholds(tables: Mapping[str, Sequence[ThresholdRow]]) -> Picture:
    """What a threshold costs: hits per 100 visits and recall along the threshold, with intervals."""
    models = list(tables)
    figure, panels = canvas(WIDTH_IN, 2.8, 1, 3, sharex=True)
    parts = (("hits", "hits per 100 visits", 1.0), ("recall", "found of what is there (%)", 100.0),
             ("share", "sites called present (%)", 100.0))  # fmt: skip
    for axes, (name, label, factor) in zip(panels, parts):
        for model, rows in tables.items():
            colour, (line, _) = colour_of(model, models), style_of(model, models)
            made = [getattr(row, name) for row in rows]
            x = [row.threshold for row in rows]
            axes.fill_between(
                x,
                [m.low * factor for m in made],
                [m.high * factor for m in made],
                color=colour,
                alpha=0.18,
                linewidth=0,
            )
            axes.plot(x, [m.value * factor for m in made], color=colour, linestyle=line, linewidth=1.5)
        axes.set_title(label, loc="left")
        axes.set(xlim=(0, 1), ylim=(0, 101))
    figure.supxlabel("threshold", fontsize=8.5)
    _legend(figure, models, lines=True)
    return picture(figure, "Hits per 100 visits, recall and predicted share along the threshold.")


# --- polygons ---


def _label(one: PolygonScores, length: int = 34) -> str:
    name = one.name if len(one.name) <= length else one.name[: length - 1] + "…"
    return f"{name}  (n = {one.sites:,.0f})"


@styled
def shares_by_polygon(found: Mapping[str, ByPolygon], models: Sequence[str]) -> Picture:
    """Predicted share of sites with permafrost in each polygon beside the observed one (the paper's Figure 6).

    Args:
        found: {split: polygons}, a panel each.
        models: In the order of bars.
    """
    names = list(dict.fromkeys(one.name for by in found.values() for one in by.polygons))
    lines = len(models) + 1
    figure, panels = canvas(WIDTH_IN, 0.9 + (0.13 * lines + 0.14) * len(names), 1, len(found), sharey=True, sharex=True)
    step = 0.82 / lines
    labels: Dict[str, str] = {}
    for axes, (split, by) in zip(panels, found.items()):
        for one in by.polygons:
            row = names.index(one.name)
            labels[one.name] = _label(one)
            bars = [(OBSERVED, Estimate(one.observed["present"]))]
            bars += [(colour_of(model, models), one.predicted[model]["half"]) for model in models]
            for i, (colour, made) in enumerate(bars):
                _horizontal(axes, row + (i - (lines - 1) / 2) * step, made, step * 0.92, colour, one.small)
        axes.set_title(split, loc="left")
        axes.set_xlabel("sites with permafrost (%)")
        axes.set_xlim(0, 100)
        axes.grid(visible=False, axis="y")
    _rows(panels[0], names, labels, {one.name for by in found.values() for one in by.polygons if one.small})
    _legend(figure, models, observed=True)
    return picture(figure, "Share of sites with permafrost per polygon: observed and predicted at 0.5, by split.")


def _horizontal(axes: Axes, y: float, made: Estimate, height: float, colour: str, greyed: bool) -> None:
    if not np.isfinite(made.value):
        return
    axes.barh(y, 100 * made.value, height, color=colour, alpha=0.3 if greyed else 1.0, linewidth=0)
    if np.isfinite(made.low):
        axes.plot([100 * made.low, 100 * made.high], [y, y], color="#999999" if greyed else "#222222", linewidth=0.8)


def _rows(axes: Axes, names: Sequence[str], labels: Mapping[str, str], small: object) -> None:
    axes.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=7.5)
    for tick, name in zip(axes.get_yticklabels(), names):
        tick.set_color("#999999" if name in small else "black")  # type: ignore[operator]
    axes.set_ylim(len(names) - 0.4, -0.6)


@styled
def accuracy_by_polygon(found: ByPolygon, models: Sequence[str], reference: str) -> Picture:
    """Accuracy of each model in each polygon with intervals, and the difference (the paper's Figure 7)."""
    names = [one.name for one in found.polygons]
    figure, (left, right) = canvas(
        WIDTH_IN,
        0.9 + (0.11 * len(models) + 0.13) * len(names),
        1,
        2,
        sharey=True,
        gridspec_kw={"width_ratios": [3, 2]},
    )
    step = 0.7 / len(models)
    right.axvline(0, color="#222222", linewidth=0.8)
    for row, one in enumerate(found.polygons):
        for i, model in enumerate(models):
            y = row + (i - (len(models) - 1) / 2) * step
            colour = colour_of(model, models)
            _dot(left, one.accuracy[model], y, colour, style_of(model, models)[1], one.small, filled=True)
            if model in one.differences:
                made = one.differences[model]
                _dot(right, made, y, colour, style_of(model, models)[1], one.small, filled=bool(made.verdict))
    left.set_xlabel("accuracy (%)")
    right.set_xlabel(f"{title_of(reference)} minus other (%)")
    for axes in (left, right):
        axes.grid(visible=False, axis="y")
    _rows(left, names, {one.name: _label(one) for one in found.polygons}, {o.name for o in found.polygons if o.small})
    _legend(figure, models, lines=True)
    return picture(figure, "Accuracy of each model in each polygon, and the difference, with 95 % intervals.")


def _dot(axes: Axes, made: Estimate, y: float, colour: str, marker: str, greyed: bool, filled: bool) -> None:
    if not np.isfinite(made.value):
        return
    alpha = 0.35 if greyed else 1.0
    if np.isfinite(made.low):
        axes.plot([100 * made.low, 100 * made.high], [y, y], color=colour, linewidth=1.4, alpha=alpha)
    face = colour if filled else "white"
    axes.plot(100 * made.value, y, marker, color=colour, markersize=4.2, markerfacecolor=face, alpha=alpha)


@styled
def orders_in_polygons(chosen: Sequence[PolygonScores], models: Sequence[str], classes: Sequence[str]) -> Picture:
    """Share of each order within polygons: observed and predicted (the paper's Figure 8)."""
    columns = 2 if len(chosen) > 1 else 1
    rows = -(-len(chosen) // columns)
    figure, panels = canvas(WIDTH_IN, 0.6 + 2.0 * rows, rows, columns)
    width = 0.82 / (len(models) + 1)
    for axes, one in zip(panels, chosen):
        for k, of in enumerate(classes):
            bars = [(OBSERVED, Estimate(100 * one.observed[of]))]
            for model in models:
                made = one.predicted[model][of]
                bars.append((colour_of(model, models), Estimate(100 * made.value, 100 * made.low, 100 * made.high)))
            for i, (colour, made) in enumerate(bars):
                x = k + (i - len(models) / 2) * width
                _bars(axes, x, made, width * 0.94, colour, 0.35 if one.small else 1.0)
        axes.set_xticks(range(len(classes)), [name[:5] + "." for name in classes], fontsize=7.5)
        axes.set_title(_label(one, 40), loc="left", color="#999999" if one.small else "black")
        axes.set_ylabel("sites (%)")
        axes.grid(visible=False, axis="x")
        _swatches(axes, classes)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    _legend(figure, models, observed=True)
    return picture(figure, "Distribution of soil orders within polygons: observed and predicted by each model.")


def _swatches(axes: Axes, classes: Sequence[str]) -> None:
    """Mark each order with its colour on soil maps, under its bars."""
    for k, of in enumerate(classes):
        axes.axvspan(k - 0.42, k + 0.42, ymin=-0.02, ymax=0.0, color=ORDER_COLOURS.get(of, GREYED), clip_on=False)
