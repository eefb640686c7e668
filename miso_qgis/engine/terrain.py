"""The seven terrain covariates of a DEM, with the definitions, parameters and numbers of SAGA 8.5.

Aspect, elevation, maximum curvature, slope, stream power index, SAGA wetness index, topographic position index.
What SAGA does where cells are missing was found by running it, and differs by tool:

===========================  ===========================  =========================  =================================
cells around  watershed, 50 m, 3 km parts  Healy, 30 m, 1.8 km parts  synthetic hills, 10 m, 5 km parts
============  ===========================  =========================  =================================
0             34 %; 6.9                    39 %; 5.2                  20 %; 7.5
32            1.2 %; 1.8                   21 %; 1.6                  12 %; 3.2
64            0.3 %; 0.5                   4.5 %; 1.0                 7.1 %; 2.2
128           none; 0.00                   none; 0.10                 2.7 %; 1.2
256                                                                   0.1 %; 0.17
512                                                                   none; 0.00
============  ===========================  =========================  =================================

A river's catchment may of course reach further than any buffer.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import zlib
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Protocol, Sequence, Set, Tuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy.ndimage import binary_dilation

from .errors import InputError, OutputError, Problem
from .messages import RasterSource
from .outputs import Workspace, output_problems
from .progress import Progress, Scaled, Silent
from .rasters import gdal_settings
from .terrain_kernels import RADIUS_PX, FloatArray, drain, local_gradient, position, quadric, smooth, suck

SUCTION = 10.0
"""SAGA's ``t``: the lower, the further wetness reaches out of the valley floor."""

SLOPE_OFFSET_DEG = 0.01
"""Added to the slope in the wetness index, which would otherwise be infinite on flat ground."""

NODATA = -9999.0
BLOCK_PX = 512
SMALLEST_PX = 2 * RADIUS_PX + 1

SEVEN: Tuple[str, ...] = (
    "elevation",
    "aspect",
    "slope",
    "maximum_curvature",
    "topographic_position_index",
    "stream_power_index",
    "saga_wetness_index",
)

UNITS: Dict[str, str] = {
    "elevation": "m",
    "aspect": "degree",
    "aspect_sin": "1",
    "aspect_cos": "1",
    "slope": "degree",
    "maximum_curvature": "1/m",
    "topographic_position_index": "standard deviation",
    "stream_power_index": "m2",
    "saga_wetness_index": "1",
}

DESCRIPTIONS: Dict[str, str] = {
    "elevation": "Elevation",
    "aspect": "Aspect (clockwise from north, downslope; flat cells 270 as in SAGA)",
    "aspect_sin": "Sine of aspect",
    "aspect_cos": "Cosine of aspect",
    "slope": "Slope (quadric over 9 x 9 cells)",
    "maximum_curvature": "Maximum curvature (quadric over 9 x 9 cells)",
    "topographic_position_index": "Topographic position index (radii of 1 and 4 cells)",
    "stream_power_index": "Stream power index",
    "saga_wetness_index": "SAGA wetness index",
}

TpiStatistics = Tuple[float, float, float, float]
"""Mean and standard deviation (m) of elevation minus its mean within 1 cell, then the same for 4 cells."""

# Below this, in cells, water that crosses a block's border is not followed any further. Catchment areas are at least
# one cell, so that what is lost is under the resolution of float32.
_NEGLIGIBLE_INFLOW = 1e-8

# How far around a block water and suction are followed in one visit. 32 cells: 9 visits of 4 blocks of 1024 cells;
# 64: 7; 128: 6, at more work for each; none: 148.
_OVERLAP_PX = 64

# ---------------------------------------------------------------------------------------------------------------------
# Where elevations come from and where intermediate planes stay.


@dataclass(frozen=True)
class _Block:
    """A rectangle of cells, half-open: rows ``row`` to ``row + height``, columns likewise."""

    row: int
    column: int
    height: int
    width: int

    def grown(self, margin: int, height: int, width: int) -> _Block:
        """Return this block with ``margin`` more cells on each side, as far as a raster of that size reaches."""
        top, left = max(self.row - margin, 0), max(self.column - margin, 0)
        bottom = min(self.row + self.height + margin, height)
        right = min(self.column + self.width + margin, width)
        return _Block(top, left, bottom - top, right - left)

    def within(self, other: _Block, margin: int) -> Tuple[slice, slice]:
        """Return where this block lies in an array that covers ``other`` grown by ``margin``."""
        top, left = self.row - other.row + margin, self.column - other.column + margin
        return slice(top, top + self.height), slice(left, left + self.width)


class _Elevation(Protocol):
    """Elevations by rectangle, row 0 in the north and column 0 in the west."""

    height: int
    width: int

    def read(self, block: _Block, margin: int) -> FloatArray:
        """Return float64 elevations (m) of ``block`` grown by ``margin`` on each side; NaN where there are none."""


class _ArrayElevation:
    """Elevations in memory."""

    def __init__(self, elevation: FloatArray) -> None:
        self.height, self.width = elevation.shape
        self._values = elevation

    def read(self, block: _Block, margin: int) -> FloatArray:
        return _cut(self._values, block, margin, np.nan)


def _cut(values: FloatArray, block: _Block, margin: int, outside: float) -> FloatArray:
    """Copy ``block`` grown by ``margin`` out of ``values``, with ``outside`` beyond the array."""
    height, width = values.shape
    result = np.full((block.height + 2 * margin, block.width + 2 * margin), outside, dtype=np.float64)
    top, left = block.row - margin, block.column - margin
    rows = slice(max(top, 0), min(top + result.shape[0], height))
    columns = slice(max(left, 0), min(left + result.shape[1], width))
    result[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = values[rows, columns]
    return result


class _RasterElevation:
    """Elevations of an open raster band, turned north-up whatever its transform, nodata and infinities as NaN."""

    def __init__(self, dataset: Any, source: RasterSource) -> None:  # noqa: ANN401  # reason: rasterio has no stubs
        self._dataset = dataset
        self._source = source
        self.height, self.width = dataset.height, dataset.width
        self.south_up = dataset.transform.e > 0
        self.east_left = dataset.transform.a < 0
        self._scale = dataset.scales[source.band - 1]
        self._offset = dataset.offsets[source.band - 1]

    def window(self, block: _Block) -> Window:
        """Return where ``block`` lies in the file."""
        row = self.height - block.row - block.height if self.south_up else block.row
        column = self.width - block.column - block.width if self.east_left else block.column
        return Window(column, row, block.width, block.height)

    def turned(self, values: FloatArray) -> FloatArray:
        """Turn an array from the file's order to north-up, or back."""
        return values[:: -1 if self.south_up else 1, :: -1 if self.east_left else 1]

    def create(self, path: Path, name: str) -> Any:  # noqa: ANN401  # reason: rasterio has no stubs
        """Open a new GeoTIFF for the covariate ``name`` on the grid of the DEM."""
        result = rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=self.height,
            width=self.width,
            count=1,
            dtype="float32",
            crs=self._dataset.crs,
            transform=self._dataset.transform,
            nodata=NODATA,
            tiled=True,
            blockxsize=256,
            blockysize=256,
            compress="deflate",
            predictor=3,
            zlevel=1,  # level 6 takes three times as long for 4 % less
            bigtiff="if_safer",
        )
        result.set_band_description(1, DESCRIPTIONS[name])
        result.set_band_unit(1, UNITS[name])
        return result

    def read(self, block: _Block, margin: int) -> FloatArray:
        top, left = max(block.row - margin, 0), max(block.column - margin, 0)
        bottom = min(block.row + block.height + margin, self.height)
        right = min(block.column + block.width + margin, self.width)
        inside = _Block(top, left, bottom - top, right - left)
        try:
            raw = self._dataset.read(self._source.band, window=self.window(inside), masked=True)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                _name(self._source),
                f"rows {top} to {bottom} cannot be read ({error}).",
                "The whole file must be readable.",
                "Copy or download it again.",
            ) from error
        values = np.asarray(raw.data, dtype=np.float64) * self._scale + self._offset
        values[np.ma.getmaskarray(raw) | ~np.isfinite(values)] = np.nan
        grown = _Block(block.row - top, block.column - left, block.height, block.width)
        return _cut(self.turned(values), grown, margin, np.nan)


class _Plane(Protocol):
    """A raster of float64 that blocks write once and read with a margin; 0 where nothing is."""

    def read(self, block: _Block, margin: int) -> FloatArray: ...

    def write(self, block: _Block, values: FloatArray) -> None: ...


class _ArrayPlane:
    """A plane in memory."""

    def __init__(self, height: int, width: int) -> None:
        self._values = np.zeros((height, width))

    def read(self, block: _Block, margin: int) -> FloatArray:
        return _cut(self._values, block, margin, 0.0)

    def write(self, block: _Block, values: FloatArray) -> None:
        self._values[block.row : block.row + block.height, block.column : block.column + block.width] = values


class _FilePlane:
    """A plane in a scratch file, row by row.

    Not a memory map: its pages count as the process's memory, and a full disk would end the process with a signal.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._file = path.open("w+b", buffering=0)
        self._file.truncate(8 * height * width)

    def close(self) -> None:
        self._file.close()

    def read(self, block: _Block, margin: int) -> FloatArray:
        result = np.zeros((block.height + 2 * margin, block.width + 2 * margin))
        top, left = block.row - margin, block.column - margin
        first, last = max(left, 0), min(left + result.shape[1], self._width)
        for row in range(max(top, 0), min(top + result.shape[0], self._height)):
            self._file.seek(8 * (row * self._width + first))
            part = result[row - top, first - left : last - left]
            part[:] = np.frombuffer(self._file.read(part.nbytes))
        return result

    def write(self, block: _Block, values: FloatArray) -> None:
        values = np.ascontiguousarray(values, dtype=np.float64)
        for offset in range(block.height):
            self._file.seek(8 * ((block.row + offset) * self._width + block.column))
            data = values[offset].tobytes()
            if self._file.write(data) != len(data):
                raise OSError("the disk is full")


# ---------------------------------------------------------------------------------------------------------------------
# The stages, block by block.


def _blocks(height: int, width: int, size: int) -> List[_Block]:
    return [
        _Block(row, column, min(size, height - row), min(size, width - column))
        for row in range(0, height, size)
        for column in range(0, width, size)
    ]


class _Owners:
    """Which block of a regular cut holds a cell."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._tops = sorted({block.row for block in blocks})
        self._lefts = sorted({block.column for block in blocks})

    def of(self, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
        """Return the index of the block of each cell; all cells lie in the raster."""
        down = np.searchsorted(self._tops, rows, side="right") - 1
        across = np.searchsorted(self._lefts, columns, side="right") - 1
        found: NDArray[Any] = down * len(self._lefts) + across
        return found


class _Moments:
    """Count, mean and squared deviations of a stream of arrays (Chan et al. 1983); NaN is left out."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: FloatArray) -> None:
        values = values[~np.isnan(values)]
        if values.size == 0:
            return
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        n = self.n + values.size
        shift = mean - self.mean
        self._squares += squares + shift * shift * self.n * values.size / n
        self.mean += shift * values.size / n
        self.n = n

    def deviation(self) -> float:
        """Return the standard deviation of the population, as SAGA standardises."""
        return math.sqrt(self._squares / self.n) if self.n else 0.0


@dataclass
class _Survey:
    """What one look at the whole DEM tells.

    Attributes:
        statistics: For the topographic position index.
        highest: Highest elevation of each block, m; NaN for a block without any.
    """

    statistics: TpiStatistics
    highest: List[float]


def _survey(
    elevation: _Elevation, blocks: Sequence[_Block], progress: Progress, check: Optional[_PlausibilityCheck] = None
) -> _Survey:
    near_moments, far_moments = _Moments(), _Moments()
    highest: List[float] = []
    for n, block in enumerate(blocks):
        progress.raise_if_cancelled()
        z = elevation.read(block, RADIUS_PX)
        inner = z[RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
        valid = ~np.isnan(inner)
        highest.append(float(inner[valid].max()) if valid.any() else math.nan)
        if check is not None:
            check.look(inner[valid])
        near, far = np.empty(inner.shape), np.empty(inner.shape)
        position(z, near, far)
        near_moments.add(near)
        far_moments.add(far)
        progress.report(n + 1, len(blocks), "Reading the DEM")
    if check is not None:
        check.finish()
    statistics = (near_moments.mean, near_moments.deviation(), far_moments.mean, far_moments.deviation())
    return _Survey(statistics, highest)


class _Inflow:
    """Water (cells) that waits at cells of blocks to be drained from there."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._blocks = blocks
        self._owners = _Owners(blocks)
        self._waiting: Dict[int, List[Tuple[NDArray[Any], NDArray[Any], FloatArray]]] = defaultdict(list)

    def take(self, n: int, water: FloatArray, margin: int) -> None:
        """Add what waits in block ``n`` to ``water``, which covers the block grown by ``margin``."""
        block = self._blocks[n]
        for rows, columns, amounts in self._waiting.pop(n, []):
            water[rows - block.row + margin, columns - block.column + margin] += amounts

    def put(self, rows: NDArray[Any], columns: NDArray[Any], amounts: FloatArray) -> NDArray[Any]:
        """Leave water at cells of the raster, each named once; return the block of each."""
        owners = self._owners.of(rows, columns)
        for owner in np.unique(owners):
            here = owners == owner
            # Arrays of 16 bytes for each cell: much water may be waiting where a raster has many blocks.
            cells = rows[here].astype(np.int32), columns[here].astype(np.int32), amounts[here]
            self._waiting[int(owner)].append(cells)
        return owners


def _catchment(
    elevation: _Elevation,
    blocks: Sequence[_Block],
    highest: Sequence[float],
    cell_m: float,
    area: _Plane,
    progress: Progress,
) -> int:
    """Add up the catchment area (cells; 0 = missing) of each cell in ``area``; return the number of block visits.

    Water is followed through a block and :data:`_OVERLAP_PX` cells around it. What gets further waits where it has got
    to, and that block is visited again with the new water only. Areas are sums over all water, so visits simply add
    up. The overlap spares a stream that winds along a border two visits for each crossing. Flow has no cycles, so this
    ends; the block with the highest waiting water goes first, which keeps the visits few.
    """
    margin = _OVERLAP_PX + 1  # the outermost ring only receives
    inflow = _Inflow(blocks)
    queue = [(-top, n) for n, top in enumerate(highest) if not math.isnan(top)]
    heapq.heapify(queue)
    waiting = {n for _, n in queue}
    visited: Set[int] = set()
    visits = 0
    while queue:
        _, n = heapq.heappop(queue)
        if n not in waiting:
            continue
        waiting.discard(n)
        progress.raise_if_cancelled()
        block = blocks[n]
        z = elevation.read(block, margin)
        water = np.zeros(z.shape)
        if n not in visited:
            own = (slice(margin, -margin), slice(margin, -margin))
            water[own][~np.isnan(z[own])] = 1.0
        inflow.take(n, water, margin)
        drain(z, _downhill(z), cell_m, water)
        reach = block.grown(_OVERLAP_PX, elevation.height, elevation.width)
        inner = reach.within(block, margin)
        area.write(reach, area.read(reach, 0) + water[inner])
        visited.add(n)
        visits += 1
        water[inner] = 0.0
        rows, columns = np.nonzero(water > _NEGLIGIBLE_INFLOW)
        owners = inflow.put(rows + (block.row - margin), columns + (block.column - margin), water[rows, columns])
        for other in np.unique(owners).tolist():
            waiting.add(other)
            heapq.heappush(queue, (-float(z[rows, columns][owners == other].max()), other))
        progress.report(len(visited), len(blocks), "Catchment area")
    return visits


def _downhill(z: FloatArray) -> NDArray[Any]:
    """Return the flat indices of the valid inner cells of ``z`` (padded by 1), highest first."""
    rows, columns = np.nonzero(~np.isnan(z[1:-1, 1:-1]))
    flat = (rows + 1) * z.shape[1] + columns + 1
    order: NDArray[Any] = flat[np.argsort(-z.ravel()[flat])]
    return order


def _suction_factor(gradient: FloatArray) -> FloatArray:
    """Return the share of a neighbour's area that a cell of this local gradient takes over, 0 where it is missing."""
    slope_rad = np.arctan(np.nan_to_num(gradient))
    factor = (1.0 / SUCTION) ** (slope_rad * np.exp(SUCTION**slope_rad))
    return np.where(np.isnan(gradient), 0.0, factor)


def _gradient(z: FloatArray, cell_m: float) -> FloatArray:
    gradient = np.empty((z.shape[0] - 2, z.shape[1] - 2))
    local_gradient(z, cell_m, gradient)
    return gradient


def _modified_catchment(
    elevation: _Elevation,
    blocks: Sequence[_Block],
    cell_m: float,
    area: _Plane,
    modified: _Plane,
    progress: Progress,
) -> int:
    """Write the modified catchment area (cells, before the 3 x 3 mean) into ``modified``; return the block visits.

    Each visit settles a block and :data:`_OVERLAP_PX` cells around it. What has risen on the rim of that may raise the
    cells beyond, whose blocks are then visited (again). Values only rise and are bounded, so this ends.
    """
    owners = _Owners(blocks)
    for block in blocks:
        progress.raise_if_cancelled()
        modified.write(block, area.read(block, 0))
    queue = deque(range(len(blocks)))
    finished: Set[int] = set()
    visits = 0
    while queue:
        n = queue.popleft()
        progress.raise_if_cancelled()
        reach = blocks[n].grown(_OVERLAP_PX, elevation.height, elevation.width)
        raised = modified.read(reach, 1)
        before = raised.copy()
        factor = np.pad(_suction_factor(_gradient(elevation.read(reach, 1), cell_m)), 1)
        visits += 1
        if suck(raised, factor):
            modified.write(reach, raised[1:-1, 1:-1])
            # The ring around the reach, where it touches a cell that has risen.
            beyond = binary_dilation(raised != before, np.ones((3, 3), dtype=bool))
            beyond[1:-1, 1:-1] = False
            rows, columns = np.nonzero(beyond & (raised > 0.0))
            touched = set(owners.of(rows + reach.row - 1, columns + reach.column - 1).tolist())
            queue.extend(sorted(touched - set(queue)))
        finished.add(n)
        progress.report(len(finished), len(blocks), "Modified catchment area")
    return visits


def _covariates(
    z: FloatArray,
    cell_m: float,
    statistics: TpiStatistics,
    area: Optional[FloatArray],
    modified: Optional[FloatArray],
    names: Sequence[str],
) -> Dict[str, FloatArray]:
    """Compute the named covariates of one block; ``z`` is padded by 4, ``area`` and ``modified`` by 1 (cells)."""
    r = RADIUS_PX
    inner = z[r:-r, r:-r]
    results: Dict[str, FloatArray] = {"elevation": inner}
    wanted = set(names)
    if wanted & {"slope", "aspect", "aspect_sin", "aspect_cos", "maximum_curvature"}:
        slope, aspect, curvature = np.empty(inner.shape), np.empty(inner.shape), np.empty(inner.shape)
        quadric(z, cell_m, slope, aspect, curvature)
        results.update(slope=slope, aspect=aspect, maximum_curvature=curvature)
        results.update(aspect_sin=np.sin(np.radians(aspect)), aspect_cos=np.cos(np.radians(aspect)))
    if "topographic_position_index" in wanted:
        near, far = np.empty(inner.shape), np.empty(inner.shape)
        position(z, near, far)
        results["topographic_position_index"] = _standardised(near, far, statistics)
    if area is not None and modified is not None:
        gradient = _gradient(z[r - 1 : 1 - r, r - 1 : 1 - r], cell_m)
        results["stream_power_index"] = area[1:-1, 1:-1] * (cell_m * cell_m) * gradient
        smoothed = np.empty(inner.shape)
        smooth(area, modified, smoothed)
        slope_rad = np.arctan(gradient) + math.radians(SLOPE_OFFSET_DEG)
        results["saga_wetness_index"] = np.log(smoothed * cell_m / np.tan(slope_rad))
    return {name: results[name].astype(np.float32) for name in names}


def _standardised(near: FloatArray, far: FloatArray, statistics: TpiStatistics) -> FloatArray:
    """Standardise both scales and keep the one that is further from 0; the larger scale wins ties."""
    near_mean, near_sd, far_mean, far_sd = statistics
    # A level DEM has no spread: SAGA then leaves its zeros alone.
    small = (near - near_mean) / (near_sd if near_sd > 0 else 1.0)
    large = (far - far_mean) / (far_sd if far_sd > 0 else 1.0)
    return np.where(np.abs(small) > np.abs(large), small, large)


def derive_terrain(
    elevation: FloatArray, cell_size_m: float, *, tpi_statistics: Optional[TpiStatistics] = None
) -> Dict[str, FloatArray]:
    """Compute the seven covariates of an array in memory.

    Args:
        elevation: Elevation in m, shape (H, W), any real dtype, row 0 in the north; NaN and infinities are missing.
        cell_size_m: Side of a (square) cell in m.
        tpi_statistics: Mean and standard deviation (m) for the topographic position index, see
            :func:`tpi_statistics`; None takes those of ``elevation``, as SAGA does.

    Returns:
        By name (:data:`SEVEN`): float32, shape (H, W), NaN exactly where ``elevation`` is missing. Elevation in m;
        aspect in degrees [0, 360), clockwise from north, downslope, 270 on flat ground; slope in degrees [0, 90);
        maximum curvature in 1/m; topographic position index in standard deviations; stream power index in m2;
        SAGA wetness index as the logarithm of a length in m.

    Raises:
        InputError: If the array is not two-dimensional or smaller than 9 x 9, or the cell size is not positive.

    Source: see the module's text; Wood 1996 (quadric), Freeman 1991 (flow), Böhner et al. 2002 (wetness).
    """
    if elevation.ndim != 2 or min(elevation.shape) < SMALLEST_PX:
        raise _too_small("The elevation array", elevation.shape)
    if not (math.isfinite(cell_size_m) and cell_size_m > 0):
        raise InputError("The cell size", f"it is {cell_size_m} m.", "A positive number of metres is needed.")
    z = np.array(elevation, dtype=np.float64)
    z[~np.isfinite(z)] = np.nan
    source = _ArrayElevation(z)
    height, width = z.shape
    blocks = _blocks(height, width, max(height, width))
    survey = _survey(source, blocks, Silent())
    area, modified = _ArrayPlane(height, width), _ArrayPlane(height, width)
    _catchment(source, blocks, survey.highest, cell_size_m, area, Silent())
    _modified_catchment(source, blocks, cell_size_m, area, modified, Silent())
    (block,) = blocks
    return _covariates(
        source.read(block, RADIUS_PX),
        cell_size_m,
        tpi_statistics or survey.statistics,
        area.read(block, 1),
        modified.read(block, 1),
        SEVEN,
    )


def tpi_statistics(dem: RasterSource, progress: Optional[Progress] = None) -> TpiStatistics:
    """Return the statistics that standardise the topographic position index over the whole of ``dem``.

    Raises:
        InputError: As in :func:`write_terrain`.
    """
    with _opened(dem) as (elevation, _):
        blocks = _blocks(elevation.height, elevation.width, BLOCK_PX)
        return _survey(elevation, blocks, progress or Silent(), _PlausibilityCheck(dem)).statistics


def write_terrain(
    dem: RasterSource,
    output_dir: Path,
    progress: Progress,
    *,
    tpi_statistics: Optional[TpiStatistics] = None,
    covariates: Sequence[str] = SEVEN,
    block_px: int = BLOCK_PX,
) -> Dict[str, Path]:
    """Write the covariates of a DEM as GeoTIFFs ``<covariate>.tif`` on the DEM's own grid.

    Memory does not grow with the area; two scratch files of 8 bytes per cell lie in a hidden folder of ``output_dir``
    meanwhile. Results are read back and get their names when all of them are complete; after an error or a
    cancellation nothing is left, and older results of these names are as they were.

    Args:
        dem: Elevation in m in a projected CRS with square cells; scale and offset are applied; masks, nodata, NaN and
            infinities are missing.
        output_dir: Folder of the results, made if it is not there.
        progress: Told after each block, asked before each block whether to stop.
        tpi_statistics: See :func:`derive_terrain`; None takes one more look at the whole raster.
        covariates: Names of :data:`SEVEN`, and ``aspect_sin`` and ``aspect_cos``, which can be resampled where aspect
            itself cannot.
        block_px: Side of a block in cells; a multiple of 256 writes each tile once.

    Returns:
        Path by covariate. Files are float32 with nodata -9999, tiled, deflated, with description and unit; units and
        ranges as in :func:`derive_terrain`.

    Raises:
        InputError: If the DEM cannot be read, has no or a geographic CRS, rotated or non-square cells (more than 1 %
            apart), fewer than 9 x 9 cells, no valid cell, or values that no elevation can take.
        OutputError: If the folder cannot be written or the disk is full.
        Cancelled: If the user asked to stop.
    """
    unknown = [name for name in covariates if name not in UNITS]
    if unknown:
        raise InputError(
            f"Covariate {unknown[0]!r}",
            "it is not known.",
            f"Known covariates are {', '.join(UNITS)}.",
            "Choose among these.",
        )
    with _opened(dem) as (elevation, cell_m):
        paths = {name: output_dir / f"{name}.tif" for name in covariates}
        problems = output_problems(paths, {"dem": dem}, ())
        if problems:
            raise OutputError.of(problems)
        # Two planes of float64, and the results, which deflate makes smaller but not reliably so.
        needed = elevation.height * elevation.width * (16 + 4 * len(covariates))
        with _empty_folder_removed(output_dir), Workspace(paths, needed) as workspace:
            _write_all(elevation, cell_m, dem, workspace, progress, tpi_statistics, covariates, block_px)
            progress.raise_if_cancelled()
            workspace.commit()
    return paths


@contextlib.contextmanager
def _empty_folder_removed(folder: Path) -> Iterator[None]:
    """Remove ``folder`` after an error if it was made meanwhile and holds nothing."""
    existed = folder.exists()
    try:
        yield
    except BaseException:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _write_all(
    elevation: _RasterElevation,
    cell_m: float,
    dem: RasterSource,
    workspace: Workspace,
    progress: Progress,
    given: Optional[TpiStatistics],
    covariates: Sequence[str],
    block_px: int,
) -> None:
    """Compute all stages and leave complete, checked files in ``workspace``."""
    height, width = elevation.height, elevation.width
    blocks = _blocks(height, width, block_px)
    survey = _survey(elevation, blocks, _stage(progress, 0), _PlausibilityCheck(dem))
    statistics = given or survey.statistics
    with workspace.writing(), contextlib.ExitStack() as stack:
        area: Optional[_FilePlane] = None
        modified: Optional[_FilePlane] = None
        if {"stream_power_index", "saga_wetness_index"} & set(covariates):
            scratch = workspace.scratch()
            area = stack.enter_context(contextlib.closing(_FilePlane(scratch / "area", height, width)))
            modified = stack.enter_context(contextlib.closing(_FilePlane(scratch / "modified", height, width)))
            _catchment(elevation, blocks, survey.highest, cell_m, area, _stage(progress, 1))
            _modified_catchment(elevation, blocks, cell_m, area, modified, _stage(progress, 2))
        files = {n: stack.enter_context(elevation.create(workspace.finished(n), n)) for n in covariates}
        written: List[Tuple[str, Window, int]] = []
        last = _stage(progress, 3)
        for n, block in enumerate(blocks):
            progress.raise_if_cancelled()
            results = _covariates(
                elevation.read(block, RADIUS_PX),
                cell_m,
                statistics,
                area.read(block, 1) if area else None,
                modified.read(block, 1) if modified else None,
                covariates,
            )
            window = elevation.window(block)
            for name, values in results.items():
                values[np.isnan(values)] = NODATA
                turned = np.ascontiguousarray(elevation.turned(values))
                files[name].write(turned, 1, window=window)
                written.append((name, window, zlib.crc32(turned.tobytes())))
            last.report(n + 1, len(blocks), "Writing covariates")
    with workspace.writing():
        _verify(written, workspace, progress)


def _verify(written: Sequence[Tuple[str, Window, int]], workspace: Workspace, progress: Progress) -> None:
    """Compare the closed files with what was written: GDAL flushes on closing, and says nothing if the disk is full."""
    for name, path in workspace.paths.items():
        with rasterio.open(workspace.finished(name)) as dataset:
            for _, window, checksum in (entry for entry in written if entry[0] == name):
                progress.raise_if_cancelled()
                if zlib.crc32(dataset.read(1, window=window).tobytes()) != checksum:
                    raise OutputError(
                        f'Output "{name}" ({path})',
                        "read back, it is not what was written.",
                        "A disk with enough space that keeps what is written is needed.",
                        "Check the disk's free space and health, or choose another folder.",
                    )


def _stage(progress: Progress, n: int) -> Progress:
    """Return the progress of stage ``n`` of the four: survey, catchment area, modified catchment area, writing."""
    return Scaled(progress, n / 4, (n + 1) / 4)


# ---------------------------------------------------------------------------------------------------------------------
# Files: what is refused, where results grow.


def _name(source: RasterSource) -> str:
    band = "" if source.band == 1 else f" band {source.band}"
    return f'DEM "{source.path}"{band}'


def _too_small(what: str, shape: Sequence[int]) -> InputError:
    return InputError(
        what,
        f"it has {' x '.join(str(n) for n in shape)} cells.",
        f"At least {SMALLEST_PX} x {SMALLEST_PX} are needed: slope and curvature are fitted to windows of that size.",
        "Choose a DEM that covers a larger area.",
    )


@contextlib.contextmanager
def _opened(source: RasterSource) -> Iterator[Tuple[_RasterElevation, float]]:
    """Open a DEM, refuse what cannot give right results, and yield it with its cell size in metres."""
    with gdal_settings():
        try:
            dataset = rasterio.open(source.path)
        except rasterio.errors.RasterioError as error:
            raise InputError(
                _name(source),
                f"it cannot be opened ({error}).",
                "A raster file that GDAL reads is needed.",
                "Check the path.",
            ) from error
        with dataset:
            if not 1 <= source.band <= dataset.count:
                raise InputError(
                    f'DEM "{source.path}"',
                    f"it has no band {source.band}, only {dataset.count}.",
                    "",
                    "Choose one of its bands.",
                )
            problems = _problems(dataset, source)
            if problems:
                raise InputError.of(problems)
            transform = dataset.transform
            metres = dataset.crs.linear_units_factor[1]
            yield _RasterElevation(dataset, source), math.sqrt(abs(transform.a * transform.e)) * metres


def _problems(dataset: Any, source: RasterSource) -> List[Problem]:  # noqa: ANN401  # reason: rasterio has no stubs
    """Return everything that the header tells against a DEM."""
    what = _name(source)
    problems: List[Problem] = []
    reproject = "Reproject it to a projected CRS such as EPSG:3338 (QGIS: Raster > Projections > Warp)."
    if dataset.crs is None:
        needed = "Without one, the size of its cells is unknown."
        problems.append(Problem(what, "it has no CRS.", needed, "Assign the CRS in which it was made."))
    elif dataset.crs.is_geographic:
        found = f"it is in {dataset.crs.to_string()}, whose unit is the degree."
        problems.append(Problem(what, found, "Slopes need cells measured in metres.", reproject))
    elif not dataset.crs.is_projected:
        problems.append(
            Problem(what, "it has a CRS that is not a map projection.", "A projected CRS is needed.", reproject)
        )
    if min(dataset.height, dataset.width) < SMALLEST_PX:
        problems += _too_small(what, (dataset.width, dataset.height)).problems
    t = dataset.transform
    if t.b != 0 or t.d != 0:
        problems.append(Problem(what, "it is rotated or sheared.", "Rows must run from west to east.", reproject))
    elif abs(abs(t.a) - abs(t.e)) > 0.01 * min(abs(t.a), abs(t.e)):
        found = f"it has cells of {abs(t.a):g} x {abs(t.e):g}."
        problems.append(Problem(what, found, "Square cells are needed (to 1 %).", "Resample it to square cells."))
    dtype = str(dataset.dtypes[source.band - 1])
    if dtype.startswith("complex"):
        problems.append(
            Problem(what, f"it holds {dtype} numbers.", "Real elevations are needed.", "Choose another band.")
        )
    unit = (dataset.units[source.band - 1] or "").strip().lower()
    if unit in ("ft", "foot", "feet", "us-ft", "us survey foot", "ftus", "us_ft"):
        remedy = "Multiply it by 0.3048 with the Raster Calculator."
        problems.append(Problem(what, f'it states its unit as "{unit}".', "Elevations in metres are needed.", remedy))
    return problems


class _PlausibilityCheck:
    """Looks at every block of a DEM for values that are no elevations; after the last one, for any value at all."""

    lowest_m, highest_m = -12000.0, 9000.0
    # What software writes for "missing" and may have forgotten to declare, but is a possible number of metres.
    markers = (-9999.0,)

    def __init__(self, source: RasterSource) -> None:
        self._source = source
        self._any_valid = False

    def look(self, values: FloatArray) -> None:
        """Refuse a DEM for one of these valid values of a block."""
        if values.size == 0:
            return
        self._any_valid = True
        strange = [v for v in (float(values.min()), float(values.max())) if not self.lowest_m <= v <= self.highest_m]
        strange += [v for v in self.markers if bool((values == v).any())]
        if strange:
            raise InputError(
                _name(self._source),
                f"it holds the value {strange[0]:g}, which is no elevation in metres.",
                "Missing cells must be declared as nodata, and elevations be in metres.",
                "Set this value as the layer's nodata value (gdal_translate -a_nodata), or convert the unit.",
            )

    def finish(self) -> None:
        """Refuse a DEM without any valid cell."""
        if not self._any_valid:
            raise InputError(
                _name(self._source),
                "it holds no valid cell; all are nodata.",
                "At least one elevation is needed.",
                "Check its nodata value, or choose a DEM that covers the area.",
            )
