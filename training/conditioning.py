"""From raw channels to what an encoder sees: pooling, context, robust scaling. Part of the exported graph.

Raw means: the channel's own unit, NaN where a value is missing. A feature that has no data anywhere under it is 0
after scaling, which is also the centre of the training data: missing is unremarkable, not extreme.
"""

from __future__ import annotations

import math
from typing import List, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import FeatureConfig, GroupConfig, SizeConfig


def average_cells(raw: Tensor, cell_px: int) -> Tensor:
    """Mean of what is known in squares of ``cell_px``: (..., C, S, S) -> (..., C, S / cell_px, S / cell_px).

    NaN where nothing is known.
    """
    if cell_px == 1:
        return raw
    is_known = ~torch.isnan(raw)
    share = functional.avg_pool2d(is_known.to(raw.dtype), cell_px)
    total = functional.avg_pool2d(torch.where(is_known, raw, torch.zeros_like(raw)), cell_px)
    return torch.where(share > 0, total / share.clamp(min=1e-6), torch.full_like(total, float("nan")))


class Conditioning(nn.Module):
    """Turns a raw window (N, C, S, S) of one group into features (N, F, S / cell_px, S / cell_px)."""

    centre: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, group: GroupConfig, size: SizeConfig) -> None:
        super().__init__()
        self.group = group
        self.cell_px, self.cells = size.cell_px, size.window_px // size.cell_px
        self.cell_m = size.cell_px * size.resolution_m
        self.is_asinh = [feature.curve == "asinh" for feature in group.features]

        def column(values: List[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)

        self.register_buffer("centre", column([feature.centre for feature in group.features]))
        self.register_buffer("scale", column([feature.scale for feature in group.features]))
        self.register_buffer("limit", column([feature.limit for feature in group.features]))

    def forward(self, raw: Tensor) -> Tensor:
        """Features of windows, missing ones 0, each within its limit.

        Args:
            raw: Windows (N, C, S, S), or their cells as :func:`average_cells` makes them, which training does once for
                the whole scene.
        """
        cells = raw if raw.shape[-1] == self.cells else average_cells(raw, self.cell_px)
        value, known = self.unscaled(cells)
        scaled = (value - self.centre) / self.scale
        if any(self.is_asinh):
            curved = torch.tensor(self.is_asinh, device=raw.device).reshape(1, -1, 1, 1)
            scaled = torch.where(curved, torch.asinh(scaled), scaled)
        scaled = torch.minimum(torch.maximum(scaled, -self.limit), self.limit)
        return torch.where(known, scaled, torch.zeros_like(scaled))

    def unscaled(self, cells: Tensor) -> Tuple[Tensor, Tensor]:
        """Features of cells (N, C, H, W) in their own unit, and where they are known, both (N, F, H, W)."""
        is_known = ~torch.isnan(cells)
        value, weight = torch.where(is_known, cells, torch.zeros_like(cells)), is_known.to(cells.dtype)
        index = {name: i for i, name in enumerate(self.group.channels)}
        values: List[Tensor] = []
        weights: List[Tensor] = []
        for feature in self.group.features:
            found, known = self._feature(feature, [index[name] for name in feature.channels], value, weight)
            values.append(found)
            weights.append(known)
        return torch.cat(values, dim=1), torch.cat(weights, dim=1) > 0

    def _feature(self, feature: FeatureConfig, at: List[int], value: Tensor, known: Tensor) -> Tuple[Tensor, Tensor]:
        one, weight = value[:, at[0] : at[0] + 1], known[:, at[0] : at[0] + 1]
        if feature.kind == "gradient":
            slope = value[:, at[1] : at[1] + 1]
            weight = weight * known[:, at[1] : at[1] + 1]
            one = one * torch.tan(slope * (math.pi / 180.0))
        if feature.kind == "value" or (feature.kind == "gradient" and feature.radius_m == 0):
            return one, weight
        around = self._mean(one, weight, feature.radius_m)
        if feature.kind == "relative":
            return one - around, weight
        return around, weight

    def _mean(self, value: Tensor, known: Tensor, radius_m: float) -> Tensor:
        """Mean over the known part of a square around each cell; squares end at the window's edge."""
        reach = max(1, round(radius_m / self.cell_m))
        reach = min(reach, value.shape[-1] - 1)

        def box(image: Tensor) -> Tensor:
            image = functional.avg_pool2d(image, (1, 2 * reach + 1), stride=1, padding=(0, reach))
            return functional.avg_pool2d(image, (2 * reach + 1, 1), stride=1, padding=(reach, 0))

        return box(value * known) / box(known).clamp(min=1e-6)


def fit_scales(conditioning: Conditioning, cells: Tensor) -> Tuple[List[float], List[float]]:
    """Centre and scale of each feature from cells of windows (N, C, H, W): median and half the 5-95 % range.

    Shares of land-cover classes keep their own scale (centre: mean, divisor 0.5), because the range of a rare class is
    zero and its presence would otherwise be an extreme value.
    """
    with torch.no_grad():
        value, known = conditioning.unscaled(cells)
    centres, scales = [], []
    for i, feature in enumerate(conditioning.group.features):
        sample = value[:, i][known[:, i]]
        if sample.numel() == 0:
            raise ValueError(f"feature {feature.kind} of {', '.join(feature.channels)} has no value to be scaled by")
        sample = sample[:: max(1, sample.numel() // 200_000)]
        low, middle, high = torch.quantile(sample, torch.tensor([0.05, 0.5, 0.95])).tolist()
        is_share = float(sample.min()) >= 0.0 and float(sample.max()) <= 1.0
        centres.append(float(sample.mean()) if is_share else middle)
        scales.append(0.5 if is_share else max((high - low) / 2.0, 1e-6))
    return centres, scales
