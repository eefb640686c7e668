"""Files of observations as plain tables: CSV, GeoJSON, AKSDB points JSON, GeoPackage and what else OGR reads.

Values stay as the file holds them; what they mean is for :mod:`training.readers_values`. A file that cannot be read
whole is an error, never a shorter table.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Set

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.errors import CRSError

from miso_qgis.engine.errors import InputError

from .readers_report import Findings

_JSON = (".json", ".geojson")
_CSV = (".csv", ".txt", ".tsv")
_NEEDED = "A CSV, GeoPackage, GeoJSON or AKSDB points JSON is needed."
_MARK = "|layername="


@dataclass(frozen=True)
class Table:
    """Records of one file.

    Attributes:
        name: The file's name, for messages.
        columns: Column -> values, all of the same length.
        count: Number of records.
        points: Coordinates of the geometries, (count, 2) float64, NaN where there is none; None without geometry.
        crs: CRS of the geometries as PROJ reads it, empty without geometry.
        rejected: Records whose geometry is no point; reported already.
        broken: Rows that could not be split into fields; reported already, not among ``count``.
    """

    name: str
    columns: Dict[str, List[Any]]
    count: int
    points: Optional[NDArray[np.float64]] = field(default=None)
    crs: str = ""
    rejected: FrozenSet[int] = frozenset()
    broken: int = 0


def read_table(path: str, findings: Findings) -> Table:
    """Read a file; ``path|layername=NAME`` chooses a layer of it.

    Raises:
        InputError: If it is missing, damaged, empty, or none of the known forms.
    """
    plain, _, layer = path.partition(_MARK)
    file = Path(plain)
    what = f'Observations "{plain}"'
    if not file.is_file():
        found = "it is a folder." if file.is_dir() else "the file does not exist."
        raise InputError(what, found, _NEEDED, "Check the path.")
    if file.stat().st_size == 0:
        raise InputError(what, "the file is empty (zero bytes).", _NEEDED, "Copy or export it again.")
    try:
        if file.suffix.lower() in _JSON:
            return _json_table(what, file, findings)
        if file.suffix.lower() in _CSV:
            return _csv_table(what, file, findings)
        return _ogr_table(what, file, layer, findings)
    except (OSError, UnicodeError, csv.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        remedy = "Copy or export it again; it may be cut off or of another form than its name says."
        raise InputError(what, f"cannot be read ({error}).", _NEEDED, remedy) from error


def _csv_table(what: str, path: Path, findings: Findings) -> Table:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252")
        findings.add("encoding", path.name)
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t|", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    names = [name.strip() for name in next(rows, [])]
    if len(names) < 2:
        remedy = "The first line must name the columns, separated by commas, semicolons or tabs."
        raise InputError(what, f'its first line is "{header[:60]}".', "A header with columns is needed.", remedy)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(what, f"has two columns called {', '.join(twice)}.", "Names must differ.", "Rename one.")
    columns: Dict[str, List[Any]] = {name: [] for name in names}
    broken = 0
    for row in rows:
        if not any(value.strip() for value in row):
            continue
        if len(row) != len(names):
            broken += 1
            findings.add("broken_row", f"{path.name} line {rows.line_num}: {len(row)} fields, not {len(names)}")
            continue
        for name, value in zip(names, row):
            columns[name].append(value.strip())
    return Table(path.name, columns, len(columns[names[0]]), broken=broken)


def _json_table(what: str, path: Path, findings: Findings) -> Table:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        return _geojson_table(what, path, content, findings)
    if not (isinstance(content, list) and content and all(isinstance(record, dict) for record in content)):
        needed = "A list of records (AKSDB points) or a GeoJSON FeatureCollection is needed."
        raise InputError(what, "holds JSON of another form.", needed, "Choose the points file.")
    return Table(path.name, _columns(content), len(content))


def _columns(records: List[Dict[str, Any]]) -> Dict[str, List[Any]]:
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in names}


def _geojson_table(what: str, path: Path, content: Dict[str, Any], findings: Findings) -> Table:
    features = content.get("features")
    if not isinstance(features, list) or not features or not all(isinstance(one, dict) for one in features):
        raise InputError(what, "holds no features.", "At least one point is needed.", "Choose another file.")
    # RFC 7946 knows longitude and latitude only; QGIS and OGR still write the older "crs" member for others.
    crs = "OGC:CRS84"
    if content.get("crs"):
        try:
            crs = str(content["crs"]["properties"]["name"])
        except (KeyError, TypeError) as error:
            raise InputError(
                what, "its crs member has no name.", "A named CRS is needed.", "Export it again."
            ) from error
    points = np.full((len(features), 2), np.nan)
    rejected: Set[int] = set()
    for index, feature in enumerate(features):
        geometry = feature.get("geometry") or {}
        place = geometry.get("coordinates")
        if geometry.get("type") == "MultiPoint" and isinstance(place, list) and len(place) == 1:
            place = place[0]
        elif geometry and geometry.get("type") != "Point":
            rejected.add(index)
            findings.add("not_a_point", f"{path.name} feature {index + 1}: {geometry.get('type')}")
            continue
        if isinstance(place, list) and len(place) >= 2 and all(isinstance(v, (int, float)) for v in place[:2]):
            points[index] = place[:2]
    records = [
        {**({"id": one["id"]} if one.get("id") is not None else {}), **(one.get("properties") or {})}
        for one in features
    ]
    return Table(path.name, _columns(records), len(features), points, _known_crs(what, crs), frozenset(rejected))


def _ogr_table(what: str, path: Path, layer: str, findings: Findings) -> Table:
    try:
        layers = {str(name): kind for name, kind in pyogrio.list_layers(path)}
        chosen = layer or _only_layer(what, layers)
        if chosen not in layers:
            found = f'has no layer "{chosen}", only {", ".join(layers)}.'
            raise InputError(what, found, "A layer of points is needed.", f"Name one: {path.name}{_MARK}NAME")
        meta, fids, geometry, values = pyogrio.raw.read(path, layer=chosen, return_fids=True)
    except (DataSourceError, DataLayerError) as error:
        raise InputError(what, f"cannot be read ({error}).", _NEEDED, "Copy or export it again.") from error
    columns = {str(name): list(column) for name, column in zip(meta["fields"], values)}
    columns.setdefault("fid", [int(fid) for fid in fids])
    if geometry is None:
        return Table(path.name, columns, len(fids))
    points = np.full((len(fids), 2), np.nan)
    rejected: Set[int] = set()
    for index, shape in enumerate(shapely.from_wkb(geometry)):
        if shape is None or shape.is_empty:
            continue
        if shape.geom_type == "MultiPoint" and len(shape.geoms) == 1:
            shape = shape.geoms[0]
        if shape.geom_type != "Point":
            rejected.add(index)
            findings.add("not_a_point", f"{path.name} feature {fids[index]}: {shape.geom_type}")
            continue
        points[index] = shape.x, shape.y
    if not meta["crs"]:
        remedy = "Assign the CRS in QGIS and save the layer again, or give crs with the columns of x and y."
        raise InputError(what, "has no CRS.", "Without it nobody can tell where the points lie.", remedy)
    return Table(path.name, columns, len(fids), points, _known_crs(what, str(meta["crs"])), frozenset(rejected))


def _only_layer(what: str, layers: Dict[str, Optional[str]]) -> str:
    points = [name for name, kind in layers.items() if kind is not None and "Point" in kind]
    candidates = points or list(layers)
    if len(candidates) != 1:
        found = f"has {len(candidates)} layers of points: {', '.join(candidates)}."
        raise InputError(what, found, "One layer is needed.", f"Write which one: FILE{_MARK}NAME")
    return candidates[0]


def _known_crs(what: str, text: str) -> str:
    try:
        CRS.from_user_input(text)
    except (CRSError, ValueError) as error:
        remedy = "Assign a CRS that PROJ knows."
        raise InputError(what, f'its CRS "{text[:60]}" is not known ({error}).', "", remedy) from error
    return text
