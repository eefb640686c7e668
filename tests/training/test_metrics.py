"""Metrics against scikit-learn and hand-worked values; laws of the bootstrap and of the equal-recall threshold."""

import numpy as np
import pytest

sklearn_metrics = pytest.importorskip("sklearn.metrics")

from training import metrics  # noqa: E402


def _places(seed, count=600, steps=None):
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.3).astype(np.uint8)
    scores = np.clip(0.3 * labels + generator.normal(0.35, 0.2, count), 0, 1)
    return labels, np.round(scores * steps) / steps if steps else scores


@pytest.mark.parametrize("steps", [None, 20], ids=["distinct scores", "many ties"])
@pytest.mark.parametrize("weighted", [False, True])
def test_areas_equal_scikit_learn(steps, weighted):
    labels, scores = _places(1, steps=steps)
    weights = np.random.default_rng(2).integers(0, 4, labels.size).astype(float) if weighted else None
    found = metrics.Ranking(labels, scores).measure(weights)
    roc = sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights)
    average = sklearn_metrics.average_precision_score(labels, scores, sample_weight=weights)
    assert found["roc_auc"] == pytest.approx(roc, abs=1e-12)
    assert found["pr_auc"] == pytest.approx(average, abs=1e-12)


def test_hand_worked_example():
    # Scores from high to low with labels 1 0 1 1 0. ROC-AUC: of the 3 x 2 pairs (present, absent) the present place is
    # higher in 2 + 1 + 1 = 4. Average precision: steps of 1/3 at precisions 1, 2/3, 3/4.
    labels, scores = np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.7, 0.4, 0.1])
    found = metrics.Ranking(labels, scores).measure(recall=0.6)
    assert found["roc_auc"] == pytest.approx(4 / 6)
    assert found["pr_auc"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert found["precision_at_equal_recall_curve"] == pytest.approx(2 / 3)  # recall 2/3 is the first one >= 0.6
    assert metrics.Ranking(labels, scores).threshold_at_recall(0.6) == 0.7
    # At 0.5: decided 0.9, 0.8, 0.7 -> 2 hits, 1 false alarm, 1 miss.
    assert metrics.precision_recall_f1(labels, scores >= 0.5) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_recall_that_is_reached_exactly_needs_no_further_step():
    labels, scores = np.ones(5), np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert metrics.Ranking(labels, scores).threshold_at_recall(0.8) == 0.6


def test_curve_equals_deciding_at_each_threshold():
    labels, scores = _places(3, steps=15)
    thresholds = np.linspace(0, 1, 31)
    precision, recall = metrics.Ranking(labels, scores).curve(thresholds)
    for i, threshold in enumerate(thresholds):
        expected = metrics.precision_recall_f1(labels, scores >= threshold)
        if (scores >= threshold).any():
            assert precision[i] == pytest.approx(expected[0])
        assert recall[i] == pytest.approx(expected[1])


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="without a prediction"):
        metrics.Ranking(np.array([0, 1]), np.array([0.5, np.nan]))


def test_equal_recall_threshold_does_not_see_its_own_fold():
    labels, scores = _places(4)
    folds = np.arange(labels.size) % 5
    before = metrics.equal_recall_thresholds(labels, scores, folds)
    spoiled_labels, spoiled_scores = labels.copy(), scores.copy()
    spoiled_labels[folds == 2] = 1 - spoiled_labels[folds == 2]
    spoiled_scores[folds == 2] = np.random.default_rng(5).random((folds == 2).sum())
    after = metrics.equal_recall_thresholds(spoiled_labels, spoiled_scores, folds)
    assert after[2] == before[2]
    assert all(after[fold] != before[fold] for fold in (0, 1, 3, 4))


def test_equal_recall_threshold_reaches_its_recall_on_the_other_folds_and_no_larger_one_does():
    labels, scores = _places(6)
    folds = np.arange(labels.size) % 4
    for fold, threshold in metrics.equal_recall_thresholds(labels, scores, folds).items():
        other = scores[(folds != fold) & (labels == 1)]
        assert (other >= threshold).mean() >= metrics.EQUAL_RECALL
        assert (other > threshold).mean() < metrics.EQUAL_RECALL


def _scored(seed, lift=0.0, blocks=40):
    generator = np.random.default_rng(seed)
    block = np.repeat(np.arange(blocks), 25)
    effect = generator.normal(0, 0.1, blocks)[block]
    labels = (generator.random(block.size) < 0.3).astype(np.uint8)
    scores = np.clip(0.35 + (0.25 + lift) * labels + effect + generator.normal(0, 0.15, block.size), 0, 1)
    return metrics.Scored(labels, scores, block, np.full(block.size, 0.4))


def test_one_draw_of_every_block_gives_the_metric_itself():
    scored = _scored(1)
    once = {int(block): np.ones(1, dtype=np.int64) for block in np.unique(scored.blocks)}
    distribution = metrics.bootstrap([scored], once)
    assert {name: values[0] for name, values in distribution.items()} == pytest.approx(scored.measure())


def test_bootstrap_draw_equals_repeating_the_places_of_each_block():
    scored = _scored(2)
    draws = metrics.block_draws(scored.blocks, draws=3, seed=9)
    repeated = np.repeat(np.arange(scored.labels.size), [draws[int(b)][1] for b in scored.blocks])
    copy = metrics.Scored(*(a[repeated] for a in (scored.labels, scored.scores, scored.blocks, scored.threshold)))
    assert {k: v[1] for k, v in metrics.bootstrap([scored], draws).items()} == pytest.approx(copy.measure())


def test_every_draw_has_as_many_blocks_as_there_are():
    draws = metrics.block_draws(np.repeat(np.arange(30), 7), draws=50, seed=1)
    assert (np.stack(list(draws.values())).sum(axis=0) == 30).all()


def test_interval_covers_the_population_value_as_often_as_it_says():
    # Population: ROC-AUC of 4,000 blocks. 60 samples of 40 blocks; 95 % of the intervals should hold it. Fewer than
    # 85 % (51 of 60) has a probability below 0.2 % if the intervals are honest.
    truth = _scored(100, blocks=4000).measure()["roc_auc"]
    held = 0
    for seed in range(60):
        scored = _scored(seed)
        values = metrics.bootstrap([scored], metrics.block_draws(scored.blocks, draws=150, seed=seed))["roc_auc"]
        low, high = metrics.interval(values)
        held += low <= truth <= high
    assert 51 <= held <= 60


def test_paired_difference_is_narrower_than_the_intervals_themselves():
    poor = _scored(3)
    better = metrics.Scored(poor.labels, np.clip(poor.scores + 0.02 * poor.labels, 0, 1), poor.blocks, poor.threshold)
    draws = metrics.block_draws(poor.blocks, draws=200, seed=1)
    a, b = (metrics.bootstrap([scored], draws)["roc_auc"] for scored in (better, poor))
    assert np.ptp(metrics.interval(a - b)) < 0.3 * np.ptp(metrics.interval(a))
    assert metrics.interval(a - b)[0] > 0
