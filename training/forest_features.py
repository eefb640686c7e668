"""Features of the Random Forest at sites: means of the channels in a disc around the site's pixel, and coordinates.

The disc means are the engine's own (:mod:`miso_qgis.engine.forest`), on windows that the engine's own
:class:`~miso_qgis.engine.covariates.ChannelStack` reads, so that a forest sees in prediction what it saw in training. A
site takes the pixel of the grid that holds it: its features are those that the map has there.

Coordinates are x and y of the pixel's centre in EPSG:3338, m. The paper uses longitude and latitude; both say where a
site is, but longitude jumps from -180 to 180 degrees in the Aleutians, and trees split at one value.

A site lacks features where any channel lacks a value at its pixel: the map is nodata there. Only windows around sites
are read, so memory does not depend on the area.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform as transform_points

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.forest import forest_features, halo_px
from miso_qgis.engine.grid import ALASKA_ALBERS, Grid, is_alaska_albers
from miso_qgis.engine.manifest import ChannelSpec, ForestFeature
from miso_qgis.engine.progress import Progress, Silent

from .dataset import Dataset

BUFFER_M = 50.0
BUFFERS_TRIED_M = (0.0, 25.0, 50.0, 100.0)
COORDINATES = ("x", "y")
# Sites of one square of this side are read with one window: one read per channel in place of one per site.
BLOCK_PX = 64
NO_DATA, OUTSIDE = "no value in", "outside the area"


@dataclass(frozen=True)
class SiteFeatures:
    """Features of N sites.

    Attributes:
        values: (N, F) float32, NaN in every column where the site has none.
        features: What the columns are.
        valid: Where a site has features, (N,).
        missing: Reason -> number of sites without features for it: ``outside the area``, ``no value in <channel>`` (a
            site that lacks several channels counts under each).
    """

    values: NDArray[np.float32]
    features: Tuple[ForestFeature, ...]
    valid: NDArray[np.bool_]
    missing: Dict[str, int]

    def columns(self, chosen: Sequence[ForestFeature]) -> SiteFeatures:
        """Return the same sites with some of the features, in the given order."""
        where = [self.features.index(feature) for feature in chosen]
        return SiteFeatures(np.ascontiguousarray(self.values[:, where]), tuple(chosen), self.valid, self.missing)

    def report(self) -> str:
        """Say how many sites lack features and why; empty if none does."""
        lost = int((~self.valid).sum())
        if not lost:
            return ""
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in sorted(self.missing.items()))
        return f"{lost:,} of {self.valid.size:,} sites have no features and are left out ({reasons})."


def feature_specs(
    channels: Sequence[ChannelSpec], buffer_m: float = BUFFER_M, coordinates: bool = True
) -> Tuple[ForestFeature, ...]:
    """Return the forest's features in order: each channel's mean within ``buffer_m``, then x and y if asked for."""
    means = tuple(ForestFeature(channel.name, buffer_m) for channel in channels)
    return (*means, *(ForestFeature(name) for name in COORDINATES)) if coordinates else means


def read_features(
    dataset: Dataset,
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    features: Sequence[ForestFeature],
    progress: Optional[Progress] = None,
) -> SiteFeatures:
    """Read the features of sites from a dataset's rasters.

    Args:
        dataset: The training area.
        x: Easting in EPSG:3338, m, (N,).
        y: Northing, likewise.
        features: What to compute; several radii at once cost one reading.
        progress: Told about windows; asked for cancellation.

    Raises:
        InputError: If a raster is missing, damaged, or does not fit its description.
    """
    progress = progress or Silent()
    with TemporaryDirectory(prefix="miso_") as scratch, dataset.stack(Path(scratch), progress) as stack:
        return features_on(stack, x, y, features, progress)


def features_on(
    stack: ChannelStack,
    x: NDArray[np.floating[Any]],
    y: NDArray[np.floating[Any]],
    features: Sequence[ForestFeature],
    progress: Optional[Progress] = None,
) -> SiteFeatures:
    """Read the features of sites from an open stack; see :func:`read_features`."""
    progress = progress or Silent()
    row, column = pixels_of(stack.grid, x, y)
    inside = (row >= 0) & (row < stack.grid.height) & (column >= 0) & (column < stack.grid.width)
    values = np.full((row.size, len(features)), np.nan, np.float32)
    missing: Dict[str, int] = {OUTSIDE: int((~inside).sum())} if not inside.all() else {}
    blocks = _blocks(row, column, inside)
    for number, sites in enumerate(blocks):
        progress.raise_if_cancelled()
        found, lacking = _read_block(stack, features, row[sites], column[sites])
        complete = ~lacking.any(axis=0)
        values[sites[complete]] = found[:, complete].T
        for channel, count in zip(stack.channels, lacking.sum(axis=1)):
            if count:
                reason = f"{NO_DATA} {channel.name}"
                missing[reason] = missing.get(reason, 0) + int(count)
        progress.report(number + 1, len(blocks), "Reading around the sites")
    valid = np.asarray(np.isfinite(values).all(axis=1), dtype=np.bool_)
    return SiteFeatures(values, tuple(features), valid, missing)


def pixels_of(
    grid: Grid, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]
) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the pixel that holds each place given in EPSG:3338; may lie outside the grid.

    A place on an edge belongs to the pixel south or east of it, as pixel boxes are half-open.
    """
    easting, northing = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not is_alaska_albers(grid.crs):
        px, py = transform_points(ALASKA_ALBERS, grid.crs, easting.tolist(), northing.tolist())
        easting, northing = np.asarray(px), np.asarray(py)
    column = np.floor((easting - grid.transform.c) / grid.resolution)
    row = np.floor((grid.transform.f - northing) / grid.resolution)
    # A place that the grid's CRS cannot hold is infinite; -1 is outside any grid.
    good = np.isfinite(row) & np.isfinite(column)
    return np.where(good, row, -1).astype(np.int64), np.where(good, column, -1).astype(np.int64)


def _blocks(row: NDArray[np.int64], column: NDArray[np.int64], inside: NDArray[np.bool_]) -> List[NDArray[np.int64]]:
    """Return the indices of the sites of each square that holds any."""
    chosen = np.flatnonzero(inside)
    if not chosen.size:
        return []
    squares = np.stack([row[chosen] // BLOCK_PX, column[chosen] // BLOCK_PX])
    _, inverse = np.unique(squares, axis=1, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(chosen[order], np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


def _read_block(
    stack: ChannelStack, features: Sequence[ForestFeature], row: NDArray[np.int64], column: NDArray[np.int64]
) -> Tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return features (F, n) and where each channel has no value (C, n), for sites of one square."""
    halo = halo_px(features, stack.grid.resolution)
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) - top + 1, int(column.max()) - left + 1
    window = stack.read(top - halo, left - halo, height + 2 * halo, width + 2 * halo)
    computed = forest_features(window, stack.channels, features, stack.grid, top, left, halo)
    at = (row - top, column - left)
    return computed[:, at[0], at[1]], np.isnan(window[:, at[0] + halo, at[1] + halo])
