"""How a network is trained on a dataset: frozen settings, two presets, and one TOML or JSON file to change them.

A *recipe* is everything that a result depends on beside data, tasks and seed. What only says how a computation is
carried out (threads, device, how often a checkpoint is written) is not part of it. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import tomllib

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.schema import from_json, to_json

from .config import SIZES, FeatureConfig, SizeConfig

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class StageRecipe:
    """One stage of training under a warm-up and cosine schedule.

    Attributes:
        steps: Optimiser steps; 0 leaves it to ``epochs``.
        epochs: Passes over the labelled sites (pretraining: as many random windows); with ``steps`` 0 as well, the
            stage is left out.
        batch: Windows per step, over all processes.
        learning_rate: Peak of the schedule.
        start_rate: Rate of the first step.
        warmup: Share of the steps in which the rate rises linearly.
    """

    steps: int = 0
    epochs: float = 0.0
    batch: int = 8
    learning_rate: float = 1e-3
    start_rate: float = 1e-5
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 0 or self.epochs < 0 or (self.steps and self.epochs):
            raise ValueError("steps or epochs of a stage must be given, not both, and not be negative")
        if self.batch < 1 or not 0 <= self.warmup < 1:
            raise ValueError("batch of a stage must be at least 1, and warmup a share from 0 to below 1")
        if not 0 <= self.start_rate <= self.learning_rate:
            raise ValueError("start_rate of a stage must lie from 0 to learning_rate")

    def length(self, sites: int) -> int:
        """Steps of the stage for so many sites. Worked: 100 sites, batch 8, 3 epochs: ceil(300 / 8) = 38."""
        return self.steps or math.ceil(self.epochs * sites / self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: ``start_rate`` first, the peak after the warm-up, then a cosine."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.start_rate + (self.learning_rate - self.start_rate) * step / rising
        return 0.5 * self.learning_rate * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True)
class ContrastRecipe:
    """The contrastive losses.

    Attributes:
        locations: Uniform locations per window.
        temperature: Of InfoNCE.
        geo_weight: Weight of the visual-geo loss beside the modality-modality loss.
        fit_weight: Weight of both, kept on during fine-tuning; 0 leaves them to pretraining, as in the paper.
    """

    locations: int = 48
    temperature: float = 0.1
    geo_weight: float = 1.0
    fit_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.locations < 1 or not self.temperature > 0:
            raise ValueError("locations must be at least 1 and the contrastive temperature positive")


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW and what surrounds it.

    Attributes:
        weight_decay: On matrices and kernels only.
        clip: Largest norm of the gradient.
        average_decay: Per-step decay of the averaged weights, which are the result.
    """

    weight_decay: float = 0.01
    clip: float = 1.0
    average_decay: float = 0.99


@dataclass(frozen=True)
class WindowRecipe:
    """What is done to a training window.

    Attributes:
        points: At most this many labelled sites are asked in a window.
        flips: Mirror windows; values stay, so that aspect remains the true azimuth.
        group_dropout: Chance that a window misses one whole group.
        feature_dropout: Chance of each feature to be missing in a window.
    """

    points: int = 384
    flips: bool = True
    group_dropout: float = 0.0
    feature_dropout: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """See the module.

    Attributes:
        size: The network's widths and depths.
        pretrain: Contrastive stage, on covariates alone.
        fit: Supervised stage.
        contrast: Contrastive losses.
        optimiser: Optimiser.
        window: Training windows.
        task_weights: Weight of each task's loss, 1 where it is not given.
        features: {group: features}, in place of those that :mod:`training.features` chooses; scales are fitted anyhow,
        fixed_scales: but for these groups, whose features keep the centres, scales and curves that are given (weights
            that were trained elsewhere expect theirs).
        views: As in :class:`training.config.ModelConfig`.
        smoothing: Labels are drawn towards equal chances of all classes by this share.
        members: Networks whose logits are averaged.
        temperature: Divisor of the mean logit.
        precision: Of the products: ``auto`` is bfloat16 on a GPU and float32 on a processor.
        deterministic: On a GPU, use only operations that repeat bit by bit (slower). A processor always does.
        stride_px: Step between windows in prediction.
        decode_px: Side of the central square of a window that is asked in prediction.
    """

    size: SizeConfig = field(default_factory=lambda: SIZES["small"])
    pretrain: StageRecipe = field(default_factory=lambda: StageRecipe(steps=300))
    fit: StageRecipe = field(default_factory=lambda: StageRecipe(steps=600))
    contrast: ContrastRecipe = field(default_factory=ContrastRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    window: WindowRecipe = field(default_factory=WindowRecipe)
    task_weights: Dict[str, float] = field(default_factory=dict)
    features: Dict[str, Tuple[FeatureConfig, ...]] = field(default_factory=dict)
    fixed_scales: Tuple[str, ...] = ()
    views: Tuple[Tuple[str, ...], ...] = ()
    smoothing: float = 0.0
    members: int = 1
    temperature: float = 1.0
    precision: str = "auto"
    deterministic: bool = False
    stride_px: int = 160
    decode_px: int = 192

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if not set(self.fixed_scales) <= set(self.features):
            raise ValueError(f"fixed_scales names {', '.join(self.fixed_scales)}; features of these must be given")
        if self.members < 1:
            raise ValueError("members must be at least 1")
        if not self.fit.length(1):
            raise ValueError("fit needs steps or epochs")
        window, cell = self.size.window_px, self.size.cell_px
        if not 0 < self.stride_px <= self.decode_px <= window or (window - self.decode_px) % 2:
            raise ValueError(
                f"stride_px {self.stride_px} and decode_px {self.decode_px} do not fit a window of {window}"
            )
        if self.stride_px % cell or (window - self.decode_px) // 2 % cell:
            raise ValueError(f"stride_px and the margin around decode_px must be multiples of cell_px ({cell})")


# `small` is meant for two processor cores; cells of 20 m keep patterns that cells of 40 m average away.
PRESETS: Mapping[str, Recipe] = {
    "small": Recipe(size=replace(SIZES["small"], cell_px=2)),
    "paper": Recipe(
        size=SIZES["paper"],
        pretrain=StageRecipe(epochs=50, batch=32, learning_rate=1e-4, start_rate=5e-7, warmup=0.05),
        fit=StageRecipe(epochs=30, batch=32, learning_rate=5e-5, start_rate=5e-7, warmup=0.05),
        optimiser=OptimiserRecipe(average_decay=0.999),
    ),
}


def read_recipe(path: Optional[Path], preset: Optional[str] = None) -> Recipe:
    """Read a recipe: a preset, changed by the keys of a TOML or JSON file.

    The file's ``preset`` key says which one it starts from (default ``small``); ``preset`` given here wins. A run's
    ``config.json`` gives the recipe of that run, so that it can be repeated.

    Raises:
        InputError: If the file cannot be read, holds an unknown key, or its values make no sense.
    """
    what, remedy = f'Recipe "{path or preset}"', "Correct it (docs/training.md lists the keys)."
    try:
        changes = _read(path) if path is not None else {}
        named = changes.pop("preset", "small")
        name = preset or named
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        return from_json(Recipe, _merged(to_json(PRESETS[name]), changes), "recipe")
    except (OSError, ValueError) as error:  # unknown keys and damaged files are ValueErrors
        found = f"cannot be used ({error})."
        raise InputError(what, found, "A TOML or JSON file of training settings is needed.", remedy) from error


def _read(path: Path) -> Dict[str, Any]:
    text = Path(path).read_text(encoding="utf-8")
    found: Any = json.loads(text) if Path(path).suffix.lower() == ".json" else tomllib.loads(text)
    if not isinstance(found, dict):
        raise ValueError("an object is needed")
    if {"format", "recipe", "model"} <= set(found):
        return dict(found["recipe"])
    return found


def _merged(base: Dict[str, Any], changes: Mapping[str, Any]) -> Dict[str, Any]:
    """``base`` with the changes laid over it, table by table. A stage given by epochs forgets the preset's steps."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict) and key not in ("features", "task_weights"):
            below = dict(base[key])
            if {"steps", "epochs"} & set(value) and {"steps", "epochs"} <= set(below):
                below.update(steps=0, epochs=0.0)
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged
