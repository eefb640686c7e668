"""Pictures of splits: folds on the map of Alaska, and the distances that a split tests against those that matter.

The coast is read from the public vectors beside the checkout when they are there; without them the map has none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from miso_qgis.engine.errors import InputError

from .dataset import Dataset
from .readers_places import ALBERS, project
from .sites import Sites
from .spatial_splits import (
    FOLDS,
    SPATIAL_SPLITS,
    Split,
    distances,
    make_split,
    nearest,
    read_released,
    table,
    test_to_train,
    write_released,
)

FloatArray = NDArray[np.float64]

COAST = Path("vectors_snap") / "alaska_coast.gpkg"
PLACES = 4_000  # of prediction: their distances' distribution is smooth, and W changes by a few percent with more
# Okabe and Ito's colours, told apart by colour-blind readers; more folds than colours repeat them.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_LAND_SHARE = 0.02  # of a dataset's box; below that the simplified coast says nothing about it
_NEAREST_M = 1.0  # shorter distances are drawn there: the axis is logarithmic


@dataclass(frozen=True)
class Area:
    """Where predictions are wanted.

    Attributes:
        title: For captions: "Alaska (coast)", "Dataset "cpcrw"".
        places: Lattice of places in it, (M, 2) in EPSG:3338.
        outline: Polygons in EPSG:3338 to draw, maybe none.
    """

    title: str
    places: FloatArray
    outline: Tuple[Any, ...] = ()


def coast_file() -> Optional[Path]:
    """Return the coast beside the checkout or in the folder that ``MISO_DATA`` names; None if there is none."""
    named = os.environ.get("MISO_DATA")
    parents = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if named is not None:
        parents = [Path(named), Path(named).parent]
    return next((parent / COAST for parent in parents if (parent / COAST).is_file()), None)


def read_coast() -> Tuple[Any, ...]:
    """Return the polygons of the coast in EPSG:3338, empty where the file is not there."""
    path = coast_file()
    if path is None:
        return ()
    import pyogrio

    meta, _, geometry, _ = pyogrio.raw.read(path, columns=[])
    if CRS.from_user_input(meta["crs"]) != ALBERS:
        raise InputError(f'Coast "{path.name}"', f"is in {meta['crs']}.", "EPSG:3338 is needed.", "Copy it again.")
    return tuple(shapely.get_parts(shapely.from_wkb(geometry)))


def lattice(bounds: Sequence[float], count: int, polygons: Sequence[Any] = ()) -> FloatArray:
    """Return about ``count`` places on a square lattice in ``bounds``, only those in ``polygons`` if any, (M, 2)."""
    xmin, ymin, xmax, ymax = bounds
    shapes = shapely.union_all(polygons) if len(polygons) else shapely.box(xmin, ymin, xmax, ymax)
    step = np.sqrt(shapely.area(shapely.intersection(shapes, shapely.box(*bounds))) / count)
    # Half a step from the edges: no place lies on a border.
    x, y = np.meshgrid(np.arange(xmin + step / 2, xmax, step), np.arange(ymin + step / 2, ymax, step))
    places = np.column_stack([x.ravel(), y.ravel()])
    if len(polygons):
        shapely.prepare(shapes)
        places = places[shapely.contains_xy(shapes, places[:, 0], places[:, 1])]
    return places


def area_of(dataset: Optional[Dataset], sites: Sites, count: int = PLACES) -> Area:
    """Return the area of prediction: a dataset's (its land), else Alaska, else, without its coast, the sites' box."""
    coast = read_coast()
    if dataset is not None:
        title = f'dataset "{dataset.name}"'
        places = _in_albers(dataset, count)
        if dataset.simulated:
            return Area(f"{title} (simulated)", places, coast)
        if coast:
            land = shapely.union_all(list(coast))
            shapely.prepare(land)
            share = float(shapely.contains_xy(land, places[:, 0], places[:, 1]).mean())
            if share > _LAND_SHARE:
                # As many places as without the sea: a finer lattice.
                places = _in_albers(dataset, int(count / share))
                places = places[shapely.contains_xy(land, places[:, 0], places[:, 1])]
                title += ", land" if share < 1 else ""
        return Area(title, places, coast)
    if coast:
        bounds = shapely.total_bounds(list(coast))
        return Area("Alaska", lattice(bounds, count, coast), coast)
    box = (sites.x.min(), sites.y.min(), sites.x.max() + 1.0, sites.y.max() + 1.0)
    return Area("the box of the sites (no coast file)", lattice(box, count))


def _in_albers(dataset: Dataset, count: int) -> FloatArray:
    places = lattice(dataset.grid.bounds, count)
    return np.column_stack(project(places[:, 0], places[:, 1], CRS.from_user_input(dataset.crs), ALBERS))


def draw_folds(split: Split, sites: Sites, area: Area, path: Path, title: str) -> None:
    """Draw which fold tests each site, on the map, as PNG."""
    figure, axes = _figure(8.6, 6.0)
    _draw_outline(axes, area)
    # The folds' points in random order, so that none hides the others.
    order = np.random.default_rng(0).permutation(len(sites))
    tested = order[split.fold[order] >= 0]
    colours = np.array(_COLOURS)[split.fold[tested] % len(_COLOURS)]
    size = float(np.clip(6_000 / max(len(sites), 1), 3, 18))
    rest = split.fold < 0
    axes.scatter(sites.x[rest] / 1000, sites.y[rest] / 1000, s=size, c="#bbbbbb", linewidths=0)
    axes.scatter(sites.x[tested] / 1000, sites.y[tested] / 1000, s=size, c=colours, linewidths=0)
    for number in range(split.folds):
        count = int(split.test(number).sum())
        axes.scatter([], [], s=24, c=_COLOURS[number % len(_COLOURS)], label=f"fold {number}: {count}")
    if rest.any():
        axes.scatter([], [], s=24, c="#bbbbbb", label=f"never tested: {int(rest.sum())}")
    _frame(axes, sites, area)
    clusters = np.unique(split.cluster).size
    axes.set_title(f"{title}: {split.name}, {len(sites)} sites, {clusters} clusters", fontsize=10)
    axes.set_xlabel("x in EPSG:3338, km")
    axes.set_ylabel("y, km")
    axes.legend(loc="upper left", fontsize=8, framealpha=0.9, title="sites tested by")
    _save(figure, path)


def _draw_outline(axes: Any, area: Area) -> None:  # noqa: ANN401  # reason: matplotlib has no types
    for polygon in area.outline:
        x, y = polygon.exterior.xy
        axes.fill(np.asarray(x) / 1000, np.asarray(y) / 1000, facecolor="#f2f0ea", edgecolor="#777777", linewidth=0.4)


def _frame(axes: Any, sites: Sites, area: Area) -> None:  # noqa: ANN401
    """Show sites and area, all of the coast if they span much of it, with a margin."""
    x = np.concatenate([sites.x, area.places[:, 0]]) / 1000
    y = np.concatenate([sites.y, area.places[:, 1]]) / 1000
    side = max(x.max() - x.min(), y.max() - y.min(), 1e-3)
    margin = 0.04 * side
    axes.set_xlim(x.min() - margin, x.max() + margin)
    axes.set_ylim(y.min() - margin, y.max() + margin)
    axes.set_aspect("equal")


def draw_distances(splits: Sequence[Split], sites: Sites, area: Area, path: Path, title: str) -> None:
    """Draw, for each split, the distribution of three nearest-neighbour distances, as PNG.

    Tested site to trained site (what the scores are about), place of prediction to site (what the map needs), and site
    to site. A split's scores apply to the area where its first curve is near the second.
    """
    columns = 2 if len(splits) == 4 else min(len(splits), 3)
    rows = -(-len(splits) // columns)
    figure, grid = _figure(3.5 * columns + 0.6, 3.0 * rows + 0.9, rows, columns)
    places = np.column_stack([sites.x, sites.y])
    wanted, own = nearest(area.places, places), nearest(places)
    panels = np.atleast_1d(np.asarray(grid)).ravel()
    for panel, split in zip(panels, splits):
        curves: List[Tuple[str, FloatArray, str, str]] = [
            ("test → train", test_to_train(split, places), "#D55E00", "-"),
            ("prediction → sample", wanted, "#0072B2", "-"),
            ("sample → sample", own, "#777777", "--"),
        ]
        for name, values, colour, style in curves:
            ordered = np.sort(np.maximum(values, _NEAREST_M)) / 1000
            panel.step(
                ordered, np.arange(1, ordered.size + 1) / ordered.size, style, where="post", color=colour, label=name
            )
        w = distances(split, sites, area.places)["W_m"]
        panel.set_title(f"{split.name} (W = {w / 1000:.3g} km)", fontsize=9)
        panel.set_xscale("log")
        panel.set_ylim(0, 1)
        panel.grid(color="#dddddd", linewidth=0.5)
        panel.set_xlabel("distance to the nearest, km", fontsize=8)
        panel.tick_params(labelsize=8)
    for panel in panels[len(splits) :]:
        panel.axis("off")
    panels[0].set_ylabel("share of places", fontsize=8)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"{title}; prediction area: {area.title}", fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 0.98))
    _save(figure, path)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401
    part = path.with_name(f".{path.stem}.part.png")
    figure.savefig(part, bbox_inches="tight")
    os.replace(part, path)


def describe_splits(
    sites: Sites,
    out: Path,
    title: str,
    dataset: Optional[Dataset] = None,
    names: Sequence[str] = SPATIAL_SPLITS,
    released: Sequence[Path] = (),
    folds: int = FOLDS,
    seed: int = 1,
) -> Tuple[List[Split], Dict[str, Any]]:
    """Make splits and write, into ``out``, their folds, pictures and ``splits.json``.

    Returns:
        The splits, and what ``splits.json`` holds. A split that cannot be made for these sites is told there under
        ``problems``, so that it does not hold up the others.

    Raises:
        InputError: If no split can be made; all problems at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    area = area_of(dataset, sites)
    splits: List[Split] = []
    problems: List[InputError] = []
    makers: List[Callable[[], Split]] = [partial(make_split, name, sites, seed, folds, area.places) for name in names]
    makers += [partial(read_released, path, sites) for path in released]
    for maker in makers:
        try:
            splits.append(maker())
        except InputError as error:
            problems.append(error)
    if not splits:
        raise InputError.of([problem for error in problems for problem in error.problems])
    result: Dict[str, Any] = {
        "title": title,
        "sites": len(sites),
        "simulated": bool(dataset and dataset.simulated),
        "area": {"title": area.title, "places": len(area.places)},
        "problems": [str(error) for error in problems],
        "splits": {},
    }
    for split in splits:
        write_released(split, sites, out / f"{split.name}.json")
        draw_folds(split, sites, area, out / f"folds_{split.name}.png", title)
        result["splits"][split.name] = {
            "seed": split.seed,
            **table(split, sites),
            "clusters": int(np.unique(split.cluster).size),
            "distances_m": distances(split, sites, area.places),
            "facts": split.facts,
            "notes": list(split.notes),
        }
    draw_distances(splits, sites, area, out / "distances.png", title)
    part = out / ".splits.json.part"
    part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out / "splits.json")
    return splits, result


def as_text(result: Dict[str, Any]) -> str:
    """Return what ``splits.json`` holds as a table for people."""
    lines = [f"{result['title']}: {result['sites']} sites, prediction area {result['area']['title']}"]
    for name, split in result["splits"].items():
        found = split["distances_m"]
        median = found["test_to_train"].get("0.5", float("nan")) / 1000
        lines.append(
            f"{name}: tests {' '.join(map(str, split['tests']))}; {split['clusters']} clusters; median test to train "
            f"{median:.3g} km, prediction to sample {found['prediction_to_sample']['0.5'] / 1000:.3g} km, "
            f"W {found['W_m'] / 1000:.3g} km"
        )
        lines += [f"    {note}" for note in split["notes"]]
    return "\n".join([*lines, *result["problems"]])
