"""Training on a dataset from its observations to folds and out-of-fold predictions.

Owns the order of the stages: networks are pretrained once per run on covariates alone, and every fit (on all sites, or
on those outside a fold) starts from them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.schema import to_json

from . import checkpoints, runs, satlas_start
from .asking import ask
from .dataset import Dataset, read_dataset
from .features import model_config
from .model import Miso
from .outoffold import FOLDER, OutOfFold
from .recipes import PRESETS, Recipe
from .runs import Run, RunConfig, RunData, StartWeights
from .sampling import Labelled
from .scenes import Scene, open_scene
from .sites import CLASSES, MISSING, Sites
from .spatial_splits import Split
from .surveys import assign_folds, load_sites
from .trainer import Execution, Note, Parameters, Stage, Stop, Surroundings, initial_parameters, run_stage
from .trainer import with_parameters as network
from .world import World

MODEL = "miso"
ALL = "all"


@dataclass(frozen=True)
class Means:
    """With what a command computes.

    Attributes:
        world: The processes.
        stop: Whether to stop.
        execution: Checkpoints and logs.
        storage: Where windows are held (:func:`training.scenes.open_scene`).
        memory_mb: What ``auto`` storage may hold.
    """

    world: World
    stop: Stop
    execution: Execution
    storage: str = "auto"
    memory_mb: int = 2000


class Fitted(NamedTuple):
    """Networks of one fit, and the seconds that it took."""

    members: List[Miso]
    seconds: float


@dataclass(frozen=True)
class Workshop:
    """An open run: everything that its stages need.

    Attributes:
        run: The run.
        surveyed: All sites that were read: folds are dealt of them, so that they are those of any other model.
        usable: Where every channel has a value, (N,): only there is anything learned or judged.
        scene: Where windows are read.
        means: With what to compute.
        note: Told what is done.
    """

    run: Run
    surveyed: Sites
    usable: NDArray[np.bool_]
    scene: Scene
    means: Means
    note: Note

    @property
    def sites(self) -> Sites:
        """The sites that are used."""
        return self.surveyed.subset(self.usable)

    @property
    def around(self) -> Surroundings:
        """What the stages share."""
        config = self.run.config
        return Surroundings(
            self.run.folder,
            self.run.fingerprint,
            config.model,
            config.recipe,
            self.scene,
            self.means.world,
            self.means.execution,
            self.means.stop,
        )

    def pretrained(self) -> List[Parameters]:
        """Start of every fit, one per member: contrastively pretrained, or fresh where the recipe leaves that out.

        Fresh means drawn from the member's seed, but for an encoder that starts from SatlasNet's weights.
        """
        config, weights = self.run.config, self.run.data.satlas
        steps = config.recipe.pretrain.length(len(self.sites))
        found = []
        for member, seed in enumerate(self.run.member_seeds()):
            start = initial_parameters(config.model, seed)
            if weights is not None:
                start = satlas_start.start(config.model, start, Path(weights.path), weights.group)
            if steps:
                start = run_stage(Stage(f"pretrain/{member}", seed, steps, start), self.around, self.note).parameters
            found.append(start)
        return found

    def fitted(self, name: str, chosen: Sites, seed: int, start: Sequence[Parameters]) -> Fitted:
        """Networks fine-tuned on the chosen sites; the stage is called ``name``."""
        config = self.run.config
        labelled = Labelled.of(chosen, self.scene, config.tasks)
        _refuse_unlabelled(name, labelled)
        if not self.is_finished(name):
            _report_classes(name, labelled, self.sites, self.note)
        steps = config.recipe.fit.length(len(labelled))
        members, seconds = [], 0.0
        for member, member_seed in enumerate(self.run.member_seeds(seed)):
            stage = Stage(f"{name}/{member}", member_seed, steps, start[member], labelled)
            outcome = run_stage(stage, self.around, self.note)
            members.append(network(config.model, outcome.parameters).to(self.means.world.device))
            seconds += float(outcome.facts["seconds"])
        return Fitted(members, seconds)

    def is_finished(self, name: str) -> bool:
        """Whether the stage ``name`` is there for every member."""
        members = range(self.run.config.recipe.members)
        return all(checkpoints.is_finished(self.around.checkpoints(f"{name}/{member}")) for member in members)

    def fit_all(self) -> Fitted:
        """Networks fine-tuned on all sites: what is exported."""
        return self.fitted(f"fit/{ALL}", self.sites, self.run.config.seed, self.pretrained())


@contextmanager
def begun(
    folder: Path,
    dataset_path: Optional[Path],
    recipe: Optional[Recipe],
    tasks: Sequence[str],
    seed: Optional[int],
    means: Means,
    note: Note,
    satlas: satlas_start.Asked = satlas_start.NOTHING,
) -> Iterator[Workshop]:
    """Open a run, or begin it where there is none.

    Args:
        folder: The run's folder.
        dataset_path: ``dataset.json``; a run that was begun knows its own.
        recipe: Settings that were asked for; None takes the run's, or the preset ``small``.
        tasks: Tasks that were asked for; empty takes the run's, or all of the dataset.
        seed: Likewise; 1.
        means: With what to compute.
        note: Told what is done.
        satlas: SatlasNet's checkpoint that was asked for; a run that was begun knows its own.

    Raises:
        InputError: If the run was begun with something else, or cannot be begun.
    """
    means.world.barrier()  # nobody looks before the others are there
    exists = runs.is_run(folder)
    means.world.barrier()
    if exists:
        run = runs.open_run(folder, dataset_path, satlas.path)
        weights = run.data.satlas
        if recipe is not None and weights is not None:
            recipe = satlas_start.with_features(recipe, run.dataset, weights.group)
        runs.check_settings(run, recipe, tasks, seed, satlas.group)
        dataset, recipe = run.dataset, run.config.recipe
    else:
        if dataset_path is None:
            needed = "A run that was begun, or a dataset to begin one with, is needed."
            raise InputError(f'Run folder "{folder}"', "was not begun.", needed, "Add --dataset DATASET.")
        dataset = read_dataset(dataset_path)
        recipe = recipe or PRESETS["small"]
        _check_tasks(dataset, tasks)
        recipe, weights = _started(recipe, dataset, satlas)
    if weights is not None:
        note(f"the {weights.group} encoder starts from SatlasNet's {weights.path} (SHA-256 {weights.file.sha256})")
    sites, report = load_sites(dataset)
    note(
        f"{dataset.title}: {len(sites)} sites of {report['records']} records."
        f"{' Simulated, nothing in it is real.' if dataset.simulated else ''}"
    )
    with open_scene(
        dataset,
        recipe.size,
        storage=means.storage,
        memory_mb=means.memory_mb,
        device=means.world.device,
        progress=means.stop if means.world.leads else None,
    ) as scene:
        where = "held in memory" if scene.in_memory else "read from the rasters as they are needed"
        note(f"{scene.grid.height} x {scene.grid.width} px of {scene.grid.resolution:g} m, {where}")
        usable, report = _usable(sites, scene, report, note)
        if not exists:
            config = _run_config(dataset, scene, recipe, tasks, 1 if seed is None else seed)
            data = RunData(str(Path(dataset.folder) / "dataset.json"), runs.files_of(dataset), report, weights)
            if means.world.leads:
                run = runs.create(folder, config, data, dataset)
            means.world.barrier()
            run = Run(Path(folder), config, data, dataset)
        if means.world.leads:
            facts = {"device": means.world.device, "processes": means.world.size, "threads": torch.get_num_threads()}
            runs.record_environment(run.folder, "train", facts)
        yield Workshop(run, sites, usable, scene, means, note)


def _check_tasks(dataset: Dataset, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task not in dataset.tasks:
            needed = f"The dataset has {', '.join(dataset.tasks)}."
            raise InputError(f'Task "{task}"', "the dataset has no labels of it.", needed, "Choose another task.")


def _started(recipe: Recipe, dataset: Dataset, asked: satlas_start.Asked) -> Tuple[Recipe, Optional[StartWeights]]:
    """Recipe of a new run and the checkpoint that an encoder starts from, if one was asked for."""
    if asked == satlas_start.NOTHING:
        return recipe, None
    recipe = satlas_start.prepared(recipe, dataset, asked)
    assert asked.path is not None
    path = asked.path.resolve()
    return recipe, StartWeights(str(path), asked.group or satlas_start.GROUP, runs.digested(path))


def _run_config(dataset: Dataset, scene: Scene, recipe: Recipe, tasks: Sequence[str], seed: int) -> RunConfig:
    chosen = tuple(tasks) or dataset.tasks
    model = model_config(dataset, scene, recipe, chosen)
    return RunConfig(runs.FORMAT, dataset.name, chosen, seed, recipe, model)


def _usable(sites: Sites, scene: Scene, report: Dict[str, Any], note: Note) -> Tuple[NDArray[np.bool_], Dict[str, Any]]:
    """Where every channel has a value: elsewhere a map has nodata, so nothing is learned or judged there."""
    rows, columns = scene.places(sites.x, sites.y)
    known = scene.known_at(rows, columns)
    outside = ~((rows >= 0) & (rows < scene.grid.height) & (columns >= 0) & (columns < scene.grid.width))
    report = {
        "reading": report,
        "outside_the_area": int(outside.sum()),
        "without_a_value_in_some_channel": int((~known & ~outside).sum()),
        "used": int(known.sum()),
    }
    if not known.all():
        note(
            f"left out: {report['outside_the_area']} sites outside the area, "
            f"{report['without_a_value_in_some_channel']} where a channel has no value"
        )
    kept = sites.subset(known)
    report["labels"] = {
        task: {name: int((labels == k).sum()) for k, name in enumerate(CLASSES[task])}
        for task, labels in kept.labels.items()
    }
    if not len(kept):
        needed = "Observations within the area are needed."
        remedy = "Check the observations' CRS and columns, and the dataset's bounds."
        raise InputError("Observations", f"none of {len(sites)} lies where every channel has a value.", needed, remedy)
    return known, report


def _refuse_unlabelled(name: str, labelled: Labelled) -> None:
    empty = [task for task, labels in labelled.labels.items() if not (labels != MISSING).any()]
    if empty:
        raise InputError(
            f'Training stage "{name}"',
            f"no site has a label of {' or '.join(empty)}.",
            "Labels of every task are needed.",
            "Leave the task out (--tasks), or choose another split.",
        )


def _report_classes(name: str, labelled: Labelled, sites: Sites, note: Note) -> None:
    """Say which of the classes that occur a stage cannot learn, because they lie in the fold that it leaves out."""
    for task, labels in labelled.labels.items():
        absent = [CLASSES[task][k] for k in np.setdiff1d(sites.labels[task], labels) if k != MISSING]
        if absent:
            note(f"{name}: no training site of {task} is {' or '.join(absent)}; that class cannot be learned there")


Deal = Callable[[Sites, str, int, Dataset], Split]


@dataclass(frozen=True)
class _Dealt:
    """A split of a run's sites, for one seed of folds and fits."""

    seed: int
    folds: Split

    def stage(self, fold: int) -> str:
        return f"cv/{self.folds.name}/{self.seed}/{fold}"


def cross_validate(
    workshop: Workshop,
    split: str,
    seeds: Sequence[int],
    chosen: Optional[Sequence[int]] = None,
    deal: Deal = assign_folds,
) -> List[Path]:
    """Fit each fold's complement and predict the fold; write out-of-fold predictions of every task.

    A fold that was fitted before is not fitted again; predictions are written once all folds of a seed are there.

    Args:
        workshop: The run.
        split: How folds are made.
        seeds: One cross-validation each: seed of the folds and of the fits. Pretraining is the run's.
        chosen: Folds to fit; None is all of them.
        deal: Makes the folds.

    Returns:
        Files of predictions.

    Raises:
        InputError: If a fold that was asked for does not exist, or a fold's complement cannot be learned from.
    """
    written: List[Path] = []
    for seed in seeds:
        dealt = _Dealt(seed, deal(workshop.surveyed, split, seed, workshop.run.dataset).subset(workshop.usable))
        fold_of = dealt.folds.fold
        numbers = np.unique(fold_of[fold_of >= 0]).tolist()
        wrong = [fold for fold in chosen or () if fold not in numbers]
        if wrong:
            known = f"Folds with sites are {', '.join(map(str, numbers))}."
            raise InputError(f'Split "{split}"', f"fold {wrong[0]} holds no site.", known, "Choose one of them.")
        for text in dealt.folds.notes:
            workshop.note(f"{split}, seed {seed}: {text}")
        missing = sorted(set(range(len(dealt.folds.train))) - set(numbers))
        if missing:
            workshop.note(f"{split}, seed {seed}: no site is in fold {', '.join(map(str, missing))}; left out")
        start = workshop.pretrained()
        fitted: Dict[int, Fitted] = {}
        for fold in numbers:
            if chosen is None or fold in chosen or workshop.is_finished(dealt.stage(fold)):
                learned = workshop.sites.subset(dealt.folds.train[fold])
                fitted[fold] = workshop.fitted(dealt.stage(fold), learned, seed, start)
        left = [fold for fold in numbers if fold not in fitted]
        if left:
            workshop.note(f"{split}, seed {seed}: folds {', '.join(map(str, left))} are not fitted yet")
        elif workshop.means.world.leads:
            written += _predict(workshop, dealt, fitted)
    workshop.means.world.barrier()
    return written


def _predict(workshop: Workshop, dealt: _Dealt, fitted: Dict[int, Fitted]) -> List[Path]:
    """Ask every fold's networks at its sites and store one file per task."""
    config, sites = workshop.run.config, workshop.sites
    found = {task: np.full((len(sites), outputs), np.nan) for task, outputs in config.model.tasks.items()}
    for fold, (networks, _) in fitted.items():
        held = np.flatnonzero(dealt.folds.fold == fold)
        answers = ask(networks, workshop.scene, sites.x[held], sites.y[held], config.recipe, workshop.means.stop)
        for task, values in answers.items():
            found[task][held] = values
    paths = []
    for task, values in found.items():
        judged = sites.labelled(task) & (dealt.folds.fold >= 0)
        probability = values[judged]
        if probability.shape[1] == 1:
            probability = np.concatenate([1.0 - probability, probability], axis=1)
        paths.append(
            OutOfFold(
                model=MODEL,
                task=task,
                split=dealt.folds.name,
                seed=dealt.seed,
                classes=CLASSES[task],
                id=sites.id[judged],
                x=sites.x[judged],
                y=sites.y[judged],
                label=sites.labels[task][judged],
                fold=dealt.folds.fold[judged],
                cluster=dealt.folds.cluster[judged],
                probability=probability / probability.sum(axis=1, keepdims=True),
                facts={
                    **_facts(workshop, sum(seconds for _, seconds in fitted.values())),
                    "split": dealt.folds.facts,
                },
            ).save(workshop.run.folder / FOLDER)
        )
    return paths


def _facts(workshop: Workshop, seconds: float) -> Dict[str, Any]:
    config, weights = workshop.run.config, workshop.run.data.satlas
    started: Dict[str, Any] = {}
    if weights is not None:
        sha256 = weights.file.sha256
        started = {"satlas": {"group": weights.group, "file": Path(weights.path).name, "sha256": sha256}}
    parameters = sum(value.numel() for value in Miso(config.model).parameters())
    return {
        "simulated": workshop.run.dataset.simulated,
        "dataset": config.dataset,
        "tasks": list(config.tasks),
        "recipe": to_json(config.recipe),
        "parameters": parameters,
        **started,
        "seconds_fitting": round(seconds, 1),
        "environment": runs.environment(),
    }
