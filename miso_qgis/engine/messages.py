"""What crosses the boundary between the plugin and the engine: one frozen dataclass per message.

The plugin writes a job file (JSON, one :data:`Job`) and starts ``launch.py JOB.json``. The engine writes one
:data:`Event` per line on stdout and free-form logs on stderr, and exits when its stdin closes. Standard library only,
Python 3.9 syntax: both sides import this file, so neither can drift.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Type, Union

from .errors import Problem
from .schema import SchemaError, from_json, to_json


@dataclass(frozen=True)
class RasterSource:
    """A band of a raster file. On the command line: ``path`` or ``path#band``."""

    path: str
    band: int = 1

    @classmethod
    def parse(cls, text: str) -> RasterSource:
        """Read ``path`` or ``path#band`` (bands count from 1)."""
        path, mark, band = text.rpartition("#")
        return cls(path, int(band)) if mark and band.isdigit() else cls(text)


@dataclass(frozen=True)
class PredictJob:
    """Predict soil layers on one grid.

    Attributes:
        model: Model folder.
        inputs: Raster of each model input, by the input's name in the manifest.
        output_dir: Folder of the results; made if missing.
        outputs: Paths of single results by key (``nsp_probability_miso``, ``nsp_probability_rf``,
            ``nsp_disagreement``, ``nsp_difference``, ``soil_order_probability_miso``, ``soil_order_probability_rf``,
            ``soil_order_dominant_miso``, ``soil_order_dominant_rf``, ``summary``; those of the tasks that the model
            has); the others get their usual name in ``output_dir``.
        aoi: Polygon file (GeoPackage, GeoJSON, Shapefile); None predicts wherever the inputs have data.
        aoi_name: What the area is called in the summary; None takes the file's path. For areas in a temporary file.
        aoi_layer: Layer of that file; None takes its only (or first) layer.
        crs: Target CRS, anything PROJ reads.
        resolution_m: Pixel size in units of the target CRS, which must be metres.
        models: Which models to run: ``miso``, ``rf``.
        threshold: Threshold of the disagreement classes for both models.
        percent: Write uint8 percent (nodata 255) in place of float32 probabilities (nodata -9999).
        provider: ``auto``, ``cpu`` or ``cuda``.
        threads: Worker threads; 0 leaves the choice to the engine.
    """

    model: str
    inputs: Dict[str, RasterSource]
    output_dir: str
    outputs: Dict[str, str] = field(default_factory=dict)
    aoi: Optional[str] = None
    aoi_layer: Optional[str] = None
    aoi_name: Optional[str] = None
    crs: str = "EPSG:3338"
    resolution_m: float = 10.0
    models: Tuple[str, ...] = ("miso", "rf")
    threshold: float = 0.5
    percent: bool = False
    provider: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class TerrainJob:
    """Derive the seven terrain covariates of a DEM, on the DEM's own grid."""

    dem: RasterSource
    output_dir: str


@dataclass(frozen=True)
class CompareJob:
    """Compare two probability rasters; the second is warped onto the grid of the first if they differ.

    Attributes:
        first: Probability raster called "MISO" in the classes, [0, 1] or uint8 percent.
        second: Probability raster called "RF" in the classes.
        disagreement: Path of the class raster (0 neither, 1 second only, 2 first only, 3 both, 255 nodata).
        difference: Path of first - second, float32; None leaves it out.
        summary: Path of a JSON with hectares per class; None leaves it out.
        first_threshold: Probability from which the first raster counts as present, in (0, 1).
        second_threshold: The same for the second raster.
        first_name: Name in the legend.
        second_name: Name in the legend.
    """

    first: RasterSource
    second: RasterSource
    disagreement: str
    difference: Optional[str] = None
    summary: Optional[str] = None
    first_threshold: float = 0.5
    second_threshold: float = 0.5
    first_name: str = "MISO"
    second_name: str = "RF"


@dataclass(frozen=True)
class ProbeJob:
    """Report versions and execution providers, and run a model folder once to prove that it works."""

    model: Optional[str] = None
    provider: str = "auto"


@dataclass(frozen=True)
class Progress:
    """Work done. ``total`` 0 means that the amount is not known yet."""

    done: float
    total: float
    text: str = ""


@dataclass(frozen=True)
class Note:
    """Something the user should read. ``level`` is ``info`` or ``warning``."""

    level: str
    text: str


@dataclass(frozen=True)
class Result:
    """The run is done and every file is in place. ``outputs`` maps keys to paths."""

    outputs: Dict[str, str]
    summary: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """The run has ended without a result. ``code`` is a ``MisoError.code``."""

    code: str
    problems: List[Problem]


Job = Union[PredictJob, TerrainJob, CompareJob, ProbeJob]
Event = Union[Progress, Note, Result, Failure]

JOBS: Dict[str, Type[Any]] = {"predict": PredictJob, "terrain": TerrainJob, "compare": CompareJob, "probe": ProbeJob}
EVENTS: Dict[str, Type[Any]] = {"progress": Progress, "note": Note, "result": Result, "failure": Failure}


def _write(kinds: Dict[str, Type[Any]], message: Any) -> str:  # noqa: ANN401  # reason: any of the dataclasses above
    (word,) = [word for word, kind in kinds.items() if type(message) is kind]
    return json.dumps({"kind": word, **to_json(message)}, ensure_ascii=True, allow_nan=False)


def _read(kinds: Dict[str, Type[Any]], text: str) -> Any:  # noqa: ANN401
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") not in kinds:
        raise SchemaError(f"kind must be one of {', '.join(sorted(kinds))}")
    word = data.pop("kind")
    return from_json(kinds[word], data, word)


def write_job(job: Job) -> str:
    """Return the job file's text."""
    return _write(JOBS, job)


def read_job(text: str) -> Job:
    """Read a job file's text.

    Raises:
        SchemaError: If it is not JSON, of no known kind, or has an unknown, missing or mistyped key.
    """
    job: Job = _read(JOBS, text)
    return job


def write_event(event: Event) -> str:
    """Return one line (without its newline, ASCII only) for stdout."""
    return _write(EVENTS, event)


def read_event(line: str) -> Event:
    """Read one line of the engine's stdout.

    Raises:
        SchemaError: As in :func:`read_job`.
    """
    event: Event = _read(EVENTS, line)
    return event
