"""Where a soil series was described: the TYPE LOCATION of an official series description as coordinates.

Printed are, by preference here: latitude and longitude (decimal, or degrees, minutes, seconds), UTM, or the public
land survey (township, range, section), whose lines are computed from the meridian's initial point.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple

import numpy as np
from rasterio.crs import CRS

from .readers_places import DEGREES, in_alaska, project

# Datum as texts write it -> geographic CRS. NAD83 and WGS84 differ by a metre or two: one for our purpose.
_NAD27 = "EPSG:4267"
_WGS84 = "EPSG:4326"
_UTM_CRS = {_WGS84: 32600, _NAD27: 26700}  # EPSG code of zone 0, so to speak
# What a place may be off, in metres. Printed coordinates are GPS readings or read off a 1:63,360 map; without a datum
# they may be in NAD27, up to 200 m away. Survey places: see benchmarks/osd_agreement.py (three
# in four lie within 1.1 km of coordinates printed in the same text); the township alone adds half of its 9.7 km.
UNCERTAINTY_M: Mapping[str, float] = {"degrees": 50.0, "minutes": 1_000.0, "utm": 100.0, "section": 1_100.0}
TOWNSHIP_M = 5_000.0
NO_DATUM_M = 200.0
_MILE_M = 1_609.347_2  # US survey mile
# Initial points: latitude, longitude in degrees (Bureau of Land Management, Manual of Surveying Instructions 2009).
MERIDIANS: Mapping[str, Tuple[float, float]] = {
    "copper river": (61 + 49 / 60 + 4 / 3600, -(145 + 18 / 60 + 37 / 3600)),
    "fairbanks": (64 + 51 / 60 + 50 / 3600, -(147 + 38 / 60 + 26 / 3600)),
    "kateel river": (65 + 26 / 60 + 16 / 3600, -(158 + 45 / 60 + 31 / 3600)),
    "seward": (60 + 7 / 60 + 37 / 3600, -(149 + 21 / 60 + 26 / 3600)),
    "umiat": (69 + 23 / 60 + 30 / 3600, -(152 + 0 / 60 + 5 / 3600)),
}
_MOST_TOWNSHIPS = 100  # from Seward to the southernmost Aleutians are 95
_TIER = 4  # townships between two standard parallels, 24 miles


@dataclass(frozen=True)
class Place:
    """A place and how it was found.

    Attributes:
        lon: Degrees, WGS84.
        lat: Degrees.
        method: ``latlon_decimal``, ``latlon_dms``, ``utm``, ``plss_section`` or ``plss_township``.
        uncertainty_m: How far it may be off.
        notes: What a reader should know.
    """

    lon: float
    lat: float
    method: str
    uncertainty_m: float
    notes: Tuple[str, ...] = ()


def places_in(text: str, meridian: str = "") -> List[Place]:
    """Return every place that a type location prints and that lies in Alaska, best first.

    Args:
        text: The section TYPE LOCATION.
        meridian: Meridian of a public land survey place that does not name its own.
    """
    words = " ".join(text.split())
    datum, known = _datum(words)
    found = [_degrees(words, datum, known), _utm(words, datum, known), _survey(words, meridian)]
    kept = [place for place in found if place is not None]
    inside = in_alaska(np.array([p.lon for p in kept]), np.array([p.lat for p in kept]))
    return [place for place, good in zip(kept, inside) if good]


def type_place(text: str, meridian: str = "") -> Tuple[Optional[Place], Tuple[str, ...]]:
    """Return the best place of a type location, or None, and what is odd about it."""
    found = places_in(text, meridian)
    notes = []
    if not found:
        coordinates = re.search(r"latitude|\bUTM\b|\bT\.? ?\d+|sec(?:tion|\.)", text, re.IGNORECASE)
        return None, ("coordinates that are incomplete or not in Alaska" if coordinates else "no coordinates",)
    best = found[0]
    for other in found[1:]:
        apart = distance_m(best, other)
        if apart > 3 * (best.uncertainty_m + other.uncertainty_m):
            notes.append(f"{best.method} and {other.method} are {apart / 1000:.1f} km apart")
    return best, (*best.notes, *notes)


def distance_m(first: Place, second: Place) -> float:
    """Return the distance between two places on a sphere, m."""
    p, q = math.radians(first.lat), math.radians(second.lat)
    turn = math.radians(first.lon - second.lon)
    half = math.sin((p - q) / 2) ** 2 + math.cos(p) * math.cos(q) * math.sin(turn / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(math.sqrt(half))


def _datum(text: str) -> Tuple[str, bool]:
    """Return the geographic CRS and whether the text names a datum."""
    if re.search(r"NAD[ -]?(?:19)?27|North American Datum (?:of )?1927", text, re.IGNORECASE):
        return _NAD27, True
    if re.search(r"WGS[ -]?(?:19)?84|NAD[ -]?(?:19)?83|North American Datum (?:of )?1983", text, re.IGNORECASE):
        return _WGS84, True
    return _WGS84, False


# --- latitude and longitude ---

_ANGLE = (
    r"(?P<{0}sign>[-–−]+)?\s*(?P<{0}d>\d{{1,3}}(?:\.\d+)?),?\s*(?:degrees?|deg\.?|°)?,?\s*"
    r"(?:(?P<{0}m>\d{{1,2}}(?:\.\d+)?)\s*(?:minutes?|min\.?|'|′)?,?\s*)?"
    r"(?:(?P<{0}s>\d{{1,2}}(?:\.\d+)?)\s*(?:seconds?|sec\.?|\"|″)?,?\s*)?"
    r"(?P<{0}h>north|south|east|west|[NSEW]\b)?"
)
_LAT = r"\blat(?:itude|\.)?[:,]?\s*"
_LON = r"\blong?(?:itude|\.)?[:,]?\s*"
_NAMED_FIRST = re.compile(_LAT + _ANGLE.format("lat") + r".{0,25}?" + _LON + _ANGLE.format("lon"), re.IGNORECASE)
_NAMED_LAST = re.compile(
    _ANGLE.format("lat") + r"\.?\s*latitude.{0,10}?" + _ANGLE.format("lon") + r"\.?\s*longitude", re.IGNORECASE
)


def _degrees(text: str, datum: str, known: bool) -> Optional[Place]:
    found = _NAMED_FIRST.search(text) or _NAMED_LAST.search(text)
    if found is None:
        return None
    lat, lat_minutes, _ = _angle(found.groupdict(), "lat")
    lon, minutes, seconds = _angle(found.groupdict(), "lon")
    notes: List[str] = []
    if minutes != lat_minutes or (not minutes and "." not in found["lond"]):
        return None  # one of them is cut off
    if lat < 0:
        lat = -lat
        notes.append("latitude printed with a minus")
    if lon > 0 and (found["lonh"] or "").lower() not in ("e", "east"):
        # All of Alaska but the Near Islands lies west; texts that print no hemisphere mean it.
        lon = -lon
        if not found["lonh"]:
            notes.append("longitude without hemisphere taken as west")
    uncertainty = UNCERTAINTY_M["minutes" if minutes and not seconds else "degrees"]
    return _moved(lon, lat, datum, known, "latlon_dms" if minutes else "latlon_decimal", uncertainty, notes)


def _angle(parts: Mapping[str, Optional[str]], name: str) -> Tuple[float, bool, bool]:
    degrees, minutes, seconds = (parts[f"{name}{key}"] for key in "dms")
    size = float(degrees or "nan") + float(minutes or 0) / 60 + float(seconds or 0) / 3600
    if float(minutes or 0) >= 60 or float(seconds or 0) >= 60:
        size = math.nan
    negative = parts[f"{name}sign"] is not None or (parts[f"{name}h"] or "").lower() in ("s", "south", "w", "west")
    return -size if negative else size, minutes is not None, seconds is not None


def _moved(
    first: float, second: float, crs: str, known: bool, method: str, uncertainty: float, notes: List[str]
) -> Optional[Place]:
    lon, lat = project(np.array([first]), np.array([second]), CRS.from_user_input(crs), DEGREES)
    if not (np.isfinite(lon[0]) and np.isfinite(lat[0])):
        return None
    if not known:
        uncertainty = max(uncertainty, NO_DATUM_M)
        notes = [*notes, "no datum"]
    return Place(float(lon[0]), float(lat[0]), method, uncertainty, tuple(notes))


# --- UTM ---


def _utm(text: str, datum: str, known: bool) -> Optional[Place]:
    zone = re.search(r"\bzone:?\s*(\d{1,2})", text, re.IGNORECASE)
    if "UTM" not in text or zone is None or not (1 <= int(zone[1]) <= 10 or int(zone[1]) == 60):
        return None
    numbers = [float(one) for one in re.findall(r"(?<![\d.])0?(\d{6,7}(?:\.\d+)?)", text)]
    # Which is which shows in the size: in Alaska northings are 5.6 to 8 million metres, eastings below 0.9 million.
    north = {one for one in numbers if 5_600_000 <= one <= 8_000_000}
    east = {one for one in numbers if 100_000 <= one <= 900_000}
    if len(north) != 1 or len(east) != 1:
        return None
    crs = f"EPSG:{_UTM_CRS[datum] + int(zone[1])}"
    return _moved(east.pop(), north.pop(), crs, known, "utm", UNCERTAINTY_M["utm"], [])


# --- public land survey ---

_TOWNSHIP = re.compile(r"\bT\.?\s*(\d{1,3})\s*\.?\s*([NS])\b", re.IGNORECASE)
_RANGE = re.compile(r"\bR\.?\s*(\d{1,3})\s*\.?\s*([EW])\b", re.IGNORECASE)
_SECTION = re.compile(r"\b(?:sections?|secs?\.?|S\.?)\s*(\d{1,2})(?!\d)", re.IGNORECASE)
_QUARTER = re.compile(
    r"\b(NE|NW|SE|SW|north ?east|north ?west|south ?east|south ?west)\s*(?:1\s*/\s*4|quarter|,|of\b|\b(?=\s*sec))"
    r"(?!\s*corner)",
    re.IGNORECASE,
)


def meridian_in(text: str) -> str:
    """Return the meridian that a text names, as in :data:`MERIDIANS`, or nothing."""
    words = " ".join(text.split()).lower()
    found = [name for name in MERIDIANS if re.search(rf"{name}(?: base(?:line)?(?: and)?)? meridian", words)]
    return found[0] if len(found) == 1 else ""


def _survey(text: str, meridian: str) -> Optional[Place]:
    township, across = _TOWNSHIP.search(text), _RANGE.search(text)
    named = meridian_in(text)
    if township is None or across is None or not (named or meridian):
        return None
    if int(township[1]) > _MOST_TOWNSHIPS:
        return None
    notes = [] if named else [f"{meridian.title()} Meridian taken from other series of the survey area"]
    row = int(township[1]) - 1 if township[2].upper() == "N" else -int(township[1])
    column = int(across[1]) - 1 if across[2].upper() == "E" else -int(across[1])
    section = _SECTION.search(text)
    number = int(section[1]) if section else 0
    if not 1 <= number <= 36:
        lon, lat = survey_place(named or meridian, row, column, 3.0, 3.0)
        return Place(lon, lat, "plss_township", TOWNSHIP_M + UNCERTAINTY_M["section"], (*notes, "no section"))
    east, north = section_centre(number)
    side = 1.0
    # "SW 1/4 of the NE 1/4": the last one is the largest.
    for quarter in reversed(_QUARTER.findall(text[: section.start()] if section else "")):
        side /= 2
        name = quarter.lower()
        east += side / 2 * (1 if name in ("ne", "se") or name.endswith("east") else -1)
        north += side / 2 * (1 if name in ("ne", "nw") or name.startswith("north") else -1)
    lon, lat = survey_place(named or meridian, row, column, east, north)
    return Place(lon, lat, "plss_section", UNCERTAINTY_M["section"], tuple(notes))


def section_centre(number: int) -> Tuple[float, float]:
    """Return the centre of a section in its township, miles east and north of the south-west corner.

    Sections run from the north-east corner to the west and back again, row by row: 6 5 4 3 2 1, 7 8 9 10 11 12, ...
    """
    row, step = divmod(number - 1, 6)
    column = 5 - step if row % 2 == 0 else step
    return column + 0.5, 5.5 - row


def survey_place(meridian: str, row: int, column: int, east: float, north: float) -> Tuple[float, float]:
    """Return longitude and latitude of a place in the rectangular survey.

    Townships are 6 miles wide on the standard parallel at the foot of their tier of four, and meridians bound them
    from there to the next one. Distances are full miles; what the surveyors measured differs.

    Args:
        meridian: Key of :data:`MERIDIANS`.
        row: Townships north of the base line (T.1N. is 0, T.1S. is -1).
        column: Ranges east of the meridian (R.1E. is 0, R.1W. is -1).
        east: Miles from the township's south-west corner.
        north: Likewise.
    """
    lat0, lon0 = MERIDIANS[meridian]
    lat = _northward(lat0, (6 * row + north) * _MILE_M)
    parallel = _northward(lat0, 6 * _TIER * (row // _TIER) * _MILE_M)
    metres = (6 * column + east) * _MILE_M
    return lon0 + math.degrees(metres / (_prime_vertical_m(parallel) * math.cos(math.radians(parallel)))), lat


# Clarke 1866, on which Alaska was surveyed.
_A, _E2 = 6_378_206.4, 0.006_768_658


def _prime_vertical_m(lat: float) -> float:
    return _A / math.sqrt(1 - _E2 * math.sin(math.radians(lat)) ** 2)


def _northward(lat: float, metres: float) -> float:
    """Return the latitude ``metres`` north along the meridian, with the radius at the middle of the way."""
    middle = lat + math.degrees(metres / 2 / 6_385_000)
    radius = _prime_vertical_m(middle) ** 3 * (1 - _E2) / _A**2
    return lat + math.degrees(metres / radius)


def inferred_meridians(texts: Mapping[str, str]) -> Dict[str, str]:
    """Return, for type locations that name no meridian, the one that the others of their survey area name.

    Args:
        texts: Key -> type location.

    Returns:
        Key -> meridian, for those texts only, and only where all others of the area agree.
    """
    by_area: Dict[str, List[str]] = {}
    for text in texts.values():
        by_area.setdefault(survey_area(text), []).append(meridian_in(text))
    result = {}
    for key, text in texts.items():
        named = {name for name in by_area[survey_area(text)] if name}
        if not meridian_in(text) and survey_area(text) and len(named) == 1:
            result[key] = named.pop()
    return result


def survey_area(text: str) -> str:
    """Return the survey area that a type location begins with, lower case: "gerstle river"."""
    found = re.match(
        r"\s*(?:the\s+)?(.{3,60}?)\s+(?:soil survey |survey )?area\b", " ".join(text.split()), re.IGNORECASE
    )
    return re.sub(r"\s*-\s*", "-", found[1].lower()) if found else ""
