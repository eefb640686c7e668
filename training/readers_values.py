"""From what a field form says to what a model learns from: labels, dates and numbers as people write them.

Every function takes one raw value (text, number, None, list) and answers with the value and the reason, a key of
:data:`training.readers_report.REASONS`, if it could not be taken as it was.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from typing import Any, Iterable, List, Optional, Tuple

import numpy as np

from .sites import CLASSES, MISSING

ORDERS = CLASSES["soil_order"]
# How a great group's name ends in each of the twelve orders: the formative element of the suborder and the order's own
# (Soil Survey Staff, Keys to Soil Taxonomy; some of older editions). The order's ending alone would take "woodland"
# for an Andisol and "sediment" for an Entisol.
_SUBORDERS = {
    "Andisols": "aqu|cry|gel|torr|ud|ust|vitr|xer",
    "Entisols": "aqu|fluv|orth|psamm|wass",
    "Gelisols": "ist|orth|turb",
    "Histosols": "fibr|fol|hem|sapr|wass",
    "Inceptisols": "and|anthr|aqu|cry|gel|ochr|trop|ud|umbr|ust|xer",
    "Mollisols": "alb|aqu|bor|cry|gel|rend|ud|ust|xer",
    "Spodosols": "aqu|cry|ferr|gel|hum|orth",
    "Alfisols": "aqu|bor|cry|ud|ust|xer",
    "Aridisols": "arg|calc|camb|cry|dur|gyps|orth|sal",
    "Oxisols": "aqu|per|torr|ud|ust",
    "Ultisols": "aqu|hum|ud|ust|xer",
    "Vertisols": "aqu|cry|torr|ud|ust|xer",
}
_ENDINGS = dict(zip(_SUBORDERS, ("and", "ent", "el", "ist", "ept", "oll", "od", "alf", "id", "ox", "ult", "ert")))
_GREAT_GROUP = {order: re.compile(f"[a-z]*(?:{parts}){_ENDINGS[order]}s?") for order, parts in _SUBORDERS.items()}
# Arents are named by themselves only: with something before it, the ending is that of "parents".
_SUBORDER_NAMES = {"arent": "Entisols", "arents": "Entisols"}
_EMPTY = frozenset(("", "na", "n/a", "nan", "null", "nil", "<null>", "-9999", "-999", "-99", "no data", "nodata", "-"))
_INDETERMINATE = frozenset(
    ("indeterminate", "undetermined", "indeterminable", "uncertain", "ambiguous", "unknown", "undecided", "unsure", "?")
)
_NSP = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "present", "presence", "permafrost", "permafrost present"), 1),
    **dict.fromkeys(("0", "false", "f", "no", "absent", "absence", "no permafrost", "permafrost absent"), 0),
}
_LETTERS = {order[0].lower(): index for index, order in enumerate(ORDERS)}
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, 1)}
# No soil survey of Alaska is older; what is younger than today is a slip.
FIRST_YEAR = 1850

Label = Tuple[int, Optional[str]]
Day = Tuple[Optional[datetime.date], Optional[str]]


def is_empty(value: Any) -> bool:  # noqa: ANN401  # reason: raw values are of any type
    """Whether a raw value says nothing."""
    return _text(value).lower() in _EMPTY


def _text(value: Any) -> str:  # noqa: ANN401
    """Write a raw value as text; whole floats without ``.0``, since tables turn 1 into 1.0 where a cell is empty."""
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    text = " ".join(str(value).split())
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def several(value: Any) -> List[Any]:  # noqa: ANN401
    """Return the values of a field that may hold a list, as a list or written as text: ``["a", "b"]``, ``a; b``."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            found = json.loads(text.replace("'", '"'))
        except ValueError:
            return [part.strip(" '\"") for part in text[1:-1].split(",")]
        return found if isinstance(found, list) else [found]
    return [part.strip() for part in re.split(r"[;|]", text)]


def numbers_are_codes(values: Iterable[Any]) -> bool:
    """Whether a column's numbers can only be the soil orders' codes 1 to 7: 7 occurs and 0 does not."""
    found = {_text(one) for value in values for one in several(value)}
    return "7" in found and "0" not in found


def label(task: str, value: Any, *, codes: bool = False) -> Label:  # noqa: ANN401
    """Read a label.

    Args:
        task: Key of :data:`training.sites.CLASSES`.
        value: Raw value; a list counts as one label if its members agree.
        codes: Whether numbers are soil orders' codes (see :func:`numbers_are_codes`).

    Returns:
        Index of the class, ``MISSING`` where there is none, and why, or ``order_codes`` where a code was translated.
    """
    members = [one for one in several(value) if not is_empty(one)]
    if not members:
        return MISSING, None
    read = _nsp if task == "nsp" else lambda one: _soil_order(one, codes)
    found = [read(one) for one in members]
    if len({(index, reason if index == MISSING else None) for index, reason in found}) > 1:
        return MISSING, "conflicting_labels"
    named = {_text(one).lower() for one in members}
    # Two different orders outside the seven contradict each other as well.
    if found[0][0] == MISSING and len(named) > 1 and found[0][1] != "indeterminate":
        return MISSING, "conflicting_labels"
    return found[0]


def _nsp(value: Any) -> Label:  # noqa: ANN401
    text = _text(value).lower()
    if text in _INDETERMINATE:
        return MISSING, "indeterminate"
    return (_NSP[text], None) if text in _NSP else (MISSING, "unknown_class")


def _soil_order(value: Any, codes: bool) -> Label:  # noqa: ANN401
    text = _text(value).lower()
    if text in _INDETERMINATE:
        return MISSING, "indeterminate"
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        if not codes:
            return MISSING, "ambiguous_codes"
        return (int(text) - 1, "order_codes") if text in tuple("1234567") else (MISSING, "unknown_class")
    if text in _LETTERS:
        return _LETTERS[text], "order_codes"
    order = order_of(text)
    if order is None:
        return MISSING, "unknown_class"
    return (ORDERS.index(order), None) if order in ORDERS else (MISSING, "outside_orders")


def order_of(name: str) -> Optional[str]:
    """Return the soil order of a name: the order itself, singular or plural, or a taxonomic name.

    Example: "Coarse-loamy, mixed, superactive, subgelic Typic Historthels" gives Gelisols. All twelve orders are known,
    those outside :data:`ORDERS` included; None where the name is none.
    """
    words = re.findall(r"[a-z]+", name.lower())
    if not words:
        return None
    if words[-1] in _SUBORDER_NAMES:
        return _SUBORDER_NAMES[words[-1]]
    for order, great_group in _GREAT_GROUP.items():
        if words[-1] in (order.lower(), order.lower()[:-1]) or great_group.fullmatch(words[-1]):
            return order
    return None


def number(value: Any) -> Tuple[float, Optional[str]]:  # noqa: ANN401
    """Read a coordinate: a number, or degrees, minutes and seconds with a hemisphere.

    Returns:
        The number, NaN where there is none, and the reason.
    """
    text = _text(value)
    if text.lower() in _EMPTY:
        return math.nan, "no_place" if text == "" else "bad_coordinate"
    comma = re.fullmatch(r"([-+]?\d+),(\d+)", text)
    if comma:
        return float(f"{comma[1]}.{comma[2]}"), "decimal_comma"
    try:
        found = float(text)
    except ValueError:
        found = _degrees(text)
    return (found, None) if math.isfinite(found) and abs(found) < 1e9 else (math.nan, "bad_coordinate")


def _degrees(text: str) -> float:
    found = re.fullmatch(
        r"([NSEW])?\s*([-+]?\d+(?:\.\d+)?)\s*(?:[°d:]|deg(?:rees)?)?\s*"
        r"(?:(\d+(?:\.\d+)?)\s*(?:['′m:]|min(?:utes)?)?\s*)?(?:(\d+(?:\.\d+)?)\s*(?:[\"″s]|''|sec(?:onds)?)?\s*)?([NSEW])?",
        text,
        re.IGNORECASE,
    )
    if not found:
        return math.nan
    degrees, minutes, seconds = (float(part) if part else 0.0 for part in found.group(2, 3, 4))
    if minutes >= 60 or seconds >= 60:
        return math.nan
    size = abs(degrees) + minutes / 60 + seconds / 3600
    hemisphere = (found[1] or found[5] or "").upper()
    return -size if hemisphere in ("S", "W") or found[2].startswith("-") else size


def date(value: Any, today: Optional[datetime.date] = None) -> Day:  # noqa: ANN401
    """Read the day of an observation.

    Understood are ISO dates and times, 19980715, 7/15/1998 (month first unless that is impossible), 15 July 1998,
    Jul-1998, 1998, seconds or milliseconds since 1970, and two of these as a range. Of anything less precise than a
    day the first day is kept.

    Returns:
        The day, None where there is none, and the reason.
    """
    today = today or datetime.date.today()
    if isinstance(value, (datetime.datetime, np.datetime64)):
        if isinstance(value, np.datetime64) and np.isnat(value):
            return None, None
        value = str(value)[:10]
    members = [one for one in several(value) if not is_empty(one)]
    if not members:
        return None, None
    found = [_one_date(_text(one), today) for one in members]
    days = sorted({day for day, _ in found if day is not None})
    if not days:
        return None, found[0][1]
    return days[0], "imprecise_date" if len(days) > 1 else found[0][1]


def _one_date(text: str, today: datetime.date) -> Day:
    found = _day(text)
    if found == (None, "unreadable_date"):
        ends = re.split(r"\s+(?:to|through|until|and)\s+|\s*[/–—]\s*|\s+-\s+|(?<=\d{4})-(?=\d{4}$)", text)
        if len(ends) == 2:
            starts = [_day(end) for end in ends]
            if all(day is not None for day, _ in starts):
                found = (min(day for day, _ in starts if day is not None), "imprecise_date")
    day, _ = found
    if day is not None and (day.year < FIRST_YEAR or day > today):
        return None, "impossible_date"
    return found


_DAY_FORMS: Tuple[Tuple[str, str], ...] = (
    (r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?:[T ]+\d{1,2}:\d{2}.*)?", ""),
    (r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})", ""),
    (r"(?P<first>\d{1,2})[/.-](?P<second>\d{1,2})[/.-](?P<y>\d{4})(?:[T ]+\d{1,2}:\d{2}.*)?", "either"),
    (r"(?P<d>\d{1,2})[. -]+(?P<name>[a-z]{3,9})\.?,?[ -]+(?P<y>\d{4})(?:[T ]+\d{1,2}:\d{2}.*)?", ""),
    (r"(?P<name>[a-z]{3,9})\.?[ -]+(?P<d>\d{1,2})(?:st|nd|rd|th)?,?[ -]+(?P<y>\d{4})(?:[T ]+\d{1,2}:\d{2}.*)?", ""),
    (r"(?P<name>[a-z]{3,9})\.?,?[ -]+(?P<y>\d{4})", "imprecise_date"),
    (r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})", "imprecise_date"),
    (r"(?P<m>\d{1,2})/(?P<y>\d{4})", "imprecise_date"),
    (r"(?P<y>\d{4})", "imprecise_date"),
)


def _day(text: str) -> Day:
    if re.fullmatch(r"-?\d{9,13}", text):  # Unix time; 8 digits are YYYYMMDD
        seconds = int(text) / (1000 if len(text.lstrip("-")) > 10 else 1)
        return datetime.date(1970, 1, 1) + datetime.timedelta(days=seconds // 86400), None
    for form, kind in _DAY_FORMS:
        found = re.fullmatch(form, text, re.IGNORECASE)
        if found is None:
            continue
        parts = found.groupdict()
        reason: Optional[str] = kind or None
        month = parts.get("m")
        day = parts.get("d") or "1"
        if "name" in parts:
            number_of = _MONTHS.get(parts["name"][:3].lower())
            if number_of is None:
                return None, "unreadable_date"
            month = str(number_of)
        if kind == "either":
            first, second = int(parts["first"]), int(parts["second"])
            month, day = (parts["second"], parts["first"]) if first > 12 else (parts["first"], parts["second"])
            reason = "month_first" if max(first, second) <= 12 and first != second else None
        try:
            return datetime.date(int(parts["y"]), int(month or "1"), int(day)), reason
        except ValueError:
            return None, "impossible_date"
    return None, "unreadable_date"
