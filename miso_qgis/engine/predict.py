"""Predict soil layers on one grid: from a job to finished maps and a summary.

The area is walked in blocks of window columns, from north to south: each step reads the rows that are new, hands the
windows that hold something to the network, computes the forest on the rows that become complete, and writes them.
Memory depends on the width of a block, not on the area. While a step is computed, the next one is read.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Deque, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from .aoi import Aoi, read_aoi
from .classes import class_codes, class_colour
from .covariates import ChannelStack, common_extent, inspect_inputs, terrain_bytes
from .errors import InputError, Problem
from .forest import forest_features, halo_px
from .grid import Grid, is_equal_area, parse_target_crs
from .manifest import TERRAIN_PREFIX, Manifest, TaskSpec
from .messages import PredictJob, Result, write_job
from .outputs import (
    BYTE_NODATA,
    FLOAT_NODATA,
    Layer,
    RasterWriter,
    Workspace,
    output_problems,
    total_bytes,
    write_json,
)
from .probe import software_versions
from .progress import Progress, Scaled
from .rasters import gdal_settings
from .session import Model, default_threads, read_model_files
from .windows import Axis, Blend

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

# Window columns per block: wide enough that re-reading the context at its sides costs little (7 %), narrow enough that
# its rows fit in a few tens of megabytes.
_BLOCK_WINDOWS = 8
_GPU_BATCH = 8
_FOREST_ROWS = 20_000
_HECTARE_M2 = 10_000.0
# Okabe-Ito, so that the classes stay apart for colour-blind readers.
DISAGREEMENT_COLOURS = {
    0: (221, 221, 221, 255),
    1: (204, 121, 167, 255),
    2: (230, 159, 0, 255),
    3: (0, 114, 178, 255),
    BYTE_NODATA: (0, 0, 0, 0),
}
DISAGREEMENT_NAMES = ("neither", "rf_only", "miso_only", "both")


class _Noting:
    """Progress that remembers the notes for the summary."""

    def __init__(self, parent: Progress) -> None:
        self._parent = parent
        self.notes: List[Dict[str, str]] = []

    def report(self, done: float, total: float, text: str = "") -> None:
        self._parent.report(done, total, text)

    def note(self, level: str, text: str) -> None:
        self.notes.append({"level": level, "text": text})
        self._parent.note(level, text)

    def raise_if_cancelled(self) -> None:
        self._parent.raise_if_cancelled()


def predict(job: PredictJob, progress: Progress) -> Result:
    """Predict the layers of a job.

    Returns:
        The path of every result by key, and the content of ``summary.json``.

    Raises:
        InputError: If rasters, area or settings cannot be used; all problems at once.
        ModelFolderError: If the model folder cannot be used.
        OutputError: If results cannot be written.
        RuntimeFailure: If the model cannot be run.
        Cancelled: If the user has asked to stop.
    """
    started = time.perf_counter()
    noting = _Noting(progress)
    with gdal_settings():
        noting.report(0, 1, "Checking the model")
        problems = _setting_problems(job)
        if problems:
            raise InputError.of(problems)
        files = read_model_files(Path(job.model), job.models)
        noting.raise_if_cancelled()
        noting.report(0.01, 1, "Checking the inputs")
        plan = _plan(job, files.manifest, noting)
        model = Model(files, job.provider)
        noting.raise_if_cancelled()
        layers = _layers(job, model)
        with Workspace(plan.paths, plan.bytes_needed + total_bytes(list(layers.values()), plan.grid)) as workspace:
            stack = ChannelStack(
                files.manifest.inputs,
                files.manifest.channels,
                files.manifest.terrain,
                job.inputs,
                plan.grid,
                workspace.scratch(),
                Scaled(noting, 0.02, 0.15),
            )
            with stack, _Writers(workspace, plan.grid, layers) as writers:
                run = _Run(job, plan, model, stack, writers, Scaled(noting, 0.15, 0.9))
                run.walk()
                run.check_result(noting)
                writers.finish(Scaled(noting, 0.9, 1.0))
            summary = run.summary(time.perf_counter() - started, noting.notes)
            write_json(workspace, "summary", summary)
            noting.raise_if_cancelled()
            workspace.commit()
    noting.report(1, 1, "Done")
    return Result({key: str(path) for key, path in workspace.paths.items()}, summary)


@dataclass(frozen=True)
class _Plan:
    grid: Grid
    aoi: Optional[Aoi]
    paths: Dict[str, Path]
    bytes_needed: int  # for working files, beside the results


def _setting_problems(job: PredictJob) -> List[Problem]:
    problems: List[Problem] = []
    unknown = sorted(set(job.models) - {"miso", "rf"})
    if unknown or not job.models:
        found = f'"{unknown[0]}" is unknown.' if unknown else "none was chosen."
        problems.append(Problem("Models", found, "miso, rf or both are needed.", "Choose the models again."))
    if not 0.0 < job.threshold < 1.0:
        found = f"it is {job.threshold:g}."
        problems.append(Problem("Threshold", found, "A probability between 0 and 1 is needed.", "Use 0.5, say."))
    if not job.resolution_m > 0.0:
        found = f"it is {job.resolution_m:g}."
        problems.append(Problem("Resolution", found, "A pixel size above 0 is needed.", "Use 10 m, say."))
    if job.threads < 0:
        problems.append(Problem("Threads", f"it is {job.threads}.", "0 or more are needed.", "Use 0 (automatic)."))
    return problems


def _plan(job: PredictJob, manifest: Manifest, progress: Progress) -> _Plan:
    """Check settings, inputs, area and outputs together, and lay out the grid."""
    problems: List[Problem] = []
    used = {channel.from_ for channel in manifest.channels}
    infos, found = inspect_inputs({name: spec for name, spec in manifest.inputs.items() if name in used}, job.inputs)
    problems += found
    trained = manifest.window.resolution_m
    if "miso" in job.models and abs(job.resolution_m - trained) > 0.01 * trained:
        needed = f"The model predicts at {trained:g} m."
        remedy = f"Use {trained:g} m and resample the map afterwards."
        problems.append(Problem("Resolution", f"it is {job.resolution_m:g} m.", needed, remedy))
    paths = _paths(job, manifest, problems)
    problems += output_problems(paths, job.inputs, [job.aoi] if job.aoi else [])
    crs, aoi = None, None
    try:
        crs = parse_target_crs(job.crs)
        if job.aoi is not None:
            aoi = read_aoi(job.aoi, job.aoi_layer, crs, progress)
    except InputError as error:
        problems += error.problems
    if problems or crs is None:
        raise InputError.of(problems)
    bounds = aoi.bounds if aoi else common_extent(infos, crs)
    grid = Grid.covering(bounds, crs, job.resolution_m)
    derived = {channel.from_ for channel in manifest.channels if channel.by.startswith(TERRAIN_PREFIX)}
    space = sum(terrain_bytes(infos[name], manifest.terrain, grid) for name in derived) if manifest.terrain else 0
    return _Plan(grid, aoi, paths, space)


def _paths(job: PredictJob, manifest: Manifest, problems: List[Problem]) -> Dict[str, Path]:
    """Return the path of every result, by key."""
    folder = Path(job.output_dir)
    keys = [f"{task}_probability_{model}" for task in manifest.tasks for model in _models_of(job, manifest, task)]
    for task, spec in manifest.tasks.items():
        if len(spec.classes) > 1:
            keys += [f"{task}_dominant_{model}" for model in _models_of(job, manifest, task)]
    for task in _compared_tasks(job, manifest):
        keys += [f"{task}_disagreement", f"{task}_difference"]
    paths = {key: folder / f"{key}.tif" for key in keys}
    paths["summary"] = folder / "summary.json"
    for key in sorted(set(job.outputs) - set(paths)):
        needed = f"This run makes {', '.join(paths)}."
        problems.append(Problem(f'Output "{key}"', "the run does not make it.", needed, "Leave it out."))
    paths.update({key: Path(path) for key, path in job.outputs.items() if key in paths})
    return paths


def _models_of(job: PredictJob, manifest: Manifest, task: str) -> List[str]:
    return [model for model in ("miso", "rf") if model in job.models and (model == "miso" or task in manifest.forests)]


def _compared_tasks(job: PredictJob, manifest: Manifest) -> List[str]:
    """Return the tasks for which both models answer yes or no."""
    return [
        task
        for task, spec in manifest.tasks.items()
        if len(spec.classes) == 1 and len(_models_of(job, manifest, task)) == 2
    ]


def _layers(job: PredictJob, model: Model) -> Dict[str, Layer]:
    """Return what each raster result is, by key."""
    manifest = model.manifest
    tags = {
        "MISO_MODEL": f"{manifest.name} {manifest.version}",
        "MISO_MODEL_DIGEST": model.files.digest,
        "MISO_INPUTS": "; ".join(f"{name}={source.path}#{source.band}" for name, source in job.inputs.items()),
        "MISO_VERSIONS": "; ".join(f"{name} {version}" for name, version in software_versions().items()),
        "MISO_PROVIDER": model.provider,
        "MISO_JOB": write_job(job),
        "MISO_LICENCE": manifest.licence,
        "MISO_CITATION": manifest.citation,
        "MISO_SIMULATED": "yes" if manifest.simulated else "no",
    }
    layers: Dict[str, Layer] = {}
    for task, spec in manifest.tasks.items():
        for name in _models_of(job, manifest, task):
            words = "MISO" if name == "miso" else "Random Forest"
            # Bands of several classes are called as the classes, so that they can be picked by name.
            several = len(spec.classes) > 1
            descriptions = spec.classes if several else (f"Probability of {spec.classes[0]}, {words}",)
            about = {**tags, "MISO_DEFINITION": spec.definition}
            unit, dtype = ("%", "uint8") if job.percent else ("1", "float32")
            layers[f"{task}_probability_{name}"] = Layer(descriptions, unit, dtype, tags=about)
            if several:
                layers[f"{task}_dominant_{name}"] = _dominant_layer(spec, words, about)
    for task in _compared_tasks(job, manifest):
        title = manifest.tasks[task].title
        classes = "0 neither, 1 RF only, 2 MISO only, 3 both"
        description = f"{title} at {job.threshold:g}: {classes}"
        layers[f"{task}_disagreement"] = Layer((description,), "", "uint8", "MODE", DISAGREEMENT_COLOURS, tags)
        layers[f"{task}_difference"] = Layer((f"{title}: MISO minus Random Forest",), "1", tags=tags)
    return layers


def _dominant_layer(spec: TaskSpec, words: str, tags: Mapping[str, str]) -> Layer:
    """Return the layer of the most probable class."""
    codes = class_codes(spec.classes)
    legend = ", ".join(f"{code} {name}" for name, code in codes.items())
    colours = {code: (*class_colour(name, code), 255) for name, code in codes.items()}
    description = f"{spec.title}, most probable by {words}: {legend}"
    return Layer((description,), "", "uint8", "MODE", {**colours, BYTE_NODATA: (0, 0, 0, 0)}, tags)


class _Writers:
    """The raster results of a run. A context manager."""

    def __init__(self, workspace: Workspace, grid: Grid, layers: Mapping[str, Layer]) -> None:
        self._workspace, self._grid, self._layers = workspace, grid, layers
        self._writers: Dict[str, RasterWriter] = {}

    def __enter__(self) -> _Writers:
        for key, layer in self._layers.items():
            self._writers[key] = RasterWriter(self._workspace, key, self._grid, layer)
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        for writer in self._writers.values():
            writer.__exit__(None, None, None)

    def write(self, key: str, row: int, column: int, values: NDArray[Any]) -> None:
        self._writers[key].write(row, column, values)

    def finish(self, progress: Progress) -> None:
        for number, (key, writer) in enumerate(self._writers.items()):
            progress.raise_if_cancelled()
            progress.report(number, len(self._writers), f"Writing {key}")
            writer.finish(progress)


class _Strip:
    """Rolling rows of the channels over a range of columns: each row is read once."""

    def __init__(self, stack: ChannelStack, left: int, right: int) -> None:
        self._stack, self._left, self._right = stack, left, right
        self._top, self._bottom = 0, 0
        self._values: Optional[FloatArray] = None

    def rows(self, top: int, bottom: int) -> FloatArray:
        """Return the rows [top, bottom), (C, h, w); ``top`` never decreases. The array is never changed later."""
        width = self._right - self._left
        if self._values is None:
            self._values = self._stack.read(top, self._left, bottom - top, width)
        else:
            new = self._stack.read(self._bottom, self._left, bottom - self._bottom, width)
            self._values = np.concatenate([self._values[:, top - self._top :], new], axis=1)
        self._top, self._bottom = top, bottom
        return self._values


@dataclass
class _Step:
    """One window row of one block, on its way through the workers."""

    row: int
    blends: Dict[str, Blend]
    valid: BoolArray  # of the finished pixels
    decoded_valid: BoolArray  # of the decoded pixels of the whole block
    box: Tuple[int, int, int, int]  # finished pixels: row0, column0, row1, column1
    first: int
    windows: List[Tuple[List[int], Future[Dict[str, FloatArray]]]] = field(default_factory=list)
    forests: Dict[str, List[Future[FloatArray]]] = field(default_factory=dict)
    skipped: int = 0


class _Tally:
    """The most probable class of each pixel of a task with several, and how much of the area each class has."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._codes = class_codes(classes)
        self._code_of = np.asarray([self._codes[name] for name in classes], np.uint8)  # output -> code
        self._dominant: Dict[str, NDArray[np.int64]] = {}
        self._expected: Dict[str, NDArray[np.float64]] = {}
        self._same = 0

    def add(self, predictions: Mapping[str, FloatArray], valid: BoolArray) -> Dict[str, NDArray[np.uint8]]:
        """Count the pixels of a box and return each model's codes, (h, w), nodata where not valid.

        Of equally probable classes, the first in the order of the manifest counts.
        """
        codes: Dict[str, NDArray[np.uint8]] = {}
        for name, values in predictions.items():
            best = values.argmax(axis=0)
            codes[name] = np.where(valid, self._code_of[best], np.uint8(BYTE_NODATA))
            found = np.bincount(best[valid], minlength=len(self._classes))
            self._dominant[name] = self._dominant.get(name, np.zeros(len(self._classes), np.int64)) + found
            total = values[:, valid].sum(axis=1, dtype=np.float64)
            self._expected[name] = self._expected.get(name, np.zeros(len(self._classes))) + total
        if len(codes) == 2:
            first, second = codes.values()
            self._same += int((first == second)[valid].sum())
        return codes

    def summary(self, hectares: float) -> Dict[str, Any]:
        """Return areas by class; ``hectares`` is the area of a pixel."""

        def areas(counts: NDArray[Any]) -> Dict[str, float]:
            return {name: round(float(count) * hectares, 4) for name, count in zip(self._classes, counts)}

        result: Dict[str, Any] = {
            "codes": dict(self._codes),
            "hectares_most_probable": {name: areas(counts) for name, counts in self._dominant.items()},
            # The sum of the probabilities: what the model expects in all, rare classes included.
            "hectares_expected": {name: areas(sums) for name, sums in self._expected.items()},
        }
        if len(self._dominant) == 2:
            result["hectares_same_class"] = round(self._same * hectares, 4)
        return result


class _Run:
    """The walk over the area, and what it counts."""

    def __init__(
        self, job: PredictJob, plan: _Plan, model: Model, stack: ChannelStack, writers: _Writers, progress: Progress
    ) -> None:
        self._job, self._plan, self._model, self._stack = job, plan, model, stack
        self._writers, self._progress = writers, progress
        self._manifest = model.manifest
        self._grid = plan.grid
        self._rows = Axis.of(plan.grid.height, self._manifest.window)
        self._columns = Axis.of(plan.grid.width, self._manifest.window)
        self._networks = list(self._manifest.tasks) if "miso" in job.models else []
        self._forests = list(self._manifest.forests) if "rf" in job.models else []
        self._batch = _GPU_BATCH if model.provider == "cuda" else 1
        self._threads = job.threads or default_threads()
        self._halo = max(
            (halo_px(self._manifest.forests[t].features, job.resolution_m) for t in self._forests), default=0
        )
        self._done = 0
        self._walk_s = 0.0
        self._session_before_s = model.session_s
        self.valid = self.nodata = self.masked = 0
        self._above: Dict[str, Dict[str, int]] = {}
        self._classes: Dict[str, NDArray[np.int64]] = {}
        self._tallies: Dict[str, _Tally] = {}
        self._unseen: Dict[str, Dict[int, int]] = {}
        self._steps: Dict[str, Tuple[float, int]] = {}
        self._with_data: Optional[NDArray[np.int64]] = np.zeros(len(stack.channels), np.int64)

    def walk(self) -> None:
        """Compute and write every pixel."""
        started = time.perf_counter()
        pending: Deque[_Step] = deque()
        pool = ThreadPoolExecutor(self._threads)
        try:
            left: Dict[str, Blend] = {}
            for first in range(0, self._columns.count, _BLOCK_WINDOWS):
                last = min(first + _BLOCK_WINDOWS, self._columns.count) - 1
                classes = {task: len(self._manifest.tasks[task].classes) for task in self._networks}
                # The block to the left hands over its right edge, so it has to be through.
                while pending:
                    self._finish(pending.popleft())
                blends = {t: Blend(self._rows, self._columns, first, last, n, left.get(t)) for t, n in classes.items()}
                strip = self._strip(first, last)
                for row in range(self._rows.count):
                    self._progress.raise_if_cancelled()
                    pending.append(self._begin(pool, strip, blends, row, first, last))
                    if len(pending) > 1:
                        self._finish(pending.popleft())
                left = blends
            while pending:
                self._finish(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        self._walk_s = time.perf_counter() - started

    def _strip(self, first: int, last: int) -> _Strip:
        c0, c1 = self._columns.finished(first)[0], self._columns.finished(last)[1]
        left = min(self._columns.origin(first), c0 - self._halo)
        right = max(self._columns.origin(last) + self._columns.size, c1 + self._halo)
        return _Strip(self._stack, left, right)

    def _begin(
        self, pool: ThreadPoolExecutor, strip: _Strip, blends: Dict[str, Blend], row: int, first: int, last: int
    ) -> _Step:
        """Read a step's rows and hand its windows and forest pixels to the workers."""
        rows, columns, halo = self._rows, self._columns, self._halo
        r0, r1 = rows.finished(row)
        c0, c1 = columns.finished(first)[0], columns.finished(last)[1]
        top, left = min(rows.origin(row), r0 - halo), min(columns.origin(first), c0 - halo)
        values = strip.rows(top, max(rows.origin(row) + rows.size, r1 + halo))
        # Decoded pixels of the block, cut at the grid's edge.
        low, right = min(row * rows.stride + rows.decode, self._grid.height), last * columns.stride + columns.decode
        right = min(right, self._grid.width)
        missing = np.isnan(values[:, r0 - top : low - top, c0 - left : right - left])
        inside = self._inside(r0, c0, low - r0, right - c0)
        decoded_valid = inside & ~missing.any(axis=0)
        finished = (slice(0, r1 - r0), slice(0, c1 - c0))
        valid = decoded_valid[finished]
        self._count(missing[:, finished[0], finished[1]], inside[finished], valid, r0, c0)
        step = _Step(row, blends, valid, decoded_valid, (r0, c0, r1, c1), first)
        if self._networks:
            self._submit_windows(pool, step, values, (rows.origin(row) - top, left), first, last)
        for task in self._forests:
            cut = values[:, r0 - halo - top : r1 + halo - top, c0 - halo - left : c1 + halo - left]
            step.forests[task] = self._submit_forest(pool, task, cut, step)
        return step

    def _inside(self, row: int, column: int, height: int, width: int) -> BoolArray:
        if self._plan.aoi is None:
            return np.ones((height, width), bool)
        return self._plan.aoi.mask(self._grid, row, column, height, width)

    def _count(self, missing: BoolArray, inside: BoolArray, valid: BoolArray, row: int, column: int) -> None:
        count = int(valid.sum())
        self.valid += count
        self.nodata += int(inside.sum()) - count
        self.masked += int((~inside).sum())
        if self._with_data is not None:
            # Only needed to explain a run without any valid pixel.
            self._with_data = None if self.valid else self._with_data + (~missing & inside).sum(axis=(1, 2))
        if count:
            for name, codes in self._stack.unseen(row, column, valid).items():
                known = self._unseen.setdefault(name, {})
                for code, pixels in codes.items():
                    known[code] = known.get(code, 0) + pixels

    def _submit_windows(
        self, pool: ThreadPoolExecutor, step: _Step, values: FloatArray, origin: Tuple[int, int], first: int, last: int
    ) -> None:
        columns, size = self._columns, self._columns.size
        wanted: List[int] = []
        for column in range(first, last + 1):
            start = (column - first) * columns.stride
            if step.decoded_valid[:, start : start + columns.decode].any():
                wanted.append(column)
        step.skipped = last - first + 1 - len(wanted)
        top, left = origin

        def compute(batch: Sequence[int]) -> Dict[str, FloatArray]:
            starts = [columns.origin(column) - left for column in batch]
            return self._model.predict(np.stack([values[:, top : top + size, c : c + size] for c in starts]))

        for index in range(0, len(wanted), self._batch):
            batch = wanted[index : index + self._batch]
            step.windows.append((batch, pool.submit(compute, batch)))

    def _submit_forest(
        self, pool: ThreadPoolExecutor, task: str, values: FloatArray, step: _Step
    ) -> List[Future[FloatArray]]:
        if not step.valid.any():
            return []
        spec = self._manifest.forests[task]
        row, column = step.box[:2]
        features = forest_features(values, self._stack.channels, spec.features, self._grid, row, column, self._halo)
        table = np.ascontiguousarray(features[:, step.valid].T)  # (M, F)
        return [
            pool.submit(self._model.forest, task, table[start : start + _FOREST_ROWS])
            for start in range(0, len(table), _FOREST_ROWS)
        ]

    def _finish(self, step: _Step) -> None:
        """Wait for a step's answers, blend them, and write the pixels that are complete."""
        r0, c0, r1, c1 = step.box
        self._advance(step.skipped)
        answers: Dict[int, Dict[str, FloatArray]] = {}
        for batch, future in step.windows:
            for index, column in enumerate(batch):
                answers[column] = {task: values[index] for task, values in future.result().items()}
            self._advance(len(batch))
        for column, answer in sorted(answers.items()):
            for task in self._networks:
                step.blends[task].add(step.row, column, answer[task])
                if column - 1 in answers:
                    self._compare_windows(task, step, column, answers[column - 1][task], answer[task])
        maps: Dict[str, Dict[str, FloatArray]] = {}
        for task in self._networks:
            blended = np.clip(step.blends[task].finish_row(step.row), 0.0, 1.0)
            maps.setdefault(task, {})["miso"] = blended
        for task in self._forests:
            table = [future.result() for future in step.forests[task]]
            grown = np.zeros((len(self._manifest.tasks[task].classes), r1 - r0, c1 - c0), np.float32)
            if table:
                grown[:, step.valid] = np.concatenate(table).T
            maps.setdefault(task, {})["rf"] = grown
        if not self._networks:
            self._advance(len(range(step.first, min(step.first + _BLOCK_WINDOWS, self._columns.count))))
        for task, predictions in maps.items():
            self._write(task, predictions, step)

    def _advance(self, windows: int) -> None:
        self._done += windows
        total = self._rows.count * self._columns.count
        self._progress.raise_if_cancelled()
        self._progress.report(self._done, total, f"Predicting: window {self._done} of {total}")

    def _compare_windows(self, task: str, step: _Step, column: int, left: FloatArray, right: FloatArray) -> None:
        """Measure how much two neighbouring windows disagree where both answer."""
        stride, overlap = self._columns.stride, self._columns.decode - self._columns.stride
        start = (column - step.first) * stride
        where = step.decoded_valid[:, start : start + overlap]
        height, width = where.shape
        if overlap <= 0 or not where.any():
            return
        gap = np.abs(left[:, :height, stride : stride + width] - right[:, :height, :width])[:, where]
        total, count = self._steps.get(task, (0.0, 0))
        self._steps[task] = total + float(gap.sum(dtype=np.float64)), count + gap.size

    def _write(self, task: str, predictions: Mapping[str, FloatArray], step: _Step) -> None:
        row, column = step.box[:2]
        valid, threshold = step.valid, self._job.threshold
        for name, values in predictions.items():
            key = f"{task}_probability_{name}"
            if self._job.percent:
                stored: NDArray[Any] = np.where(valid, np.rint(values * 100.0), BYTE_NODATA).astype(np.uint8)
            else:
                stored = np.where(valid, values, np.float32(FLOAT_NODATA))
            self._writers.write(key, row, column, stored)
            if len(values) == 1:
                counts = self._above.setdefault(key, {})
                for label, limit in self._limits(task, name).items():
                    counts[label] = counts.get(label, 0) + int((values[0][valid] >= limit).sum())
        if len(self._manifest.tasks[task].classes) > 1:
            tally = self._tallies.setdefault(task, _Tally(self._manifest.tasks[task].classes))
            for name, codes in tally.add(predictions, valid).items():
                self._writers.write(f"{task}_dominant_{name}", row, column, codes[None])
        if task in _compared_tasks(self._job, self._manifest):
            miso, rf = predictions["miso"], predictions["rf"]
            codes = 2 * (miso >= threshold).astype(np.uint8) + (rf >= threshold)
            found = np.bincount(codes[0][valid], minlength=4)
            self._classes[task] = self._classes.get(task, np.zeros(4, np.int64)) + found
            stored = np.where(valid, codes, BYTE_NODATA).astype(np.uint8)
            self._writers.write(f"{task}_disagreement", row, column, stored)
            difference = np.where(valid, miso - rf, np.float32(FLOAT_NODATA))
            self._writers.write(f"{task}_difference", row, column, difference)

    def _limits(self, task: str, name: str) -> Dict[str, float]:
        limits = {"0.5": 0.5}
        equal_recall = self._manifest.tasks[task].thresholds.get(name, {}).get("equal_recall")
        if equal_recall is not None:
            limits["equal_recall"] = equal_recall
        return limits

    def check_result(self, progress: Progress) -> None:
        """Say what the user must know about the result.

        Raises:
            InputError: If no pixel could be predicted; the message says which input has no data.
        """
        if self.valid + self.nodata == 0 and self._plan.aoi is not None:
            found = f"it holds the centre of no pixel of {self._job.resolution_m:g} m."
            needed = "An area of at least a few pixels is needed."
            raise InputError(self._plan.aoi.name, found, needed, "Draw a larger area.")
        if self.valid == 0:
            raise InputError.of(self._empty_problems())
        if self.nodata:
            share = 100.0 * self.nodata / (self.valid + self.nodata)
            text = f"{share:.3g} % of the area ({self.nodata:,} pixels) lack data in some input and stay empty."
            progress.note("info", text)
        for name, codes in self._unseen.items():
            listed = ", ".join(f"{code} ({pixels:,} pixels)" for code, pixels in sorted(codes.items()))
            text = f'Input "{name}": classes that the model has not seen were given no class: {listed}.'
            progress.note("warning", text)
        for name, count in self._stack.masked_out_of_range.items():
            text = f'Input "{name}": {count:,} values outside the legal range were taken as missing.'
            progress.note("warning", text)

    def _empty_problems(self) -> List[Problem]:
        total = self.valid + self.nodata
        with_data = self._with_data if self._with_data is not None else np.zeros(0, np.int64)
        best: Dict[str, int] = {}
        for channel, count in zip(self._stack.channels, with_data):
            best[channel.from_] = min(best.get(channel.from_, total), int(count))
        remedy = "Choose rasters that cover the same area, or move the area."
        return [
            Problem(
                f'Input "{name}" ({Path(self._job.inputs[name].path).name})',
                f"it has data in {count:,} of the area's {total:,} pixels, and no pixel has data in every input.",
                "Every pixel needs all inputs.",
                remedy,
            )
            for name, count in best.items()
        ]

    def summary(self, seconds: float, notes: Sequence[Mapping[str, str]]) -> Dict[str, Any]:
        """Return the content of ``summary.json``."""
        grid, manifest = self._grid, self._manifest
        hectares = grid.resolution**2 / _HECTARE_M2
        areas: Dict[str, Any] = {}
        for key, counts in self._above.items():
            task, _, name = key.rpartition("_probability_")
            areas[key] = {
                "hectares_above": {label: round(count * hectares, 4) for label, count in counts.items()},
                "thresholds": self._limits(task, name),
            }
        classes = {
            task: dict(zip(DISAGREEMENT_NAMES, (round(float(n) * hectares, 4) for n in counts)))
            for task, counts in self._classes.items()
        }
        session_s = self._model.session_s - self._session_before_s
        pixels = grid.height * grid.width
        return {
            "model": {
                "name": manifest.name,
                "title": manifest.title,
                "version": manifest.version,
                "digest": self._model.files.digest,
                "simulated": manifest.simulated,
            },
            "inputs": {name: {"path": s.path, "band": s.band} for name, s in self._job.inputs.items()},
            "area_of_interest": self._job.aoi_name or self._job.aoi,
            "grid": {
                "crs": grid.crs.to_string(),
                "resolution_m": grid.resolution,
                "height": grid.height,
                "width": grid.width,
                "bounds": list(grid.bounds),
            },
            "pixels": {"valid": self.valid, "nodata": self.nodata, "masked": self.masked},
            "hectares_valid": round(self.valid * hectares, 4),
            "hectares_are_true_areas": is_equal_area(grid.crs),
            "probabilities": areas,
            "disagreement": {"threshold": self._job.threshold, "hectares": classes},
            "classes": {task: tally.summary(hectares) for task, tally in self._tallies.items()},
            "window_disagreement": {task: total / count for task, (total, count) in self._steps.items() if count},
            "unseen_classes": {n: {str(c): k for c, k in sorted(v.items())} for n, v in self._unseen.items()},
            "out_of_range_values": dict(self._stack.masked_out_of_range),
            "provider": self._model.provider,
            "provider_reason": self._model.provider_reason,
            "threads": self._threads,
            "seconds": round(seconds, 3),
            "seconds_predicting": round(self._walk_s, 3),
            "seconds_in_runtime": round(session_s / self._threads, 3),
            "mpx_per_s": round(pixels / 1e6 / max(self._walk_s, 1e-9), 4),
            "versions": software_versions(),
            "notes": [dict(note) for note in notes],
        }
