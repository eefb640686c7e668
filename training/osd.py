"""Official soil series descriptions as observations: one real pedon per series, in prose.

A worked example of a messy source. Each text has sections in capitals (TAXONOMIC CLASS, TYPICAL PEDON, TYPE LOCATION,
...). The typical pedon is a profile that somebody dug and described: a place, horizons with depths, sometimes a date.
What a text does not say stays empty, and is counted.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np

from miso_qgis.engine.errors import InputError

from .osd_places import Place, inferred_meridians, type_place
from .readers_values import date, order_of

_HEADINGS = (
    "TAXONOMIC CLASS",
    "TYPICAL PEDON",
    "TYPE LOCATION",
    "PEDON LOCATION",
    "RANGE IN CHARACTERISTICS",
    "COMPETING SERIES",
    "GEOGRAPHIC SETTING",
    "GEOGRAPHICALLY ASSOCIATED SOILS",
    "PRINCIPAL ASSOCIATED SOILS",
    "DRAINAGE AND PERMEABILITY",
    "DRAINAGE AND SATURATED HYDRAULIC CONDUCTIVITY",
    "USE AND VEGETATION",
    "DISTRIBUTION AND EXTENT",
    "SERIES ESTABLISHED",
    "SERIES PROPOSED",
    "REMARKS",
    "ADDITIONAL DATA",
)
_HEADING = re.compile(r"\b([A-Z]{4,}(?:[ \t]+[A-Z]+){0,4}|" + "|".join(h.title() for h in _HEADINGS) + r")[ \t]*:")
_CM = {"inch": 2.54, "cm": 1.0}
NSP_DEPTH_CM = 100.0
_MAX_BYTES = 1_000_000  # of one text; they have 10 kB


@dataclass(frozen=True)
class Horizon:
    """A layer of a pedon.

    Attributes:
        name: Designation as printed: ``Bgjjf``.
        top_cm: Depth below the soil's surface, the organic layer included.
        bottom_cm: Likewise; NaN where the text gives none.
        text: Its description.
    """

    name: str
    top_cm: float
    bottom_cm: float
    text: str


@dataclass(frozen=True)
class Series:
    """What a description says.

    Attributes:
        name: Of the series.
        file: That it was read from.
        place: Where the typical pedon is; None where that cannot be read.
        tax_class: Family as printed, may be empty.
        order: Soil order, empty if the class is.
        horizons: Of the typical pedon, from the top.
        frozen_cm: Top of the first perennially frozen horizon, NaN where there is none.
        nsp: ``present``, ``absent``, ``indeterminate``, or empty.
        flag: ``ok``, ``ambiguous`` or ``undefined``.
        why: Reason of ``nsp``.
        date: Day of description, ISO, or empty.
        elevation_m: Of the pedon, NaN where not given.
        slope_percent: Likewise.
        mlra: Major land resource areas, numbers.
        problems: What could not be read.
    """

    name: str
    file: str
    place: Optional[Place]
    tax_class: str
    order: str
    horizons: Tuple[Horizon, ...]
    frozen_cm: float
    nsp: str
    flag: str
    why: str
    date: str
    elevation_m: float
    slope_percent: float
    mlra: Tuple[str, ...]
    problems: Tuple[str, ...] = field(default=())

    @property
    def organic_cm(self) -> float:
        """Thickness of the organic layer on the mineral soil, cm (horizons O, in old texts 0)."""
        return next((layer.top_cm for layer in self.horizons if not layer.name.startswith(("O", "0"))), 0.0)


def read_archive(path: Path) -> List[Series]:
    """Read all texts (``*.txt``) of a tar archive or a folder, in order of their names.

    Raises:
        InputError: If it cannot be read or holds no series.
    """
    texts = dict(sorted(_texts(Path(path))))
    sections = {name: split_sections(text) for name, text in texts.items()}
    meridians = inferred_meridians({name: _location(parts) for name, parts in sections.items()})
    found = [
        parse(text, name, meridians.get(name, ""))
        for name, text in texts.items()
        if {"TYPICAL PEDON", "TYPE LOCATION"} & set(sections[name])
    ]
    if not found:
        needed = "Texts of official series descriptions (*.txt) are needed."
        raise InputError(f'Archive "{path}"', f"holds none among {len(texts)} texts.", needed, "Choose another.")
    return found


def _texts(path: Path) -> Iterator[Tuple[str, str]]:
    what = f'Archive "{path}"'
    needed = "A tar archive (or a folder) of series descriptions is needed."
    try:
        if path.is_dir():
            for file in path.rglob("*.txt"):
                yield str(file.relative_to(path)), _decoded(file.read_bytes())
            return
        with tarfile.open(path) as archive:
            for member in archive:
                if not (member.isfile() and member.name.lower().endswith(".txt")):
                    continue
                if member.size > _MAX_BYTES:
                    raise InputError(what, f'"{member.name}" has {member.size} bytes.', needed, "Remove it.")
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, _decoded(stream.read())
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(what, f"cannot be read ({error}).", needed, "Download it again; it may be cut off.") from error


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def split_sections(text: str) -> Dict[str, str]:
    """Split a description at its headings, misspelt ones included; the part before the first is under ""."""
    result: Dict[str, str] = {}
    start, name = 0, ""
    for found in _HEADING.finditer(text):
        heading = _known_heading(found[1])
        # A second heading of the same name is a sentence about that section.
        if heading is None or heading in result or heading == name:
            continue
        result[name] = text[start : found.start()].strip("\r\n")
        start, name = found.end(), heading
    result[name] = text[start:].strip("\r\n")
    return result


def _known_heading(text: str) -> Optional[str]:
    words = " ".join(text.upper().split())
    close = difflib.get_close_matches(words, _HEADINGS, n=1, cutoff=0.88)
    return close[0] if close else None


def _location(sections: Mapping[str, str]) -> str:
    return sections.get("TYPE LOCATION") or sections.get("PEDON LOCATION") or ""


def parse(text: str, file: str = "", meridian: str = "") -> Series:
    """Read one description.

    Args:
        text: All of it.
        file: Its file, after which a series is called whose text does not begin with its name.
        meridian: See :func:`training.osd_places.places_in`.
    """
    sections = split_sections(text)
    problems: List[str] = []
    titled = re.match(r"\s*LOCATION[ \t]+([A-Z][A-Z .'\-]*?)(?:[ \t]{2,}|\t|\r?$)", text, re.MULTILINE)
    place, notes = type_place(_location(sections), meridian)
    if place is None:
        problems += notes
    tax_class = " ".join(sections.get("TAXONOMIC CLASS", "").split()).rstrip(". ")
    order = order_of(tax_class) or ""
    if not order:
        problems.append("taxonomic class not readable" if tax_class else "taxonomic class empty")
    pedon = sections.get("TYPICAL PEDON", "")
    layers = horizons(pedon)
    if not layers:
        problems.append("no horizons readable")
    frozen_cm = frozen_depth(layers)
    nsp, flag, why = permafrost(layers, frozen_cm, tax_class, sections)
    head = _head(pedon)
    return Series(
        name=titled[1].strip() if titled else Path(file).stem,
        file=file,
        place=place,
        tax_class=tax_class,
        order=order,
        horizons=layers,
        frozen_cm=frozen_cm,
        nsp=nsp,
        flag=flag,
        why=why,
        date=described_on(head),
        elevation_m=elevation_m(head),
        slope_percent=slope_percent(head),
        mlra=land_resource_areas(sections.get("DISTRIBUTION AND EXTENT", "")),
        problems=tuple(problems) + (notes if place is not None else ()),
    )


# --- the pedon ---

_NUMBER = r"(\d/\d|\d+(?:\.\d+)?(?:[ -]\d/\d)?|\.\d+)"
_UNIT = r"(inch(?:es)?|in\b\.?|cm\b|centimeters?)"
_LAYER = re.compile(
    r"^[ \t]*(?P<name>[0-9'^]*[A-Z0][A-Za-z0-9'^/&´`]*(?:[ ]?(?:and|&|/)[ ]?[0-9]*[A-Z][A-Za-z0-9'^/]*)?)[ \t]*"
    r"(?:-{1,3}|–|—)[ \t]*(?:at[ \t]+)?" + _NUMBER + r"[ \t]*" + _UNIT + r"?"
    r"(?:[ \t]*(?:to|-|–)[ \t]*" + _NUMBER + r"?[ \t]*(?:\+[ \t]*)?" + _UNIT + r"?)?",
    re.MULTILINE,
)


def horizons(pedon: str) -> Tuple[Horizon, ...]:
    """Read the horizons of a typical pedon.

    Older descriptions count organic layers upwards from the mineral soil ("Oi--9 to 4 inches", then "A--0 to 2
    inches"): all depths are made depths below the surface. Numbers in brackets, the same in the other unit, are not
    read; some of them follow the other convention.
    """
    found: List[Tuple[str, float, float, str]] = []
    matches = list(_LAYER.finditer(pedon))
    for index, match in enumerate(matches):
        unit = match[5] or match[3]
        rest = pedon[match.end() : matches[index + 1].start() if index + 1 < len(matches) else len(pedon)]
        if unit is None:  # "Oe--4 to 0;" after a layer in inches
            unit = "cm" if found and "cm" in rest[:3] else None
        if unit is None:
            continue
        factor = _CM["inch" if unit.startswith("in") else "cm"]
        top, bottom = _length(match[2]) * factor, _length(match[4]) * factor if match[4] else math.nan
        found.append((match["name"].replace(" ", ""), top, bottom, " ".join(rest.split())))
    # Layers counted upwards have their larger number first.
    organic = max((top for _, top, bottom, _ in found if top > bottom), default=0.0)
    return tuple(
        Horizon(name, organic - top, organic - bottom, text)
        if top > bottom
        else Horizon(name, organic + top, organic + bottom, text)
        for name, top, bottom, text in found
    )


def _length(text: str) -> float:
    whole, _, part = text.replace("-", " ").rpartition(" ")
    if "/" in part:
        above, below = part.split("/")
        return (float(whole) if whole else 0.0) + float(above) / max(float(below), 1.0)
    return float(text)


_PERENNIAL = re.compile(r"perman[a-z]+ly frozen|perenn[a-z]+ly frozen|permafrost", re.IGNORECASE)
_BEDROCK = re.compile(r"R|r|d$|m$")  # rock, weathered rock, dense or cemented layers: nobody digs on
_DENIED = re.compile(r"(?:no|not|without|lack[a-z]*|absence of)\W+(?:\w+\W+){0,3}?(?:permafrost|frozen)", re.IGNORECASE)


def is_frozen(layer: Horizon) -> bool:
    """Whether a horizon is perennially frozen: its name has the suffix f, or its text says so."""
    named = any("f" in re.sub(r"^[0-9'^]*[A-Z0]+", "", part) for part in layer.name.split("/"))
    return named or bool(_PERENNIAL.search(layer.text) and not _DENIED.search(layer.text))


def frozen_depth(layers: Tuple[Horizon, ...]) -> float:
    """Return the depth of the first perennially frozen horizon, cm below the surface, NaN where there is none."""
    return min((layer.top_cm for layer in layers if is_frozen(layer)), default=math.nan)


def permafrost(
    layers: Tuple[Horizon, ...], frozen_cm: float, tax_class: str, sections: Mapping[str, str]
) -> Tuple[str, str, str]:
    """Decide on near-surface permafrost, within 100 cm of the surface.

    Returns:
        NSP (``present``, ``absent``, ``indeterminate`` or empty), flag and reason. What the pedon shows counts;
        the class and the range of the series only make it doubtful. Gelisols have permafrost within 100 cm, or, with
        cryoturbation, within 200 cm (Keys to Soil Taxonomy): a Gelisol whose pedon shows none is present if it is no
        Turbel.
    """
    order = order_of(tax_class)
    turbel = bool(re.search(r"turbels?$", tax_class, re.IGNORECASE))
    told = sections.get("RANGE IN CHARACTERISTICS", "") + sections.get("TYPICAL PEDON", "")
    mentioned = bool(_PERENNIAL.search(_DENIED.sub("", told)))
    if frozen_cm <= NSP_DEPTH_CM:
        return "present", "ok", "frozen horizon"
    if frozen_cm > NSP_DEPTH_CM:
        if order == "Gelisols" or shallowest_cm(told) <= NSP_DEPTH_CM:
            return "indeterminate", "ambiguous", "frozen below 100 cm, but the series may be frozen above"
        return "absent", "ok", "frozen below 100 cm"
    if order == "Gelisols":
        if turbel:
            return "indeterminate", "ambiguous", "a Turbel whose pedon shows no frozen horizon"
        return "present", "ok", "a Gelisol by its class"
    if not layers:
        return "", "undefined", "no horizons"
    if mentioned and shallowest_cm(told) <= NSP_DEPTH_CM:
        return "indeterminate", "ambiguous", "the series may be frozen within 100 cm, no horizon of the pedon is"
    if mentioned and shallowest_cm(told) == math.inf:
        return "indeterminate", "ambiguous", "permafrost is mentioned, no horizon is frozen"
    last = layers[-1]
    bottom = max(np.nanmax([layer.top_cm, layer.bottom_cm]) for layer in layers)
    if bottom < NSP_DEPTH_CM and not _BEDROCK.search(last.name):
        return "indeterminate", "ambiguous", f"no frozen horizon, but described to {bottom:.0f} cm only"
    return "absent", "ok", "no frozen horizon"


_DEPTH_RANGE = re.compile(
    r"depth (?:to|of)(?: the)? (?:permafrost|perennially frozen|permanently frozen)[^.;\n]{0,40}?"
    + _NUMBER
    + r"[ \t]*"
    + _UNIT
    + r"?[ \t]*(?:to|-|–)",
    re.IGNORECASE,
)


def shallowest_cm(text: str) -> float:
    """Return the shallow end of "depth to permafrost ranges from 10 to 60 inches", cm; infinity where not given."""
    found = _DEPTH_RANGE.search(" ".join(text.split()))
    if found is None:
        return math.inf
    after = found[2] or next(iter(re.findall(_UNIT, " ".join(text.split())[found.end() : found.end() + 30])), "")
    return _length(found[1]) * _CM["inch" if str(after).startswith("in") else "cm"]


# --- its surroundings ---


def _head(pedon: str) -> str:
    """Return what stands before the first horizon."""
    first = _LAYER.search(pedon, 1)
    return " ".join(pedon[: first.start() if first else len(pedon)].split())


_METRES = r"(?P<{0}>\d[\d,]*(?:\.\d+)?)\s*(?P<{0}u>feet|foot|ft\b|m\b|meters?|metres?)"
_ELEVATION = re.compile(
    r"elevations?(?:\s+(?:of|is|about|at|near|approximately))*\s*:?\s*"
    + _METRES.format("a")
    + "|"
    + _METRES.format("b")
    + r"\.?\s*(?:\([^)]*\)\s*)?(?:in\s+|of\s+)?elevation",
    re.IGNORECASE,
)
_SLOPE = re.compile(
    r"(?P<a>\d+(?:\.\d+)?)\s*(?:percent|%)(?:,?\s*[a-z]+(?:[- ]facing)?,?){0,5}?\s*\w*(?:slope|gradient)|"
    r"slopes?(?:\s+(?:of|is|about|gradient))*\s+(?P<b>\d+(?:\.\d+)?)\s*(?:percent|%)|"
    r"on\s+an?\s+(?P<c>\d+(?:\.\d+)?)\s*(?:percent|%)",
    re.IGNORECASE,
)


def elevation_m(head: str) -> float:
    """Return the pedon's elevation, m, NaN where not given."""
    found = _ELEVATION.search(head)
    if found is None:
        return math.nan
    name = "a" if found["a"] else "b"
    value = float(found[name].replace(",", ""))
    return value * 0.3048 if found[f"{name}u"].lower().startswith("f") else value


def slope_percent(head: str) -> float:
    """Return the pedon's slope, percent, NaN where it is not given as a number."""
    found = _SLOPE.search(head)
    return math.nan if found is None else float(found["a"] or found["b"] or found["c"])


def described_on(head: str) -> str:
    """Return the day on which the pedon was described, ISO, or nothing."""
    found = re.search(
        r"(?:[Dd]escribed|[Ss]ampled)(?:\s+\w+){0,3}?\s+(?:on|in)?\s*([A-Z][a-z]+\.? \d{1,2},? \d{4}|\d[\d/]+\d{4})",
        head,
    )
    day = date(found[1])[0] if found else None
    return day.isoformat() if day is not None else ""


def land_resource_areas(text: str) -> Tuple[str, ...]:
    """Return the numbers of the major land resource areas that a text names, in its order, each once."""
    lists = re.findall(
        r"(?:MLRA'?s?|Major Land Resource Areas?)\W{0,4}(\d{2,3}[A-Z]?\b(?:\s*(?:,|and|&|or)\s*\d{2,3}\b)*)", text
    )
    return tuple(dict.fromkeys(number for one in lists for number in re.findall(r"\d{2,3}[A-Z]?", one)))


# --- out ---

COLUMNS = (
    "series", "lon", "lat", "coord_method", "coord_uncert_m", "date", "tax_class", "soil_order", "pf_depth_cm", "nsp",
    "nsp_flag", "nsp_why", "elev_m", "slope_pct", "mlra", "problems",
)  # fmt: skip


def row(series: Series) -> Dict[str, str]:
    """Return a series as texts by column."""

    def shown(value: float, digits: int = 1) -> str:
        return "" if math.isnan(value) else f"{value:.{digits}f}"

    place = series.place
    values = (
        series.name,
        f"{place.lon:.6f}" if place else "",
        f"{place.lat:.6f}" if place else "",
        place.method if place else "",
        f"{place.uncertainty_m:.0f}" if place else "",
        series.date,
        series.tax_class,
        series.order,
        shown(series.frozen_cm),
        series.nsp,
        series.flag,
        series.why,
        shown(series.elevation_m),
        shown(series.slope_percent),
        " ".join(series.mlra),
        "; ".join(series.problems),
    )
    return dict(zip(COLUMNS, values))


def write_table(found: List[Series], path: Path) -> None:
    """Write series as CSV, whole or not at all; :mod:`training.readers` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as target:
        writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row(series) for series in found)
    os.replace(part, path)


def summary(found: List[Series]) -> str:
    """Return counts of what was read and what was not, for people."""
    placed = [series for series in found if series.place is not None]
    methods: Dict[str, int] = {}
    for series in placed:
        if series.place is not None:
            methods[series.place.method] = methods.get(series.place.method, 0) + 1
    problems: Dict[str, List[str]] = {}
    for series in found:
        for problem in series.problems:
            problems.setdefault(re.sub(r"[\d.]+ km", "some km", problem), []).append(series.name)
    flags = {flag: sum(series.flag == flag for series in found) for flag in ("ok", "ambiguous", "undefined")}
    lines = [
        f"{len(found)} series; {len(placed)} with a place ("
        + ", ".join(f"{name} {count}" for name, count in sorted(methods.items()))
        + ")",
        f"{sum(bool(series.order) for series in found)} with a soil order, "
        f"{sum(bool(series.date) for series in found)} with a date",
        "NSP: "
        + ", ".join(
            f"{name} {sum(series.nsp == name for series in found)}" for name in ("present", "absent", "indeterminate")
        )
        + "; flags: "
        + ", ".join(f"{name} {count}" for name, count in flags.items()),
    ]
    for problem, names in sorted(problems.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(names)}: {problem} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
    return "\n".join(lines)
