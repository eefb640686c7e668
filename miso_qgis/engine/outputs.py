"""Results that are either complete or not there.

Everything is written into a hidden folder beside its destination (same file system), finished, read back and compared
with what was written, and only then renamed, all files together and ``summary.json`` last. A run that fails or is
cancelled removes its folder; what a killed run leaves behind is removed by the next one that writes to the same place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Type

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from .errors import OutputError, Problem
from .grid import Grid
from .messages import RasterSource
from .progress import Progress
from .rasters import same_file

PART_PREFIX = ".miso-part-"
FLOAT_NODATA = -9999.0
BYTE_NODATA = 255
_LOCK = "lock"
_SPARE_BYTES = 50_000_000
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_CHOOSE = "Choose another folder or file name."


@dataclass(frozen=True)
class Layer:
    """What a raster result is.

    Attributes:
        descriptions: One per band.
        unit: Unit of the values, empty for classes.
        dtype: ``float32`` (nodata -9999) or ``uint8`` (nodata 255).
        overview: How overviews are made: ``AVERAGE`` or ``MODE``.
        colours: Class code -> (red, green, blue, alpha); None for measurements.
        tags: Metadata of the file.
    """

    descriptions: Tuple[str, ...]
    unit: str
    dtype: str = "float32"
    overview: str = "AVERAGE"
    colours: Optional[Mapping[int, Tuple[int, int, int, int]]] = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def nodata(self) -> float:
        """The value of missing pixels."""
        return FLOAT_NODATA if self.dtype == "float32" else BYTE_NODATA

    def bytes_needed(self, grid: Grid) -> int:
        """Return the disk space for the working file, the result, and its overviews, before compression."""
        pixels = grid.height * grid.width * len(self.descriptions)
        return int(pixels * np.dtype(self.dtype).itemsize * 2.4)


def output_problems(
    paths: Mapping[str, Path], sources: Mapping[str, RasterSource], other: Iterable[str]
) -> List[Problem]:
    """Say what is wrong with the places of the results: equal to an input, twice the same, a folder, not a GeoTIFF."""
    problems: List[Problem] = []
    seen: List[Tuple[str, Path]] = []
    inputs = [(f'input "{name}"', source.path) for name, source in sources.items()]
    inputs += [("an input", path) for path in other]
    for key, path in paths.items():
        name = f'Output "{key}" ({path})'
        for label, source in inputs:
            if same_file(str(path), source):
                found = f"it is the same file as {label}."
                problems.append(Problem(name, found, "A run never overwrites what it reads.", _CHOOSE))
        for earlier, earlier_path in seen:
            if same_file(str(path), str(earlier_path)):
                needed = "Each result needs a file of its own."
                problems.append(Problem(name, f'it is the same file as output "{earlier}".', needed, _CHOOSE))
        seen.append((key, path))
        if path.is_dir():
            problems.append(Problem(name, "it is a folder.", "The name of a file is needed.", _CHOOSE))
        suffixes = (".json",) if key == "summary" else (".tif", ".tiff")
        if path.suffix.lower() not in suffixes:
            found = f'its name ends in "{path.suffix}".'
            problems.append(Problem(name, found, f"{' or '.join(suffixes)} is needed.", "Change the ending."))
    return problems


class Workspace:
    """Hidden folders beside the results, while they are being made. A context manager; leaving it removes them."""

    def __init__(self, paths: Mapping[str, Path], bytes_needed: int) -> None:
        """See the class.

        Args:
            paths: Final path of each result.
            bytes_needed: Disk space that the run will need beside the first result.
        """
        self.paths = {key: Path(os.path.abspath(path)) for key, path in paths.items()}
        self._bytes_needed = bytes_needed
        self._folders: Dict[Path, Path] = {}
        self._locks: List[IO[bytes]] = []

    def __enter__(self) -> Workspace:
        """Make the folders.

        Raises:
            OutputError: If a folder cannot be made or written, or the disk has too little space.
        """
        try:
            for parent in dict.fromkeys(path.parent for path in self.paths.values()):
                self._make(parent)
            self._check_space()
        except BaseException:
            self.close()
            raise
        return self

    def _make(self, parent: Path) -> None:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            sweep(parent)
            folder = Path(tempfile.mkdtemp(prefix=PART_PREFIX, dir=parent))
            self._folders[parent] = folder
            self._locks.append(_lock(folder))
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise self._full(error, parent) from error
            raise OutputError(
                f'Output folder "{parent}"',
                f"nothing can be written there ({error.strerror or error}).",
                "A folder that exists and may be written to is needed.",
                "Choose another folder, for example one in your documents.",
            ) from error

    def _check_space(self) -> None:
        parent = next(iter(self._folders))
        free, needed = shutil.disk_usage(parent).free, self._bytes_needed + _SPARE_BYTES
        if free < needed:
            raise OutputError(
                f'Output folder "{parent}"',
                f"{free / 1e6:,.0f} MB are free on its disk.",
                f"About {needed / 1e6:,.0f} MB are needed while the maps are made.",
                "Free some space, choose a folder on another disk, or a smaller area.",
            )

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folders. May be called twice, and from another thread when the process must end."""
        for lock in self._locks:
            with contextlib.suppress(OSError):
                lock.close()
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._locks, self._folders = [], {}

    def scratch(self) -> Path:
        """Return the folder for other working files."""
        return next(iter(self._folders.values()))

    def working(self, key: str) -> Path:
        """Return where the result ``key`` is assembled."""
        return self._folders[self.paths[key].parent] / f"{key}.working.tif"

    def finished(self, key: str) -> Path:
        """Return where the complete result ``key`` waits for its name."""
        return self._folders[self.paths[key].parent] / f"{key}{self.paths[key].suffix}"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what GDAL and the system say while writing into an error that names folder and space.

        Raises:
            OutputError: Instead of RasterioError and OSError.
        """
        try:
            yield
        except OutputError:
            raise
        except (RasterioError, OSError) as error:
            raise self._full(error, next(iter(self._folders), Path())) from error

    def _full(self, error: BaseException, parent: Path) -> OutputError:
        """Return the error of a write that failed, with what is free and what is needed."""
        free = ""
        with contextlib.suppress(OSError):
            free = f" {shutil.disk_usage(parent).free / 1e6:,.0f} MB are free on its disk."
        cause = str(error.__cause__ or error).strip().rstrip(".")
        return OutputError(
            f'Output folder "{parent}"',
            f"writing failed ({cause}).{free}",
            f"About {(self._bytes_needed + _SPARE_BYTES) / 1e6:,.0f} MB are needed while the maps are made.",
            "Free some space, or choose a folder on another disk.",
        )

    def commit(self) -> None:
        """Give every finished file its name; older files of these names are replaced, or kept if that fails.

        Raises:
            OutputError: If a name cannot be given, for example because a program holds the old file open.
        """
        order = sorted(self.paths, key=lambda key: key == "summary")
        kept: List[Tuple[Path, Path]] = []
        placed: List[Path] = []
        final = Path()
        try:
            for key in reversed(order):  # the old summary goes first, so that it never stands beside new maps
                final = self.paths[key]
                for old in (final, final.with_name(final.name + ".aux.xml")):
                    if old.exists():
                        backup = self.finished(key).with_name(f"{key}.{len(kept)}.old")
                        os.replace(old, backup)
                        kept.append((backup, old))
            for key in order:
                final = self.paths[key]
                os.replace(self.finished(key), final)
                placed.append(final)
        except OSError as error:
            with contextlib.suppress(OSError):
                for path in placed:
                    path.unlink()
            for backup, old in kept:
                with contextlib.suppress(OSError):
                    os.replace(backup, old)
            found = f"it cannot be replaced ({error.strerror or error})."
            needed, remedy = "A file that no other program holds open is needed.", "Remove the layer, or choose a name."
            raise OutputError(f'Output "{final}"', found, needed, remedy) from error


def _lock(folder: Path) -> IO[bytes]:
    """Open a file in ``folder`` in a way that other processes can tell as long as this process lives."""
    handle = open(folder / _LOCK, "wb")  # noqa: SIM115  # reason: stays open as long as the workspace
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    handle.write(str(os.getpid()).encode("ascii"))
    handle.flush()
    return handle


def _abandoned(folder: Path) -> bool:
    """Whether the process that made ``folder`` is gone."""
    path = folder / _LOCK
    if not path.exists():
        return True
    try:
        import fcntl
    except ImportError:
        # Windows: a file that a living process has open cannot be deleted.
        try:
            path.unlink()
        except OSError:
            return False
        return True
    try:
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(parent: Path) -> None:
    """Remove what killed runs have left in ``parent``; folders of living runs stay."""
    for folder in parent.glob(f"{PART_PREFIX}*"):
        if folder.is_dir() and _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def remove_own(parent: Path) -> None:
    """Remove the folders that this process has made in ``parent``: the last act before it is ended from inside."""
    own = str(os.getpid()).encode("ascii")
    for folder in parent.glob(f"{PART_PREFIX}*"):
        with contextlib.suppress(OSError):
            if (folder / _LOCK).read_bytes() == own:
                shutil.rmtree(folder, ignore_errors=True)


class RasterWriter:
    """One raster result in the making: blocks in, a checked cloud-optimised GeoTIFF out. A context manager."""

    def __init__(self, workspace: Workspace, key: str, grid: Grid, layer: Layer) -> None:
        self._workspace = workspace
        self._key = key
        self._grid = grid
        self._layer = layer
        bands = len(layer.descriptions)
        self._written: List[Tuple[int, int, int, int, int]] = []
        self._count = np.zeros(bands, np.int64)
        self._sum, self._squares = np.zeros(bands), np.zeros(bands)
        self._low, self._high = np.full(bands, np.inf), np.full(bands, -np.inf)
        profile = {"driver": "GTiff", "count": bands, "dtype": layer.dtype, "nodata": layer.nodata}
        profile.update(height=grid.height, width=grid.width, crs=grid.crs, transform=grid.transform)
        # Uncompressed: blocks of rows cross tiles, and a compressed tile would be written several times over.
        profile.update(tiled=True, blockxsize=256, blockysize=256, BIGTIFF="IF_SAFER", interleave="band")
        with workspace.writing():
            self._dataset = rasterio.open(workspace.working(key), "w", **profile)

    def __enter__(self) -> RasterWriter:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if not self._dataset.closed:
            # After an error the file is thrown away: what closing says about a full disk would hide the error.
            with contextlib.suppress(RasterioError, OSError):
                self._dataset.close()

    def write(self, row: int, column: int, values: NDArray[Any]) -> None:
        """Write a block, (K, h, w), nodata where missing; each pixel once.

        Raises:
            OutputError: If the disk is full or the folder is gone.
        """
        values = np.ascontiguousarray(values, self._layer.dtype)
        for band, plane in enumerate(values):
            good = plane[plane != self._layer.nodata].astype(np.float64)
            if good.size:
                self._count[band] += good.size
                self._sum[band] += good.sum()
                self._squares[band] += np.square(good).sum()
                self._low[band], self._high[band] = min(self._low[band], good.min()), max(self._high[band], good.max())
        height, width = values.shape[1:]
        self._written.append((row, column, height, width, _checksum(values)))
        with self._workspace.writing():
            self._dataset.write(values, window=Window(column, row, width, height))

    def finish(self, progress: Progress) -> None:
        """Write metadata, make the cloud-optimised file and compare it with everything that was written.

        Raises:
            OutputError: If the file on disk is not what was written.
        """
        working, finished = self._workspace.working(self._key), self._workspace.finished(self._key)
        layer = self._layer
        with self._workspace.writing():
            self._describe()
            self._dataset.close()
            progress.raise_if_cancelled()
            options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": 512, "OVERVIEW_RESAMPLING": layer.overview}
            options.update(BIGTIFF="IF_SAFER", NUM_THREADS=2)
            if layer.dtype == "float32":
                options["PREDICTOR"] = "YES"
            rasterio.shutil.copy(working, finished, driver="COG", **options)
            progress.raise_if_cancelled()
            self._verify(finished)
            working.unlink()

    def _describe(self) -> None:
        dataset, layer = self._dataset, self._layer
        dataset.update_tags(**layer.tags)
        for band, description in enumerate(layer.descriptions, 1):
            dataset.set_band_description(band, description)
            if layer.unit:
                dataset.set_band_unit(band, layer.unit)
            count = int(self._count[band - 1])
            if count:
                mean = self._sum[band - 1] / count
                deviation = math.sqrt(max(self._squares[band - 1] / count - mean * mean, 0.0))
                dataset.update_tags(
                    band,
                    STATISTICS_MINIMUM=repr(float(self._low[band - 1])),
                    STATISTICS_MAXIMUM=repr(float(self._high[band - 1])),
                    STATISTICS_MEAN=repr(float(mean)),
                    STATISTICS_STDDEV=repr(float(deviation)),
                    STATISTICS_VALID_PERCENT=f"{100.0 * count / (self._grid.height * self._grid.width):.4g}",
                )
        if layer.colours:
            dataset.write_colormap(1, dict(layer.colours))

    def _verify(self, path: Path) -> None:
        grid = self._grid
        with rasterio.open(path) as dataset:
            same = dataset.shape == grid.shape and dataset.crs == grid.crs and dataset.count == len(self._low)
            if same:
                same = all(
                    _checksum(dataset.read(window=Window(column, row, width, height))) == checksum
                    for row, column, height, width, checksum in self._written
                )
        if not same:
            raise OutputError(
                f'Output "{self._workspace.paths[self._key]}"',
                "read back, the file is not what was written.",
                "A disk that keeps what is written is needed.",
                "Check the disk's free space and health, or choose another folder.",
            )


def _checksum(values: NDArray[Any]) -> int:
    return zlib.crc32(values.tobytes())


def write_json(workspace: Workspace, key: str, data: Mapping[str, Any]) -> None:
    """Write a JSON result; numbers that JSON cannot hold are an error of the program.

    Raises:
        OutputError: If it cannot be written.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with workspace.writing():
        path = workspace.finished(key)
        path.write_bytes(text.encode("utf-8"))
        if path.read_bytes() != text.encode("utf-8"):
            raise OSError("read back, the file is not what was written")


def total_bytes(layers: Sequence[Layer], grid: Grid) -> int:
    """Return the disk space that the layers need while they are made."""
    return sum(layer.bytes_needed(grid) for layer in layers)
