"""Observations of any source as :class:`~training.sites.Sites`, and a report of what was dropped or changed and why.

Owns which column is which field, and what becomes of places. Nothing is mended silently: a record whose coordinates
are exchanged, say, is dropped and told, and where most records of a file are so, reading stops.
"""

from __future__ import annotations

import csv
import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from miso_qgis.engine.errors import InputError, Problem
from miso_qgis.engine.rasters import RasterInfo, describe_bounds, inspect

from .dataset import Dataset, ObservationFile
from .readers_places import ALBERS, PLACES, locate, project, shown
from .readers_report import Findings, ReadReport
from .readers_tables import Table, read_table
from .readers_values import date, is_empty, label, numbers_are_codes
from .sites import CLASSES, MISSING, Sites

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FIELDS = ("id", *PLACES, "date", "nsp", "soil_order")
# Names by which a column is recognised, best first; case does not matter unless two columns differ by it only.
ALIASES: Mapping[str, Tuple[str, ...]] = {
    "id": ("id", "site_id", "siteid", "site", "pedon_id", "pedon", "peiid", "objectid", "series", "fid"),
    "x": ("x_3338", "x", "x_m", "easting"),
    "y": ("y_3338", "y", "y_m", "northing"),
    "lon": ("lon", "long", "longitude", "lon_dd", "longitude_dd", "longitude_decimal_degrees", "lon_wgs84"),
    "lat": ("lat", "latitude", "lat_dd", "latitude_dd", "latitude_decimal_degrees", "lat_wgs84"),
    "date": ("date", "aksdb_dts", "obs_date", "observation_date", "obsdate", "visit_date", "sample_date"),
    "nsp": ("nsp", "aksdb_pf1m_bin", "nsp_1m", "pf1m_bin", "pf1m", "permafrost", "permafrost_1m"),
    "soil_order": ("soil_order", "tax_order", "taxorder", "order", "soilorder"),
}
_SAME_PLACE_M = 1e-3


@dataclass(frozen=True)
class _Records:
    """Records of one file that have a place: all of the same length."""

    id: List[str]
    x: FloatArray
    y: FloatArray
    labels: Dict[str, NDArray[np.int8]]
    date: NDArray[np.datetime64]
    source: str


def read_observations(dataset: Dataset, *, values: bool = False) -> Tuple[Sites, ReadReport]:
    """Read all observations of a dataset that lie in its area.

    Args:
        dataset: Its files of observations are read for its tasks; a site needs a label of one of them.
        values: Whether to look up every raster at every site and count where there is no value (slow for many sites).

    Returns:
        The sites, and what was dropped or changed, sites outside the area and outside a raster's extent included.

    Raises:
        InputError: If a file cannot be read, most of its places are wrong, or no site is left; all problems at once.
    """
    files = [ObservationFile(str(dataset.path(file.path)), file.columns, file.crs) for file in dataset.observations]
    return _read(files, dataset.tasks, dataset, values)


def read_files(files: Sequence[ObservationFile], tasks: Sequence[str] = tuple(CLASSES)) -> Tuple[Sites, ReadReport]:
    """Read files of observations by themselves, without an area.

    Raises:
        InputError: As :func:`read_observations`.
    """
    return _read(files, tasks, None, False)


def _read(
    files: Sequence[ObservationFile], tasks: Sequence[str], dataset: Optional[Dataset], values: bool
) -> Tuple[Sites, ReadReport]:
    findings = Findings()
    problems: List[Problem] = []
    columns: Dict[str, Dict[str, str]] = {}
    parts: List[_Records] = []
    count = 0
    if not files:
        raise InputError("Observations", "no file is named.", "At least one is needed.", "Add one to observations.")
    for file in files:
        try:
            table = read_table(file.path, findings)
            columns[table.name] = match_columns(file, table, tasks)
            parts.append(_records(table, file, columns[table.name], tasks, findings))
            count += table.count + table.broken
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError.of(problems)
    sites = _join(parts, tasks, findings)
    if dataset is not None and len(sites):
        sites = _inside_grid(sites, dataset, findings)
        sites = _inside_rasters(sites, dataset, findings)
        if values:
            _look_up(sites, dataset, findings)
    report = _report(sites, columns, count, findings)
    if not len(sites):
        lost = "; ".join(f"{finding.count} {finding.text}" for finding in report.findings)
        title = "Observations " + ", ".join(f'"{Path(file.path).name}"' for file in files)
        raise InputError(
            title, f"none of {count} records can be used: {lost or 'the files are empty'}.", "", "Correct the file."
        )
    return sites, report


def match_columns(file: ObservationFile, table: Table, tasks: Sequence[str]) -> Dict[str, str]:
    """Say which column of a table is which field: as ``file.columns`` says, else by :data:`ALIASES`.

    Raises:
        InputError: If a named column does not exist, or coordinates or labels are missing; all problems at once.
    """
    what = f'Observations "{table.name}"'
    has = "Its columns are " + ", ".join(table.columns) + "."
    problems = []
    chosen: Dict[str, str] = {}
    for name, column in file.columns.items():
        if name not in FIELDS:
            found = f"columns names {name!r}, which is no field."
            problems.append(Problem(what, found, f"Fields are {', '.join(FIELDS)}.", "Correct columns."))
        elif column not in table.columns:
            problems.append(Problem(what, f'has no column "{column}" (for {name}).', has, "Correct columns."))
        else:
            chosen[name] = column
    # Whoever names one way of giving the place means that one: others are not looked for.
    placed = any(name in PLACES for name in file.columns)
    for name in FIELDS:
        if name in chosen or (placed and name in PLACES):
            continue
        found_column = next(
            (column for alias in ALIASES[name] for column in _called(alias, table) if column not in chosen.values()),
            None,
        )
        if found_column is not None:
            chosen[name] = found_column
    if not problems:
        pairs = [pair for pair in (("x", "y"), ("lon", "lat")) if all(name in chosen for name in pair)]
        if not pairs and table.points is None:
            remedy = "Name them, for example columns {lon: LONG_DD, lat: LAT_DD}."
            problems.append(Problem(what, "its coordinates are not found.", has, remedy))
        if not any(task in chosen for task in tasks):
            needed = f"A label of {' or '.join(tasks)} is needed. {has}"
            problems.append(Problem(what, "no column of labels is found.", needed, "Name it in columns."))
    if problems:
        raise InputError.of(problems)
    return {name: chosen[name] for name in FIELDS if name in chosen and (name not in CLASSES or name in tasks)}


def _called(alias: str, table: Table) -> List[str]:
    exact = [column for column in table.columns if column == alias]
    return exact or [column for column in table.columns if column.lower() == alias]


def _records(
    table: Table, file: ObservationFile, columns: Mapping[str, str], tasks: Sequence[str], findings: Findings
) -> _Records:
    ids = _ids(table, columns.get("id"), findings)
    x, y, placed = locate(table, file, columns, ids, findings)
    labels = {task: np.full(table.count, MISSING, np.int8) for task in tasks}
    for task in tasks:
        if task not in columns:
            continue
        values = table.columns[columns[task]]
        codes = task == "soil_order" and numbers_are_codes(values)
        for index in np.flatnonzero(placed):
            labels[task][index], reason = label(task, values[index], codes=codes)
            if reason:
                findings.add(reason, f"{ids[index]}: {shown(values[index])}", shown(values[index]))
    days = np.full(table.count, np.datetime64("NaT"), "datetime64[D]")
    if "date" in columns:
        today = datetime.date.today()
        for index in np.flatnonzero(placed):
            value = table.columns[columns["date"]][index]
            day, reason = date(value, today)
            days[index] = np.datetime64("NaT") if day is None else np.datetime64(day)
            if reason:
                findings.add(reason, f"{ids[index]}: {shown(value)}")
    return _Records(
        [ids[index] for index in np.flatnonzero(placed)],
        x[placed],
        y[placed],
        {task: values[placed] for task, values in labels.items()},
        days[placed],
        table.name,
    )


def _ids(table: Table, column: Optional[str], findings: Findings) -> List[str]:
    stem = Path(table.name).stem
    ids = []
    for index in range(table.count):
        value = table.columns[column][index] if column is not None else None
        if value is None or is_empty(value):
            findings.add("no_id", f"{stem}-{index + 1}")
            ids.append(f"{stem}-{index + 1}")
        else:
            text = str(value).strip()
            ids.append(text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text)
    return ids


def _join(parts: Sequence[_Records], tasks: Sequence[str], findings: Findings) -> Sites:
    """Make one table of all files: without records that say nothing or the same again, with unique identifiers."""
    ids: List[str] = []
    chosen: List[Tuple[int, int]] = []
    seen: Dict[Tuple[Any, ...], str] = {}
    used: Dict[str, int] = {}
    for number_of, part in enumerate(parts):
        for index, name in enumerate(part.id):
            labels = tuple(int(part.labels[task][index]) for task in tasks)
            if all(value == MISSING for value in labels):
                findings.add("no_label", f"{part.source}: {name}")
                continue
            place = (round(part.x[index] / _SAME_PLACE_M), round(part.y[index] / _SAME_PLACE_M))
            key = (*place, str(part.date[index]), *labels)
            if key in seen:
                findings.add("duplicate", f"{part.source}: {name} repeats {seen[key]}")
                continue
            seen[key] = name
            if name in used:
                findings.add("repeated_id", f"{part.source}: {name}")
            while name in used:
                used[part.id[index]] += 1
                name = f"{part.id[index]}#{used[part.id[index]]}"
            used[name] = 1
            ids.append(name)
            chosen.append((number_of, index))
    files = np.array([number_of for number_of, _ in chosen], dtype=np.int64)
    starts = np.cumsum([0, *(part.x.size for part in parts)])
    order = starts[files] + np.array([index for _, index in chosen], dtype=np.int64)
    return Sites(
        id=np.array(ids, dtype=np.str_),
        x=np.concatenate([part.x for part in parts])[order],
        y=np.concatenate([part.y for part in parts])[order],
        labels={task: np.concatenate([part.labels[task] for part in parts])[order] for task in tasks},
        date=np.concatenate([part.date for part in parts])[order],
        source=np.array([parts[number_of].source for number_of, _ in chosen], dtype=np.str_),
    )


def _kept(sites: Sites, inside: BoolArray, reason: str, findings: Findings, value: Optional[str] = None) -> Sites:
    for index in np.flatnonzero(~inside):
        findings.add(reason, f"{sites.id[index]}: x {sites.x[index]:.0f}, y {sites.y[index]:.0f}", value)
    return sites.subset(inside)


def _inside_grid(sites: Sites, dataset: Dataset, findings: Findings) -> Sites:
    grid = dataset.grid
    crs = CRS.from_user_input(dataset.crs)
    x, y = project(sites.x, sites.y, ALBERS, crs)
    xmin, ymin, xmax, ymax = grid.bounds
    inside = (x >= xmin) & (x < xmax) & (y > ymin) & (y <= ymax)
    if not inside.any():
        lie = describe_bounds((x.min(), y.min(), x.max(), y.max()), crs)
        raise InputError(
            f'Dataset "{dataset.name}"',
            f"none of {len(sites)} sites lies in its area. They lie at {lie}.",
            f"The area lies at {describe_bounds(grid.bounds, crs)}.",
            "Correct bounds, or choose other observations.",
        )
    return _kept(sites, inside, "outside_grid", findings)


def _rasters(dataset: Dataset) -> Dict[str, RasterInfo]:
    """Look at the rasters that channels need; one that cannot be read is left to the opening of the channels."""
    infos = {}
    for name in sorted({channel.from_ for channel in dataset.channels}):
        source = dataset.sources[name]
        located = type(source)(str(dataset.path(source.path)), source.band)
        info, _ = inspect(f'Input "{name}"', located, picture_allowed=True)
        if info is not None:
            infos[name] = info
    return infos


def _pixels(info: RasterInfo, sites: Sites) -> Tuple[NDArray[np.int64], NDArray[np.int64], BoolArray]:
    """Return row and column of the raster's own pixel at each site, and whether there is one."""
    x, y = project(sites.x, sites.y, ALBERS, info.crs)
    inverse = ~info.transform
    row, column = np.full(x.size, -1, np.int64), np.full(x.size, -1, np.int64)
    for shift in info.longitude_shifts:
        with np.errstate(invalid="ignore"):
            c = np.nan_to_num(np.floor(inverse.a * (x - shift) + inverse.b * y + inverse.c), nan=-1)
            r = np.nan_to_num(np.floor(inverse.d * (x - shift) + inverse.e * y + inverse.f), nan=-1)
        found = (c >= 0) & (c < info.width) & (r >= 0) & (r < info.height)
        row[found], column[found] = r[found].astype(np.int64), c[found].astype(np.int64)
    return row, column, row >= 0


def _inside_rasters(sites: Sites, dataset: Dataset, findings: Findings) -> Sites:
    for name, info in _rasters(dataset).items():
        if len(sites):
            _, _, inside = _pixels(info, sites)
            sites = _kept(sites, inside, "outside_rasters", findings, name)
    return sites


def _look_up(sites: Sites, dataset: Dataset, findings: Findings) -> None:
    """Count the sites at which an input has no value."""
    for name, info in _rasters(dataset).items():
        row, column, _ = _pixels(info, sites)
        with rasterio.open(info.source.path) as raster:
            # In order of the file's rows, so that each block is decoded once.
            for index in np.lexsort((column, row)):
                window = rasterio.windows.Window(int(column[index]), int(row[index]), 1, 1)
                try:
                    value = raster.read(info.source.band, window=window, masked=True)
                except (RasterioError, OSError) as error:
                    raise InputError(info.name, f"cannot be read at a site ({error}).") from error
                if np.ma.getmaskarray(value).any() or not np.isfinite(value.astype(np.float64)).all():
                    findings.add("no_value", f"{sites.id[index]}: {name}", name)


def _report(sites: Sites, columns: Dict[str, Dict[str, str]], count: int, findings: Findings) -> ReadReport:
    labels = {
        task: {name: int((values == index).sum()) for index, name in enumerate(CLASSES[task])}
        for task, values in sites.labels.items()
    }
    dated = sites.date[~np.isnat(sites.date)]
    span = (str(dated.min()), str(dated.max())) if dated.size else ("", "")
    report = ReadReport(columns, count, len(sites), labels, int(dated.size), span, findings.all())
    assert report.kept + report.dropped == count, "every record is kept or dropped for one reason"
    return report


def write_sites(sites: Sites, path: Path) -> None:
    """Write sites as CSV, whole or not at all: the columns that :func:`read_files` recognises by itself.

    ``x_3338`` and ``y_3338`` in metres, classes by name, a missing label or date empty.
    """
    part = path.with_name(f".{path.name}.part")
    tasks = list(sites.labels)
    with part.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(["id", "x_3338", "y_3338", "date", *tasks, "source"])
        for index in range(len(sites)):
            classes = [
                CLASSES[task][values[index]] if values[index] != MISSING else ""
                for task, values in sites.labels.items()
            ]
            day = "" if np.isnat(sites.date[index]) else str(sites.date[index])
            place = (f"{sites.x[index]:.3f}", f"{sites.y[index]:.3f}")
            writer.writerow([sites.id[index], *place, day, *classes, sites.source[index]])
    os.replace(part, path)
