"""The model card says what the numbers say, where the model must not be used, and that invented data is invented."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from report_data import predictions

from training import model_card
from training.report_comparison import assess, assessed_json, compare
from training.report_manifest import score_entries, task_entries
from training.sites import Sites


@pytest.fixture(scope="module")
def found():
    return predictions(clusters=30, simulated=False)


@pytest.fixture(scope="module")
def data(found):
    assessed = [assess(one, draws=40) for one in compare(found)]
    tasks = {task: task_entries(assessed, task) for task in ("nsp", "soil_order")}
    result = {
        "comparisons": [assessed_json(a) for a in assessed],
        "manifest": {"tasks": tasks, "scores": score_entries(assessed)},
    }
    return json.loads(json.dumps(result, allow_nan=False))


def test_card_holds_data_period_splits_scores_calibration_area_limits_licence_citation(found, data):
    text = model_card.write(model_card.about(found, None, False), data)
    assert text.startswith("# Invented survey\n")
    assert "Period of the observations: 1952 to 2023" in text
    assert "Labels are from 1952 to 2023" in text
    assert "imagery lags thaw" in text
    assert "Data: CC0." in text
    assert "Cite: Nobody, nowhere." in text
    assert "arXiv:2506.17302" in text
    assert "Area: sites within " in text
    assert "## Calibration" in text
    for split in ("random", "SH-1km"):
        assert f"split {split}: {found[0].label.size:,} sites" in text
    one = next(c for c in data["comparisons"] if (c["task"], c["split"]) == ("nsp", "SH-1km"))
    made = one["pooled"]["miso"]["roc_auc"]
    assert f"{made['value']:.3f} ({made['low']:.3f} to {made['high']:.3f})" in text
    assert "nan" not in text.lower().replace("nanc", "")
    assert "None" not in text


def test_simulated_data_is_said_first_and_limits_follow(found, data):
    text = model_card.write(model_card.about(found, None, True), data)
    assert text.index("SIMULATED") < text.index("How good it is")
    assert "no use on any real place" in text
    assert "imagery lags thaw" not in text


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.03, "above"), (-0.01, 0.03, "no difference shown"), (-0.05, -0.01, "below")]
)
def test_a_difference_counts_only_if_its_interval_excludes_zero(found, data, low, high, word):
    changed = json.loads(json.dumps(data))
    for one in changed["comparisons"]:
        for made in one["differences"]["rf"].values():
            made.update(value=(low + high) / 2, low=low, high=high)
    lines = model_card.write(model_card.about(found, None, False), changed).splitlines()
    verdicts = [line for line in lines if line.startswith("- ") and "against Random Forest:" in line]
    assert len(verdicts) == 4
    for line in verdicts:
        assert line.count(word) == line.count("(") >= 4


def test_what_is_not_defined_has_its_reason(found):
    one_class = [replace(o, label=np.zeros_like(o.label)) for o in found if o.task == "nsp" and o.split == "random"]
    assessed = [assess(one, draws=20) for one in compare(one_class)]
    tasks = {"nsp": task_entries(assessed, "nsp")}
    result = {
        "comparisons": [assessed_json(a) for a in assessed],
        "manifest": {"tasks": tasks, "scores": score_entries(assessed)},
    }
    text = model_card.write(model_card.about(one_class, None, False), result)
    assert "– (one class only: every site is absent)" in text


def test_period_comes_from_the_sites_where_they_are_at_hand(found):
    dates = np.array(["1961-07-01", "NaT", "2019-08-15"], dtype="datetime64[D]")
    sites = Sites(np.array(["a", "b", "c"]), np.zeros(3), np.zeros(3), {"nsp": np.zeros(3, np.int8)}, dates)
    facts = model_card.about(found, None, False, sites)
    assert facts.period == (1961, 2019)
    assert "1 observations have no date" in model_card.limits(facts)[0]


def test_unknown_facts_are_said_to_be_unknown(found, data):
    bare = [replace(o, facts={}) for o in found]
    text = model_card.write(model_card.about(bare, None, False), data)
    assert text.startswith("# Soil models\n")
    assert "Period of the observations: not recorded" in text
    assert "dates of the observations are not recorded" in text
    assert "Data: not recorded." in text


def test_dataset_description_takes_precedence(found, data):
    from types import SimpleNamespace

    channel = SimpleNamespace(name="elevation")
    dataset = SimpleNamespace(
        title="Described",
        licence="public domain",
        citation="Them",
        groups=(SimpleNamespace(name="terrain", channels=(channel,)),),
    )
    text = model_card.write(model_card.about(found, dataset, False), data)
    assert text.startswith("# Described\n")
    assert "Channels, terrain: elevation." in text
    assert "Data: public domain." in text
