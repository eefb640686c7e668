"""The description of a training area: written and read back, read through the engine, refused where it is wrong."""

import dataclasses
import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from training.dataset import Dataset, ObservationFile, read_dataset, write_dataset

# On the grid's own lines: origin (-2199995, 2400005), steps of 10 m.
LEFT, TOP = 299_995.0, 1_700_005.0


def small(tmp_path):
    values = np.arange(2 * 20 * 30, dtype=np.float32).reshape(2, 20, 30)
    with rasterio.open(
        tmp_path / "bands.tif",
        "w",
        driver="GTiff",
        width=30,
        height=20,
        count=2,
        dtype="float32",
        crs="EPSG:3338",
        transform=from_origin(LEFT, TOP, 10, 10),
    ) as target:
        target.write(values)
    dataset = Dataset(
        format=1,
        name="small",
        title="Two bands",
        simulated=True,
        licence="CC0-1.0",
        citation="none",
        bounds=(LEFT, TOP - 200, LEFT + 300, TOP),
        inputs={
            "red": InputSpec("continuous", "Red", range=(0.0, 1e6)),
            "climate": InputSpec("continuous", "Rain", range=(0.0, 1e6)),
        },
        sources={"red": RasterSource("bands.tif", 2), "climate": RasterSource("bands.tif", 1)},
        groups=(
            GroupSpec("satellite", (ChannelSpec("red", "red"),)),
            GroupSpec("covariates", (ChannelSpec("rain", "climate"),)),
        ),
        observations=(ObservationFile("sites.csv", {"nsp": "pf1m"}),),
        tasks=("nsp", "soil_order"),
    )
    return dataset, values


def test_a_description_comes_back_and_reads_its_rasters_by_relative_path(tmp_path):
    dataset, values = small(tmp_path)
    found = read_dataset(write_dataset(dataset, tmp_path).parent)
    assert dataclasses.replace(found, folder="") == dataset
    (tmp_path / "scratch").mkdir()
    with found.stack(tmp_path / "scratch") as stack:
        read = stack.read(0, 0, 20, 30)
    assert (found.grid.height, found.grid.width) == (20, 30)
    assert np.array_equal(read, values[::-1])  # red is band 2, rain band 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tasks": ["depth"]}, "task 'depth'"),
        ({"sources": {}}, "input 'red' has no source; input 'climate' has no source"),
        ({"bounds": [1.0, 0.0, 0.0, 1.0]}, "bounds must be"),
        ({"format": 2}, "format 2 is not 1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_description_is_refused_by_name(tmp_path, change, word):
    dataset, _ = small(tmp_path)
    path = write_dataset(dataset, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=word):
        read_dataset(path)


def test_a_missing_description_is_named(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_dataset(tmp_path / "dataset.json")
