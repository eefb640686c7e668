"""A training area described by one file, ``dataset.json``: rasters, channels, observations, tasks.

The description holds what a model folder's manifest will say about inputs and channels, so that each fact is written
once, and reads rasters through the engine's own :class:`~miso_qgis.engine.covariates.ChannelStack`, so that a network
is trained on what prediction will show it. Paths are relative to the file's folder.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from miso_qgis.engine.covariates import ChannelStack
from miso_qgis.engine.errors import InputError
from miso_qgis.engine.grid import Grid, parse_target_crs
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec, TerrainSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.progress import Progress, Silent
from miso_qgis.engine.schema import from_json, to_json

from .sites import CLASSES

FORMAT = 1
FILE = "dataset.json"


@dataclass(frozen=True)
class ObservationFile:
    """A file of observations and how it is read (:mod:`training.readers`).

    Attributes:
        path: CSV, GeoPackage, GeoJSON or AKSDB points JSON.
        columns: Field of the observation -> column of the file, where the names differ: ``id x y lon lat date nsp
            soil_order``.
        crs: CRS of ``x`` and ``y``; empty takes the file's own, or EPSG:4326 for ``lon`` and ``lat``.
    """

    path: str
    columns: Dict[str, str] = field(default_factory=dict)
    crs: str = ""


@dataclass(frozen=True)
class Dataset:
    """See the module.

    Attributes:
        format: ``FORMAT``.
        name: Short name; runs and model folders are called after it.
        title: For people.
        simulated: Whether nothing in it is real: travels into the manifest, the card, layer names, every report.
        licence: Of the data.
        citation: Of the data.
        bounds: xmin, ymin, xmax, ymax of the area in ``crs``.
        inputs: What a user supplies, by name.
        sources: The raster of each input.
        groups: Modalities and their channels, in the network's order.
        observations: Files of observations.
        tasks: Keys of :data:`training.sites.CLASSES`.
        crs: CRS of the grid, metric.
        resolution_m: Its pixel size.
        terrain: How terrain is derived, if a channel needs it.
        truth: Raster of the true class of each task where it is known everywhere (simulated landscapes), codes as in
            ``CLASSES``, nodata 255.
        folder: Folder of the file; set by :func:`read_dataset`, not part of it.
    """

    format: int
    name: str
    title: str
    simulated: bool
    licence: str
    citation: str
    bounds: Tuple[float, float, float, float]
    inputs: Dict[str, InputSpec]
    sources: Dict[str, RasterSource]
    groups: Tuple[GroupSpec, ...]
    observations: Tuple[ObservationFile, ...]
    tasks: Tuple[str, ...]
    crs: str = "EPSG:3338"
    resolution_m: float = 10.0
    terrain: Optional[TerrainSpec] = None
    truth: Dict[str, RasterSource] = field(default_factory=dict)
    folder: str = ""

    @property
    def channels(self) -> Tuple[ChannelSpec, ...]:
        """All channels, group after group."""
        return tuple(channel for group in self.groups for channel in group.channels)

    @property
    def grid(self) -> Grid:
        """The grid of the area, aligned as prediction aligns it."""
        return Grid.covering(self.bounds, parse_target_crs(self.crs), self.resolution_m)

    def path(self, relative: str) -> Path:
        """Return a path of the description as a path of this machine."""
        return Path(self.folder) / relative

    @contextmanager
    def stack(self, scratch: Path, progress: Optional[Progress] = None) -> Iterator[ChannelStack]:
        """Open all channels on :attr:`grid`, to be read window by window.

        Raises:
            InputError: If a raster is missing or does not fit its description; all problems at once.
        """
        sources = {name: replace(source, path=str(self.path(source.path))) for name, source in self.sources.items()}
        with ChannelStack(
            self.inputs, self.channels, self.terrain, sources, self.grid, scratch, progress or Silent()
        ) as stack:
            yield stack


def read_dataset(path: Path) -> Dataset:
    """Read ``dataset.json``, or the folder that holds it.

    Raises:
        InputError: If it is missing, not of this form, or contradicts itself.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    needed, remedy = "A description as docs/training.md shows it is needed.", "Correct it, or make it again."
    try:
        found = from_json(Dataset, json.loads(file.read_text(encoding="utf-8")), "dataset")
    except (OSError, ValueError) as error:  # a SchemaError is a ValueError
        raise InputError(f'Dataset "{file}"', f"cannot be read ({error}).", needed, remedy) from error
    problems = _contradictions(found)
    if problems:
        raise InputError(f'Dataset "{file}"', "; ".join(problems) + ".", needed, remedy)
    return replace(found, folder=str(file.resolve().parent))


def write_dataset(dataset: Dataset, folder: Path) -> Path:
    """Write ``dataset.json`` into a folder; returns its path."""
    path = Path(folder) / FILE
    text = json.dumps(to_json(replace(dataset, folder="")), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _contradictions(dataset: Dataset) -> List[str]:
    problems: List[str] = []
    if dataset.format != FORMAT:
        problems.append(f"format {dataset.format} is not {FORMAT}")
    if dataset.folder:
        problems.append("folder is not part of a description")
    problems += [f"task {task!r} is not one of {', '.join(CLASSES)}" for task in dataset.tasks if task not in CLASSES]
    problems += [f"input {name!r} has no source" for name in dataset.inputs if name not in dataset.sources]
    problems += [f"source {name!r} is no input" for name in dataset.sources if name not in dataset.inputs]
    problems += [
        f"channel {channel.name!r} comes from {channel.from_!r}, which is no input"
        for channel in dataset.channels
        if channel.from_ not in dataset.inputs
    ]
    names = [channel.name for channel in dataset.channels]
    problems += [f"two channels are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    if not (dataset.bounds[0] < dataset.bounds[2] and dataset.bounds[1] < dataset.bounds[3]):
        problems.append("bounds must be xmin, ymin, xmax, ymax")
    return problems
