"""Where observations are: from what a file says to EPSG:3338, or why not.

Exchanged coordinates, a missing minus and a wrong CRS are recognised by where the records would lie otherwise. They are
told, never mended: what looks like an exchange may be another mistake.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as transform_points

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.grid import ALASKA_ALBERS

from .dataset import ObservationFile
from .readers_report import REASONS, Findings
from .readers_tables import Table
from .readers_values import number

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PLACES = ("x", "y", "lon", "lat")
# Alaska in longitude and latitude with its sea and some 50 km of Canada: the mainland, the panhandle, and the Aleutians
# beyond 180 degrees. A box around all three would hold half of the Yukon.
_ALASKA = shapely.union_all(
    [
        shapely.box(-180.0, 50.5, -140.3, 72.0),
        shapely.Polygon(
            [
                (-141.0, 54.2),
                (-129.5, 54.2),
                (-129.3, 56.3),
                (-131.2, 57.1),
                (-132.5, 58.7),
                (-133.5, 59.4),
                (-134.7, 60.1),
                (-139.0, 60.7),
                (-141.0, 60.8),
            ]
        ),
        shapely.box(170.0, 50.5, 180.0, 55.0),
    ]
)
# Where a file gives a place twice; rounding to four decimals of a degree is 10 m, a wrong datum up to 200 m.
AGREE_M = 100.0
_NOTHING = ("no_place", "bad_coordinate")
_CANDIDATES = ("EPSG:4326", "EPSG:3338", *(f"EPSG:{32600 + zone}" for zone in (*range(1, 10), 60)), "EPSG:3857")


@dataclass(frozen=True)
class _Pair:
    """One way in which a file says where its records are: ``first`` and ``second`` are (N,) in ``crs``, NaN missing."""

    title: str
    first: FloatArray
    second: FloatArray
    crs: CRS
    reasons: List[Optional[str]]


def shown(value: Any) -> str:  # noqa: ANN401  # reason: raw values are of any type
    """Return a raw value as messages show it."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def in_alaska(lon: FloatArray, lat: FloatArray) -> BoolArray:
    """Whether places, in degrees, lie in Alaska or the sea around it."""
    inside: BoolArray = shapely.intersects_xy(_ALASKA, lon, lat)
    return inside


def project(x: FloatArray, y: FloatArray, source: CRS, target: CRS) -> Tuple[FloatArray, FloatArray]:
    """Transform coordinates; what cannot be transformed becomes NaN."""
    result = np.full((2, x.size), np.nan)
    good = np.isfinite(x) & np.isfinite(y)
    if source.is_geographic:
        good &= (np.abs(y) <= 90) & (np.abs(x) <= 360)
    if good.any():
        moved = transform_points(source, target, x[good].tolist(), y[good].tolist())
        result[:, good] = np.asarray(moved[:2])
    result[~np.isfinite(result)] = np.nan
    return result[0], result[1]


DEGREES = CRS.from_epsg(4326)
ALBERS = CRS.from_user_input(ALASKA_ALBERS)


def _located(first: FloatArray, second: FloatArray, crs: CRS) -> BoolArray:
    return in_alaska(*project(first, second, crs, DEGREES))


def locate(
    table: Table, file: ObservationFile, columns: Mapping[str, str], ids: Sequence[str], findings: Findings
) -> Tuple[FloatArray, FloatArray, BoolArray]:
    """Return x and y in EPSG:3338 and which records have them; tell about the others."""
    pairs = _pairs(table, file, columns, findings)
    x, y = np.full(table.count, np.nan), np.full(table.count, np.nan)
    reasons: List[Optional[str]] = ["no_place"] * table.count
    decided = [False] * table.count
    for number_of, pair in enumerate(pairs):
        px, py, found = _one_pair(table, pair, judge=number_of == 0)
        for index in range(table.count):
            says = found[index] not in _NOTHING
            if not decided[index]:
                reasons[index] = found[index] if says or number_of == 0 else reasons[index]
                decided[index] = says
                x[index], y[index] = px[index], py[index]
                if says and number_of > 0:
                    findings.add("second_place", f"{ids[index]}: {pair.title}")
            # A second pair that is wrong by itself disagrees as well: who knows which one is right.
            elif reasons[index] is None and says and not _agree(x[index], y[index], px[index], py[index]):
                reasons[index] = "places_disagree"
    placed = np.zeros(table.count, dtype=bool)
    for index, reason in enumerate(reasons):
        if index in table.rejected:
            continue
        placed[index] = reason is None
        if reason is not None:
            findings.add(reason, f"{ids[index]}: {_place_text(pairs, index)}")
    return x, y, placed


def _agree(x: float, y: float, px: float, py: float) -> bool:
    return math.hypot(px - x, py - y) <= AGREE_M


def _place_text(pairs: Sequence[_Pair], index: int) -> str:
    shown = [f"{pair.title} {pair.first[index]:.10g} {pair.second[index]:.10g}" for pair in pairs]
    return ", ".join(text for text in shown if "nan nan" not in text) or "nothing"


def _pairs(table: Table, file: ObservationFile, columns: Mapping[str, str], findings: Findings) -> List[_Pair]:
    what = f'Observations "{table.name}"'
    given = _crs(what, file.crs) if file.crs else None
    pairs: List[_Pair] = []
    if "x" in columns and "y" in columns:
        crs = given
        if crs is None and columns["x"].lower().endswith("_3338"):
            crs = ALBERS
        elif crs is None:
            findings.add("crs_assumed", table.name)
            crs = ALBERS
        pairs.append(_pair(table, columns["x"], columns["y"], crs, findings))
    if "lon" in columns and "lat" in columns:
        if given is not None and not given.is_geographic and not pairs:
            needed = "A geographic CRS, or none (EPSG:4326), is needed for lon and lat."
            raise InputError(
                what, f"crs is {file.crs}, for columns of lon and lat.", needed, "Name the columns x and y."
            )
        crs = given if given is not None and given.is_geographic else DEGREES
        pairs.append(_pair(table, columns["lon"], columns["lat"], crs, findings))
    if table.points is not None:
        crs = _crs(what, table.crs)
        geometry = _Pair("geometry", table.points[:, 0], table.points[:, 1], crs, [None] * table.count)
        named = any(name in PLACES for name in file.columns)
        pairs = [*pairs, geometry] if named else [geometry, *pairs]
    return pairs


def _crs(what: str, text: str) -> CRS:
    try:
        return CRS.from_user_input(text)
    except (CRSError, ValueError) as error:
        needed = "A CRS that PROJ knows is needed, such as EPSG:3338."
        raise InputError(what, f'crs "{text}" is not known ({error}).', needed, "Correct crs.") from error


def _pair(table: Table, first: str, second: str, crs: CRS, findings: Findings) -> _Pair:
    values = np.full((2, table.count), np.nan)
    reasons: List[Optional[str]] = [None] * table.count
    for row, column in enumerate((first, second)):
        for index, value in enumerate(table.columns[column]):
            values[row, index], reason = number(value)
            if reason == "decimal_comma":
                findings.add(reason, f"{table.name}: {shown(value)}")
            elif reason == "bad_coordinate" or (reason and reasons[index] is None):
                reasons[index] = reason
    return _Pair(f"{first}, {second}", values[0], values[1], crs, reasons)


def _one_pair(table: Table, pair: _Pair, judge: bool) -> Tuple[FloatArray, FloatArray, List[Optional[str]]]:
    """Bring a pair to EPSG:3338; NaN and a reason where that is no place in Alaska.

    Raises:
        InputError: If more than half of the records have their coordinates exchanged or lack the minus of western
            longitudes, or all lie outside Alaska (only if ``judge``).
    """
    reasons = list(pair.reasons)
    given = np.isfinite(pair.first) & np.isfinite(pair.second)
    if pair.crs.is_geographic:
        given &= ~((pair.first == 0) & (pair.second == 0))  # nobody was there; it is how programs write "unknown"
    inside = given & _located(pair.first, pair.second, pair.crs)
    rest = given & ~inside
    swapped = rest & _located(pair.second, pair.first, pair.crs)
    signed = rest & ~swapped & _located(-pair.first, pair.second, pair.crs) & bool(pair.crs.is_geographic)
    for index in range(table.count):
        if not given[index]:
            reasons[index] = reasons[index] or "no_place"
        elif swapped[index]:
            reasons[index] = "swapped_coordinates"
        elif signed[index]:
            reasons[index] = "longitude_sign"
        elif rest[index]:
            reasons[index] = "outside_alaska"
    if judge:
        _judge(table, pair, given, {"swapped_coordinates": swapped, "longitude_sign": signed, "": inside})
    x, y = project(np.where(inside, pair.first, np.nan), pair.second, pair.crs, ALBERS)
    return x, y, reasons


def _judge(table: Table, pair: _Pair, given: BoolArray, groups: Mapping[str, BoolArray]) -> None:
    what = f'Observations "{table.name}", {pair.title}'
    for reason in ("swapped_coordinates", "longitude_sign"):
        count = int(groups[reason].sum())
        if 2 * count > given.sum():
            found = f"{count} of {int(given.sum())} records are {REASONS[reason].text}."
            remedy = "Exchange the two in columns (lon and lat, x and y)."
            if reason == "longitude_sign":
                remedy = REASONS[reason].remedy
            raise InputError(what, found, f"Coordinates in {pair.crs.to_string()} are needed.", remedy)
    if given.any() and not any(group.any() for group in groups.values()):
        raise InputError.of([_wrong_crs(what, pair, given)])


def _wrong_crs(what: str, pair: _Pair, given: BoolArray) -> Problem:
    first, second = pair.first[given], pair.second[given]
    fits = []
    for name in _CANDIDATES:
        crs = CRS.from_user_input(name)
        if crs != pair.crs and _located(first, second, crs).mean() > 0.9:
            fits.append(name)
    found = f"all places lie outside Alaska when read as {pair.crs.to_string()} (first: {first[0]:g}, {second[0]:g})."
    remedy = "Check the CRS in the source's documentation and give it as crs."
    if fits:
        remedy = f"They would lie in Alaska as {', '.join(fits)}: find out which it is and give it as crs."
    return Problem(what, found, "Coordinates and their CRS are needed.", remedy)
