"""Makes the model folder that ships: trains on all points of one seed, exports, checks, describes.

Owns the steps' order and the folder's files; ``rf_nsp.onnx`` comes from :mod:`training.baselines`, figures from
:mod:`training.evaluate`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError, RuntimeFailure
from miso_qgis.engine.manifest import (
    FORMAT,
    ForestSpec,
    GroupSpec,
    Manifest,
    TaskSpec,
    WindowSpec,
    read_manifest,
    write_manifest,
)

from . import bundled, card, cpcrw, evaluate, loop
from .batches import cut
from .bundled import DECODE_PX, STRIDE_PX, Workshop
from .export import export, map_names
from .model import Miso

VERSION = "0.1.0"
FOREST = "rf_nsp.onnx"
# Half-precision storage moves a probability by about 1e-3; a wrong graph moves it by tenths.
PARITY = 0.01

Note = Callable[[str], None]


def train(workshop: Workshop, seed: int, note: Note) -> Path:
    """Pretrain and fit the members on all points of ``seed``; return the file that holds them."""
    members = workshop.fitted(cpcrw.load_observations(seed), seed, note)
    path = members_file(workshop.folder, seed)
    bundled.write_run(workshop, seed, workshop.folder, data_digests())
    torch.save([{name: value.detach() for name, value in member.named_parameters()} for member in members], path)
    return path


def members_file(folder: Path, seed: int) -> Path:
    """Where ``train`` leaves the members of a run."""
    return folder / f"members_{seed}.pt"


def load_members(workshop: Workshop, seed: int) -> List[Miso]:
    """Read what :func:`train` left.

    Raises:
        InputError: If there is nothing.
    """
    path = members_file(workshop.folder, seed)
    if not path.is_file():
        raise InputError(
            f'Run folder "{workshop.folder}"',
            f"has no {path.name}.",
            "Trained networks are needed for an export.",
            "Run `python -m training train` first.",
        )
    return [loop.with_parameters(workshop.config, one) for one in torch.load(path, weights_only=True)]


def data_digests() -> Dict[str, str]:
    """SHA-256 of the files that training read."""
    files = cpcrw.find(labels=True)
    paths = [files.dem, files.nlcd] + ([files.observations] if files.observations else [])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def assemble(
    workshop: Workshop,
    members: Sequence[Miso],
    seed: int,
    out: Path,
    evaluation: Path,
    note: Note,
    *,
    keep_graphs: bool = False,
) -> Manifest:
    """Export the members into ``out`` and write manifest, card and digests.

    Args:
        workshop: What they were trained with.
        members: Trained networks.
        seed: Seed of the run, for the record.
        out: Model folder.
        evaluation: JSON result of ``python -m training evaluate``; figures are left out if it does not exist.
        note: Told what is done.
        keep_graphs: Only describe anew what was exported before, with newer figures.

    Raises:
        RuntimeFailure: If the graphs do not answer what the networks answer.
    """
    out.mkdir(parents=True, exist_ok=True)
    seams = disagreement(workshop, members)
    if not keep_graphs:
        export(members, out, workshop.training.temperature)
    note(f"parity of graphs and networks: {check_parity(workshop, members, out):.5f}")
    result = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else None
    manifest = describe(workshop, seed, out, seams, result)
    write_manifest(manifest, out)
    (out / "MODEL_CARD.md").write_bytes(card.write(manifest, workshop, result).encode("utf-8"))
    write_sums(out)
    return read_manifest(out)


def describe(
    workshop: Workshop, seed: int, out: Path, seams: Dict[str, float], result: Optional[Dict[str, Any]]
) -> Manifest:
    """Make the manifest of the bundled model."""
    thresholds: Dict[str, Any] = {}
    curves: Dict[str, Any] = {}
    scores: Dict[str, Any] = {}
    if result is not None:
        thresholds, curves, scores = evaluate.manifest_entries(result)
        scores["comparison"] = card.comparison(result)
    size = workshop.config.size
    forests = {"nsp": ForestSpec(FOREST, cpcrw.forest_features(False))} if (out / FOREST).is_file() else {}
    task = TaskSpec(
        title="Near-surface permafrost",
        classes=("near-surface permafrost",),
        definition="permafrost within 1 m of the surface, as the observation-based map of the watershed shows it",
        thresholds=thresholds,
        curves=curves,
        calibration={"method": "temperature", "temperature": workshop.training.temperature},
    )
    return Manifest(
        format=FORMAT,
        name="cpcrw",
        title="Near-surface permafrost, Caribou-Poker Creeks (MISO small)",
        version=VERSION,
        licence="GPL-2.0-or-later",
        citation=card.CITATION,
        simulated=False,
        inputs=cpcrw.manifest_inputs(),
        groups=with_ranges(workshop),
        tasks={"nsp": task},
        window=WindowSpec(
            size.window_px, size.resolution_m, STRIDE_PX, DECODE_PX, "cosine", round(seams["disagreement"], 4)
        ),
        terrain=workshop.stack.terrain,
        forests=forests,
        domain=domain(workshop),
        applicability=coverage(workshop),
        scores=scores,
        trained={
            "date": datetime.now(timezone.utc).date().isoformat(),
            "software": bundled.environment(),
            "seed": seed,
            "member_seeds": workshop.member_seeds(seed),
            "members": len(workshop.member_seeds(seed)),
            "points": 4000,
            "largest_seam_step": round(seams["largest_step"], 4),
        },
        limits=list(card.LIMITS),
    )


def with_ranges(workshop: Workshop) -> Tuple[GroupSpec, ...]:
    """The groups with each channel's lowest and highest value in training."""
    stack, groups, at = workshop.stack, [], 0
    for group in cpcrw.groups():
        channels = []
        for channel in group.channels:
            values = stack.channels[at][stack.valid]
            limits = (float(f"{values.min():.5g}"), float(f"{values.max():.5g}"))
            channels.append(dataclasses.replace(channel, range=limits))
            at += 1
        groups.append(GroupSpec(group.name, tuple(channels)))
    return tuple(groups)


def domain(workshop: Workshop) -> Dict[str, Any]:
    """Box of the ground that training saw, EPSG:3338."""
    rows, columns = np.nonzero(workshop.stack.valid)
    transform = workshop.stack.grid.transform
    return {
        "crs": str(cpcrw.TARGET_CRS),
        "bounds": [
            transform.c + float(columns.min()) * transform.a,
            transform.f + float(rows.max() + 1) * transform.e,
            transform.c + float(columns.max() + 1) * transform.a,
            transform.f + float(rows.min()) * transform.e,
        ],
    }


def coverage(workshop: Workshop) -> Dict[str, Any]:
    """Quantiles of the channels over the watershed, to tell how far another place is from it."""
    levels = [0.01, 0.25, 0.5, 0.75, 0.99]
    stack = workshop.stack
    values = stack.channels[:, stack.valid][:, ::50]
    return {
        "quantiles": levels,
        "channels": {
            name: [float(f"{q:.5g}") for q in np.quantile(row, levels)] for name, row in zip(stack.names, values)
        },
    }


def disagreement(workshop: Workshop, members: Sequence[Miso], pairs: int = 24) -> Dict[str, float]:
    """How much overlapping windows disagree, and the largest step that the blend leaves between neighbouring pixels.

    Pairs of windows one stride apart are asked on the strip that both decode. A step at a window's edge is the change
    of the normalised weight from one pixel to the next times the disagreement there.
    """
    place, size = workshop.place, workshop.config.size
    step = place.step_px
    generator = np.random.default_rng(0)
    valid = np.argwhere(place.valid)
    overlap = DECODE_PX - STRIDE_PX
    margin = (size.window_px - DECODE_PX) // 2
    apart: List[NDArray[np.float64]] = []
    for _ in range(pairs):
        corner = valid[generator.integers(len(valid))] - size.window_px // (2 * step)
        along = np.arange(4, DECODE_PX, 8.0) + margin
        across = np.arange(overlap) + 0.5 + margin
        row, column = (grid.reshape(-1) for grid in np.meshgrid(along, across, indexing="ij"))
        first = _window_probability(workshop, members, corner, row, column + STRIDE_PX)
        second = _window_probability(workshop, members, corner + np.asarray([0, STRIDE_PX // step]), row, column)
        known = place.valid[
            np.clip(corner[0] + (row // step).astype(int), 0, place.valid.shape[0] - 1),
            np.clip(corner[1] + ((column + STRIDE_PX) // step).astype(int), 0, place.valid.shape[1] - 1),
        ]
        apart.append(np.abs(first - second)[known])
    everywhere = np.concatenate(apart)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(-1, overlap + 1) + 0.5).clip(0, overlap) / overlap)
    mean = float(everywhere.mean())
    return {"disagreement": mean, "largest_step": float(np.abs(np.diff(ramp)).max() * np.quantile(everywhere, 0.95))}


def _window_probability(
    workshop: Workshop,
    members: Sequence[Miso],
    corner: NDArray[np.int64],
    row: NDArray[np.float64],
    column: NDArray[np.float64],
) -> NDArray[np.float64]:
    places = np.arange(workshop.config.size.window_px // workshop.place.step_px)[None]
    raw = cut(workshop.place, corner[0] + places, corner[1] + places)
    at = [torch.as_tensor(part, dtype=torch.float32)[None] for part in (row, column)]
    with torch.no_grad():
        logit = torch.stack([member(raw, *at)["nsp"][0, :, 0] for member in members]).mean(dim=0)
    probability: NDArray[np.float64] = torch.sigmoid(logit / workshop.training.temperature).double().numpy()
    return probability


def check_parity(workshop: Workshop, members: Sequence[Miso], folder: Path) -> float:
    """Largest difference between the written graphs and the networks on a window of the watershed.

    Raises:
        RuntimeFailure: If it exceeds what half-precision storage explains.
    """
    size = workshop.config.size
    top, left = (np.asarray(workshop.stack.valid.shape) - size.window_px) // 2
    window = workshop.stack.channels[:, top : top + size.window_px, left : left + size.window_px]
    raw, at = {}, 0
    for group in workshop.config.groups:
        raw[group.name] = torch.from_numpy(window[at : at + len(group.channels)].copy())[None]
        at += len(group.channels)
    rows, columns = torch.arange(32, 224, 24.0) + 0.5, torch.arange(32, 224, 12.0) + 0.5
    encoder, decoder = (
        onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "decoder.onnx")
    )
    maps = dict(zip(map_names(members), encoder.run(None, {name: value.numpy() for name, value in raw.items()})))
    (found,) = decoder.run(["nsp"], {"rows": rows.numpy(), "columns": columns.numpy(), **maps})
    row = rows[:, None].expand(-1, columns.numel()).reshape(1, -1)
    column = columns[None, :].expand(rows.numel(), -1).reshape(1, -1)
    with torch.no_grad():
        logit = torch.stack([member(raw, row, column)["nsp"] for member in members]).mean(dim=0)
    expected = torch.sigmoid(logit / workshop.training.temperature).reshape(found.shape).numpy()
    difference = float(np.abs(found - expected).max())
    if not difference <= PARITY:
        raise RuntimeFailure(
            "Exported MISO",
            f"differs from the trained network by {difference:.3f}.",
            f"At most {PARITY} is allowed.",
            "Nothing should be shipped; look for a change in the exporter.",
        )
    return difference


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS, plain sha256sum form, over every other file of the folder."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "SHA256SUMS" and not path.name.startswith(".")
    ]
    (folder / "SHA256SUMS").write_bytes("".join(lines).encode("ascii"))
