"""Losses: InfoNCE over all other locations of the batch, and binary cross-entropy over the points that count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE of two views of the same locations.

    Row i of ``one`` and row i of ``other`` belong together; every other row is a negative.

    Args:
        one: (M, D), any length.
        other: (M, D).
        temperature: Divisor of the cosine similarity.

    Returns:
        Mean of both directions; log(M) for views that say nothing of each other.

    Source: van den Oord et al. 2018 (arXiv:1807.03748).
    """
    similarity = _unit(one) @ _unit(other).T / temperature  # (M, M)
    forth = torch.logsumexp(similarity, dim=1) - torch.diagonal(similarity)
    back = torch.logsumexp(similarity, dim=0) - torch.diagonal(similarity)
    return 0.5 * (forth.mean() + back.mean())


def masked_bce(logit: Tensor, label: Tensor, counts: Tensor, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy, averaged over the entries where ``counts`` is true; 0 if there are none.

    Args:
        logit: Any shape.
        label: Same shape, 0 or 1 (any finite value where it does not count).
        counts: Same shape, bool.
        smoothing: Labels become ``label * (1 - smoothing) + smoothing / 2``.
    """
    target = label * (1.0 - smoothing) + 0.5 * smoothing
    loss = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    weight = counts.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(dim=-1, keepdim=True) + 1e-8)
