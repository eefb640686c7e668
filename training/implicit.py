"""Local implicit image function: the value of a map of tokens at any coordinate (eq. 1 of the MISO paper).

    G(x_q) = sum over the four nearest tokens t of (S_t / S) f(z_t, x_q - v_t)

S_t is the area of the rectangle between x_q and the token *diagonally opposite* to t, so a token's weight is 1 at its
centre. Coordinates are pixels of the window, (row, column), the centre of pixel i at i + 0.5. Offsets are in tokens of
the map, (row, column), so they lie in [-1, 1]. Beyond the outermost centres the outermost token stands for its missing
neighbour. (The released code swaps the axes of the offsets; this is the paper's form.)

Two exact ways to evaluate: at scattered points, and on a grid of rows x columns. The second splits f's first linear
into a part per token and a part per row and per column, and merges its last linear with the one behind the blend
(weights sum to 1, so both commute with it).
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn


class Neighbours(NamedTuple):
    """The two nearest tokens along one axis.

    Attributes:
        token: Number of the token before and after, (..., 2), int64, inside the map.
        offset: x_q - v_t in tokens, (..., 2).
        weight: Share of each, (..., 2), sums to 1.
    """

    token: Tensor
    offset: Tensor
    weight: Tensor


def neighbours(coordinate_px: Tensor, token_px: float, tokens: int) -> Neighbours:
    """Nearest tokens along one axis.

    Worked: tokens of 8 px have centres 4, 12, 20...; pixel coordinate 6 lies a quarter of the way from token 0 to 1:
    token (0, 1), offset (0.25, -0.75), weight (0.75, 0.25).
    """
    place = coordinate_px / token_px - 0.5
    before = torch.floor(place)
    share = place - before
    pair = torch.stack([before, before + 1.0], dim=-1).clamp(0.0, float(tokens - 1))
    offset = place[..., None] - pair
    return Neighbours(pair.long(), offset, torch.stack([1.0 - share, share], dim=-1))


class ImplicitFunction(nn.Module):
    """f and the blend for one stage of one modality; output width D."""

    def __init__(
        self,
        channels: int,
        widths: Tuple[int, int],
        embedding: int,
        token_px: float,
        tokens: int,
        offset_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.token_px, self.tokens, self.offset_gain = token_px, tokens, offset_gain
        self.cell = nn.Linear(channels, widths[0])  # first linear of f, the part that sees z_t (and its bias)
        self.offset = nn.Linear(2, widths[0], bias=False)  # first linear of f, the part that sees x_q - v_t
        self.middle = nn.Linear(widths[0], widths[1])
        self.last = nn.Linear(widths[1], embedding)
        self.output = nn.Linear(embedding, embedding)
        self.norm = nn.LayerNorm(embedding)

    def forward(self, features: Tensor, rows_px: Tensor, columns_px: Tensor) -> Tensor:
        """Evaluate literally at scattered points.

        Args:
            features: Map (N, H, W, C).
            rows_px: (N, Q).
            columns_px: (N, Q).

        Returns:
            (N, Q, D).
        """
        cells = self.cell(features).flatten(1, 2)  # (N, H * W, h1)
        row = neighbours(rows_px, self.token_px, self.tokens)
        column = neighbours(columns_px, self.token_px, self.tokens)
        flat = (row.token[..., :, None] * self.tokens + column.token[..., None, :]).flatten(1)  # (N, Q * 4)
        near = torch.gather(cells, 1, flat[..., None].expand(-1, -1, cells.shape[-1]))
        near = near.reshape(*rows_px.shape, 2, 2, cells.shape[-1])  # (N, Q, 2, 2, h1)
        shape = near.shape[:-1]
        offset = torch.stack(
            [row.offset[..., :, None].expand(shape), column.offset[..., None, :].expand(shape)], dim=-1
        )
        value = self.last(torch.relu(self.middle(torch.relu(near + self.offset(offset * self.offset_gain)))))
        weight = row.weight[..., :, None] * column.weight[..., None, :]  # opposite rectangle over the whole
        blended = (value * weight[..., None]).sum(dim=(-3, -2))
        normed: Tensor = self.norm(self.output(blended))
        return normed

    def cell_map(self, features: Tensor) -> Tensor:
        """The per-token part of f's first linear, (N, H, W, h1): what the encoder graph hands to the decoder."""
        cells: Tensor = self.cell(features)
        return cells

    def merged(self) -> Tuple[Tensor, Tensor]:
        """Weight (D, h2) and bias (D,) of f's last linear and the output linear in one."""
        weight = self.output.weight @ self.last.weight
        bias = self.output.weight @ self.last.bias + self.output.bias
        return weight, bias
