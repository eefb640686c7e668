"""Swin Transformer encoder: attention inside windows, shifted windows, patch merging. Two versions.

``V2`` (Liu et al. 2022, arXiv:2111.09883) compares by cosine, computes the position bias with a small network and
normalises *after* attention, MLP and merging; MISO uses it. ``V1`` (Liu et al. 2021, arXiv:2103.14030) compares by dot
product, looks the position bias up and normalises *before* them; the covariates of checkpoints of the released code
need it. Own code. Maps are channels last, (N, H, W, C). Differences from the papers, all from the released MISO code:
features are taken after each stage's blocks and before merging; there is no final norm; a stage whose map is no larger
than the attention window is not shifted; in V2 the key part of the qkv bias is zero.
"""

from __future__ import annotations

import math
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import SizeConfig

V1, V2 = "v1", "v2"
LOGIT_SCALE_LIMIT = math.log(100.0)
# Vectors shorter than 1e-4 stay shorter than 1 when they are scaled to unit length, so that a token without data does
# not blow up the gradient. Longer ones come out as in torchvision's code.
_SHORTEST_SQUARED = 1e-8


def to_windows(tokens: Tensor, side: int) -> Tensor:
    """Cut a map (N, H, W, C) into attention windows (N, H / side * W / side, side * side, C), row by row."""
    n, height, width, channels = tokens.shape
    cut = tokens.reshape(n, height // side, side, width // side, side, channels)
    return cut.transpose(2, 3).reshape(n, (height // side) * (width // side), side * side, channels)


def from_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`to_windows`."""
    n, channels = windows.shape[0], windows.shape[-1]
    cut = windows.reshape(n, height // side, width // side, side, side, channels)
    return cut.transpose(2, 3).reshape(n, height, width, channels)


def shift_mask(map_size: int, side: int, shift: int) -> Tensor:
    """What a token of a rolled map may not look at: (windows, side^2, side^2), 0 or -100.

    Rolling brings the first rows beside the last ones; they are neighbours in the window, not on the ground.
    """
    region = torch.zeros(map_size, dtype=torch.long)
    region[map_size - side : map_size - shift] = 1
    region[map_size - shift :] = 2
    regions = (region[:, None] * 3 + region[None, :]).reshape(1, map_size, map_size, 1)
    flat = to_windows(regions, side)[0, :, :, 0]  # (windows, side^2)
    return (flat[:, :, None] != flat[:, None, :]).float() * -100.0


class Attention(nn.Module):
    """Multi-head attention inside (shifted) attention windows; versions say how tokens are compared.

    Attributes:
        pairs: Which of the (2 side - 1)^2 relative places each pair of places of a window is, (side^2, side^2).
        mask: See :func:`shift_mask`; None where windows are not shifted.
        baked: Position bias, once :meth:`bake` has computed it.
    """

    pairs: Tensor
    mask: Optional[Tensor]

    def __init__(
        self, channels: int, heads: int, map_size: int, side: int, shift: int, *, key_has_bias: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.side, self.shift, self.map_size = heads, side, shift, map_size
        self.qkv = nn.Linear(channels, 3 * channels, bias=key_has_bias)
        self.project = nn.Linear(channels, channels)
        place = torch.arange(side)
        row, column = (grid.reshape(-1) for grid in torch.meshgrid(place, place, indexing="ij"))
        pairs = (row[:, None] - row[None, :] + side - 1) * (2 * side - 1) + column[:, None] - column[None, :] + side - 1
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("mask", shift_mask(map_size, side, shift) if shift else None, persistent=False)
        self.baked: Optional[Tensor] = None

    def bias(self) -> Tensor:
        """Position bias of every pair of places, (heads, side^2, side^2)."""
        raise NotImplementedError("a version of attention says what its position bias is")

    def qkv_of(self, windows: Tensor) -> Tensor:
        """Queries, keys and values side by side, (N, M, T, C) -> (N, M, T, 3 C)."""
        made: Tensor = self.qkv(windows)
        return made

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        """Likeness of all pairs, (N, M, heads, T, C / heads) twice -> (N, M, heads, T, T)."""
        raise NotImplementedError("a version of attention says how it compares")

    def bake(self) -> None:
        """Compute the position bias once, for the exported graph: it does not depend on the input."""
        self.baked = self.bias().detach()

    def _look_up(self, table: Tensor) -> Tensor:
        """Relative places (places, heads) -> pairs (heads, side^2, side^2)."""
        return table[self.pairs.reshape(-1)].reshape(*self.pairs.shape, self.heads).permute(2, 0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend within (shifted) windows of a map (N, H, W, C)."""
        n, channels = tokens.shape[0], tokens.shape[-1]
        if self.shift:
            tokens = torch.roll(tokens, (-self.shift, -self.shift), dims=(1, 2))
        windows = to_windows(tokens, self.side)  # (N, M, T, C)
        count, places = windows.shape[1], windows.shape[2]
        qkv = self.qkv_of(windows)
        parts = qkv.reshape(n, count, places, 3, self.heads, channels // self.heads).permute(3, 0, 1, 4, 2, 5)
        query, key, value = parts[0], parts[1], parts[2]  # (N, M, heads, T, C / heads)
        logits = self.compare(query, key) + (self.bias() if self.baked is None else self.baked)
        if self.mask is not None:
            logits = logits + self.mask[:, None]
        mixed = torch.softmax(logits, dim=-1) @ value  # (N, M, heads, T, C / heads)
        mixed = self.project(mixed.transpose(2, 3).reshape(n, count, places, channels))
        tokens = from_windows(mixed, self.side, self.map_size, self.map_size)
        if self.shift:
            tokens = torch.roll(tokens, (self.shift, self.shift), dims=(1, 2))
        return tokens


class WindowAttention(Attention):
    """Version 2: scaled cosine attention with continuous relative position bias."""

    coordinates: Tensor

    def __init__(self, channels: int, heads: int, map_size: int, side: int, shift: int, hidden: int) -> None:
        super().__init__(channels, heads, map_size, side, shift, key_has_bias=False)
        self.query_bias = nn.Parameter(torch.zeros(channels))
        self.value_bias = nn.Parameter(torch.zeros(channels))
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.position = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False))
        steps = torch.arange(-(side - 1), side, dtype=torch.float32)
        table = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1) / max(side - 1, 1) * 8.0
        table = torch.sign(table) * torch.log2(table.abs() + 1.0) / 3.0
        self.register_buffer("coordinates", table.reshape(-1, 2), persistent=False)

    def bias(self) -> Tensor:
        """Position bias of every pair of places, (heads, side^2, side^2), in (0, 16)."""
        bias: Tensor = 16.0 * torch.sigmoid(self._look_up(self.position(self.coordinates)))
        return bias

    def qkv_of(self, windows: Tensor) -> Tensor:
        """See the base class; keys have no bias."""
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        return functional.linear(windows, self.qkv.weight, bias)

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        """Cosine, times a learnt scale of at most 100."""
        scale = torch.exp(torch.clamp(self.logit_scale, max=LOGIT_SCALE_LIMIT))
        likeness: Tensor = (_unit(query) * scale) @ _unit(key).transpose(-2, -1)
        return likeness


class DotAttention(Attention):
    """Version 1: scaled dot products with a table of relative position biases."""

    def __init__(self, channels: int, heads: int, map_size: int, side: int, shift: int) -> None:
        super().__init__(channels, heads, map_size, side, shift)
        self.table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))
        self.scale = 1.0 / math.sqrt(channels // heads)

    def bias(self) -> Tensor:
        """Position bias of every pair of places, (heads, side^2, side^2)."""
        return self._look_up(self.table)

    def compare(self, query: Tensor, key: Tensor) -> Tensor:
        """Dot product over the square root of the head's width."""
        return (query * self.scale) @ key.transpose(-2, -1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(dim=-1, keepdim=True).clamp(min=_SHORTEST_SQUARED))


class Block(nn.Module):
    """Attention, then an MLP, each added to its input; normalised after them (version 2) or before (version 1)."""

    def __init__(self, channels: int, map_size: int, is_shifted: bool, size: SizeConfig, version: str = V2) -> None:
        super().__init__()
        side = min(size.attention_window, map_size)
        shift = side // 2 if is_shifted and map_size > side else 0
        heads = max(1, channels // size.head_channels)
        self.version = version
        self.attention: Attention
        if version == V1:
            self.attention = DotAttention(channels, heads, map_size, side, shift)
        else:
            self.attention = WindowAttention(channels, heads, map_size, side, shift, size.position_hidden)
        self.norm_attention = nn.LayerNorm(channels)
        wide = channels * size.expansion
        self.mlp = nn.Sequential(nn.Linear(channels, wide), nn.GELU(), nn.Linear(wide, channels))
        self.norm_mlp = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, H, W, C) to one of the same shape."""
        if self.version == V1:
            tokens = tokens + self.attention(self.norm_attention(tokens))
            mixed: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
            return mixed
        tokens = tokens + self.norm_attention(self.attention(tokens))
        mixed = tokens + self.norm_mlp(self.mlp(tokens))
        return mixed


class Merging(nn.Module):
    """Patch merging: each 2 x 2 square of tokens becomes one of twice the width.

    The four tokens follow each other row by row. (Checkpoints made by torchvision or the Swin authors' code have them
    column by column; :mod:`training.released_state` reorders.)
    """

    def __init__(self, channels: int, version: str = V2) -> None:
        super().__init__()
        self.version = version
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels if version == V1 else 2 * channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H / 2, W / 2, 2 C)."""
        n, height, width, channels = tokens.shape
        squares = tokens.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        flat = squares.reshape(n, height // 2, width // 2, 4 * channels)
        merged: Tensor = self.reduce(self.norm(flat)) if self.version == V1 else self.norm(self.reduce(flat))
        return merged


class SwinEncoder(nn.Module):
    """Features (N, F, H, W) in cells -> one map per stage, finest first, channels last."""

    def __init__(self, features: int, size: SizeConfig, version: str = V2) -> None:
        super().__init__()
        if version not in (V1, V2):
            raise ValueError(f"Swin version {version!r} is neither {V1!r} nor {V2!r}")
        step = size.patch_px // size.cell_px
        self.embed = nn.Conv2d(features, size.channels, step, step)
        self.norm = nn.LayerNorm(size.channels)
        self.stages = nn.ModuleList()
        self.mergings = nn.ModuleList()
        for stage, depth in enumerate(size.depths):
            width, tokens = size.width(stage), size.tokens(stage)
            self.stages.append(nn.Sequential(*[Block(width, tokens, i % 2 == 1, size, version) for i in range(depth)]))
            if stage + 1 < len(size.depths):
                self.mergings.append(Merging(width, version))
        self.apply(_initialise)

    def forward(self, features: Tensor) -> List[Tensor]:
        """Maps of all stages: (N, H_s, W_s, C_s)."""
        tokens = self.norm(self.embed(features).permute(0, 2, 3, 1))
        maps = []
        for stage, blocks in enumerate(self.stages):
            tokens = blocks(tokens)
            maps.append(tokens)
            if stage < len(self.mergings):
                tokens = self.mergings[stage](tokens)
        return maps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
