"""Losses of a batch that may be spread over processes, with labels of several tasks of which any may be missing.

Each function returns this process's part, scaled so that the *mean over processes* is the loss of the whole batch
(see :mod:`training.world`).
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .model import Embeddings, Miso
from .recipes import Recipe
from .sites import MISSING
from .world import World

Batch = Dict[str, Tensor]


def masked_loss(logits: Tensor, labels: Tensor, world: World, smoothing: float = 0.0) -> Tensor:
    """Mean loss over the labels that are there: binary cross-entropy for one output, cross-entropy for more.

    Args:
        logits: (N, P, K).
        labels: (N, P) int64, class index, ``MISSING`` where there is none: such an entry has no gradient.
        world: The processes; the mean runs over the labels of all of them.
        smoothing: This share of each label is spread evenly over all classes.

    Returns:
        Scalar; 0 if no process has a label.
    """
    counts = labels != MISSING
    safe = torch.where(counts, labels, torch.zeros_like(labels))
    logits = logits.float()
    if logits.shape[-1] == 1:
        target = safe.float() * (1.0 - smoothing) + 0.5 * smoothing
        each = functional.binary_cross_entropy_with_logits(logits[..., 0], target, reduction="none")
    else:
        each = functional.cross_entropy(
            logits.flatten(0, 1), safe.flatten(), reduction="none", label_smoothing=smoothing
        ).reshape(safe.shape)
    # Not a product with the mask: 0 times an infinite loss would be NaN.
    total = torch.where(counts, each, torch.zeros_like(each)).sum()
    return world.size * total / world.total(counts.sum()).clamp(min=1)


def spread_info_nce(one: Tensor, other: Tensor, temperature: float, world: World) -> Tensor:
    """Symmetric InfoNCE whose negatives are all other locations of the whole batch.

    Args:
        one: (M, D), this process's rows; row i belongs to row i of ``other``. All processes have M.
        other: (M, D).
        temperature: Divisor of the cosine similarity.
        world: The processes.

    Returns:
        Mean over this process's rows, in both directions; :func:`training.losses.info_nce` for a single process.
    """
    one, other = _unit(one.float()), _unit(other.float())
    everything_one, everything_other = world.gathered(one), world.gathered(other)
    own = (one * other).sum(dim=-1) / temperature
    forth = torch.logsumexp(one @ everything_other.T / temperature, dim=1) - own
    back = torch.logsumexp(other @ everything_one.T / temperature, dim=1) - own
    return 0.5 * (forth.mean() + back.mean())


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(dim=-1, keepdim=True) + 1e-8)


class Objective(nn.Module):
    """The loss of one stage as a module, so that gradients can be averaged over processes."""

    def __init__(self, model: Miso, recipe: Recipe, world: World, *, supervised: bool, precision: str) -> None:
        super().__init__()
        self.model, self.recipe, self.world, self.supervised = model, recipe, world, supervised
        self.weight = recipe.contrast.fit_weight if supervised else 1.0
        self.kind = "cuda" if world.device.startswith("cuda") else "cpu"
        self.dtype = getattr(torch, precision)
        for part in self.idle():
            part.requires_grad_(False)

    def idle(self) -> List[nn.Module]:
        """Parts of the network that this stage gives no gradient to."""
        parts: List[nn.Module] = [] if self.supervised else [self.model.heads]
        return parts if self.weight > 0 and self.recipe.contrast.geo_weight > 0 else [*parts, self.model.geo]

    @property
    def names(self) -> List[str]:
        """What :meth:`forward` returns, in order."""
        tasks = list(self.model.config.tasks) if self.supervised else []
        return ["loss", *tasks, *(["modalities", "geo"] if self.weight > 0 else [])]

    def forward(self, batch: Batch) -> Tensor:
        """The loss and its unweighted parts, one vector as :attr:`names` says; this process's share."""
        config = self.model.config
        raw = {group.name: batch[group.name] for group in config.groups}
        keep = {group.name: batch[f"keep_{group.name}"] for group in config.groups}
        asked = batch["point_rows_px"].shape[1] if self.supervised else 0
        rows, columns = batch["location_rows_px"], batch["location_columns_px"]
        if self.supervised:
            rows = torch.cat([batch["point_rows_px"], rows], dim=1)
            columns = torch.cat([batch["point_columns_px"], columns], dim=1)
        parts: List[Tensor] = []
        with torch.autocast(self.kind, self.dtype, enabled=self.dtype != torch.float32):
            found = self.model.embed(raw, rows, columns, keep)
            logits = [self.model.predict(visual[:, :asked]) for visual in found.visual] if self.supervised else []
        total = torch.zeros((), device=rows.device)
        for task in config.tasks if self.supervised else ():
            labels = batch[f"label_{task}"]
            loss = torch.stack(
                [masked_loss(view[task], labels, self.world, self.recipe.smoothing) for view in logits]
            ).mean()
            parts.append(loss)
            total = total + self.recipe.task_weights.get(task, 1.0) * loss
        if self.weight > 0:
            rest = Embeddings(
                {name: embedding[:, asked:] for name, embedding in found.modalities.items()},
                [visual[:, asked:] for visual in found.visual],
            )
            between, located = self.contrastive(rest, batch["location_scaled"])
            parts += [between, located]
            total = total + self.weight * (between + self.recipe.contrast.geo_weight * located)
        return torch.stack([total, *parts])

    def contrastive(self, found: Embeddings, scaled: Tensor) -> Sequence[Tensor]:
        """InfoNCE between the modalities (mean over pairs) and between visual and geographic embeddings."""
        temperature, world = self.recipe.contrast.temperature, self.world
        flat = [embedding.flatten(0, 1) for embedding in found.modalities.values()]
        pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
        nothing = torch.zeros((), device=scaled.device)
        between = [spread_info_nce(flat[i], flat[j], temperature, world) for i, j in pairs] or [nothing]
        if self.recipe.contrast.geo_weight == 0:
            return torch.stack(between).mean(), nothing
        # In float32: half precision would round coordinates to kilometres.
        geo = self.model.geo(scaled).flatten(0, 1)
        located = spread_info_nce(found.visual[0].flatten(0, 1), geo, temperature, world)
        return torch.stack(between).mean(), located


def suspects(model: Miso, batch: Mapping[str, Tensor], corners: Sequence[str]) -> List[str]:
    """Which windows of a batch have embeddings that are no finite numbers; all of them if none has."""
    raw = {group.name: batch[group.name] for group in model.config.groups}
    centre = torch.full((len(corners), 1), model.config.size.window_px / 2, device=next(iter(raw.values())).device)
    with torch.no_grad():
        visual = model.embed(raw, centre, centre).visual[0]
    bad = (~torch.isfinite(visual)).flatten(1).any(dim=1).tolist()
    return [corner for corner, is_bad in zip(corners, bad) if is_bad] or list(corners)
