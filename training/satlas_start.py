"""A run whose one encoder starts from SatlasNet's weights: what that needs of dataset, recipe and file, and the start.

Everything is checked before a run folder is made: the group's channels and their order, the network's sizes against
those of the file, and every tensor of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Mapping, Optional

import torch
from torch import Tensor

from miso_qgis.engine.errors import InputError, Problem

from . import satlas
from .config import SIZES, ModelConfig, SizeConfig
from .dataset import Dataset
from .recipes import Recipe
from .released_inputs import manifest_inputs
from .released_state import read_state, swin_v2_size
from .swin import SwinEncoder
from .trainer import Parameters
from .trainer import with_parameters as network

GROUP = "satellite"
# Fields of SizeConfig that an encoder's tensors depend on. Of cells of 20 m the weights, made at 10 m, know nothing.
_SIZES = (
    "cell_px",
    "patch_px",
    "channels",
    "depths",
    "head_channels",
    "attention_window",
    "expansion",
    "position_hidden",
)


@dataclass(frozen=True)
class Asked:
    """What a command asks for.

    Attributes:
        path: The checkpoint; None asks for nothing.
        group: The group whose encoder starts from it; empty is the run's, or ``satellite``.
    """

    path: Optional[Path] = None
    group: str = ""


NOTHING = Asked()


def prepared(recipe: Recipe, dataset: Dataset, asked: Asked) -> Recipe:
    """Check a new run's file, channels and sizes; return the recipe with SatlasNet's features of the group.

    Raises:
        InputError: If the file cannot be used, or channels or sizes are not the file's.
    """
    if asked.path is None:
        found, needed = f'it names the group "{asked.group}", and no file is given.', "Both or neither are needed."
        raise InputError("Option --satlas-group", found, needed, "Add --satlas FILE, or leave the group out.")
    name, group = f'Checkpoint "{asked.path}"', asked.group or GROUP
    state = read_state(asked.path)
    problems = _channel_problems(dataset, group) + _size_problems(recipe.size, state, name, group)
    if problems:
        raise InputError.of(problems)
    with torch.device("meta"):  # names and shapes are compared, nothing is held
        encoder = SwinEncoder(len(satlas.CHANNELS), recipe.size)
    satlas.load_encoder(encoder, state, name)
    return with_features(recipe, dataset, group)


def with_features(recipe: Recipe, dataset: Dataset, group: str) -> Recipe:
    """The recipe with SatlasNet's features of a group of nine channels, and their scales fixed.

    Raises:
        InputError: If the recipe has other features for the group.
    """
    (spec,) = (one for one in dataset.groups if one.name == group)
    features = satlas.features([channel.name for channel in spec.channels])
    if recipe.features.get(group, features) != features:
        raise InputError(
            "Recipe",
            f'it has features of its own for the group "{group}".',
            "SatlasNet's weights need the features and scales that they were trained with.",
            "Leave the group out of the recipe's features, or start without --satlas.",
        )
    fixed = recipe.fixed_scales if group in recipe.fixed_scales else (*recipe.fixed_scales, group)
    return replace(recipe, features={**recipe.features, group: features}, fixed_scales=fixed)


def start(config: ModelConfig, parameters: Parameters, path: Path, group: str) -> Parameters:
    """Parameters with the group's encoder filled from the file; all others as they are given.

    Raises:
        InputError: If the file cannot be used.
    """
    model = network(config, parameters)
    satlas.start_from(model, path, group)
    return {name: value.detach() for name, value in model.named_parameters()}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _channel_problems(dataset: Dataset, group: str) -> List[Problem]:
    """Whether the group has the nine bands in SatlasNet's order; a band goes by its name or one of its aliases."""
    groups = {one.name: one.channels for one in dataset.groups}
    if group not in groups:
        return [
            Problem(
                "Option --satlas-group",
                f'the dataset has no group "{group}".',
                f"Its groups are {', '.join(groups)}.",
                "Name the group of the nine Sentinel-2 bands.",
            )
        ]
    channels, inputs = groups[group], manifest_inputs()
    found = []
    if len(channels) != len(satlas.CHANNELS):
        found.append(f"it has {len(channels)} channels ({', '.join(channel.name for channel in channels)})")
    for number, (channel, band) in enumerate(zip(channels, satlas.CHANNELS), start=1):
        if _plain(channel.name) not in {_plain(alias) for alias in (band, *inputs[band].aliases)}:
            found.append(f'channel {number} is "{channel.name}" in place of {band}')
        elif channel.by != "value":
            found.append(f'channel {number}, "{channel.name}", is taken by {channel.by}, not by value')
    if not found:
        return []
    bands = ", ".join(f"{band} ({inputs[band].aliases[0].upper()})" for band in satlas.CHANNELS)
    needed = f"SatlasNet's nine bands are needed, in this order: {bands}."
    remedy = "Order and name the group's channels so in dataset.json, or name another group with --satlas-group."
    return [Problem(f'Group "{group}"', f"{'; '.join(found)}.", needed, remedy)]


def _size_problems(size: SizeConfig, state: Mapping[str, Tensor], name: str, group: str) -> List[Problem]:
    try:
        theirs = swin_v2_size(state, satlas.PREFIX)
    except (KeyError, ValueError):  # no Swin V2 at all: loading it names what is missing
        return []
    different = [field for field in _SIZES if getattr(size, field) != getattr(theirs, field)]
    if not different:
        return []
    is_paper = all(getattr(SIZES["paper"], field) == getattr(theirs, field) for field in _SIZES)
    return [
        Problem(
            "Size of the network",
            "; ".join(f"{f} is {_shown(getattr(size, f))}, not {_shown(getattr(theirs, f))}" for f in different) + ".",
            f'The encoder of "{group}" must have the sizes of {name}.',
            "Add --size paper." if is_paper else "Set these fields under [size] in the recipe.",
        )
    ]


def _shown(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
