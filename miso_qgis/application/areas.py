"""The area of interest: polygons from a layer, a selection or the map, written to a file that the engine reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsDistanceArea,
    QgsFeature,
    QgsFields,
    QgsGeometry,
    QgsProject,
    QgsVectorFileWriter,
    QgsWkbTypes,
)

from ..engine.errors import InputError, OutputError

LAYER_NAME = "area"


@dataclass(frozen=True)
class AreaSize:
    """How large an area is.

    Attributes:
        hectares: Ellipsoidal area.
        pixels: Area in pixels of the target grid, rounded.
    """

    hectares: float
    pixels: int

    def describe(self, resolution_m: float) -> str:
        """Return the size in words."""
        square_km = self.hectares / 100
        return f"{square_km:,.2f} km² ({self.hectares:,.0f} ha), about {self.pixels:,} pixels of {resolution_m:g} m"


def write_area(geometries: Iterable[QgsGeometry], crs: QgsCoordinateReferenceSystem, path: Path) -> Path:
    """Write polygons to a new GeoPackage in their own CRS, for the engine to warp.

    Raises:
        InputError: If there is no polygon, or no CRS.
        OutputError: If the file cannot be written.
    """
    if not crs.isValid():
        raise InputError(
            "The area",
            "its layer has no CRS.",
            "A CRS is needed to find it on the map.",
            "Set the layer's CRS and run again.",
        )
    options = QgsVectorFileWriter.SaveVectorOptions()
    options.driverName = "GPKG"
    options.layerName = LAYER_NAME
    writer = QgsVectorFileWriter.create(
        str(path), QgsFields(), QgsWkbTypes.Type.MultiPolygon, crs, QgsCoordinateTransformContext(), options
    )
    count = 0
    for geometry in geometries:
        if geometry.isEmpty():
            continue
        feature = QgsFeature()
        whole = QgsGeometry(geometry)
        whole.convertToMultiType()
        feature.setGeometry(whole)
        if writer.addFeature(feature):
            count += 1
    message, failed = writer.errorMessage(), writer.hasError()
    del writer  # closes the file
    if failed:
        raise OutputError(
            f'File "{path}"', f"the area cannot be written ({message}).", "", "Check the temporary folder."
        )
    if count == 0:
        raise InputError(
            "The area",
            "it holds no polygon.",
            "At least one polygon is needed.",
            "Draw one, or choose (or select) one.",
        )
    return path


def measure_area(geometry: QgsGeometry, crs: QgsCoordinateReferenceSystem, resolution_m: float) -> AreaSize:
    """Measure ``geometry`` on the ellipsoid."""
    measure = QgsDistanceArea()
    measure.setSourceCrs(crs, QgsProject.instance().transformContext())
    measure.setEllipsoid(crs.ellipsoidAcronym() or "EPSG:7030")
    square_metres = measure.measureArea(geometry)
    return AreaSize(square_metres / 10_000, round(square_metres / resolution_m**2))


def transform_geometry(
    geometry: QgsGeometry, source: QgsCoordinateReferenceSystem, target: QgsCoordinateReferenceSystem
) -> QgsGeometry:
    """Return a copy of ``geometry`` in ``target``; an empty one where it cannot be transformed."""
    copy = QgsGeometry(geometry)
    try:
        copy.transform(QgsCoordinateTransform(source, target, QgsProject.instance().transformContext()))
    except QgsCsException:
        return QgsGeometry()
    return copy
