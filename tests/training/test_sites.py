"""The table of observations and the file of out-of-fold predictions."""

import dataclasses

import numpy as np
import pytest

from miso_qgis.engine.errors import InputError
from training import outoffold
from training.outoffold import OutOfFold
from training.sites import CLASSES, MISSING, Sites, outputs


def five_sites() -> Sites:
    return Sites(
        id=np.array(["a", "b", "c", "d", "e"]),
        x=np.arange(5.0),
        y=np.arange(5.0) + 10.0,
        labels={
            "nsp": np.array([0, 1, MISSING, 1, 0], np.int8),
            "soil_order": np.array([2, 6, 0, MISSING, 3], np.int8),
        },
        date=np.array(["1999-07-01", "NaT", "2001-08-02", "NaT", "2020-06-30"], "datetime64[D]"),
    )


def predictions() -> OutOfFold:
    probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    return OutOfFold(
        model="miso",
        task="nsp",
        split="SH-1km",
        seed=3,
        classes=CLASSES["nsp"],
        id=np.array(["a", "b", "d"]),
        x=np.array([0.0, 1.0, 3.0]),
        y=np.array([10.0, 11.0, 13.0]),
        label=np.array([0, 1, 1], np.int8),
        fold=np.array([0, 1, 1], np.int16),
        cluster=np.array([7, 8, 8], np.int64),
        probability=probability,
        facts={"simulated": True},
    )


def test_a_binary_task_has_one_output_and_the_orders_have_seven():
    assert (outputs("nsp"), outputs("soil_order")) == (1, 7)
    assert list(CLASSES["soil_order"]) == sorted(CLASSES["soil_order"])


def test_a_subset_keeps_every_column_together():
    chosen = five_sites().subset(five_sites().labelled("nsp"))
    assert list(chosen.id) == ["a", "b", "d", "e"]
    assert list(chosen.labels["nsp"]) == [0, 1, 1, 0]
    assert list(chosen.labels["soil_order"]) == [2, 6, MISSING, 3]
    assert list(chosen.x) == [0.0, 1.0, 3.0, 4.0]
    assert str(chosen.date[-1]) == "2020-06-30"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": np.arange(4.0)}, "x has shape"),
        ({"labels": {"nsp": np.array([0, 1, 2, 0, 0], np.int8)}}, "labels of nsp must be"),
        ({"labels": {"depth": np.zeros(5, np.int8)}}, "unknown task"),
    ],
)
def test_sites_that_do_not_fit_together_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(five_sites(), **change)


def test_predictions_come_back_as_they_were_stored(tmp_path):
    stored = predictions()
    path = stored.save(tmp_path / outoffold.FOLDER)
    (found,) = outoffold.load_run(tmp_path)
    assert path.name == "miso__nsp__SH-1km__3.npz"
    for item in dataclasses.fields(OutOfFold):
        expected, value = getattr(stored, item.name), getattr(found, item.name)
        assert np.array_equal(expected, value) if isinstance(expected, np.ndarray) else expected == value


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"probability": np.full((3, 2), 0.4)}, "sum to 1"),
        ({"probability": np.full((3, 3), 1 / 3)}, "shape"),
        ({"label": np.array([0, 2, 1], np.int8)}, "labels must be"),
        ({"fold": np.array([0], np.int16)}, "fold has shape"),
    ],
)
def test_predictions_that_cannot_be_right_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(predictions(), **change)


def test_a_run_without_predictions_or_with_a_damaged_file_says_which(tmp_path):
    with pytest.raises(InputError, match="has no out-of-fold predictions"):
        outoffold.load_run(tmp_path)
    path = predictions().save(tmp_path / outoffold.FOLDER)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"miso__nsp__SH-1km__3\.npz"):
        outoffold.load_run(tmp_path)
