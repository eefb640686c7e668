"""The area of applicability against hand-worked values and a brute-force reading of the paper."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from miso_qgis.engine.errors import InputError, ModelFolderError
from training import applicability


def brute_force(features, folds, weights, new):
    """Meyer and Pebesma 2021, sections 2.3 and 2.4, with loops and nothing shared with the module."""
    mean, sd = features.mean(axis=0), features.std(axis=0, ddof=1)
    train = (features - mean) / sd * weights
    average = np.mean(pdist(train))
    index = []
    for i in range(len(train)):
        others = [np.linalg.norm(train[i] - train[j]) for j in range(len(train)) if folds[j] != folds[i]]
        index.append(min(others) / average)
    q1, q3 = np.quantile(index, 0.25), np.quantile(index, 0.75)
    threshold = min(q3 + 1.5 * (q3 - q1), max(index))
    return cdist((new - mean) / sd * weights, train).min(axis=1) / average, threshold


CENTRE = np.array([0.0, 100.0, 5.0, -3.0, 1.0])


def data(seed=1, count=300, features=5):
    generator = np.random.default_rng(seed)
    values = generator.normal(0, [1, 10, 0.1, 5, 2], (count, features)) + CENTRE
    new = generator.normal(0, [2, 20, 0.3, 5, 2], (150, features)) + CENTRE
    weights = np.array([1.0, 0.5, 0.25, 0.75, 0.1])
    return values, np.arange(count) // (count // 5), weights, new


NAMES = ("a", "b", "c", "d", "e")


def test_equals_the_brute_force_reading():
    features, folds, weights, new = data()
    summary = applicability.training_summary(features, folds, weights, NAMES)
    expected, threshold = brute_force(features, folds, weights, new)
    np.testing.assert_allclose(applicability.dissimilarity(summary, new), expected, rtol=1e-5)  # float32 references
    assert summary.threshold == pytest.approx(threshold, rel=1e-9)
    assert summary.gap == 0.0
    inside = applicability.inside(summary, expected)
    assert 0 < inside.sum() < inside.size


def test_hand_worked_example():
    # One feature 0 1 3 6 in two folds {0, 3} and {1, 6}. Mean 2.5, sd sqrt(7):
    # scaled distances are the raw ones / sqrt(7).
    # Pairs: 1 3 6 2 5 3, mean 20/6. Nearest of the other fold: 0 -> 1 (1), 3 -> 1 (2), 1 -> 0 (1), 6 -> 3 (3).
    # DI = these / (20/6) = 0.3 0.6 0.3 0.9. Quartiles 0.3 and 0.675: whisker 0.675 + 1.5 x 0.375 = 1.2375, cut at 0.9.
    features = np.array([[0.0], [3.0], [1.0], [6.0]])
    summary = applicability.training_summary(features, np.array([0, 0, 1, 1]), np.array([7.0]), ("f",))
    assert summary.sd[0] == pytest.approx(np.sqrt(7))
    assert summary.mean_distance == pytest.approx(20 / 6 / np.sqrt(7))
    assert summary.threshold == pytest.approx(0.9)
    # 10 is 4 from 6: DI 4 / (20/6) = 1.2; 2 is 1 from 1 and 3: 0.3.
    index = applicability.dissimilarity(summary, np.array([[10.0], [2.0], [3.0]]))
    np.testing.assert_allclose(index, [1.2, 0.3, 0.0], atol=1e-6)
    assert applicability.inside(summary, index).tolist() == [False, True, True]


def test_whisker_is_that_of_a_box_plot():
    # Quartiles of 1..9 and 100 (ten values): 3.25 and 7.75, whisker 7.75 + 1.5 x 4.5 = 14.5.
    assert applicability.whisker(np.array([*range(1, 10), 100.0])) == pytest.approx(14.5)


def test_folds_matter():
    # Pairs of near twins: with twins in different folds everything is near; with twins together nothing is.
    generator = np.random.default_rng(2)
    base = generator.normal(size=(100, 5))
    features = np.concatenate([base, base + 0.01])
    apart = applicability.training_summary(features, np.repeat([0, 1], 100), np.ones(5), NAMES)
    together = applicability.training_summary(features, np.tile(np.arange(100) % 5, 2), np.ones(5), NAMES)
    assert apart.threshold < 0.01 < 0.3 < together.threshold


def test_a_feature_without_importance_or_variation_is_no_part_of_the_distance():
    features, folds, weights, new = data(3)
    weights = weights.copy()
    weights[1] = -0.2  # as permutation importance may say
    features[:, 4] = 7.0
    summary = applicability.training_summary(features, folds, weights, NAMES)
    assert summary.weight[[1, 4]].tolist() == [0.0, 0.0]
    moved = new.copy()
    moved[:, 1] = np.nan
    moved[:, 4] += 1000
    np.testing.assert_array_equal(
        applicability.dissimilarity(summary, new), applicability.dissimilarity(summary, moved)
    )


def test_units_and_scale_of_the_importances_do_not_matter():
    features, folds, weights, new = data(4)
    first = applicability.training_summary(features, folds, weights, NAMES)
    scale = np.array([1000, 1, 0.01, 3, 7.0])
    second = applicability.training_summary(features * scale + 5, folds, weights * 40, NAMES)
    np.testing.assert_allclose(
        applicability.dissimilarity(first, new), applicability.dissimilarity(second, new * scale + 5), rtol=1e-4
    )
    assert first.threshold == pytest.approx(second.threshold)


def test_fewer_references_never_make_a_place_nearer_and_the_gap_bounds_the_error():
    features, folds, weights, new = data(5, count=1500)
    whole = applicability.training_summary(features, folds, weights, NAMES)
    compact = applicability.training_summary(features, folds, weights, NAMES, references=200)
    assert compact.references.shape == (200, 5)
    assert compact.threshold == whole.threshold
    assert compact.mean_distance == whole.mean_distance
    extra = applicability.dissimilarity(compact, new) - applicability.dissimilarity(whole, new)
    assert extra.min() >= -1e-6
    assert extra.max() <= compact.gap + 1e-6
    assert 0 < compact.gap < 0.5 * compact.threshold + 0.5


def test_spread_points_leave_smaller_gaps_than_chance():
    points = np.random.default_rng(6).normal(size=(2000, 5))
    _, gap = applicability.spread_points(points, 200)
    chance = cdist(points, points[:200]).min(axis=1).max()
    assert gap < 0.7 * chance


def test_mean_distance_in_blocks_equals_all_pairs(monkeypatch):
    points = np.random.default_rng(7).normal(size=(257, 3)) + 100
    monkeypatch.setattr(applicability, "_BLOCK", 50)
    assert applicability.mean_distance(points) == pytest.approx(pdist(points).mean(), rel=1e-6)


def test_place_with_a_missing_value_has_no_index():
    features, folds, weights, new = data(8)
    summary = applicability.training_summary(features, folds, weights, NAMES)
    new[3, 0] = np.nan
    index = applicability.dissimilarity(summary, new)
    assert np.isnan(index[3])
    assert np.isfinite(np.delete(index, 3)).all()
    assert not applicability.inside(summary, index)[3]


def test_form_of_the_model_folder_gives_the_same_index(tmp_path):
    features, folds, weights, new = data(9)
    summary = applicability.training_summary(features, folds, weights, NAMES, references=100)
    entry = json.loads(json.dumps(applicability.save(summary, tmp_path), allow_nan=False))
    assert [path.name for path in tmp_path.iterdir()] == ["applicability.csv"]
    again = applicability.load(entry, tmp_path)
    assert np.array_equal(again.references, summary.references)
    np.testing.assert_allclose(
        applicability.dissimilarity(again, new), applicability.dissimilarity(summary, new), rtol=1e-5, atol=1e-6
    )
    assert again.threshold == pytest.approx(summary.threshold, rel=1e-6)


@pytest.mark.parametrize("what", ["form", "file", "count", "names", "cut off"])
def test_summary_that_does_not_fit_is_refused(tmp_path, what):
    features, folds, weights, _ = data(10)
    entry = applicability.save(applicability.training_summary(features, folds, weights, NAMES), tmp_path)
    if what == "form":
        entry["form"] = 2
    elif what == "file":
        (tmp_path / applicability.FILE).write_bytes(b"\x93NUMPY")
    elif what == "count":
        entry["reference_count"] = 5
    else:
        path = tmp_path / applicability.FILE
        text = path.read_text(encoding="utf-8")
        path.write_text("z" + text[1:] if what == "names" else text[:-20], encoding="utf-8")
    with pytest.raises(ModelFolderError, match="area of applicability cannot be read"):
        applicability.load(entry, tmp_path)


def test_bad_training_data_is_refused_with_a_remedy():
    features, folds, weights, _ = data(11)
    with pytest.raises(InputError, match="At least two folds"):
        applicability.training_summary(features, np.zeros(300), weights, NAMES)
    with pytest.raises(InputError, match="no feature varies"):
        applicability.training_summary(np.ones((300, 5)), folds, weights, NAMES)
    features[0, 2] = np.nan
    with pytest.raises(InputError, match="missing values at training points: c"):
        applicability.training_summary(features, folds, weights, NAMES)
    with pytest.raises(ValueError, match="do not fit"):
        applicability.training_summary(features, folds, weights[:3], NAMES)
