"""Windows of a dataset for training: held in memory where they fit, read from the rasters where they do not.

Both ways give the same windows. A window is read as *cells*: squares of ``cell_px`` pixels, averaged once, which is
the first thing that the network does with pixels. Windows lie on the lattice of cells that starts at the grid's upper
left corner; they may leave the grid, as they do in prediction, and see there what the rasters hold.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, Optional, Protocol, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points
from torch import Tensor

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import ALASKA_ALBERS, Grid, is_alaska_albers
from miso_qgis.engine.progress import Progress, Scaled, Silent
from miso_qgis.engine.rasters import gdal_settings

from .conditioning import average_cells
from .config import SizeConfig
from .dataset import Dataset

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STORAGES = ("auto", "memory", "rasters")
MEMORY_MB = 2000
_BLOCK_PX = 1024


class Cells(Protocol):
    """Where cells come from."""

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """Cells (C, height, width) float32, the channels' own units, NaN where missing; the box may leave the grid."""


@dataclass(frozen=True)
class Scene:
    """A dataset's channels as training sees them.

    Attributes:
        cells: Where cells come from.
        grid: The dataset's grid.
        groups: {group: number of channels}, in the order of the channels.
        size: Window and cell sizes.
        in_memory: Whether everything is held in memory.
        device: Where windows are handed over.
    """

    cells: Cells
    grid: Grid
    groups: Dict[str, int]
    size: SizeConfig
    in_memory: bool
    device: str = "cpu"

    @property
    def side(self) -> int:
        """Side of a window in cells."""
        return self.size.window_px // self.size.cell_px

    @property
    def shape(self) -> Tuple[int, int]:
        """Height and width of the grid in cells, begun ones included."""
        cell = self.size.cell_px
        return -(-self.grid.height // cell), -(-self.grid.width // cell)

    def window(self, row: int, column: int) -> Tuple[Tensor, BoolArray]:
        """Read a window.

        Args:
            row: Upper left cell of the window.
            column: Likewise.

        Returns:
            Cells (C, S, S), and where every channel is known and the cell lies on the grid, (S, S).
        """
        cells = self.cells.read(row, column, self.side, self.side)
        known = torch.isfinite(cells).all(dim=0).cpu().numpy()
        rows, columns = np.arange(row, row + self.side), np.arange(column, column + self.side)
        height, width = self.shape
        known &= ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        return cells, known

    def split(self, windows: Tensor) -> Dict[str, Tensor]:
        """Windows (N, C, S, S) of all channels by group."""
        parts = torch.split(windows, list(self.groups.values()), dim=1)
        return dict(zip(self.groups, parts))

    def known_at(self, row_px: FloatArray, column_px: FloatArray) -> BoolArray:
        """Whether every channel has a value in the cells that hold these places, (P,); False outside the grid."""
        cell = self.size.cell_px
        rows, columns = np.floor(row_px / cell).astype(np.int64), np.floor(column_px / cell).astype(np.int64)
        inside = (row_px >= 0) & (row_px < self.grid.height) & (column_px >= 0) & (column_px < self.grid.width)
        known = np.zeros(row_px.size, dtype=bool)
        side = self.side
        blocks = np.stack([rows // side, columns // side], axis=1)
        for block in np.unique(blocks[inside], axis=0):  # neighbours share a read
            chosen = np.flatnonzero(inside & (blocks == block).all(axis=1))
            there = self.window(int(block[0]) * side, int(block[1]) * side)[1]
            known[chosen] = there[rows[chosen] % side, columns[chosen] % side]
        return known

    def places(self, x: FloatArray, y: FloatArray) -> Tuple[FloatArray, FloatArray]:
        """EPSG:3338 metres to pixel coordinates (row, column) of the grid, the centre of pixel i at i + 0.5."""
        if not is_alaska_albers(self.grid.crs) and x.size:
            moved = transform_points(CRS.from_user_input(ALASKA_ALBERS), self.grid.crs, x.tolist(), y.tolist())
            x, y = np.asarray(moved[0]), np.asarray(moved[1])
        transform = self.grid.transform
        return (y - transform.f) / transform.e, (x - transform.c) / transform.a

    def metres(self, row_px: FloatArray, column_px: FloatArray) -> FloatArray:
        """The inverse of :meth:`places`: (P, 2) as (x, y), EPSG:3338."""
        transform = self.grid.transform
        x, y = transform.c + column_px * transform.a, transform.f + row_px * transform.e
        if not is_alaska_albers(self.grid.crs) and x.size:
            moved = transform_points(self.grid.crs, CRS.from_user_input(ALASKA_ALBERS), x.tolist(), y.tolist())
            x, y = np.asarray(moved[0]), np.asarray(moved[1])
        return np.stack([x, y], axis=-1)

    def describe(self, row: int, column: int) -> str:
        """Where the window with this upper left cell is centred, for messages."""
        half = self.size.window_px / 2
        at = np.asarray([row * self.size.cell_px + half]), np.asarray([column * self.size.cell_px + half])
        x, y = self.metres(*at)[0]
        return f"({x:.0f}, {y:.0f})"


class StackCells:
    """Cells read from the rasters when they are asked for. One thread at a time."""

    def __init__(self, stack: ChannelStack, cell_px: int, device: str = "cpu") -> None:
        self._stack, self._cell, self._device = stack, cell_px, device

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """As :class:`Cells` says."""
        cell = self._cell
        pixels = self._stack.read(row * cell, column * cell, height * cell, width * cell)
        return average_cells(torch.from_numpy(pixels)[None], cell)[0].to(self._device)


class MemoryCells:
    """Cells held in memory, with a margin around the grid.

    Attributes:
        values: (C, H + 2 margin, W + 2 margin).
        margin: Cells kept around the grid; beyond, everything is missing.
    """

    def __init__(self, values: Tensor, margin: int) -> None:
        self.values, self.margin = values, margin

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """As :class:`Cells` says."""
        top, left = row + self.margin, column + self.margin
        count = self.values.shape[0]
        inside = self.values[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        if inside.shape == (count, height, width):
            return inside
        found = torch.full((count, height, width), float("nan"), device=self.values.device)
        if inside.numel():
            first, start = max(-top, 0), max(-left, 0)
            found[:, first : first + inside.shape[1], start : start + inside.shape[2]] = inside
        return found


def memory_bytes(dataset: Dataset, size: SizeConfig) -> int:
    """What holding all cells takes."""
    margin = 2 * size.window_px
    height, width = ((side + margin) // size.cell_px for side in dataset.grid.shape)
    return len(dataset.channels) * height * width * 4


@contextmanager
def open_scene(
    dataset: Dataset,
    size: SizeConfig,
    *,
    storage: str = "auto",
    memory_mb: int = MEMORY_MB,
    device: str = "cpu",
    progress: Optional[Progress] = None,
) -> Iterator[Scene]:
    """Open a dataset for training.

    Args:
        dataset: What to read.
        size: The network's windows and cells.
        storage: ``memory``, ``rasters`` (read each window when it is needed), or ``auto``: memory where it fits.
        memory_mb: What ``auto`` may hold.
        device: Where windows are handed over; what is held in memory is held there.
        progress: Told how far reading is; asked for cancellation.

    Raises:
        InputError: If rasters are missing or do not fit their description, or the grid is not the network's.
    """
    progress = progress or Silent()
    problem = f'Dataset "{dataset.name}"'
    if abs(dataset.resolution_m - size.resolution_m) > 1e-6:
        raise InputError(
            problem,
            f"its pixels are {dataset.resolution_m:g} m.",
            f"The network's are {size.resolution_m:g} m.",
            "Set resolution_m in the recipe's size to that of the dataset.",
        )
    if storage not in STORAGES:
        raise InputError("Storage", f'"{storage}" is unknown.', f"{', '.join(STORAGES)} are known.", "Choose one.")
    held = storage == "memory" or (storage == "auto" and memory_bytes(dataset, size) <= memory_mb * 1_000_000)
    groups = {group.name: len(group.channels) for group in dataset.groups}
    with gdal_settings(), tempfile.TemporaryDirectory(prefix="miso-scene-") as scratch:
        with dataset.stack(Path(scratch), Scaled(progress, 0.0, 0.5 if held else 1.0)) as stack:
            if not held:
                yield Scene(StackCells(stack, size.cell_px, device), dataset.grid, groups, size, False, device)
                return
            cells = _loaded(stack, dataset.grid, size, Scaled(progress, 0.5, 1.0))
        yield Scene(
            MemoryCells(cells.to(device), size.window_px // size.cell_px), dataset.grid, groups, size, True, device
        )


def _loaded(stack: ChannelStack, grid: Grid, size: SizeConfig, progress: Progress) -> Tensor:
    """All cells of the grid and one window's side around it."""
    cell, margin = size.cell_px, size.window_px // size.cell_px
    height, width = (-(-side // cell) + 2 * margin for side in grid.shape)
    values = torch.empty((len(stack.channels), height, width))
    step = max(1, _BLOCK_PX // cell)
    for row in range(0, height, step):
        progress.raise_if_cancelled()
        progress.report(row, height, "Reading the rasters")
        for column in range(0, width, step):
            tall, wide = min(step, height - row), min(step, width - column)
            pixels = stack.read((row - margin) * cell, (column - margin) * cell, tall * cell, wide * cell)
            averaged = average_cells(torch.from_numpy(pixels)[None], cell)[0]
            values[:, row : row + tall, column : column + wide] = averaged
    return values


def stacked(windows: Sequence[Tensor], mirrored: Sequence[Tuple[bool, bool]]) -> Tensor:
    """Windows (C, S, S) as one batch, each mirrored as told (rows, columns)."""
    turned = []
    for window, (rows, columns) in zip(windows, mirrored):
        axes = [axis for axis, is_turned in ((1, rows), (2, columns)) if is_turned]
        turned.append(torch.flip(window, axes) if axes else window)
    return torch.stack(turned)
