"""The comparison of parts uses no label of the reserved part, and its measures answer to known differences."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from training import shift, splits


def _two_parts(difference):
    generator = np.random.default_rng(1)
    rows, columns = (index.ravel() for index in np.indices((120, 160)))
    there = columns >= 80
    features = generator.normal(size=(rows.size, 4)).astype(np.float32)
    features[there, 1] += difference
    return features, splits.block_ids(rows, columns), there


def test_equal_parts_cannot_be_told_apart_and_are_no_farther_than_their_own_kind():
    features, blocks, there = _two_parts(0.0)
    assert shift._told_apart(features, blocks, there, ~there) == pytest.approx(0.5, abs=0.03)
    assert shift._distance_ratio(features, blocks, there, ~there) == pytest.approx(1.0, abs=0.1)


def test_shifted_part_is_told_apart_and_lies_farther():
    features, blocks, there = _two_parts(3.0)
    # Two normal distributions 3 deviations apart: ROC-AUC = Phi(3 / sqrt(2)) = 0.983.
    assert shift._told_apart(features, blocks, there, ~there) == pytest.approx(0.983, abs=0.02)
    assert shift._distance_ratio(features, blocks, there, ~there) > 1.5


def test_window_mean_leaves_missing_cells_out():
    plane = np.full((30, 30), 2.0, np.float32)
    plane[:, 20:] = np.nan
    mean = shift._mean(plane, 30.0)
    assert mean[:, :20] == pytest.approx(2.0)
    assert np.isnan(mean[:, 20:]).all()
