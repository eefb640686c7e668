"""Windows drawn at random from a scene, with the labelled points and the locations that are asked in them.

A *scene* is a stack of channels on one grid. All coordinates are pixels of the scene, (row, column), the centre of
pixel i at i + 0.5; a window's coordinates count from its own upper left corner. Mirroring a window moves its pixels
and its points; the values stay, so that aspect remains the true azimuth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, Mapping, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .conditioning import average_cells

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """Channels on a grid.

    Attributes:
        channels: {group: (C, H, W) float32}, the channels' own units, NaN where missing.
        valid: (H, W), True where every channel has a value.
        origin_m: x of the left edge and y of the upper edge, EPSG:3338.
        resolution_m: Pixel size.
        step_px: A stored value stands for a square of this side; above 1 after :meth:`coarsened`. Coordinates stay in
            pixels of ``resolution_m``.
    """

    channels: Mapping[str, Tensor]
    valid: BoolArray
    origin_m: Tuple[float, float]
    resolution_m: float
    step_px: int = 1

    def coarsened(self, cell_px: int) -> Scene:
        """The scene averaged in cells once, so that training need not do it for every window it draws."""
        height, width = (side - side % cell_px for side in self.valid.shape)
        averaged = {
            name: average_cells(stack[None, :, :height, :width], cell_px)[0] for name, stack in self.channels.items()
        }
        known = torch.stack([torch.isfinite(stack).all(dim=0) for stack in averaged.values()]).all(dim=0)
        return Scene(averaged, known.cpu().numpy(), self.origin_m, self.resolution_m, cell_px)

    def to(self, device: str) -> Scene:
        """The same scene on another device."""
        moved = {name: stack.to(device) for name, stack in self.channels.items()}
        return replace(self, channels=moved)


@dataclass(frozen=True)
class Points:
    """Labelled places of a scene.

    Attributes:
        row_px: (P,).
        column_px: (P,).
        label: (P,), 0 or 1.
    """

    row_px: FloatArray
    column_px: FloatArray
    label: FloatArray


@dataclass(frozen=True)
class Draw:
    """N windows of one network's batch: where they lie, and what is asked in them.

    Attributes:
        rows: Stored row of the scene for each row of the window, (N, S / step_px), int64; may lie outside the scene.
        columns: Likewise.
        point_rows_px: Window coordinates of the labelled points, (N, P), float32.
        point_columns_px: (N, P).
        label: (N, P), float32.
        counts: (N, P), False where a window has fewer points.
        location_rows_px: Window coordinates of uniform valid locations, (N, L), float32.
        location_columns_px: (N, L).
        location_m: EPSG:3338 (x, y) of these, (N, L, 2), float64.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    point_rows_px: NDArray[np.float32]
    point_columns_px: NDArray[np.float32]
    label: NDArray[np.float32]
    counts: BoolArray
    location_rows_px: NDArray[np.float32]
    location_columns_px: NDArray[np.float32]
    location_m: NDArray[np.float64]


class Drawer:
    """Draws batches from a scene, reproducibly from its seed."""

    def __init__(self, scene: Scene, window_px: int, seed: int, *, flips: bool = True) -> None:
        self.scene, self.window_px, self.flips = scene, window_px, flips
        self.generator = np.random.default_rng(seed)
        rows, columns = np.nonzero(scene.valid)
        if rows.size == 0:
            raise ValueError("the scene has no pixel where every channel has a value")
        self._valid = np.stack([rows, columns], axis=1)

    def draw(self, windows: int, locations: int = 0, points: int = 0, labelled: Points | None = None) -> Draw:
        """Draw ``windows`` windows.

        With ``labelled``, a window lies so that a random labelled point falls into its middle part, and at most
        ``points`` labelled points inside it are asked; else it is centred on a random valid pixel.
        """
        size, step = self.window_px, self.scene.step_px
        corners = (self._centres(windows, labelled) - size // 2) // step  # in stored values
        mirrored = self.generator.random((windows, 2)) < 0.5 if self.flips else np.zeros((windows, 2), dtype=bool)
        places = np.arange(size // step)
        turned = np.where(mirrored[:, :, None], places[::-1], places)  # (N, 2, S)
        index = corners[:, :, None] + turned
        asked = np.zeros((windows, points, 2), dtype=np.float32)
        label = np.zeros((windows, points), dtype=np.float32)
        counts = np.zeros((windows, points), dtype=bool)
        located = np.zeros((windows, locations, 2), dtype=np.float32)
        located_m = np.zeros((windows, locations, 2), dtype=np.float64)
        for n in range(windows):
            if labelled is not None:
                at, found = self._points(corners[n] * step, points, labelled)
                asked[n, : len(at)] = _mirror(at, mirrored[n], size)
                label[n, : len(at)], counts[n, : len(at)] = found, True
            if locations:
                at = self._locations(corners[n], locations)
                located[n] = _mirror(at, mirrored[n], size)
                located_m[n] = self._metres(at + corners[n] * step)
        return Draw(
            rows=index[:, 0],
            columns=index[:, 1],
            point_rows_px=asked[..., 0],
            point_columns_px=asked[..., 1],
            label=label,
            counts=counts,
            location_rows_px=located[..., 0],
            location_columns_px=located[..., 1],
            location_m=located_m,
        )

    def _centres(self, windows: int, labelled: Points | None) -> NDArray[np.int64]:
        if labelled is None:
            return self._valid[self.generator.integers(len(self._valid), size=windows)] * self.scene.step_px
        chosen = self.generator.integers(labelled.label.size, size=windows)
        at = np.stack([labelled.row_px[chosen], labelled.column_px[chosen]], axis=1)
        reach = 0.375 * self.window_px  # the point falls into the middle three quarters
        moved: NDArray[np.int64] = np.floor(at + self.generator.uniform(-reach, reach, at.shape)).astype(np.int64)
        return moved

    def _points(self, corner: NDArray[np.int64], limit: int, labelled: Points) -> Tuple[FloatArray, FloatArray]:
        at = np.stack([labelled.row_px, labelled.column_px], axis=1) - corner
        inside = np.flatnonzero(((at >= 0) & (at < self.window_px)).all(axis=1))
        if inside.size > limit:
            inside = self.generator.permutation(inside)[:limit]
        return at[inside], labelled.label[inside]

    def _locations(self, corner: NDArray[np.int64], count: int) -> FloatArray:
        height, width = self.scene.valid.shape
        step = self.scene.step_px
        end = corner + self.window_px // step
        top, left = max(corner[0], 0), max(corner[1], 0)
        part = self.scene.valid[top : min(end[0], height), left : min(end[1], width)]
        flat = np.flatnonzero(part)
        rows, columns = np.divmod(flat[self.generator.integers(flat.size, size=count)], part.shape[1])
        at = np.stack([rows + top - corner[0], columns + left - corner[1]], axis=1)
        return (at + self.generator.random((count, 2))) * step

    def _metres(self, at: FloatArray) -> FloatArray:
        x, y = self.scene.origin_m
        return np.stack([x + at[:, 1] * self.scene.resolution_m, y - at[:, 0] * self.scene.resolution_m], axis=1)


def _mirror(at: FloatArray, mirrored: BoolArray, size: int) -> FloatArray:
    return np.where(mirrored, size - at, at)


def cut(scene: Scene, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Dict[str, Tensor]:
    """Read windows {group: (N, C, S, S)}; what lies outside the scene is NaN.

    Args:
        scene: Where from.
        rows: Stored rows of each window, (N, S).
        columns: Stored columns of each window, (N, S).
    """
    height, width = scene.valid.shape
    inside_row, inside_column = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    read: Dict[str, Tensor] = {}
    for name, stack in scene.channels.items():
        row = torch.as_tensor(rows.clip(0, height - 1), device=stack.device)
        column = torch.as_tensor(columns.clip(0, width - 1), device=stack.device)
        windows = stack[:, row[:, :, None], column[:, None, :]].transpose(0, 1)  # (N, C, S, S)
        inside = torch.as_tensor(inside_row[:, :, None] & inside_column[:, None, :], device=stack.device)
        read[name] = torch.where(inside[:, None], windows, float("nan"))
    return read


def stacked(draws: Sequence[Draw]) -> Dict[str, NDArray[np.generic]]:
    """The fields of J draws, each (J, N, ...)."""
    return {name: np.stack([getattr(draw, name) for draw in draws]) for name in Draw.__dataclass_fields__}
