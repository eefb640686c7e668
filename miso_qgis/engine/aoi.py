"""The area of interest: polygons from a file, in the target CRS, as a mask of pixels.

A pixel belongs to the area if its centre does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import List, Optional, Tuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform as transform_points

from .errors import InputError
from .grid import Bounds, Grid
from .progress import Progress

_POLYGONS = (3, 6)  # shapely's type numbers of Polygon and MultiPolygon
# Straight edges are bent by a change of CRS: they are cut into this many pieces per extent of the area first.
_PIECES = 500
_NEEDED = "A file with at least one polygon is needed (GeoPackage, GeoJSON or Shapefile)."


@dataclass(frozen=True)
class Aoi:
    """Polygons in the target CRS.

    Attributes:
        name: How messages call it.
        geometry: One valid (multi)polygon.
        crs: Target CRS.
    """

    name: str
    geometry: shapely.Geometry
    crs: CRS

    @property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) in the target CRS."""
        xmin, ymin, xmax, ymax = (float(value) for value in self.geometry.bounds)
        return xmin, ymin, xmax, ymax

    def mask(self, grid: Grid, row: int, column: int, height: int, width: int) -> NDArray[np.bool_]:
        """Return True where the centres of a pixel box of ``grid`` lie in the area, (height, width)."""
        part = grid.part(row, column, height, width)
        box = shapely.box(*part.bounds)
        if not shapely.intersects(self.geometry, box):
            return np.zeros((height, width), bool)
        if shapely.contains_properly(self.geometry, box):
            return np.ones((height, width), bool)
        burnt = rasterize([(self.geometry, 1)], out_shape=(height, width), transform=part.transform, dtype="uint8")
        inside: NDArray[np.bool_] = burnt == 1
        return inside


def read_aoi(path: str, layer: Optional[str], crs: CRS, progress: Progress) -> Aoi:
    """Read every polygon of a file and bring it to the target CRS.

    Invalid polygons are repaired, and other geometries left out, with a note that says so.

    Raises:
        InputError: If the file cannot be read, has no CRS, holds no polygon, or cannot be brought to the target CRS.
    """
    what = f'Area of interest "{os.path.basename(path)}"'
    geometries, source_crs = _read(what, path, layer)
    polygons = [geometry for geometry in geometries if shapely.get_type_id(geometry) in _POLYGONS]
    polygons = [geometry for geometry in polygons if not geometry.is_empty]
    if not polygons:
        kinds = sorted({str(geometry.geom_type) for geometry in geometries if geometry is not None})
        found = f"it holds no polygon, only {', '.join(kinds)}." if kinds else "it holds no polygon."
        raise InputError(what, found, _NEEDED, "Draw a polygon, or choose another layer.")
    if len(polygons) < len(geometries):
        dropped = len(geometries) - len(polygons)
        progress.note("warning", f"{what}: {dropped} of {len(geometries)} geometries are empty or no polygons.")
    geometry = _repaired(what, polygons, progress)
    moved = _transformed(what, geometry, source_crs, crs)
    shapely.prepare(moved)
    return Aoi(what, moved, crs)


def _read(what: str, path: str, layer: Optional[str]) -> Tuple[List[shapely.Geometry], CRS]:
    if not os.path.exists(path.split("|")[0]):
        found = f'the file "{path}" does not exist.'
        raise InputError(what, found, _NEEDED, "Choose the file again; export a layer that lives in memory first.")
    try:
        meta, _, wkb, _ = pyogrio.raw.read(path, layer=layer, columns=[], force_2d=True)
    except (DataSourceError, DataLayerError, ValueError, OSError) as error:
        found = f"it cannot be read as a vector layer ({str(error).strip().rstrip('.')})."
        raise InputError(what, found, _NEEDED, "Check that the file opens in QGIS, and export it again.") from error
    geometries = [] if wkb is None else [g for g in shapely.from_wkb(wkb, on_invalid="ignore") if g is not None]
    if not meta.get("crs"):
        remedy = "Assign its CRS (QGIS: Layer > Set CRS) and save it as GeoPackage."
        raise InputError(what, "it has no coordinate reference system (CRS).", "A known CRS is needed.", remedy)
    return geometries, CRS.from_user_input(meta["crs"])


def _repaired(what: str, polygons: List[shapely.Geometry], progress: Progress) -> shapely.Geometry:
    invalid = [geometry for geometry in polygons if not geometry.is_valid]
    if invalid:
        reason = shapely.is_valid_reason(invalid[0])
        progress.note("warning", f"{what}: {len(invalid)} invalid polygon(s) were repaired ({reason}).")
    merged = _only_polygons(shapely.union_all([shapely.make_valid(geometry) for geometry in polygons]))
    if merged.is_empty or merged.area == 0:
        found = "its polygons have no area."
        raise InputError(what, found, "A polygon with an area is needed.", "Draw the polygon again.")
    return merged


def _only_polygons(geometry: shapely.Geometry) -> shapely.Geometry:
    parts = [part for part in shapely.get_parts(geometry) if shapely.get_type_id(part) in _POLYGONS]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _transformed(what: str, geometry: shapely.Geometry, source: CRS, target: CRS) -> shapely.Geometry:
    if source == target:
        return geometry
    xmin, ymin, xmax, ymax = geometry.bounds
    dense = shapely.segmentize(geometry, max(xmax - xmin, ymax - ymin) / _PIECES)

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = transform_points(source, target, points[:, 0].tolist(), points[:, 1].tolist())
        return np.column_stack([x, y])

    moved = shapely.transform(dense, move)
    if not np.isfinite(shapely.get_coordinates(moved)).all():
        raise InputError(
            what,
            f"parts of it cannot be expressed in the target CRS ({target.to_string()[:40]}).",
            "An area within the reach of the target CRS is needed.",
            "Check the layer's CRS, or choose a target CRS made for the area.",
        )
    return _only_polygons(shapely.make_valid(moved))
