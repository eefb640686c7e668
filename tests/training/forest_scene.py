"""A small dataset for the forest's tests: three channels on a grid of odd size, sites in clusters, both tasks."""

import csv

import numpy as np
import rasterio
from rasterio.transform import from_origin

from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from training.dataset import Dataset, ObservationFile, read_dataset, write_dataset
from training.sites import CLASSES

# On the grid's own lines: origin (-2199995, 2400005), steps of 10 m.
LEFT, TOP, HEIGHT, WIDTH = 299_995.0, 1_700_005.0, 90, 151


def channels(seed=0):
    """(3, H, W) float32; the second has a hole of 5 x 8 pixels."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    wet = np.sin(rows / 7) + np.cos(columns / 11)
    values = np.stack([wet, 0.02 * columns - 0.01 * rows, generator.normal(size=wet.shape)]).astype(np.float32)
    values[1, 40:45, 60:68] = np.nan
    return values


def truth(values):
    """Class index of the order and of permafrost at every pixel, (H, W) each; Mollisols (5) are rare."""
    order = np.digitize(values[0], [-1.4, -0.9, -0.3, 0.3, 0.9, 1.7])
    return order, (values[1] > 0.8).astype(int)


def write(folder, count=240, seed=3, rows=None, **changes):
    """Write dataset.json, bands.tif and sites.csv; return the dataset. ``rows`` replaces the sites."""
    values = channels()
    with rasterio.open(
        folder / "bands.tif",
        "w",
        driver="GTiff",
        width=WIDTH,
        height=HEIGHT,
        count=3,
        dtype="float32",
        nodata=np.nan,
        crs="EPSG:3338",
        transform=from_origin(LEFT, TOP, 10, 10),
    ) as target:
        target.write(values)
    rows = sites(values, count, seed) if rows is None else rows
    with open(folder / "sites.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "x", "y", "date", "nsp", "soil_order"])
        writer.writeheader()
        writer.writerows(rows)
    names = ("wet", "east", "noise")
    options = {
        "format": 1,
        "name": "made-up",
        "title": "Made-up land",
        "simulated": True,
        "licence": "CC0-1.0",
        "citation": "none",
        "bounds": (LEFT, TOP - 10 * HEIGHT, LEFT + 10 * WIDTH, TOP),
        "inputs": {name: InputSpec("continuous", name.title(), range=(-100.0, 100.0)) for name in names},
        "sources": {name: RasterSource("bands.tif", band) for band, name in enumerate(names, 1)},
        "groups": (
            GroupSpec("satellite", (ChannelSpec("wet", "wet"),)),
            GroupSpec("covariates", (ChannelSpec("east", "east"), ChannelSpec("noise", "noise"))),
        ),
        "observations": (ObservationFile("sites.csv"),),
        "tasks": ("nsp", "soil_order"),
    }
    return read_dataset(write_dataset(Dataset(**{**options, **changes}), folder))


def sites(values, count, seed):
    """Rows of sites.csv: sites of ten within 100 m of a centre; every seventh label of the order is missing."""
    generator = np.random.default_rng(seed)
    order, frozen = truth(values)
    rows = []
    for number in range(count):
        if number % 10 == 0:
            centre = generator.integers([5, 5], [HEIGHT - 5, WIDTH - 5])
        row, column = np.clip(centre + generator.integers(-10, 11, 2), 0, [HEIGHT - 1, WIDTH - 1])
        x = LEFT + 10 * (column + generator.uniform(0.01, 0.99))
        y = TOP - 10 * (row + generator.uniform(0.01, 0.99))
        known = CLASSES["soil_order"][order[row, column]] if number % 7 else ""
        rows.append(
            {"id": f"s{number}", "x": x, "y": y, "date": "1987-07-01", "nsp": frozen[row, column], "soil_order": known}
        )
    return rows
