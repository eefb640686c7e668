"""The network of the authors' released code, to run checkpoints that were trained with it.

It shares its parts with :mod:`training.model`; what differs is here or behind a switch: a Swin V1 covariate encoder,
offsets with swapped axes (:mod:`training.implicit`), windows of 250 px that are resized to 256 px, fixed scaling
(:mod:`training.released_inputs`), and a geographic encoder of grid cells. Nothing is trained in this form here: it only
answers what the released code answers, to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, List, Mapping, NamedTuple, Tuple, cast

import torch
from torch import Tensor, nn

from .config import GroupConfig, ModelConfig, SizeConfig
from .implicit import to_unit
from .model import Branch, Head, Mapper
from .released_inputs import BANDS, COVARIATES, SATELLITE, VARIABLES, WINDOW_PX, Scaling, manifest_groups
from .swin import V1, V2, Attention

# Shortest and longest wavelength (over 2 pi) of the grid cells, in units of the scaled coordinates.
_RADII = (0.0005, 2.0)


@dataclass(frozen=True)
class ReleasedForm:
    """Sizes of a released network.

    Attributes:
        satellite: Of the satellite branch.
        covariates: Of the covariate branch; the same embedding.
        task: Name of the task.
        outputs: Its number of outputs.
        frequencies: Grid cells per axis of the geographic encoder.
        geo_layers: Its layers.
    """

    satellite: SizeConfig
    covariates: SizeConfig
    task: str
    outputs: int
    frequencies: int = 64
    geo_layers: int = 5


class ReleasedBranch(Branch):
    """One modality of a released network, with its scaling in front."""

    def __init__(self, channels: int, size: SizeConfig, version: str, scaling: Scaling) -> None:
        super().__init__(channels, size, version, WINDOW_PX)
        self.scaling = scaling

    def maps(self, raw: Tensor) -> List[Tensor]:
        """Stage maps of raw windows (N, C, 250, 250)."""
        maps: List[Tensor] = self.encoder(self.scaling(raw))
        return maps


class GeoLayer(nn.Module):
    """Linear and ReLU; between the first and the last layer also a skip and a LayerNorm."""

    def __init__(self, inputs: int, width: int, is_inner: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width) if is_inner else None

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., inputs) -> (..., width)."""
        mapped = torch.relu(self.linear(vectors))
        if self.norm is None:
            return mapped
        normed: Tensor = self.norm(mapped + vectors)
        return normed


class GridCellEncoder(nn.Module):
    """Location encoder of the released code: sines and cosines of grid cells (Space2Vec, Mai et al. 2020), then layers.

    Wavelengths grow geometrically from 0.0005 to 2. Angles reach thousands of radians, so that their rounding shows:
    wavenumbers are computed in double precision, then rounded, and angles are single-precision products, as in the
    released code. (All of it in double precision moves the embedding by 1e-4.)
    """

    wavenumbers: Tensor

    def __init__(self, frequencies: int, layers: int, width: int) -> None:
        super().__init__()
        step = math.log(_RADII[1] / _RADII[0]) / max(frequencies - 1, 1)
        wavenumbers = 1.0 / (_RADII[0] * torch.exp(torch.arange(frequencies, dtype=torch.float64) * step))
        self.register_buffer("wavenumbers", wavenumbers.float(), persistent=False)
        self.layers = nn.ModuleList(
            GeoLayer(4 * frequencies if i == 0 else width, width, 0 < i < layers - 1) for i in range(layers)
        )

    def encode(self, scaled: Tensor) -> Tensor:
        """Scaled coordinates (..., 2) -> (..., 4 F): for x, then y, for each wavelength sine and cosine."""
        angle = scaled[..., None] * self.wavenumbers  # (..., 2, F)
        return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(-3)

    def forward(self, scaled: Tensor) -> Tensor:
        """(..., 2) scaled coordinates -> (..., D)."""
        vectors = self.encode(scaled)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors


class Answers(NamedTuple):
    """What a released network says of Q places of N images; all (N, Q, ...).

    Attributes:
        satellite: Embedding of the satellite branch, D.
        covariates: Embedding of the covariate branch, D.
        visual: Of their sum, D.
        logits: Of the task, K.
    """

    satellite: Tensor
    covariates: Tensor
    visual: Tensor
    logits: Tensor


class ReleasedMiso(nn.Module):
    """See the module. ``modalities``, ``visual`` and ``heads`` are named as in :class:`training.model.Miso`."""

    def __init__(self, form: ReleasedForm) -> None:
        super().__init__()
        width = form.satellite.embedding
        if form.covariates.embedding != width:
            raise ValueError(f"branches of widths {width} and {form.covariates.embedding} cannot be summed")
        self.form = form
        self.modalities = nn.ModuleDict(
            {
                SATELLITE: ReleasedBranch(len(BANDS), form.satellite, V2, Scaling(BANDS)),
                COVARIATES: ReleasedBranch(len(VARIABLES), form.covariates, V1, Scaling(VARIABLES)),
            }
        )
        self.visual = Mapper(width, 0.0)
        self.heads = nn.ModuleDict({form.task: Head(width, form.outputs)})
        self.geo = GridCellEncoder(form.frequencies, form.geo_layers, width)
        self.geo_mapper = Mapper(width, 0.0)
        self.geo_head = Head(width, form.outputs)

    @property
    def config(self) -> ModelConfig:
        """Groups and tasks as the export names them; features are made by :class:`Scaling` instead."""
        groups = tuple(
            GroupConfig(group.name, tuple(channel.name for channel in group.channels), ())
            for group in manifest_groups()
        )
        return ModelConfig(groups, self.form.satellite, {self.form.task: self.form.outputs})

    @property
    def window_px(self) -> int:
        """Side of the windows that the exported graph takes."""
        return WINDOW_PX

    def branch(self, name: str) -> ReleasedBranch:
        """The branch of a group."""
        return cast("ReleasedBranch", self.modalities[name])

    def image_maps(self, image: Tensor) -> Dict[str, List[Tensor]]:
        """Stage maps of both branches from scaled images (N, 19, 256, 256), satellite bands first."""
        parts = torch.split(image, [len(BANDS), len(VARIABLES)], dim=1)
        return {name: self.branch(name).encoder(part) for name, part in zip((SATELLITE, COVARIATES), parts)}

    def answer(self, maps: Mapping[str, List[Tensor]], y: Tensor, x: Tensor) -> Answers:
        """Everything that is known of places (N, Q) in [-1, 1] from the maps of both branches."""
        satellite, covariates = (self.branch(name)(maps[name], y, x) for name in (SATELLITE, COVARIATES))
        visual = self.visual(satellite + covariates)
        return Answers(satellite, covariates, visual, self.heads[self.form.task](visual))

    def locate(self, scaled: Tensor) -> Tuple[Tensor, Tensor]:
        """Geographic embedding (N, Q, D) and its own logits (N, Q, K) from scaled coordinates (N, Q, 2)."""
        embedding = self.geo_mapper(self.geo(scaled))
        return embedding, self.geo_head(embedding)

    def forward(self, raw: Mapping[str, Tensor], rows_px: Tensor, columns_px: Tensor) -> Dict[str, Tensor]:
        """Logits (N, Q, K) of the task at pixel coordinates (N, Q) of raw windows {group: (N, C, 250, 250)}."""
        maps = {name: self.branch(name).maps(raw[name]) for name in (SATELLITE, COVARIATES)}
        found = self.answer(maps, to_unit(rows_px, float(WINDOW_PX)), to_unit(columns_px, float(WINDOW_PX)))
        return {self.form.task: found.logits}

    def bake(self) -> None:
        """Fix what does not depend on the input, before an export."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.bake()
