"""What the bundled model is about: inputs, channels, grid, points and folds of the Caribou-Poker Creeks watershed.

One place for MISO and the baselines, so that all learn from the same covariates and points and the manifest says what
they learned from. The protocol is docs/validation.md. Runs in the engine's environment: no torch, no scikit-learn.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

import numpy as np
import rasterio.transform
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import ALASKA_ALBERS, Grid
from miso_qgis.engine.manifest import ChannelSpec, ForestFeature, GroupSpec, InputSpec, TerrainSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Progress, Silent
from miso_qgis.engine.terrain import tpi_statistics

from . import splits, watershed
from .observations import Observations, open_cells, read_open_labels, sample_transects

TARGET_CRS = CRS.from_user_input(ALASKA_ALBERS)
RESOLUTION_M = 10.0
DEM_RESOLUTION_M = 50.0
BUFFER_M = 50.0
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "watershed"

DEVELOPMENT_SEED = 0
SEEDS = (1, 2, 3)

TERRAIN_UNITS = {
    "elevation": "m",
    "aspect_sin": "",
    "aspect_cos": "",
    "slope": "degree",
    "maximum_curvature": "1/m",
    "topographic_position_index": "standard deviations",
    "stream_power_index": "m2",
    "saga_wetness_index": "",
}
# NLCD classes with at least 1,000 cells in the watershed, which cover 99.6 % of it. The others (open water 2, barren
# 86, dwarf shrub 41, grassland 41 cells) are too few to learn from and all zero, as unseen classes are in prediction.
NLCD_CLASSES = (41, 42, 43, 52, 90)
# Only these stand in the manifest's legend: there, other codes count as unseen and are reported in a prediction.
NLCD_LEGEND = {
    "41": "Deciduous forest",
    "42": "Evergreen forest",
    "43": "Mixed forest",
    "52": "Shrub",
    "90": "Woody wetlands",
}


@dataclass(frozen=True)
class WatershedStack:
    """All covariates of the watershed on the target grid.

    Attributes:
        channels: (C, H, W) float32, in the channels' own units, NaN where missing.
        names: Channel names, in order.
        grid: The target grid.
        valid: True where every channel has a value, (H, W).
        terrain: Terrain entry for the manifest, with the statistics that these channels were made with.
    """

    channels: NDArray[np.float32]
    names: Tuple[str, ...]
    grid: Grid
    valid: NDArray[np.bool_]
    terrain: TerrainSpec


def manifest_inputs() -> Dict[str, InputSpec]:
    """Return the rasters that the user supplies."""
    return {
        "dem": InputSpec(
            kind="continuous",
            title="Digital elevation model",
            unit="m",
            range=(-100.0, 6500.0),
            training_resolution_m=DEM_RESOLUTION_M,
            aliases=("dem", "dtm", "elevation", "ifsar", "height"),
        ),
        "nlcd": InputSpec(
            kind="classes",
            title="Land cover (NLCD Alaska)",
            training_resolution_m=DEM_RESOLUTION_M,
            legend=dict(NLCD_LEGEND),
            aliases=("nlcd", "landcover", "land_cover", "land cover"),
        ),
    }


def groups() -> Tuple[GroupSpec, ...]:
    """Return the two modalities: terrain (the seven, aspect as sine and cosine) and surface (NLCD, one-hot)."""
    terrain = tuple(
        ChannelSpec(name=name, from_="dem", by=f"terrain.{name}", unit=unit) for name, unit in TERRAIN_UNITS.items()
    )
    surface = tuple(
        ChannelSpec(name=f"nlcd_{value}", from_="nlcd", by="one_hot", value=value) for value in NLCD_CLASSES
    )
    return GroupSpec("terrain", terrain), GroupSpec("surface", surface)


def channel_specs() -> Tuple[ChannelSpec, ...]:
    """Return all channels, group after group: the order of :attr:`WatershedStack.channels`."""
    return tuple(channel for group in groups() for channel in group.channels)


def forest_features(coordinates: bool) -> Tuple[ForestFeature, ...]:
    """Return the baselines' features in order: each channel's mean within 50 m, then x and y if asked for."""
    means = tuple(ForestFeature(channel.name, BUFFER_M) for channel in channel_specs())
    return (*means, ForestFeature("x"), ForestFeature("y")) if coordinates else means


def find(labels: bool = False) -> watershed.Watershed:
    """Find the watershed's files (see :func:`training.watershed.find_watershed`)."""
    return watershed.find_watershed(CACHE, labels=labels)


def watershed_grid() -> Grid:
    """Return the 10 m grid of EPSG:3338 that covers the watershed's rasters."""
    height, width = watershed.SHAPE
    bounds = rasterio.transform.array_bounds(height, width, watershed.TRANSFORM)
    return Grid.covering(transform_bounds(watershed.CRS, TARGET_CRS, *bounds), TARGET_CRS, RESOLUTION_M)


def terrain_spec(sources: Optional[watershed.Watershed] = None) -> TerrainSpec:
    """Return the terrain entry: statistics of the position index over the whole watershed (covariates only)."""
    files = sources or find()
    return TerrainSpec(DEM_RESOLUTION_M, tpi_statistics(RasterSource(str(files.dem))))


def load_stack(progress: Optional[Progress] = None) -> WatershedStack:
    """Derive every channel of the watershed on its 10 m grid, by the engine's own class, as prediction does."""
    files, grid, specs = find(), watershed_grid(), channel_specs()
    terrain = terrain_spec(files)
    sources: Mapping[str, RasterSource] = {"dem": RasterSource(str(files.dem)), "nlcd": RasterSource(str(files.nlcd))}
    with (
        tempfile.TemporaryDirectory() as scratch,
        ChannelStack(manifest_inputs(), specs, terrain, sources, grid, Path(scratch), progress or Silent()) as stack,
    ):
        channels = stack.read(0, 0, grid.height, grid.width)
    valid: NDArray[np.bool_] = np.all(np.isfinite(channels), axis=0)
    return WatershedStack(channels, tuple(spec.name for spec in specs), grid, valid, terrain)


def load_observations(seed: int) -> Observations:
    """Sample the protocol's 4,000 points for ``seed`` (1, 2, 3 are reported; 0 is for development)."""
    return sample_transects(_labels(), watershed_grid(), seed)


def load_open_cells() -> Observations:
    """Return every open 50 m cell at its centre, in row order: what the map reading is scored on."""
    return open_cells(_labels(), watershed_grid())


def folds(observations: Observations, split: str, seed: int) -> NDArray[np.int64]:
    """Return the fold of each observation, (N,), from 0: a point has the fold of its 50 m cell.

    Folds are dealt on all open cells, so the points of every sample and the open cells agree.

    Args:
        observations: Sampled points or open cells.
        split: ``blocks`` or ``random`` (five folds), or ``sector`` (four, the same for all seeds).
        seed: Seed of the deal.
    """
    everywhere = load_open_cells()
    if split == "blocks":
        dealt = splits.deal_blocks(everywhere.block_id, everywhere.label, splits.FOLDS, seed)
    elif split == "random":
        dealt = splits.deal_randomly(len(everywhere), splits.FOLDS, seed)
    elif split == "sector":
        dealt = everywhere.sector_id
    else:
        raise ValueError(f"unknown split {split!r}; known splits are {', '.join(splits.SPLITS)}")
    fold_map = np.full(watershed.SHAPE, splits.NO_FOLD, dtype=np.int64)
    fold_map[everywhere.cell_row, everywhere.cell_col] = dealt
    result: NDArray[np.int64] = fold_map[observations.cell_row, observations.cell_col]
    return result


def _labels() -> NDArray[np.uint8]:
    files = find(labels=True)
    if files.observations is None:
        raise InputError(
            f'Data folder "{files.folder}"',
            "has no permafrost_obs.tif.",
            "The observation map is needed for training and evaluation.",
            "Copy the whole data folder, or name another in MISO_DATA.",
        )
    return read_open_labels(files.observations)
