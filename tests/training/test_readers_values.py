"""Single values as people write them: labels, orders of taxonomic names, numbers, dates."""

import datetime
import math

import numpy as np
import pytest

from training.readers_report import REASONS, Findings
from training.readers_values import date, label, number, order_of, several
from training.sites import CLASSES, MISSING

TODAY = datetime.date(2024, 1, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1, 1),
        (1.0, 1),
        (np.int64(0), 0),
        (np.float64(1.0), 1),
        (True, 1),
        (np.bool_(False), 0),
        ("Present", 1),
        (" absent ", 0),
        ("YES", 1),
        ("1.0", 1),
        ([1, "present"], 1),
        ("[0, 0]", 0),
        ("0; 0", 0),
        ([None, 1], 1),
    ],
)
def test_presence_in_many_words(text, expected):
    assert label("nsp", text) == (expected, None)


@pytest.mark.parametrize("text", [None, "", " ", math.nan, "NA", "n/a", "-9999", -9999.0, [], [None]])
def test_nothing_is_no_label_and_no_finding(text):
    assert label("nsp", text) == (MISSING, None)
    assert label("soil_order", text) == (MISSING, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Indeterminate", "indeterminate"),
        ("?", "indeterminate"),
        (["unknown", "indeterminate"], "indeterminate"),
        (2, "unknown_class"),
        (0.5, "unknown_class"),
        ("none", "unknown_class"),  # no permafrost, or nothing known?
        ([0, 1], "conflicting_labels"),
        ([1, "indeterminate"], "conflicting_labels"),
    ],
)
def test_other_words_leave_the_label_out_with_a_reason(text, reason):
    assert label("nsp", text) == (MISSING, reason)


@pytest.mark.parametrize("order", CLASSES["soil_order"])
def test_the_seven_orders_in_any_spelling(order):
    expected = (CLASSES["soil_order"].index(order), None)
    for text in (order, order.lower(), order.upper(), order[:-1], f" {order} ", [order, order[:-1]]):
        assert label("soil_order", text) == expected


# Taxonomic names as the keys form them; orders by their formative element (Keys to Soil Taxonomy, 13th edition).
@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("Coarse-loamy, mixed, superactive, subgelic Typic Historthels", "Gelisols"),
        ("Aquic Molliturbels", "Gelisols"),
        ("Euic, subgelic Typic Hemistels", "Gelisols"),
        ("Dysic Lithic Cryofolists.", "Histosols"),
        ("Typic Sphagnofibrist", "Histosols"),
        ("Medial over loamy Typic Vitricryands", "Andisols"),
        ("Typic Cryopsamments", "Entisols"),
        ("Oxyaquic Cryofluvents", "Entisols"),
        ("Fluvaquentic Endoaquepts", "Inceptisols"),
        ("Andic Dystrocryepts", "Inceptisols"),
        ("Pergelic Cryochrepts", "Inceptisols"),
        ("Lithic Haplocryolls", "Mollisols"),
        ("Andic Humicryods", "Spodosols"),
        ("Oxyaquic Haplocryalfs", "Alfisols"),
        ("Typic Haplocambids", "Aridisols"),
        ("Rhodic Hapludox", "Oxisols"),
        ("Typic Hapludults", "Ultisols"),
        ("Typic Haplocryerts", "Vertisols"),
        ("Arents", "Entisols"),
    ],
)
def test_the_order_of_a_taxonomic_name(name, order):
    assert order_of(name) == order
    expected = "outside_orders" if order not in CLASSES["soil_order"] else None
    assert label("soil_order", name)[1] == expected


@pytest.mark.parametrize(
    "word",
    ["woodland", "wetland", "sediment", "parents", "bedrock", "gravel", "acid", "mixed", "Typic", "chemistry", "9"],
)
def test_ordinary_words_are_no_orders(word):
    assert order_of(word) is None


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("64.8378", 64.8378, None),
        (-147, -147.0, None),
        ("64,8378", 64.8378, "decimal_comma"),
        ("64°50'12\"N", 64 + 50 / 60 + 12 / 3600, None),
        ("147 43 30 W", -(147 + 43 / 60 + 30 / 3600), None),
        ("W147 43.5", -(147 + 43.5 / 60), None),
    ],
)
def test_coordinates_in_many_forms(text, value, reason):
    found = number(text)
    assert found[0] == pytest.approx(value, abs=1e-12)
    assert found[1] == reason


@pytest.mark.parametrize("text", ["west", "-9999", "6,856,244.07", "1e400", "nan", "64 75 00 N", "12:00pm", math.inf])
def test_what_is_no_coordinate(text):
    value, reason = number(text)
    assert math.isnan(value)
    assert reason == "bad_coordinate"


@pytest.mark.parametrize(
    ("text", "day", "reason"),
    [
        ("1998-07-15", (1998, 7, 15), None),
        ("1998-07-15T23:59:59Z", (1998, 7, 15), None),
        ("1998/7/5", (1998, 7, 5), None),
        ("19980715", (1998, 7, 15), None),
        (19980715, (1998, 7, 15), None),
        ("7/15/1998", (1998, 7, 15), None),
        ("15.7.1998", (1998, 7, 15), None),
        ("7/4/1998", (1998, 7, 4), "month_first"),
        ("4/4/1998", (1998, 4, 4), None),
        ("July 15, 1998", (1998, 7, 15), None),
        ("15-JUL-1998", (1998, 7, 15), None),
        ("Sept. 3rd, 1961", (1961, 9, 3), None),
        ("July 1998", (1998, 7, 1), "imprecise_date"),
        ("1998", (1998, 1, 1), "imprecise_date"),
        (1998.0, (1998, 1, 1), "imprecise_date"),
        ("1998-07", (1998, 7, 1), "imprecise_date"),
        ("1998-07-15/1998-07-20", (1998, 7, 15), "imprecise_date"),
        ("1998-07-20 to 1998-07-15", (1998, 7, 15), "imprecise_date"),
        ("1952-1960", (1952, 1, 1), "imprecise_date"),
        (["1999-01-01", "1998-07-15"], (1998, 7, 15), "imprecise_date"),
        (900_460_800, (1998, 7, 15), None),  # date -u -d @900460800
        (900_460_800_000, (1998, 7, 15), None),
        (np.datetime64("1998-07-15T10:00"), (1998, 7, 15), None),
        (datetime.datetime(1998, 7, 15, 10), (1998, 7, 15), None),
    ],
)
def test_dates_in_usual_forms(text, day, reason):
    assert date(text, TODAY) == (datetime.date(*day), reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2001-02-29", "impossible_date"),
        ("31/02/2001", "impossible_date"),
        ("0000-00-00", "impossible_date"),
        ("2024-01-02", "impossible_date"),  # tomorrow
        ("1652-07-15", "impossible_date"),
        ("15-Jul-98", "unreadable_date"),  # of which century?
        ("summer", "unreadable_date"),
        (None, None),
        (math.nan, None),
        (np.datetime64("NaT"), None),
    ],
)
def test_what_is_no_date(text, reason):
    assert date(text, TODAY) == (None, reason)


def test_lists_are_recognised_as_such_or_as_text():
    assert several(["a"]) == several("['a']") == several('["a"]') == several("a") == ["a"]
    assert several("[Gelisols, Histosols]") == several("Gelisols|Histosols") == ["Gelisols", "Histosols"]


def test_every_reason_can_be_found_and_an_unknown_one_cannot():
    findings = Findings()
    for reason in REASONS:
        findings.add(reason, "x", "y")
    assert len(findings.all()) == len(REASONS)
    with pytest.raises(KeyError):
        findings.add("no such reason")
