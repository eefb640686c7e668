"""The engine for people: ``python -m miso_qgis.engine predict|terrain|compare|probe``.

Results go to stdout, everything else to stderr; a progress bar is drawn on a terminal only. Exit status: 0 done, 2 bad
input, 3 cancelled, 1 failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Callable, Dict, Optional, Sequence, Tuple

from .errors import Cancelled, MisoError, Problem
from .messages import CompareJob, Failure, Job, PredictJob, ProbeJob, RasterSource, Result, TerrainJob
from .progress import Progress

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 3
_BAR_WIDTH = 30


def run(job: Job, progress: Progress) -> Result:
    """Do a job.

    Raises:
        MisoError: As the function that does it says.
    """
    forget_foreign_paths()
    # Imported here, because each part loads what the others can do without.
    if isinstance(job, PredictJob):
        from .predict import predict

        return predict(job, progress)
    if isinstance(job, TerrainJob):
        return _terrain(job, progress)
    if isinstance(job, CompareJob):
        from .compare import compare

        return compare(job, progress)
    from .probe import probe

    return probe(job, progress)


def forget_foreign_paths() -> None:
    """Drop paths to the databases of another GDAL and PROJ, where rasterio brings its own.

    QGIS's launchers and the OSGeo4W shell set them for their own libraries; ours then know no CRS at all (an older
    PROJ's database is refused). Has to come before rasterio is imported.
    """
    found = importlib.util.find_spec("rasterio")
    folders = list(found.submodule_search_locations or []) if found else []
    if any((Path(folder) / "proj_data").is_dir() for folder in folders):
        for name in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA", "GDAL_DRIVER_PATH"):
            os.environ.pop(name, None)


def _terrain(job: TerrainJob, progress: Progress) -> Result:
    from .probe import software_versions
    from .rasters import gdal_settings
    from .terrain import write_terrain

    started = time.perf_counter()
    with gdal_settings():
        paths = write_terrain(job.dem, Path(job.output_dir), progress)
    summary = {"seconds": round(time.perf_counter() - started, 3), "versions": software_versions()}
    return Result({name: str(path) for name, path in paths.items()}, summary)


def failure_of(error: BaseException) -> Tuple[Failure, int]:
    """Turn an exception into what the user reads, and the exit status. A traceback of the unexpected goes to stderr."""
    if isinstance(error, MisoError):
        return Failure(error.code, list(error.problems)), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return Failure(Cancelled.code, list(Cancelled().problems)), CANCELLED
    traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, MemoryError):
        remedy = "Close other programs, or choose fewer threads."
        return Failure("failure", [Problem("The engine", "the computer ran out of memory.", "", remedy)]), FAILED
    found = f"an unexpected error stopped the run ({type(error).__name__}: {str(error)[:300]})."
    remedy = "No result was written. Please report this with the log."
    return Failure("failure", [Problem("The engine", found, "", remedy)]), FAILED


class Terminal:
    """Progress for a person: a bar on a terminal, notes as lines, Ctrl+C to stop."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._bar = sys.stderr.isatty()
        self._drawn = 0

    def cancel(self, number: int = 0, frame: Optional[FrameType] = None) -> None:
        """Ask the run to stop; the second time, interrupt it."""
        if self._cancelled.is_set():
            raise KeyboardInterrupt
        self._cancelled.set()

    def report(self, done: float, total: float, text: str = "") -> None:
        """Draw the bar."""
        if self._bar and total > 0:
            share = min(max(done / total, 0.0), 1.0)
            filled = round(share * _BAR_WIDTH)
            line = f"\r[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {share:4.0%} {text[:60]}"
            print(line.ljust(self._drawn), end="", file=sys.stderr, flush=True)
            self._drawn = len(line)

    def note(self, level: str, text: str) -> None:
        """Print a line."""
        self.clear()
        print(f"{level.capitalize()}: {text}", file=sys.stderr)

    def clear(self) -> None:
        """Wipe the bar."""
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=sys.stderr, flush=True)
            self._drawn = 0

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled after Ctrl+C."""
        if self._cancelled.is_set():
            raise Cancelled


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    terminal = Terminal()
    previous = [(number, signal.signal(number, terminal.cancel)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        result = run(_JOBS[options.command](options), terminal)
    except (Exception, KeyboardInterrupt) as error:  # reason: the outermost edge; every failure becomes a sentence
        terminal.clear()
        failure, status = failure_of(error)
        for problem in failure.problems:
            print(problem, file=sys.stderr)
        return status
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
    terminal.clear()
    _print_result(options, result)
    return DONE


def _print_result(options: argparse.Namespace, result: Result) -> None:
    if options.command == "probe" or options.json:
        print(json.dumps({"outputs": result.outputs, "summary": result.summary}, indent=1, ensure_ascii=False))
        return
    for key, path in result.outputs.items():
        print(f"{key}\t{path}")


def _source(text: str) -> RasterSource:
    return RasterSource.parse(text)


def _named_source(text: str) -> Tuple[str, RasterSource]:
    name, mark, path = text.partition("=")
    if not mark or not name or not path:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form NAME=FILE or NAME=FILE#BAND')
    return name, RasterSource.parse(path)


def _models(text: str) -> Tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _named_path(text: str) -> Tuple[str, str]:
    name, mark, path = text.partition("=")
    if not mark or not name or not path:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form KEY=FILE')
    return name, path


def _predict_job(options: argparse.Namespace) -> Job:
    return PredictJob(
        model=options.model,
        inputs=dict(options.input),
        output_dir=options.output,
        outputs=dict(options.name),
        aoi=options.aoi,
        aoi_layer=options.aoi_layer,
        crs=options.crs,
        resolution_m=options.resolution,
        models=options.models,
        threshold=options.threshold,
        percent=options.percent,
        provider=options.provider,
        threads=options.threads,
    )


def _compare_job(options: argparse.Namespace) -> Job:
    folder = Path(options.output)
    return CompareJob(
        first=options.first,
        second=options.second,
        disagreement=str(folder / "nsp_disagreement.tif"),
        difference=str(folder / "nsp_difference.tif"),
        summary=str(folder / "summary.json"),
        first_threshold=options.first_threshold,
        second_threshold=options.second_threshold,
        first_name=options.first_name,
        second_name=options.second_name,
    )


_JOBS: Dict[str, Callable[[argparse.Namespace], Job]] = {
    "predict": _predict_job,
    "terrain": lambda options: TerrainJob(options.dem, options.output),
    "compare": _compare_job,
    "probe": lambda options: ProbeJob(options.model, options.provider),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m miso_qgis.engine",
        description="Predict permafrost and soil layers from rasters, without QGIS.",
        epilog="Exit status: 0 done, 2 bad input, 3 cancelled (Ctrl+C), 1 failure. A raster is given as FILE or "
        "FILE#BAND, bands counting from 1.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_predict(commands)
    terrain = commands.add_parser("terrain", help="derive the seven terrain covariates of a DEM, on its own grid")
    terrain.add_argument("--dem", required=True, type=_source, metavar="FILE", help="elevation in m, projected CRS")
    terrain.add_argument("--output", required=True, metavar="DIR", help="folder of the results")
    _add_json(terrain)
    _add_compare(commands)
    probe = commands.add_parser("probe", help="show versions and execution providers; check a model folder and run it")
    probe.add_argument("--model", metavar="DIR", help="model folder to check and run once")
    probe.add_argument("--provider", default="auto", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print paths and summary as JSON in place of a list")


def _add_predict(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = commands.add_parser(
        "predict",
        help="predict soil layers",
        description="Predict soil layers by MISO and Random Forest on one grid, and where the two disagree. Writes "
        "<task>_probability_<model>.tif, summary.json, and for permafrost <task>_disagreement.tif (0 neither, 1 RF "
        "only, 2 MISO only, 3 both, 255 nodata) and <task>_difference.tif (MISO minus RF); for soil orders a band per "
        "order and <task>_dominant_<model>.tif (codes 1 to 7 in alphabetical order, 255 nodata).",
    )
    predict.add_argument("--model", required=True, metavar="DIR", help="model folder")
    predict.add_argument(
        "--input",
        required=True,
        action="append",
        type=_named_source,
        metavar="NAME=FILE",
        help="raster of a model input, such as dem=dem.tif; once for each input (the model's manifest names them)",
    )
    predict.add_argument("--output", required=True, metavar="DIR", help="folder of the results; made if missing")
    predict.add_argument(
        "--name",
        action="append",
        default=[],
        type=_named_path,
        metavar="KEY=FILE",
        help="another place for one result, such as nsp_probability_miso=map.tif; may be repeated",
    )
    predict.add_argument("--aoi", metavar="FILE", help="polygons of the area (default: where the inputs lie)")
    predict.add_argument("--aoi-layer", metavar="NAME", help="layer of that file (default: the first)")
    predict.add_argument("--crs", default="EPSG:3338", help="target CRS, projected in metres (default: %(default)s)")
    predict.add_argument("--resolution", type=float, default=10.0, metavar="M", help="pixel size, m (default: 10)")
    predict.add_argument("--models", type=_models, default=("miso", "rf"), help="miso, rf or miso,rf (default: both)")
    predict.add_argument(
        "--threshold", type=float, default=0.5, help="probability that counts as present (default: 0.5)"
    )
    predict.add_argument("--percent", action="store_true", help="write whole percent (nodata 255) to save space")
    predict.add_argument("--provider", default="auto", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    predict.add_argument("--threads", type=int, default=0, help="worker threads (default: processors, at most 4)")
    _add_json(predict)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare two probability rasters",
        description="Write nsp_disagreement.tif (0 neither, 1 second only, 2 first only, 3 both, 255 nodata), "
        "nsp_difference.tif (first minus second) and summary.json (hectares by class). The second raster is brought to "
        "the grid of the first. Probabilities are 0 to 1, or whole percent.",
    )
    compare.add_argument("--first", required=True, type=_source, metavar="FILE", help="probability raster")
    compare.add_argument("--second", required=True, type=_source, metavar="FILE", help="probability raster")
    compare.add_argument("--output", required=True, metavar="DIR", help="folder of the results; made if missing")
    for which, name in (("first", "MISO"), ("second", "RF")):
        help_text = "probability from which it counts as present (default: 0.5)"
        compare.add_argument(f"--{which}-threshold", type=float, default=0.5, metavar="P", help=help_text)
        compare.add_argument(
            f"--{which}-name", default=name, metavar="NAME", help="name in the legend (default: %(default)s)"
        )
    _add_json(compare)
