"""MISO: one Swin encoder and one set of implicit functions per modality, summed, mapped, and a head per task.

Source: "Fine-Scale Soil Mapping in Alaska with Multimodal Machine Learning", arXiv:2506.17302; block forms where the
paper is silent follow the released code (mappers, heads), offsets and blend follow the paper.
"""

from __future__ import annotations

import math
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, cast

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .config import GroupConfig, ModelConfig, SizeConfig
from .implicit import PAPER, RELEASED, ImplicitFunction
from .swin import V2, Attention, SwinEncoder

# EPSG:3338 metres -> [-1, 1], as the released code scales them: the box of the AKVEG grid.
GEO_X_RANGE = (-2199995.0, 1500005.0)
GEO_Y_RANGE = (2400005.0, 5.0)


class Embeddings(NamedTuple):
    """What is known of Q locations of N windows, each (N, Q, D): per modality, and combined for every view."""

    modalities: Dict[str, Tensor]
    visual: List[Tensor]


class Mapper(nn.Module):
    """Linear, GELU, Linear, LayerNorm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        mapped: Tensor = self.norm(self.second(nn.functional.gelu(self.first(self.drop(vectors)))))
        return mapped


class Head(nn.Module):
    """Linear, GELU, Linear to half, GELU, Linear to the task's outputs."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width // 2)
        self.last = nn.Linear(width // 2, outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) -> logits (..., K)."""
        hidden = nn.functional.gelu(self.second(nn.functional.gelu(self.first(vectors))))
        logits: Tensor = self.last(hidden)
        return logits


class Branch(nn.Module):
    """Encoder, implicit functions and mapper of one modality: from maps to an embedding at any coordinate.

    A branch of the released code's form (``released_window_px``) reads its coordinates as :mod:`training.implicit`
    says for that form.
    """

    def __init__(
        self, features: int, size: SizeConfig, version: str = V2, released_window_px: Optional[int] = None
    ) -> None:
        super().__init__()
        self.encoder = SwinEncoder(features, size, version)
        self.implicit = nn.ModuleList(
            ImplicitFunction(
                size.width(stage),
                size.implicit(stage),
                size.embedding,
                released_window_px / size.tokens(stage) if released_window_px else float(size.patch_px * 2**stage),
                size.tokens(stage),
                size.offset_gain,
                RELEASED if released_window_px else PAPER,
            )
            for stage in range(len(size.depths))
        )
        self.norm = nn.LayerNorm(size.embedding)
        self.mapper = Mapper(size.embedding, size.dropout)

    def forward(self, maps: Sequence[Tensor], rows_px: Tensor, columns_px: Tensor) -> Tensor:
        """Embedding (N, Q, D) at coordinates (N, Q), from the maps of all stages."""
        stages = [f(features, rows_px, columns_px) for f, features in zip(self.implicit, maps)]
        embedding: Tensor = self.mapper(self.norm(torch.stack(stages).sum(dim=0)))
        return embedding


class Modality(Branch):
    """The branch of one group, and how its raw channels become features."""

    def __init__(self, group: GroupConfig, size: SizeConfig) -> None:
        super().__init__(len(group.features), size)
        self.conditioning = Conditioning(group, size)

    def maps(self, raw: Tensor, keep: Optional[Tensor] = None) -> List[Tensor]:
        """Stage maps of raw windows; ``keep`` (N, F) of 0 and 1 hides features in training."""
        features = self.conditioning(raw)
        if keep is not None:
            features = features * keep[:, :, None, None]
        maps: List[Tensor] = self.encoder(features)
        return maps


class GeoEncoder(nn.Module):
    """Where a location is, as an embedding: positional encoding, then three fully connected layers.

    Used by the contrastive loss only and therefore absent from the exported graphs.
    """

    frequencies: Tensor

    def __init__(self, frequencies: int, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(frequencies), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(2 + 4 * frequencies, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def encode(self, scaled: Tensor) -> Tensor:
        """[x, y, sin(2^k pi x), sin(2^k pi y), cos(...), cos(...)] of scaled coordinates (..., 2): (..., 2 + 4 L)."""
        angle = scaled[..., None, :] * self.frequencies[:, None]  # (..., L, 2)
        return torch.cat([scaled, torch.sin(angle).flatten(-2), torch.cos(angle).flatten(-2)], dim=-1)

    def forward(self, scaled: Tensor) -> Tensor:
        """(..., 2) scaled coordinates -> (..., D)."""
        embedding: Tensor = self.layers(self.encode(scaled))
        return embedding


def scale_coordinates(x_m: Tensor, y_m: Tensor) -> Tensor:
    """EPSG:3338 metres to [-1, 1]: x from west to east, y from north (-1) to south (+1)."""
    x = 2.0 * (x_m - GEO_X_RANGE[0]) / (GEO_X_RANGE[1] - GEO_X_RANGE[0]) - 1.0
    y = 2.0 * (y_m - GEO_Y_RANGE[0]) / (GEO_Y_RANGE[1] - GEO_Y_RANGE[0]) - 1.0
    return torch.stack([x, y], dim=-1).float()


class Miso(nn.Module):
    """The whole network of one member."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.size
        self.modalities = nn.ModuleDict({group.name: Modality(group, size) for group in config.groups})
        self.visual = Mapper(size.embedding, size.dropout)
        self.heads = nn.ModuleDict({task: Head(size.embedding, outputs) for task, outputs in config.tasks.items()})
        self.geo = GeoEncoder(size.frequencies, size.embedding)

    def embed(
        self,
        raw: Mapping[str, Tensor],
        rows_px: Tensor,
        columns_px: Tensor,
        keep: Optional[Mapping[str, Tensor]] = None,
    ) -> Embeddings:
        """Embeddings at coordinates (N, Q) of raw windows {group: (N, C, S, S)}."""
        found = {}
        for name, modality in self.modalities.items():
            part = cast("Modality", modality)  # reason: ModuleDict forgets what it holds
            maps = part.maps(raw[name], None if keep is None else keep[name])
            found[name] = part(maps, rows_px, columns_px)
        views = self.config.all_views
        return Embeddings(
            found, [self.visual(torch.stack([found[name] for name in view]).sum(dim=0)) for view in views]
        )

    def predict(self, visual: Tensor) -> Dict[str, Tensor]:
        """Logits (N, Q, K) of every task from one view's visual embeddings (N, Q, D)."""
        return {task: head(visual) for task, head in self.heads.items()}

    def forward(self, raw: Mapping[str, Tensor], rows_px: Tensor, columns_px: Tensor) -> Dict[str, Tensor]:
        """Logits (N, Q, K) of every task at coordinates (N, Q) of raw windows, averaged over the views."""
        views = [self.predict(visual) for visual in self.embed(raw, rows_px, columns_px).visual]
        return {task: torch.stack([view[task] for view in views]).mean(dim=0) for task in self.heads}

    @property
    def window_px(self) -> int:
        """Side of the windows that the exported graph takes."""
        return self.config.size.window_px

    def bake(self) -> None:
        """Fix what does not depend on the input, before an export."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.bake()
