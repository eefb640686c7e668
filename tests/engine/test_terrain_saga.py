"""Terrain covariates against SAGA itself (Debian package ``saga``), on real and synthetic DEMs.

Tolerance: 1e-4 of the standard deviation of SAGA's raster, wherever SAGA has a value; aspect as an angle on the circle.
SAGA computes in float32 where we use float64, which alone explains 1e-6 to 3e-5 of a standard deviation.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject

from miso_qgis.engine.terrain import derive_terrain

SAGA = shutil.which("saga_cmd")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WATERSHED = DATA / "cpcrw_50m" / "elevation.tif"
HEALY = DATA / "dem_small" / "COP30_eightmile_healy.tif"

pytestmark = pytest.mark.skipif(SAGA is None, reason="saga_cmd is not installed (Debian: apt install saga)")

TOLERANCE = 1e-4
EDGE_PX = 4
WINDOWED = ("slope", "aspect", "maximum_curvature")


# The local slope (method 6: Zevenbergen & Thorne) is what the wetness index uses inside, as a raster.
TOOLS = (
    "ta_morphometry 23 -DEM=dem.tif -FEATURES=features.sgrd -SLOPE=slope.sgrd -ASPECT=aspect.sgrd"
    " -MAXIC=maximum_curvature.sgrd -SIZE=4",
    "ta_morphometry 28 -DEM=dem.tif -TPI=topographic_position_index.sgrd -SCALE_MIN=1 -SCALE_MAX=4 -SCALE_NUM=2",
    "ta_hydrology 15 -DEM=dem.tif -AREA=area.sgrd -SLOPE=catchment_slope.sgrd -AREA_MOD=modified.sgrd"
    " -TWI=saga_wetness_index.sgrd -SUCTION=10 -AREA_TYPE=2 -SLOPE_TYPE=0 -SLOPE_OFF=0.01",
    "ta_morphometry 0 -ELEVATION=dem.tif -SLOPE=local.sgrd -ASPECT=ignored.sgrd -METHOD=6 -UNIT_SLOPE=0",
    "ta_hydrology 21 -SLOPE=local.sgrd -AREA=area.sgrd -SPI=stream_power_index.sgrd -CONV=0",
)


def run_saga(folder, z, cell_size):
    """Return SAGA's rasters under our names; NaN where SAGA has nodata."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:32606", "nodata": -9999.0}
    transform = Affine(cell_size, 0, 500000, 0, -cell_size, 7200000)
    with rasterio.open(
        folder / "dem.tif", "w", height=z.shape[0], width=z.shape[1], transform=transform, **profile
    ) as f:
        f.write(np.where(np.isnan(z), -9999.0, z).astype(np.float32), 1)
    for tool in TOOLS:
        # One thread: SAGA's others wait in busy loops, which takes minutes on a machine that does something else too.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [SAGA, "-f=s", *tool.split()]
        subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=folder, env=environment)
    results = {}
    for name in (*WINDOWED, "topographic_position_index", "stream_power_index", "saga_wetness_index"):
        with rasterio.open(folder / f"{name}.sdat") as dataset:
            results[name] = dataset.read(1, masked=True).astype(np.float64).filled(np.nan)
    return results


def read(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1, masked=True).astype(np.float64).filled(np.nan)


def watershed():
    if not WATERSHED.exists():
        pytest.skip(f"{WATERSHED.name} of the watershed is not beside the checkout")
    return read(WATERSHED), 50.0


def healy():
    if not HEALY.exists():
        pytest.skip(f"{HEALY.name} is not beside the checkout")
    crs = "EPSG:32606"
    with rasterio.open(HEALY) as dataset:
        old = dataset.crs, crs, dataset.width, dataset.height
        transform, width, height = calculate_default_transform(*old, *dataset.bounds, resolution=30.0)
        z = np.full((height, width), np.nan)
        target = {"dst_transform": transform, "dst_crs": crs, "dst_nodata": np.nan}
        reproject(rasterio.band(dataset, 1), z, resampling=Resampling.bilinear, **target)
    return z, 30.0


def rough(height=97, width=123, seed=5):
    return np.random.default_rng(seed).normal(size=(height, width)).cumsum(0).cumsum(1) * 3 + 300


def holes():
    """Nodata as single cells, as blocks, in a comb, at edges and corners."""
    z = rough()
    z[8, 9] = z[9, 10] = z[40, 0] = z[96, 122] = np.nan
    z[12:15, 14:19] = np.nan
    z[60:90, :20] = np.nan
    z[30:50:3, 60:100:2] = np.nan
    return z, 10.0


def irregular_outline():
    z = rough()
    row, column = np.mgrid[: z.shape[0], : z.shape[1]]
    outside = np.hypot(row - 50, column - 60) > 35 + 9 * np.sin(5 * np.arctan2(row - 50, column - 60))
    z[outside] = np.nan
    z[3, 3] = 250.0  # an island of one cell
    return z, 25.0


def terraces_and_lakes():
    """Level steps with sharp edges and level water: there suction takes over all of a neighbour's area."""
    z = rough()
    z[:, :60] = np.round(z[:, :60] / 20) * 20
    return np.maximum(z, 280.0), 30.0


def noise():
    """A pit in every ninth cell, slopes up to 80 degrees."""
    return np.random.default_rng(2).uniform(0, 200, size=(80, 70)), 5.0


def gentle():
    """A valley floor of 0.05 degrees, where suction reaches furthest."""
    row, column = np.mgrid[:60, :90]
    return 100 + 0.01 * column + 0.0005 * (row - 30.0) ** 2, 10.0


def level():
    return np.full((20, 22), 77.0), 30.0


CASES = [
    pytest.param(watershed, marks=pytest.mark.real_data),
    pytest.param(healy, marks=pytest.mark.real_data),
    holes,
    irregular_outline,
    terraces_and_lakes,
    noise,
    gentle,
    level,
]


@pytest.mark.parametrize("case", CASES)
def test_covariates_equal_those_of_saga(tmp_path, case):
    z, cell_size = case()
    z = z.astype(np.float32).astype(np.float64)  # what SAGA reads
    expected = run_saga(tmp_path, z, cell_size)
    found = derive_terrain(z, cell_size)
    inside = np.zeros(z.shape, dtype=bool)
    inside[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] = True
    for name, theirs in expected.items():
        ours = found[name].astype(np.float64)
        assert np.array_equal(np.isnan(ours), np.isnan(z)), name
        # SAGA leaves out the raster's edge in the windowed three, and nothing else.
        must = ~np.isnan(z) & (inside if name in WINDOWED else True)
        assert np.all(~np.isnan(theirs[must])), name
        both = ~np.isnan(theirs)
        difference = np.abs(ours - theirs)[both]
        if name == "aspect":
            difference = np.minimum(difference, 360.0 - difference)
        spread = theirs[both].std()
        assert difference.max() <= TOLERANCE * spread, f"{name}: {difference.max()} of a spread of {spread}"
