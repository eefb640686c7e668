"""The random search: clusters stay whole, the same seed gives the same result, scores are those of the books."""

import numpy as np
import pytest

from miso_qgis.engine.errors import InputError
from training import forest_search
from training.forest_fit import ForestSettings, fit_forest
from training.forest_search import Search, SearchSpace, candidates, inner_folds, search

SMALL = SearchSpace(trees=(5, 12), max_depth=(2, 20))
FIRST = ForestSettings(trees=10)


def clustered(clusters=40, each=12, seed=0):
    """Sites whose features name their cluster and whose label is the cluster's own coin: nothing carries over."""
    generator = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(clusters), each)
    label = (generator.random(clusters) < 0.5).astype(np.int8)[cluster]
    features = generator.normal(size=(clusters, 3))[cluster] + generator.normal(0, 1e-3, (cluster.size, 3))
    return features.astype(np.float32), label, cluster


def test_inner_folds_never_part_a_cluster_and_share_out_the_classes():
    _, label, cluster = clustered()
    dealt = inner_folds(label, cluster, 4, seed=1)
    assert all(np.unique(dealt[cluster == one]).size == 1 for one in np.unique(cluster))
    assert sorted(np.unique(dealt)) == [0, 1, 2, 3]
    shares = [label[dealt == fold].mean() for fold in range(4)]
    assert max(shares) - min(shares) < 0.2


def test_a_search_that_parted_clusters_would_believe_what_does_not_carry_over():
    features, label, cluster = clustered()
    wanted = Search(iterations=2, first=FIRST, space=SMALL)
    whole = search({50.0: features}, label, cluster, "nsp", wanted)
    parted = search({50.0: features}, label, np.arange(label.size), "nsp", wanted)
    assert max(value for _, _, value in parted.tried) > 0.95
    assert max(value for _, _, value in whole.tried) < 0.75


def test_the_search_finds_what_carries_over():
    """One feature tells the class through noise of the site, the others name the cluster: shallow trees win."""
    generator = np.random.default_rng(4)
    features, _, cluster = clustered(60, 8, seed=4)
    signal = generator.normal(size=cluster.size)
    label = (signal + generator.normal(0, 1.0, cluster.size) > 0).astype(np.int8)
    features = np.column_stack([features, signal]).astype(np.float32)
    space = SearchSpace(trees=(12, 12), min_samples_split=(2, 150), max_depth=(1, 25))
    found = search({50.0: features}, label, cluster, "nsp", Search(iterations=8, first=FIRST, space=space))
    assert found.score == "pr_auc"
    assert len(found.tried) == 8
    scores = [value for _, _, value in found.tried]
    assert dict(zip(map(str, (s for s, _, _ in found.tried)), scores))[str(found.best)] == max(scores)
    assert found.best.min_samples_split > 5
    again = search({50.0: features}, label, cluster, "nsp", Search(iterations=8, first=FIRST, space=space))
    assert again.tried == found.tried


def test_the_papers_settings_come_first_and_draws_stay_inside_the_space():
    drawn = candidates(Search(iterations=300), [50.0, 0.0, 100.0], seed=2)
    assert drawn[0] == (ForestSettings(253, 5, 16), 50.0)
    assert len(drawn) == 300
    trees = [settings.trees for settings, _ in drawn]
    assert 50 <= min(trees) < 60
    assert 450 < max(trees) <= 500
    assert {settings.min_samples_split for settings, _ in drawn} == set(range(2, 21))
    assert {settings.max_depth for settings, _ in drawn} == set(range(4, 33))
    assert {buffer for _, buffer in drawn} == {0.0, 50.0, 100.0}


def test_a_radius_is_chosen_with_the_settings():
    generator = np.random.default_rng(1)
    label = (np.arange(300) % 2).astype(np.int8)
    good = (label[:, None] + generator.normal(0, 0.3, (300, 2))).astype(np.float32)
    bad = generator.normal(size=(300, 2)).astype(np.float32)
    found = search(
        {50.0: bad, 0.0: good}, label, np.arange(300) // 5, "nsp", Search(iterations=6, first=FIRST, space=SMALL)
    )
    assert found.buffer_m == 0.0


def test_scores_worked_by_hand():
    label = np.array([0, 0, 1, 1])
    probability = np.array([[0.9, 0.1], [0.4, 0.6], [0.35, 0.65], [0.8, 0.2]])
    # Ranked 0.65 (hit), 0.6 (miss), 0.2 (hit), 0.1: precision 1 at recall 1/2, 2/3 at recall 1.
    assert forest_search.pr_auc(label, probability) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    logs = np.log([0.9, 0.4, 0.65, 0.2])
    assert forest_search.negative_log_loss(label, probability) == pytest.approx(logs.mean())
    # At 0.5: one of two right in each class, one wrong call of each: F1 = 0.5 both.
    assert forest_search.macro_f1(label, probability) == pytest.approx(0.5)
    # Classes that do not occur do not count, but calling them costs the recall of others.
    seven = np.eye(7)[[1, 1, 4, 6]]
    assert forest_search.macro_f1(np.array([1, 1, 4, 4]), seven) == pytest.approx((1 + 2 / 3) / 2)


def test_too_few_clusters_an_unknown_score_and_one_class_are_named():
    features, label, _ = clustered(10, 4)
    with pytest.raises(InputError, match=r"fold 3: the training sites lie in 3 clusters.*--search 0"):
        search({0.0: features}, label, np.arange(label.size) % 3, "nsp", Search(2), where="split x, fold 3")
    with pytest.raises(InputError, match=r'"pr_auc" cannot rank soil_order.*log_loss, macro_f1'):
        search({0.0: features}, label, np.arange(label.size), "soil_order", Search(2, score="pr_auc"))
    with pytest.raises(InputError, match=r"Task nsp, here: all 40 training sites are present"):
        fit_forest(features, np.ones(40, int), "nsp", where="here")


def test_rare_classes_are_dealt_all_the_same():
    label = np.array([0] * 30 + [1] * 2 + [2], np.int8)
    dealt = inner_folds(label, np.arange(33), 4, seed=1)
    assert np.bincount(dealt).min() >= 6
    assert (inner_folds(np.arange(6) % 3, np.arange(6), 4, seed=1) >= 0).all()
