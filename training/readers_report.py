"""What reading observations dropped or changed, and why: counts and examples per reason.

Owns the reasons: each has one effect, one sentence and one remedy, so that code, report and documentation agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from miso_qgis.engine.schema import to_json

DROPPED = "record dropped"
LEFT_OUT = "label left out"
UNDATED = "date left out"
CHANGED = "read as told"
NOTED = "noted"
_ORDER = (DROPPED, LEFT_OUT, UNDATED, CHANGED, NOTED)
EXAMPLES = 5
VALUES = 20


@dataclass(frozen=True)
class Reason:
    """Why something was dropped or changed.

    Attributes:
        effect: One of ``DROPPED``, ``LEFT_OUT``, ``UNDATED``, ``CHANGED``, ``NOTED``.
        text: What is the case.
        remedy: What the user can do; empty where nothing is wrong.
    """

    effect: str
    text: str
    remedy: str = ""


REASONS: Mapping[str, Reason] = {
    "broken_row": Reason(
        DROPPED,
        "the row has another number of fields than the header",
        "Mend the row: a value that holds the delimiter needs quotation marks; a last row that is short means that the "
        "file was cut off.",
    ),
    "no_place": Reason(DROPPED, "no coordinates", "Fill them in."),
    "bad_coordinate": Reason(
        DROPPED,
        "coordinates that are no numbers or a fill value",
        "Write plain decimal numbers; leave unknown ones out.",
    ),
    "not_a_point": Reason(DROPPED, "the geometry is not a point", "Use one point per observation."),
    "swapped_coordinates": Reason(
        DROPPED,
        "outside Alaska as given, inside it with the two coordinates exchanged",
        "Exchange the two values in the file; they are not exchanged for you.",
    ),
    "longitude_sign": Reason(
        DROPPED,
        "outside Alaska as given, inside it with a negative longitude",
        "West longitudes are negative: add the minus sign in the file.",
    ),
    "outside_alaska": Reason(DROPPED, "outside Alaska", "Check coordinates and CRS."),
    "places_disagree": Reason(
        DROPPED,
        "the record's two pairs of coordinates are more than 100 m apart",
        "Correct the wrong pair, or name only the right columns (columns, crs).",
    ),
    "outside_grid": Reason(DROPPED, "outside the dataset's area", "Nothing, if that is meant; else widen bounds."),
    "outside_rasters": Reason(
        DROPPED, "outside the extent of a raster that the channels need", "Add the raster's missing part."
    ),
    "duplicate": Reason(DROPPED, "same place, date and labels as an earlier record", ""),
    "no_label": Reason(DROPPED, "no label of any task", ""),
    "indeterminate": Reason(LEFT_OUT, "the field label says that it could not be decided", ""),
    "outside_orders": Reason(LEFT_OUT, "a soil order outside the seven that are predicted", ""),
    "conflicting_labels": Reason(LEFT_OUT, "several labels that contradict each other", "Decide for one in the file."),
    "unknown_class": Reason(
        LEFT_OUT, "a class that is not known", "Correct the spelling, or translate the class in the file."
    ),
    "ambiguous_codes": Reason(
        LEFT_OUT,
        "numbers as soil orders, which may count from 0 or from 1",
        "Write the orders' names. Numbers count as 1 (Andisols) to 7 (Spodosols) only where 7 occurs and 0 does not.",
    ),
    "impossible_date": Reason(UNDATED, "no day that can have been", "Correct it: YYYY-MM-DD is always understood."),
    "unreadable_date": Reason(UNDATED, "not understood as a date", "Write YYYY-MM-DD."),
    "imprecise_date": Reason(CHANGED, "a year, a month or a range: its first day is kept", ""),
    "month_first": Reason(
        CHANGED, "a date such as 07/04/1998, read as month/day/year", "Write YYYY-MM-DD if the day comes first."
    ),
    "decimal_comma": Reason(CHANGED, "a comma read as the decimal mark", ""),
    "order_codes": Reason(CHANGED, "codes read as soil orders (1 to 7 in alphabetical order, or the first letter)", ""),
    "repeated_id": Reason(
        CHANGED, "an identifier used before; a number was added to it", "Give every observation its own identifier."
    ),
    "no_id": Reason(CHANGED, "no identifier; the record's position in the file is used", ""),
    "crs_assumed": Reason(CHANGED, "no CRS given for x and y; EPSG:3338 is assumed", "Give crs."),
    "encoding": Reason(CHANGED, "text not in UTF-8, read as Windows-1252", "Save the file as UTF-8."),
    "second_place": Reason(CHANGED, "the first pair of coordinates is empty, the second one was used", ""),
    "no_value": Reason(NOTED, "a raster has no value at the site", "Expect the network to see missing data there."),
}


@dataclass(frozen=True)
class Finding:
    """One reason and how often it applied.

    Attributes:
        reason: Key of :data:`REASONS`.
        effect: What it did.
        text: What was the case.
        remedy: What the user can do.
        count: How often.
        examples: The first few, with identifier and value.
        values: How often each value, the most frequent ones.
    """

    reason: str
    effect: str
    text: str
    remedy: str
    count: int
    examples: Tuple[str, ...] = ()
    values: Dict[str, int] = field(default_factory=dict)


class Findings:
    """Collects findings while files are read."""

    def __init__(self) -> None:
        self._counts: Dict[str, int] = {}
        self._examples: Dict[str, List[str]] = {}
        self._values: Dict[str, Dict[str, int]] = {}

    def add(self, reason: str, example: str = "", value: Optional[str] = None) -> None:
        """Count one case of ``reason``; ``value`` is counted by itself as well."""
        if reason not in REASONS:
            raise KeyError(reason)
        self._counts[reason] = self._counts.get(reason, 0) + 1
        examples = self._examples.setdefault(reason, [])
        if example and len(examples) < EXAMPLES:
            examples.append(example)
        if value is not None:
            values = self._values.setdefault(reason, {})
            values[value] = values.get(value, 0) + 1

    def count(self, reason: str) -> int:
        """Return how often ``reason`` applied."""
        return self._counts.get(reason, 0)

    def all(self) -> Tuple[Finding, ...]:
        """Return what was found, what costs most first."""
        found = []
        for name, count in self._counts.items():
            reason = REASONS[name]
            values = sorted(self._values.get(name, {}).items(), key=lambda item: (-item[1], item[0]))[:VALUES]
            found.append(
                Finding(
                    name, reason.effect, reason.text, reason.remedy, count, tuple(self._examples[name]), dict(values)
                )
            )
        return tuple(sorted(found, key=lambda item: (_ORDER.index(item.effect), -item.count, item.reason)))


@dataclass(frozen=True)
class ReadReport:
    """What was read, what was kept, and what was not and why. ``str()`` is for people, :meth:`json` for programs.

    Attributes:
        columns: File -> field -> column that was read for it.
        records: Records in the files.
        kept: Sites that are left.
        labels: Task -> class -> sites.
        dated: Sites with a date.
        dates: First and last date, ISO, empty where there is none.
        findings: All that was dropped or changed.
    """

    columns: Dict[str, Dict[str, str]]
    records: int
    kept: int
    labels: Dict[str, Dict[str, int]]
    dated: int
    dates: Tuple[str, str]
    findings: Tuple[Finding, ...]

    @property
    def dropped(self) -> int:
        """Records that did not become a site."""
        return sum(finding.count for finding in self.findings if finding.effect == DROPPED)

    def finding(self, reason: str) -> Optional[Finding]:
        """Return the finding of a reason, None where it did not apply."""
        return next((finding for finding in self.findings if finding.reason == reason), None)

    def json(self) -> Dict[str, Any]:
        """Return the report as JSON values."""
        result: Dict[str, Any] = to_json(self)
        return result

    def __str__(self) -> str:
        lines = []
        for file, columns in self.columns.items():
            read = ", ".join(name if name == column else f"{name} from {column}" for name, column in columns.items())
            lines.append(f"{file}: {read}")
        lines.append(f"{self.kept} of {self.records} records kept.")
        for task, classes in self.labels.items():
            counts = ", ".join(f"{name} {count}" for name, count in classes.items())
            lines.append(f"  {task}: {sum(classes.values())} labelled ({counts})")
        span = f" ({self.dates[0]} to {self.dates[1]})" if self.dated else ""
        lines.append(f"  date: {self.dated} dated{span}")
        for finding in self.findings:
            lines.append(f"{finding.effect}, {finding.count} times: {finding.text} [{finding.reason}]")
            if finding.values:
                lines.append("    " + ", ".join(f"{value}: {count}" for value, count in finding.values.items()))
            if finding.examples:
                lines.append("    e.g. " + "; ".join(finding.examples))
            if finding.remedy:
                lines.append("    " + finding.remedy)
        return "\n".join(lines)
