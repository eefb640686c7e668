"""Laws of the folds."""

import numpy as np
import pytest

from training import splits


def _area():
    """An irregular area of about 9,000 cells with labels in patches."""
    rows, columns = np.indices((130, 170))
    inside = ((rows - 60) / 60.0) ** 2 + ((columns - 80) / 80.0) ** 2 + 0.3 * np.sin(columns / 9.0) < 0.8
    rows, columns = rows[inside], columns[inside]
    labels = (np.sin(rows / 11.0) + np.cos(columns / 17.0) > 0.6).astype(np.uint8)
    return rows, columns, labels


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_blocks_are_never_divided_and_folds_are_balanced(seed):
    rows, columns, labels = _area()
    blocks = splits.block_ids(rows, columns)
    folds = splits.deal_blocks(blocks, labels, 5, seed)
    assert set(folds) == set(range(5))
    for block in np.unique(blocks):
        assert np.unique(folds[blocks == block]).size == 1
    share = np.bincount(folds) / folds.size
    present = np.bincount(folds, weights=labels) / labels.sum()
    assert np.abs(share - 0.2).max() < 0.02
    assert np.abs(present - 0.2).max() < 0.04


def test_seed_decides_the_deal_and_repeats_it():
    rows, columns, labels = _area()
    blocks = splits.block_ids(rows, columns)
    first, again, other = (splits.deal_blocks(blocks, labels, 5, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_order_of_cells_does_not_matter():
    rows, columns, labels = _area()
    blocks = splits.block_ids(rows, columns)
    shuffled = np.random.default_rng(0).permutation(blocks.size)
    folds = splits.deal_blocks(blocks, labels, 5, 1)
    assert np.array_equal(splits.deal_blocks(blocks[shuffled], labels[shuffled], 5, 1), folds[shuffled])


def test_block_is_20_cells_of_50_m():
    rows, columns = np.array([0, 19, 20, 0, 0]), np.array([0, 19, 0, 20, 39])
    assert splits.block_ids(rows, columns).tolist() == [0, 0, 1000, 1, 1]


def test_random_deal_gives_sizes_that_differ_by_one():
    counts = np.bincount(splits.deal_randomly(1003, 5, 1))
    assert sorted(counts) == [200, 200, 201, 201, 201]


def test_sectors_are_four_boxes_of_like_size_that_divide_no_block():
    rows, columns, _ = _area()
    sector = splits.sectors(rows, columns)
    assert np.abs(np.bincount(sector, minlength=4) / rows.size - 0.25).max() < 0.08
    blocks = splits.block_ids(rows, columns)
    assert all(np.unique(sector[blocks == block]).size == 1 for block in np.unique(blocks))
    west = np.isin(sector, (0, 1))
    assert columns[west].max() < columns[~west].min()
    for north, south in ((0, 1), (2, 3)):
        assert rows[sector == north].max() < rows[sector == south].min()


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="2 blocks cannot be dealt into 5 folds"):
        splits.deal_blocks(np.array([0, 0, 1]), np.array([0, 1, 0]), 5, 1)
