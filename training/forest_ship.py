"""A Random Forest into a model folder: fitted on all sites, exported, compared with scikit-learn, in the manifest."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import onnxruntime
import sklearn
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError, Problem, RuntimeFailure
from miso_qgis.engine.manifest import FORMAT, ForestSpec, Manifest, TaskSpec, read_manifest, write_manifest

from .dataset import Dataset
from .forest import Recipe, Split, Tables, make, usable_sites
from .forest_export import EXACT, PARITY, export_forest
from .forest_fit import FittedForest, count_classes
from .sites import CLASSES, Sites

CHECKED_ROWS = 20_000


@dataclass(frozen=True)
class Shipped:
    """A forest in a model folder.

    Attributes:
        path: The graph.
        forest: What was fitted on all labelled sites.
        buffer_m: Radius of its discs.
        size_bytes: Of the graph.
        largest_difference: Of a probability from scikit-learn's.
        labels_differing: Of ``rows`` rows, how many get another most probable class than scikit-learn's. In an exact
            graph these are ties, which scikit-learn breaks by the last bit of a float64 sum.
        rows: Rows compared.
    """

    path: Path
    forest: FittedForest
    buffer_m: float
    size_bytes: int
    largest_difference: float
    labels_differing: int
    rows: int

    def __str__(self) -> str:
        """Say what was written and how it compares with scikit-learn."""
        # Probabilities that agree so well can only differ in the order of classes that are equally probable.
        ties = ", ties" if self.labels_differing and self.largest_difference <= PARITY else ""
        return (
            f"{self.path}: {self.forest.settings}, discs of {self.buffer_m:g} m, {self.size_bytes / 1e6:.1f} MB; "
            f"largest difference from scikit-learn {self.largest_difference:.1g}, "
            f"{self.labels_differing} of {self.rows:,} labels differ{ties}"
        )


def ship(
    dataset: Dataset, tables: Tables, sites: Sites, task: str, split: Split, recipe: Recipe, folder: Path
) -> Shipped:
    """Fit a forest on all labelled sites and write it into a model folder, with its entry in the manifest.

    A folder without a manifest gets one for the forests alone. Graph, manifest and SHA256SUMS each take their name when
    they are complete; between two of them the digests do not fit and the engine refuses the folder.

    Args:
        dataset: Describes inputs and channels.
        tables: Features of the sites by radius.
        sites: The sites.
        task: Key of :data:`training.sites.CLASSES`.
        split: Its clusters are what the search does not part.
        recipe: How the forest is made and compressed.
        folder: Model folder.

    Raises:
        InputError: If the training sites are of fewer than two classes, or the folder's manifest has another task or
            other channels.
        RuntimeFailure: If an uncompressed graph does not answer what scikit-learn answers; nothing is written then.
    """
    manifest = manifest_for(dataset, task, folder)
    learn = usable_sites(tables, sites, task)
    made = make(tables, learn, sites.labels[task], split, task, recipe, "all sites")
    table = tables[made.buffer_m]
    content = export_forest(made.forest.model, len(CLASSES[task]), recipe.compression).SerializeToString(
        deterministic=True
    )
    rows = mixed_rows(table.values[learn], CHECKED_ROWS, recipe.seed)
    difference, labels = compare_with_model(content, made.forest, rows)
    if recipe.compression == EXACT and not difference <= PARITY:
        raise RuntimeFailure(
            "Exported Random Forest",
            f"differs from scikit-learn by {difference:.2g}.",
            f"At most {PARITY:g} is allowed.",
            "Nothing was written; look for a change in scikit-learn's trees or in ONNX Runtime.",
        )
    spec = ForestSpec(f"rf_{task}.onnx", table.features)
    trained = {
        "settings": asdict(made.forest.settings),
        "buffer_m": made.buffer_m,
        "compression": asdict(recipe.compression),
        "sites": count_classes(sites.labels[task][learn], task),
        "scikit-learn": sklearn.__version__,
    }
    _write_folder(folder, manifest, task, spec, content, trained)
    return Shipped(folder / spec.file, made.forest, made.buffer_m, len(content), difference, labels, len(rows))


def mixed_rows(features: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """Return rows to compare answers on: the sites' own, then rows that draw each column from another site."""
    generator = np.random.default_rng(seed)
    more = max(count - len(features), 0)
    drawn = np.stack([column[generator.integers(len(column), size=more)] for column in features.T], axis=1)
    return np.ascontiguousarray(np.concatenate([features, drawn])[:count], np.float32)


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    """Return a session with one thread, as the engine makes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def class_probabilities(found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a graph's answer with a column for every class: (M, 1) of a binary task becomes (M, 2)."""
    wide = found.astype(np.float64)
    return np.concatenate([1.0 - wide, wide], axis=1) if wide.shape[1] == 1 else wide


def compare_with_model(content: bytes, forest: FittedForest, features: NDArray[np.float32]) -> Tuple[float, int]:
    """Return the largest difference of a probability between graph and forest, and how many labels differ."""
    (answer,) = session_of(content).run(None, {"features": features})
    found, expected = class_probabilities(answer), forest.probabilities(features)
    return float(np.abs(found - expected).max()), int((found.argmax(axis=1) != expected.argmax(axis=1)).sum())


def manifest_for(dataset: Dataset, task: str, folder: Path) -> Manifest:
    """Return the folder's manifest, or a new one for the dataset's forests; checked before anything is fitted."""
    if not (folder / "manifest.json").is_file():
        return Manifest(
            format=FORMAT,
            name=dataset.name,
            title=f"Random Forest, {dataset.title}",
            version="0",
            licence=dataset.licence,
            citation=dataset.citation,
            simulated=dataset.simulated,
            inputs=dataset.inputs,
            groups=dataset.groups,
            tasks={name: _task_spec(name) for name in dataset.tasks},
            terrain=dataset.terrain,
        )
    manifest = read_manifest(folder)
    problems: List[Problem] = []
    name, remedy = f'Model folder "{folder}"', "Choose the folder of this dataset's model, or an empty one."
    have, want = {c.name for c in manifest.channels}, [channel.name for channel in dataset.channels]
    lacking = [channel for channel in want if channel not in have]
    if lacking:
        needed = "The forest needs the dataset's channels."
        problems.append(Problem(name, f"its manifest has no channel {', '.join(lacking)}.", needed, remedy))
    if task not in manifest.tasks:
        found = f"its tasks are {', '.join(manifest.tasks)}."
        problems.append(Problem(name, found, f"The task {task} is needed.", remedy))
    elif len(manifest.tasks[task].classes) not in (len(CLASSES[task]), 1 if len(CLASSES[task]) == 2 else -1):
        found = f"its task {task} has {len(manifest.tasks[task].classes)} classes."
        problems.append(Problem(name, found, f"{len(CLASSES[task])} are needed.", remedy))
    if manifest.simulated != dataset.simulated:
        words = {True: "simulated", False: "real"}
        found = f"it is of {words[manifest.simulated]} data, the dataset is {words[dataset.simulated]}."
        problems.append(Problem(name, found, "Both must be of one kind.", remedy))
    if problems:
        raise InputError.of(problems)
    return manifest


def _task_spec(task: str) -> TaskSpec:
    if task == "nsp":
        return TaskSpec("Near-surface permafrost", ("near-surface permafrost",), "permafrost within 1 m of the surface")
    return TaskSpec("Soil order", CLASSES[task], "order of the soil (Soil Taxonomy) at the site")


def _write_folder(
    folder: Path, manifest: Manifest, task: str, spec: ForestSpec, content: bytes, trained: Dict[str, Any]
) -> None:
    from .bundle import write_sums

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{spec.file}.part"
    part.write_bytes(content)
    forests = dict(manifest.trained.get("random_forest", {}))
    updated = replace(
        manifest,
        forests={**manifest.forests, task: spec},
        trained={**manifest.trained, "random_forest": {**forests, task: trained}},
    )
    os.replace(part, folder / spec.file)
    write_manifest(updated, folder)
    write_sums(folder)
