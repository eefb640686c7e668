"""What a run is asked to do and what it yields: plain values between the panel, the algorithms and the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Sequence

from ..engine.errors import InputError, OutputError, Problem
from ..engine.manifest import Manifest, read_manifest
from .styling import DIFFERENCE, DISAGREEMENT, PERCENT, PROBABILITY

MISO_MODEL, RF_MODEL = "miso", "rf"
MODELS = (MISO_MODEL, RF_MODEL)
MODEL_TITLES = {MISO_MODEL: "MISO", RF_MODEL: "Random Forest"}
PROVIDERS = ("auto", "cpu", "cuda")
TASK = "nsp"

NSP_MISO = "nsp_probability_miso"
NSP_RF = "nsp_probability_rf"
NSP_DISAGREEMENT = "nsp_disagreement"
NSP_DIFFERENCE = "nsp_difference"
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


def result_keys(models: Sequence[str]) -> List[str]:
    """Return the rasters that a prediction with these models can give; the comparison needs both."""
    keys = [PROBABILITY_KEYS[model] for model in MODELS if model in models]
    return [*keys, NSP_DISAGREEMENT, NSP_DIFFERENCE] if len(keys) == len(MODELS) else keys


def layer_name(key: str, threshold: str = "") -> str:
    """Return the name of a result's layer; the classes carry the threshold that they were made with."""
    return {
        NSP_MISO: "Permafrost probability (MISO)",
        NSP_RF: "Permafrost probability (Random Forest)",
        NSP_DISAGREEMENT: f"MISO and RF at threshold {threshold}" if threshold else "MISO and RF",
        NSP_DIFFERENCE: "Difference of probability (MISO - RF)",
    }[key]


def layer_style(key: str, percent: bool) -> str:
    """Return the word of a result's style."""
    if key in (NSP_MISO, NSP_RF):
        return PERCENT if percent else PROBABILITY
    return DISAGREEMENT if key == NSP_DISAGREEMENT else DIFFERENCE


def result_layers(outputs: Dict[str, str], threshold: str, percent: bool) -> List[ResultLayer]:
    """Return the rasters among a result's outputs as layers, the most telling on top."""
    order = (NSP_DISAGREEMENT, NSP_MISO, NSP_RF, NSP_DIFFERENCE)
    return [
        ResultLayer(key, Path(outputs[key]), layer_name(key, threshold), layer_style(key, percent))
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
        InputError: If the model does not predict near-surface permafrost.
    """
    manifest = read_manifest(folder)
    if TASK not in manifest.tasks:
        raise InputError(
            f'Model "{manifest.title}"',
            f"it predicts {', '.join(manifest.tasks) or 'nothing'}.",
            "A model of near-surface permafrost (task nsp) is needed.",
            "Choose another model folder.",
        )
    return manifest


def model_problems(manifest: Manifest, models: Sequence[str]) -> List[Problem]:
    """Return what a model folder lacks for the wanted models."""
    if RF_MODEL in models and TASK not in manifest.forests:
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
