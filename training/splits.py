"""Folds of the cross-validation: 1 km blocks, single cells at random, and contiguous sectors.

Pure functions of cell numbers, labels and a seed; a *fold* is a number from 0, ``NO_FOLD`` marks a cell without one.
"""

from __future__ import annotations

from typing import Any, Tuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

SPLITS = ("blocks", "random", "sector")
FOLDS = 5
BLOCK_CELLS = 20  # 20 x 50 m = 1 km
NO_FOLD = -1


def block_ids(rows: IntArray, columns: IntArray) -> IntArray:
    """Number of the 1 km block of each cell, (N,); blocks are counted from the raster's upper left corner."""
    # 1000 blocks per row is more than any raster here has columns of blocks; the number stays readable: row, column.
    return (np.asarray(rows, dtype=np.int64) // BLOCK_CELLS) * 1000 + np.asarray(columns, dtype=np.int64) // BLOCK_CELLS


def deal_blocks(blocks: IntArray, labels: NDArray[np.integer[Any]], folds: int, seed: int) -> IntArray:
    """Deal blocks into folds that hold nearly equal numbers of cells and of present cells.

    Blocks come in order of size, blocks of like size in random order (by seed); each goes to the fold whose load stays
    smallest, the load being the sum of squares of its share of the cells and its share of the present cells. Small
    blocks come last and even out what the large ones left.

    Args:
        blocks: Block of each cell, (N,).
        labels: 1 present, 0 absent, (N,).
        folds: Number of folds.
        seed: Seed of the order.

    Returns:
        Fold of each cell, (N,), 0 to ``folds - 1``; a block is never divided.
    """
    unique, inverse = np.unique(blocks, return_inverse=True)
    if unique.size < folds:
        raise ValueError(f"{unique.size} blocks cannot be dealt into {folds} folds")
    cells = np.bincount(inverse)
    present = np.bincount(inverse, weights=labels)
    # Sizes are compared in steps of a tenth of the largest block: within a step the seed decides.
    step = np.floor(10.0 * cells / cells.max())
    order = np.lexsort((np.random.default_rng(seed).random(unique.size), -step))
    loads = np.zeros((folds, 2))
    shares = np.stack([cells / cells.sum(), present / max(present.sum(), 1.0)], axis=1)  # (B, 2)
    fold_of_block = np.empty(unique.size, dtype=np.int64)
    for block in order:
        # What the sum of squares over all folds grows by, if this fold takes the block.
        growth = ((loads + shares[block]) ** 2 - loads**2).sum(axis=1)
        chosen = int(np.argmin(growth))
        fold_of_block[block] = chosen
        loads[chosen] += shares[block]
    return fold_of_block[inverse]


def deal_randomly(count: int, folds: int, seed: int) -> IntArray:
    """Deal ``count`` cells into folds whose sizes differ by one at most, in random order."""
    fold = np.arange(count, dtype=np.int64) % folds
    return np.random.default_rng(seed).permutation(fold)


def sectors(rows: IntArray, columns: IntArray) -> IntArray:
    """Divide the cells into four contiguous parts of nearly equal size, numbered 0 to 3.

    West and east of a column, each cut by a row of its own: north-west 0, south-west 1, north-east 2, south-east 3.
    Cuts are the block lines nearest to the medians, so that no 1 km block is divided.
    """
    column_cut = _block_line(np.median(columns))
    east = columns >= column_cut
    row_cuts: Tuple[int, int] = (_block_line(np.median(rows[~east])), _block_line(np.median(rows[east])))
    south = rows >= np.where(east, row_cuts[1], row_cuts[0])
    return 2 * east.astype(np.int64) + south.astype(np.int64)


def _block_line(position: float) -> int:
    return round(float(position) / BLOCK_CELLS) * BLOCK_CELLS
