"""A dataset small enough for tests of training: 26 x 30 hectares of invented ground, two groups, two tasks."""

from __future__ import annotations

import csv

import numpy as np
import rasterio
from rasterio.transform import from_origin

from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from training.dataset import Dataset, ObservationFile, write_dataset
from training.sites import CLASSES

# On the grid's own lines: origin (-2199995, 2400005), steps of 10 m.
LEFT, TOP = 299_995.0, 1_700_005.0
HEIGHT, WIDTH = 102, 131  # neither a multiple of a cell nor of a window

RECIPE = """
members = 1
stride_px = 16
decode_px = 24
[size]
window_px = 32
cell_px = 2
patch_px = 4
channels = 8
depths = [1, 1]
head_channels = 4
attention_window = 4
position_hidden = 8
implicit_widths = [8, 8]
embedding = 8
frequencies = 4
[pretrain]
steps = 6
batch = 4
learning_rate = 3e-3
[fit]
steps = 8
batch = 4
learning_rate = 3e-3
[contrast]
locations = 6
[optimiser]
average_decay = 0.8
[window]
points = 20
"""


def channels(seed=5):
    """Red and green, rain and a wet class, (4, H, W); green has a hole, and row and column can be told from them."""
    generator = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    red = 1000 + 10 * rows + generator.normal(0, 20, (HEIGHT, WIDTH))
    green = 2000 + 8 * columns + generator.normal(0, 20, (HEIGHT, WIDTH))
    green[20:30, 90:110] = -32768
    rain = 300 + 0.5 * rows + 0.3 * columns
    wet = np.where((rows // 34 + columns // 44) % 2 == 0, 11, 42)
    return np.stack([red, green, rain, wet]).astype(np.float32)


def write(folder, sites=60, seed=3, *, tasks=("nsp", "soil_order"), **changes):
    """Write rasters, sites.csv and dataset.json; returns the path of the description."""
    folder.mkdir(parents=True, exist_ok=True)
    bands = channels()
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 4, "dtype": "float32"}
    profile.update(crs="EPSG:3338", transform=from_origin(LEFT, TOP, 10, 10), nodata=-32768)
    with rasterio.open(folder / "bands.tif", "w", **profile) as target:
        target.write(bands)
    write_sites(folder, bands, sites, seed)
    settings = {
        "format": 1,
        "name": "tiny",
        "title": "Tiny ground",
        "simulated": True,
        "licence": "CC0-1.0",
        "citation": "None.",
        "bounds": (LEFT, TOP - 10 * HEIGHT, LEFT + 10 * WIDTH, TOP),
        "inputs": {
            "red": InputSpec("continuous", "Red", range=(0.0, 1e5)),
            "green": InputSpec("continuous", "Green", range=(0.0, 1e5)),
            "rain": InputSpec("continuous", "Rain", "mm", range=(0.0, 1e5)),
            "cover": InputSpec("classes", "Cover", legend={"11": "wet", "42": "dry"}),
        },
        "sources": {
            name: RasterSource("bands.tif", band + 1) for band, name in enumerate(("red", "green", "rain", "cover"))
        },
        "groups": (
            GroupSpec("satellite", (ChannelSpec("red", "red"), ChannelSpec("green", "green"))),
            GroupSpec(
                "covariates", (ChannelSpec("rain", "rain", unit="mm"), ChannelSpec("wet", "cover", "one_hot", 11))
            ),
        ),
        "observations": (ObservationFile("sites.csv"),),
        "tasks": tuple(tasks),
    }
    return write_dataset(Dataset(**{**settings, **changes}), folder)


def write_sites(folder, bands, count, seed):
    """NSP where it is wet, an order by stripes of columns; a third of the labels of each task is missing."""
    generator = np.random.default_rng(seed)
    with (folder / "sites.csv").open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["id", "x", "y", "date", "nsp", "soil_order"])
        for number in range(count):
            row, column = generator.uniform(1, HEIGHT - 1), generator.uniform(1, WIDTH - 1)
            nsp = int(bands[3, int(row), int(column)] == 11)
            order = int(column) * 3 // WIDTH + 2
            hidden = generator.random(2) < 1 / 3
            date = f"{1960 + number % 50}-07-15" if number % 4 else ""
            labels = ["" if hidden[0] else nsp, "" if hidden[1] else CLASSES["soil_order"][order]]
            writer.writerow([f"s{number}", LEFT + 10 * column, TOP - 10 * row, date, *labels])
