"""The processes that train together: one, or those that ``torchrun`` started.

Every process computes its part of each batch. A loss is written so that its mean over processes is the loss of the
whole batch; gradients are averaged over processes, so that N processes learn what one learns with the same batch.
"""

from __future__ import annotations

import datetime
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from miso_qgis.engine.errors import InputError

# How long a process waits for the others: reading a large area may take one of them that long.
_PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes, and this one's place among them.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        device: What this one computes on: ``cpu``, ``cuda:0``...
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def part(self, batch: int) -> range:
        """Numbers of the windows of a batch that this process computes.

        Raises:
            InputError: If the batch cannot be shared out evenly.
        """
        if batch % self.size:
            raise InputError(
                "Batch",
                f"its {batch} windows cannot be shared out evenly among {self.size} processes.",
                "A multiple of the number of processes is needed.",
                "Change the batch in the recipe, or start another number of processes.",
            )
        own = batch // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def total(self, values: Tensor) -> Tensor:
        """Sum over processes, without gradient."""
        if self.size == 1:
            return values.detach()
        summed = values.detach().clone()
        dist.all_reduce(summed)
        return summed

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows (M, D) of all processes, (M * size, D), in order of rank; gradients flow back to their owners."""
        if self.size == 1:
            return rows
        found: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
        return found

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            self.total(torch.zeros(1, device=self.device))


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums what every process's loss says about each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        start = dist.get_rank() * ctx.count
        return summed[start : start + ctx.count]


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started; alone without it.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        InputError: If a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise InputError("Device", f'"{device}" is unknown.', "auto, cpu or cuda is needed.", "Choose one.")
    if device == "cuda" and not has_gpu:
        raise InputError("Device cuda", "torch finds no usable GPU.", "An NVIDIA GPU is needed.", "Use --device cpu.")
    kind = "cuda" if has_gpu and device != "cpu" else "cpu"
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    name = f"cuda:{local}" if kind == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(local)
    if size == 1:
        yield World(0, 1, name)
        return
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(rank, size, name)
    finally:
        dist.destroy_process_group()
