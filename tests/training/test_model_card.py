"""The card says plainly who wins."""

import pytest

pytest.importorskip("torch", reason="torch is not installed in this environment")

from training.card import _figures, _verdicts, comparison


def entry(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


def result(low, high):
    row = {
        name: entry((low + high) / 2, low, high)
        for name in ("roc_auc", "pr_auc", "precision_at_equal_recall_curve", "f1_half", "precision_half", "recall_half")
    }
    splits = ("blocks", "sector", "random")
    return {
        "tables": {split: {"map": {"miso": row, "rf": row}} for split in splits},
        "differences": {split: {"map": {"rf": row}} for split in splits},
        "networks": [2],
    }


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.03, "above"), (-0.01, 0.03, "level"), (-0.05, -0.01, "below")]
)
def test_a_difference_counts_only_if_its_interval_excludes_zero(low, high, word):
    lines = [line for line in _verdicts(result(low, high)) if line.startswith("- ")]
    assert len(lines) == 3
    assert all(line.count(word) == 4 for line in lines)
    assert "Random Forest" in lines[0]


def test_without_predictions_the_card_says_not_yet_measured():
    assert _figures(None, 2) == ["Not yet measured by the protocol of docs/validation.md."]
    assert any("0.020 (0.010-0.030)" in line for line in _figures(result(0.01, 0.03), 2))


def test_the_card_says_when_the_bundle_averages_more_networks_than_were_measured():
    assert not any("averaged networks" in line for line in _figures(result(0.01, 0.03), 2))
    assert any(
        "those of 2 averaged networks; the bundled model averages 4" in line for line in _figures(result(0, 0), 4)
    )


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.03, "above"), (-0.01, 0.03, "level"), (-0.05, -0.01, "below")]
)
def test_the_interface_is_told_who_wins(low, high, word):
    sentence = comparison(result(low, high))
    assert sentence.count(f"{word} on") == 2
    nothing = result(low, high)
    nothing["differences"]["sector"]["map"] = {}
    assert comparison(nothing) == ""
