"""Compare two probability maps: where do both, one, or neither call the thing present, and by how much do they differ.

The second map is brought to the grid of the first if theirs differ. A pixel needs a value in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from .errors import InputError, Problem
from .grid import Grid, is_equal_area
from .messages import CompareJob, Result, write_job
from .outputs import BYTE_NODATA, FLOAT_NODATA, Layer, RasterWriter, Workspace, output_problems, total_bytes, write_json
from .predict import DISAGREEMENT_COLOURS
from .probe import software_versions
from .progress import Progress, Scaled
from .rasters import FloatArray, RasterInfo, WarpedBand, describe_bounds, extent_in, gdal_settings, inspect, read_values

_BLOCK_PX = 1024
# Interpolation and rounding may leave [0, 1] by this much.
_TOLERANCE = 1e-4


def compare(job: CompareJob, progress: Progress) -> Result:
    """Write the disagreement classes of two probability maps and, on request, their difference and a summary.

    Classes: 0 neither, 1 second only, 2 first only, 3 both, 255 nodata; a probability equal to the threshold counts
    as present.

    Raises:
        InputError: If a map cannot be used, holds no probabilities, or the two do not overlap.
        OutputError: If results cannot be written.
        Cancelled: If the user has asked to stop.
    """
    with gdal_settings():
        first, second = _checked(job)
        grid = _grid_of(first)
        paths = _paths(job)
        layers = _layers(job)
        with Workspace(paths, total_bytes(list(layers.values()), grid)) as workspace:
            writers = {key: RasterWriter(workspace, key, grid, layer) for key, layer in layers.items()}
            try:
                counts, outside = _compare_blocks(job, first, second, grid, writers, Scaled(progress, 0.0, 0.8))
                if counts.sum() == 0:
                    raise _no_overlap(first, second)
                for writer in writers.values():
                    writer.finish(Scaled(progress, 0.8, 1.0))
            finally:
                for writer in writers.values():
                    writer.__exit__(None, None, None)
            summary = _summary(job, grid, counts, outside)
            if "summary" in paths:
                write_json(workspace, "summary", summary)
            progress.raise_if_cancelled()
            workspace.commit()
    progress.report(1, 1, "Done")
    return Result({key: str(path) for key, path in workspace.paths.items()}, summary)


def _checked(job: CompareJob) -> Tuple[RasterInfo, RasterInfo]:
    problems: List[Problem] = []
    infos: List[Optional[RasterInfo]] = []
    for name, source in ((job.first_name, job.first), (job.second_name, job.second)):
        info, found = inspect(f'Probability map "{name}"', source, picture_allowed=False)
        infos.append(info)
        problems += found
    for name, threshold in ((job.first_name, job.first_threshold), (job.second_name, job.second_threshold)):
        if not 0.0 < threshold < 1.0:
            needed = "A probability between 0 and 1 is needed."
            problems.append(Problem(f'Threshold of "{name}"', f"it is {threshold:g}.", needed, "Use 0.5, say."))
    problems += output_problems(_paths(job), {"first": job.first, "second": job.second}, [])
    first, second = infos
    if first and not first.is_north_up:
        remedy = "Warp it in QGIS (Raster > Projections > Warp), or swap the two maps."
        problems.append(Problem(first.name, "it is rotated or flipped.", "A north-up raster is needed.", remedy))
    if problems or first is None or second is None:
        raise InputError.of(problems)
    return first, second


def _paths(job: CompareJob) -> Dict[str, Path]:
    paths = {"disagreement": Path(job.disagreement)}
    if job.difference is not None:
        paths["difference"] = Path(job.difference)
    if job.summary is not None:
        paths["summary"] = Path(job.summary)
    return paths


def _layers(job: CompareJob) -> Dict[str, Layer]:
    tags = {
        "MISO_JOB": write_job(job),
        "MISO_VERSIONS": "; ".join(f"{name} {version}" for name, version in software_versions().items()),
        "MISO_SIMULATED": "yes" if _is_simulated(job.first.path) or _is_simulated(job.second.path) else "no",
    }
    classes = f"0 neither, 1 {job.second_name} only, 2 {job.first_name} only, 3 both"
    layers = {"disagreement": Layer((classes,), "", "uint8", "MODE", DISAGREEMENT_COLOURS, tags)}
    if job.difference is not None:
        layers["difference"] = Layer((f"{job.first_name} minus {job.second_name}",), "1", tags=tags)
    return layers


def _is_simulated(path: str) -> bool:
    """Whether a map says that its model was trained on simulated data."""
    with rasterio.open(path) as dataset:
        return bool(dataset.tags().get("MISO_SIMULATED") == "yes")


def _grid_of(info: RasterInfo) -> Grid:
    return Grid(info.crs, info.transform, info.height, info.width)


def _compare_blocks(
    job: CompareJob, first: RasterInfo, second: RasterInfo, grid: Grid, writers: Dict[str, RasterWriter], p: Progress
) -> Tuple[NDArray[np.int64], int]:
    """Write every block; return the pixels per class, and how many lack a value in one of the maps."""
    counts, missing = np.zeros(4, np.int64), 0
    for row, column, one, two in _pairs(first, second, grid, p):
        a = _probabilities(first, one)
        b = _probabilities(second, two)
        valid = ~(np.isnan(a) | np.isnan(b))
        with np.errstate(invalid="ignore"):
            codes = 2 * (a >= job.first_threshold).astype(np.uint8) + (b >= job.second_threshold)
        counts += np.bincount(codes[valid], minlength=4)
        missing += int((~valid).sum())
        stored = np.where(valid, codes, BYTE_NODATA).astype(np.uint8)
        writers["disagreement"].write(row, column, stored[None])
        if "difference" in writers:
            difference = np.where(valid, a - b, np.float32(FLOAT_NODATA))
            writers["difference"].write(row, column, difference[None])
    return counts, missing


def _pairs(
    first: RasterInfo, second: RasterInfo, grid: Grid, progress: Progress
) -> Iterator[Tuple[int, int, FloatArray, FloatArray]]:
    same = second.crs == grid.crs and second.transform.almost_equals(grid.transform, 1e-6)
    same = same and (second.height, second.width) == grid.shape
    total = grid.height * grid.width
    with (
        rasterio.open(first.source.path) as one,
        rasterio.open(second.source.path) as two,
        WarpedBand(second, grid, Resampling.bilinear) as warped,
    ):
        for row in range(0, grid.height, _BLOCK_PX):
            for column in range(0, grid.width, _BLOCK_PX):
                progress.raise_if_cancelled()
                height, width = min(_BLOCK_PX, grid.height - row), min(_BLOCK_PX, grid.width - column)
                window = Window(column, row, width, height)
                a = read_values(one, first, window)
                # The same grid is read as it is, so that comparing a map with itself gives 0 everywhere.
                b = read_values(two, second, window) if same else warped.read(row, column, height, width)
                yield row, column, a, b
                progress.report(row * grid.width + column * height, total, "Comparing")


def _probabilities(info: RasterInfo, values: FloatArray) -> FloatArray:
    """Return values as probabilities: whole-number types hold percent, others [0, 1].

    Raises:
        InputError: If a value is outside.
    """
    percent = info.dtype not in ("float32", "float64") and info.scale == 1.0
    highest = 100.0 if percent else 1.0
    with np.errstate(invalid="ignore"):
        wrong = (values < -_TOLERANCE * highest) | (values > highest * (1.0 + _TOLERANCE))
    if wrong.any():
        found = f"it holds the value {float(values[wrong][0]):g}."
        needed = "Probabilities are needed: 0 to 1 as decimal numbers, or 0 to 100 as whole numbers (percent)."
        remedy = "Choose a probability map; if the value marks missing data, declare it as nodata."
        raise InputError(info.name, found, needed, remedy)
    result: FloatArray = np.clip(values / highest, 0.0, 1.0)
    return result


def _no_overlap(first: RasterInfo, second: RasterInfo) -> InputError:
    extent = extent_in(second, first.crs)
    lies = describe_bounds(extent, first.crs) if extent else "where the first map's CRS does not reach"
    return InputError(
        second.name,
        f"no pixel has a value in both maps. It lies at {lies}.",
        f"The first map lies at {describe_bounds(_grid_of(first).bounds, first.crs)}.",
        "Choose two maps of the same area.",
    )


def _summary(job: CompareJob, grid: Grid, counts: NDArray[np.int64], missing: int) -> Dict[str, Any]:
    metres = float(grid.crs.linear_units_factor[1]) if grid.crs.is_projected else None
    area = abs(grid.transform.a * grid.transform.e)
    hectares = area * metres**2 / 10_000.0 if metres else None
    keys = ("neither", "second_only", "first_only", "both")
    return {
        "first": {"name": job.first_name, "path": job.first.path, "threshold": job.first_threshold},
        "second": {"name": job.second_name, "path": job.second.path, "threshold": job.second_threshold},
        "pixels": {**dict(zip(keys, (int(n) for n in counts))), "nodata": missing},
        "hectares": {key: round(float(n) * hectares, 4) for key, n in zip(keys, counts)} if hectares else None,
        "hectares_are_true_areas": is_equal_area(grid.crs),
        "share_in_agreement": float((counts[0] + counts[3]) / counts.sum()),
        "versions": software_versions(),
    }
