"""Calibration against scikit-learn, scipy and hand-worked values; nothing of a fold calibrates that fold."""

import json
from dataclasses import replace

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")

from sklearn.isotonic import IsotonicRegression  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

from training import calibration, scores  # noqa: E402
from training.outoffold import OutOfFold  # noqa: E402
from training.sites import CLASSES  # noqa: E402


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def two(p):
    return np.stack([1 - p, p], axis=1)


def binary(seed, count=2000, sharpness=1.0, shift=0.0):
    """Labels drawn from sigmoid(z); probabilities sigmoid(sharpness z + shift)."""
    generator = np.random.default_rng(seed)
    z = generator.normal(-0.8, 1.5, count)
    return (generator.random(count) < sigmoid(z)).astype(np.int8), two(sigmoid(sharpness * z + shift))


def seven(seed, count=3000, sharpness=2.0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.2, (count, 7))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([generator.choice(7, p=row) for row in truth], dtype=np.int8)
    sharp = np.exp(sharpness * logits)
    return label, sharp / sharp.sum(axis=1, keepdims=True)


def log_loss(label, probability):
    return -np.log(probability[np.arange(label.size), label]).mean()


def out_of_fold(label, probability, fold=None):
    count, task = label.size, "nsp" if probability.shape[1] == 2 else "soil_order"
    return OutOfFold(
        "rf", task, "SH-1km", 1, CLASSES[task],
        np.array([f"s{i}" for i in range(count)]), np.zeros(count), np.zeros(count), label,
        np.asarray(np.arange(count) % 5 if fold is None else fold, np.int16), np.arange(count), probability,
    )  # fmt: skip


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_temperature_finds_the_factor_by_which_logits_are_too_large(sharpness):
    label, probability = binary(1, 20000, sharpness)
    found = calibration.fit("temperature", probability, label)
    assert found.temperature == pytest.approx(sharpness, rel=0.06)
    # The optimum of its own loss, on a grid that knows nothing of the fit.
    losses = {t: log_loss(label, calibration.Temperature(t).apply(probability)) for t in np.linspace(0.3, 4, 371)}
    assert found.temperature == pytest.approx(min(losses, key=losses.get), abs=0.011)


def test_temperature_of_seven_classes_equals_dividing_the_logits():
    label, probability = seven(2)
    found = calibration.fit("temperature", probability, label)
    assert found.temperature == pytest.approx(2.0, rel=0.08)
    scaled = np.log(probability) / found.temperature
    expected = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.apply(probability), expected, atol=1e-4)  # cut off below 1e-9


def test_temperature_of_two_classes_is_the_logit_divided():
    p = np.array([0.01, 0.3, 0.5, 0.97])
    found = calibration.Temperature(1.7).apply(two(p))[:, 1]
    np.testing.assert_allclose(found, sigmoid(np.log(p / (1 - p)) / 1.7), rtol=1e-12)
    assert calibration.Temperature(3.0).apply(np.array([[1.0, 0.0]]))[0, 0] < 1.0


def test_beta_equals_logistic_regression_on_the_two_logarithms():
    label, probability = binary(3, 4000, sharpness=0.5, shift=0.4)
    p = probability[:, 1]
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.stack([np.log(p), -np.log(1 - p)], axis=1), label
    )
    (found,) = calibration.fit("beta", probability, label).coefficients
    assert min(expected.coef_[0]) > 0  # else the constrained and the free optimum would differ
    assert found[:2] == pytest.approx(expected.coef_[0], abs=2e-3)
    assert found[2] == pytest.approx(expected.intercept_[0], abs=2e-3)


def test_beta_with_a_negative_coefficient_is_refitted_without_it():
    # The free optimum has b < 0 here; Kull et al. drop that logarithm and fit again.
    generator = np.random.default_rng(4)
    p = generator.uniform(0.02, 0.98, 6000)
    label = (generator.random(6000) < sigmoid(1.2 * np.log(p) + 0.6 * np.log(1 - p) + 0.3)).astype(np.int8)
    (a, b, c) = calibration.fit("beta", two(p), label).coefficients[0]
    assert b == 0.0
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(p)[:, None], label)
    assert (a, c) == pytest.approx((expected.coef_[0, 0], expected.intercept_[0]), abs=2e-3)


def test_isotonic_equals_scikit_learn_away_from_0_and_1():
    label, probability = binary(5, 1500, sharpness=0.6)
    probability = np.round(probability, 2)  # ties
    reference = IsotonicRegression(out_of_bounds="clip").fit(probability[:, 1], label)
    expected = reference.predict(probability[:, 1])
    found = calibration.fit("isotonic", probability, label).apply(probability)[:, 1]
    inside = (expected > 0.02) & (expected < 0.98)
    assert inside.sum() > 1000
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-9)
    assert found.min() > 0
    assert found.max() < 1


def test_isotonic_hand_worked():
    # 0.1 0.2 0.3 0.4 with labels 0 1 0 1: the middle two are pooled to 1/2. One site without a case says 0.5 / 2.
    found = calibration.fit("isotonic", two(np.array([0.1, 0.2, 0.3, 0.4])), np.array([0, 1, 0, 1]))
    assert found.knots == (((0.1, 0.2, 0.3, 0.4), (0.25, 0.5, 0.5, 0.75)),)
    assert found.apply(two(np.array([0.0, 0.15, 0.25, 0.9])))[:, 1].tolist() == [0.25, 0.375, 0.5, 0.75]


@pytest.mark.parametrize("method", calibration.METHODS)
@pytest.mark.parametrize("make", [binary, seven])
def test_laws_of_every_calibrator(method, make):
    label, probability = make(6, 800, sharpness=0.4)
    found = calibration.fit(method, probability, label)
    result = found.apply(probability)
    np.testing.assert_allclose(result.sum(axis=1), 1.0, atol=1e-12)
    assert result.min() >= 0
    assert log_loss(label, np.maximum(result, 1e-6)) <= log_loss(label, probability) + 1e-9
    if make is binary:
        order = np.argsort(probability[:, 1])
        assert (np.diff(result[order, 1]) >= -1e-12).all(), "a higher probability became a lower one"
    again = calibration.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_allclose(again.apply(probability), result, atol=2e-5)  # six decimals are kept


@pytest.mark.parametrize("method", calibration.METHODS)
def test_certain_probabilities_stay_finite(method):
    label = np.array([0, 1] * 20)
    probability = two(np.tile([0.0, 1.0, 1.0, 0.0], 10))
    result = calibration.fit(method, probability, label).apply(probability)
    assert np.isfinite(result).all()
    assert np.isfinite(np.log(np.maximum(result, 1e-300))).all()


@pytest.mark.parametrize("method", calibration.METHODS)
def test_one_class_only_leaves_probabilities_and_says_why(method):
    found = calibration.fit(method, two(np.array([0.2, 0.4])), np.zeros(2, np.int8))
    assert "one class only" in found.to_json()["reason"]
    np.testing.assert_array_equal(found.apply(two(np.array([0.2]))), two(np.array([0.2])))


@pytest.mark.parametrize("method", ["beta", "isotonic"])
def test_class_that_is_absent_gets_a_small_probability(method):
    label, probability = seven(7, 900)
    kept = label != 5
    found = calibration.fit(method, probability[kept], label[kept]).apply(probability)
    assert 0 < found[:, 5].mean() < 0.01


@pytest.mark.parametrize("method", calibration.METHODS)
def test_nothing_of_a_fold_calibrates_that_fold(method):
    label, probability = binary(8, 500, sharpness=2.0)
    oof = out_of_fold(label, probability)
    held = oof.fold == 3
    before, reasons = calibration.nested(oof, method)
    after, _ = calibration.nested(replace(oof, label=np.where(held, 1 - label, label).astype(np.int8)), method)
    assert reasons == []
    np.testing.assert_array_equal(before.probability[held], after.probability[held])
    assert not np.allclose(before.probability[~held], after.probability[~held])
    expected = calibration.fit(method, probability[~held], label[~held]).apply(probability[held])
    np.testing.assert_array_equal(before.probability[held], expected)


def test_nested_calibration_improves_what_is_badly_scaled():
    for make, method in ((binary, "temperature"), (seven, "temperature"), (binary, "beta"), (binary, "isotonic")):
        label, probability = make(9, 3000, sharpness=3.0)
        oof = out_of_fold(label, probability)
        after, _ = calibration.nested(oof, method)
        judged = [scores.observed(scores.judge(o, scores.targets_of(o))) for o in (oof, after)]
        assert judged[1]["log_loss"] < judged[0]["log_loss"]
        assert judged[1]["ece"] < 0.5 * judged[0]["ece"]


def test_one_fold_cannot_be_calibrated_out_of_fold():
    label, probability = binary(10, 100)
    oof = out_of_fold(label, probability, np.zeros(100))
    after, reasons = calibration.nested(oof, "beta")
    np.testing.assert_array_equal(after.probability, probability)
    assert reasons == ["fold 0: one fold only"]


@pytest.mark.parametrize(
    ("values", "said"), [({"method": "beta"}, "lacks parameters"), ({"method": "platt"}, "none of"), ({}, "none of")]
)
def test_other_forms_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        calibration.from_json(values)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="known are"):
        calibration.fit("platt", two(np.array([0.5])), np.zeros(1))
