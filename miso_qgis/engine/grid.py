"""The target grid: one CRS, one transform, one shape, that every raster of a run is brought to.

A grid is north up with square pixels; row 0 is the northernmost. Pixel (row, column) covers the half-open box from its
upper left corner; its centre is at (row + 0.5, column + 0.5). Bounds are (xmin, ymin, xmax, ymax).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Tuple

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine

from .errors import InputError

Bounds = Tuple[float, float, float, float]
Coordinates = NDArray[np.float64]

ALASKA_ALBERS = "EPSG:3338"
# Upper left corner of the AKVEG tile grid (tile AK050H001V001): every tile edge is a multiple of 50 km from here.
AKVEG_ORIGIN = (-2199995.0, 2400005.0)
# A bound this close to a pixel edge (in pixels) lies on it; without it, rounding would add a row of pixels.
_EDGE_TOLERANCE_PX = 1e-6
_EQUAL_AREA = ("aea", "laea", "cea", "sinu", "moll", "leac", "eqearth")


@dataclass(frozen=True)
class Grid:
    """A north-up grid of square pixels.

    Attributes:
        crs: Projected CRS in metres.
        transform: Affine from (column, row) to (x, y).
        height: Rows.
        width: Columns.
    """

    crs: CRS
    transform: Affine
    height: int
    width: int

    @classmethod
    def covering(cls, bounds: Bounds, crs: CRS, resolution: float) -> Grid:
        """Make the smallest grid that holds ``bounds`` (given in ``crs``) and is aligned.

        In EPSG:3338 pixel edges lie on the AKVEG grid, so that runs over neighbouring areas share their pixels; in
        another CRS they lie on multiples of the resolution.

        Example: EPSG:3338, 10 m, xmin = 300000 gives the edge 299995, because -2199995 + 249999 * 10 = 299995.
        """
        x0, y0 = AKVEG_ORIGIN if is_alaska_albers(crs) else (0.0, 0.0)
        xmin, ymin, xmax, ymax = bounds
        left = math.floor((xmin - x0) / resolution + _EDGE_TOLERANCE_PX)
        right = max(math.ceil((xmax - x0) / resolution - _EDGE_TOLERANCE_PX), left + 1)
        top = math.floor((y0 - ymax) / resolution + _EDGE_TOLERANCE_PX)
        bottom = max(math.ceil((y0 - ymin) / resolution - _EDGE_TOLERANCE_PX), top + 1)
        transform = Affine(resolution, 0.0, x0 + left * resolution, 0.0, -resolution, y0 - top * resolution)
        return cls(crs, transform, bottom - top, right - left)

    @property
    def resolution(self) -> float:
        """Pixel size in units of the CRS."""
        return float(self.transform.a)

    @property
    def shape(self) -> Tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) of the pixels' outer edges."""
        left, top = self.transform.c, self.transform.f
        return left, top + self.transform.e * self.height, left + self.transform.a * self.width, top

    def part(self, row: int, column: int, height: int, width: int) -> Grid:
        """Return the grid of a pixel box, which may lie (partly) outside this grid; (0, 0) is the upper left pixel."""
        t = self.transform
        moved = Affine(t.a, 0.0, t.c + column * t.a, 0.0, t.e, t.f + row * t.e)
        return Grid(self.crs, moved, height, width)

    def padded(self, pixels: int) -> Grid:
        """Return this grid with ``pixels`` more on each side."""
        return self.part(-pixels, -pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def centres(self, row: int, column: int, height: int, width: int) -> Tuple[Coordinates, Coordinates]:
        """Return the centres' x of ``width`` columns and y of ``height`` rows, in the CRS."""
        t = self.transform
        x = t.c + (column + 0.5 + np.arange(width)) * t.a
        y = t.f + (row + 0.5 + np.arange(height)) * t.e
        return x, y


def is_alaska_albers(crs: CRS) -> bool:
    """Whether ``crs`` is EPSG:3338."""
    return bool(crs == CRS.from_user_input(ALASKA_ALBERS))


def is_equal_area(crs: CRS) -> bool:
    """Whether areas in pixels times pixel size are areas on the ground."""
    return crs.to_dict().get("proj") in _EQUAL_AREA


def parse_target_crs(text: str) -> CRS:
    """Read the target CRS and check that its unit is the metre.

    Raises:
        InputError: If PROJ does not know it, or if it is not projected in metres.
    """
    what = f'Target CRS "{text}"'
    needed = "A projected CRS in metres is needed."
    remedy = f"Choose {ALASKA_ALBERS} (Alaska Albers) or the UTM zone of the area."
    try:
        crs = CRS.from_user_input(text)
    except ValueError as error:
        raise InputError(what, f"PROJ does not know it ({error}).", needed, remedy) from error
    if not crs.is_projected:
        raise InputError(what, "its coordinates are not projected (degrees or unknown).", needed, remedy)
    if not is_metric(crs):
        raise InputError(what, f"its unit is {crs.linear_units}.", needed, remedy)
    return crs


def is_metric(crs: CRS) -> bool:
    """Whether ``crs`` is projected with the metre as its unit."""
    return bool(crs.is_projected) and abs(float(crs.linear_units_factor[1]) - 1.0) < 1e-9
