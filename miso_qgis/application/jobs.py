"""What a run is asked to do and what it yields: plain values between the panel, the algorithms and the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Sequence

from ..engine.errors import InputError, OutputError, Problem
from ..engine.manifest import Manifest, read_manifest
from .styling import DIFFERENCE, DISAGREEMENT, DOMINANT, ORDER_PERCENT, ORDER_PROBABILITY, PERCENT, PROBABILITY

MISO_MODEL, RF_MODEL = "miso", "rf"
MODELS = (MISO_MODEL, RF_MODEL)
MODEL_TITLES = {MISO_MODEL: "MISO", RF_MODEL: "Random Forest"}
PROVIDERS = ("auto", "cpu", "cuda")
TASK = "nsp"
ORDER_TASK = "soil_order"
TASKS = (TASK, ORDER_TASK)  # what the plugin can show

NSP_MISO = "nsp_probability_miso"
NSP_RF = "nsp_probability_rf"
NSP_DISAGREEMENT = "nsp_disagreement"
NSP_DIFFERENCE = "nsp_difference"
ORDER_MISO = "soil_order_probability_miso"
ORDER_RF = "soil_order_probability_rf"
DOMINANT_MISO = "soil_order_dominant_miso"
DOMINANT_RF = "soil_order_dominant_rf"
SUMMARY = "summary"
PROBABILITY_KEYS = {MISO_MODEL: NSP_MISO, RF_MODEL: NSP_RF}


@dataclass(frozen=True)
class ResultLayer:
    """A raster of a run as it appears in the project.

    Attributes:
        key: Key of the result.
        path: Its file.
        name: Name of the layer.
        style: Word of its style.
    """

    key: str
    path: Path
    name: str
    style: str


def result_keys(manifest: Manifest, models: Sequence[str]) -> List[str]:
    """Return the rasters that a prediction can give: of the model's tasks, by those of ``models`` that it has."""
    keys: List[str] = []
    for task in (task for task in TASKS if task in manifest.tasks):
        able = [m for m in MODELS if m in models and (m == MISO_MODEL or task in manifest.forests)]
        keys += [f"{task}_probability_{model}" for model in able]
        if task == ORDER_TASK:
            keys += [f"{task}_dominant_{model}" for model in able]
        elif len(able) == len(MODELS):
            keys += [NSP_DISAGREEMENT, NSP_DIFFERENCE]  # the comparison needs both
    return keys


def marked(name: str, simulated: bool) -> str:
    """Return a layer's or group's name with a mark that survives in a saved project where the model is simulated."""
    return f"Simulated: {name}" if simulated else name


def layer_name(key: str, threshold: str = "", simulated: bool = False) -> str:
    """Return the name of a result's layer; the classes carry the threshold that they were made with."""
    names = {
        NSP_MISO: "Permafrost probability (MISO)",
        NSP_RF: "Permafrost probability (Random Forest)",
        NSP_DISAGREEMENT: f"MISO and RF at threshold {threshold}" if threshold else "MISO and RF",
        NSP_DIFFERENCE: "Difference of probability (MISO - RF)",
        DOMINANT_MISO: "Most probable soil order (MISO)",
        DOMINANT_RF: "Most probable soil order (Random Forest)",
        # What is drawn of the seven bands; the others are a choice of band away.
        ORDER_MISO: "Soil order probabilities (MISO), Gelisols shown",
        ORDER_RF: "Soil order probabilities (Random Forest), Gelisols shown",
    }
    return marked(names[key], simulated)


def layer_style(key: str, percent: bool) -> str:
    """Return the word of a result's style."""
    if key in (NSP_MISO, NSP_RF):
        return PERCENT if percent else PROBABILITY
    if key in (ORDER_MISO, ORDER_RF):
        return ORDER_PERCENT if percent else ORDER_PROBABILITY
    if key in (DOMINANT_MISO, DOMINANT_RF):
        return DOMINANT
    return DISAGREEMENT if key == NSP_DISAGREEMENT else DIFFERENCE


def result_layers(outputs: Dict[str, str], threshold: str, percent: bool, simulated: bool = False) -> List[ResultLayer]:
    """Return the rasters among a result's outputs as layers, the most telling on top."""
    order = (NSP_DISAGREEMENT, NSP_MISO, NSP_RF, NSP_DIFFERENCE, DOMINANT_MISO, DOMINANT_RF, ORDER_MISO, ORDER_RF)
    return [
        ResultLayer(key, Path(outputs[key]), layer_name(key, threshold, simulated), layer_style(key, percent))
        for key in order
        if key in outputs
    ]


def threshold_text(first: float, second: float) -> str:
    """Write one threshold, or two that differ: "0.5", "0.41 / 0.5"."""
    return f"{first:g}" if first == second else f"{first:g} / {second:g}"


def read_model(folder: Path) -> Manifest:
    """Read a model folder's manifest and refuse a model that cannot do what the plugin offers.

    Raises:
        ModelFolderError: If the manifest cannot be used.
        InputError: If the model predicts neither near-surface permafrost nor soil orders.
    """
    manifest = read_manifest(folder)
    if not set(TASKS) & set(manifest.tasks):
        raise InputError(
            f'Model "{manifest.title}"',
            f"it predicts {', '.join(manifest.tasks) or 'nothing'}.",
            "A model of near-surface permafrost (task nsp) or of soil orders (task soil_order) is needed.",
            "Choose another model folder.",
        )
    return manifest


def model_problems(manifest: Manifest, models: Sequence[str]) -> List[Problem]:
    """Return what a model folder lacks for the wanted models."""
    if RF_MODEL in models and not set(TASKS) & set(manifest.forests):
        return [
            Problem(
                f'Model "{manifest.title}"',
                "its folder has no Random Forest.",
                "",
                "Predict with MISO alone, or choose another model folder.",
            )
        ]
    return []


def output_problems(outputs: Dict[str, str], inputs: Dict[str, str]) -> List[Problem]:
    """Return results that would overwrite an input, or one another."""
    problems: List[Problem] = []
    read = {_same(path): name for name, path in inputs.items()}
    written: Dict[str, str] = {}
    for key, path in outputs.items():
        if _same(path) in read:
            found = f"it is also the input {read[_same(path)]}."
            problems.append(Problem(f'Output "{path}"', found, "", "Choose another file for the result."))
        elif _same(path) in written:
            problems.append(
                Problem(
                    f'Output "{path}"',
                    f"it is named for {written[_same(path)]} and for {key}.",
                    "",
                    "Choose two files.",
                )
            )
        written[_same(path)] = key
    return problems


def _same(path: str) -> str:
    return str(Path(path).resolve()).casefold()


def make_folders(paths: Iterable[str]) -> None:
    """Make the folders of results.

    Raises:
        OutputError: If one cannot be made.
    """
    for folder in {Path(path).parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f'Folder "{folder}"',
                f"it cannot be made ({error.strerror}).",
                "Results need a folder that you may write to.",
                "Choose another folder.",
            ) from error
