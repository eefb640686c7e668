"""Windows of the network: where they lie, how they are weighted, and how their predictions become one image.

Along one axis of L pixels, window k decodes the pixels [k * stride, k * stride + decode) and sees ``margin`` =
(size - decode) / 2 more on each side, so its origin is k * stride - margin (negative for the first: the grid's
surroundings are context too). The weight falls to 0 at the edges of the decoded square; normalised, the weights of all
windows sum to 1 at every pixel. Weights are separable: a pixel's weight is that of its row times that of its column.

Example: L = 500, size 256, stride 160, decode 192 -> windows at origins -32, 128, 288, which decode 0-192, 160-352 and
320-512 (the last 12 pixels are cut off).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from .manifest import WindowSpec

FloatArray = NDArray[np.float32]

# Standard deviation of the Gaussian weight in parts of the decoded side, as in the paper's blending.
_GAUSSIAN_SIGMA = 0.25


def taper(spec: WindowSpec) -> NDArray[np.float64]:
    """Return the weight of the decoded pixels along one axis, before it is normalised.

    Returns:
        (decode_px,), positive at every pixel centre, symmetric, 0 at the outer edges (half a pixel beyond the first
        and the last centre).

    Raises:
        ValueError: If the windows could not cover every pixel or the shape is unknown.
    """
    side, stride = spec.decode_px, spec.stride_px
    if not 0 < stride <= side <= spec.size_px or (spec.size_px - side) % 2:
        raise ValueError(f"window {spec.size_px} px, decoded {side} px and stride {stride} px do not fit together")
    edge = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side))  # distance to the nearer edge, pixels
    if spec.weight == "cosine":
        ramp = max(side - stride, 1)
        weight: NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * np.minimum(edge / ramp, 1.0))
        return weight
    if spec.weight == "gaussian":
        sigma, half = _GAUSSIAN_SIGMA * side, side / 2
        gaussian: NDArray[np.float64] = np.exp(-0.5 * ((half - edge) / sigma) ** 2) - math.exp(
            -0.5 * (half / sigma) ** 2
        )
        return gaussian
    raise ValueError(f"weight {spec.weight!r} is neither 'cosine' nor 'gaussian'")


@dataclass(frozen=True)
class Axis:
    """The windows along one axis.

    Attributes:
        length: Pixels of the grid along this axis.
        stride: Pixels from one window to the next.
        margin: Pixels that a window sees beyond those it decodes, on each side.
        size: Pixels that a window sees.
        weights: (n, decode), normalised weight of each decoded pixel; 0 beyond the grid.
    """

    length: int
    stride: int
    margin: int
    size: int
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, length: int, spec: WindowSpec) -> Axis:
        """Lay windows over ``length`` pixels."""
        weight, side, stride = taper(spec), spec.decode_px, spec.stride_px
        count = max(1, math.ceil((length - side) / stride) + 1)
        total = np.zeros((count - 1) * stride + side)
        for k in range(count):
            total[k * stride : k * stride + side] += weight
        weights = np.stack([weight / total[k * stride : k * stride + side] for k in range(count)])
        for k in range(count):
            weights[k, max(0, length - k * stride) :] = 0.0
        return cls(length, stride, (spec.size_px - side) // 2, spec.size_px, weights)

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.weights)

    @property
    def decode(self) -> int:
        """Pixels that a window decodes."""
        return int(self.weights.shape[1])

    def origin(self, k: int) -> int:
        """First pixel that window ``k`` sees; may be negative."""
        return k * self.stride - self.margin

    def finished(self, k: int) -> Tuple[int, int]:
        """Half-open range of pixels that are complete once window ``k`` follows all windows before it."""
        stop = self.length if k == self.count - 1 else min((k + 1) * self.stride, self.length)
        return min(k * self.stride, self.length), stop


class Blend:
    """Weighted sum of window predictions over a block of window columns, handed out row by row.

    Sums run in float64, so that neither the order of the windows nor the width of the blocks shows in a float32 result.
    Holds ``decode`` rows of the block. What reaches beyond the block's right edge is kept and given to the next block,
    so that no window is computed twice; that strip is as tall as the grid and ``decode - stride`` pixels wide.
    """

    def __init__(self, rows: Axis, columns: Axis, first: int, last: int, classes: int, left: Optional[Blend]) -> None:
        """Cover the window columns ``first`` to ``last`` (inclusive); ``left`` is the block before, if any."""
        self._rows, self._columns = rows, columns
        self._first, self._last = first, last
        self._left_edge = first * columns.stride
        self._overlap = columns.decode - columns.stride
        width = (last - first) * columns.stride + columns.decode
        self._sum = np.zeros((classes, rows.decode, width))
        tall = (rows.count - 1) * rows.stride + rows.decode
        more = last < columns.count - 1
        self._spill = np.zeros((classes, tall, self._overlap)) if more else None
        self._inherited = left._spill if left is not None else None
        self._start_rows(0, rows.decode)

    def _start_rows(self, start: int, stop: int) -> None:
        """Take over the left neighbour's share for the grid rows that enter the buffer at its bottom."""
        if self._inherited is not None and self._overlap:
            part = self._inherited[:, start:stop]
            self._sum[:, self._rows.decode - (stop - start) :, : self._overlap] = part

    def add(self, row: int, column: int, prediction: FloatArray) -> None:
        """Add window (``row``, ``column``)'s prediction, (K, decode, decode); rows must come in ascending order."""
        weight = self._rows.weights[row][:, None] * self._columns.weights[column][None, :]
        left = (column - self._first) * self._columns.stride
        self._sum[:, :, left : left + self._columns.decode] += prediction * weight

    def finish_row(self, row: int) -> FloatArray:
        """Return the finished pixels of window row ``row``: (K, finished rows, finished columns), and move on."""
        start, stop = self._rows.finished(row)
        left = self._left_edge
        right = self._columns.finished(self._last)[1]
        result: FloatArray = self._sum[:, : stop - start, : right - left].astype(np.float32)
        stride = self._rows.stride
        if self._spill is not None and self._overlap:
            keep = self._rows.decode if row == self._rows.count - 1 else stride
            top = row * stride
            self._spill[:, top : top + keep] = self._sum[:, :keep, -self._overlap :]
        self._sum[:, :-stride] = self._sum[:, stride:]
        self._sum[:, self._rows.decode - stride :] = 0.0
        if row < self._rows.count - 1:
            below = row * stride + self._rows.decode
            self._start_rows(below, below + stride)
        return result
