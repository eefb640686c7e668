"""Features of the Random Forest: each channel's mean in a disc around the pixel, and coordinates.

A disc of radius r holds the pixels whose centre is at most r from the centre of its own pixel. Missing values do not
count; the mean of no value is NaN.
"""

from __future__ import annotations

import math
from typing import Dict, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform as transform_points

from .grid import ALASKA_ALBERS, Grid, is_alaska_albers
from .manifest import ChannelSpec, ForestFeature

FloatArray = NDArray[np.float32]


def halo_px(features: Sequence[ForestFeature], resolution: float) -> int:
    """Return how many pixels around a box its features look at."""
    return max((_radius_px(feature.buffer_m, resolution) for feature in features), default=0)


def _radius_px(buffer_m: float, resolution: float) -> int:
    return math.floor(buffer_m / resolution + 1e-9)


def disc_mean(values: FloatArray, radius_m: float, resolution: float) -> FloatArray:
    """Average each channel over a disc around every pixel.

    Args:
        values: (C, h + 2 r, w + 2 r) with r = ``floor(radius_m / resolution)``; NaN where missing.
        radius_m: Radius of the disc.
        resolution: Pixel size, m.

    Returns:
        (C, h, w) float32; NaN where the disc holds no value. Sums run in float64, row by row, so that the result does
        not depend on how an area is cut into boxes by more than rounding.
    """
    r = _radius_px(radius_m, resolution)
    if r == 0:
        return values
    channels, tall, wide = values.shape
    height, width = tall - 2 * r, wide - 2 * r
    result = np.empty((channels, height, width), np.float32)
    shared: Dict[bytes, NDArray[np.float64]] = {}
    for index in range(channels):
        missing = np.isnan(values[index])
        key = np.packbits(missing).tobytes()
        if key not in shared:
            shared = {key: _disc_sum(~missing, radius_m, resolution, height, width)}
        count = shared[key]
        total = _disc_sum(np.where(missing, np.float32(0), values[index]), radius_m, resolution, height, width)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[index] = total / count
    return result


def _disc_sum(
    plane: NDArray[np.generic], radius_m: float, resolution: float, height: int, width: int
) -> NDArray[np.float64]:
    r = _radius_px(radius_m, resolution)
    running = np.zeros((plane.shape[0], plane.shape[1] + 1))
    np.cumsum(plane, axis=1, dtype=np.float64, out=running[:, 1:])
    total = np.zeros((height, width))
    for down in range(-r, r + 1):
        half = math.floor(math.sqrt(max((radius_m / resolution) ** 2 - down * down, 0.0)) + 1e-9)
        rows = running[r + down : r + down + height]
        total += rows[:, r + half + 1 : r + half + 1 + width]
        total -= rows[:, r - half : r - half + width]
    return total


def forest_features(
    values: FloatArray,
    channels: Sequence[ChannelSpec],
    features: Sequence[ForestFeature],
    grid: Grid,
    row: int,
    column: int,
    halo: int,
) -> FloatArray:
    """Compute the features of a box of pixels.

    Args:
        values: Channels of the box and ``halo`` pixels around it, (C, h + 2 halo, w + 2 halo); NaN where missing.
        channels: Names of the channels, in order.
        features: Features wanted, in the model's order.
        grid: Grid of the pixels.
        row: First row of the box, without halo.
        column: First column of the box, without halo.
        halo: At least :func:`halo_px` of the features.

    Returns:
        (F, h, w) float32; coordinates are of pixel centres in EPSG:3338, m.
    """
    height, width = values.shape[1] - 2 * halo, values.shape[2] - 2 * halo
    result = np.empty((len(features), height, width), np.float32)
    position = {channel.name: index for index, channel in enumerate(channels)}
    by_radius: Dict[float, List[Tuple[int, int]]] = {}
    for index, feature in enumerate(features):
        if feature.channel in position:
            by_radius.setdefault(feature.buffer_m, []).append((index, position[feature.channel]))
    for buffer_m, pairs in by_radius.items():
        spare = halo - _radius_px(buffer_m, grid.resolution)
        cut = slice(spare, -spare if spare else None)
        means = disc_mean(values[[source for _, source in pairs]][:, cut, cut], buffer_m, grid.resolution)
        result[[index for index, _ in pairs]] = means
    if any(feature.channel in ("x", "y") for feature in features):
        x, y = _albers(grid, row, column, height, width)
        for index, feature in enumerate(features):
            if feature.channel in ("x", "y"):
                result[index] = x if feature.channel == "x" else y
    return result


def _albers(
    grid: Grid, row: int, column: int, height: int, width: int
) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
    xs, ys = grid.centres(row, column, height, width)
    x, y = np.meshgrid(xs, ys)
    if is_alaska_albers(grid.crs):
        return x, y
    px, py = transform_points(grid.crs, ALASKA_ALBERS, x.ravel().tolist(), y.ravel().tolist())
    return np.reshape(px, x.shape), np.reshape(py, y.shape)
