"""AKSDB's HDF5 tiles as rasters: converted once to GeoTIFF tiles and a virtual mosaic that the engine reads.

GDAL reads an array of shape (rows, columns, channels) as one band per *row*, so the files cannot be mosaicked as they
are. Each becomes a GeoTIFF with one described band per channel; a VRT joins them. A tile that is missing is a hole of
nodata, and every fill value becomes the one nodata value. What is finished is kept when the conversion runs again.

A tile is one of the 50 km cells of the AKVEG grid, ``AK050H48V07`` or ``AK050H048V007``; its place follows from its
name alone (the published table of bounds is off by 4e-9 m in one column).
"""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import h5py
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.grid import AKVEG_ORIGIN, ALASKA_ALBERS, Bounds
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Progress, Silent
from miso_qgis.engine.rasters import gdal_settings
from miso_qgis.engine.schema import to_json

Values = NDArray[Any]  # int16, float32 or whatever a file holds

TILE_M = 50_000.0
TILE_PX = 5_000
COLUMNS, ROWS = 74, 48  # of the grid: H 1 to 74, V 1 to 48
DATASET = "data"
SUFFIXES = (".h5", ".hdf5", ".hdf")
_ID = re.compile(r"AK050H(\d{2,3})V(\d{2,3})(?!\d)", re.IGNORECASE)
_BLOCK_PX = 256  # of the GeoTIFF; whole rows of blocks are converted at once, 5000 x 256 x 10 float32 = 51 MB
INTEGER_NODATA = -32767
# Values that mark missing data in these files, whatever they declare. In a float raster only where all channels of a
# pixel hold the same one: a stream power index may well be -9999.
_FILLS = (-32767.0, -32768.0, -9999.0)
# Nothing measured is that large; -3e38 and -3.4e38 are both in use.
_HUGE = 1e37


@dataclass(frozen=True)
class Product:
    """What the channels of a kind of tile are.

    Attributes:
        name: Name of the group and of the mosaic.
        inputs: Channel -> what it is, in the order of the array's last axis.
    """

    name: str
    inputs: Mapping[str, InputSpec]


def _value(title: str, unit: str = "", limits: Optional[Tuple[float, float]] = None) -> InputSpec:
    return InputSpec("continuous", title, unit=unit, range=limits, training_resolution_m=10.0)


# Channels of the published files, by their number. Limits are those of physics; the published rasters overshoot theirs
# where they were resampled (aspect -175 to 608 degrees, negative stream power), so aspect and such have none.
SATELLITE = Product(
    "satellite",
    {
        "red": _value("Sentinel-2 red, reflectance x 10000"),
        "green": _value("Sentinel-2 green, reflectance x 10000"),
        "blue": _value("Sentinel-2 blue, reflectance x 10000"),
        "red_edge_1": _value("Sentinel-2 red edge 1, reflectance x 10000"),
        "red_edge_2": _value("Sentinel-2 red edge 2, reflectance x 10000"),
        "red_edge_3": _value("Sentinel-2 red edge 3, reflectance x 10000"),
        "nir": _value("Sentinel-2 near infrared, reflectance x 10000"),
        "swir_1": _value("Sentinel-2 short-wave infrared 1, reflectance x 10000"),
        "swir_2": _value("Sentinel-2 short-wave infrared 2, reflectance x 10000"),
    },
)
COVARIATES = Product(
    "covariates",
    {
        "aspect": _value("Aspect", "degree"),
        "elevation": _value("Elevation", "m", (-100.0, 6500.0)),
        "maximum_curvature": _value("Maximum curvature", "1/m"),
        "slope": _value("Slope", "degree", (-1.0, 90.0)),
        "stream_power_index": _value("Stream power index"),
        "saga_wetness_index": _value("SAGA wetness index"),
        "topographic_position_index": _value("Topographic position index"),
        "annual_precipitation": _value("Annual precipitation", "mm", (0.0, 20000.0)),
        "summer_warmth_index": _value("Summer warmth index, May to September", "degree C", (-200.0, 150.0)),
        "january_minimum_temperature": _value("January minimum temperature", "degree C", (-70.0, 20.0)),
    },
)
PRODUCTS: Mapping[int, Product] = {len(product.inputs): product for product in (SATELLITE, COVARIATES)}


@dataclass(frozen=True)
class Tile:
    """One HDF5 file.

    Attributes:
        path: The file.
        column: H of its name, 1 is the westernmost.
        row: V of its name, 1 is the northernmost.
        channels: Length of the array's last axis.
        pixels: Rows and columns.
        integer: Whether it holds int16 (kept) or something else (becomes float32).
        declared: Fill value that the file declares, if any.
    """

    path: Path
    column: int
    row: int
    channels: int
    pixels: int
    integer: bool
    declared: Optional[float] = None

    @property
    def name(self) -> str:
        """The tile's identifier with three digits each."""
        return tile_id(self.column, self.row)


def tile_id(column: int, row: int) -> str:
    """Write a tile's identifier: ``AK050H048V007``."""
    return f"AK050H{column:03d}V{row:03d}"


def parse_tile_id(text: str) -> Optional[Tuple[int, int]]:
    """Read (column, row) from a name that holds a tile's identifier, with 2 or 3 digits; None where it holds none."""
    found = _ID.search(text)
    if found is None:
        return None
    column, row = int(found[1]), int(found[2])
    return (column, row) if 1 <= column <= COLUMNS and 1 <= row <= ROWS else None


def tile_bounds(column: int, row: int) -> Bounds:
    """Return (xmin, ymin, xmax, ymax) of a tile in EPSG:3338.

    Example: H 1, V 1 begins at (-2199995, 2400005), its upper left corner.
    """
    x0, y0 = AKVEG_ORIGIN
    left, top = x0 + (column - 1) * TILE_M, y0 - (row - 1) * TILE_M
    return left, top - TILE_M, left + TILE_M, top


@dataclass(frozen=True)
class Mosaic:
    """Converted tiles of one product.

    Attributes:
        product: Channels.
        path: The VRT.
        tiles: Identifiers of the tiles in it.
        bounds: Of the tiles' box, EPSG:3338; tiles missing inside it are nodata.
    """

    product: Product
    path: Path
    tiles: Tuple[str, ...]
    bounds: Bounds


def convert(
    folder: Path,
    out: Path,
    *,
    pixels: int = TILE_PX,
    bands: Sequence[str] = (),
    nodata: Sequence[float] = (),
    progress: Optional[Progress] = None,
) -> List[Mosaic]:
    """Convert all HDF5 tiles of a folder (and its sub-folders) to one mosaic per product.

    The product is known by the number of channels: 9 satellite, 10 covariates; ``bands`` names those of another one.

    Args:
        folder: Where the tiles are.
        out: Where GeoTIFFs, VRTs and ``inputs.json`` go; finished tiles in it are kept.
        pixels: Rows and columns of a tile.
        bands: Names of the channels, for files with another number of them.
        nodata: Values that mean missing data besides those known.
        progress: Told about the tiles; asked for cancellation.

    Raises:
        InputError: If files cannot be used, all problems at once before anything is converted; or if one turns out to
            be damaged (tiles that are finished stay).
    """
    progress = progress or Silent()
    products = dict(PRODUCTS)
    if bands:
        named = {name: InputSpec("continuous", name) for name in bands}
        if len(named) != len(bands):
            raise InputError("Bands", "two have the same name.", "Names must differ.", "Rename one.")
        products[len(bands)] = Product("tiles", named)
    tiles = inspect_folder(folder, pixels, products)
    mosaics = []
    done = 0
    for channels in sorted({tile.channels for tile in tiles}):
        product = products[channels]
        chosen = [tile for tile in tiles if tile.channels == channels]
        # One type for the whole mosaic: a VRT band has one.
        integer = all(tile.integer for tile in chosen)
        (out / product.name).mkdir(parents=True, exist_ok=True)
        with gdal_settings():
            for tile in chosen:
                progress.raise_if_cancelled()
                progress.report(done, len(tiles), f"Converting {tile.name} ({product.name})")
                _convert_tile(tile, product, out / product.name / f"{tile.name}.tif", integer, nodata)
                done += 1
        mosaics.append(_write_mosaic(chosen, product, out, integer))
    progress.report(done, len(tiles), "Tiles converted")
    _write_text(out / "inputs.json", json.dumps(dataset_parts(mosaics), indent=1) + "\n")
    return mosaics


def inspect_folder(folder: Path, pixels: int, products: Mapping[int, Product]) -> List[Tile]:
    """Look at every HDF5 file's header.

    Raises:
        InputError: All problems at once: no tiles, names without an identifier, other layouts, a tile twice.
    """
    if not Path(folder).is_dir():
        raise InputError(f'Folder "{folder}"', "does not exist.", "A folder with HDF5 tiles is needed.", "Check it.")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        needed = f"Files {', '.join('*' + suffix for suffix in SUFFIXES)} are needed."
        raise InputError(f'Folder "{folder}"', "holds no HDF5 tiles.", needed, "Choose another folder.")
    tiles: List[Tile] = []
    problems: List[Problem] = []
    seen: Dict[Tuple[int, int, int], Path] = {}
    for path in paths:
        tile, problem = _inspect(path, pixels, products)
        if problem is not None:
            problems.append(problem)
        if tile is None:
            continue
        key = (tile.column, tile.row, tile.channels)
        if key in seen:
            found = f'it is the same tile as "{seen[key].name}" with as many channels.'
            problems.append(Problem(f'Tile "{path.name}"', found, "One file per tile is needed.", "Remove one."))
        seen[key] = path
        tiles.append(tile)
    if problems:
        raise InputError.of(problems)
    return tiles


def _inspect(path: Path, pixels: int, products: Mapping[int, Product]) -> Tuple[Optional[Tile], Optional[Problem]]:
    what = f'Tile "{path.name}"'
    layout = f'A dataset "{DATASET}" of shape ({pixels}, {pixels}, channels) is needed.'
    place = parse_tile_id(path.stem)
    if place is None:
        needed = f"An identifier such as AK050H48V07 (H 1 to {COLUMNS}, V 1 to {ROWS}) is needed."
        return None, Problem(what, "its name holds no identifier of a tile.", needed, "Rename it.")
    try:
        with h5py.File(path, "r") as file:
            data = file.get(DATASET)
            if not isinstance(data, h5py.Dataset):
                return None, Problem(what, f"it holds {', '.join(file) or 'nothing'}.", layout, "Check the file.")
            shape, kind = data.shape, data.dtype
            declared = next(
                (
                    float(np.ravel(data.attrs[name])[0])
                    for name in ("_FillValue", "nodata", "missing_value")
                    if name in data.attrs
                ),
                None,
            )
    except (OSError, ValueError, TypeError) as error:
        return None, Problem(what, f"it cannot be read ({error}).", layout, "Copy it again; it may be cut off.")
    if len(shape) != 3 or shape[:2] != (pixels, pixels) or kind.kind not in "iuf":
        found = f"its array has the shape {shape} and the type {kind}."
        return None, Problem(what, found, layout, "Give the number of pixels with --pixels if it is another.")
    if shape[2] not in products:
        known = ", ".join(f"{count} ({product.name})" for count, product in sorted(products.items()))
        found = f"it has {shape[2]} channels."
        return None, Problem(what, found, f"Known are {known}.", "Name the channels with --bands.")
    return Tile(path, *place, shape[2], pixels, kind == np.int16, declared), None


def _convert_tile(tile: Tile, product: Product, target: Path, integer: bool, nodata: Sequence[float]) -> None:
    stamp = _stamp(tile, integer, nodata)
    if _finished(target, stamp):
        return
    part = target.with_name(f".{target.stem}.part.tif")
    left, _, _, top = tile_bounds(tile.column, tile.row)
    step = TILE_M / tile.pixels
    profile: Dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "int16" if integer else "float32",
        "count": tile.channels,
        "height": tile.pixels,
        "width": tile.pixels,
        "crs": ALASKA_ALBERS,
        "transform": Affine(step, 0.0, left, 0.0, -step, top),
        "nodata": INTEGER_NODATA if integer else float("nan"),
        "compress": "deflate",
        "predictor": 2 if integer else 3,
        "interleave": "band",
        "BIGTIFF": "IF_SAFER",
    }
    if tile.pixels >= _BLOCK_PX:
        profile.update(tiled=True, blockxsize=_BLOCK_PX, blockysize=_BLOCK_PX)
    fills = (*nodata, *(() if tile.declared is None else (tile.declared,)))
    try:
        with rasterio.open(part, "w", **profile) as sink:
            sink.descriptions = tuple(product.inputs)
            sink.update_tags(**stamp)
            for row, values in _strips(tile):
                clean = cleaned(values, integer, fills)
                sink.write(np.moveaxis(clean, 2, 0), window=Window(0, row, tile.pixels, clean.shape[0]))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _strips(tile: Tile) -> Iterator[Tuple[int, Values]]:
    """Yield first row and values, (rows, columns, channels), of a tile from top to bottom."""
    try:
        with h5py.File(tile.path, "r") as file:
            for row in range(0, tile.pixels, _BLOCK_PX):
                yield row, file[DATASET][row : row + _BLOCK_PX]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        found = f"is damaged ({error})."
        raise InputError(f'Tile "{tile.path.name}"', found, "", "Copy it again; finished tiles are kept.") from error


def cleaned(values: Values, integer: bool, fills: Sequence[float]) -> Values:
    """Return values, (rows, columns, channels), with every fill value replaced by the nodata value.

    Missing is: not finite; beyond 1e37 either way; one of ``fills``; -32767 or -32768 in integers; in floats, a pixel
    whose channels all hold the same of -32767, -32768, -9999.

    Returns:
        int16 with nodata -32767, or float32 with NaN.
    """
    if integer:
        whole = values.astype(np.int16)
        missing = (whole <= INTEGER_NODATA) | np.isin(whole, [fill for fill in fills if np.isfinite(fill)])
        return np.where(missing, np.int16(INTEGER_NODATA), whole)
    # Fills are compared in the file's own precision: -3e38 written as float32 is another number than -3e38.
    with np.errstate(over="ignore", invalid="ignore"):
        missing = ~(values > -_HUGE) | ~(values < _HUGE)
        for fill in fills:
            missing |= values == np.asarray(fill).astype(values.dtype)
        for fill in _FILLS:
            missing |= (values == fill).all(axis=2, keepdims=True)
        return np.where(missing, np.float32(np.nan), values.astype(np.float32))


def _stamp(tile: Tile, integer: bool, nodata: Sequence[float]) -> Dict[str, str]:
    state = tile.path.stat()
    how = f"{'int16' if integer else 'float32'} {sorted(nodata)}"
    return {"MISO_SOURCE": tile.path.name, "MISO_STATE": f"{state.st_size} {state.st_mtime_ns}", "MISO_HOW": how}


def _finished(target: Path, stamp: Mapping[str, str]) -> bool:
    """Whether a tile was converted from this very file in this very way."""
    if not target.is_file():
        return False
    try:
        with rasterio.open(target) as found:
            tags = found.tags()
    except RasterioError:
        return False
    return all(tags.get(name) == value for name, value in stamp.items())


def _write_mosaic(tiles: Sequence[Tile], product: Product, out: Path, integer: bool) -> Mosaic:
    boxes = [tile_bounds(tile.column, tile.row) for tile in tiles]
    bounds = _hull(boxes)
    pixels = tiles[0].pixels
    step = TILE_M / pixels
    width, height = (round((bounds[i + 2] - bounds[i]) / step) for i in (0, 1))
    kind, nodata = ("Int16", str(INTEGER_NODATA)) if integer else ("Float32", "nan")
    size = f'xSize="{pixels}" ySize="{pixels}"'
    bands = []
    for band, name in enumerate(product.inputs, 1):
        sources = "".join(
            f'<ComplexSource><SourceFilename relativeToVRT="1">{product.name}/{tile.name}.tif</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" {size}/>'
            f'<DstRect xOff="{round((box[0] - bounds[0]) / step)}" yOff="{round((bounds[3] - box[3]) / step)}" {size}/>'
            f"<NODATA>{nodata}</NODATA></ComplexSource>\n"
            for tile, box in zip(tiles, boxes)
        )
        bands.append(
            f'<VRTRasterBand dataType="{kind}" band="{band}"><Description>{html.escape(name)}</Description>'
            f"<NoDataValue>{nodata}</NoDataValue>\n{sources}</VRTRasterBand>\n"
        )
    crs = html.escape(rasterio.crs.CRS.from_user_input(ALASKA_ALBERS).to_wkt())
    path = out / f"{product.name}.vrt"
    _write_text(
        path,
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{crs}</SRS>'
        f"<GeoTransform>{bounds[0]!r}, {step!r}, 0.0, {bounds[3]!r}, 0.0, {-step!r}</GeoTransform>\n"
        f"{''.join(bands)}</VRTDataset>\n",
    )
    return Mosaic(product, path, tuple(tile.name for tile in tiles), bounds)


def _hull(boxes: Sequence[Bounds]) -> Bounds:
    west, south, east, north = zip(*boxes)
    return min(west), min(south), max(east), max(north)


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def dataset_parts(mosaics: Sequence[Mosaic]) -> Dict[str, Any]:
    """Return what ``dataset.json`` needs of converted tiles: bounds, inputs, sources, groups (JSON values).

    Paths are the mosaics' names, for a ``dataset.json`` in the same folder.
    """
    return {
        "bounds": list(_hull([mosaic.bounds for mosaic in mosaics])),
        "inputs": {name: to_json(spec) for mosaic in mosaics for name, spec in mosaic.product.inputs.items()},
        "sources": {
            name: to_json(RasterSource(mosaic.path.name, band))
            for mosaic in mosaics
            for band, name in enumerate(mosaic.product.inputs, 1)
        },
        "groups": [
            to_json(
                GroupSpec(
                    mosaic.product.name,
                    tuple(ChannelSpec(name, name, unit=spec.unit) for name, spec in mosaic.product.inputs.items()),
                )
            )
            for mosaic in mosaics
        ],
    }
