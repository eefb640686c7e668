"""Rasters that the user gave: what they are, what is wrong with them, and how they are brought to a grid.

Nothing here trusts a file: GDAL opens truncated rasters, ignores scale and offset, returns raw nodata and averages over
undeclared fill values without a word (measured in the fault tests). Missing values are NaN from here on.
"""

from __future__ import annotations

import html
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Type

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from .errors import InputError, Problem
from .grid import Bounds, Grid
from .messages import RasterSource

FloatArray = NDArray[np.float32]

# GDAL's block cache is 5 % of the machine's memory by default, which makes "windowed" reading grow with the area.
# In bytes: rasterio hands the number to GDAL as it is, without GDAL's rule that small ones mean megabytes.
GDAL_CACHE_BYTES = 32_000_000
# Largest error, in source pixels, of the piecewise linear stand-in for the exact transformation between two CRS.
_WARP_TOLERANCE_PX = 0.01
# A read may leave the grid by this much and still see data.
READ_MARGIN_PX = 512
# From this many source pixels per target pixel on, bilinear resampling averages instead of picking.
_AVERAGE_FROM = 1.5
_REMOTE_MARKS = ("http://", "https://", "ftp://", "url=", "/vsicurl", "wms:", "wcs:", "wmts:")
_GDAL_TYPES = {
    "uint8": "Byte",
    "int8": "Int8",
    "uint16": "UInt16",
    "int16": "Int16",
    "uint32": "UInt32",
    "int32": "Int32",
    "uint64": "UInt64",
    "int64": "Int64",
    "float32": "Float32",
    "float64": "Float64",
}


def gdal_settings() -> rasterio.Env:
    """Return the context in which a run uses GDAL: a block cache of bounded size."""
    return rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES)


@dataclass(frozen=True)
class RasterInfo:
    """What one band of a raster file is.

    Attributes:
        name: How messages call it: ``Input "dem" (dem_30m.tif)``.
        source: File and band.
        crs: Its CRS.
        transform: Affine from (column, row) to the CRS; may be rotated or flipped.
        height: Rows.
        width: Columns.
        dtype: Type of the stored values.
        nodata: Declared nodata value (raw, before scale and offset).
        scale: Value = raw * scale + offset.
        offset: See ``scale``.
        unit: Unit as the file declares it, often empty.
        mask: Band that masks this one: a band number (alpha), 0 (the file's own mask), or None.
    """

    name: str
    source: RasterSource
    crs: CRS
    transform: Affine
    height: int
    width: int
    dtype: str
    nodata: Optional[float]
    scale: float
    offset: float
    unit: str
    mask: Optional[int]

    @property
    def pixel_size(self) -> Tuple[float, float]:
        """Length of a pixel's two sides in units of the CRS."""
        t = self.transform
        return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))

    @property
    def is_north_up(self) -> bool:
        """Whether rows run from north to south and columns from west to east."""
        t = self.transform
        return bool(abs(t.b) + abs(t.d) < 1e-9 * abs(t.a) and t.a > 0 > t.e)

    def outline(self, points: int = 21) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x and y, in the raster's CRS, of a lattice of ``points`` by ``points`` from corner to corner."""
        columns, rows = np.meshgrid(np.linspace(0, self.width, points), np.linspace(0, self.height, points))
        return apply(self.transform, columns.ravel(), rows.ravel())

    @property
    def longitude_shifts(self) -> Tuple[float, ...]:
        """Shifts of x to read the raster with: -360 as well where longitudes above 180 degrees occur.

        PROJ answers with longitudes in -180..180, so a file that counts 0..360 or 165..235 would be found empty beyond
        180 degrees. Both readings together cover it (measured: half of the pixels missing otherwise).
        """
        if not self.crs.is_geographic:
            return (0.0,)
        x, _ = self.outline(2)
        shifts = [0.0] if x.min() < 180.0 else []
        if x.max() > 180.0 + abs(self.transform.a):
            shifts.append(-360.0)
        if x.min() < -180.0 - abs(self.transform.a):
            shifts.append(360.0)
        return tuple(shifts)


def apply(
    transform: Affine, columns: NDArray[np.float64], rows: NDArray[np.float64]
) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Apply an affine transform to coordinate arrays."""
    t = transform
    return t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f


def file_name(source: RasterSource) -> str:
    """Return how messages name a source: the file's name, and the band where it is not the first."""
    name = os.path.basename(source.path) or source.path
    return name if source.band == 1 else f"{name}, band {source.band}"


def inspect(name: str, source: RasterSource, *, picture_allowed: bool) -> Tuple[Optional[RasterInfo], List[Problem]]:
    """Look at one band of a file and say everything that is wrong with it.

    Args:
        name: Name for messages, without the file: ``Input "dem"``.
        source: File and band.
        picture_allowed: Whether a colour table is in order (class rasters have one, measurements have not).

    Returns:
        The band's description, None where it cannot be used, and the problems found.
    """
    what = f"{name} ({file_name(source)})"
    early = _file_problem(what, source)
    if early:
        return None, [early]
    try:
        with rasterio.open(source.path) as dataset:
            problems = _band_problems(what, source, dataset, picture_allowed)
            return (None, problems) if problems else (_info(what, source, dataset), [])
    except (RasterioError, ValueError, OSError) as error:
        found = f"GDAL cannot open it as a raster ({_short(error)})."
        if os.path.exists(source.path) and os.path.getsize(source.path) == 0:
            found = "the file is empty (zero bytes)."
        remedy = "Open the layer in QGIS; if it shows there, export it as GeoTIFF and use that file."
        return None, [Problem(what, found, "A raster file that GDAL can read is needed, such as a GeoTIFF.", remedy)]


def _file_problem(what: str, source: RasterSource) -> Optional[Problem]:
    path = source.path
    if any(mark in path.lower() for mark in _REMOTE_MARKS):
        return Problem(
            what,
            "it is a remote layer or a web service.",
            "A raster file on this computer is needed.",
            "Export the layer for the area as GeoTIFF (Export > Save As) and use that file.",
        )
    if os.path.isdir(path):
        return Problem(what, "it is a folder.", "A raster file is needed.", "Choose the raster file in that folder.")
    if not os.path.exists(path) and not path.startswith(("/vsi", "NETCDF:", "HDF5:", "HDF4", "GPKG:", "<VRT", "vrt:")):
        return Problem(
            what,
            f'the file "{path}" does not exist.',
            "A raster file on this computer is needed.",
            "It may have been moved or deleted, or the drive is not connected: choose the file again. "
            "A layer that lives in memory must be exported as GeoTIFF first.",
        )
    return None


def _band_problems(what: str, source: RasterSource, dataset: rasterio.DatasetReader, picture: bool) -> List[Problem]:
    if not 1 <= source.band <= dataset.count:
        found = f"band {source.band} was asked for, and the file has {dataset.count}."
        if dataset.count == 0:
            found = "the file holds several sub-datasets and no band of its own."
        return [Problem(what, found, f"A band from 1 to {dataset.count} is needed.", "Choose the band again.")]
    problems = []
    georeferenced = dataset.transform != Affine.identity() or bool(dataset.crs)
    if not dataset.crs:
        found = "it has no coordinate reference system (CRS)." if georeferenced else "it is not georeferenced."
        remedy = "Find out its CRS and assign it (QGIS: Raster > Projections > Assign Projection), then try again."
        problems.append(Problem(what, found, "Without it nobody can tell where the pixels lie.", remedy))
    elif not (dataset.crs.is_geographic or dataset.crs.is_projected):
        found = "its CRS is a local or engineering system."
        remedy = "Assign the geographic or projected CRS that it really has."
        problems.append(Problem(what, found, "A CRS tied to the Earth is needed.", remedy))
    t = dataset.transform
    if dataset.crs and (t.a * t.e - t.b * t.d == 0 or t == Affine.identity()):
        remedy = "Georeference it, or warp it with its control points (QGIS: Raster > Projections > Warp)."
        problems.append(Problem(what, "it has a CRS and no pixel positions.", "A geotransform is needed.", remedy))
    dtype = dataset.dtypes[source.band - 1]
    if dtype not in _GDAL_TYPES:
        found = f"its values are of type {dtype}."
        problems.append(Problem(what, found, "Real numbers are needed.", "Export its amplitude, or choose another."))
    colour = dataset.colorinterp[source.band - 1]
    if colour == ColorInterp.alpha:
        found = f"band {source.band} is a transparency (alpha) band."
        problems.append(Problem(what, found, "A band that holds the values is needed.", "Choose another band."))
    if colour == ColorInterp.palette and not picture:
        found = "it has a colour table: its values are classes or a picture, not measurements."
        needed = "A raster of measured values is needed."
        problems.append(Problem(what, found, needed, "Choose the layer that holds the values."))
    scale, offset = dataset.scales[source.band - 1], dataset.offsets[source.band - 1]
    if not (np.isfinite(scale) and np.isfinite(offset)) or scale == 0:
        found = f"its scale is {scale} and its offset {offset}."
        problems.append(Problem(what, found, "A scale other than 0 is needed.", "Mend the band's metadata."))
    return problems


def _info(what: str, source: RasterSource, dataset: rasterio.DatasetReader) -> RasterInfo:
    band = source.band - 1
    mask: Optional[int] = None
    alphas = [index for index, colour in enumerate(dataset.colorinterp, 1) if colour == ColorInterp.alpha]
    if alphas:
        mask = alphas[0]
    elif MaskFlags.per_dataset in dataset.mask_flag_enums[band]:
        mask = 0
    return RasterInfo(
        name=what,
        source=source,
        crs=dataset.crs,
        transform=dataset.transform,
        height=dataset.height,
        width=dataset.width,
        dtype=dataset.dtypes[band],
        nodata=dataset.nodatavals[band],
        scale=float(dataset.scales[band]),
        offset=float(dataset.offsets[band]),
        unit=(dataset.units[band] or "").strip(),
        mask=mask,
    )


def _short(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _recentred(info: RasterInfo, grid: Grid) -> Tuple[RasterInfo, int]:
    """Turn a raster of the whole globe so that its seam lies opposite to the grid.

    Returns:
        The raster as it is then, and how many of its columns have moved from the left end to the right. Without it the
        pixels next to 180 degrees have no neighbour beyond it (measured: up to an eighth of a source pixel off).
    """
    step = info.transform.a
    if not info.crs.is_geographic or abs(info.width * step - 360.0) > 0.5 * abs(step) or info.transform.b:
        return info, 0
    xmin, ymin, xmax, ymax = grid.bounds
    (longitude,), _ = transform_points(grid.crs, info.crs, [(xmin + xmax) / 2], [(ymin + ymax) / 2])
    if not math.isfinite(longitude):
        return info, 0
    t = info.transform
    roll = round((longitude - math.copysign(180.0, step) - t.c) / step) % info.width
    first = t.c + roll * step
    first += 360.0 * round((longitude - math.copysign(180.0, step) - first) / 360.0)
    return replace(info, transform=Affine(t.a, t.b, first, t.d, t.e, t.f)), roll


def _single_band(info: RasterInfo, shift: float, roll: int) -> str:
    """Return a virtual raster of just the one band, its x shifted and its first ``roll`` columns put at the end.

    GDAL warps all bands of a file together and takes a pixel as missing only where *every* band is: a hole in one band
    would be averaged into its neighbours. One band per virtual raster keeps each band's own nodata.
    """
    name = html.escape(info.source.path if "://" in info.source.path else os.path.abspath(info.source.path))
    if info.source.path.startswith(("/vsi", "NETCDF:", "HDF5:", "HDF4", "GPKG:", "<VRT", "vrt:")):
        name = html.escape(info.source.path)

    def simple(band: str) -> str:
        parts = [
            (roll, 0, info.width - roll),
            (0, info.width - roll, roll),
        ]  # first source column, target column, width
        return "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{name}</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="{source}" yOff="0" xSize="{width}" ySize="{info.height}"/>'
            f'<DstRect xOff="{target}" yOff="0" xSize="{width}" ySize="{info.height}"/></SimpleSource>'
            for source, target, width in parts
            if width
        )

    t = info.transform
    numbers = ", ".join(repr(float(v)) for v in (t.c + shift, t.a, t.b, t.f, t.d, t.e))
    nodata = "" if info.nodata is None or info.mask is not None else f"<NoDataValue>{info.nodata!r}</NoDataValue>"
    mask = ""
    if info.mask is not None:
        band = str(info.mask) if info.mask else f"mask,{info.source.band}"
        mask = f'<MaskBand><VRTRasterBand dataType="Byte">{simple(band)}</VRTRasterBand></MaskBand>'
    crs = html.escape(info.crs.to_wkt())
    return (
        f'<VRTDataset rasterXSize="{info.width}" rasterYSize="{info.height}"><SRS>{crs}</SRS>'
        f"<GeoTransform>{numbers}</GeoTransform>"
        f'<VRTRasterBand dataType="{_GDAL_TYPES[info.dtype]}" band="1">{nodata}{simple(str(info.source.band))}'
        f"</VRTRasterBand>{mask}</VRTDataset>"
    )


def read_values(dataset: rasterio.DatasetReader, info: RasterInfo, window: Window) -> FloatArray:
    """Read a window of the raster's own pixels, (h, w) float32, scaled, NaN where missing.

    Raises:
        InputError: If the file is damaged there.
    """
    try:
        raw = dataset.read(info.source.band, window=window)
        mask = dataset.read_masks(info.mask or info.source.band, window=window)
        if info.mask:  # the alpha band's own values, not the mask of the alpha band
            mask = dataset.read(info.mask, window=window)
    except (RasterioError, OSError) as error:
        raise _damaged(info, error, (int(window.row_off), int(window.col_off))) from error
    values = raw.astype(np.float64) * info.scale + info.offset
    values[(mask == 0) | ~np.isfinite(values)] = np.nan
    result: FloatArray = values.astype(np.float32)
    return result


def _damaged(info: RasterInfo, error: BaseException, place: Tuple[int, int]) -> InputError:
    cause = error.__cause__ or error
    return InputError(
        info.name,
        f"reading failed near row {place[0]}, column {place[1]} ({_short(cause)}).",
        "The file is damaged, incomplete, or refers to a file that is missing.",
        "Copy or download it again; for a virtual raster (VRT), check that the files it names exist.",
    )


def sample_values(info: RasterInfo, window: Window, budget_px: int = 4_000_000) -> Iterator[FloatArray]:
    """Yield blocks of the raster's own values inside ``window``: all of them if they fit ``budget_px``, else a lattice.

    Blocks are read at full resolution, because overviews mix values: they would hide fill values and invent classes.
    """
    side = 512
    rows = range(int(window.row_off), int(window.row_off + window.height), side)
    columns = range(int(window.col_off), int(window.col_off + window.width), side)
    step = max(1, int(np.ceil(np.sqrt(len(rows) * len(columns) * side * side / budget_px))))
    with rasterio.open(info.source.path) as dataset:
        for row in rows[step // 2 :: step] or rows[:1]:
            for column in columns[step // 2 :: step] or columns[:1]:
                height = min(side, int(window.row_off + window.height) - row)
                width = min(side, int(window.col_off + window.width) - column)
                yield read_values(dataset, info, Window(column, row, width, height))


def extent_in(info: RasterInfo, crs: CRS) -> Optional[Bounds]:
    """Return the raster's bounds in another CRS, None where nothing of it can be expressed there."""
    x, y = info.outline(41)
    with np.errstate(invalid="ignore"):
        px, py = (np.asarray(v) for v in transform_points(info.crs, crs, x.tolist(), y.tolist()))
    good = np.isfinite(px) & np.isfinite(py)
    if not good.any():
        return None
    return float(px[good].min()), float(py[good].min()), float(px[good].max()), float(py[good].max())


def pixels_under(info: RasterInfo, grid: Grid, margin_px: int = 2) -> Optional[Window]:
    """Return the window of the raster's own pixels that lies under ``grid``, None where the two do not meet."""
    xs = np.linspace(grid.bounds[0], grid.bounds[2], 41)
    ys = np.linspace(grid.bounds[1], grid.bounds[3], 41)
    x, y = (v.ravel() for v in np.meshgrid(xs, ys))
    px, py = (np.asarray(v) for v in transform_points(grid.crs, info.crs, x.tolist(), y.tolist()))
    good = np.isfinite(px) & np.isfinite(py)
    if not good.any():
        return None
    boxes = []
    t = info.transform
    determinant = t.a * t.e - t.b * t.d
    for shift in info.longitude_shifts:
        dx, dy = px[good] - (t.c + shift), py[good] - t.f
        columns, rows = (t.e * dx - t.b * dy) / determinant, (t.a * dy - t.d * dx) / determinant
        c0, c1 = max(columns.min() - margin_px, 0), min(columns.max() + margin_px, info.width)
        r0, r1 = max(rows.min() - margin_px, 0), min(rows.max() + margin_px, info.height)
        touches = columns.max() > 0 and columns.min() < info.width and rows.max() > 0 and rows.min() < info.height
        if touches:
            boxes.append((int(r0), int(c0), int(np.ceil(r1)), int(np.ceil(c1))))
    if not boxes:
        return None
    r0, c0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    r1, c1 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return Window(c0, r0, c1 - c0, r1 - r0)


def _kernel_scale(info: RasterInfo, grid: Grid) -> Dict[str, str]:
    """Return GDAL's options for the width of the resampling kernel: target pixels per source pixel, at most 1.

    By itself GDAL takes the ratio of each block's size to that of the source window under it. Where a block reaches
    across 180 degrees, that window is the whole globe, and the block is averaged over dozens of source pixels without
    a sign (measured: 6 km of position). One ratio for the whole grid also makes a pixel independent of its block.
    """
    xmin, ymin, xmax, ymax = grid.bounds
    x, y, step = (xmin + xmax) / 2, (ymin + ymax) / 2, grid.resolution
    px, py = transform_points(grid.crs, info.crs, [x, x + step, x], [y, y, y - step])
    t = info.transform
    determinant = t.a * t.e - t.b * t.d
    right, down = (np.array([px[n] - px[0], py[n] - py[0]]) for n in (1, 2))
    if info.crs.is_geographic:
        right[0], down[0] = ((value + 180.0) % 360.0 - 180.0 for value in (right[0], down[0]))
    columns = math.hypot(*((t.e * v[0] - t.b * v[1]) / determinant for v in (right, down)))
    rows = math.hypot(*((t.a * v[1] - t.d * v[0]) / determinant for v in (right, down)))
    if not (math.isfinite(columns) and math.isfinite(rows)) or min(columns, rows) <= 0:
        return {}
    # Just above 1 the widened kernel is off by 0.05 pixels, unlike interpolation, and has nothing to average yet.
    across, along = (1.0 if ratio < _AVERAGE_FROM else 1.0 / ratio for ratio in (columns, rows))
    return {"XSCALE": repr(across), "YSCALE": repr(along)}


class WarpedBand:
    """One band seen on a target grid. Reads windows; those may leave the grid by :data:`READ_MARGIN_PX`.

    A context manager: the file stays open in between. One reader per thread.
    """

    def __init__(self, info: RasterInfo, grid: Grid, resampling: Resampling) -> None:
        self.info = info
        self.grid = grid
        self._open: List[rasterio.DatasetReader] = []
        self._views: List[WarpedVRT] = []
        padded = grid.padded(READ_MARGIN_PX)
        turned, roll = _recentred(info, grid)
        try:
            for shift in turned.longitude_shifts:
                band = rasterio.open(_single_band(turned, shift, roll))
                self._open.append(band)
                view = WarpedVRT(
                    band,
                    crs=grid.crs,
                    transform=padded.transform,
                    height=padded.height,
                    width=padded.width,
                    resampling=resampling,
                    # float64 keeps class codes and large values exact while they are warped
                    dtype="float64" if info.dtype in ("float64", "int32", "uint32", "int64", "uint64") else "float32",
                    nodata=np.nan,
                    tolerance=_WARP_TOLERANCE_PX,
                    warp_mem_limit=32,
                    **_kernel_scale(info, grid),
                )
                self._views.append(view)
        except (RasterioError, ValueError, OSError) as error:
            self.close()
            raise InputError(
                info.name,
                f"it cannot be brought to the target grid ({_short(error)}).",
                "A raster whose CRS PROJ can transform to the target CRS is needed.",
                "Check the layer's CRS, or warp the layer to the target CRS in QGIS first.",
            ) from error

    def __enter__(self) -> WarpedBand:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        for dataset in [*self._views, *self._open]:
            dataset.close()
        self._views, self._open = [], []

    def read(self, row: int, column: int, height: int, width: int) -> FloatArray:
        """Read a pixel box of the grid, (height, width) float32, scaled, NaN where missing.

        Raises:
            InputError: If the file is damaged there.
        """
        result = np.full((height, width), np.nan, np.float32)
        top, left = max(row, -READ_MARGIN_PX), max(column, -READ_MARGIN_PX)
        bottom = min(row + height, self.grid.height + READ_MARGIN_PX)
        right = min(column + width, self.grid.width + READ_MARGIN_PX)
        if top >= bottom or left >= right:
            return result
        window = Window(left + READ_MARGIN_PX, top + READ_MARGIN_PX, right - left, bottom - top)
        inside = result[top - row : bottom - row, left - column : right - column]
        for view in self._views:
            try:
                values = view.read(1, window=window)
            except (RasterioError, OSError) as error:
                raise _damaged(self.info, error, (top, left)) from error
            if self.info.scale != 1.0 or self.info.offset != 0.0:
                values = values.astype(np.float64) * self.info.scale + self.info.offset
            values[~np.isfinite(values)] = np.nan
            empty = np.isnan(inside)
            inside[empty] = values[empty]
        return result


def describe_bounds(bounds: Sequence[float], crs: CRS) -> str:
    """Write bounds for a message: ``x 299995 to 315000, y 1600000 to 1700000 (EPSG:3338)``."""
    digits = 4 if crs.is_geographic else 0
    xmin, ymin, xmax, ymax = (f"{value:.{digits}f}" for value in bounds)
    return f"x {xmin} to {xmax}, y {ymin} to {ymax} ({crs.to_string()[:40]})"


def same_file(first: str, second: str) -> bool:
    """Whether two paths are the same file, also through links and other spellings."""
    try:
        if os.path.exists(first) and os.path.exists(second):
            return os.path.samefile(first, second)
        return Path(first).resolve() == Path(second).resolve()
    except OSError:
        return os.path.abspath(first) == os.path.abspath(second)
