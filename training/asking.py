"""Probabilities of trained networks at any coordinates of a dataset, as prediction would map them.

Windows lie where the engine lays them on the dataset's grid, weights are the engine's at pixel centres and the same
function between them, so that a place asked here has the value of the map.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray

from miso_qgis.engine.manifest import WindowSpec
from miso_qgis.engine.progress import Progress, Silent

from .config import SizeConfig
from .model import Miso
from .recipes import Recipe
from .scenes import Scene

FloatArray = NDArray[np.float64]

_BATCH = 8


def window_spec(size: SizeConfig, recipe: Recipe) -> WindowSpec:
    """How prediction lays its windows: goes into the manifest."""
    return WindowSpec(size.window_px, size.resolution_m, recipe.stride_px, recipe.decode_px, "cosine")


def taper(place_px: FloatArray, spec: WindowSpec) -> FloatArray:
    """Weight of places along one axis of the decoded square, 0 outside it.

    Args:
        place_px: Distance from the square's edge, pixels; the centre of its first pixel is at 0.5.
        spec: Windows with a cosine ramp.

    Source: :func:`miso_qgis.engine.windows.taper`, which is this at pixel centres.
    """
    ramp = max(spec.decode_px - spec.stride_px, 1)
    edge = np.minimum(place_px, spec.decode_px - place_px)
    return np.where(edge > 0, 0.5 - 0.5 * np.cos(np.pi * np.clip(edge / ramp, 0.0, 1.0)), 0.0)


def _along(place_px: FloatArray, length: int, spec: WindowSpec) -> List[Tuple[NDArray[np.int64], FloatArray]]:
    """Window numbers that decode each place along one axis, and their normalised weights: [((P,), (P,)), ...]."""
    last = max(0, math.ceil((length - spec.decode_px) / spec.stride_px))
    reach = -(-spec.decode_px // spec.stride_px)
    first = np.floor(place_px / spec.stride_px).astype(np.int64)
    numbers = [first - back for back in range(reach)]
    weights = [
        np.where((number >= 0) & (number <= last), taper(place_px - number * spec.stride_px, spec), 0.0)
        for number in numbers
    ]
    total = np.maximum(np.sum(weights, axis=0), 1e-300)
    return [(number, weight / total) for number, weight in zip(numbers, weights)]


def ask(
    members: Sequence[Miso],
    scene: Scene,
    x: FloatArray,
    y: FloatArray,
    recipe: Recipe,
    progress: Progress | None = None,
) -> Dict[str, FloatArray]:
    """Probabilities at places.

    Args:
        members: Networks in evaluation mode whose logits are averaged, on the scene's device.
        scene: Where.
        x: Easting, EPSG:3338, m, (P,).
        y: Northing, likewise.
        recipe: Windows of prediction, and the temperature that divides the mean logit.
        progress: Told how far it is; asked for cancellation.

    Returns:
        {task: (P, K) float64}, K = 1 for a binary task; NaN outside the grid. Places where a channel is missing are
        answered all the same; a map has nodata there (:meth:`training.scenes.Scene.known_at`).
    """
    progress = progress or Silent()
    config = members[0].config
    spec = window_spec(config.size, recipe)
    rows, columns = scene.places(np.asarray(x, np.float64), np.asarray(y, np.float64))
    inside = (rows >= 0) & (rows < scene.grid.height) & (columns >= 0) & (columns < scene.grid.width)
    jobs: Dict[Tuple[int, int], List[Tuple[NDArray[np.int64], FloatArray]]] = defaultdict(list)
    for down, weight_down in _along(rows, scene.grid.height, spec):
        for across, weight_across in _along(columns, scene.grid.width, spec):
            weight = np.where(inside, weight_down * weight_across, 0.0)
            asked = np.flatnonzero(weight > 0)
            for pair in np.unique(np.stack([down[asked], across[asked]], axis=1), axis=0):
                chosen = asked[(down[asked] == pair[0]) & (across[asked] == pair[1])]
                jobs[int(pair[0]), int(pair[1])].append((chosen, weight[chosen]))
    total = {task: np.zeros((rows.size, outputs)) for task, outputs in config.tasks.items()}
    order = sorted(jobs)
    for start in range(0, len(order), _BATCH):
        progress.raise_if_cancelled()
        progress.report(start, len(order), "Asking the networks")
        _ask_windows(members, scene, spec, order[start : start + _BATCH], jobs, (rows, columns), recipe, total)
    for values in total.values():
        values[~inside] = np.nan
    return total


def _ask_windows(
    members: Sequence[Miso],
    scene: Scene,
    spec: WindowSpec,
    windows: Sequence[Tuple[int, int]],
    jobs: Dict[Tuple[int, int], List[Tuple[NDArray[np.int64], FloatArray]]],
    places: Tuple[FloatArray, FloatArray],
    recipe: Recipe,
    total: Dict[str, FloatArray],
) -> None:
    """Add the weighted probabilities of a batch of windows to ``total``."""
    margin, cell = (spec.size_px - spec.decode_px) // 2, scene.size.cell_px
    origins = [(k * spec.stride_px - margin, j * spec.stride_px - margin) for k, j in windows]
    cells = torch.stack([scene.window(row // cell, column // cell)[0] for row, column in origins])
    chosen = [np.concatenate([part for part, _ in jobs[window]]) for window in windows]
    weights = [np.concatenate([weight for _, weight in jobs[window]]) for window in windows]
    at = np.full((2, len(windows), max(part.size for part in chosen)), spec.size_px / 2, dtype=np.float32)
    for n, part in enumerate(chosen):
        for axis in range(2):
            at[axis, n, : part.size] = places[axis][part] - origins[n][axis]
    asked = torch.from_numpy(at).to(cells.device)
    raw = scene.split(cells)
    with torch.no_grad():
        answers = [member(raw, asked[0], asked[1]) for member in members]
    for task, values in total.items():
        logit = torch.stack([answer[task].float() for answer in answers]).mean(dim=0) / recipe.temperature
        chance = torch.sigmoid(logit) if logit.shape[-1] == 1 else torch.softmax(logit, dim=-1)
        found = chance.double().cpu().numpy()
        for n, part in enumerate(chosen):
            np.add.at(values, part, weights[n][:, None] * found[n, : part.size])
