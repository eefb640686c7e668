"""What a network is made of and how it is trained: frozen values that travel into the run folder and the export.

A *feature* is what an encoder sees of a raw channel (or of a pair of them) after pooling, context and scaling; which
features there are is data, so that another model can have other groups. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, List, Sequence, Tuple

FEATURE_KINDS = ("value", "mean", "relative", "gradient")
CURVES = ("linear", "asinh")


@dataclass(frozen=True)
class FeatureConfig:
    """One feature of an encoder's input.

    Attributes:
        kind: ``value`` (the channel), ``mean`` (its mean in a square of ``radius_m``), ``relative`` (the channel minus
            that mean) or ``gradient`` (two channels, a sine or cosine of aspect and a slope in degrees: the mean of
            their product with the slope's tangent, that is a component of the downslope gradient).
        channels: Raw channels, one or (for ``gradient``) two.
        radius_m: Half the side of the square; 0 is the cell itself.
        curve: ``linear`` or ``asinh``, applied after centring and scaling by ``scale``.
        centre: Subtracted, in the feature's unit.
        scale: Divisor, in the feature's unit, positive.
        limit: The scaled value is clipped to [-limit, limit], so that an extreme cell elsewhere stays in reach.
    """

    kind: str
    channels: Tuple[str, ...]
    radius_m: float = 0.0
    curve: str = "linear"
    centre: float = 0.0
    scale: float = 1.0
    limit: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in FEATURE_KINDS:
            raise ValueError(f"feature kind {self.kind!r} is not one of {', '.join(FEATURE_KINDS)}")
        if self.curve not in CURVES:
            raise ValueError(f"curve {self.curve!r} is not one of {', '.join(CURVES)}")
        if len(self.channels) != (2 if self.kind == "gradient" else 1):
            raise ValueError(f"a {self.kind} feature of {len(self.channels)} channels makes no sense: {self.channels}")
        if not self.scale > 0:
            raise ValueError(f"scale of {self.kind} {self.channels} must be positive, is {self.scale}")


@dataclass(frozen=True)
class GroupConfig:
    """One modality: its raw channels in order, and the features that its encoder sees."""

    name: str
    channels: Tuple[str, ...]
    features: Tuple[FeatureConfig, ...]

    def __post_init__(self) -> None:
        for feature in self.features:
            missing = [channel for channel in feature.channels if channel not in self.channels]
            if missing:
                raise ValueError(f"feature {feature.kind} of group {self.name!r} needs {missing}, not in the group")


@dataclass(frozen=True)
class SizeConfig:
    """Widths and depths of the network.

    Attributes:
        window_px: Side of the input window.
        resolution_m: Pixel size.
        cell_px: Raw pixels are averaged in squares of this side before anything else; the bundled model's sources are
            50 m rasters, so pixels of 10 m hold nothing that 40 m cells do not.
        patch_px: Side of a token of the first stage; a multiple of ``cell_px``.
        channels: Width of the first stage; it doubles from stage to stage.
        depths: Attention blocks per stage; a stage of 0 hands its embedded tokens on.
        head_channels: Width of one attention head.
        attention_window: Side of Swin's attention window, in tokens.
        expansion: Width of a block's MLP over the block's own width.
        position_hidden: Hidden width of the continuous position bias.
        implicit_widths: The two hidden widths of an implicit function, at every stage.
        implicit_widths_by_stage: The same stage by stage, where they differ; empty: ``implicit_widths`` everywhere.
        embedding: D, the width of all embeddings.
        frequencies: L of the geographic encoding.
        dropout: Share of embedding entries dropped before each mapper in training.
        offset_gain: Factor of the offset in implicit functions. Where the rasters hold nothing finer than a token, what
            a function makes of the offset is a ripple of the tokens' period; a small factor lets it learn that slowly.
    """

    window_px: int = 256
    resolution_m: float = 10.0
    cell_px: int = 4
    patch_px: int = 8
    channels: int = 32
    depths: Tuple[int, ...] = (2, 2, 2, 2)
    head_channels: int = 16
    attention_window: int = 8
    expansion: int = 4
    position_hidden: int = 64
    implicit_widths: Tuple[int, int] = (32, 64)
    embedding: int = 64
    frequencies: int = 10
    dropout: float = 0.0
    offset_gain: float = 1.0
    implicit_widths_by_stage: Tuple[Tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.implicit_widths_by_stage and len(self.implicit_widths_by_stage) != len(self.depths):
            raise ValueError(
                f"{len(self.implicit_widths_by_stage)} pairs of implicit widths do not fit {len(self.depths)} stages"
            )
        if self.patch_px % self.cell_px or self.window_px % self.patch_px:
            raise ValueError("cell_px must divide patch_px, and patch_px must divide window_px")
        for stage, depth in enumerate(self.depths):
            heads = max(1, self.width(stage) // self.head_channels)
            if depth and self.width(stage) % heads:
                raise ValueError(
                    f"head_channels {self.head_channels} makes {heads} heads of the {self.width(stage)} channels of "
                    f"stage {stage + 1}, which cannot be shared out evenly; a divisor of channels ({self.channels}) can"
                )
        if self.tokens(len(self.depths) - 1) < 1 or self.tokens(0) % 2 ** (len(self.depths) - 1):
            raise ValueError(f"{self.tokens(0)} tokens a side cannot be merged {len(self.depths) - 1} times")

    def tokens(self, stage: int) -> int:
        """Side of the map of ``stage`` (0 first), in tokens."""
        return self.window_px // self.patch_px >> stage

    def width(self, stage: int) -> int:
        """Channels of the map of ``stage``."""
        return self.channels << stage

    def implicit(self, stage: int) -> Tuple[int, int]:
        """Hidden widths of the implicit function of ``stage``."""
        return self.implicit_widths_by_stage[stage] if self.implicit_widths_by_stage else self.implicit_widths


# `paper` is Swin-B twice with D = 1024: 205 M parameters with the paper's geographic encoder. (The released code's own
# comes to 212 M with its larger geographic branch and an unused classifier.) `small` has 5.9 M.
SIZES: Dict[str, SizeConfig] = {
    "small": SizeConfig(channels=36, head_channels=12),
    "paper": SizeConfig(
        cell_px=1,
        patch_px=4,
        channels=128,
        depths=(2, 2, 18, 2),
        head_channels=32,
        position_hidden=512,
        implicit_widths=(256, 512),
        embedding=1024,
        # Of D = 1024: D/4, D/2; D/4, D/2; D/2, D; D, D (each after the stage's own channels and the offset's two).
        implicit_widths_by_stage=((256, 512), (256, 512), (512, 1024), (1024, 1024)),
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """A network.

    Attributes:
        groups: Its modalities.
        size: Its widths and depths.
        tasks: Name -> number of outputs; 1 is a binary task.
        views: Sets of groups whose embeddings are summed; the logits of all views are averaged, and each view is
            trained. Empty: one view, of all groups. A second view without a group keeps the answer from resting on that
            group alone where its classes mean something else than in training.
    """

    groups: Tuple[GroupConfig, ...]
    size: SizeConfig = field(default_factory=SizeConfig)
    tasks: Dict[str, int] = field(default_factory=lambda: {"nsp": 1})
    views: Tuple[Tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        names = {group.name for group in self.groups}
        for view in self.views:
            if not view or not set(view) <= names:
                raise ValueError(f"view {view} must name groups of {sorted(names)}")

    @property
    def all_views(self) -> Tuple[Tuple[str, ...], ...]:
        """The views, at least one."""
        return self.views or (tuple(group.name for group in self.groups),)


@dataclass(frozen=True)
class PretrainConfig:
    """Contrastive pretraining on windows without labels.

    Attributes:
        steps: Optimiser steps.
        batch: Windows per step.
        locations: Uniform locations per window.
        learning_rate: Peak of the cosine schedule.
        temperature: Of InfoNCE.
        geo_weight: Weight of the visual-geo loss beside the modality-modality loss.
    """

    steps: int = 120
    batch: int = 8
    locations: int = 48
    learning_rate: float = 1e-3
    temperature: float = 0.1
    geo_weight: float = 1.0


@dataclass(frozen=True)
class FitConfig:
    """Fine-tuning on labelled points.

    Attributes:
        steps: Optimiser steps, fixed: blocks disagree about when to stop, averaged weights make it harmless.
        batch: Windows per step.
        points: At most this many labelled points are asked per window.
        learning_rate: Peak of the cosine schedule.
        warmup: Share of the steps in which the rate rises linearly.
        weight_decay: AdamW's, on matrices only.
        clip: Largest norm of the gradient.
        average_decay: Per-step decay of the averaged weights.
        contrastive_weight: Weight of the contrastive losses kept on during fine-tuning.
        smoothing: Labels are drawn towards one half by this share.
        group_dropout: Chance that a window misses one whole group.
        feature_dropout: Chance of each feature to be missing in a window.
        flips: Mirror windows; aspect stays the true azimuth, only places are mirrored.
        negated: Channels whose sign is turned in a random half of the windows: a symmetry that the answer should have.
            With the sine of aspect, a slope counts the same whether it faces east or west, as the sun sees it.
    """

    steps: int = 300
    batch: int = 8
    points: int = 384
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    average_decay: float = 0.985
    contrastive_weight: float = 0.0
    smoothing: float = 0.0
    group_dropout: float = 0.0
    feature_dropout: float = 0.0
    flips: bool = True
    negated: Tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingConfig:
    """Everything a run is determined by, beside data and seed.

    Attributes:
        pretrain: Contrastive stage.
        fit: Supervised stage.
        members: Networks whose logits are averaged; member i is seeded from the run's seed and i.
        temperature: Logits are divided by it (calibrated on held-out sectors; above 1 softens).
    """

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    members: int = 1
    temperature: float = 1.0


def terrain_features(context_m: Sequence[float] = (200.0, 500.0, 1000.0)) -> Tuple[FeatureConfig, ...]:
    """Features of the bundled model's terrain group (scales are fitted later).

    Elevation enters relative to its surroundings as well, since the height of a valley floor differs from valley to
    valley while its being a floor does not.
    """
    gradients = [
        FeatureConfig("gradient", (part, "slope"), radius_m)
        for radius_m in (0.0, 150.0, 300.0)
        for part in ("aspect_sin", "aspect_cos")
    ]
    values = [
        FeatureConfig("value", ("elevation",)),
        FeatureConfig("value", ("aspect_sin",)),
        FeatureConfig("value", ("aspect_cos",)),
        FeatureConfig("value", ("slope",)),
        FeatureConfig("value", ("maximum_curvature",), curve="asinh"),
        FeatureConfig("value", ("topographic_position_index",), curve="asinh"),
        FeatureConfig("value", ("stream_power_index",), curve="asinh"),
        FeatureConfig("value", ("saga_wetness_index",)),
    ]
    relative = [FeatureConfig("relative", ("elevation",), radius_m) for radius_m in context_m]
    return (*values, *relative, *gradients)


def surface_features(channels: Sequence[str], context_m: Sequence[float] = (100.0,)) -> Tuple[FeatureConfig, ...]:
    """Shares of land-cover classes: in the cell and around it."""
    values = [FeatureConfig("value", (name,)) for name in channels]
    around = [FeatureConfig("mean", (name,), radius_m) for radius_m in context_m for name in channels]
    return (*values, *around)


def with_scales(group: GroupConfig, centres: List[float], scales: List[float]) -> GroupConfig:
    """The group with fitted centres and scales, feature by feature."""
    features = tuple(
        replace(feature, centre=centre, scale=scale) for feature, centre, scale in zip(group.features, centres, scales)
    )
    return replace(group, features=features)
