"""The report: from out-of-fold predictions to one HTML page with every table and figure, JSON, CSV and a model card.

``python -m training evaluate RUN...`` ends here. Owns what is in the report and in which order; the numbers come from
:mod:`training.report_comparison` and its neighbours, the sentences from :mod:`training.report_advice`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from miso_qgis.engine.errors import InputError

from . import (
    model_card,
    outoffold,
    report_advice,
    report_curves,
    report_figures,
    report_tables,
    report_watershed,
    scores,
)
from .dataset import read_dataset
from .metrics import BOOTSTRAP_SEED, DRAWS
from .outoffold import OutOfFold
from .report_comparison import (
    TASK_TITLES,
    Assessed,
    assess,
    assessed_json,
    compare,
    main_split,
    preferred_method,
    title_of,
)
from .report_curves import rank_curves, reliability, threshold_table
from .report_manifest import score_entries, task_entries
from .report_page import Section, write_page
from .report_polygons import ByPolygon, by_polygon_json, read_polygons, score_polygons
from .report_tables import Table

Json = Dict[str, Any]
Note = Callable[[str], None]

PAGE, DATA, CARD, TABLES = "report.html", "report.json", "MODEL_CARD.md", "tables"
FORM = 1
SHOWN_POLYGONS = 6
DISTRIBUTION_ORDERS = ("Gelisols",)


@dataclass(frozen=True)
class Request:
    """What a report is made of.

    Attributes:
        runs: Run folders (or folders of predictions).
        polygons: (file, field of names) of each polygon layer.
        maps: Folder with rasters of both models.
        dataset: ``dataset.json`` of the training area, for the card.
        recall: Recall of the equal-recall thresholds; default: the reference's at 0.5.
        draws: Bootstrap draws.
        seed: Of the draws.
        places: Places of the watershed's protocol predictions: ``points`` or ``map``.
    """

    runs: Tuple[Path, ...]
    polygons: Tuple[Tuple[str, Optional[str]], ...] = ()
    maps: Optional[Path] = None
    dataset: Optional[Path] = None
    recall: Optional[float] = None
    draws: int = DRAWS
    seed: int = BOOTSTRAP_SEED
    places: str = report_watershed.POINTS


@dataclass
class Report:
    """A report before it is written.

    Attributes:
        page: The HTML page.
        data: Every number of it, JSON values.
        card: Model card, Markdown.
        tables: Its tables.
    """

    page: str
    data: Json
    card: str
    tables: List[Table] = field(default_factory=list)


def load_predictions(runs: Sequence[Path], places: str = report_watershed.POINTS) -> List[OutOfFold]:
    """Read the predictions of all runs: run folders, folders of predictions, or the watershed's protocol predictions.

    Raises:
        InputError: If a folder holds none.
    """
    found: List[OutOfFold] = []
    for run in runs:
        nested = Path(run) / outoffold.FOLDER
        if sorted(Path(run).glob("*__*__*__*.npz")):
            found += [outoffold.load(path) for path in sorted(Path(run).glob("*__*__*__*.npz"))]
        elif not sorted(nested.glob("*__*__*__*.npz")) and report_watershed.protocol_files(run):
            found += report_watershed.load_protocol(run, places)
        elif not sorted(nested.glob("*__*__*__*.npz")) and report_watershed.protocol_files(nested):
            found += report_watershed.load_protocol(nested, places)
        else:
            found += outoffold.load_run(run)
    return found


def make(request: Request, note: Note = lambda text: None) -> Report:
    """Make the report.

    Raises:
        InputError: If runs, polygons, maps or dataset cannot be used.
    """
    layers = [read_polygons(path, name) for path, name in request.polygons]
    dataset = read_dataset(request.dataset) if request.dataset is not None else None
    if request.recall is not None and not 0 < request.recall < 1:
        raise InputError("Recall", f"is {request.recall:g}.", "A number between 0 and 1 is needed.", "Use 0.8, say.")
    predictions = load_predictions(request.runs, request.places)
    assessed: List[Assessed] = []
    for comparison in compare(predictions):
        note(f"scoring {TASK_TITLES.get(comparison.task, comparison.task)}, {comparison.split}")
        assessed.append(assess(comparison, request.recall, request.draws, request.seed))
    simulated = any(a.comparison.simulated for a in assessed) or bool(dataset and dataset.simulated)
    data = _data(request, assessed, simulated)
    sections = [_basis(request, assessed)]
    counter = Letters()
    for task in dict.fromkeys(a.comparison.task for a in assessed):
        of_task = [a for a in assessed if a.comparison.task == task]
        note(f"drawing {TASK_TITLES.get(task, task)}")
        sections += _task_sections(of_task, layers, counter, data)
    if request.maps is not None:
        note("drawing maps")
        sections.append(_maps(request.maps, data))
        simulated = simulated or data["maps_simulated"]
    sections.append(_methods(request))
    about = model_card.about(predictions, dataset, simulated)
    title = f"Evaluation: {about.title}" if about.title else "Evaluation of soil models"
    data["simulated"] = simulated
    page = write_page(title, _lead(assessed), sections, simulated, _footer(request))
    tables = [table for section in sections for table in section.tables]
    return Report(page, data, model_card.write(about, data), tables)


def write(report: Report, folder: Path) -> List[Path]:
    """Write page, JSON, card and CSV files; each is whole or not there, the page comes last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / ".tables.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for table in report.tables:
        (part / f"{_file_name(table.name)}.csv").write_text(table.to_csv(), encoding="utf-8")
    (part / "scores.csv").write_text(scores_csv(report.data), encoding="utf-8")
    if (folder / TABLES).is_dir():
        # Tables of an earlier report with other splits or polygons would look as if they belonged to this one.
        for old in (folder / TABLES).glob("*.csv"):
            old.unlink()
    (folder / TABLES).mkdir(exist_ok=True)
    for path in sorted(part.iterdir()):
        os.replace(path, folder / TABLES / path.name)
    part.rmdir()
    texts = {
        CARD: report.card,
        DATA: json.dumps(report.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        PAGE: report.page,
    }
    for name, text in texts.items():
        unfinished = folder / f".{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, folder / name)
    return [folder / name for name in (PAGE, DATA, CARD, TABLES)]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def scores_csv(data: Json) -> str:
    """Write every score in one long table: a line per task, split, model and measure."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(
        ("task", "split", "model", "measure", "pooled", "low", "high", "fold_mean", "fold_sd", "folds", "of", "reason")
    )
    for one in data["comparisons"]:
        for model, row in one["pooled"].items():
            for name, made in row.items():
                mean = one["folds"][model].get(name, {})
                values = (made["value"], made["low"], made["high"], mean.get("value"), mean.get("sd"))
                texts = ["" if v is None else f"{v:.6g}" for v in values]
                why = made.get("reason", "") or mean.get("reason", "")
                counts = (mean.get("defined", ""), mean.get("of", ""))
                writer.writerow((one["task"], one["split"], model, name, *texts, *counts, why))
    return target.getvalue()


class Letters:
    """Labels of figures that the paper does not have: Figure A, Figure B..."""

    def __init__(self) -> None:
        self._used = 0

    def next(self) -> str:
        """Return the next label."""
        self._used += 1
        first, second = divmod(self._used - 1, 26)
        return f"Figure {chr(64 + first) if first else ''}{chr(65 + second)}"


def _data(request: Request, assessed: Sequence[Assessed], simulated: bool) -> Json:
    tasks = list(dict.fromkeys(a.comparison.task for a in assessed))
    return {
        "form": FORM,
        "simulated": simulated,
        "runs": [str(Path(run).name) for run in request.runs],
        "comparisons": [assessed_json(a) for a in assessed],
        "curves": {},
        "reliability": {},
        "thresholds": {},
        "histograms": {},
        "polygons": [],
        "maps": [],
        "maps_simulated": False,
        "manifest": {
            "tasks": {task: task_entries(assessed, task) for task in tasks},
            "scores": score_entries(assessed),
        },
    }


def _lead(assessed: Sequence[Assessed]) -> str:
    models = list(dict.fromkeys(title_of(m) for a in assessed for m in a.comparison.members))
    tasks = list(dict.fromkeys(TASK_TITLES.get(a.comparison.task, a.comparison.task) for a in assessed))
    splits = list(dict.fromkeys(a.comparison.split for a in assessed))
    return (
        f"{' and '.join(tasks).capitalize()}: {', '.join(models)}, compared on out-of-fold predictions of the splits "
        f"{', '.join(splits)}. Each site is predicted by a model that saw no site of its fold."
    )


def _footer(request: Request) -> str:
    runs = " ".join(Path(run).name for run in request.runs)
    return (
        f"Made by: python -m training evaluate {runs}. {request.draws:,} draws, seed {request.seed}. Every number is "
        f"in {DATA}, every table in {TABLES}/."
    )


# --- sections ---


def _basis(request: Request, assessed: Sequence[Assessed]) -> Section:
    section = Section("basis", "What this rests on")
    for task in dict.fromkeys(a.comparison.task for a in assessed):
        section.table(report_tables.sites_table([a for a in assessed if a.comparison.task == task]))
    where: Dict[Tuple[str, str], List[str]] = {}
    for a in assessed:
        for text in a.notes:
            where.setdefault((a.comparison.task, text), []).append(a.comparison.split)
    section.bullets(
        [f"{TASK_TITLES.get(task, task)} ({', '.join(splits)}): {text}" for (task, text), splits in where.items()]
    )
    return section


def _task_sections(of_task: Sequence[Assessed], layers: Sequence[Any], counter: Letters, data: Json) -> List[Section]:
    binary = len(of_task[0].comparison.classes) == 2
    main = _main(of_task)
    sections = [_scores(of_task, counter), _distribution(main, data), _rank(main, counter, data)]
    sections += [_probabilities(of_task, main, counter, data)]
    if binary:
        sections.append(_thresholds(main, counter, data))
    for layer in layers:
        found = {a.comparison.split: score_polygons(a, layer) for a in of_task}
        for split, by in found.items():
            data["polygons"].append({"task": main.comparison.task, "split": split, **by_polygon_json(by)})
        sections.append(_polygons(found, main, counter))
    return sections


def _main(of_task: Sequence[Assessed]) -> Assessed:
    split = main_split([a.comparison.split for a in of_task])
    return next(a for a in of_task if a.comparison.split == split)


def _anchor(assessed: Assessed, part: str) -> str:
    return f"{assessed.comparison.task}-{part}"


def _scores(of_task: Sequence[Assessed], counter: Letters) -> Section:
    task = of_task[0].comparison.task
    binary = len(of_task[0].comparison.classes) == 2
    number = "Task 1" if binary else "Task 2"
    section = Section(_anchor(of_task[0], "scores"), f"{number}: {TASK_TITLES.get(task, task)}")
    if binary:
        points = (scores.HALF_POINT, *scores.MATCHED)
        section.table(*[report_tables.task1_table(of_task, point) for point in points])
        advice = [text for a in of_task for text in report_advice.on_permafrost(a)]
        measures: Tuple[str, ...] = (*report_advice.DECISIVE_NSP, *_AT_HALF)
    else:
        section.table(report_tables.task2_table(of_task))
        section.figure("Figure 4", "F1 of each soil order, with 95 % intervals.", report_figures.f1_by_class(of_task))
        advice = [text for a in of_task for text in report_advice.on_orders(a)]
        measures = report_tables.POOLED_ORDER
    section.table(*report_tables.pooled_tables(of_task))
    differences = report_tables.differences_tables(of_task)
    if differences:
        section.table(*differences)
        caption = (
            "Differences with 95 % intervals from paired draws of clusters; a filled mark has 0 outside its interval."
        )
        section.figure(counter.next(), caption, report_figures.differences(of_task, measures))
    if not binary:
        section.table(report_tables.order_table(_main(of_task)))
    section.prefer(advice)
    return section


_AT_HALF = ("half/f1/present", "half/recall/present", "half/precision/present", "half/accuracy")


def _oofs(assessed: Assessed) -> Dict[str, List[OutOfFold]]:
    return {model: [one.oof for one in ones] for model, ones in assessed.judged.items()}


def _distribution(main: Assessed, data: Json) -> Section:
    """The paper's Figure 5."""
    section = Section(_anchor(main, "distribution"), "How probabilities spread", 3)
    classes = main.comparison.classes
    chosen = [1] if len(classes) == 2 else _distribution_orders(main)
    shares = {
        _class_title(main, k): {m: report_curves.histogram(oofs, k) for m, oofs in _oofs(main).items()} for k in chosen
    }
    data["histograms"][main.comparison.task] = {"split": main.comparison.split, "shares": shares}
    caption = f"Share of sites by predicted probability, all test folds of {main.comparison.split} merged."
    section.figure("Figure 5", caption, report_figures.histograms(shares))
    section.text(
        "A sharper model puts more sites near 0 and 1. That is a merit only where it is right: the section on "
        "probabilities says whether it is."
    )
    return section


def _class_title(assessed: Assessed, k: int) -> str:
    classes = assessed.comparison.classes
    return "Permafrost within 1 m" if len(classes) == 2 else classes[k]


def _distribution_orders(main: Assessed) -> List[int]:
    """Gelisols, as in the paper, and the order with the most sites besides."""
    classes = main.comparison.classes
    some = main.comparison.members[main.comparison.reference]
    counts = sum((np.bincount(oof.label, minlength=len(classes)) for oof in some.values()), np.zeros(len(classes)))
    first = [classes.index(name) for name in DISTRIBUTION_ORDERS if name in classes]
    rest = [int(k) for k in np.argsort(-counts, kind="stable") if int(k) not in first]
    return (first + rest)[:2]


def _rank(main: Assessed, counter: Letters, data: Json) -> Section:
    section = Section(_anchor(main, "curves"), "Precision, recall and ROC curves", 3)
    classes, split = main.comparison.classes, main.comparison.split
    curves = {
        classes[k]: {m: rank_curves(oofs, k) for m, oofs in _oofs(main).items()} for k in scores.positives(classes)
    }
    data["curves"][main.comparison.task] = {"split": split, "classes": curves}
    counts = _prevalence(main)
    if len(classes) == 2:
        caption = (
            f"Split {split}, folds and seeds pooled. Marks: threshold 0.5. Grey: a guess. "
            + "; ".join(_areas(main, model) for model in main.comparison.members)
            + "."
        )
        drawn = report_figures.rank_curves(curves["present"], _points(main), counts["present"], "permafrost")
        section.figure(counter.next(), caption, drawn)
    else:
        caption = f"Split {split}: each order against the rest, folds and seeds pooled. Grey: a guess."
        section.figure(counter.next(), caption, report_figures.order_curves(curves, counts))
    return section


def _areas(main: Assessed, model: str) -> str:
    row = main.pooled[model]
    return f"{title_of(model)}: " + ", ".join(
        f"{name} {row[key].value:.3f} ({row[key].low:.3f} to {row[key].high:.3f})"
        for name, key in (("PR-AUC", "pr_auc"), ("ROC-AUC", "roc_auc"))
    )


def _prevalence(main: Assessed) -> Dict[str, float]:
    some = np.concatenate([oof.label for oof in main.comparison.members[main.comparison.reference].values()])
    counts = np.bincount(some, minlength=len(main.comparison.classes)) / max(some.size, 1)
    return dict(zip(main.comparison.classes, counts.tolist()))


def _points(main: Assessed) -> Dict[str, Json]:
    """Recall, precision and false alarm rate at 0.5 of each model."""
    result: Dict[str, Json] = {}
    for model, row in main.pooled.items():
        recall, precision = row["half/recall/present"].value, row["half/precision/present"].value
        alarms = 1.0 - row["half/recall/absent"].value
        known = all(np.isfinite(value) for value in (recall, precision, alarms))
        result[model] = {"half": (recall, precision, alarms)} if known else {}
    return result


def _probabilities(of_task: Sequence[Assessed], main: Assessed, counter: Letters, data: Json) -> Section:
    section = Section(_anchor(main, "calibration"), "Can the probabilities be taken at their word", 3)
    raw = {model: reliability(oofs, main.draws) for model, oofs in _oofs(main).items()}
    after: Dict[str, Tuple[str, List[report_curves.ReliabilityBin]]] = {}
    for model, methods in main.calibrated.items():
        method = preferred_method(methods)
        if method:
            after[model] = (method, reliability(methods[method]["predictions"], main.draws))
    data["reliability"][main.comparison.task] = {
        "split": main.comparison.split,
        "raw": {model: report_curves.reliability_json(bins) for model, bins in raw.items()},
        "calibrated": {
            model: {"method": method, "bins": report_curves.reliability_json(bins)}
            for model, (method, bins) in after.items()
        },
    }
    binary = len(main.comparison.classes) == 2
    label = "sites with permafrost" if binary else "most probable order right"
    caption = (
        f"Split {main.comparison.split}: bins of equal numbers of sites, 95 % intervals. On the line, a probability "
        "of 0.7 means 70 sites of 100. "
        f"{'' if binary else 'Horizontal: probability of the most probable order. '}Hollow: calibrated out of fold, "
        "where that lowers the log loss."
    )
    section.figure(counter.next(), caption, report_figures.reliability(raw, after, label))
    section.table(report_tables.calibration_table(of_task))
    section.prefer(report_advice.on_probabilities(main))
    return section


def _thresholds(main: Assessed, counter: Letters, data: Json) -> Section:
    section = Section(_anchor(main, "thresholds"), "What a threshold costs", 3)
    tables = {model: threshold_table(oofs, main.draws, 1) for model, oofs in _oofs(main).items()}
    data["thresholds"][main.comparison.task] = {
        "split": main.comparison.split,
        "models": {model: report_curves.threshold_json(rows) for model, rows in tables.items()},
    }
    caption = (
        f"Split {main.comparison.split}, raw probabilities, with 95 % intervals. Where nothing is called there is no "
        "line."
    )
    section.figure(counter.next(), caption, report_figures.thresholds(tables))
    section.table(report_tables.threshold_rows(tables, main.comparison.split))
    return section


def _polygons(found: Mapping[str, ByPolygon], main: Assessed, counter: Letters) -> Section:
    comparison = main.comparison
    by = found[comparison.split]
    section = Section(_anchor(main, f"polygons-{_file_name(by.layer)}"), f"By polygon: {by.layer}", 3)
    models = list(comparison.members)
    if not by.polygons:
        section.text("No site lies in any of these polygons.")
        return section
    binary = len(comparison.classes) == 2
    if binary:
        caption = (
            "Share of sites with permafrost: observed, and predicted at 0.5 with 95 % intervals. Sites are not a "
            "sample of the land: compare the bars with each other, not with the area under permafrost."
        )
        section.figure("Figure 6", caption, report_figures.shares_by_polygon(found, models))
    caption = (
        f"Accuracy per polygon, split {comparison.split}, and its difference; filled where the interval excludes 0."
    )
    drawn = report_figures.accuracy_by_polygon(by, models, comparison.reference)
    section.figure("Figure 7" if not binary else counter.next(), caption, drawn)
    section.table(report_tables.polygon_table(by, main))
    if not binary:
        section.table(report_tables.table3(by, main))
        largest = sorted(by.polygons, key=lambda one: -one.sites)[:SHOWN_POLYGONS]
        caption = (
            "Orders within the polygons with the most sites: observed, and by the most probable order "
            f"({comparison.split})."
        )
        section.figure("Figure 8", caption, report_figures.orders_in_polygons(largest, models, comparison.classes))
    section.prefer(report_advice.on_polygons(by, comparison.reference, models))
    return section


def _maps(folder: Path, data: Json) -> Section:
    from . import report_maps  # onnxruntime comes with the engine's prediction, which only maps need

    section = Section("maps", "Maps of a tile")
    maps = report_maps.read_maps(folder)
    data["maps"] = report_maps.maps_json(maps)
    data["maps_simulated"] = any(one.simulated for one in maps)
    for one in maps:
        label = "Figure 9" if one.classes == ("present",) else "Figure 10"
        for caption, drawn in report_maps.draw(one):
            section.figure(label, caption, drawn)
    section.prefer([("", report_advice.on_maps())])
    return section


def _methods(request: Request) -> Section:
    section = Section("methods", "How to read this")
    recall = "the recall that the reference has at 0.5" if request.recall is None else f"a recall of {request.recall:g}"
    section.bullets(
        [
            "Mean over folds: each fold scored by itself, then averaged, as the paper does. A fold in which a "
            "measure is not defined is left out and named.",
            "Scores with intervals: the sites of all folds together; clusters of sites are drawn with replacement, "
            "because neighbours are no independent evidence. Differences use the same draws for both models.",
            "No difference shown: the interval of the difference holds 0. The models may still differ; these sites "
            "do not show it.",
            f"At equal recall: thresholds at which each model reaches {recall}. At equal predicted area: thresholds "
            "at which it calls as large a share of the sites as the reference does at 0.5. The threshold of a fold "
            "is chosen on the other folds.",
            "The reference is MISO where it takes part. Part of a higher recall at 0.5 is the choice of 0.5; what "
            "is left at equal recall is the model.",
            "PR-AUC is average precision; ECE is the expected calibration error in 15 bins of equal width; Brier "
            "score and log loss are smaller when better (log loss with probabilities cut at 1e-6).",
            "The interval of the ECE lies higher than its value where the value is small: resampling adds scatter "
            "within bins, which the ECE counts as error.",
            "Sites lie where people went: no share or score here is one of the land.",
        ]
    )
    return section
