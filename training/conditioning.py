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


class Conditioning(nn.Module):
    """Turns a raw window (N, C, S, S) of one group into features (N, F, S / cell_px, S / cell_px)."""

    centre: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, group: GroupConfig, size: SizeConfig) -> None:
        super().__init__()
        self.group = group
        self.cell_px = size.cell_px
        self.cell_m = size.cell_px * size.resolution_m
        self.is_asinh = [feature.curve == "asinh" for feature in group.features]

        def column(values: List[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)

        self.register_buffer("centre", column([feature.centre for feature in group.features]))
        self.register_buffer("scale", column([feature.scale for feature in group.features]))
        self.register_buffer("limit", column([feature.limit for feature in group.features]))

    def forward(self, raw: Tensor) -> Tensor:
        """Features of raw windows, missing ones 0, each within its limit."""
        value, known = self.unscaled(raw)
        scaled = (value - self.centre) / self.scale
        if any(self.is_asinh):
            curved = torch.tensor(self.is_asinh, device=raw.device).reshape(1, -1, 1, 1)
            scaled = torch.where(curved, torch.asinh(scaled), scaled)
        scaled = torch.minimum(torch.maximum(scaled, -self.limit), self.limit)
        return torch.where(known, scaled, torch.zeros_like(scaled))

    def unscaled(self, raw: Tensor) -> Tuple[Tensor, Tensor]:
        """Features in their own unit and where they are known, both (N, F, S / cell_px, S / cell_px)."""
        is_known = ~torch.isnan(raw)
        value = torch.where(is_known, raw, torch.zeros_like(raw))
        share = functional.avg_pool2d(is_known.to(raw.dtype), self.cell_px)  # (N, C, H, W)
        value = functional.avg_pool2d(value, self.cell_px) / share.clamp(min=1e-6)
        index = {name: i for i, name in enumerate(self.group.channels)}
        values: List[Tensor] = []
        shares: List[Tensor] = []
        for feature in self.group.features:
            found, weight = self._feature(feature, [index[name] for name in feature.channels], value, share)
            values.append(found)
            shares.append(weight)
        return torch.cat(values, dim=1), torch.cat(shares, dim=1) > 0

    def _feature(self, feature: FeatureConfig, at: List[int], value: Tensor, share: Tensor) -> Tuple[Tensor, Tensor]:
        one, weight = value[:, at[0] : at[0] + 1], share[:, at[0] : at[0] + 1]
        if feature.kind == "gradient":
            slope = value[:, at[1] : at[1] + 1]
            weight = weight * (share[:, at[1] : at[1] + 1] > 0).to(weight.dtype)
            one = one * torch.tan(slope * (math.pi / 180.0))
        if feature.kind == "value" or (feature.kind == "gradient" and feature.radius_m == 0):
            return one, weight
        around = self._mean(one, weight, feature.radius_m)
        if feature.kind == "relative":
            return one - around, weight
        return around, weight

    def _mean(self, value: Tensor, share: Tensor, radius_m: float) -> Tensor:
        """Mean over the known part of a square around each cell; squares end at the window's edge."""
        reach = max(1, round(radius_m / self.cell_m))
        reach = min(reach, value.shape[-1] - 1)

        def box(image: Tensor) -> Tensor:
            image = functional.avg_pool2d(image, (1, 2 * reach + 1), stride=1, padding=(0, reach))
            return functional.avg_pool2d(image, (2 * reach + 1, 1), stride=1, padding=(reach, 0))

        return box(value * share) / box(share).clamp(min=1e-6)


def fit_scales(conditioning: Conditioning, raw: Tensor) -> Tuple[List[float], List[float]]:
    """Centre and scale of each feature from raw windows (N, C, S, S): median and half the 5-95 % range.

    Shares of land-cover classes keep their own scale (centre: mean, divisor 0.5), because the range of a rare class is
    zero and its presence would otherwise be an extreme value.
    """
    with torch.no_grad():
        value, known = conditioning.unscaled(raw)
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
