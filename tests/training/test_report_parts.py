"""What the report is made of: pairing of models, curves, reliability, costs of thresholds, polygons, advice."""

from dataclasses import replace

import numpy as np
import pytest

sklearn_metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("matplotlib")

import pyogrio  # noqa: E402
import shapely  # noqa: E402
from report_data import predictions  # noqa: E402

from miso_qgis.engine.errors import InputError  # noqa: E402
from training import report_advice, report_curves, report_manifest, report_polygons, scores  # noqa: E402
from training.report_comparison import assess, assessed_json, compare, preferred_method  # noqa: E402
from training.scores import Estimate  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return predictions()


@pytest.fixture(scope="module")
def assessed(found):
    return [assess(one, draws=60) for one in compare(found)]


def of(assessed, task, split="SH-1km"):
    return next(a for a in assessed if (a.comparison.task, a.comparison.split) == (task, split))


# --- who is compared with whom ---


def test_groups_are_tasks_and_splits_in_the_papers_order(found):
    groups = compare(found[::-1])
    expected = [("nsp", "random"), ("nsp", "SH-1km"), ("soil_order", "random"), ("soil_order", "SH-1km")]
    assert [(g.task, g.split) for g in groups] == expected
    assert all(list(g.members) == ["rf", "miso"] and g.reference == "miso" and g.paired for g in groups)


def test_order_of_sites_in_a_file_does_not_matter(found):
    pair = [o for o in found if o.task == "nsp" and o.split == "random"]
    mixed = scores.subset(pair[1], np.random.default_rng(1).permutation(pair[1].label.size))
    first, second = (assess(compare([pair[0], one])[0], draws=20) for one in (pair[1], mixed))
    for name, made in first.differences["rf"].items():
        other = second.differences["rf"][name]
        assert (made.value, made.low) == pytest.approx((other.value, other.low), nan_ok=True), name


def test_models_are_compared_on_common_sites_and_the_note_says_how_many_were_left_out(found):
    pair = [o for o in found if o.task == "nsp" and o.split == "random"]
    fewer = scores.subset(pair[1], np.arange(pair[1].label.size) >= 7)
    group = compare([pair[0], fewer])[0]
    assert group.notes == ("Seed 1: 7 sites of Random Forest that others lack are left out.",)
    assert group.members["rf"][1].id.tolist() == group.members["miso"][1].id.tolist()


def test_seeds_that_others_lack_are_left_out_and_named(found):
    pair = [o for o in found if o.task == "nsp" and o.split == "random"]
    group = compare([*pair, replace(pair[0], seed=2), replace(pair[0], seed=3)])[0]
    assert group.notes == ("Only the seeds that all models have take part. Left out: 2, 3 of Random Forest.",)
    assert list(group.members["rf"]) == [1]


def test_models_without_a_common_seed_are_scored_but_not_paired(found):
    pair = [o for o in found if o.task == "nsp" and o.split == "random"]
    group = compare([pair[0], replace(pair[1], seed=2)])[0]
    assert not group.paired
    made = assess(group, draws=20)
    assert made.differences == {}
    assert np.isfinite(made.pooled["rf"]["equal_recall/precision/present"].value)
    assert "no seed in common" in made.notes[0]


def test_contradictions_are_all_reported_at_once(found):
    pair = [o for o in found if o.task == "nsp" and o.split == "random"]
    wrong = replace(pair[1], label=1 - pair[1].label, cluster=pair[1].cluster + 1)
    with pytest.raises(InputError) as error:
        compare([pair[0], wrong])
    assert len(error.value.problems) == 2
    assert "different labels" in str(error.value)
    assert "different clusters" in str(error.value)
    with pytest.raises(InputError, match="are in two of the runs"):
        compare([pair[0], pair[0]])
    twice = scores.subset(pair[0], np.array([0, 0, 1]))
    with pytest.raises(InputError, match="hold a site twice"):
        compare([twice])


def test_a_model_against_itself_shows_no_difference(found):
    one = next(o for o in found if o.task == "nsp" and o.model == "miso")
    made = assess(compare([one, replace(one, model="twin")])[0], draws=40)
    for name, difference in made.differences["twin"].items():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0), name
    _, text = report_advice.on_permafrost(made)[0]
    assert text.startswith("No preference: no difference shown in PR-AUC, ROC-AUC")


def test_pairing_makes_the_interval_of_a_difference_narrower(assessed):
    a = of(assessed, "nsp")
    paired = a.differences["rf"]["half/recall/present"]
    one, other = a.pooled["miso"]["half/recall/present"], a.pooled["rf"]["half/recall/present"]
    assert paired.high - paired.low < np.hypot(one.high - one.low, other.high - other.low)


def test_json_holds_no_nan_and_every_measure(assessed):
    import json

    for a in assessed:
        data = assessed_json(a)
        json.dumps(data, allow_nan=False)
        assert set(data["pooled"]["miso"]) == set(data["folds"]["miso"]) == set(data["differences"]["rf"])
        for row in data["pooled"].values():
            assert all(made["value"] is not None or made["reason"] for made in row.values())


def test_never_predicted_order_is_noted(assessed):
    assert any("never predicted" in note and "Mollisols" in note for note in of(assessed, "soil_order").notes)


# --- curves ---


def test_rank_curves_lie_on_scikit_learns(found):
    oof = next(o for o in found if o.task == "nsp")
    curve = report_curves.rank_curves([oof], 1)
    for threshold, precision, recall in zip(curve["threshold"], curve["precision"], curve["recall"]):
        called = oof.probability[:, 1] >= threshold - 1e-6
        assert precision == pytest.approx(sklearn_metrics.precision_score(oof.label, called), abs=0.01)
        assert recall == pytest.approx(sklearn_metrics.recall_score(oof.label, called), abs=0.01)
    only = scores.subset(oof, oof.label == 0)
    assert report_curves.rank_curves([only], 1)["recall"] == []


def test_histogram_counts_every_site_once(found):
    oof = next(o for o in found if o.task == "nsp")
    expected = np.histogram(oof.probability[:, 1], bins=10, range=(0, 1))[0] / oof.label.size
    assert report_curves.histogram([oof], 1) == pytest.approx(expected, abs=1e-6)


def test_reliability_equals_scikit_learn(found):
    from sklearn.calibration import calibration_curve

    oof = next(o for o in found if o.task == "nsp")
    draws = scores.draw_clusters(oof.cluster, 200)
    bins = report_curves.reliability([oof], draws, bins=8)
    share, mean = calibration_curve(oof.label, oof.probability[:, 1], n_bins=8, strategy="quantile")
    assert [b.share.value for b in bins] == pytest.approx(share)
    assert [b.mean for b in bins] == pytest.approx(mean)
    assert sum(b.sites for b in bins) == oof.label.size
    assert all(b.share.low <= b.share.value <= b.share.high for b in bins)


def test_reliability_does_not_part_equal_probabilities():
    oof = next(o for o in predictions() if o.task == "nsp")
    p = np.where(np.arange(oof.label.size) % 3 == 0, 0.25, 0.0)
    oof = replace(oof, probability=np.stack([1 - p, p], axis=1))
    bins = report_curves.reliability([oof], scores.draw_clusters(oof.cluster, 20))
    assert [b.mean for b in bins] == [0.0, 0.25]


def test_threshold_table_equals_scikit_learn_and_counts_visits(found):
    oof = next(o for o in found if o.task == "nsp")
    rows = report_curves.threshold_table([oof], scores.draw_clusters(oof.cluster, 50), 1)
    for row in rows:
        called = oof.probability[:, 1] >= row.threshold
        assert row.share.value == pytest.approx(called.mean())
        assert row.recall.value == pytest.approx(sklearn_metrics.recall_score(oof.label, called))
        if called.any():
            assert row.precision.value == pytest.approx(sklearn_metrics.precision_score(oof.label, called))
            assert row.f1.value == pytest.approx(sklearn_metrics.f1_score(oof.label, called))
            assert row.hits.value + row.false_alarms.value == pytest.approx(100)
            assert row.hits.low == pytest.approx(100 - row.false_alarms.high, nan_ok=True)


def test_threshold_that_nothing_reaches_has_no_precision():
    oof = next(o for o in predictions() if o.task == "nsp")
    oof = replace(oof, probability=np.tile([0.8, 0.2], (oof.label.size, 1)))
    rows = report_curves.threshold_table([oof], scores.draw_clusters(oof.cluster, 20), 1)
    high = rows[-1]
    assert np.isnan(high.precision.value)
    assert high.precision.reason == "no site is called so"
    assert high.recall.value == 0.0


def test_manifest_entries_are_what_the_plugin_reads(assessed):
    import json

    entries = report_manifest.task_entries(assessed, "nsp")
    assert set(entries["curves"]) == {"miso", "rf"}
    curve = entries["curves"]["miso"]["SH-1km"]
    assert len({len(values) for values in curve.values()}) == 1
    assert curve["threshold"][0] == 0.0
    assert curve["recall"][0] == 1.0
    a = of(assessed, "nsp")
    target = a.pooled["miso"]["half/recall/present"].value
    for model in ("miso", "rf"):
        threshold = entries["thresholds"][model]["equal_recall"]
        oof = a.judged[model][0].oof
        assert (oof.probability[oof.label == 1, 1] >= threshold - 1e-4).mean() == pytest.approx(target, abs=0.02)
    assert entries["calibration"]["miso"]["SH-1km"]["method"] in ("temperature", "none")
    made = report_manifest.score_entries(assessed)
    assert made["comparison"].startswith("In validation, MISO against the Random Forest: ")
    json.dumps([entries, made], allow_nan=False)


def test_calibration_is_kept_only_if_it_helps_out_of_fold(assessed):
    for a in assessed:
        for methods in a.calibrated.values():
            chosen = preferred_method(methods)
            changes = {m: found["change"]["log_loss"].value for m, found in methods.items()}
            assert (chosen == "") == (min(changes.values()) >= 0)
            if chosen:
                assert changes[chosen] == min(changes.values())


# --- polygons ---


def write_polygons(path, crs="EPSG:3338", rows=(("west", -700e3, 0), ("east", 0, 900e3)), field="name"):
    boxes = [shapely.box(low, 800e3, high, 2300e3) for _, low, high in rows]
    wkb = np.array([shapely.to_wkb(box) for box in boxes], dtype=object)
    names = np.array([name for name, _, _ in rows], dtype=object)
    pyogrio.raw.write(path, wkb, [names], [field], geometry_type="Polygon", crs=crs, driver="GPKG", layer="zones")
    return str(path)


def test_polygon_scores_equal_scoring_the_sites_in_it(assessed, tmp_path):
    layer = report_polygons.read_polygons(write_polygons(tmp_path / "zones.gpkg"), "name")
    a = of(assessed, "soil_order")
    found = report_polygons.score_polygons(a, layer)
    assert [one.name for one in found.polygons] == ["east", "west"]
    for one in found.polygons:
        for model in ("rf", "miso"):
            oof = a.judged[model][0].oof
            inside = (oof.x > 0) == (one.name == "east")
            called = oof.probability[inside].argmax(axis=1)
            assert one.sites == inside.sum()
            assert one.accuracy[model].value == pytest.approx((called == oof.label[inside]).mean())
            assert one.predicted[model]["Gelisols"].value == pytest.approx((called == 2).mean())
            recalls = sklearn_metrics.recall_score(oof.label[inside], called, average=None, labels=range(7))
            for order, made in one.by_class[model].items():
                assert made.value == pytest.approx(recalls[oof.classes.index(order)])
                assert one.per_class[order] >= report_polygons.HIDDEN
        assert sum(one.observed.values()) == pytest.approx(1)
        made = one.differences["rf"]
        assert made.value == pytest.approx(one.accuracy["miso"].value - one.accuracy["rf"].value)
        assert made.low <= made.value <= made.high


def test_polygons_of_another_crs_hold_the_same_sites(assessed, tmp_path):
    from rasterio.warp import transform_geom

    a = of(assessed, "nsp")
    oof = a.judged["miso"][0].oof
    ring = shapely.segmentize(shapely.box(0, 800e3, 900e3, 2300e3), 5000)
    moved = shapely.geometry.shape(transform_geom("EPSG:3338", "EPSG:4326", shapely.geometry.mapping(ring)))
    wkb = np.array([shapely.to_wkb(moved)], dtype=object)
    path = tmp_path / "lonlat.gpkg"
    pyogrio.raw.write(path, wkb, [np.array(["east"], object)], ["name"], geometry_type="Polygon", crs="EPSG:4326")
    layer = report_polygons.read_polygons(str(path), None)
    place, _ = layer.locate(oof.x, oof.y)
    far = np.abs(oof.x) > 2000
    np.testing.assert_array_equal(place[far] == 0, oof.x[far] > 0)


def test_overlaps_names_and_outside_are_handled(tmp_path):
    rows = (("a", 0, 10), ("b", 5, 20), ("a", 30, 40), (None, 50, 60))
    layer = report_polygons.read_polygons(write_polygons(tmp_path / "zones.gpkg", rows=rows), "name")
    assert layer.names == ("(no name)", "a", "b")
    place, overlapping = layer.locate(np.array([2.0, 7, 15, 35, 55, 99]), np.full(6, 1e6))
    assert [layer.names[p] if p >= 0 else None for p in place] == ["a", "a", "b", "a", "(no name)", None]
    assert overlapping == 1


def test_small_polygon_is_marked_and_not_judged(assessed, tmp_path):
    edge = of(assessed, "nsp").judged["miso"][0].oof.x.max() - 500
    rows = (("rest", -700e3, edge), ("corner", edge, edge + 1e4))
    layer = report_polygons.read_polygons(write_polygons(tmp_path / "zones.gpkg", rows=rows), "name")
    found = report_polygons.score_polygons(of(assessed, "nsp"), layer)
    assert [(one.name, one.small) for one in found.polygons] == [("corner", True), ("rest", False)]
    text = " ".join(text for _, text in report_advice.on_polygons(found, "miso", ("rf", "miso")))
    assert "corner" not in text


@pytest.mark.parametrize(
    ("make", "field", "said"),
    [
        (lambda p: str(p / "none.gpkg"), None, "does not exist"),
        (lambda p: write_polygons(p / "z.gpkg"), "zone", "has no field 'zone'"),
        (lambda p: write_polygons(p / "z.gpkg", crs=None), "name", "no coordinate reference system"),
        (lambda p: write_polygons(p / "z.gpkg") + "|layername=other", "name", "cannot be read"),
    ],
)
def test_polygons_that_cannot_be_used_are_refused(tmp_path, make, field, said):
    with pytest.raises(InputError, match=said):
        report_polygons.read_polygons(make(tmp_path), field)


# --- advice ---


def estimates(**signs):
    names = {
        "pr": "pr_auc",
        "roc": "roc_auc",
        "precision": "equal_recall/precision/present",
        "recall": "equal_area/recall/present",
    }
    return {names[k]: Estimate(0.1 * s, 0.1 * s - 0.05, 0.1 * s + 0.05) for k, s in signs.items()}


@pytest.mark.parametrize(
    ("signs", "start"),
    [
        ({"pr": 1, "roc": 1, "precision": 0, "recall": 0}, "Prefer MISO: PR-AUC and ROC-AUC are better; no difference"),
        ({"pr": -1, "roc": 0, "precision": 0, "recall": 0}, "Prefer Forest: PR-AUC is better; no difference shown in"),
        (
            {"pr": 1, "roc": 0, "precision": -1, "recall": 0},
            "It depends: MISO is better in PR-AUC, Forest in precision",
        ),
        ({"pr": 0, "roc": 0, "precision": 0, "recall": 0}, "No preference: no difference shown in"),
    ],
)
def test_preference_follows_the_intervals(signs, start):
    text = report_advice.conclusion(estimates(**signs), report_advice.DECISIVE_NSP, "MISO", "Forest")
    assert text.startswith(start)


def test_values_without_intervals_give_no_preference():
    found = {"pr_auc": Estimate(0.4), "roc_auc": Estimate(float("nan"))}
    assert "Nothing can be said" in report_advice.conclusion(found, report_advice.DECISIVE_NSP, "MISO", "Forest")


def test_operating_point_is_named_as_a_choice(assessed):
    a = of(assessed, "nsp")
    changed = dict(a.differences["rf"])
    changed["half/recall/present"] = Estimate(0.1, 0.05, 0.15)
    changed["half/precision/present"] = Estimate(-0.1, -0.15, -0.05)
    _, text = report_advice.on_permafrost(replace(a, differences={"rf": changed}))[0]
    assert "MISO finds more of what is there: recall +10.0 (+5.0 to +15.0) points" in text
    assert "Random Forest has fewer false alarms: precision +10.0 (+5.0 to +15.0) points" in text
    assert "move the other model's threshold" in text


def test_less_is_better_for_brier_and_log_loss(assessed):
    a = of(assessed, "nsp")
    changed = {**a.differences["rf"], "brier": Estimate(-0.02, -0.03, -0.01), "log_loss": Estimate(0.02, 0.01, 0.03)}
    _, text = report_advice.on_probabilities(replace(a, differences={"rf": changed}))[0]
    assert "Brier score -0.020 (-0.030 to -0.010): MISO better" in text
    assert "log loss +0.020 (+0.010 to +0.030): Random Forest better" in text
