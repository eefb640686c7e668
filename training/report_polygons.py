"""Scores within polygons: permafrost zones, land resource areas, ecoregions, whatever layer the user gives.

Owns which polygon a site lies in, and what is said of each polygon (the paper's Figures 6 to 8 and Table 3). A polygon
with few sites is *small* (shown, but greyed), and a class with very few sites in a polygon is hidden.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from miso_qgis.engine.errors import InputError

from . import scores
from .report_comparison import Assessed, difference, estimate_json, mean_defined, number
from .scores import Draws, Estimate, Judged

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Json = Dict[str, Any]

SITES_CRS = "EPSG:3338"
SMALL = 30
SMALL_CLUSTERS = 5  # an interval from fewer is a matter of which few were surveyed
HIDDEN = 5
OUTSIDE = -1
_POLYGONS = (3, 6)  # shapely's type numbers of Polygon and MultiPolygon
_NEEDED = "A layer of polygons with a CRS and a field of names is needed (GeoPackage, GeoJSON or Shapefile)."


@dataclass(frozen=True)
class PolygonLayer:
    """Named polygons.

    Attributes:
        title: Name of the file, without its suffix.
        names: Distinct names, sorted.
        geometries: Polygons, in ``crs``.
        owner: Index into ``names`` of each polygon: several polygons of one name are one.
        crs: CRS of the file.
    """

    title: str
    names: Tuple[str, ...]
    geometries: NDArray[np.object_]
    owner: IntArray
    crs: CRS

    def locate(self, x: FloatArray, y: FloatArray) -> Tuple[IntArray, int]:
        """Find the polygon of places in EPSG:3338.

        Returns:
            Index into :attr:`names`, (N,), ``OUTSIDE`` where there is none; and how many places lie in polygons of two
            names (the first counts).
        """
        # Places go to the polygons' CRS, not the other way round: an edge is straight in its own CRS only.
        u, v = transform_points(SITES_CRS, self.crs, x.tolist(), y.tolist())
        points = shapely.points(np.asarray(u), np.asarray(v))
        site, polygon = shapely.STRtree(self.geometries).query(points, predicate="intersects")
        found = np.full(x.size, OUTSIDE, dtype=np.int64)
        owners = self.owner[polygon]
        first = np.lexsort((polygon, site))[::-1]
        found[site[first]] = owners[first]
        several = {int(s) for s, owner in zip(site, owners) if owner != found[s]}
        return found, len(several)


def read_polygons(path: str, name_field: Optional[str]) -> PolygonLayer:
    """Read a layer; ``FILE|layername=NAME`` chooses one of several.

    Raises:
        InputError: If it cannot be read, has no CRS or no polygons, or the field is not there.
    """
    file, _, layer = path.partition("|layername=")
    what = f'Polygons "{os.path.basename(file)}"'
    if not os.path.exists(file):
        raise InputError(what, f'the file "{file}" does not exist.', _NEEDED, "Name the file again.")
    try:
        chosen = layer or _only_layer(what, file)
        meta, _, wkb, columns = pyogrio.raw.read(file, layer=chosen, force_2d=True)
    except (DataSourceError, DataLayerError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        found = f"cannot be read as a vector layer ({str(error).strip().rstrip('.')})."
        raise InputError(what, found, _NEEDED, "Check that the file opens in QGIS, and export it again.") from error
    if not meta.get("crs"):
        remedy = "Assign its CRS (QGIS: Layer > Set CRS) and save it as GeoPackage."
        raise InputError(what, "has no coordinate reference system (CRS).", _NEEDED, remedy)
    values = _names(what, name_field, [str(field) for field in meta["fields"]], columns)
    shapes = shapely.from_wkb(wkb, on_invalid="ignore")
    kept = [i for i, g in enumerate(shapes) if g is not None and not g.is_empty and shapely.get_type_id(g) in _POLYGONS]
    if not kept:
        raise InputError(what, "holds no polygon.", _NEEDED, "Choose another layer.")
    geometries = np.asarray([shapely.make_valid(shapes[i]) for i in kept], dtype=object)
    texts = [_text(values[i]) for i in kept]
    names = sorted(set(texts))
    owner = np.asarray([names.index(text) for text in texts], dtype=np.int64)
    return PolygonLayer(Path(file).stem, tuple(names), geometries, owner, CRS.from_user_input(meta["crs"]))


def _only_layer(what: str, file: str) -> str:
    layers = [str(name) for name, _ in pyogrio.list_layers(file)]
    if len(layers) != 1:
        found = f"holds {len(layers)} layers: {', '.join(layers)}."
        raise InputError(what, found, "One layer is needed.", f'Write "{file}|layername=NAME".')
    return layers[0]


def _names(what: str, field: Optional[str], fields: Sequence[str], columns: Sequence[NDArray[Any]]) -> Sequence[Any]:
    if field is None:
        texts = [name for name, values in zip(fields, columns) if values.dtype == object]
        likely = [name for name in texts if name.lower() in ("name", "title", "label")] or texts
        field = likely[0] if len(likely) == 1 else None
    if field is None or field not in fields:
        found = f"has no field {field!r}." if field else "does not say which field holds the names."
        raise InputError(what, found, f"One of its fields is needed: {', '.join(fields)}.", "Give --name-field.")
    return list(columns[list(fields).index(field)])


def _text(value: object) -> str:
    if value is None or value != value:  # NaN
        return "(no name)"
    return str(value)


# --- scores of one polygon ---


@dataclass(frozen=True)
class PolygonScores:
    """What is said of one polygon.

    Attributes:
        name: Of the polygon.
        sites: Mean number of sites over seeds.
        clusters: Clusters that have a site in it.
        per_class: Mean number of sites of each class.
        observed: Share of each class among the sites.
        accuracy: {model: share of sites called right}.
        predicted: {model: {operating point: share called present}} of a binary task, else {model: {class: share}}.
        by_class: {model: {class: share of its sites called right}}, the paper's Table 3; hidden classes are left out.
        differences: {other model: accuracy of the reference minus the other's}.
    """

    name: str
    sites: float
    clusters: int
    per_class: Dict[str, float]
    observed: Dict[str, float]
    accuracy: Dict[str, Estimate]
    predicted: Dict[str, Dict[str, Estimate]]
    by_class: Dict[str, Dict[str, Estimate]]
    differences: Dict[str, Estimate]

    @property
    def small(self) -> bool:
        """Whether too few sites, or too few clusters of them, lie in it for its figures to be relied on."""
        return self.sites < SMALL or self.clusters < SMALL_CLUSTERS


@dataclass(frozen=True)
class ByPolygon:
    """Scores of one task and split in every polygon that has a site.

    Attributes:
        layer: Title of the polygon layer.
        polygons: In the order of their names.
        outside: Mean number of sites in no polygon.
        overlapping: Number of sites in polygons of two names.
    """

    layer: str
    polygons: Tuple[PolygonScores, ...]
    outside: float
    overlapping: int


def score_polygons(assessed: Assessed, layer: PolygonLayer) -> ByPolygon:
    """Score every polygon of a layer that holds a site."""
    places: Dict[int, Tuple[IntArray, int]] = {}
    located: Dict[str, List[IntArray]] = {}
    for model, ones in assessed.judged.items():
        located[model] = []
        for one in ones:
            # Models share their sites, so each seed is located once.
            key = one.oof.seed if assessed.comparison.paired else id(one)
            if key not in places:
                places[key] = layer.locate(one.oof.x, one.oof.y)
            located[model].append(places[key][0])
    found: List[PolygonScores] = []
    for index, name in enumerate(layer.names):
        parts = {
            model: [one.subset(place == index) for one, place in zip(ones, located[model]) if (place == index).any()]
            for model, ones in assessed.judged.items()
        }
        if all(parts.values()):
            found.append(_one_polygon(assessed, name, parts))
    outside = np.mean([float((place == OUTSIDE).sum()) for place, _ in places.values()])
    return ByPolygon(layer.title, tuple(found), float(outside), sum(count for _, count in places.values()))


def _one_polygon(assessed: Assessed, name: str, parts: Mapping[str, Sequence[Judged]]) -> PolygonScores:
    comparison = assessed.comparison
    classes = comparison.classes
    some = parts[comparison.reference]
    seeds = len(comparison.members[comparison.reference])
    per_class: FloatArray = np.bincount(np.concatenate([one.oof.label for one in some]), minlength=len(classes)) / seeds
    clusters = int(np.unique(np.concatenate([one.oof.cluster for one in some])).size)
    rows: Dict[str, Dict[str, Estimate]] = {}
    drawn: Dict[str, Dict[str, FloatArray]] = {}
    for model, ones in parts.items():
        rows[model], drawn[model] = _counted(ones, assessed.draws, clusters)
    shown = [k for k in range(len(classes)) if per_class[k] >= HIDDEN]
    reference = comparison.reference
    return PolygonScores(
        name=name,
        sites=float(per_class.sum()),
        clusters=clusters,
        per_class=dict(zip(classes, per_class.tolist())),
        observed=dict(zip(classes, (per_class / per_class.sum()).tolist())),
        accuracy={model: row["accuracy"] for model, row in rows.items()},
        predicted={
            model: {key[6:]: made for key, made in row.items() if key.startswith("share/")}
            for model, row in rows.items()
        },
        by_class={model: {classes[k]: row[f"right/{classes[k]}"] for k in shown} for model, row in rows.items()},
        differences={
            model: difference(
                rows[reference]["accuracy"],
                rows[model]["accuracy"],
                (drawn[reference]["accuracy"], drawn[model]["accuracy"]),
                clusters,
            )
            for model in rows
            if model != reference and comparison.paired
        },
    )


def _counted(ones: Sequence[Judged], draws: Draws, clusters: int) -> Tuple[Dict[str, Estimate], Dict[str, FloatArray]]:
    """Accuracy, share right per class, and predicted shares of one model in one polygon: estimates and draws."""
    names = ones[0].oof.classes
    values: Dict[str, List[FloatArray]] = {}
    drawn: Dict[str, List[FloatArray]] = {}
    for one in ones:
        present = np.unique(one.oof.cluster)  # only the polygon's clusters: their draws, not everyone's
        index, times = np.searchsorted(present, one.oof.cluster), draws.times[draws.index(present)].astype(np.float64)
        for target, weights in ((values, np.ones((present.size, 1))), (drawn, times)):
            for key, value in _measures(one, index.astype(np.int64), weights, names).items():
                target.setdefault(key, []).append(value)
    result: Dict[str, Estimate] = {}
    distributions = {key: mean_defined(np.stack(several)) for key, several in drawn.items()}
    for key, found in values.items():
        mean = float(mean_defined(np.stack(found))[0])
        result[key] = scores.estimate(mean, distributions[key], clusters, f"no site is {key.split('/')[-1]}")
    return result, distributions


def _measures(one: Judged, index: IntArray, times: FloatArray, names: Sequence[str]) -> Dict[str, FloatArray]:
    counts = scores.confusion(one.oof.label, one.plain.called, len(names), index, times)
    total, is_so, called = counts.sum(axis=(1, 2)), counts.sum(axis=2), counts.sum(axis=1)
    result = {"accuracy": scores.ratio(np.trace(counts, axis1=1, axis2=2), total)}
    for k, name in enumerate(names):
        result[f"right/{name}"] = scores.ratio(counts[:, k, k], is_so[:, k])
    if not one.binary:
        return {**result, **{f"share/{name}": scores.ratio(called[:, k], total) for k, name in enumerate(names)}}
    result["share/half"] = scores.ratio(called[:, 1], total)
    for point, by in one.matched.items():
        made = by[1]
        if not made.reason:
            also = scores.confusion(one.oof.label, made.called, 2, index, times)
            result[f"share/{point}"] = scores.ratio(also[:, :, 1].sum(axis=1), total)
    return result


def by_polygon_json(found: ByPolygon) -> Json:
    """Return the polygons as JSON."""

    def row(estimates: Mapping[str, Estimate]) -> Json:
        return {name: estimate_json(made) for name, made in estimates.items()}

    return {
        "layer": found.layer,
        "outside": number(found.outside),
        "overlapping": found.overlapping,
        "polygons": [
            {
                "name": one.name,
                "sites": number(one.sites),
                "clusters": one.clusters,
                "small": one.small,
                "per_class": {k: number(v) for k, v in one.per_class.items()},
                "observed": {k: number(v) for k, v in one.observed.items()},
                "accuracy": row(one.accuracy),
                "predicted": {model: row(shares) for model, shares in one.predicted.items()},
                "by_class": {model: row(shares) for model, shares in one.by_class.items()},
                "differences": row(one.differences),
            }
            for one in found.polygons
        ],
    }
