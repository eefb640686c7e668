"""From a run on a dataset to a complete model folder: graphs, manifest, card, digests.

The manifest's inputs, channels and terrain are those of the dataset, so that prediction is shown what training was.
Scores, curves, calibration and the full card are added by evaluation; what is written here runs without them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import onnxruntime
import torch

from miso_qgis.engine.errors import OutputError, RuntimeFailure
from miso_qgis.engine.manifest import FORMAT, GroupSpec, Manifest, TaskSpec, read_manifest, write_manifest

from . import runs
from .asking import window_spec
from .bundle import PARITY, write_sums
from .crossvalidation import Workshop
from .dataset import Dataset
from .export import export, map_names
from .model import Miso
from .scenes import Scene
from .sites import CLASSES

VERSION = "0.1.0"
CARD = "MODEL_CARD.md"
METHOD = (
    "Method: Lin, Chen et al., Fine-Scale Soil Mapping in Alaska with Multimodal Machine Learning, arXiv:2506.17302."
)
SATLAS = "Bastani et al. 2023, SatlasPretrain, arXiv:2211.15660; its licence and citation apply as well."
SIMULATED = "Simulated: landscape, observations and truth are invented. Not for decisions."
TITLES: Dict[str, Tuple[str, str]] = {
    "nsp": ("Near-surface permafrost", "permafrost within 1 m of the surface, as the observations record it"),
    "soil_order": ("Soil order", "soil order of US Soil Taxonomy, as the observations record it"),
}
_LEVELS = (0.01, 0.25, 0.5, 0.75, 0.99)
_WINDOWS = 32


def write(workshop: Workshop, members: Sequence[Miso], out: Path, *, half: bool = True) -> Manifest:
    """Write the model folder.

    Args:
        workshop: The run.
        members: Its networks, fitted on all sites.
        out: Folder; files of an earlier export are replaced, a Random Forest in it stays.
        half: Store large weights in half precision.

    Raises:
        OutputError: If ``out`` holds files that are no model's.
        RuntimeFailure: If the graphs do not answer what the networks answer.
    """
    _refuse_strangers(out)
    networks = [member.cpu().eval() for member in members]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch)
        export(networks, made, workshop.run.config.recipe.temperature, half=half)
        difference = parity(networks, workshop.scene, made, workshop.run.config.recipe.temperature)
        workshop.note(f"largest difference of graphs and networks: {difference:.2g}")
        if not difference <= PARITY:
            raise RuntimeFailure(
                "Exported MISO",
                f"differs from the trained network by {difference:.3f}.",
                f"At most {PARITY} is allowed.",
                "Nothing was written. Export it with --full-precision, and report this message.",
            )
        manifest = describe(workshop, out.name)
        write_manifest(manifest, made)
        (made / CARD).write_bytes(card(manifest).encode("utf-8"))
        out.mkdir(exist_ok=True)
        for path in out.glob("rf_*.onnx"):
            shutil.copyfile(path, made / path.name)
        write_sums(made)
        for path in sorted(made.iterdir(), key=lambda item: item.name == "SHA256SUMS"):
            os.replace(path, out / path.name)
    return read_manifest(out)


def _refuse_strangers(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise OutputError(f'Model folder "{out}"', "it is a file.", "A folder is needed.", "Choose another one.")
    known = {"manifest.json", "SHA256SUMS", CARD}
    strange = [p.name for p in out.iterdir() if p.name not in known and p.suffix != ".onnx"]
    if strange:
        found = f"it holds other files ({', '.join(sorted(strange)[:3])})."
        raise OutputError(f'Model folder "{out}"', found, "An empty or a model's folder is needed.", "Choose another.")


def parity(members: Sequence[Miso], scene: Scene, folder: Path, temperature: float) -> float:
    """Largest difference between written graphs and networks, over all tasks, on a window of the dataset."""
    size = members[0].config.size
    row, column = (side // 2 - scene.side // 2 for side in scene.shape)
    cells = scene.window(row, column)[0].cpu()
    pixels = cells.repeat_interleave(size.cell_px, dim=1).repeat_interleave(size.cell_px, dim=2)[None]
    raw = scene.split(pixels)
    places = torch.arange(0.5, size.window_px, size.window_px / 24)
    encoder, decoder = (
        onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder")
    )
    maps = dict(zip(map_names(members), encoder.run(None, {name: value.numpy() for name, value in raw.items()})))
    tasks = list(members[0].config.tasks)
    found = dict(zip(tasks, decoder.run(tasks, {"rows": places.numpy(), "columns": places.numpy(), **maps})))
    rows, columns = (grid.reshape(1, -1) for grid in torch.meshgrid(places, places, indexing="ij"))
    worst = 0.0
    with torch.no_grad():
        answers = [member(raw, rows, columns) for member in members]
    for task in tasks:
        logit = torch.stack([answer[task] for answer in answers]).mean(dim=0)[0] / temperature  # (Q, K)
        chance = torch.sigmoid(logit) if logit.shape[-1] == 1 else torch.softmax(logit, dim=-1)
        expected = chance.T.reshape(found[task].shape).numpy()
        worst = max(worst, float(np.abs(found[task] - expected).max()))
    return worst


def describe(workshop: Workshop, name: str) -> Manifest:
    """Make the manifest of a run's model."""
    run, dataset = workshop.run, workshop.run.dataset
    quantiles = coverage(workshop.scene, dataset)
    limits = [SIMULATED] if dataset.simulated else []
    limits.append("Not evaluated: no cross-validated scores are in this manifest.")
    words = " (simulated)" if dataset.simulated and "simulated" not in dataset.title.lower() else ""
    return Manifest(
        format=FORMAT,
        name=name,
        title=f"{dataset.title}{words}",
        version=VERSION,
        licence=dataset.licence,
        citation=f"{dataset.citation} {METHOD}",
        simulated=dataset.simulated,
        inputs=dataset.inputs,
        groups=_with_ranges(dataset, quantiles),
        tasks={task: _task(task, run.config.recipe.temperature) for task in run.config.tasks},
        window=window_spec(run.config.model.size, run.config.recipe),
        terrain=dataset.terrain,
        domain={"crs": dataset.crs, "bounds": list(dataset.bounds)},
        applicability={"quantiles": list(_LEVELS), "channels": {k: v[1:-1] for k, v in quantiles.items()}},
        trained={
            "date": datetime.now(timezone.utc).date().isoformat(),
            "software": runs.environment(),
            "seed": run.config.seed,
            "member_seeds": run.member_seeds(),
            "members": run.config.recipe.members,
            "parameters": sum(value.numel() for value in Miso(run.config.model).parameters()),
            "sites": {key: run.data.sites[key] for key in ("used", "labels")},
            "period": _period(workshop),
            **_started(workshop),
        },
        limits=limits,
    )


def _task(task: str, temperature: float) -> TaskSpec:
    title, definition = TITLES[task]
    classes = (title.lower(),) if len(CLASSES[task]) == 2 else CLASSES[task]
    return TaskSpec(title, classes, definition, calibration={"method": "temperature", "temperature": temperature})


def _started(workshop: Workshop) -> Dict[str, str]:
    """The checkpoint that an encoder started from, by name; its digest is in the run (a manifest holds none)."""
    weights = workshop.run.data.satlas
    if weights is None:
        return {}
    name = Path(weights.path).name
    return {"started_from": f'SatlasNet\'s Sentinel-2 weights ({name}) in the encoder of "{weights.group}". {SATLAS}'}


def _period(workshop: Workshop) -> List[str]:
    """First and last year of observation; empty if no date is known."""
    dates = workshop.sites.date[~np.isnat(workshop.sites.date)]
    return [str(dates.min())[:4], str(dates.max())[:4]] if dates.size else []


def coverage(scene: Scene, dataset: Dataset) -> Dict[str, List[float]]:
    """Lowest value, quantiles and highest value of each channel over random windows of the area."""
    generator = np.random.default_rng(0)
    height, width = scene.shape
    samples = []
    for _ in range(_WINDOWS * 20):
        cells, known = scene.window(
            int(generator.integers(height)) - scene.side // 2, int(generator.integers(width)) - scene.side // 2
        )
        if known.any():
            samples.append(cells.cpu().numpy()[:, known][:, :: max(1, int(known.sum()) // 4096)])
        if len(samples) == _WINDOWS:
            break
    values = np.concatenate(samples, axis=1)
    levels = np.quantile(values, [0.0, *_LEVELS, 1.0], axis=1).T
    return {
        channel.name: [float(f"{value:.5g}") for value in row]
        for channel, row in zip(dataset.channels, levels.tolist())
    }


def _with_ranges(dataset: Dataset, quantiles: Dict[str, List[float]]) -> Tuple[GroupSpec, ...]:
    return tuple(
        GroupSpec(
            group.name,
            tuple(
                dataclasses.replace(channel, range=(quantiles[channel.name][0], quantiles[channel.name][-1]))
                for channel in group.channels
            ),
        )
        for group in dataset.groups
    )


def card(manifest: Manifest) -> str:
    """A first model card: what the manifest says, and that nothing is evaluated yet."""
    trained: Dict[str, Any] = manifest.trained
    lines = [f"# {manifest.title}", ""]
    if manifest.simulated:
        lines += [f"**{SIMULATED}**", ""]
    lines += [
        f"MISO, {trained['members']} network(s) of {trained['parameters']:,} parameters, trained {trained['date']}.",
        "",
        "Not yet evaluated: nothing is known of how good it is.",
        "",
        "## What it answers",
        "",
        *[f"- {task.title}: {task.definition}." for task in manifest.tasks.values()],
        "",
        "## What it was trained on",
        "",
        f"- {trained['sites']['used']} sites"
        + (f" of {trained['period'][0]} to {trained['period'][1]}" if trained["period"] else "")
        + f", within {', '.join(f'{value:.0f}' for value in manifest.domain['bounds'])} ({manifest.domain['crs']}).",
        *([f"- Started from {trained['started_from']}"] if "started_from" in trained else []),
        f"- Inputs: {', '.join(spec.title for spec in manifest.inputs.values())}.",
        "",
        "## Limits",
        "",
        *[f"- {limit}" for limit in manifest.limits],
        "",
        "## Licence and citation",
        "",
        f"{manifest.licence}. {manifest.citation}",
    ]
    return "\n".join(lines) + "\n"
