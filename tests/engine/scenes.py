"""Rasters for tests whose right answer is known everywhere: elevation is a plane in Alaska Albers coordinates.

However a raster is laid out (CRS, pixel size, flips, types), :func:`elevation` is sampled at its own pixel centres, so
that the map of any of them must be the same plane again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

ALBERS = "EPSG:3338"
# Upper left corner, on the AKVEG grid, near Caribou-Poker Creeks; odd sizes, no multiples of a window.
LEFT, TOP = 300005.0, 1700005.0
HEIGHT, WIDTH = 97, 143
PIXEL_M = 10.0
NATIVE = Affine(PIXEL_M, 0, LEFT, 0, -PIXEL_M, TOP)


def elevation(x, y):
    """Height in m at Alaska Albers coordinates; rises to the east and, half as fast, to the south."""
    return 300.0 + 0.1 * (np.asarray(x) - LEFT) + 0.05 * (TOP - np.asarray(y))


def centres(crs, transform, height, width):
    """Alaska Albers coordinates of pixel centres, two arrays (h, w)."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    t = transform
    x, y = t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f
    if CRS.from_user_input(crs) != CRS.from_user_input(ALBERS):
        px, py = transform_points(crs, ALBERS, x.ravel().tolist(), y.ravel().tolist())
        x, y = np.reshape(px, x.shape), np.reshape(py, y.shape)
    return x, y


def elevation_on(crs=ALBERS, transform=NATIVE, height=HEIGHT, width=WIDTH):
    return elevation(*centres(crs, transform, height, width)).astype(np.float32)


def write_raster(path, values, *, crs=ALBERS, transform=NATIVE, nodata=None, **options):
    """Write (h, w) or (bands, h, w) as GeoTIFF and return the path as text."""
    bands = values if values.ndim == 3 else values[None]
    profile = {"driver": "GTiff", "count": len(bands), "dtype": bands.dtype, "nodata": nodata}
    profile.update(height=bands.shape[1], width=bands.shape[2], crs=crs, transform=transform, **options)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(bands)
    return str(path)


def write_elevation(path, crs=ALBERS, transform=NATIVE, height=HEIGHT, width=WIDTH, nodata=-9999.0, **options):
    return write_raster(
        path, elevation_on(crs, transform, height, width), crs=crs, transform=transform, nodata=nodata, **options
    )


def classes(height=HEIGHT, width=WIDTH):
    """Land cover: three legend classes in an asymmetric pattern, code 0 (nodata) in a corner."""
    values = np.full((height, width), 41, np.uint8)
    values[:, width // 2 :] = 42
    values[height // 3 :, : width // 5] = 52
    values[-7:, -11:] = 0
    return values


def write_classes(path, **options):
    return write_raster(path, classes(), nodata=options.pop("nodata", 0), **options)


def scene(folder: Path):
    """Write dem.tif and nlcd.tif on the same grid and return their paths by input name."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"dem": write_elevation(folder / "dem.tif"), "nlcd": write_classes(folder / "nlcd.tif")}


def read(path, band=1):
    with rasterio.open(path) as dataset:
        return dataset.read(band)


def map_centres(path):
    with rasterio.open(path) as dataset:
        return centres(dataset.crs, dataset.transform, dataset.height, dataset.width)
