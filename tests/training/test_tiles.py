"""HDF5 tiles in the published layout, written small: places, fills, holes, faults, and reading through a dataset."""

import csv
import dataclasses
import json
import os

import h5py
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.schema import from_json
from training import cli, split_pictures, tiles
from training.dataset import Dataset, write_dataset

PX = 20  # of 2.5 km each: the tile keeps its 50 km
COAST = split_pictures.coast_file()
GRID = None if COAST is None else COAST.parents[1] / "akveg_grid" / "00_PredictionGrid_050_v20241127.csv"


def write_tile(path, values, **attributes):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=values, chunks=True, compression="gzip")
        data.attrs.update(attributes)


def satellite(seed=0):
    return np.random.default_rng(seed).integers(0, 9000, (PX, PX, 9)).astype(np.int16)


def covariates(seed=0):
    values = np.random.default_rng(seed).uniform(0.0, 60.0, (PX, PX, 10)).astype(np.float32)
    values[..., 9] -= 60.0
    return values


def test_bounds_follow_from_the_identifier():
    # By hand: H 48 is 47 tiles east of -2199995, V 7 is 6 tiles south of 2400005.
    assert tiles.parse_tile_id("AK050H48V07") == tiles.parse_tile_id("sat_ak050H048V007_v2") == (48, 7)
    assert tiles.tile_bounds(48, 7) == (150_005.0, 2_050_005.0, 200_005.0, 2_100_005.0)
    for text in ("AK050H75V01", "AK050H00V01", "AK050H1V1", "AK050H048V0071", "tile"):
        assert tiles.parse_tile_id(text) is None


@pytest.mark.real_data
@pytest.mark.skipif(GRID is None or not GRID.is_file(), reason="the AKVEG grid is not beside the checkout")
def test_bounds_agree_with_the_published_grid():
    with GRID.open(encoding="utf-8-sig") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 841
    for row in rows:
        published = [float(row[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        # Column H045 is off by 4e-9 m in the source.
        assert tiles.tile_bounds(*tiles.parse_tile_id(row["grid_code"])) == pytest.approx(published, abs=1e-8)


def test_a_folder_becomes_a_dataset_that_reads_every_channel_by_name(tmp_path):
    source, out = tmp_path / "tiles", tmp_path / "out"
    (source / "sat").mkdir(parents=True)
    (source / "cov").mkdir()
    # Three of the four tiles of a square; the covariates of one of them only.
    sat = {name: satellite(i) for i, name in enumerate(("AK050H48V07", "AK050H49V07", "AK050H48V08"))}
    for name, values in sat.items():
        write_tile(source / "sat" / f"{name}.h5", values)
    cov = covariates()
    write_tile(source / "cov" / "AK050H048V007.hdf5", cov)
    mosaics = tiles.convert(source, out, pixels=PX)
    assert [(mosaic.product.name, len(mosaic.tiles)) for mosaic in mosaics] == [("satellite", 3), ("covariates", 1)]

    parts = json.loads((out / "inputs.json").read_text())
    dataset = Dataset(
        format=1,
        name="tiles",
        title="Tiles",
        simulated=True,
        licence="CC0-1.0",
        citation="none",
        bounds=tuple(parts["bounds"]),
        inputs={name: from_json(InputSpec, spec) for name, spec in parts["inputs"].items()},
        sources={name: from_json(RasterSource, spec) for name, spec in parts["sources"].items()},
        groups=tuple(from_json(GroupSpec, spec) for spec in parts["groups"]),
        observations=(),
        tasks=("nsp",),
        resolution_m=2500.0,
    )
    assert dataset.bounds == (150_005.0, 2_000_005.0, 250_005.0, 2_100_005.0)
    dataset = dataclasses.replace(dataset, folder=str(write_dataset(dataset, out).parent))
    (tmp_path / "scratch").mkdir()
    with dataset.stack(tmp_path / "scratch") as stack:
        assert stack.grid.shape == (2 * PX, 2 * PX)
        read = stack.read(0, 0, 2 * PX, 2 * PX)
    names = [channel.name for channel in dataset.channels]
    assert names[:3] == ["red", "green", "blue"]
    assert names[9:11] == ["aspect", "elevation"]
    for (rows, columns), name in zip(((0, 0), (0, 1), (1, 0)), sat):
        box = (slice(rows * PX, (rows + 1) * PX), slice(columns * PX, (columns + 1) * PX))
        assert np.array_equal(read[:9][(slice(None), *box)], np.moveaxis(sat[name], 2, 0))
    assert np.isnan(read[:, PX:, PX:]).all()  # the missing tile
    assert np.array_equal(read[9:, :PX, :PX], np.moveaxis(cov, 2, 0))
    assert np.isnan(read[9:, PX:, :]).all()


@pytest.mark.parametrize("fill", [-32767, -32768])
def test_integer_fills_are_missing(fill):
    values = satellite()
    values[3, 4, :] = fill
    values[5, 6, 2] = fill
    clean = tiles.cleaned(values, True, ())
    missing = clean == tiles.INTEGER_NODATA
    assert missing[3, 4].all()
    assert missing[5, 6].sum() == 1
    assert missing.sum() == 10
    assert np.array_equal(clean[~missing], values[~missing])


@pytest.mark.parametrize("fill", [-3e38, -3.4028235e38, 3.4e38, np.nan, np.inf, -32768.0, -32767.0, -9999.0])
def test_float_fills_are_missing_whatever_their_value(fill):
    values = covariates()
    values[3, 4, :] = fill
    clean = tiles.cleaned(values, False, ())
    assert np.isnan(clean[3, 4]).all()
    assert np.isnan(clean).sum() == 10


def test_a_value_that_could_be_a_fill_stays_in_a_pixel_with_other_values():
    values = covariates()
    values[3, 4, 4] = -9999.0  # a stream power index may be that
    assert not np.isnan(tiles.cleaned(values, False, ())).any()
    # Unless the user or the file says that it is one; 0.1 is another number in float32.
    values[5, 6, 7] = 0.1
    clean = tiles.cleaned(values, False, (-9999.0, 0.1))
    assert np.argwhere(np.isnan(clean)).tolist() == [[3, 4, 4], [5, 6, 7]]


def test_a_declared_fill_value_is_missing(tmp_path):
    values = covariates()
    values[0, 0, 0] = -1234.0
    write_tile(tmp_path / "AK050H48V07.h5", values, _FillValue=np.float32(-1234.0))
    (mosaic,) = tiles.convert(tmp_path, tmp_path / "out", pixels=PX)
    with rasterio.open(mosaic.path) as found:
        assert found.descriptions[1] == "elevation"
        assert np.isnan(found.read(1)[0, 0])
        assert found.read(1, masked=True).mask.sum() == 1
        assert found.crs.to_epsg() == 3338


def test_finished_tiles_are_kept_and_changed_ones_made_again(tmp_path):
    source, out = tmp_path / "tiles", tmp_path / "out"
    source.mkdir()
    for name in ("AK050H48V07", "AK050H49V07"):
        write_tile(source / f"{name}.h5", satellite())
    tiles.convert(source, out, pixels=PX)
    first, second = (out / "satellite" / f"AK050H0{column}V007.tif" for column in (48, 49))
    before = first.stat().st_ino, second.stat().st_ino
    changed = satellite(7)
    write_tile(source / "AK050H49V07.h5", changed)
    os.utime(source / "AK050H49V07.h5", ns=(1, 1))
    tiles.convert(source, out, pixels=PX)
    assert first.stat().st_ino == before[0]
    with rasterio.open(second) as found:
        assert np.array_equal(found.read(), np.moveaxis(changed, 2, 0))
    # A result that was cut off is no finished tile.
    first.write_bytes(first.read_bytes()[:40])
    tiles.convert(source, out, pixels=PX)
    with rasterio.open(first) as found:
        assert np.array_equal(found.read(), np.moveaxis(satellite(), 2, 0))
    assert not list(out.rglob("*.part*"))


def test_all_problems_are_told_at_once_and_nothing_is_written(tmp_path):
    write_tile(tmp_path / "unnamed.h5", satellite())
    write_tile(tmp_path / "AK050H48V07.h5", satellite()[:10])
    write_tile(tmp_path / "AK050H48V08.h5", satellite()[..., :4])
    write_tile(tmp_path / "AK050H48V09.h5", satellite())
    write_tile(tmp_path / "AK050H048V009.h5", satellite())
    (tmp_path / "AK050H48V10.h5").write_bytes((tmp_path / "AK050H48V09.h5").read_bytes()[:900])
    with h5py.File(tmp_path / "AK050H48V11.h5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(InputError) as caught:
        tiles.convert(tmp_path, tmp_path / "out", pixels=PX)
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    for word in ("no identifier", "(10, 20, 9)", "4 channels", "same tile", "AK050H48V10.h5", "it holds image"):
        assert word in text
    assert not (tmp_path / "out").exists()


def test_a_damaged_tile_is_named_and_finished_ones_stay(tmp_path):
    source, out = tmp_path / "tiles", tmp_path / "out"
    source.mkdir()
    write_tile(source / "AK050H48V07.h5", satellite())
    write_tile(source / "AK050H49V07.h5", satellite(1))
    content = bytearray((source / "AK050H49V07.h5").read_bytes())
    with h5py.File(source / "AK050H49V07.h5") as file:
        place = file["data"].id.get_chunk_info(0)
    content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    (source / "AK050H49V07.h5").write_bytes(content)
    with pytest.raises(InputError, match=r"AK050H49V07\.h5.*damaged"):
        tiles.convert(source, out, pixels=PX)
    assert [path.name for path in out.rglob("*.*")] == ["AK050H048V007.tif"]


def test_another_number_of_channels_takes_names(tmp_path):
    write_tile(tmp_path / "AK050H48V07.h5", np.ones((PX, PX, 2), np.uint8))
    (mosaic,) = tiles.convert(tmp_path, tmp_path / "out", pixels=PX, bands=("wet", "dry"))
    with rasterio.open(mosaic.path) as found:
        assert found.descriptions == ("wet", "dry")
    with pytest.raises(InputError, match="two have the same name"):
        tiles.convert(tmp_path, tmp_path / "out", pixels=PX, bands=("wet", "wet"))


def test_the_command_says_what_it_wrote_and_what_is_missing(tmp_path, capsys):
    assert cli.main(["tiles", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no HDF5 tiles" in capsys.readouterr().err
    write_tile(tmp_path / "AK050H48V07.h5", satellite())
    assert cli.main(["tiles", str(tmp_path), "--out", str(tmp_path / "out"), "--pixels", str(PX)]) == 0
    assert "satellite.vrt, 1 tiles" in capsys.readouterr().out


def test_a_mosaic_of_several_geotiffs_and_a_cog_are_sources_of_a_dataset(tmp_path):
    left, top = 299_995.0, 1_700_005.0
    values = np.arange(20 * 40, dtype=np.float32).reshape(20, 40)
    for index in range(2):
        with rasterio.open(
            tmp_path / f"part{index}.tif",
            "w",
            driver="GTiff",
            width=20,
            height=20,
            count=1,
            dtype="float32",
            crs="EPSG:3338",
            transform=from_origin(left + 200 * index, top, 10, 10),
        ) as target:
            target.write(values[:, 20 * index : 20 * index + 20], 1)
    from rasterio.shutil import copy

    with rasterio.open(tmp_path / "part0.tif") as part:
        copy(part, tmp_path / "cog.tif", driver="COG")
    # As gdalbuildvrt writes it: both files side by side.
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">part{i}.tif</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="20" ySize="20"/><DstRect xOff="{20 * i}" yOff="0" xSize="20" ySize="20"/>'
        "</SimpleSource>"
        for i in range(2)
    )
    (tmp_path / "mosaic.vrt").write_text(
        f'<VRTDataset rasterXSize="40" rasterYSize="20"><SRS>EPSG:3338</SRS>'
        f"<GeoTransform>{left}, 10, 0, {top}, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1">{sources}</VRTRasterBand></VRTDataset>'
    )
    channels = tuple(ChannelSpec(name, name) for name in ("mosaic", "cog"))
    dataset = Dataset(
        format=1,
        name="two",
        title="Two files",
        simulated=True,
        licence="CC0-1.0",
        citation="none",
        bounds=(left, top - 200, left + 400, top),
        inputs={name: InputSpec("continuous", name) for name in ("mosaic", "cog")},
        sources={"mosaic": RasterSource("mosaic.vrt"), "cog": RasterSource("cog.tif")},
        groups=(GroupSpec("all", channels),),
        observations=(),
        tasks=("nsp",),
        folder=str(tmp_path),
    )
    (tmp_path / "scratch").mkdir()
    with dataset.stack(tmp_path / "scratch") as stack:
        read = stack.read(0, 0, 20, 40)
    assert np.array_equal(read[0], values)
    assert np.array_equal(read[1, :, :20], values[:, :20])
    assert np.isnan(read[1, :, 20:]).all()
