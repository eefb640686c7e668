"""What each encoder sees of a dataset's channels by default, and the scales that training windows give it.

A satellite band or a climate normal enters as it is, terrain with its surroundings, a class as a share. Channels whose
values have heavy tails (measured, not looked up) are bent by asinh, so that few extreme cells do not use up the range.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np
import torch
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.manifest import TERRAIN_PREFIX, ChannelSpec, GroupSpec

from .conditioning import Conditioning
from .config import FeatureConfig, GroupConfig, ModelConfig, with_scales
from .dataset import Dataset
from .recipes import Recipe
from .scenes import Scene
from .sites import outputs

# Radii of the surroundings: of elevation, of the downslope direction, of classes.
RELATIVE_M = (200.0, 500.0, 1000.0)
GRADIENT_M = (0.0, 150.0, 300.0)
SHARE_M = (100.0,)
# The middle 99 % over the middle 90 % of the values: 1.6 for a normal distribution, 2.0 for a Laplace one.
HEAVY_TAIL = 2.5
SCALE_WINDOWS = 32
SCALE_SEED = 12345
_VALUES_PER_WINDOW = 4096


def default_features(group: GroupSpec) -> Tuple[FeatureConfig, ...]:
    """Features of a group by the kind of its channels, not yet scaled."""
    names = {_kind(channel): channel.name for channel in group.channels}
    features: List[FeatureConfig] = []
    for channel in group.channels:
        features.append(FeatureConfig("value", (channel.name,)))
        if _kind(channel) == "elevation":
            features += [FeatureConfig("relative", (channel.name,), radius) for radius in RELATIVE_M]
        elif channel.by == "one_hot":
            features += [FeatureConfig("mean", (channel.name,), radius) for radius in SHARE_M]
    if {"aspect_sin", "aspect_cos", "slope"} <= set(names):
        features += [
            FeatureConfig("gradient", (names[part], names["slope"]), radius)
            for radius in GRADIENT_M
            for part in ("aspect_sin", "aspect_cos")
        ]
    return tuple(features)


def _kind(channel: ChannelSpec) -> str:
    return channel.by[len(TERRAIN_PREFIX) :] if channel.by.startswith(TERRAIN_PREFIX) else channel.name


def model_config(dataset: Dataset, scene: Scene, recipe: Recipe, tasks: Sequence[str]) -> ModelConfig:
    """The network for a dataset: features by default or as the recipe says, scaled by random windows.

    Scales see covariates of the whole area and no label.

    Raises:
        InputError: If a channel has no value, or is an azimuth in degrees; if the recipe's features do not fit.
    """
    _refuse_azimuths(dataset)
    unknown = sorted(set(recipe.features) - {group.name for group in dataset.groups})
    if unknown:
        known = ", ".join(group.name for group in dataset.groups)
        raise InputError("Recipe", f"it has features for {unknown[0]!r}.", f"Groups are {known}.", "Correct the name.")
    try:
        groups = [
            GroupConfig(
                group.name,
                tuple(channel.name for channel in group.channels),
                recipe.features.get(group.name) or default_features(group),
            )
            for group in dataset.groups
        ]
        shares = {channel.name for channel in dataset.channels if channel.by == "one_hot"}
        fitted = {group.name: group for group in _fitted(groups, scene, shares)}
        fixed = {group.name: group for group in groups if group.name in recipe.fixed_scales}
        _refuse_other_units(fixed, fitted)
        fitted.update(fixed)
        return ModelConfig(tuple(fitted.values()), recipe.size, {task: outputs(task) for task in tasks}, recipe.views)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        found, remedy = f"cannot be used with this dataset ({error}).", "Correct the recipe's features or views."
        raise InputError("Recipe", found, "", remedy) from error


def _refuse_azimuths(dataset: Dataset) -> None:
    """An azimuth cannot be averaged or interpolated: 359 and 1 degree would meet at 180."""
    problems = [
        Problem(
            f'Channel "{channel.name}"',
            f"it is an azimuth in {channel.unit or 'degrees'}, taken as it is.",
            "Its sine and cosine are needed, as two channels.",
            "Derive them from the elevation (by: terrain.aspect_sin and terrain.aspect_cos).",
        )
        for channel in dataset.channels
        if channel.by == "value" and channel.name.lower() in ("aspect", "aspct", "aspct_4", "aspect_deg", "azimuth")
    ]
    if problems:
        raise InputError.of(problems)


def _refuse_other_units(fixed: Dict[str, GroupConfig], fitted: Dict[str, GroupConfig]) -> None:
    """Refuse fixed scales under which every feature is flat: the rasters are of another unit.

    Reflectance from 0 to 1 in place of reflectance times 10,000 would enter as zeros, without a word.
    """
    problems = []
    for name, group in fixed.items():
        pairs = list(zip(group.features, fitted[name].features))
        if all(found.scale < 1e-3 * given.scale for given, found in pairs):
            given, found = pairs[0]
            spans = f"from {found.centre - found.scale:g} to {found.centre + found.scale:g}"
            expected = f"{given.centre - given.limit * given.scale:g} to {given.centre + given.limit * given.scale:g}"
            problems.append(
                Problem(
                    f'Group "{name}"',
                    "under its fixed scales every feature is flat: "
                    f'"{given.channels[0]}" goes {spans}, where {expected} is expected.',
                    "Rasters in the unit of the scales are needed; of SatlasNet's that is reflectance times 10,000.",
                    "Convert the rasters, or correct the recipe's features.",
                )
            )
    if problems:
        raise InputError.of(problems)


def _fitted(groups: Sequence[GroupConfig], scene: Scene, shares: Set[str]) -> List[GroupConfig]:
    samples: Dict[str, List[List[NDArray[np.float32]]]] = {group.name: [[] for _ in group.features] for group in groups}
    conditionings = {group.name: Conditioning(group, scene.size) for group in groups}
    generator = np.random.default_rng(SCALE_SEED)
    height, width = scene.shape
    found = 0
    for _ in range(SCALE_WINDOWS * 20):
        row, column = (
            int(generator.integers(height)) - scene.side // 2,
            int(generator.integers(width)) - scene.side // 2,
        )
        cells, known = scene.window(row, column)
        if not known.any():
            continue
        for name, windows in scene.split(cells[None].cpu()).items():
            with torch.no_grad():
                value, is_known = conditionings[name].unscaled(windows)
            for i, sample in enumerate(samples[name]):
                values = value[0, i][is_known[0, i] & torch.from_numpy(known)].numpy()
                sample.append(values[:: max(1, values.size // _VALUES_PER_WINDOW)])
        found += 1
        if found == SCALE_WINDOWS:
            break
    if not found:
        raise InputError(
            "Dataset",
            "no cell was found where every channel has a value.",
            "Rasters that cover the area together are needed.",
            "Look at the rasters' nodata, or set the bounds to where all of them have data.",
        )
    return [_scaled(group, [np.concatenate(sample) for sample in samples[group.name]], shares) for group in groups]


def _scaled(group: GroupConfig, samples: Sequence[NDArray[np.float32]], shares: Set[str]) -> GroupConfig:
    """The group with the centre, scale and curve that each feature's sample asks for.

    Continuous: median, half the 5-95 % range. Shares of classes: mean and 0.5, since a rare class has no range.
    """
    centres, scales, features = [], [], []
    for feature, sample in zip(group.features, samples):
        if feature.channels[0] in shares:
            centres.append(float(sample.mean()))
            scales.append(0.5)
            features.append(feature)
            continue
        lowest, low, middle, high, highest = np.quantile(sample, [0.005, 0.05, 0.5, 0.95, 0.995]).tolist()
        # A channel that hardly varies keeps a divisor far above its rounding.
        spread = max(high - low, 1e-6 * max(abs(low), abs(high), 1e-6))
        is_heavy = (highest - lowest) / spread > HEAVY_TAIL and feature.kind == "value"
        centres.append(middle)
        scales.append(spread / 2.0)
        features.append(replace(feature, curve="asinh") if is_heavy else feature)
    return with_scales(replace(group, features=tuple(features)), centres, scales)
