"""Plumbing on real labels: soil order and NSP of Alaska's pedons from climate on 10 arc-minutes, beside no skill.

Makes a dataset of the soil series descriptions (our own parser) and the southeast Alaska pedons with the 19 bioclimatic
rasters of WorldClim 1.4 as two groups, temperature and precipitation; cross-validates Random Forest and a tiny MISO on
three splits with one seed; prints Tables 1 and 2 as Markdown with cluster-bootstrap intervals. The row *no skill* gives
every site the class shares of its training folds, so it always says the commonest class; *two regions* does so for the
panhandle and the rest by themselves: what knowing one meridian is worth. Finished stages are kept: a second run only
prints. Needs the data beside the checkout (or in MISO_DATA); nothing of it goes into the project.

    OMP_NUM_THREADS=1 nice -n 10 .venv/training/bin/python benchmarks/pedons.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec  # noqa: E402
from miso_qgis.engine.messages import RasterSource  # noqa: E402
from training import cli, outoffold, scores  # noqa: E402
from training.dataset import FORMAT, Dataset, ObservationFile, read_dataset, write_dataset  # noqa: E402
from training.metrics import INTERVAL  # noqa: E402
from training.outoffold import OutOfFold  # noqa: E402

FloatArray = NDArray[np.float64]

RUN = ROOT / "runs" / "pedons"
SPLITS = ("random", "SH-10km", "kNNDM")
TASKS = ("nsp", "soil_order")
NO_SKILL, REGIONS, RF, RF_CLIMATE, MISO = "no skill", "two regions", "RF", "RF, climate alone", "MISO"
PLAIN = (NO_SKILL, REGIONS)
PANHANDLE_WEST = -141.0  # the meridian on which the border with Canada runs north
WORLDCLIM_M = 18_500.0  # 10 arc-minutes of latitude
# Alaska east of 180 degrees, where the rasters end, on whole cells of 5 km: about a quarter of a climate cell.
BOUNDS, CELL_M = (-1_800_000.0, 350_000.0, 1_550_000.0, 2_400_000.0), 5_000.0
DEGREES, SHARE = "0.1 degC", "%"
TEMPERATURE = {
    1: ("Annual mean temperature", DEGREES, (-600.0, 400.0)),
    2: ("Mean diurnal range", DEGREES, (0.0, 400.0)),
    3: ("Isothermality", SHARE, (0.0, 100.0)),
    4: ("Temperature seasonality (standard deviation x 100)", DEGREES, (0.0, 30_000.0)),
    5: ("Highest temperature of the warmest month", DEGREES, (-600.0, 500.0)),
    6: ("Lowest temperature of the coldest month", DEGREES, (-700.0, 400.0)),
    7: ("Annual temperature range", DEGREES, (0.0, 1_000.0)),
    8: ("Mean temperature of the wettest quarter", DEGREES, (-600.0, 400.0)),
    9: ("Mean temperature of the driest quarter", DEGREES, (-600.0, 400.0)),
    10: ("Mean temperature of the warmest quarter", DEGREES, (-600.0, 400.0)),
    11: ("Mean temperature of the coldest quarter", DEGREES, (-600.0, 400.0)),
}
PRECIPITATION = {
    12: ("Annual precipitation", "mm", (0.0, 12_000.0)),
    13: ("Precipitation of the wettest month", "mm", (0.0, 3_000.0)),
    14: ("Precipitation of the driest month", "mm", (0.0, 3_000.0)),
    15: ("Precipitation seasonality (coefficient of variation)", SHARE, (0.0, 300.0)),
    16: ("Precipitation of the wettest quarter", "mm", (0.0, 6_000.0)),
    17: ("Precipitation of the driest quarter", "mm", (0.0, 6_000.0)),
    18: ("Precipitation of the warmest quarter", "mm", (0.0, 6_000.0)),
    19: ("Precipitation of the coldest quarter", "mm", (0.0, 6_000.0)),
}
GROUPS = {"temperature": TEMPERATURE, "precipitation": PRECIPITATION}
# The smallest network that has every part: two encoders of two stages, windows of 160 km. Chosen before any score was
# seen, by the time that it takes.
RECIPE: Dict[str, Any] = {
    "size": {
        "window_px": 32,
        "resolution_m": CELL_M,
        "cell_px": 1,
        "patch_px": 2,
        "channels": 16,
        "depths": [1, 1],
        "head_channels": 8,
        "attention_window": 4,
        "expansion": 2,
        "position_hidden": 16,
        "implicit_widths": [16, 32],
        "embedding": 32,
    },
    "pretrain": {"steps": 150, "batch": 8},
    "fit": {"steps": 150, "batch": 8},
    "optimiser": {"average_decay": 0.97},
    "stride_px": 16,
    "decode_px": 24,
}


def data_folder() -> Path:
    """Folder with the data beside the checkout, or named by ``MISO_DATA`` (itself or one of its subfolders)."""
    named = os.environ.get("MISO_DATA")
    parents = [Path(named), Path(named).parent] if named else [ROOT.parent / "shared" / "data"]
    for parent in parents:
        if all((parent / name).is_dir() for name in ("osd_alaska", "npctr_seak", "worldclim14_10m_alaska")):
            return parent
    sys.exit("osd_alaska, npctr_seak and worldclim14_10m_alaska are not beside the checkout; name them with MISO_DATA.")


def describe(data: Path, folder: Path) -> Dataset:
    """Write observations and ``dataset.json`` into ``folder``; rasters and the second table stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        step("osd", data / "osd_alaska" / "osd_alaska_txt.tar.gz", "--out", folder / "osd.csv")
    variables = {f"bio_{n}": facts for group in GROUPS.values() for n, facts in group.items()}

    def beside(path: Path) -> str:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()

    dataset = Dataset(
        format=FORMAT,
        name="pedons",
        title="Pedons of Alaska with climate on 10 arc-minutes (a test of the pipeline)",
        simulated=False,
        licence="WorldClim 1.4: CC BY-SA 4.0, for experiments, not to be shipped; series descriptions: public domain "
        "(USDA); southeast Alaska pedons: CC0",
        citation="Soil Survey Staff, NRCS, USDA, Official Soil Series Descriptions; McNicol et al. 2019, "
        "doi:10.1088/1748-9326/aaed52; Hijmans et al. 2005, doi:10.1002/joc.1276",
        bounds=BOUNDS,
        inputs={
            name: InputSpec("continuous", title, unit, legal, WORLDCLIM_M)
            for name, (title, unit, legal) in variables.items()
        },
        sources={
            name: RasterSource(beside(data / "worldclim14_10m_alaska" / f"wc1.4_10m_{name}.tif")) for name in variables
        },
        groups=tuple(
            GroupSpec(name, tuple(ChannelSpec(f"bio_{n}", f"bio_{n}", unit=unit) for n, (_, unit, _) in group.items()))
            for name, group in GROUPS.items()
        ),
        observations=(
            ObservationFile("osd.csv"),
            # The column "order" is the source's own cleaned order, "ORDER" the taxonomic name as it was printed.
            ObservationFile(
                beside(data / "npctr_seak" / "npctr_seak_pedons.csv"), columns={"id": "ID", "soil_order": "order"}
            ),
        ),
        tasks=TASKS,
        resolution_m=CELL_M,
    )
    write_dataset(dataset, folder)
    return read_dataset(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what steps say to standard error, so that standard output is the Markdown."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def step(*arguments: object) -> None:
    """Run a step of ``python -m training``."""
    status = cli.main([str(argument) for argument in arguments])
    if status:
        sys.exit(status)


def train(folder: Path, run: Path, splits: Sequence[str], fit_steps: int) -> None:
    """Cross-validate both models on all splits; what is there already is kept."""
    recipe = folder / "recipe.json"
    settings = {**RECIPE, "fit": {**RECIPE["fit"], "steps": fit_steps}}
    recipe.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    with quiet():
        for split in splits:
            step("cross-validate", "--dataset", folder, "--run", run, "--recipe", recipe, "--split", split,
                 "--device", "cpu", "--no-tensorboard")  # fmt: skip
        forest = ("random-forest", "--dataset", folder, "--buffer", 0, "--split", *splits)
        step(*forest, "--run", run)
        step(*forest, "--run", run / "climate-alone", "--no-coordinates")


def shares(oof: OutOfFold, region: NDArray[np.int64]) -> OutOfFold:
    """Give each site the shares of the classes among the labelled sites of its region outside its fold.

    Shares of several regions are drawn towards those of all (one site's weight), so that none is 0.
    """
    probability = np.empty_like(oof.probability)
    for fold in np.unique(oof.fold):
        learn = oof.fold != fold
        everywhere = np.bincount(oof.label[learn], minlength=len(oof.classes)) / learn.sum()
        for number in np.unique(region):
            counts = np.bincount(oof.label[learn & (region == number)], minlength=len(oof.classes)) + everywhere
            probability[(oof.fold == fold) & (region == number)] = counts / counts.sum()
    return replace(oof, model="none", probability=probability, facts={})


def degrees(oof: OutOfFold) -> FloatArray:
    """Longitude and latitude of the sites, (N, 2)."""
    return np.column_stack(transform("EPSG:3338", "EPSG:4326", oof.x.tolist(), oof.y.tolist()))


def predictions(run: Path, task: str, split: str) -> Dict[str, OutOfFold]:
    """Out-of-fold predictions of each row of the tables, all of the same sites and folds."""
    found = {
        name: outoffold.load(place / outoffold.FOLDER / f"{model}__{task}__{split}__1.npz")
        for name, model, place in (
            (RF, "rf", run),
            (RF_CLIMATE, "rf", run / "climate-alone"),
            (MISO, "miso", run),
        )
    }
    first = found[RF]
    for name, oof in found.items():
        same = all(np.array_equal(getattr(oof, part), getattr(first, part)) for part in ("id", "label", "fold"))
        if not same:
            sys.exit(f"{name} and {RF} were not judged on the same sites and folds of {split}.")
    panhandle = (degrees(first)[:, 0] > PANHANDLE_WEST).astype(np.int64)
    return {NO_SKILL: shares(first, np.zeros_like(panhandle)), REGIONS: shares(first, panhandle), **found}


Row = Dict[str, Tuple[float, float, float]]


def score(oofs: Dict[str, OutOfFold]) -> Dict[str, Row]:
    """Value and interval of every measure of each row, and what it gains (``<measure> beyond <plain row>``).

    The gain of log loss and Brier score is what they lose, so that above 0 is better everywhere. Areas under curves are
    not given for shares of training folds: such shares are low where the fold's own is high, so pooled over folds they
    rank below chance although they rank nothing.
    """
    draws = scores.draw_clusters(oofs[NO_SKILL].cluster)
    judged = {name: scores.judge(oof, scores.targets_of(oofs[MISO])) for name, oof in oofs.items()}
    spread = {name: scores.bootstrap(one, draws) for name, one in judged.items()}
    value = {name: scores.observed(one) for name, one in judged.items()}
    rows: Dict[str, Row] = {}
    for name in oofs:
        row: Row = {}
        for key, measured in value[name].items():
            ranks = key.startswith(("roc_auc", "pr_auc"))
            if name in PLAIN and ranks:
                continue
            row[key] = (measured, *limits(spread[name][key]))
            if name != NO_SKILL and not ranks:
                sign = -1.0 if key in ("log_loss", "brier") else 1.0
                for other in [base for base in PLAIN if base != name]:
                    difference = sign * (spread[name][key] - spread[other][key])
                    row[f"{key} beyond {other}"] = (sign * (measured - value[other][key]), *limits(difference))
        rows[name] = row
    return rows


def limits(distribution: Any) -> Tuple[float, float]:
    """The 95 % interval of a bootstrap distribution; NaN where fewer than half of the draws have a value."""
    defined = distribution[np.isfinite(distribution)]
    if defined.size < scores.DEFINED_SHARE * distribution.size:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)


def shown(entry: Tuple[float, float, float] | None) -> str:
    """A value with its interval; a dash where it is not defined."""
    if entry is None or not np.isfinite(entry[0]):
        return "–"
    value, low, high = entry
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")


TITLES = {"nsp": "Near-surface permafrost (Table 1)", "soil_order": "Soil order (Table 2)"}
TABLES = {
    "nsp": {
        "accuracy": "half/accuracy",
        "precision": "half/precision/present",
        "recall": "half/recall/present",
        "precision, absent": "half/precision/absent",
        "recall, absent": "half/recall/absent",
        "PR-AUC": "pr_auc",
        "ROC-AUC": "roc_auc",
        "log loss": "log_loss",
        "better than no skill by": f"log_loss beyond {NO_SKILL}",
        "than two regions by": f"log_loss beyond {REGIONS}",
    },
    "soil_order": {
        "accuracy": "argmax/accuracy",
        "precision": "argmax/precision",
        "recall": "argmax/recall",
        "F1": "argmax/f1",
        "macro F1": "argmax/macro_f1",
        "log loss": "log_loss",
        "better than no skill by": f"log_loss beyond {NO_SKILL}",
        "than two regions by": f"log_loss beyond {REGIONS}",
    },
}


def table(rows: Dict[str, Row], columns: Dict[str, str]) -> str:
    """Rows of one split and task as Markdown."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(shown(row.get(key)) for key in columns.values())} |")
    return "\n".join(lines)


def by_order(rows: Dict[str, Row], classes: Sequence[str], oof: OutOfFold) -> str:
    """Precision and recall of each order, as Markdown."""
    names = [name for name in rows if name not in PLAIN]
    lines = ["| order (sites) | " + " | ".join(f"{n}: precision | recall" for n in names) + " |"]
    lines.append("|---" * (1 + 2 * len(names)) + "|")
    for k, of in enumerate(classes):
        cells = [shown(rows[n].get(f"argmax/{measure}/{of}")) for n in names for measure in ("precision", "recall")]
        lines.append(f"| {of} ({int((oof.label == k).sum())}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def neighbours(oof: OutOfFold) -> str:
    """How alike pedons of one climate cell are: what climate alone can say at most."""
    cells = np.floor(degrees(oof) * 6).astype(np.int64)  # six cells of 10 arc-minutes per degree
    _, cell, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    of_cell = np.zeros((count.size, len(oof.classes)))
    np.add.at(of_cell, (cell.ravel(), oof.label), 1)

    def alike(counts: Any) -> float:
        pairs = counts.sum(axis=1) * (counts.sum(axis=1) - 1)
        return float((counts * (counts - 1)).sum() / pairs.sum())

    together, any_two = alike(of_cell), alike(of_cell.sum(axis=0, keepdims=True))
    return (
        f"{oof.label.size} sites in {count.size} climate cells, {int(count[count > 1].sum())} of them not alone in "
        f"theirs; two of one cell have the same label with chance {together:.2f}, any two with {any_two:.2f}"
    )


def heading(split: str, oof: OutOfFold) -> str:
    """A split with its counts and the accuracy of its commonest class, known in hindsight."""
    counts, clusters = np.bincount(oof.label), np.unique(oof.cluster).size
    few = ", so few that intervals are too narrow" if clusters < scores.FEW_CLUSTERS else ""
    commonest = f"{100 * counts.max() / counts.sum():.1f} % are {oof.classes[int(counts.argmax())]}"
    return f"**{split}** ({oof.label.size} sites, {commonest}; {clusters} clusters{few})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, default=RUN, help="run folder (default runs/pedons)")
    parser.add_argument("--splits", nargs="+", default=SPLITS, choices=SPLITS, help="splits (default all)")
    parser.add_argument("--fit-steps", type=int, default=RECIPE["fit"]["steps"], help="steps of MISO's fine-tuning")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    folder = arguments.run.with_name(arguments.run.name + "-data")
    describe(data_folder(), folder)
    started = time.process_time()
    train(folder, arguments.run, arguments.splits, arguments.fit_steps)
    seconds = time.process_time() - started
    print(f"training took {seconds:.0f} s of processor time", file=sys.stderr)
    print(show(arguments.run, arguments.splits, arguments.json))


def show(run: Path, splits: Sequence[str], file: Path | None) -> str:
    """All tables as Markdown; every figure into ``file``."""
    text: List[str] = []
    figures: Dict[str, Dict[str, Dict[str, Row]]] = {}
    for task, columns in TABLES.items():
        text.append(f"### {TITLES[task]}\n")
        for split in splits:
            oofs = predictions(run, task, split)
            rows = score(oofs)
            figures.setdefault(task, {})[split] = rows
            first = oofs[NO_SKILL]
            if split == splits[0]:
                text.append(f"{neighbours(first)}.\n")
            text.append(f"{heading(split, first)}:\n")
            text.append(table(rows, columns) + "\n")
            if task == "soil_order" and split == "SH-10km":
                text.append(by_order(rows, first.classes, first) + "\n")
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return "\n".join(text)


if __name__ == "__main__":
    main()
