"""From the rasters a user gives to the channels a model sees, on any grid.

Prediction and training both read through :class:`ChannelStack`, so that a model is shown in use what it was shown in
training. Terrain is derived on the DEM's own pixels and then warped, because an interpolated DEM has no curvature of
its own; aspect travels as sine and cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Type

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from rasterio.windows import Window

from .errors import InputError, Problem
from .grid import Bounds, Grid, is_metric
from .manifest import TERRAIN_PREFIX, ChannelSpec, InputSpec, TerrainSpec
from .messages import RasterSource
from .progress import Progress, Scaled
from .rasters import (
    READ_MARGIN_PX,
    FloatArray,
    RasterInfo,
    WarpedBand,
    describe_bounds,
    extent_in,
    inspect,
    pixels_under,
    read_values,
    same_file,
    sample_values,
)
from .terrain import write_terrain

# Terrain is derived this far around the grid: what drains from farther away is missing in the catchment area of the
# stream power and wetness indices.
UPSTREAM_M = 10_000.0
# A DEM whose pixels differ from those of training by more than this factor gives other terrain values.
RESOLUTION_FACTOR = 1.5
_SMALLEST_DEM_PX = 9  # one window of the radius-4 quadric
_NODATA = -9999.0
_BLOCK_PX = 1024
_METRES_PER_DEGREE = 111_320.0
_FEET = ("ft", "feet", "foot", "us-ft", "us survey foot", "ftus")


def inspect_inputs(
    inputs: Mapping[str, InputSpec], sources: Mapping[str, RasterSource]
) -> Tuple[Dict[str, RasterInfo], List[Problem]]:
    """Match the given rasters with the model's inputs by name and look at each file.

    Returns:
        What each usable raster is, by input name, and everything that is wrong.
    """
    infos: Dict[str, RasterInfo] = {}
    problems: List[Problem] = []
    known = ", ".join(f'"{name}" ({spec.title})' for name, spec in inputs.items())
    for name in sorted(set(sources) - set(inputs)):
        found = "the model has no input of this name."
        problems.append(Problem(f'Input "{name}"', found, f"Its inputs are {known}.", "Rename it or leave it out."))
    for name, spec in inputs.items():
        if name not in sources:
            found, needed = "no raster was given.", f"The model needs it: {spec.title}."
            remedy = f"Choose a raster for it (command line: --input {name}=FILE)."
            problems.append(Problem(f'Input "{name}"', found, needed, remedy))
            continue
        info, found_problems = inspect(f'Input "{name}"', sources[name], picture_allowed=spec.kind == "classes")
        problems += found_problems
        if info:
            infos[name] = info
            problems += _unit_problem(info, spec)
    names = [name for name in inputs if name in sources]
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            if sources[first].band == sources[second].band and same_file(sources[first].path, sources[second].path):
                found = f'it is the same file and band as input "{second}" ({Path(sources[first].path).name}).'
                needed = "Each input needs its own raster."
                problems.append(Problem(f'Input "{first}"', found, needed, "Choose another raster for one of them."))
    return infos, problems


def _unit_problem(info: RasterInfo, spec: InputSpec) -> List[Problem]:
    if spec.unit == "m" and info.unit.lower() in _FEET:
        remedy = "Convert it (QGIS: Raster Calculator, multiply by 0.3048) and clear the unit."
        return [Problem(info.name, f'its unit is "{info.unit}".', "Metres are needed.", remedy)]
    return []


def check_values(
    inputs: Mapping[str, InputSpec],
    channels: Sequence[ChannelSpec],
    infos: Mapping[str, RasterInfo],
    grid: Grid,
    progress: Progress,
) -> List[Problem]:
    """Look at the rasters' values under the grid: all of them where they are few, else a lattice of blocks.

    What is suspicious but usable is told as a note.

    Returns:
        Everything that is wrong: no overlap, nothing but nodata, values outside the legal range, no class codes.
    """
    problems: List[Problem] = []
    for name, info in infos.items():
        progress.raise_if_cancelled()
        window = pixels_under(info, grid)
        if window is None:
            problems.append(_no_overlap(info, grid))
            continue
        survey = _Survey.of(info, window)
        if survey.count == 0:
            needed, remedy = "Data are needed there.", "Choose another raster, or move the area of interest."
            problems.append(Problem(info.name, "it holds nothing but nodata under the area.", needed, remedy))
        elif inputs[name].kind == "classes":
            problems += _class_problems(info, inputs[name], known_codes(name, inputs[name], channels), survey)
        else:
            problems += _range_problems(info, inputs[name], survey)
            if survey.lowest == survey.highest and survey.count > 1000:
                progress.note("warning", f"{info.name}: every value under the area is {survey.lowest:g}.")
    return problems


def _no_overlap(info: RasterInfo, grid: Grid) -> Problem:
    extent = extent_in(info, grid.crs)
    lies = describe_bounds(extent, grid.crs) if extent else "where the target CRS does not reach"
    return Problem(
        info.name,
        f"it does not overlap the area. It lies at {lies}.",
        f"The area lies at {describe_bounds(grid.bounds, grid.crs)}.",
        "Check the layer's CRS, choose a layer that covers the area, or move the area.",
    )


@dataclass
class _Survey:
    """What was seen of a raster's values: how many, from where to where, and which, if they are few."""

    count: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    fractional: float = math.nan
    codes: Optional[Set[int]] = None
    values: Optional[FloatArray] = None

    @classmethod
    def of(cls, info: RasterInfo, window: Window) -> _Survey:
        survey = cls(codes=set())
        sample: List[FloatArray] = []
        for block in sample_values(info, window):
            values = block[~np.isnan(block)]
            if not values.size:
                continue
            survey.count += values.size
            survey.lowest = min(survey.lowest, float(values.min()))
            survey.highest = max(survey.highest, float(values.max()))
            odd = values[values != np.rint(values)]
            if odd.size and math.isnan(survey.fractional):
                survey.fractional = float(odd[0])
            if survey.codes is not None:
                survey.codes |= {int(code) for code in np.unique(np.rint(values))[:1000]}
                survey.codes = survey.codes if len(survey.codes) <= 1000 else None
            sample.append(values)
        survey.values = np.concatenate(sample) if sample else np.empty(0, np.float32)
        return survey


def _range_problems(info: RasterInfo, spec: InputSpec, survey: _Survey) -> List[Problem]:
    if spec.range is None or survey.values is None:
        return []
    lowest, highest = spec.range
    wrong = (survey.values < lowest) | (survey.values > highest)
    if not wrong.any():
        return []
    share = 100.0 * float(wrong.mean())
    example = float(survey.values[wrong][0])
    return [
        Problem(
            info.name,
            f"its values run from {survey.lowest:g} to {survey.highest:g}; {share:.3g} % of them are outside the legal "
            f"range (for example {example:g}).",
            f"{spec.title} in {spec.unit or 'its unit'} from {lowest:g} to {highest:g} is needed.",
            f"If {example:g} marks missing data, declare it as nodata (QGIS: Raster > Conversion > Translate, "
            f"-a_nodata {example:g}); if the values are in another unit, convert them; else choose another layer.",
        )
    ]


def known_codes(name: str, spec: InputSpec, channels: Sequence[ChannelSpec]) -> Set[int]:
    """Return the class codes of an input that the model knows: those of its legend and of its one-hot channels."""
    codes = {int(code) for code in (spec.legend or {})}
    codes |= {c.value for c in channels if c.from_ == name and c.by == "one_hot" and c.value is not None}
    return codes


def _class_problems(info: RasterInfo, spec: InputSpec, known: Set[int], survey: _Survey) -> List[Problem]:
    examples = ", ".join(str(code) for code in sorted(known)[:20])
    needed = f"{spec.title} with class codes ({examples}) is needed."
    if not math.isnan(survey.fractional):
        found = f"it holds values such as {survey.fractional:g}, which are no class codes."
        remedy = "Choose the class raster; if it was resampled, resample it again with nearest neighbour."
        return [Problem(info.name, found, needed, remedy)]
    if survey.codes is None or (known and not survey.codes & known):
        some = "more than 1000 different" if survey.codes is None else ", ".join(map(str, sorted(survey.codes)[:10]))
        found = f"none of its codes is one the model knows (found: {some})."
        return [Problem(info.name, found, needed, "Choose the raster with this legend, or translate its codes.")]
    return []


class ChannelStack:
    """The channels of a model on a grid, read window by window.

    Construction checks the inputs, derives terrain into ``scratch`` and opens every file; :meth:`read` then gives any
    window. Missing values are NaN. Used as a context manager; one thread at a time.

    Attributes:
        grid: The target grid.
        channels: The channels, in the order of the arrays.
        masked_out_of_range: Values that were outside an input's legal range and were taken as missing, by input.
    """

    def __init__(
        self,
        inputs: Mapping[str, InputSpec],
        channels: Sequence[ChannelSpec],
        terrain: Optional[TerrainSpec],
        sources: Mapping[str, RasterSource],
        grid: Grid,
        scratch: Path,
        progress: Progress,
    ) -> None:
        """See the class.

        Args:
            inputs: What each input must be, by name. Inputs that no channel uses are not needed.
            channels: Channels in the order in which :meth:`read` returns them.
            terrain: How terrain was derived in training; needed if a channel is made of terrain.
            sources: Raster of each input.
            grid: Target grid.
            scratch: Existing folder for derived rasters; the caller removes it.
            progress: Told about the derivation; asked for cancellation.

        Raises:
            InputError: If inputs cannot be used; all problems at once.
        """
        used = {channel.from_ for channel in channels}
        self.inputs = {name: spec for name, spec in inputs.items() if name in used}
        self.channels = tuple(channels)
        self.grid = grid
        self.masked_out_of_range: Dict[str, int] = {}
        self._readers: Dict[Tuple[str, str], WarpedBand] = {}
        sources = {name: source for name, source in sources.items() if name in used or name not in inputs}
        infos, problems = inspect_inputs(self.inputs, sources)
        problems += check_values(self.inputs, self.channels, infos, grid, progress)
        if problems:
            raise InputError.of(problems)
        self._known = {name: known_codes(name, spec, channels) for name, spec in self.inputs.items()}
        try:
            self._open(infos, terrain, Path(scratch), progress)
        except BaseException:
            self.close()
            raise

    def _open(self, infos: Dict[str, RasterInfo], terrain: Optional[TerrainSpec], scratch: Path, p: Progress) -> None:
        derived: Dict[str, List[str]] = {}
        for channel in self.channels:
            if channel.by.startswith(TERRAIN_PREFIX):
                derived.setdefault(channel.from_, []).append(channel.by[len(TERRAIN_PREFIX) :])
            elif (channel.from_, "") not in self._readers:
                kind = self.inputs[channel.from_].kind
                resampling = Resampling.nearest if kind == "classes" else Resampling.bilinear
                self._readers[channel.from_, ""] = WarpedBand(infos[channel.from_], self.grid, resampling)
        for name, covariates in derived.items():
            if terrain is None:
                raise ValueError("terrain channels need a terrain specification")
            folder = scratch / f"terrain-{name}"
            folder.mkdir()
            dem = self._prepare_dem(name, infos[name], terrain, folder / f"{name}.tif", p)
            wanted = list(dict.fromkeys(covariates))
            paths = write_terrain(
                dem, folder, Scaled(p, 0.1, 1.0), tpi_statistics=terrain.tpi_statistics, covariates=wanted
            )
            for covariate in wanted:
                info, found = inspect(
                    f'Terrain of input "{name}"', RasterSource(str(paths[covariate])), picture_allowed=False
                )
                if info is None:
                    raise InputError.of(found)
                self._readers[name, covariate] = WarpedBand(info, self.grid, Resampling.bilinear)

    def __enter__(self) -> ChannelStack:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file. May be called twice."""
        for reader in self._readers.values():
            reader.close()
        self._readers = {}

    def read(self, row: int, column: int, height: int, width: int) -> FloatArray:
        """Read a pixel box of the grid.

        The box may leave the grid, by up to ``rasters.READ_MARGIN_PX`` with data where the sources have them.

        Returns:
            (C, height, width) float32 in the channels' own units, in the order of ``channels``; NaN where missing.

        Raises:
            InputError: If a file is damaged there.
        """
        result = np.empty((len(self.channels), height, width), np.float32)
        seen: Dict[Tuple[str, str], FloatArray] = {}
        for index, channel in enumerate(self.channels):
            key = (channel.from_, channel.by[len(TERRAIN_PREFIX) :] if channel.by.startswith(TERRAIN_PREFIX) else "")
            if key not in seen:
                seen[key] = self._values(key, row, column, height, width)
            values = seen[key]
            if channel.by == "one_hot":
                result[index] = np.where(np.isnan(values), np.float32(np.nan), values == channel.value)
            else:
                result[index] = values
        return result

    def _values(self, key: Tuple[str, str], row: int, column: int, height: int, width: int) -> FloatArray:
        name, covariate = key
        values = self._readers[key].read(row, column, height, width)
        spec = self.inputs[name]
        if spec.kind == "classes":
            if 0 not in self._known[name]:
                values[values == 0] = np.nan  # NLCD and most land-cover rasters use 0 for "no class here"
        elif spec.range is not None and not covariate:
            wrong = (values < spec.range[0]) | (values > spec.range[1])
            if wrong.any():
                # Only what the check's lattice of blocks missed comes here.
                self.masked_out_of_range[name] = self.masked_out_of_range.get(name, 0) + int(wrong.sum())
                values[wrong] = np.nan
        return values

    def unseen(self, row: int, column: int, where: NDArray[np.bool_]) -> Dict[str, Dict[int, int]]:
        """Count the pixels of classes that the model does not know.

        Args:
            row: First row of the box.
            column: First column of the box.
            where: (h, w); only pixels that are True count.

        Returns:
            Input name -> code -> pixels, only codes that occur.
        """
        counts: Dict[str, Dict[int, int]] = {}
        for (name, covariate), reader in self._readers.items():
            known = self._known[name]
            if covariate or self.inputs[name].kind != "classes" or not known:
                continue
            values = reader.read(row, column, *where.shape)[where]
            values = values[~np.isin(values, list(known)) & ~np.isnan(values) & (values != 0)]
            codes, pixels = np.unique(values, return_counts=True)
            if codes.size:
                counts[name] = {int(code): int(n) for code, n in zip(codes, pixels)}
        return counts

    def _prepare_dem(self, name: str, info: RasterInfo, terrain: TerrainSpec, path: Path, p: Progress) -> RasterSource:
        """Write the part of the DEM that terrain is derived from: projected in metres, square pixels, NaN-free form."""
        own, resolution = _native_resolution(info, self.grid), terrain.resolution_m
        averaged = own * RESOLUTION_FACTOR < resolution
        title = f"{info.name}: its pixels are {own:.3g} m, the model was trained with {resolution:g} m."
        if averaged:
            p.note("warning", f"{title} It is averaged to {resolution:g} m before terrain is derived.")
        elif own > resolution * RESOLUTION_FACTOR:
            p.note("warning", f"{title} Slopes and curvatures come out smoother than the model expects.")
        around = self.grid.padded(READ_MARGIN_PX + math.ceil(UPSTREAM_M / self.grid.resolution))
        sides = info.pixel_size
        square = abs(sides[0] - sides[1]) <= 1e-6 * sides[0]
        if is_metric(info.crs) and info.is_north_up and square and not averaged:
            window = pixels_under(info, around)
            grid, blocks = _own_grid(info, window), _own_blocks(info, window)
        else:
            crs = info.crs if is_metric(info.crs) else _metric_crs(self.grid)
            extent = _common(_project(around, crs), extent_in(info, crs))
            if extent is None:
                raise InputError.of([_no_overlap(info, self.grid)])
            grid = Grid.covering(extent, crs, resolution if averaged else own)
            how = Resampling.average if averaged or not is_metric(info.crs) else Resampling.bilinear
            blocks = _warped_blocks(info, grid, how)
        if min(grid.shape) < _SMALLEST_DEM_PX:
            found = f"only {grid.height} x {grid.width} of its pixels lie in and around the area."
            needed = f"Terrain needs at least {_SMALLEST_DEM_PX} x {_SMALLEST_DEM_PX} pixels."
            raise InputError(info.name, found, needed, "Choose a DEM that reaches beyond the area.")
        self._write_dem(name, path, grid, blocks, Scaled(p, 0.0, 0.1))
        return RasterSource(str(path))

    def _write_dem(
        self, name: str, path: Path, grid: Grid, blocks: Iterator[Tuple[int, int, FloatArray]], progress: Progress
    ) -> None:
        legal = self.inputs[name].range or (-math.inf, math.inf)
        profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "nodata": _NODATA, "tiled": True}
        profile.update(height=grid.height, width=grid.width, crs=grid.crs, transform=grid.transform, BIGTIFF="IF_SAFER")
        with rasterio.open(path, "w", **profile) as dataset:
            for row, column, values in blocks:
                progress.raise_if_cancelled()
                wrong = (values < legal[0]) | (values > legal[1])
                if wrong.any():
                    self.masked_out_of_range[name] = self.masked_out_of_range.get(name, 0) + int(wrong.sum())
                values = np.where(np.isnan(values) | wrong, np.float32(_NODATA), values)
                dataset.write(values, 1, window=Window(column, row, values.shape[1], values.shape[0]))
                progress.report(row * grid.width + column, grid.height * grid.width, "Reading the elevation model")


def terrain_bytes(info: RasterInfo, terrain: TerrainSpec, grid: Grid) -> int:
    """Return the disk space that deriving terrain of a DEM for ``grid`` takes meanwhile.

    52 bytes a cell: the elevation, two working values of 8 bytes, and eight covariates.
    """
    own = _native_resolution(info, grid)
    cell = terrain.resolution_m if own * RESOLUTION_FACTOR < terrain.resolution_m else own
    margin = 2 * (UPSTREAM_M + READ_MARGIN_PX * grid.resolution)
    height, width = ((side * grid.resolution + margin) / cell for side in grid.shape)
    return int(52 * min(height * width, info.height * info.width * max(1.0, (own / cell) ** 2)))


def _native_resolution(info: RasterInfo, grid: Grid) -> float:
    """Return the longer side of a raster's pixel in metres, at the centre of the grid."""
    across, down = info.pixel_size
    if info.crs.is_geographic:
        _, latitude = _centre(grid)
        return max(across * _METRES_PER_DEGREE * math.cos(math.radians(latitude)), down * _METRES_PER_DEGREE)
    return max(across, down) * float(info.crs.linear_units_factor[1])


def _centre(grid: Grid) -> Tuple[float, float]:
    """Return longitude and latitude of the grid's centre, degrees."""
    xmin, ymin, xmax, ymax = grid.bounds
    (longitude,), (latitude,) = transform_points(grid.crs, "EPSG:4326", [(xmin + xmax) / 2], [(ymin + ymax) / 2])
    return float(longitude), float(latitude)


def _metric_crs(grid: Grid) -> CRS:
    """Return the projected CRS in which terrain of a DEM in degrees (or feet) is derived.

    The UTM zone of the centre, whose north is close to true north (in Alaska Albers it is off by up to 20 degrees, and
    aspect would turn with it); the target CRS where the grid is wider than two zones.
    """
    longitude, latitude = _centre(grid)
    xmin, ymin, xmax, ymax = grid.bounds
    corners = transform_points(grid.crs, "EPSG:4326", [xmin, xmin, xmax, xmax], [ymin, ymax, ymin, ymax])[0]
    reach = max(abs((corner - longitude + 180.0) % 360.0 - 180.0) for corner in corners)
    if reach > 6.0:
        return grid.crs
    zone = int((longitude + 180.0) // 6.0) % 60 + 1
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def _project(grid: Grid, crs: CRS) -> Optional[Bounds]:
    xs = np.linspace(grid.bounds[0], grid.bounds[2], 41)
    ys = np.linspace(grid.bounds[1], grid.bounds[3], 41)
    x, y = (v.ravel() for v in np.meshgrid(xs, ys))
    px, py = (np.asarray(v) for v in transform_points(grid.crs, crs, x.tolist(), y.tolist()))
    good = np.isfinite(px) & np.isfinite(py)
    if not good.any():
        return None
    return float(px[good].min()), float(py[good].min()), float(px[good].max()), float(py[good].max())


def _common(first: Optional[Bounds], second: Optional[Bounds]) -> Optional[Bounds]:
    """Return the box that two boxes share; the other one where one is unknown."""
    if first is None or second is None:
        return first or second
    box = (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def common_extent(infos: Mapping[str, RasterInfo], crs: CRS) -> Bounds:
    """Return the bounds, in ``crs``, of where all rasters lie.

    Raises:
        InputError: If they share no area.
    """
    common: Optional[Bounds] = None
    for number, info in enumerate(infos.values()):
        extent = extent_in(info, crs)
        common = extent if number == 0 else _common(common, extent)
        if common is None:
            lies = "; ".join(
                f"{i.name} at {describe_bounds(e, crs) if e else 'places the target CRS does not reach'}"
                for i in infos.values()
                for e in [extent_in(i, crs)]
            )
            remedy = "Check the layers' CRS, or choose layers of the same area."
            raise InputError("Inputs", f"they share no area: {lies}.", "Rasters of one area are needed.", remedy)
    if common is None:
        raise ValueError("no rasters")
    return common


def _own_grid(info: RasterInfo, window: Optional[Window]) -> Grid:
    if window is None:
        raise ValueError("the raster does not lie under the grid")  # check_values has seen to that
    t = info.transform
    moved = Affine(t.a, 0.0, t.c + window.col_off * t.a, 0.0, t.e, t.f + window.row_off * t.e)
    return Grid(info.crs, moved, int(window.height), int(window.width))


def _own_blocks(info: RasterInfo, window: Optional[Window]) -> Iterator[Tuple[int, int, FloatArray]]:
    if window is None:
        return
    with rasterio.open(info.source.path) as dataset:
        for row, column, height, width in _boxes(int(window.height), int(window.width)):
            part = Window(int(window.col_off) + column, int(window.row_off) + row, width, height)
            yield row, column, read_values(dataset, info, part)


def _warped_blocks(info: RasterInfo, grid: Grid, how: Resampling) -> Iterator[Tuple[int, int, FloatArray]]:
    with WarpedBand(info, grid, how) as band:
        for row, column, height, width in _boxes(*grid.shape):
            yield row, column, band.read(row, column, height, width)


def _boxes(height: int, width: int) -> Iterator[Tuple[int, int, int, int]]:
    for row in range(0, height, _BLOCK_PX):
        for column in range(0, width, _BLOCK_PX):
            yield row, column, min(_BLOCK_PX, height - row), min(_BLOCK_PX, width - column)
