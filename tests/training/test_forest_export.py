"""The exported forest against scikit-learn and against the usual converter: everywhere, and at the thresholds."""

import zlib

import numpy as np
import pytest

pytest.importorskip("sklearn")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from sklearn.ensemble import RandomForestClassifier  # noqa: E402

from miso_qgis.engine.graphs import check_graph  # noqa: E402
from training import forest_export  # noqa: E402
from training.forest_export import (  # noqa: E402
    PARITY,
    Compression,
    export_forest,
    round_down,
    shorten,
    whole_shares,
)
from training.forest_fit import fit_forest  # noqa: E402

COLUMNS = 9


def fitted(classes, trees=40, sites=1500, jobs=1, drop=()):
    generator = np.random.default_rng(classes)
    features = generator.normal(size=(sites, COLUMNS)).astype(np.float32)
    scores = features @ generator.normal(size=(COLUMNS, classes)) + generator.normal(size=(sites, classes))
    labels = scores.argmax(axis=1)
    kept = ~np.isin(labels, drop)
    model = RandomForestClassifier(trees, max_depth=16, min_samples_split=5, random_state=1, n_jobs=jobs)
    return model.fit(features[kept], labels[kept])


def rows(count, seed=5):
    return np.random.default_rng(seed).normal(size=(count, COLUMNS)).astype(np.float32)


def answer(proto, features):
    (found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"features": features})
    assert found.dtype == np.float32
    return np.c_[1 - found, found] if found.shape[1] == 1 else found


def beyond_ties(found, expected):
    """Labels that differ although scikit-learn's two best classes are not equally probable; and all that differ.

    Shares like 1/2 and 2/4 add up to equal sums; which class then counts as best is up to the last bit of a sum.
    """
    differ = found.argmax(axis=1) != expected.argmax(axis=1)
    best = np.sort(expected, axis=1)
    return int((best[differ, -1] - best[differ, -2] > 1e-12).sum()), int(differ.sum())


@pytest.mark.parametrize("classes", [2, 7])
def test_labels_are_identical_and_probabilities_within_1e_6_on_100_000_rows(classes):
    model, features = fitted(classes, trees=101, sites=800), rows(100_000)
    found, expected = answer(export_forest(model, classes), features), model.predict_proba(features)
    assert np.abs(found - expected).max() < PARITY
    wrong, ties = beyond_ties(found, expected)
    assert wrong == 0
    assert ties < 10


def test_in_a_tiny_forest_labels_differ_in_ties_only():
    model, features = fitted(7, trees=8, sites=400), rows(20_000)
    wrong, ties = beyond_ties(answer(export_forest(model, 7), features), model.predict_proba(features))
    assert wrong == 0
    assert ties > 0, "without ties this test shows nothing"


@pytest.mark.parametrize("classes", [2, 7])
def test_a_feature_that_equals_a_threshold_goes_where_scikit_learn_sends_it(classes):
    model = fitted(classes, trees=3, sites=400)
    features = []
    for tree in (estimator.tree_ for estimator in model.estimators_):
        for feature, threshold in zip(tree.feature, tree.threshold):
            if feature >= 0:
                nearest = np.float32(threshold)
                for value in (nearest, np.nextafter(nearest, np.float32(9)), np.nextafter(nearest, np.float32(-9))):
                    row = rows(1, len(features))[0]
                    row[feature] = value
                    features.append(row)
    features = np.stack(features)
    assert len(features) > 200
    # One tree at a time: a wrong turn changes the answer by whole shares.
    expected = model.predict_proba(features)
    assert np.abs(answer(export_forest(model, classes), features) - expected).max() < PARITY


def test_rounding_to_nearest_would_take_wrong_turns(monkeypatch):
    """What the rounding is for: the test above must be able to fail."""
    model = fitted(2, trees=1, sites=400)
    tree = model.estimators_[0].tree_
    up = np.flatnonzero((tree.feature >= 0) & (tree.threshold.astype(np.float32) > tree.threshold))
    assert up.size > 5
    root = up[0]
    features = rows(4000)
    features[:, tree.feature[root]] = np.float32(tree.threshold[root])
    monkeypatch.setattr(forest_export, "round_down", lambda thresholds: thresholds.astype(np.float32))
    wrong = np.abs(answer(export_forest(model, 2), features) - model.predict_proba(features)).max()
    assert wrong > 0.01


def test_rounding_down_decides_as_float64_does_for_every_float32():
    generator = np.random.default_rng(1)
    thresholds = np.concatenate([generator.normal(size=500), generator.lognormal(0, 20, 500), [0.1, 0.0, -0.1, 1e-46]])
    low = round_down(thresholds)
    assert low.dtype == np.float32
    near = thresholds.astype(np.float32)
    for value in (near, low, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        assert np.array_equal(value.astype(np.float64) <= thresholds, value <= low)
    # Worked by hand in the docstring: the float32 nearest to 0.1 is above it.
    assert low[1000] == np.float32(0.09999999403953552)


@pytest.mark.parametrize("classes", [2, 7])
def test_it_answers_what_the_usual_converter_answers(classes):
    convert = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import FloatTensorType

    model, features = fitted(classes, trees=10, sites=500), rows(5000)
    proto = convert.convert_sklearn(
        model, initial_types=[("features", FloatTensorType([None, COLUMNS]))], options={"zipmap": False}
    )
    _, expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"features": features})
    assert np.abs(answer(export_forest(model, classes, subforest_trees=4), features) - expected).max() < 2 * PARITY


def test_a_class_that_training_lacks_has_probability_0_in_its_own_column():
    model, features = fitted(7, trees=8, drop=(0, 3)), rows(300)
    found = answer(export_forest(model, 7), features)
    assert found.shape == (300, 7)
    assert (found[:, [0, 3]] == 0).all()
    assert np.abs(found[:, [1, 2, 4, 5, 6]] - model.predict_proba(features)).max() < PARITY


def test_labels_that_are_no_classes_and_a_forest_of_one_class_are_refused():
    with pytest.raises(ValueError, match="not all below 5"):
        export_forest(fitted(7, trees=2), 5)
    with pytest.raises(ValueError, match="one class"):
        export_forest(fitted(2, trees=2, drop=(0,)), 2)


def test_a_missing_feature_takes_the_right_branch_everywhere():
    """No pixel with NaN comes to the forest; if one did, this is what it would get: as if above every threshold."""
    model = fitted(2, trees=5)
    features = rows(200)
    features[:, 4] = np.inf
    expected = answer(export_forest(model, 2), features)
    features[:, 4] = np.nan
    np.testing.assert_array_equal(answer(export_forest(model, 2), features), expected)
    with pytest.raises(ValueError, match="finite"):
        fit_forest(features, np.arange(200) % 2, "nsp")


def test_the_same_forest_gives_the_same_bytes_on_any_number_of_threads():
    once, again = (
        export_forest(fitted(7, trees=9, jobs=jobs), 7).SerializeToString(deterministic=True) for jobs in (1, 2)
    )
    assert once == again


def test_the_graph_keeps_the_contract():
    proto = export_forest(fitted(2, trees=9), 2, subforest_trees=4)
    assert check_graph(proto.SerializeToString()) == {"": 18, "ai.onnx.ml": 3}
    assert proto.ir_version <= 9
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["features", "probabilities"]
    assert [node.op_type for node in proto.graph.node] == ["TreeEnsembleRegressor"] * 3 + ["Sum", "Mul", "Clip"]
    sizes = [
        1 + max(next(a.ints for a in node.attribute if a.name == "nodes_treeids")) for node in proto.graph.node[:3]
    ]
    assert sizes == [4, 4, 1]


def test_shares_in_whole_units_add_up_and_are_nearest():
    shares = np.array([[1 / 3, 1 / 3, 1 / 3], [0.999, 0.001, 0.0], [0.5, 0.25, 0.25]])
    # Worked by hand for 3 bits (eighths): 2.67 each leaves two units to the first two; 7.992 rounds up; exact.
    assert whole_shares(shares, 3).tolist() == [[3, 3, 2], [8, 0, 0], [4, 2, 2]]
    drawn = np.random.default_rng(1).dirichlet(np.ones(7), 500)
    whole = whole_shares(drawn, 8)
    assert (whole.sum(axis=1) == 256).all()
    assert np.abs(whole / 256 - drawn).max() < 1 / 256


def test_shortened_thresholds_keep_their_leading_bits():
    values = np.array([1.99999, -3.14159, 0.0, 1e-30, 7.25e9], np.float32)
    short = shorten(values, 5)
    # 5 bits after the leading one: 1.99999 -> 2, 3.14159 = 1.570795 * 2 -> 50.265 / 32 -> 50 / 32 * 2 = 3.125.
    assert short[:3].tolist() == [2.0, -3.125, 0.0]
    with np.errstate(invalid="ignore"):
        assert (np.abs(short - values)[values != 0] <= np.abs(values[values != 0]) * 2.0**-6).all()
    assert shorten(values, 23) is values


@pytest.mark.parametrize("classes", [2, 7])
def test_compression_saves_bytes_and_its_error_is_bounded_by_the_bits(classes):
    model, features = fitted(classes), rows(2000)
    exact = export_forest(model, classes).SerializeToString()
    leaves = answer(export_forest(model, classes, Compression(leaf_bits=8)), features)
    assert np.abs(leaves - model.predict_proba(features)).max() < 1 / 256
    assert np.allclose(leaves.sum(axis=1), 1, atol=1e-6)
    both = export_forest(model, classes, Compression(leaf_bits=8, threshold_bits=8))
    assert len(zlib.compress(both.SerializeToString())) < 0.9 * len(zlib.compress(exact))
    found = answer(both, features)
    assert (found.argmax(axis=1) == model.predict(features)).mean() > 0.95


@pytest.mark.parametrize("wrong", [{"leaf_bits": 0}, {"threshold_bits": 24}])
def test_impossible_compression_is_refused(wrong):
    with pytest.raises(ValueError, match="are possible"):
        Compression(**wrong)
