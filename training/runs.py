"""The run folder of a training on a dataset: what it is determined by, and enough to repeat it.

    config.json        network, recipe, tasks, seed: written last, its presence makes the folder a run
    data.json          where the dataset lies, SHA-256 of its files (and of the weights that an encoder starts from),
                       which sites were left out and why
    environment.json   versions and machine of every command that worked on it
    checkpoints/       one folder per stage; logs/ likewise
    predictions/       out-of-fold predictions (training.outoffold)

A run goes on only with the configuration and the data that it was begun with.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Type

import numpy as np
import rasterio
import torch

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.schema import from_json, to_json

from . import outoffold
from .config import ModelConfig
from .dataset import FILE, Dataset, read_dataset
from .recipes import Recipe

FORMAT = 1
CONFIG, DATA, ENVIRONMENT = "config.json", "data.json", "environment.json"
# What other models and their report may have left before MISO is trained.
_OTHERS = (DATA, ENVIRONMENT, outoffold.FOLDER, "report")
_ANOTHER = "Choose another run folder, or the settings and data that this one was begun with."


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is determined by, beside its data.

    Attributes:
        format: ``FORMAT``.
        dataset: Name of the dataset.
        tasks: Tasks that the network answers, in order.
        seed: Of the networks; member i of the run is seeded from it and i.
        recipe: Settings.
        model: The network, features scaled.
    """

    format: int
    dataset: str
    tasks: Tuple[str, ...]
    seed: int
    recipe: Recipe
    model: ModelConfig


@dataclass(frozen=True)
class DataFile:
    """A file that training read; size and time tell cheaply that it is still the same.

    Attributes:
        sha256: Its digest.
        bytes: Its size.
        modified_ns: Its time stamp.
    """

    sha256: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class StartWeights:
    """SatlasNet's checkpoint, which the encoder of one group starts from.

    Attributes:
        path: Where it lay.
        group: The group.
        file: The file.
    """

    path: str
    group: str
    file: DataFile


@dataclass(frozen=True)
class RunData:
    """What a run learned from.

    Attributes:
        description: Path of ``dataset.json``.
        files: {path relative to the description: file}.
        sites: Counts: read, used, left out and why, labels by task and class.
        satlas: Weights that an encoder starts from, if any.
    """

    description: str
    files: Dict[str, DataFile]
    sites: Dict[str, Any] = field(default_factory=dict)
    satlas: Optional[StartWeights] = None

    @property
    def digest(self) -> str:
        """One digest of all files; places and time stamps do not count."""
        listed: List[Tuple[str, ...]] = sorted((name, file.sha256) for name, file in self.files.items())
        if self.satlas is not None:
            listed.append(("satlas", self.satlas.group, self.satlas.file.sha256))
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A run folder, checked.

    Attributes:
        folder: Where it is.
        config: What it is determined by.
        data: What it learned from.
        dataset: The dataset itself.
    """

    folder: Path
    config: RunConfig
    data: RunData
    dataset: Dataset

    @property
    def fingerprint(self) -> str:
        """Of configuration and data: what a checkpoint must agree with."""
        text = json.dumps([to_json(self.config), self.data.digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def member_seeds(self, seed: Optional[int] = None) -> List[int]:
        """Seeds of the networks whose logits are averaged; so far apart that no two runs share windows."""
        seed = self.config.seed if seed is None else seed
        return [seed * 1000 + member for member in range(self.config.recipe.members)]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run on a dataset."""
    return (Path(folder) / CONFIG).is_file()


def create(folder: Path, config: RunConfig, data: RunData, dataset: Dataset) -> Run:
    """Make a run folder; predictions of other models may be there already.

    Raises:
        InputError: If the folder holds something else.
    """
    folder = Path(folder)
    if folder.is_dir() and any(item.name not in _OTHERS for item in folder.iterdir()):
        raise InputError(
            f'Run folder "{folder}"',
            f"is not empty and holds no {CONFIG}.",
            "An empty or a new folder is needed.",
            "Choose another folder.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / DATA, to_json(data))
    _write(folder / CONFIG, to_json(config))
    return Run(folder, config, data, dataset)


def open_run(folder: Path, dataset_path: Optional[Path] = None, satlas_path: Optional[Path] = None) -> Run:
    """Open a run folder and check that its data are still the same.

    Args:
        folder: The folder.
        dataset_path: Where the dataset lies now, if not where it lay.
        satlas_path: Where SatlasNet's checkpoint lies now, if not where it lay.

    Raises:
        InputError: If it is no run, of another version, or its data have changed; all changed files at once.
    """
    folder = Path(folder)
    what = f'Run folder "{folder}"'
    if not is_run(folder):
        remedy = "Begin one: python -m training pretrain --dataset DATASET --run RUN."
        raise InputError(what, f"has no {CONFIG}.", "A run that was begun is needed.", remedy)
    config = _parsed(folder / CONFIG, RunConfig)
    data = _parsed(folder / DATA, RunData)
    dataset = read_dataset(dataset_path if dataset_path is not None else Path(data.description))
    now = files_of(dataset, data.files)
    problems = [
        Problem(
            f'Data file "{name}" of the run "{folder}"',
            "is gone." if name not in now else "is new." if name not in data.files else "has changed.",
            "A run needs the data that it was begun with.",
            _ANOTHER,
        )
        for name in sorted(set(now) | set(data.files))
        if name not in now or name not in data.files or now[name].sha256 != data.files[name].sha256
    ]
    data, weights_problems = _with_weights(folder, data, satlas_path)
    if problems + weights_problems:
        raise InputError.of(problems + weights_problems)
    return Run(folder, config, data, dataset)


def _with_weights(folder: Path, data: RunData, path: Optional[Path]) -> Tuple[RunData, List[Problem]]:
    """The data with the place where the start's checkpoint lies now; problems if it is not the one of the run."""
    if data.satlas is None:
        if path is None:
            return data, []
        found = "was begun without SatlasNet's weights."
        remedy = "Leave out --satlas, or begin another run with it."
        return data, [Problem(f'Run folder "{folder}"', found, "A run keeps its start.", remedy)]
    known, path = data.satlas, Path(data.satlas.path) if path is None else path
    what = f'Checkpoint "{path}" of the run "{folder}"'
    needed = f"A run needs the file that its {known.group} encoder was begun with, of SHA-256 {known.file.sha256}."
    if not path.is_file():
        remedy = "Put it back, or say where it lies now: --satlas FILE."
        return data, [Problem(what, "there is no such file.", needed, remedy)]
    now = digested(path, known.file)
    if now.sha256 != known.file.sha256:
        found = f"it is another file, of {now.bytes} bytes and SHA-256 {now.sha256}."
        remedy = "Name that file with --satlas, or begin another run with this one."
        return data, [Problem(what, found, needed, remedy)]
    return replace(data, satlas=replace(known, path=str(path.resolve()))), []


def check_settings(
    run: Run, recipe: Optional[Recipe], tasks: Sequence[str], seed: Optional[int], satlas_group: str = ""
) -> None:
    """Compare what a command asks for with what the run was begun with; None and empty ask for nothing.

    Raises:
        InputError: If they differ; every difference is named.
    """
    differences: List[str] = []
    if recipe is not None:
        differences += _differences(to_json(run.config.recipe), to_json(recipe), "recipe")
    if tasks and tuple(tasks) != run.config.tasks:
        differences.append(f"tasks are {', '.join(run.config.tasks)}, not {', '.join(tasks)}")
    if seed is not None and seed != run.config.seed:
        differences.append(f"seed is {run.config.seed}, not {seed}")
    started = run.data.satlas.group if run.data.satlas is not None else "no group"
    if satlas_group and satlas_group != started:
        differences.append(f"{started} starts from SatlasNet's weights, not {satlas_group}")
    if differences:
        what = f'Run folder "{run.folder}"'
        found = f"was begun with another configuration: {'; '.join(differences[:10])}."
        raise InputError(what, found, "A run keeps its configuration.", _ANOTHER)


def _differences(ours: Any, theirs: Any, path: str) -> List[str]:  # noqa: ANN401  # reason: JSON is any of its types
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found: List[str] = []
        for key in sorted(set(ours) | set(theirs)):
            found += _differences(ours.get(key), theirs.get(key), f"{path}.{key}")
        return found
    return [] if ours == theirs else [f"{path} is {ours}, not {theirs}"]


def files_of(dataset: Dataset, known: Optional[Dict[str, DataFile]] = None) -> Dict[str, DataFile]:
    """Every file that a dataset consists of, by its path relative to the description, with digests.

    A file whose size and time are those of ``known`` is not read again.
    """
    root = Path(dataset.folder)
    paths = {root / FILE}
    paths |= {dataset.path(item.path) for item in dataset.observations}
    for source in dataset.sources.values():
        paths.add(dataset.path(source.path))
        paths |= _parts(dataset.path(source.path))
    found: Dict[str, DataFile] = {}
    for path in sorted(paths):
        if not path.is_file():
            continue  # reading it will say so, with what is needed
        name = Path(os.path.relpath(path, root)).as_posix()
        found[name] = digested(path, (known or {}).get(name))
    return found


def digested(path: Path, before: Optional[DataFile] = None) -> DataFile:
    """A file and its digest; it is not read again if its size and time are those of ``before``."""
    stat = path.stat()
    if before and (before.bytes, before.modified_ns) == (stat.st_size, stat.st_mtime_ns):
        return before
    with path.open("rb") as source_file:
        digest = hashlib.file_digest(source_file, "sha256").hexdigest()
    return DataFile(digest, stat.st_size, stat.st_mtime_ns)


def _parts(path: Path) -> Set[Path]:
    """Files that a raster is made of (the tiles of a VRT); side files that GDAL writes by itself do not count."""
    try:
        with rasterio.open(path) as source:
            parts = {Path(name) for name in source.files}
    except (rasterio.errors.RasterioError, OSError):
        return set()
    return {part for part in parts if not part.name.endswith(".aux.xml")}


def record_environment(folder: Path, command: str, facts: Dict[str, Any]) -> None:
    """Add to ``environment.json`` what a command ran on; equal entries are kept once."""
    path = Path(folder) / ENVIRONMENT
    entries: List[Dict[str, Any]] = []
    if path.is_file():
        entries = json.loads(path.read_text(encoding="utf-8"))
    entry = {"command": command, **environment(), **facts}
    if entry not in entries:
        _write(path, [*entries, entry])


def environment() -> Dict[str, Any]:
    """Versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gdal": rasterio.__gdal_version__,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def _parsed(path: Path, kind: Type[Any]) -> Any:  # noqa: ANN401
    what, needed = f'Run file "{path}"', f"A file that training wrote, of format {FORMAT}, is needed."
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if kind is RunConfig and isinstance(data, dict) and data.get("format") != FORMAT:
            raise ValueError(f"its format is {data.get('format')!r}: it was written by another version")
        return from_json(kind, data, path.name)
    except (OSError, ValueError) as error:
        raise InputError(what, f"cannot be used ({error}).", needed, _ANOTHER) from error


def _write(path: Path, content: Any) -> None:  # noqa: ANN401
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
