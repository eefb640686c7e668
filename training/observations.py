"""Labels at places: transects sampled from an observation map as a field survey would, and all its open cells.

An *observation* is a place with a label. Reads the open labels only (see :mod:`training.watershed`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, List, Set, Tuple

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform as warp_points

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import Grid

from . import watershed
from .splits import block_ids, sectors

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]
LabelArray = NDArray[np.uint8]

POINTS = 4000
POINTS_PER_TRANSECT = 10
SPACING_M = 50.0
NO_TRANSECT = -1
NO_SECTOR = -1


@dataclass(frozen=True)
class Observations:
    """Places with labels, all arrays of shape (N,) in the same order.

    Attributes:
        x: Easting in the target grid's CRS (EPSG:3338), metres, at the centre of a grid cell for sampled points and at
            the centre of the 50 m cell for open cells.
        y: Northing, likewise.
        row: Row of the 10 m target grid that holds the place.
        col: Column of it.
        label: 1 present, 0 absent.
        cell_row: Row of the 50 m observation map.
        cell_col: Column of it; always west of the reserved columns.
        block_id: 1 km block (see :func:`training.splits.block_ids`), the unit of folds and of the bootstrap.
        sector_id: Contiguous part of the open area, 0 to 3.
        transect: Number of the transect, -1 for open cells.
    """

    x: FloatArray
    y: FloatArray
    row: IntArray
    col: IntArray
    label: LabelArray
    cell_row: IntArray
    cell_col: IntArray
    block_id: IntArray
    sector_id: IntArray
    transect: IntArray

    def __len__(self) -> int:
        """Return the number of places."""
        return int(self.label.size)

    def subset(self, chosen: NDArray[np.generic]) -> Observations:
        """Return the places that ``chosen`` (mask or indices) picks."""
        return Observations(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def read_open_labels(path: Path) -> LabelArray:
    """Read the observation map, (247, 310) uint8: 0, 1, and 255 where there is no label *or it is reserved*.

    Raises:
        InputError: If the raster is not on the watershed's grid or holds other values.
    """
    with rasterio.open(path) as source:
        on_grid = source.shape == watershed.SHAPE and source.transform.almost_equals(
            watershed.TRANSFORM, precision=1e-3
        )
        labels: LabelArray = watershed.mask_reserved(source.read(1).astype(np.uint8))
    if not on_grid or not np.isin(labels, (0, 1, watershed.LABEL_NODATA)).all():
        raise InputError(
            f'Observation map "{path}"',
            "is not on the watershed's 50 m grid or holds values other than 0, 1 and 255.",
            "The map that SOURCE.txt describes is needed.",
            "Copy the data folder again.",
        )
    return labels


def open_cells(labels: LabelArray, grid: Grid) -> Observations:
    """Return every open cell of the map, at its centre, in row order."""
    rows, columns = (index.astype(np.int64) for index in np.nonzero(labels != watershed.LABEL_NODATA))
    x, y = cell_centres(rows, columns, grid)
    return _observations(x, y, rows, columns, np.full(rows.size, NO_TRANSECT, dtype=np.int64), labels, grid)


def cell_centres(rows: IntArray, columns: IntArray, grid: Grid) -> Tuple[FloatArray, FloatArray]:
    """Return x and y, in the grid's CRS, of the centres of cells of the 50 m map."""
    return _to_grid_crs(columns + 0.5, rows + 0.5, grid)


def sample_transects(labels: LabelArray, grid: Grid, seed: int, points: int = POINTS) -> Observations:
    """Sample ``points`` observations along random transects, as docs/validation.md, Protocol 2, says.

    A transect has 10 points 50 m apart, starts at a random open cell and runs in a random azimuth. A 50 m cell is
    sampled once at most. A point moves to the centre of its cell of ``grid``; where that leaves the 50 m cell, the
    point is dropped.

    Args:
        labels: Open labels, (H, W) uint8, 255 where there are none.
        grid: Target grid (10 m).
        seed: Seed of starts and azimuths.
        points: How many.

    Raises:
        ValueError: If the open area is too small for that many points.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.nonzero(labels != watershed.LABEL_NODATA)
    if points > rows.size // 2:
        raise ValueError(f"{points} points asked for, but there are only {rows.size} open cells")
    cell_m = watershed.TRANSFORM.a
    steps = np.arange(POINTS_PER_TRANSECT) * (SPACING_M / cell_m)  # in cells
    taken: Set[Tuple[int, int]] = set()
    found: List[Tuple[float, float, int, int, int]] = []
    transect = 0
    while len(found) < points:
        start = generator.integers(rows.size)
        azimuth = generator.uniform(0.0, 2.0 * np.pi)
        column = columns[start] + 0.5 + steps * np.sin(azimuth)
        row = rows[start] + 0.5 - steps * np.cos(azimuth)  # rows run south
        for cell, x, y in _snapped(column, row, labels, grid):
            if cell not in taken and len(found) < points:
                taken.add(cell)
                found.append((x, y, cell[0], cell[1], transect))
        transect += 1
    table = np.asarray(found, dtype=np.float64)  # (points, 5)
    cell_rows, cell_columns, transects = (table[:, i].astype(np.int64) for i in (2, 3, 4))
    return _observations(table[:, 0], table[:, 1], cell_rows, cell_columns, transects, labels, grid)


def _snapped(
    column: FloatArray, row: FloatArray, labels: LabelArray, grid: Grid
) -> List[Tuple[Tuple[int, int], float, float]]:
    """Move places (fractional cells of the 50 m map) to ``grid``'s cell centres: [((cell row, cell column), x, y)].

    Places outside the open area, and those that the move takes into another 50 m cell, are left out.
    """
    x, y = _to_grid_crs(column, row, grid)
    grid_row, grid_column = grid_cells(x, y, grid)
    a, e = grid.transform.a, grid.transform.e
    x, y = grid.transform.c + a * (grid_column + 0.5), grid.transform.f + e * (grid_row + 0.5)
    back_x, back_y = warp_points(grid.crs, watershed.CRS, x, y)
    moved_column, moved_row = _apply(~watershed.TRANSFORM, np.asarray(back_x), np.asarray(back_y))
    kept = []
    for i in range(column.size):
        cell = (int(np.floor(row[i])), int(np.floor(column[i])))
        inside = 0 <= cell[0] < labels.shape[0] and 0 <= cell[1] < labels.shape[1]
        unmoved = cell == (int(np.floor(moved_row[i])), int(np.floor(moved_column[i])))
        if inside and unmoved and labels[cell] != watershed.LABEL_NODATA:
            kept.append((cell, float(x[i]), float(y[i])))
    return kept


def grid_cells(x: FloatArray, y: FloatArray, grid: Grid) -> Tuple[IntArray, IntArray]:
    """Return row and column of the cells of ``grid`` that hold the places, which may lie outside it."""
    column, row = _apply(~grid.transform, x, y)
    return np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)


def _apply(affine: Affine, x: FloatArray, y: FloatArray) -> Tuple[FloatArray, FloatArray]:
    # Spelled out because the operator for arrays differs between affine 2 and 3.
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def _to_grid_crs(column: FloatArray, row: FloatArray, grid: Grid) -> Tuple[FloatArray, FloatArray]:
    """Fractional cells of the 50 m map to metres in the grid's CRS."""
    east, north = _apply(watershed.TRANSFORM, column, row)
    x, y = warp_points(watershed.CRS, grid.crs, east, north)
    return np.asarray(x), np.asarray(y)


def _observations(
    x: FloatArray,
    y: FloatArray,
    cell_row: IntArray,
    cell_col: IntArray,
    transect: IntArray,
    labels: LabelArray,
    grid: Grid,
) -> Observations:
    """Gather what follows from place and cell. Sectors are cut on *all* open cells, so every sample has the same."""
    row, col = grid_cells(x, y, grid)
    sector_map = np.full(labels.shape, NO_SECTOR, dtype=np.int64)
    open_rows, open_columns = np.nonzero(labels != watershed.LABEL_NODATA)
    sector_map[open_rows, open_columns] = sectors(open_rows, open_columns)
    return Observations(
        x=x,
        y=y,
        row=row,
        col=col,
        label=labels[cell_row, cell_col],
        cell_row=cell_row,
        cell_col=cell_col,
        block_id=block_ids(cell_row, cell_col),
        sector_id=sector_map[cell_row, cell_col],
        transect=transect,
    )
