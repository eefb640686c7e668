"""The manifest of a model folder: what the user supplies, what the network sees, what it answers, how good it is.

Standard library only, so that the plugin reads it without the engine's environment. The file is ``manifest.json``;
digests are not in it but in ``SHA256SUMS`` beside it. This module owns the manifest's form; who derives the channels
is ``covariates``, who runs the graphs is ``session``.

Graphs. ``encoder.onnx`` takes one input per group, named as the group, float32 (N, C, size, size), in the channels'
own units with NaN where a value is missing, and returns per-cell maps. ``decoder.onnx`` takes these maps by the names
that the encoder gives them, and ``rows`` (R,) and ``columns`` (Q,), float32: pixel coordinates in the window, where
the centre of pixel i is at i + 0.5. It returns one output per task, named as the task, float32 (N, K, R, Q):
probabilities (K = 1 for NSP). ``rf_<task>.onnx`` takes ``features`` (M, F) and returns ``probabilities`` (M, K).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from .errors import ModelFolderError
from .schema import SchemaError, from_json, to_json

FORMAT = 1
TERRAIN_PREFIX = "terrain."


@dataclass(frozen=True)
class InputSpec:
    """A raster that the user supplies.

    Attributes:
        kind: ``continuous`` (warped bilinearly) or ``classes`` (nearest).
        title: Words for the user: "Digital elevation model".
        unit: Unit as the user reads it, empty for classes.
        range: Legal values (lowest, highest), inclusive, for continuous inputs.
        training_resolution_m: Pixel size of this input in training.
        legend: Code -> label, for classes.
        aliases: Words by which a layer of this kind is recognised, lower case.
    """

    kind: str
    title: str
    unit: str = ""
    range: Optional[Tuple[float, float]] = None
    training_resolution_m: Optional[float] = None
    legend: Optional[Dict[str, str]] = None
    aliases: Tuple[str, ...] = ()


@dataclass(frozen=True)
class ChannelSpec:
    """One channel of a group.

    Attributes:
        name: Covariate name, unique in the model.
        from_: Name of the input it is made from.
        by: ``value``; ``one_hot`` (1 where the input equals ``value``, else 0); or ``terrain.<covariate>`` with
            covariate one of elevation, aspect_sin, aspect_cos, slope, maximum_curvature,
            topographic_position_index, stream_power_index, saga_wetness_index.
        value: Class code for ``one_hot``.
        unit: Unit of the channel.
        range: Lowest and highest value in training, for the report.
    """

    name: str
    from_: str
    by: str = "value"
    value: Optional[int] = None
    unit: str = ""
    range: Optional[Tuple[float, float]] = None


@dataclass(frozen=True)
class GroupSpec:
    """One modality: the channels that one encoder sees, in order."""

    name: str
    channels: Tuple[ChannelSpec, ...]


@dataclass(frozen=True)
class TerrainSpec:
    """How terrain is derived for this model.

    Attributes:
        resolution_m: DEM pixel size in training.
        tpi_statistics: Mean and standard deviation of the small- and the large-scale position index over the training
            raster: (mean_1, sd_1, mean_4, sd_4), metres.
    """

    resolution_m: float
    tpi_statistics: Tuple[float, float, float, float]


@dataclass(frozen=True)
class WindowSpec:
    """Windows of the network.

    Attributes:
        size_px: Side of the square window.
        resolution_m: Pixel size of training.
        stride_px: Step between window origins in prediction.
        decode_px: Side of the central square that is decoded and blended.
        weight: Shape of the blend weight: ``gaussian`` (minus its edge value) or ``cosine``.
        disagreement: Measured mean absolute difference of overlapping windows (D), for the report.
    """

    size_px: int = 256
    resolution_m: float = 10.0
    stride_px: int = 160
    decode_px: int = 192
    weight: str = "cosine"
    disagreement: Optional[float] = None


@dataclass(frozen=True)
class TaskSpec:
    """What is predicted.

    Attributes:
        title: "Near-surface permafrost".
        classes: Names of the outputs in order; one name for a binary task.
        definition: What the probability is a probability of, in the field's words.
        thresholds: Named thresholds per model: {"miso": {"equal_recall": 0.41}, "rf": {...}}.
        curves: Out-of-fold curves: {model: {split: {"threshold": [...], "precision": [...], "recall": [...]}}}.
        calibration: How the probabilities were calibrated, free form.
    """

    title: str
    classes: Tuple[str, ...]
    definition: str
    thresholds: Dict[str, Dict[str, float]] = field(default_factory=dict)
    curves: Dict[str, Any] = field(default_factory=dict)
    calibration: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ForestFeature:
    """One feature of the Random Forest: a channel's mean in a disc, or a coordinate.

    Attributes:
        channel: Channel name, or ``x`` / ``y`` for the pixel centre in EPSG:3338 metres.
        buffer_m: Radius of the disc; 0 takes the pixel itself.
    """

    channel: str
    buffer_m: float = 0.0


@dataclass(frozen=True)
class ForestSpec:
    """The Random Forest of one task."""

    file: str
    features: Tuple[ForestFeature, ...]


@dataclass(frozen=True)
class Manifest:
    """A model folder's description. See the module for the graphs' interface.

    ``scores["comparison"]``, if there, is a sentence for the user on how the models compare in validation.
    """

    format: int
    name: str
    title: str
    version: str
    licence: str
    citation: str
    simulated: bool
    inputs: Dict[str, InputSpec]
    groups: Tuple[GroupSpec, ...]
    tasks: Dict[str, TaskSpec]
    window: WindowSpec = field(default_factory=WindowSpec)
    terrain: Optional[TerrainSpec] = None
    forests: Dict[str, ForestSpec] = field(default_factory=dict)
    domain: Dict[str, Any] = field(default_factory=dict)
    applicability: Dict[str, Any] = field(default_factory=dict)
    scores: Dict[str, Any] = field(default_factory=dict)
    trained: Dict[str, Any] = field(default_factory=dict)
    limits: List[str] = field(default_factory=list)

    @property
    def comparison(self) -> str:
        """How the folder's models compare in validation, for the user; empty if it was not measured."""
        sentence = self.scores.get("comparison", "")
        return sentence if isinstance(sentence, str) else ""

    @property
    def channels(self) -> Tuple[ChannelSpec, ...]:
        """All channels, group after group."""
        return tuple(channel for group in self.groups for channel in group.channels)


def parse_manifest(text: str, where: str) -> Manifest:
    """Read a manifest's text; ``where`` names it in messages.

    Raises:
        ModelFolderError: If it is not JSON, of another format, not of the declared form, or contradicts itself.
    """
    needed = "A manifest.json of format 1 as docs/architecture.md describes it is needed."
    remedy = "Copy the model folder again from where you got it."
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise SchemaError(f"format {data.get('format')!r} is not {FORMAT}")
        manifest = from_json(Manifest, data, "manifest")
        _check(manifest)
    except ValueError as error:
        raise ModelFolderError(f'Model manifest "{where}"', f"{error}.", needed, remedy) from error
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read ``folder/manifest.json`` without checking digests (the engine does that before it makes a session).

    Raises:
        ModelFolderError: If the file is missing or not a valid manifest.
    """
    path = Path(folder) / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(
            f'Model folder "{folder}"',
            f"manifest.json cannot be read ({error}).",
            "A folder with manifest.json, encoder.onnx, decoder.onnx and SHA256SUMS is needed.",
            "Choose another model folder, or copy this one again from where you got it.",
        ) from error
    return parse_manifest(text, str(path))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``folder/manifest.json`` in a stable form."""
    text = json.dumps(to_json(manifest), indent=1, ensure_ascii=False, allow_nan=False)
    (Path(folder) / "manifest.json").write_bytes((text + "\n").encode("utf-8"))


def _check(manifest: Manifest) -> None:
    names = [channel.name for channel in manifest.channels]
    if len(set(names)) != len(names):
        raise SchemaError("two channels have the same name")
    for channel in manifest.channels:
        if channel.from_ not in manifest.inputs:
            raise SchemaError(f"channel {channel.name!r} comes from {channel.from_!r}, which is not an input")
        if channel.by == "one_hot" and channel.value is None:
            raise SchemaError(f"channel {channel.name!r} is one_hot and has no value")
        if channel.by.startswith(TERRAIN_PREFIX) and manifest.terrain is None:
            raise SchemaError(
                f"channel {channel.name!r} is derived from terrain, but the manifest has no terrain entry"
            )
    for task, forest in manifest.forests.items():
        for feature in forest.features:
            if feature.channel not in names and feature.channel not in ("x", "y"):
                raise SchemaError(f"forest {task!r} uses {feature.channel!r}, which is not a channel")
