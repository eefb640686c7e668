"""Checkpoint files of others: reading them safely, and loading them so that every tensor is accounted for.

A :class:`Ledger` hands out the tensors of a file by name and shape and knows at the end what was missing, misshapen,
broken or left over; all of it is one error. Names of two kinds of encoder are known: torchvision's Swin V2
(SatlasNet's Sentinel-2 backbone, and the satellite encoder of the released code) and SimMIM's Swin V1 (the covariate
encoder of the released code). Both store the four tokens of a merged square column by column, here they go row by row.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, cast

import torch
from torch import Tensor, nn

from miso_qgis.engine.errors import InputError, Problem

from .config import SizeConfig
from .released_inputs import IMAGE_PX, RESOLUTION_M
from .swin import Block, DotAttention, Merging, SwinEncoder, WindowAttention

State = Dict[str, Tensor]

# Where training scripts put the state dict, beside optimiser, epoch and the like.
NESTED = ("model", "state_dict", "model_state_dict")
PARALLEL = "module."  # torch.nn.DataParallel and DistributedDataParallel
# Tensors of the encoders that no answer depends on: classifier and last norm of torchvision's network, which are never
# reached, and tables that follow from the sizes.
UNUSED_IN_V2 = (
    r"norm\.(weight|bias)",
    r"head\.(weight|bias)",
    r"features\.\d+\.\d+\.attn\.relative_coords_table",
    r"features\.\d+\.\d+\.attn\.relative_position_index",
)
UNUSED_IN_V1 = (
    r"layers\.\d+\.blocks\.\d+\.attn_mask",
    r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
)
_LISTED = 12


def read_state(path: Path) -> State:
    """Read the tensors of a checkpoint file without running anything that it holds.

    Accepted are a dict of tensors, or one under ``model``, ``state_dict`` or ``model_state_dict``; a prefix ``module.``
    that every name has is taken off.

    Raises:
        InputError: If the file cannot be read, holds anything but tensors and plain values, or no such dict.
    """
    name = f'Checkpoint "{path}"'
    needed = "A file that torch.save wrote, with the network's state dict, is needed."
    if not path.is_file():
        raise InputError(name, "there is no such file.", needed, "Check the path.")
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums of its own files
            with zipfile.ZipFile(path) as archive:
                record = archive.testzip()
            if record is not None:
                raise zipfile.BadZipFile(f"the checksum of {record} differs")
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch says "Weights only load failed" when a pickle names other code than tensors; damaged ones end here too.
        found = f"it is damaged, or holds more than tensors and plain values ({_short(error)})."
        remedy = (
            'Get it again; or, where it was made: torch.save({"model": network.state_dict()}, FILE), and use that file.'
        )
        raise InputError(name, found, needed, remedy) from error
    except Exception as error:  # reason: damaged bytes lead the unpickler to errors of a dozen classes
        found = f"it is cut off, damaged, or no checkpoint ({_short(error)})."
        raise InputError(name, found, needed, "Get the file again; compare its size with the original's.") from error
    return _parallel(_found(data, name, needed), name)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160].rstrip(". ") or type(error).__name__


def _found(data: object, name: str, needed: str) -> State:
    """The dict of tensors in what a checkpoint holds."""
    if isinstance(data, Mapping):
        for key in NESTED:
            if isinstance(data.get(key), Mapping):
                data = data[key]
                break
    if not isinstance(data, Mapping) or not data:
        found = f"it holds {'nothing' if isinstance(data, Mapping) else 'a ' + type(data).__name__}."
        raise InputError(name, found, needed, "Save the network's state_dict().")
    other = [str(key) for key, value in data.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if other:
        found = f"beside tensors it holds {names_of(other)}."
        wanted = f"A dict of tensors is needed, or one under {', '.join(NESTED)}."
        raise InputError(name, found, wanted, "Save the network's state_dict().")
    return cast("State", dict(data))


def _parallel(state: State, name: str) -> State:
    prefixed = [key for key in state if key.startswith(PARALLEL)]
    if not prefixed:
        return state
    if len(prefixed) < len(state):
        found = (
            f'some names start with "{PARALLEL}", others do not ({names_of([k for k in state if k not in prefixed])}).'
        )
        raise InputError(name, found, "One network's names are needed.", "Save the network's state_dict() again.")
    return {key[len(PARALLEL) :]: value for key, value in state.items()}


def names_of(names: Sequence[str]) -> str:
    """Return the first dozen of names, and how many more there are."""
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


class Ledger:
    """The tensors of a file, each to be taken once, or named as unused.

    Attributes:
        name: The file, for messages.
        state: Its tensors.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str) -> None:
        self.name, self.state = name, dict(state)
        self._taken: Dict[str, None] = {}
        self._missing: List[str] = []
        self._misshapen: List[str] = []
        self._broken: List[str] = []

    def take(self, key: str, shape: Sequence[int]) -> Tensor:
        """A tensor as float32; zeros, and a note for :meth:`close`, if it is missing or of another shape."""
        self._taken[key] = None
        value = self.state.get(key)
        if value is None:
            self._missing.append(key)
        elif tuple(value.shape) != tuple(shape):
            self._misshapen.append(f"{key} {_shape(value.shape)} in place of {_shape(shape)}")
        elif not torch.isfinite(value).all():
            self._broken.append(key)
        else:
            return value.detach().float()
        return torch.zeros(tuple(shape))

    def fill(self, parameter: Tensor, key: str) -> None:
        """Copy a tensor of the parameter's own shape into it."""
        with torch.no_grad():
            parameter.copy_(self.take(key, parameter.shape))

    def fill_layer(self, layer: nn.Module, prefix: str) -> None:
        """Fill ``weight`` and, where the layer has one, ``bias``."""
        for part in ("weight", "bias"):
            parameter = getattr(layer, part)
            if parameter is not None:
                self.fill(parameter, f"{prefix}.{part}")

    def skip(self, prefix: str, patterns: Sequence[str]) -> List[str]:
        """Account for tensors that are known and not used: names after ``prefix`` that match one of ``patterns``."""
        found = [
            key
            for key in self.state
            if key.startswith(prefix) and any(re.fullmatch(pattern, key[len(prefix) :]) for pattern in patterns)
        ]
        self._taken.update(dict.fromkeys(found))
        return found

    def close(self, what: str) -> None:
        """Check that every tensor was taken.

        Args:
            what: The network that was to be filled, in words: "MISO as the released code makes it".

        Raises:
            InputError: With every tensor that is missing, unexpected, misshapen or not finite.
        """
        unexpected = [key for key in self.state if key not in self._taken]
        needed = f"Exactly the tensors of {what} are needed."
        remedy = "Choose another checkpoint; this one belongs to another architecture or another version of it."
        problems = [
            Problem(self.name, f"{words} {names_of(keys)}.", needed, remedy)
            for words, keys in (
                ("it lacks", self._missing),
                ("it holds the unexpected", unexpected),
                ("of another shape is", self._misshapen),
            )
            if keys
        ]
        if self._broken:
            found = f"there are infinite or undefined numbers in {names_of(self._broken)}."
            problems.append(Problem(self.name, found, "Finite weights are needed.", "Choose an earlier checkpoint."))
        if problems:
            raise InputError.of(problems)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def load_swin_v2(ledger: Ledger, prefix: str, encoder: SwinEncoder) -> None:
    """Fill an encoder of version 2 from torchvision's names (``features.<2 stage + 1>.<block>...``)."""
    ledger.fill_layer(encoder.embed, f"{prefix}features.0.0")
    ledger.fill_layer(encoder.norm, f"{prefix}features.0.2")
    for stage, blocks in enumerate(encoder.stages):
        for number, block in enumerate(cast("nn.Sequential", blocks)):
            _load_block_v2(ledger, f"{prefix}features.{2 * stage + 1}.{number}", cast("Block", block))
    for stage, merging in enumerate(encoder.mergings):
        at = f"{prefix}features.{2 * stage + 2}"
        _load_reduction(ledger, f"{at}.reduction.weight", cast("Merging", merging))
        ledger.fill_layer(cast("Merging", merging).norm, f"{at}.norm")
    ledger.skip(prefix, UNUSED_IN_V2)


def _load_block_v2(ledger: Ledger, at: str, block: Block) -> None:
    attention = cast("WindowAttention", block.attention)
    ledger.fill(attention.logit_scale, f"{at}.attn.logit_scale")
    ledger.fill(attention.qkv.weight, f"{at}.attn.qkv.weight")
    channels = attention.query_bias.numel()
    bias = ledger.take(f"{at}.attn.qkv.bias", (3 * channels,))
    with torch.no_grad():  # the keys' third is zeroed before use and therefore left out
        attention.query_bias.copy_(bias[:channels])
        attention.value_bias.copy_(bias[2 * channels :])
    ledger.fill_layer(attention.project, f"{at}.attn.proj")
    ledger.fill_layer(attention.position[0], f"{at}.attn.cpb_mlp.0")
    ledger.fill_layer(attention.position[2], f"{at}.attn.cpb_mlp.2")
    ledger.fill_layer(block.norm_attention, f"{at}.norm1")
    ledger.fill_layer(block.norm_mlp, f"{at}.norm2")
    ledger.fill_layer(block.mlp[0], f"{at}.mlp.0")
    ledger.fill_layer(block.mlp[2], f"{at}.mlp.3")


def load_swin_v1(ledger: Ledger, prefix: str, encoder: SwinEncoder) -> None:
    """Fill an encoder of version 1 from SimMIM's names (``layers.<stage>.blocks.<block>...``)."""
    ledger.fill_layer(encoder.embed, f"{prefix}patch_embed.proj")
    ledger.fill_layer(encoder.norm, f"{prefix}patch_embed.norm")
    for stage, blocks in enumerate(encoder.stages):
        for number, block in enumerate(cast("nn.Sequential", blocks)):
            _load_block_v1(ledger, f"{prefix}layers.{stage}.blocks.{number}", cast("Block", block))
    for stage, module in enumerate(encoder.mergings):
        at, merging = f"{prefix}layers.{stage}.downsample", cast("Merging", module)
        _load_reduction(ledger, f"{at}.reduction.weight", merging)
        with torch.no_grad():  # this norm sees the four tokens
            for part in ("weight", "bias"):
                parameter = getattr(merging.norm, part)
                parameter.copy_(_row_by_row(ledger.take(f"{at}.norm.{part}", parameter.shape)))
    ledger.skip(prefix, UNUSED_IN_V1)


def _load_block_v1(ledger: Ledger, at: str, block: Block) -> None:
    attention = cast("DotAttention", block.attention)
    ledger.fill(attention.table, f"{at}.attn.relative_position_bias_table")
    ledger.fill_layer(attention.qkv, f"{at}.attn.qkv")
    ledger.fill_layer(attention.project, f"{at}.attn.proj")
    ledger.fill_layer(block.norm_attention, f"{at}.norm1")
    ledger.fill_layer(block.norm_mlp, f"{at}.norm2")
    ledger.fill_layer(block.mlp[0], f"{at}.mlp.fc1")
    ledger.fill_layer(block.mlp[2], f"{at}.mlp.fc2")


def _load_reduction(ledger: Ledger, key: str, merging: Merging) -> None:
    with torch.no_grad():
        merging.reduce.weight.copy_(_row_by_row(ledger.take(key, merging.reduce.weight.shape)))


def _row_by_row(weight: Tensor) -> Tensor:
    """Reorder a last axis of four tokens from (0, 0), (1, 0), (0, 1), (1, 1) to row by row."""
    first, below, right, last = torch.chunk(weight, 4, dim=-1)
    return torch.cat([first, right, below, last], dim=-1)


def swin_v2_size(state: Mapping[str, Tensor], prefix: str) -> SizeConfig:
    """Sizes of a torchvision Swin V2 from its tensors.

    Raises:
        KeyError: If a tensor that tells a size is not there.
        ValueError: If the tensors contradict each other.
    """
    stages = counted(state, f"{prefix}features.{{}}.0.", 1, 2)
    depths = [counted(state, f"{prefix}features.{2 * s + 1}.{{}}.") for s in range(stages)]
    first = f"{prefix}features.1.0"
    channels = state[f"{prefix}features.0.0.weight"].shape[0]
    heads = [state[f"{prefix}features.{2 * s + 1}.0.attn.logit_scale"].shape[0] for s in range(stages)]
    table = state.get(f"{first}.attn.relative_coords_table")
    size = _size(
        channels=channels,
        patch_px=state[f"{prefix}features.0.0.weight"].shape[-1],
        depths=depths,
        heads=heads,
        wide=state[f"{first}.mlp.0.weight"].shape[0],
        window=8 if table is None else (table.shape[1] + 1) // 2,
        hidden=state[f"{first}.attn.cpb_mlp.0.weight"].shape[0],
    )
    smallest = size.tokens(stages - 1)
    if size.attention_window > smallest:  # torchvision pads such a map with zeros and attends to them
        raise ValueError(f"attention windows of {size.attention_window} exceed the last stage's {smallest} tokens")
    return size


def swin_v1_size(state: Mapping[str, Tensor], prefix: str) -> SizeConfig:
    """Sizes of a SimMIM Swin V1 from its tensors; raises as :func:`swin_v2_size`."""
    stages = counted(state, f"{prefix}layers.{{}}.blocks.0.")
    depths = [counted(state, f"{prefix}layers.{s}.blocks.{{}}.") for s in range(stages)]
    tables = [state[f"{prefix}layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)]
    weight = state[f"{prefix}patch_embed.proj.weight"]
    return _size(
        channels=weight.shape[0],
        patch_px=weight.shape[-1],
        depths=depths,
        heads=[table.shape[1] for table in tables],
        wide=state[f"{prefix}layers.0.blocks.0.mlp.fc1.weight"].shape[0],
        window=(round(tables[0].shape[0] ** 0.5) + 1) // 2 if tables else 8,
        hidden=1,
    )


def counted(state: Mapping[str, Tensor], pattern: str, start: int = 0, step: int = 1) -> int:
    """Count the parts whose tensors' names begin with ``pattern.format(start + i * step)`` for i = 0, 1, ...

    Raises:
        KeyError: If there is none.
    """
    count = 0
    while any(key.startswith(pattern.format(start + count * step)) for key in state):
        count += 1
    if count == 0:
        raise KeyError(pattern.format(start))
    return count


def _size(
    *, channels: int, patch_px: int, depths: Sequence[int], heads: Sequence[int], wide: int, window: int, hidden: int
) -> SizeConfig:
    if any((channels << stage) != count * (channels // heads[0]) for stage, count in enumerate(heads)):
        raise ValueError(f"{', '.join(map(str, heads))} attention heads do not go with {channels} channels")
    if wide % channels:
        raise ValueError(f"an MLP of {wide} is no multiple of {channels} channels")
    size = SizeConfig(
        window_px=IMAGE_PX,
        resolution_m=RESOLUTION_M,
        cell_px=1,
        patch_px=patch_px,
        channels=channels,
        depths=tuple(depths),
        head_channels=channels // heads[0],
        attention_window=window,
        expansion=wide // channels,
        position_hidden=hidden,
    )
    for stage in range(len(depths)):
        if size.tokens(stage) % min(window, size.tokens(stage)):
            raise ValueError(f"attention windows of {window} do not divide a map of {size.tokens(stage)} tokens")
    return size
