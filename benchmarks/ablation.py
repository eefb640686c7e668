"""What each part of MISO adds on the watershed, and what more observations would add. Open labels only.

Everything is out of fold on 1 km blocks, scored on all open cells, one network of the bundled form per fold, so figures
lie a little below those of docs/validation.md. Out-of-fold predictions are kept in ``runs/ablation``: a second run goes
on where the first one stopped. Prints tables; ``--json`` writes the same figures.

    .venv/training/bin/python benchmarks/ablation.py
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training import baselines, bundled, cpcrw, implicit, loop, metrics, predictions  # noqa: E402
from training.bundled import Workshop  # noqa: E402
from training.model import Miso  # noqa: E402
from training.observations import Observations  # noqa: E402
from training.predictions import Predictor  # noqa: E402

FOLDER = ROOT / "runs" / "ablation"
SPLIT = "blocks"
SIZES = (250, 500, 1000, 2000)
QUERY_M = (20, 50)
Fit = Callable[[Observations, int], Predictor]


@contextmanager
def nearest_token() -> Iterator[None]:
    """Take the nearest token's value in place of the implicit function's blend over four."""
    blended = implicit.neighbours

    def neighbours(coordinate_px: torch.Tensor, token_px: float, tokens: int) -> implicit.Neighbours:
        found = blended(coordinate_px, token_px, tokens)
        first = (found.weight[..., 0] >= 0.5).float()  # exactly one of the two, halfway too
        weight = torch.stack([first, 1.0 - first], dim=-1)
        return found._replace(offset=torch.zeros_like(found.offset), weight=weight)

    implicit.neighbours = neighbours
    try:
        yield
    finally:
        implicit.neighbours = blended


def miso(workshop: Workshop, *, pretrained: bool = True) -> Fit:
    """MISO as bundled, one network. Fits are kept, because some variants ask the same network differently."""
    kept: Dict[Tuple[int, bytes], List[Miso]] = {}

    def fit(points: Observations, seed: int) -> Predictor:
        key = (seed, points.x.tobytes())
        if key not in kept:
            kept[key] = workshop.fitted(points, seed) if pretrained else _from_scratch(workshop, points, seed)
        return lambda places: workshop.ask(kept[key], places)

    return fit


def _from_scratch(workshop: Workshop, points: Observations, seed: int) -> List[Miso]:
    (member_seed,) = workshop.member_seeds(seed)
    start = loop.initial_parameters(workshop.config, member_seed)
    job = loop.Job(member_seed, bundled.labelled(points, workshop.stack), start)
    (found,) = loop.fit(workshop.config, workshop.training.fit, workshop.training.pretrain, workshop.place, [job])
    return [loop.with_parameters(workshop.config, found)]


def on_grid(whole: Fit, query_m: int) -> Fit:
    """MISO asked at the centres of a coarser grid, whose nearest value stands for a place."""

    def snapped(places: Observations) -> Observations:
        x, y = (np.floor(values / query_m) * query_m + query_m / 2 for values in (places.x, places.y))
        return dataclasses.replace(places, x=x, y=y)

    def fit(points: Observations, seed: int) -> Predictor:
        predict = whole(points, seed)
        return lambda places: predict(snapped(places))

    return fit


def fewer(fit: Fit, share: float) -> Fit:
    """Learn from the first transects only, so that about ``share`` of the points remain."""

    def with_fewer(points: Observations, seed: int) -> Predictor:
        transects = np.unique(points.transect)
        kept = transects[: max(2, round(share * transects.size))]
        return fit(points.subset(np.isin(points.transect, kept)), seed)

    return with_fewer


def variants(workshop: Workshop) -> Dict[str, Fit]:
    """Name -> how it is fitted."""
    table = baselines.FeatureMap(workshop.stack, coordinates=False)
    forest = baselines.fitter(baselines.BASELINES["rf"], table, [])
    terrain_only = dataclasses.replace(workshop, config=dataclasses.replace(workshop.config, views=(("terrain",),)))
    both = dataclasses.replace(workshop, config=dataclasses.replace(workshop.config, views=(("terrain", "surface"),)))

    def nearest(points: Observations, seed: int) -> Predictor:
        with nearest_token():
            members = workshop.fitted(points, seed)

        def predict(places: Observations) -> NDArray[np.float64]:
            with nearest_token():
                return workshop.ask(members, places)

        return predict

    whole = miso(workshop)
    found: Dict[str, Fit] = {
        "miso": whole,
        **{f"asked on a {query_m} m grid": on_grid(whole, query_m) for query_m in QUERY_M},
        "without contrastive pretraining": miso(workshop, pretrained=False),
        "without the surface group": miso(terrain_only),
        "one view (surface always in)": miso(both),
        "nearest token, no implicit function": nearest,
    }
    for size in SIZES:
        found[f"miso, {size} points"] = fewer(whole, size / 4000)
        found[f"rf, {size} points"] = fewer(forest, size / 4000)
    return found


def scored(name: str, seeds: Sequence[int]) -> Optional[List[metrics.Scored]]:
    """Predictions of a variant (or of a protocol's model) on all open cells; None if a seed is missing."""
    cells = cpcrw.load_open_cells()
    folder, model = (ROOT / "runs" / "predictions", "rf") if name == "rf" else (FOLDER, _file_name(name))
    found = []
    for seed in seeds:
        stored = predictions.load(folder, model, SPLIT, seed)
        if stored is None:
            return None
        limit = np.full(len(cells), metrics.HALF)
        found.append(metrics.Scored(cells.label, stored.cells.astype(np.float64), cells.block_id, limit))
    return found


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def rows(names: Sequence[str], seeds: Sequence[int], against: str) -> Dict[str, Dict[str, object]]:
    """Mean of each measure over seeds, and the paired block bootstrap of its difference to ``against``."""
    draws = metrics.block_draws(cpcrw.load_open_cells().block_id)
    spread, table = {}, {}
    for name in dict.fromkeys([against, *names]):
        per_seed = scored(name, seeds)
        if per_seed is None:
            continue
        spread[name] = metrics.bootstrap(per_seed, draws)
        measured = [one.measure() for one in per_seed]
        table[name] = {}
        for key in ("roc_auc", "pr_auc", "f1_half"):
            low, high = metrics.interval(spread[name][key] - spread[against][key])
            table[name][key] = float(np.mean([one[key] for one in measured]))
            table[name][f"{key}_difference"] = [low, high]
    return table


def show(table: Dict[str, Dict[str, object]], against: str) -> None:
    """Print as a Markdown table."""
    print(f"| | ROC-AUC | PR-AUC | F1 | difference to *{against}*, 95 %: ROC-AUC, PR-AUC |\n|---|---|---|---|---|")
    for name, row in table.items():
        values = " | ".join(f"{row[key]:.3f}" for key in ("roc_auc", "pr_auc", "f1_half"))
        spans = ", ".join("{:+.3f} to {:+.3f}".format(*row[f"{key}_difference"]) for key in ("roc_auc", "pr_auc"))
        print(f"| {name} | {values} | {'' if name == against else spans} |")


def main() -> None:
    """Fit what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="seeds of the protocol (default 1 2)")
    parser.add_argument("--only", nargs="+", help="names of variants to fit (default all)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    training = dataclasses.replace(bundled.TRAINING, members=1)
    workshop = Workshop.of(ROOT / "runs" / "bundle", training)
    cells = cpcrw.load_open_cells()
    found = variants(workshop)
    for name, fit in found.items():
        for seed in arguments.seeds:
            if arguments.only and name not in arguments.only:
                continue
            if predictions.load(FOLDER, _file_name(name), SPLIT, seed) is None:
                made = predictions.out_of_fold(fit, SPLIT, seed, cells=cells)
                predictions.save(made, FOLDER, _file_name(name), SPLIT, seed)
                print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    parts = [name for name in found if not name.endswith(" points")]
    curves = [name for name in found if name.endswith(" points")]
    ablation, learning = rows(parts, arguments.seeds, "miso"), rows([*curves, "rf"], arguments.seeds, "miso")
    show(ablation, "miso")
    print()
    show(learning, "miso")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ablation": ablation, "learning": learning}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
