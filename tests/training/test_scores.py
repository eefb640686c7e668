"""Scores against scikit-learn, torchmetrics and hand-worked values; laws of thresholds and of the cluster bootstrap."""

import numpy as np
import pytest

sklearn_metrics = pytest.importorskip("sklearn.metrics")

from training import scores  # noqa: E402
from training.outoffold import OutOfFold  # noqa: E402
from training.sites import CLASSES  # noqa: E402

ORDERS = CLASSES["soil_order"]


def predictions(label, probability, fold=None, cluster=None, **keys):
    """OutOfFold of given labels; a 1-D probability is that of the second of two classes."""
    label, probability = np.asarray(label, np.int8), np.asarray(probability, np.float64)
    task = "nsp" if probability.ndim == 1 else "soil_order"
    if probability.ndim == 1:
        probability = np.stack([1 - probability, probability], axis=1)
    count = label.size
    values = {
        "model": "miso",
        "task": task,
        "split": "SH-1km",
        "seed": 1,
        "classes": CLASSES[task][: probability.shape[1]],
    }
    values.update(keys)
    return OutOfFold(
        id=np.array([f"s{i}" for i in range(count)], dtype=np.str_),
        x=np.arange(count, dtype=float),
        y=np.zeros(count),
        label=label,
        fold=np.asarray(np.arange(count) % 5 if fold is None else fold, np.int16),
        cluster=np.asarray(np.arange(count) // 3 if cluster is None else cluster, np.int64),
        probability=probability,
        **values,
    )


def binary(seed=1, count=400, steps=None):
    generator = np.random.default_rng(seed)
    label = (generator.random(count) < 0.3).astype(np.int8)
    score = np.clip(0.3 * label + generator.normal(0.35, 0.2, count), 0, 1)
    return predictions(label, np.round(score * steps) / steps if steps else score)


def seven(seed=1, count=600, absent=()):
    generator = np.random.default_rng(seed)
    shares = np.array([0.08, 0.2, 0.2, 0.1, 0.25, 0.02, 0.15])
    shares[list(absent)] = 0
    label = generator.choice(7, count, p=shares / shares.sum())
    logits = generator.normal(0, 1, (count, 7)) + 1.5 * np.eye(7)[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return predictions(label, probability)


def judged(oof, recall=None):
    return scores.judge(oof, scores.targets_of(oof, recall))


def test_task_1_equals_scikit_learn():
    oof = binary(steps=20)
    found, called = scores.observed(judged(oof)), oof.probability[:, 1] >= 0.5
    p, r, f, _ = sklearn_metrics.precision_recall_fscore_support(oof.label, called)
    for k, name in enumerate(("absent", "present")):
        assert found[f"half/precision/{name}"] == pytest.approx(p[k], abs=1e-12)
        assert found[f"half/recall/{name}"] == pytest.approx(r[k], abs=1e-12)
        assert found[f"half/f1/{name}"] == pytest.approx(f[k], abs=1e-12)
    assert found["half/accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(oof.label, called))
    assert found["half/balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(oof.label, called))
    assert found["half/share"] == pytest.approx(called.mean())
    assert found["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(oof.label, oof.probability[:, 1]))
    assert found["pr_auc"] == pytest.approx(sklearn_metrics.average_precision_score(oof.label, oof.probability[:, 1]))
    assert found["brier"] == pytest.approx(sklearn_metrics.brier_score_loss(oof.label, oof.probability[:, 1]))
    clipped = np.clip(oof.probability, 1e-6, 1)
    expected = -np.log(clipped[np.arange(oof.label.size), oof.label]).mean()
    assert found["log_loss"] == pytest.approx(expected)


def test_log_loss_equals_scikit_learn_where_no_probability_is_0():
    oof = seven()
    assert scores.observed(judged(oof))["log_loss"] == pytest.approx(
        sklearn_metrics.log_loss(oof.label, oof.probability, labels=range(7))
    )


def test_task_2_equals_scikit_learn():
    oof = seven()
    found, called = scores.observed(judged(oof)), oof.probability.argmax(axis=1)
    weighted = sklearn_metrics.precision_recall_fscore_support(
        oof.label, called, average="weighted", labels=range(7), zero_division=0
    )
    for name, value in zip(("precision", "recall", "f1"), weighted):
        assert found[f"argmax/{name}"] == pytest.approx(value, abs=1e-12)
    _, _, f1, _ = sklearn_metrics.precision_recall_fscore_support(oof.label, called, labels=range(7), zero_division=0)
    for k, order in enumerate(ORDERS):
        assert found[f"argmax/f1/{order}"] == pytest.approx(f1[k], abs=1e-12)
        one = (oof.label == k, oof.probability[:, k])
        assert found[f"roc_auc/{order}"] == pytest.approx(sklearn_metrics.roc_auc_score(*one))
        assert found[f"pr_auc/{order}"] == pytest.approx(sklearn_metrics.average_precision_score(*one))
    macro = sklearn_metrics.roc_auc_score(oof.label, oof.probability, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(macro)
    expected = ((oof.probability - np.eye(7)[oof.label]) ** 2).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(expected)


@pytest.mark.parametrize("oof", [binary(3), seven(4)], ids=["binary", "seven classes"])
def test_calibration_error_equals_torchmetrics(oof):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    label, probability = torch.tensor(oof.label.astype(np.int64)), torch.tensor(oof.probability)
    if len(oof.classes) == 2:
        expected = functional.binary_calibration_error(probability[:, 1], label, n_bins=15, norm="l1")
    else:
        expected = functional.multiclass_calibration_error(probability, label, 7, n_bins=15, norm="l1")
    assert scores.observed(judged(oof))["ece"] == pytest.approx(float(expected), abs=1e-6)


def test_a_draw_equals_the_score_of_the_repeated_sites():
    # A bootstrap draw must be what scikit-learn says of the data set in which clusters occur as often as drawn.
    for oof in (binary(5, 90, steps=10), seven(6, 150)):
        draws = scores.draw_clusters(oof.cluster, draws=7, seed=3)
        found = scores.bootstrap(judged(oof), draws)
        for draw in range(7):
            rows = np.repeat(np.arange(oof.label.size), draws.times[draws.index(oof.cluster), draw])
            label, probability = oof.label[rows], oof.probability[rows]
            if len(oof.classes) == 2:
                expected = {
                    "half/precision/present": sklearn_metrics.precision_score(label, probability[:, 1] >= 0.5),
                    "roc_auc": sklearn_metrics.roc_auc_score(label, probability[:, 1]),
                    "pr_auc": sklearn_metrics.average_precision_score(label, probability[:, 1]),
                    "brier": sklearn_metrics.brier_score_loss(label, probability[:, 1]),
                }
            else:
                called = probability.argmax(axis=1)
                expected = {
                    "argmax/f1": sklearn_metrics.f1_score(label, called, average="weighted"),
                    "argmax/accuracy": sklearn_metrics.accuracy_score(label, called),
                    "pr_auc/Gelisols": sklearn_metrics.average_precision_score(label == 2, probability[:, 2]),
                }
            for name, value in expected.items():
                assert found[name][draw] == pytest.approx(value, abs=1e-12), name


def test_chunks_of_draws_do_not_matter(monkeypatch):
    oof = binary(7, 120)
    draws = scores.draw_clusters(oof.cluster, draws=50)
    whole = scores.bootstrap(judged(oof), draws)
    monkeypatch.setattr(scores, "_CHUNK_VALUES", 120 * 7)
    parts = scores.bootstrap(judged(oof), draws)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-12)  # the order of sums may differ


def test_interval_of_a_mean_covers_as_often_as_it_says():
    # Brier score of a constant 0.5 is 0.25 for every site, so use accuracy: mean of 0/1 in independent clusters of 4
    # equal sites with true accuracy 0.7. Of 200 data sets about 95 % of the intervals must hold 0.7; resampling sites
    # in place of clusters would halve the width and cover about 67 %.
    generator, held = np.random.default_rng(1), 0
    for _ in range(200):
        right = np.repeat(generator.random(60) < 0.7, 4)
        oof = predictions(np.ones(240), np.where(right, 0.9, 0.1), cluster=np.repeat(np.arange(60), 4))
        both = judged(oof)
        draws = scores.draw_clusters(oof.cluster, draws=300)
        found = scores.confusion(oof.label, both.plain.called, 2, draws.index(oof.cluster), draws.times.astype(float))
        share = scores.ratio(np.trace(found, axis1=1, axis2=2), found.sum(axis=(1, 2)))
        made = scores.estimate(float(right.mean()), share, 60)
        held += made.low <= 0.7 <= made.high
    assert 0.89 * 200 <= held <= 0.99 * 200


def test_draws_depend_on_seed_and_clusters_only():
    first = scores.draw_clusters(np.array([5, 5, 2, 9]), 20, seed=1)
    again = scores.draw_clusters(np.array([9, 2, 5]), 20, seed=1)
    np.testing.assert_array_equal(first.times, again.times)
    assert (first.times.sum(axis=0) == 3).all()
    assert not np.array_equal(first.times, scores.draw_clusters(np.array([2, 5, 9]), 20, seed=2).times)
    with pytest.raises(ValueError, match="not among those"):
        first.index(np.array([7]))


@pytest.mark.parametrize("oof", [binary(8), seven(9)], ids=["binary", "seven classes"])
def test_thresholds_of_a_fold_come_from_the_other_folds_only(oof):
    before = judged(oof, recall=0.8)
    probability = oof.probability.copy()
    fold = oof.fold == 2
    probability[fold] = np.roll(probability[fold], 1, axis=1)
    changed = OutOfFold(**{**{n: getattr(oof, n) for n in oof.__dataclass_fields__}, "probability": probability})
    after = judged(changed, recall=0.8)
    point = scores.EQUAL_RECALL  # its target is fixed; that of equal area is the model's own
    assert all(made.thresholds[2] == after.matched[point][k].thresholds[2] for k, made in before.matched[point].items())
    assert any(made.thresholds != after.matched[point][k].thresholds for k, made in before.matched[point].items())


def test_equal_recall_and_equal_area_hand_worked():
    # Fold 1 is judged at a threshold from fold 0, whose present sites score 0.9 0.7 0.5 0.3 and absent 0.8 0.2.
    # Recall 0.75 of 4 is 3 sites: threshold 0.5. Half of all 6 sites is 3 sites: 0.9 0.8 0.7, threshold 0.7.
    oof = predictions([1, 1, 1, 1, 0, 0, 1, 0], [0.9, 0.7, 0.5, 0.3, 0.8, 0.2, 0.6, 0.4], fold=[0, 0, 0, 0, 0, 0, 1, 1])
    assert scores.matched(oof, 1, "equal_recall", 0.75).thresholds[1] == 0.5
    made = scores.matched(oof, 1, "equal_area", 0.5)
    assert made.thresholds[1] == 0.7
    assert made.called[6:].tolist() == [0, 0]
    # Fold 1 holds one present site (0.6), so fold 0 is judged at 0.6: called are 0.9 0.7 0.8.
    assert scores.matched(oof, 1, "equal_recall", 0.75).called[:6].tolist() == [1, 1, 0, 0, 1, 0]


def test_targets_are_what_the_reference_reaches():
    oof = binary(10)
    targets = scores.targets_of(oof)
    called = oof.probability[:, 1] >= 0.5
    assert targets.recall[1] == pytest.approx(called[oof.label == 1].mean())
    assert targets.area[1] == pytest.approx(called.mean())
    assert scores.targets_of(oof, 0.8).recall == {1: 0.8}
    reached = scores.observed(scores.judge(oof, targets))
    assert reached["equal_area/share"] == pytest.approx(targets.area[1], abs=0.03)
    assert reached["equal_recall/recall/present"] == pytest.approx(targets.recall[1], abs=0.05)


def test_one_class_only_gives_reasons_not_zeros():
    found = judged(predictions(np.zeros(20), np.linspace(0, 0.4, 20)))
    values = scores.observed(found)
    assert values["half/accuracy"] == values["half/recall/absent"] == 1.0
    for name in ("roc_auc", "pr_auc", "half/recall/present", "half/f1/present", "equal_recall/precision/present"):
        assert np.isnan(values[name]), name
        assert scores.reason(found, name), name
    assert scores.reason(found, "roc_auc") == "one class only: every site is absent"
    assert scores.reason(found, "half/recall/present") == "no site is present"
    assert "calls no site" in scores.reason(found, "equal_area/accuracy")


def test_nothing_called_present_is_no_precision_and_recall_0():
    found = judged(predictions([1, 1, 0, 0, 0], [0.4, 0.3, 0.2, 0.1, 0.0]))
    values = scores.observed(found)
    assert np.isnan(values["half/precision/present"])
    assert scores.reason(found, "half/precision/present") == "no site is called present"
    assert values["half/recall/present"] == values["half/f1/present"] == 0.0


def test_absent_order_has_no_score_and_no_weight():
    oof = seven(11, absent=(5,))
    found = judged(oof)
    values = scores.observed(found)
    for name in ("argmax/f1/Mollisols", "argmax/recall/Mollisols", "roc_auc/Mollisols"):
        assert np.isnan(values[name])
        assert scores.reason(found, name) == "no site is Mollisols"
    present = [k for k in range(7) if k != 5]
    every = [sklearn_metrics.roc_auc_score(oof.label == k, oof.probability[:, k]) for k in present]
    assert values["roc_auc"] == pytest.approx(np.mean(every))
    called = oof.probability.argmax(axis=1)
    assert values["argmax/f1"] == pytest.approx(sklearn_metrics.f1_score(oof.label, called, average="weighted"))


def test_order_never_called_is_stated():
    probability = np.full((4, 7), 0.1)
    probability[:, 2] = 0.4
    found = judged(predictions([2, 2, 0, 2], probability))
    values = scores.observed(found)
    assert np.isnan(values["argmax/precision/Andisols"])
    assert values["argmax/f1/Andisols"] == 0.0
    # Gelisols: precision 3/4, recall 1, F1 6/7; weights 3/4 and 1/4.
    assert values["argmax/precision"] == pytest.approx(0.75 * 0.75)
    assert values["argmax/f1"] == pytest.approx(0.75 * 6 / 7)
    assert scores.conventions(found) == ["never predicted, so counted with precision 0 in weighted means: Andisols"]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("kind", [binary, seven])
def test_tiny_data_never_crashes(kind, count):
    whole = kind(12)
    found = judged(scores.subset(whole, np.arange(whole.label.size) < count))
    values = scores.observed(found)
    assert set(values) == set(scores.observed(judged(whole)))
    for name, value in values.items():
        if not np.isfinite(value):
            assert scores.reason(found, name)
    scores.mean_over_folds([found])


def test_names_do_not_depend_on_whether_thresholds_exist():
    for oof in (binary(1), seven(1)):
        one_fold = scores.subset(oof, oof.fold == 0)
        assert list(scores.observed(judged(one_fold))) == list(scores.observed(judged(oof)))
        assert "one fold only" in scores.reason(judged(one_fold), "equal_recall/precision/" + oof.classes[1])


def test_mean_over_folds_is_the_papers_way_and_names_the_folds_left_out():
    oof = binary(13, 100)
    label = oof.label.copy()
    label[oof.fold == 3] = 0
    oof = OutOfFold(**{**{n: getattr(oof, n) for n in oof.__dataclass_fields__}, "label": label})
    found = scores.fold_means(judged(oof))
    each = [
        sklearn_metrics.recall_score(label[oof.fold == k], oof.probability[oof.fold == k, 1] >= 0.5)
        for k in (0, 1, 2, 4)
    ]
    mean = found["half/recall/present"]
    assert mean.value == pytest.approx(np.mean(each))
    assert mean.spread == pytest.approx(np.std(each, ddof=1))
    assert (mean.defined, mean.folds) == (4, 5)
    assert mean.reason == "fold 3: no site is present"
    assert found["half/accuracy"].defined == 5


def test_estimate_says_why_it_has_no_interval():
    assert scores.estimate(float("nan"), np.ones(9), 5, "no site is present").reason == "no site is present"
    assert "one cluster only" in scores.estimate(0.5, np.ones(9), 1).reason
    rare = np.full(100, np.nan)
    rare[:30] = 0.5
    assert "30 of 100" in scores.estimate(0.5, rare, 9).reason
    assert scores.estimate(0.5, np.linspace(0, 1, 101), 9).low == pytest.approx(0.025)


@pytest.mark.parametrize(("low", "high", "verdict"), [(0.01, 0.2, 1), (-0.1, 0.2, 0), (-0.3, -0.1, -1)])
def test_verdict_needs_an_interval_beside_zero(low, high, verdict):
    assert scores.Estimate(0.0, low, high).verdict == verdict
    assert scores.Estimate(0.3).verdict == 0
