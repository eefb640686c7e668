"""Swin Transformer V2 encoder: window attention with cosine similarity, shifted windows, patch merging.

Liu et al. 2022 (arXiv:2111.09883), own code. Maps are channels last, (N, H, W, C). Differences from the paper, all from
the released MISO code: features are taken after each stage's blocks and before merging; there is no final norm; a
stage whose map is no larger than the attention window is not shifted; the key part of the qkv bias is zero.
"""

from __future__ import annotations

import math
from typing import List, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import SizeConfig

LOGIT_SCALE_LIMIT = math.log(100.0)


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


class WindowAttention(nn.Module):
    """Scaled cosine attention with continuous relative position bias inside attention windows."""

    coordinates: Tensor
    pairs: Tensor
    mask: Optional[Tensor]

    def __init__(self, channels: int, heads: int, map_size: int, side: int, shift: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.side, self.shift, self.map_size = heads, side, shift, map_size
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(channels))
        self.value_bias = nn.Parameter(torch.zeros(channels))
        self.project = nn.Linear(channels, channels)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.position = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False))
        steps = torch.arange(-(side - 1), side, dtype=torch.float32)
        table = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1) / max(side - 1, 1) * 8.0
        table = torch.sign(table) * torch.log2(table.abs() + 1.0) / 3.0
        self.register_buffer("coordinates", table.reshape(-1, 2), persistent=False)
        place = torch.arange(side)
        row, column = (grid.reshape(-1) for grid in torch.meshgrid(place, place, indexing="ij"))
        pairs = (row[:, None] - row[None, :] + side - 1) * (2 * side - 1) + column[:, None] - column[None, :] + side - 1
        self.register_buffer("pairs", pairs, persistent=False)  # (side^2, side^2)
        self.register_buffer("mask", shift_mask(map_size, side, shift) if shift else None, persistent=False)
        self.baked: Optional[Tensor] = None

    def bias(self) -> Tensor:
        """Position bias of every pair of places, (heads, side^2, side^2), in (0, 16)."""
        table = self.position(self.coordinates)  # (places, heads)
        pairs = table[self.pairs.reshape(-1)].reshape(*self.pairs.shape, self.heads)
        return 16.0 * torch.sigmoid(pairs.permute(2, 0, 1))

    def bake(self) -> None:
        """Compute the position bias once, for the exported graph: it does not depend on the input."""
        self.baked = self.bias().detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend within (shifted) windows of a map (N, H, W, C)."""
        n, channels = tokens.shape[0], tokens.shape[-1]
        if self.shift:
            tokens = torch.roll(tokens, (-self.shift, -self.shift), dims=(1, 2))
        windows = to_windows(tokens, self.side)  # (N, M, T, C)
        count, places = windows.shape[1], windows.shape[2]
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = functional.linear(windows, self.qkv.weight, bias)
        parts = qkv.reshape(n, count, places, 3, self.heads, channels // self.heads).permute(3, 0, 1, 4, 2, 5)
        query, key, value = parts[0], parts[1], parts[2]  # (N, M, heads, T, C / heads)
        scale = torch.exp(torch.clamp(self.logit_scale, max=LOGIT_SCALE_LIMIT))
        logits = (_unit(query) * scale) @ _unit(key).transpose(-2, -1)
        logits = logits + (self.bias() if self.baked is None else self.baked)
        if self.mask is not None:
            logits = logits + self.mask[:, None]
        mixed = torch.softmax(logits, dim=-1) @ value  # (N, M, heads, T, C / heads)
        mixed = self.project(mixed.transpose(2, 3).reshape(n, count, places, channels))
        tokens = from_windows(mixed, self.side, self.map_size, self.map_size)
        if self.shift:
            tokens = torch.roll(tokens, (self.shift, self.shift), dims=(1, 2))
        return tokens


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(dim=-1, keepdim=True) + 1e-8)


class Block(nn.Module):
    """Attention, then an MLP, each normalised *after* it and added to its input (Swin V2)."""

    def __init__(self, channels: int, map_size: int, is_shifted: bool, size: SizeConfig) -> None:
        super().__init__()
        side = min(size.attention_window, map_size)
        shift = side // 2 if is_shifted and map_size > side else 0
        heads = max(1, channels // size.head_channels)
        self.attention = WindowAttention(channels, heads, map_size, side, shift, size.position_hidden)
        self.norm_attention = nn.LayerNorm(channels)
        wide = channels * size.expansion
        self.mlp = nn.Sequential(nn.Linear(channels, wide), nn.GELU(), nn.Linear(wide, channels))
        self.norm_mlp = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, H, W, C) to one of the same shape."""
        tokens = tokens + self.norm_attention(self.attention(tokens))
        mixed: Tensor = tokens + self.norm_mlp(self.mlp(tokens))
        return mixed


class Merging(nn.Module):
    """Patch merging: each 2 x 2 square of tokens becomes one of twice the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H / 2, W / 2, 2 C)."""
        n, height, width, channels = tokens.shape
        squares = tokens.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        merged: Tensor = self.norm(self.reduce(squares.reshape(n, height // 2, width // 2, 4 * channels)))
        return merged


class SwinEncoder(nn.Module):
    """Features (N, F, H, W) in cells -> one map per stage, finest first, channels last."""

    def __init__(self, features: int, size: SizeConfig) -> None:
        super().__init__()
        step = size.patch_px // size.cell_px
        self.embed = nn.Conv2d(features, size.channels, step, step)
        self.norm = nn.LayerNorm(size.channels)
        self.stages = nn.ModuleList()
        self.mergings = nn.ModuleList()
        for stage, depth in enumerate(size.depths):
            width, tokens = size.width(stage), size.tokens(stage)
            self.stages.append(nn.Sequential(*[Block(width, tokens, i % 2 == 1, size) for i in range(depth)]))
            if stage + 1 < len(size.depths):
                self.mergings.append(Merging(width))
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
