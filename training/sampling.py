"""Batches as a pure function of seed and step: which windows, how they are mirrored, what is asked in them.

Nothing is drawn from a running generator, so a training that resumes at step k needs no state beside k, and processes
that share a batch draw the same one, each reading its own windows. Labelled sites come in shuffled passes: every site
is a window's anchor once before any is again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miso_qgis.engine.errors import InputError

from .config import ModelConfig
from .model import scale_coordinates
from .recipes import Recipe
from .scenes import Scene, stacked
from .sites import MISSING, Sites

FloatArray = NDArray[np.float64]

# Independent streams of one seed.
_PASSES, _WINDOWS = 1, 2
# A random window must have at least this share of its cells known, and this many tries find one.
_SMALLEST_SHARE = 0.05
_TRIES = 200
# A window lies so that its anchor falls into this part of its side around its middle.
_REACH = 0.375


@dataclass(frozen=True)
class Labelled:
    """Labelled sites on a scene's grid.

    Attributes:
        row_px: (P,), pixels of the grid.
        column_px: (P,).
        labels: {task: (P,) int64}, ``MISSING`` where there is none.
    """

    row_px: FloatArray
    column_px: FloatArray
    labels: Dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, sites: Sites, scene: Scene, tasks: Tuple[str, ...]) -> Labelled:
        """The sites that have a label of any of the tasks."""
        missing = np.full(len(sites), MISSING, dtype=np.int64)
        labels = {task: sites.labels.get(task, missing).astype(np.int64) for task in tasks}
        some = np.any([values != MISSING for values in labels.values()], axis=0)
        rows, columns = scene.places(sites.x[some], sites.y[some])
        return cls(rows, columns, {task: values[some] for task, values in labels.items()})

    def __len__(self) -> int:
        """Return the number of sites."""
        return int(self.row_px.size)


class _Drawn(NamedTuple):
    """One window: where, what is read, and what is asked, before it is mirrored."""

    corner: Tuple[int, int]
    cells: Tensor
    mirrored: Tuple[bool, bool]
    points: NDArray[np.int64]
    located_px: FloatArray
    keep: List[NDArray[np.float32]]


@dataclass(frozen=True)
class Drawn:
    """A process's windows of one step.

    Attributes:
        fields: Tensors by name: ``<group>`` (N, C, S, S), ``keep_<group>`` (N, F), ``point_rows_px`` and
            ``point_columns_px`` (N, P), ``label_<task>`` (N, P) int64, ``location_rows_px`` and ``location_columns_px``
            (N, L), ``location_scaled`` (N, L, 2).
        corners: Upper left cell of each window.
    """

    fields: Dict[str, Tensor]
    corners: List[Tuple[int, int]]


class Sampler:
    """Draws the batches of one stage of one network."""

    def __init__(
        self, scene: Scene, config: ModelConfig, recipe: Recipe, seed: int, labelled: Optional[Labelled] = None
    ) -> None:
        """See the class.

        Args:
            scene: Where windows are read.
            config: The network.
            recipe: Settings; batch and locations are the stage's.
            seed: Of everything drawn.
            labelled: Sites to be asked; none makes windows random.
        """
        self.scene, self.config, self.recipe, self.seed, self.labelled = scene, config, recipe, seed, labelled
        self.stage = recipe.fit if labelled is not None else recipe.pretrain
        contrasted = labelled is None or recipe.contrast.fit_weight > 0
        self.locations = recipe.contrast.locations if contrasted else 0
        self._pass: Tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def draw(self, step: int, part: range) -> Drawn:
        """Draw the windows ``part`` (numbers within the batch) of a step.

        Raises:
            InputError: If no window with data is found.
        """
        drawn = [self._window(step, index) for index in part]
        device = drawn[0].cells.device
        fields: Dict[str, Tensor] = {}
        fields.update(self.scene.split(stacked([one.cells for one in drawn], [one.mirrored for one in drawn])))
        for i, group in enumerate(self.config.groups):
            fields[f"keep_{group.name}"] = torch.from_numpy(np.stack([one.keep[i] for one in drawn]))
        fields.update(self._points(drawn))
        located = np.stack([self._mirror(one.located_px, one.mirrored) for one in drawn])  # (N, L, 2)
        fields["location_rows_px"] = torch.from_numpy(located[..., 0].astype(np.float32))
        fields["location_columns_px"] = torch.from_numpy(located[..., 1].astype(np.float32))
        metres = torch.from_numpy(np.stack([self._metres(one) for one in drawn]))
        fields["location_scaled"] = scale_coordinates(metres[..., 0], metres[..., 1])
        fields = {name: value.to(device, non_blocking=True) for name, value in fields.items()}
        return Drawn(fields, [one.corner for one in drawn])

    def _window(self, step: int, index: int) -> _Drawn:
        generator = np.random.default_rng([self.seed, _WINDOWS, step, index])
        if self.labelled is None:
            corner, cells, known = self._random(generator)
            points = np.empty(0, dtype=np.int64)
        else:
            corner = self._around(self._anchor(step * self.stage.batch + index), generator)
            cells, known = self.scene.window(*corner)
            points = self._inside(corner, generator)
        window = self.recipe.window
        turned = generator.random(2) < 0.5
        mirrored = (window.flips and bool(turned[0]), window.flips and bool(turned[1]))
        located = self._locations(known, generator)
        return _Drawn(corner, cells, mirrored, points, located, self._keep(generator))

    def _random(self, generator: np.random.Generator) -> Tuple[Tuple[int, int], Tensor, NDArray[np.bool_]]:
        height, width = self.scene.shape
        for _ in range(_TRIES):
            centre = generator.integers(height), generator.integers(width)
            corner = int(centre[0]) - self.scene.side // 2, int(centre[1]) - self.scene.side // 2
            cells, known = self.scene.window(*corner)
            if known.mean() >= _SMALLEST_SHARE:
                return corner, cells, known
        raise InputError(
            "Dataset",
            f"{_TRIES} random windows held hardly a cell where every channel has a value.",
            "Rasters that cover the area together are needed.",
            "Look at the rasters' nodata, or set the bounds to where all of them have data.",
        )

    def _anchor(self, count: int) -> int:
        """Site around which the window number ``count`` since the start lies."""
        assert self.labelled is not None
        number, place = divmod(count, len(self.labelled))
        if self._pass[0] != number:
            order = np.random.default_rng([self.seed, _PASSES, number]).permutation(len(self.labelled))
            self._pass = (number, order.astype(np.int64))
        return int(self._pass[1][place])

    def _around(self, site: int, generator: np.random.Generator) -> Tuple[int, int]:
        assert self.labelled is not None
        size, cell = self.config.size.window_px, self.config.size.cell_px
        at = np.asarray([self.labelled.row_px[site], self.labelled.column_px[site]])
        moved = at + generator.uniform(-_REACH, _REACH, 2) * size - size / 2
        row, column = np.floor(moved / cell).astype(np.int64)
        return int(row), int(column)

    def _inside(self, corner: Tuple[int, int], generator: np.random.Generator) -> NDArray[np.int64]:
        assert self.labelled is not None
        size, cell, limit = self.config.size.window_px, self.config.size.cell_px, self.recipe.window.points
        row, column = self.labelled.row_px - corner[0] * cell, self.labelled.column_px - corner[1] * cell
        inside = np.flatnonzero((row >= 0) & (row < size) & (column >= 0) & (column < size))
        if inside.size > limit:
            inside = generator.permutation(inside)[:limit]
        return inside.astype(np.int64)

    def _locations(self, known: NDArray[np.bool_], generator: np.random.Generator) -> FloatArray:
        """Uniform over the known cells: (L, 2), window pixels."""
        flat = np.flatnonzero(known)
        if not self.locations:
            return np.zeros((0, 2))
        rows, columns = np.divmod(flat[generator.integers(flat.size, size=self.locations)], known.shape[1])
        at = np.stack([rows, columns], axis=1) + generator.random((self.locations, 2))
        located: FloatArray = at * float(self.config.size.cell_px)
        return located

    def _keep(self, generator: np.random.Generator) -> List[NDArray[np.float32]]:
        """Which features the window shows, 0 or 1 for each, by group; at most one group is missing."""
        window, groups = self.recipe.window, self.config.groups
        missing = int(generator.integers(len(groups))) if generator.random() < window.group_dropout else -1
        return [
            ((generator.random(len(group.features)) >= window.feature_dropout) & (i != missing)).astype(np.float32)
            for i, group in enumerate(groups)
        ]

    def _points(self, drawn: List[_Drawn]) -> Dict[str, Tensor]:
        if self.labelled is None:
            return {}
        count, cell = max(1, *(one.points.size for one in drawn)), self.config.size.cell_px
        asked = np.zeros((len(drawn), count, 2), dtype=np.float32)
        labels = {task: np.full((len(drawn), count), MISSING, dtype=np.int64) for task in self.labelled.labels}
        for n, one in enumerate(drawn):
            chosen = one.points
            at = np.stack([self.labelled.row_px[chosen], self.labelled.column_px[chosen]], axis=1)
            at = at - np.asarray(one.corner) * float(cell)
            asked[n, : chosen.size] = self._mirror(at, one.mirrored)
            for task, values in self.labelled.labels.items():
                labels[task][n, : chosen.size] = values[chosen]
        fields = {f"label_{task}": torch.from_numpy(values) for task, values in labels.items()}
        fields["point_rows_px"] = torch.from_numpy(asked[..., 0].copy())
        fields["point_columns_px"] = torch.from_numpy(asked[..., 1].copy())
        return fields

    def _mirror(self, at: FloatArray, mirrored: Tuple[bool, bool]) -> FloatArray:
        return np.where(np.asarray(mirrored), self.config.size.window_px - at, at)

    def _metres(self, one: _Drawn) -> FloatArray:
        cell = float(self.config.size.cell_px)
        at = one.located_px + np.asarray(one.corner) * cell
        return self.scene.metres(at[:, 0], at[:, 1])
