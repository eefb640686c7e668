"""The simulated landscape's climate: three normals that fall and rise with height, and sun and wetness of the ground.

Owns what weather does to a place. The fields are made at 10 m, where the causes act, and given away as means of 800 m
cells, as gridded normals of Alaska are. Everything is invented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Dict, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .simulated_alaska_relief import CELL_M, LOWLAND_M, FloatArray, Generator, Relief, smooth_noise

SOURCE_M = 800.0
_FACTOR = round(SOURCE_M / CELL_M)

# Of the lowland at about 66 degrees north, and their change with height.
SUMMER_WARMTH_C = 57.0
SUMMER_LAPSE_C_PER_KM = -27.0  # five months at -5.4 degC per km
JANUARY_C = -33.0
JANUARY_LAPSE_C_PER_KM = -3.0
INVERSION_C, INVERSION_DEPTH_M = 9.0, 130.0
PRECIPITATION_MM = 320.0
PRECIPITATION_MM_PER_KM = 330.0


@dataclass(frozen=True)
class Climate:
    """Normals at 10 m, (H, W) float32.

    Attributes:
        precipitation_mm: Annual precipitation.
        summer_warmth_c: Summer warmth index: sum of the monthly mean temperatures of May to September, degC.
        january_c: Mean minimum temperature of January, degC; coldest where cold air pools.
    """

    precipitation_mm: FloatArray
    summer_warmth_c: FloatArray
    january_c: FloatArray

    def coarse(self) -> Dict[str, FloatArray]:
        """Means over 800 m cells by name, with one more ring of cells, the repeated outermost ones.

        The ring lets a bilinear reader reach the area's edge. The first cell's upper left corner lies 800 m north and
        west of the area's.
        """
        return {item.name: _means(getattr(self, item.name)) for item in fields(self)}


def _means(values: FloatArray) -> FloatArray:
    missing = [(0, -size % _FACTOR) for size in values.shape]
    padded = np.pad(values, missing, mode="edge")
    rows, columns = padded.shape[0] // _FACTOR, padded.shape[1] // _FACTOR
    means = padded.reshape(rows, _FACTOR, columns, _FACTOR).mean(axis=(1, 3), dtype=np.float64)
    return np.pad(means, 1, mode="edge").astype(np.float32)


def make_climate(generator: Generator, relief: Relief) -> Climate:
    """Make the climate of a landscape."""
    shape = relief.elevation.shape
    km = (relief.elevation - np.float32(LOWLAND_M)) / np.float32(1000.0)
    eastwards = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    pool = np.exp(-np.maximum(relief.above_stream_m, 0) / np.float32(INVERSION_DEPTH_M))
    return Climate(
        precipitation_mm=(
            PRECIPITATION_MM
            + PRECIPITATION_MM_PER_KM * km
            - 25.0 * eastwards
            + 12.0 * smooth_noise(generator, shape, 500)
        ).astype(np.float32),
        summer_warmth_c=(
            SUMMER_WARMTH_C + SUMMER_LAPSE_C_PER_KM * km + 0.6 * smooth_noise(generator, shape, 400)
        ).astype(np.float32),
        january_c=(
            JANUARY_C
            + JANUARY_LAPSE_C_PER_KM * km
            + INVERSION_C * (1 - pool)
            + 0.5 * smooth_noise(generator, shape, 400)
        ).astype(np.float32),
    )


@dataclass(frozen=True)
class Exposure:
    """What the ground's form makes of sun and water, (H, W) float32.

    Attributes:
        slope_deg: Slope.
        sun: Direct summer sun relative to level ground; about 1.1 on warm slopes, 0.6 on steep north slopes.
        noon: Illumination at the satellite's overpass relative to level ground.
        wetness: Topographic wetness, logarithm of drained area over slope, smoothed.
    """

    slope_deg: FloatArray
    sun: FloatArray
    noon: FloatArray
    wetness: FloatArray


def make_exposure(relief: Relief) -> Exposure:
    """Derive sun and wetness from the ground."""
    smooth = ndimage.gaussian_filter(relief.elevation, 1.0, mode="nearest")
    southwards, eastwards = np.gradient(smooth, np.float32(CELL_M))  # rows run south
    gradient = np.hypot(southwards, eastwards)
    length = np.sqrt(1 + gradient * gradient)
    hours = ((120.0, 28.0), (150.0, 40.0), (180.0, 45.0), (210.0, 40.0), (240.0, 28.0))
    sun = sum(_beam(southwards, eastwards, length, *hour) for hour in hours)
    level = sum(math.sin(math.radians(height)) for _, height in hours)
    wetness = ndimage.gaussian_filter(np.log(relief.drained_px), 2.0) - np.log(gradient + np.float32(0.01))
    return Exposure(
        slope_deg=np.degrees(np.arctan(gradient)).astype(np.float32),
        sun=(np.asarray(sun) / level).astype(np.float32),
        noon=(_beam(southwards, eastwards, length, 172.0, 44.0) / math.sin(math.radians(44.0))).astype(np.float32),
        wetness=wetness.astype(np.float32),
    )


def _beam(southwards: Any, eastwards: Any, length: Any, azimuth_deg: float, height_deg: float) -> NDArray[Any]:  # noqa: ANN401  # reason: arrays of the gradient
    """Cosine of the angle between the ground's normal and the sun, 0 in its own shade."""
    x, y, z = _sun(azimuth_deg, height_deg)
    # The normal of a surface z(x east, y north) is (-dz/dx, -dz/dy, 1); rows run south.
    cosine: NDArray[Any] = np.maximum((-eastwards * x + southwards * y + z) / length, 0)
    return cosine


def _sun(azimuth_deg: float, height_deg: float) -> Tuple[float, float, float]:
    azimuth, height = math.radians(azimuth_deg), math.radians(height_deg)
    return math.sin(azimuth) * math.cos(height), math.cos(azimuth) * math.cos(height), math.sin(height)
