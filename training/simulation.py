"""A small simulated boreal valley: where no real data can be had, the whole path still has something to work on.

Owns the invention: ridges, valleys carved by running water, and land cover that follows slope, aspect and position as
it does in interior Alaska. Nothing in it is a measurement, and every file says so in its tags. Runs in the engine's
environment.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Dict

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float64]

CRS = "EPSG:32606"
SIZE = (124, 118)  # rows, columns: odd enough that a swapped axis shows
CELL_M = 50.0
# North of Fairbanks, well away from the real watershed.
ORIGIN = (512000.0, 7262000.0)
RELIEF_M = (230.0, 760.0)
TAG = "SIMULATED"
SENTENCE = "Simulated valley: elevation and land cover are invented, not measured."

EROSION_STEPS = 30
EROSION_STRENGTH = 0.8
PIT_RISE_M = 0.01
STEPS = tuple((dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0))
DECIDUOUS, EVERGREEN, MIXED, SHRUB, WETLAND = 41, 42, 43, 52, 90


def simulate_valley(folder: Path, seed: int = 1) -> Dict[str, Path]:
    """Write ``dem.tif`` (metres, float32, nodata -9999) and ``nlcd.tif`` (NLCD classes, uint8, nodata 0).

    About 6 x 6 km at 50 m, EPSG:32606. The same seed gives the same cells. Both files carry the tag ``SIMULATED``.

    Args:
        folder: Where to write; made if it is missing.
        seed: Seed of the noise.

    Returns:
        ``{"dem": path, "nlcd": path}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    elevation = simulated_elevation(seed)
    classes = simulated_land_cover(elevation, seed)
    paths = {"dem": folder / "dem.tif", "nlcd": folder / "nlcd.tif"}
    _write(paths["dem"], elevation.astype(np.float32), -9999.0, "Simulated elevation", "m")
    _write(paths["nlcd"], classes, 0, "Simulated land cover (NLCD codes)", "")
    return paths


def simulated_elevation(seed: int) -> FloatArray:
    """Make a landscape of ridges and valleys, (124, 118), metres.

    Noise of several scales on a tilted plane is eroded by the water that runs over it (stream power law, steepest
    descent over a surface without pits). Then the lowest ground along the streams is filled to a gentle floor, as
    silt and loess do, and all is smoothed a little.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.indices(SIZE, dtype=np.float64)
    # The plane falls to the south-west, so that the main stream leaves there and slopes face every way.
    surface = 0.035 * ((SIZE[0] - rows) * 0.6 + columns * 0.4) * CELL_M
    for sigma, amplitude in ((20.0, 70.0), (10.0, 45.0), (4.0, 14.0), (1.5, 4.0)):
        noise = ndimage.gaussian_filter(generator.standard_normal(SIZE), sigma, mode="reflect")
        surface += amplitude * noise / noise.std()
    for step in range(EROSION_STEPS):
        # Erosion makes few new pits, and looking for them takes most of the time.
        surface = _eroded(_without_pits(surface) if step % 5 == 0 else surface)
    floor = ndimage.gaussian_filter(ndimage.minimum_filter(surface, 5, mode="nearest"), 2.0, mode="nearest")
    surface = ndimage.gaussian_filter(np.maximum(surface, floor + 6.0), 1.0, mode="nearest")
    low, high = RELIEF_M
    scaled: FloatArray = low + (high - low) * (surface - surface.min()) / np.ptp(surface)
    return scaled


def _without_pits(surface: FloatArray) -> FloatArray:
    """Raise every pit to its outlet plus a little, so that water from each cell reaches the edge (priority flood)."""
    filled = np.full(SIZE, np.inf)
    edge = np.ones(SIZE, dtype=bool)
    edge[1:-1, 1:-1] = False
    filled[edge] = surface[edge]
    queue = [(filled[r, c], int(r), int(c)) for r, c in np.argwhere(edge)]
    heapq.heapify(queue)
    while queue:
        level, row, column = heapq.heappop(queue)
        for r, c in ((row + dr, column + dc) for dr, dc in STEPS):
            if 0 <= r < SIZE[0] and 0 <= c < SIZE[1] and np.isinf(filled[r, c]):
                filled[r, c] = max(surface[r, c], level + PIT_RISE_M)
                heapq.heappush(queue, (filled[r, c], r, c))
    return filled


def _eroded(surface: FloatArray) -> FloatArray:
    """One step of erosion: each cell sinks towards its lowest neighbour, the faster the more water it carries."""
    padded = np.pad(surface, 1, constant_values=np.inf)
    neighbours = np.stack([padded[1 + r : 1 + r + SIZE[0], 1 + c : 1 + c + SIZE[1]] for r, c in STEPS])  # (8, H, W)
    distance = np.asarray([np.hypot(r, c) for r, c in STEPS])[:, None, None] * CELL_M
    steepest = ((surface - neighbours) / distance).argmax(axis=0)
    drop = np.take_along_axis(surface - neighbours, steepest[None], axis=0)[0]
    offsets = np.asarray([r * SIZE[1] + c for r, c in STEPS])
    receivers = np.arange(surface.size) + offsets[steepest.ravel()]
    flows = drop.ravel() > 0
    area = np.ones(surface.size)
    for cell in np.argsort(-surface, axis=None):  # from the highest down: all water has arrived before it moves on
        if flows[cell]:
            area[receivers[cell]] += area[cell]
    carried = np.minimum(np.sqrt(area.reshape(SIZE) / (0.1 * area.size)), 1.0)
    return surface - np.where(drop > 0, EROSION_STRENGTH * carried * drop, 0.0)


def simulated_land_cover(elevation: FloatArray, seed: int) -> NDArray[np.uint8]:
    """Give each cell an NLCD class that fits its place: (124, 118) uint8.

    Wet valley bottoms hold woody wetland; cold north slopes evergreen (black spruce), warm south slopes deciduous
    forest, the slopes between mixed forest; the ridges shrub. Noise makes the borders ragged and mixes a few stands.
    """
    generator = np.random.default_rng([seed, 1])
    north, east = np.gradient(elevation, CELL_M)
    steepness = np.hypot(north, east)
    # Rows run south: a surface that rises with the row rises southwards, so it faces north.
    northness = np.divide(north, steepness, out=np.zeros(SIZE), where=steepness > 0)
    position = elevation - ndimage.uniform_filter(elevation, 21, mode="nearest")
    ragged = ndimage.gaussian_filter(generator.standard_normal(SIZE), 1.5)
    ragged /= ragged.std()
    facing = northness * np.minimum(steepness / 0.12, 1.0) + 0.28 * ragged
    classes = np.full(SIZE, MIXED, dtype=np.uint8)
    classes[facing > 0.15] = EVERGREEN
    classes[facing < -0.25] = DECIDUOUS
    classes[(steepness < 0.10) & (position < -8.0)] = EVERGREEN
    classes[(steepness < 0.06) & (position + 6.0 * ragged < -18.0)] = WETLAND
    classes[elevation + 25.0 * ragged > np.quantile(elevation, 0.88)] = SHRUB
    return classes


def _write(path: Path, cells: NDArray[np.generic], nodata: float, description: str, unit: str) -> None:
    transform = Affine(CELL_M, 0.0, ORIGIN[0], 0.0, -CELL_M, ORIGIN[1])
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=cells.shape[0],
        width=cells.shape[1],
        count=1,
        dtype=cells.dtype.name,
        crs=CRS,
        transform=transform,
        nodata=nodata,
        compress="deflate",
    ) as sink:
        sink.write(cells, 1)
        sink.set_band_description(1, description)
        sink.set_band_unit(1, unit)
        sink.update_tags(**{TAG: "yes", "TIFFTAG_IMAGEDESCRIPTION": SENTENCE})
