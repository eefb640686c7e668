"""Rasters of every input of an imported model on a small area: made up, smooth, in real units, with a hole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

LEFT, TOP, PIXEL_M = 300005.0, 1700005.0, 10.0
BANDS = ("red", "green", "blue", "red_edge_1", "red_edge_2", "red_edge_3", "nir", "swir_1", "swir_2")


def write_rasters(folder: Path, height: int, width: int) -> dict:
    """Write one GeoTIFF per input (EPSG:3338, 10 m; climate 50 m) and return the paths by input name.

    Bands are int16 with nodata -32767, as composites come; the red band misses its last 3 x 5 pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}

    def write(name, values, cell_m, nodata):
        profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": "EPSG:3338", "nodata": nodata}
        profile.update(height=values.shape[0], width=values.shape[1])
        path = folder / f"{name}.tif"
        with rasterio.open(path, "w", transform=Affine(cell_m, 0, LEFT, 0, -cell_m, TOP), **profile) as file:
            file.write(values, 1)
        paths[name] = path

    y, x = np.mgrid[:height, :width].astype(np.float64)
    for number, name in enumerate(BANDS, start=1):
        pattern = np.sin(x / (3.0 + number)) * np.cos(y / (9.0 - 0.5 * number) + number)
        values = (900.0 + 250.0 * number + 700.0 * pattern).astype(np.int16)
        if name == "red":
            values[-3:, -5:] = -32767
        write(name, values, PIXEL_M, -32767)
    relief = 60.0 * np.sin(x / 23.0) + 45.0 * np.cos(y / 17.0) + 0.8 * x - 0.3 * y + 3.0 * np.sin(x * y / 400.0)
    write("dem", (400.0 + relief).astype(np.float32), PIXEL_M, -9999.0)
    coarse = np.mgrid[: -(-height // 5) + 1, : -(-width // 5) + 1].astype(np.float64)
    slope = coarse[0] + 2.0 * coarse[1]
    write("annual_precipitation", (420.0 + 3.0 * slope).astype(np.float32), 5 * PIXEL_M, -9999.0)
    write("summer_warmth_index", (38.0 - 0.2 * slope).astype(np.float32), 5 * PIXEL_M, -9999.0)
    write("january_minimum_temperature", (-27.0 + 0.1 * slope).astype(np.float32), 5 * PIXEL_M, -9999.0)
    return paths


def stack_bands(paths: dict, path: Path, descriptions: tuple = BANDS) -> None:
    """Write the nine single bands into one file, in the order of ``BANDS``; empty descriptions are left out."""
    with rasterio.open(paths["red"]) as first:
        profile = {**first.profile, "count": len(BANDS)}
    with rasterio.open(path, "w", **profile) as stack:
        for number, name in enumerate(BANDS, start=1):
            with rasterio.open(paths[name]) as single:
                stack.write(single.read(1), number)
            if descriptions[number - 1]:
                stack.set_band_description(number, descriptions[number - 1])
