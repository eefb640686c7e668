"""Local implicit image function: the value of a map of tokens at any coordinate (eq. 1 of the MISO paper).

    G(x_q) = sum over the four nearest tokens t of (S_t / S) f(z_t, x_q - v_t)

S_t is the area of the rectangle between x_q and the token *diagonally opposite* to t, so a token's weight is 1 at its
centre. Coordinates are pixels of the window, (row, column), the centre of pixel i at i + 0.5. Offsets are in tokens of
the map, (row, column), so they lie in [-1, 1]. Beyond the outermost centres the outermost token stands for its missing
neighbour.

Checkpoints of the released code were trained with another form (``offset_convention="released"``), which is here to
import them only. Its coordinates are (y, x) in [-1, 1], and it subtracts a token's (y, x) from a query's (x, y): the
offset is n (x_q - y_t, y_q - x_t) for a map of n x n tokens, and a token's weight is 1 / (|product of these| + 1e-9),
over the sum of the four. With offsets that are not swapped these weights would equal eq. 1; with these they follow the
distance to the map's diagonal.

Two exact ways to evaluate: at scattered points, and on a grid of rows x columns. The second splits f's first linear
into a part per token and a part per row and per column, and merges its last linear with the one behind the blend
(weights sum to 1, so both commute with it). In the released form the token's own coordinates belong to its part, and
the weights are no product of a row's and a column's.
"""

from __future__ import annotations

from typing import NamedTuple, Tuple

import torch
from torch import Tensor, nn

PAPER, RELEASED = "paper", "released"
# The released code moves a query by half a token and this much, and keeps it this far from the map's edge.
_NUDGE = 1e-6
_SMALLEST_AREA = 1e-9


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


class Corners(NamedTuple):
    """The four tokens around each of Q queries: token (row[i], column[j]) for i, j in 0, 1.

    Attributes:
        row: Rows of tokens, (..., 2), int64.
        column: Columns of tokens, (..., 2), int64.
        offset: What f sees beside the token, (..., 2, 2, 2).
        weight: Share of each token, (..., 2, 2), sums to 1.
    """

    row: Tensor
    column: Tensor
    offset: Tensor
    weight: Tensor


def corners(rows_px: Tensor, columns_px: Tensor, token_px: float, tokens: int) -> Corners:
    """Tokens, offsets and weights of eq. 1 at pixel coordinates (...)."""
    row, column = neighbours(rows_px, token_px, tokens), neighbours(columns_px, token_px, tokens)
    shape = (*rows_px.shape, 2, 2)
    offset = torch.stack([row.offset[..., :, None].expand(shape), column.offset[..., None, :].expand(shape)], dim=-1)
    weight = row.weight[..., :, None] * column.weight[..., None, :]  # opposite rectangle over the whole
    return Corners(row.token, column.token, offset, weight)


def released_centres(tokens: int) -> Tensor:
    """Centres of the tokens along one axis in [-1, 1], (tokens,)."""
    reach = 1.0 / tokens
    return -1.0 + reach + 2.0 * reach * torch.arange(tokens, dtype=torch.float32)


def released_tokens(coordinate: Tensor, tokens: int) -> Tensor:
    """Numbers of the tokens before and after coordinates (...) in [-1, 1], (..., 2) int64.

    Worked: two tokens have centres -0.5 and 0.5; 0.2 moved by half a token (0.5) to -0.3 and 0.7 is nearest to 0 and 1.
    """
    reach = 1.0 / tokens
    moved = torch.stack([coordinate + (_NUDGE - reach), coordinate + (_NUDGE + reach)], dim=-1)
    moved = moved.clamp(-1.0 + _NUDGE, 1.0 - _NUDGE)
    return torch.round(((moved + 1.0) * tokens - 1.0) / 2.0).long()


def released_shares(first: Tensor, second: Tensor) -> Tensor:
    """Weights of four tokens, (..., 2, 2), from their two offsets, each of that shape."""
    inverse = 1.0 / ((first * second).abs() + _SMALLEST_AREA)
    return inverse / inverse.sum(dim=(-2, -1), keepdim=True)


def released_corners(y: Tensor, x: Tensor, tokens: int) -> Corners:
    """Tokens, offsets and weights of the released form at coordinates (...) in [-1, 1]."""
    row, column, centre = released_tokens(y, tokens), released_tokens(x, tokens), released_centres(tokens).to(x.device)
    shape = (*y.shape, 2, 2)
    first = ((x[..., None] - centre[row]) * tokens)[..., :, None].expand(shape)
    second = ((y[..., None] - centre[column]) * tokens)[..., None, :].expand(shape)
    return Corners(row, column, torch.stack([first, second], dim=-1), released_shares(first, second))


def to_unit(coordinate_px: Tensor, window_px: float) -> Tensor:
    """Pixel coordinates of a window to [-1, 1]; rounds once."""
    return (2.0 * coordinate_px - window_px) / window_px


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
        offset_convention: str = PAPER,
    ) -> None:
        super().__init__()
        if offset_convention not in (PAPER, RELEASED):
            raise ValueError(f"offset convention {offset_convention!r} is neither {PAPER!r} nor {RELEASED!r}")
        self.token_px, self.tokens, self.offset_gain = token_px, tokens, offset_gain
        self.offset_convention = offset_convention
        self.cell = nn.Linear(channels, widths[0])  # first linear of f, the part that sees z_t (and its bias)
        self.offset = nn.Linear(2, widths[0], bias=False)  # first linear of f, the part that sees x_q - v_t
        self.middle = nn.Linear(widths[0], widths[1])
        self.last = nn.Linear(widths[1], embedding)
        self.output = nn.Linear(embedding, embedding)
        self.norm = nn.LayerNorm(embedding)

    def forward(self, features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Evaluate literally at scattered points.

        Args:
            features: Map (N, H, W, C).
            rows: (N, Q); pixels of the window, or y in [-1, 1] in the released form.
            columns: (N, Q); pixels of the window, or x in [-1, 1] in the released form.

        Returns:
            (N, Q, D).
        """
        cells = self.cell(features).flatten(1, 2)  # (N, H * W, h1)
        if self.offset_convention == RELEASED:
            around = released_corners(rows, columns, self.tokens)
        else:
            around = corners(rows, columns, self.token_px, self.tokens)
        flat = (around.row[..., :, None] * self.tokens + around.column[..., None, :]).flatten(1)  # (N, Q * 4)
        near = torch.gather(cells, 1, flat[..., None].expand(-1, -1, cells.shape[-1]))
        near = near.reshape(*rows.shape, 2, 2, cells.shape[-1])  # (N, Q, 2, 2, h1)
        value = self.last(torch.relu(self.middle(torch.relu(near + self.offset(around.offset * self.offset_gain)))))
        blended = (value * around.weight[..., None]).sum(dim=(-3, -2))
        normed: Tensor = self.norm(self.output(blended))
        return normed

    def token_parts(self) -> Tuple[Tensor, Tensor]:
        """What a token's own coordinates add to its part of f's first linear: by row (H, 1, h1), by column (1, W, h1).

        Only the released form has such a part: the paper's offsets are counted from the nearest tokens.
        """
        scaled = released_centres(self.tokens)[:, None] * (float(self.tokens) * self.offset_gain)
        row, column = -scaled * self.offset.weight[:, 0], -scaled * self.offset.weight[:, 1]
        return row[:, None, :], column[None, :, :]

    def merged(self) -> Tuple[Tensor, Tensor]:
        """Weight (D, h2) and bias (D,) of f's last linear and the output linear in one."""
        weight = self.output.weight @ self.last.weight
        bias = self.output.weight @ self.last.bias + self.output.bias
        return weight, bias
