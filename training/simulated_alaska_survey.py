"""The simulated landscape's field surveys: people follow rivers, a road and trails, stop, and walk transects.

Owns where and when somebody dug, and what was written down. Places depend on the relief alone, never on the truth.
Labels are the truth of the cell in which the place lies; which of them is missing depends on the survey, and on the
stones that stop a probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra

from .simulated_alaska_climate import Exposure
from .simulated_alaska_relief import CELL_M, FloatArray, Generator, Relief

COARSE_PX = 10  # routes are found on cells of 100 m
# Observations on 20 x 20 km; smaller areas hold fewer.
SITES_PER_KM2 = 3000 / 400
FEWEST_SITES = 60
# Stops are farther apart than this, so that clusters of 1 km exist at all in an area of this size.
STOP_SPACING_M = 2300.0
STOPS_PER_KM2 = 1 / 9.0
FLOWN_IN = 0.2  # of the stops: lakes and ridges, by aircraft
FIRST_YEAR, LAST_YEAR = 1952, 2023
# What a survey records: NSP only, both, soil order only.
RECORDS = (0.15, 0.28, 0.57)
STONES = 0.3  # of the NSP records where a probe meets stones on steep ground
STONY_DEG = 13.0


@dataclass(frozen=True)
class Survey:
    """N places and what is recorded there.

    Attributes:
        row: Row of the place, fractional: 0 is the upper edge of the first row, (N,) float64.
        column: Likewise.
        date: Day, (N,) datetime64[D].
        has_nsp: Whether NSP was recorded, (N,) bool.
        has_order: Whether the soil order was, (N,) bool. Each place has at least one.
        routes: Lines of access, each kind and (n, 2) row, column.
    """

    row: NDArray[np.float64]
    column: NDArray[np.float64]
    date: NDArray[np.datetime64]
    has_nsp: NDArray[np.bool_]
    has_order: NDArray[np.bool_]
    routes: Tuple[Tuple[str, NDArray[np.float64]], ...]

    @property
    def cells(self) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the cells in which the places lie."""
        return np.floor(self.row).astype(np.int64), np.floor(self.column).astype(np.int64)


def make_survey(generator: Generator, relief: Relief, exposure: Exposure) -> Survey:
    """Lay out access, stops and transects, and decide what is recorded where."""
    routes = _routes(generator, relief, exposure)
    km2 = relief.elevation.size * CELL_M**2 / 1e6
    stops = _stops(generator, relief, routes, max(round(km2 * STOPS_PER_KM2), 3))
    places, transect = _transects(generator, relief, stops, max(round(km2 * SITES_PER_KM2), FEWEST_SITES))
    count = int(transect.max()) + 1
    kind = generator.choice(3, size=count, p=RECORDS)[transect]
    cells = tuple(np.floor(places).astype(np.int64).T)
    stony = (exposure.slope_deg[cells] > STONY_DEG) & (generator.random(transect.size) < STONES)
    return Survey(
        row=places[:, 0],
        column=places[:, 1],
        date=_dates(generator, count)[transect],
        # Where only NSP was looked for, a place without it is no record.
        has_nsp=(kind == 0) | ((kind == 1) & ~stony),
        has_order=kind >= 1,
        routes=routes,
    )


def _dates(generator: Generator, count: int) -> NDArray[np.datetime64]:
    """Midsummer days, three in four after 1998."""
    early = generator.integers(FIRST_YEAR, 1998, count)
    late = generator.integers(1998, LAST_YEAR + 1, count)
    years = np.where(generator.random(count) < 0.25, early, late)
    day = np.clip(np.rint(200 + 16 * generator.standard_normal(count)), 150, 260).astype(np.int64)
    january = (years - 1970).astype("datetime64[Y]").astype("datetime64[D]")
    dates: NDArray[np.datetime64] = january + (day - 1).astype("timedelta64[D]")
    return dates


def _routes(generator: Generator, relief: Relief, exposure: Exposure) -> Tuple[Tuple[str, NDArray[np.float64]], ...]:
    """The river by boat, one road from the village over the hills, trails to targets in all directions."""
    shape = relief.elevation.shape
    inside: NDArray[np.bool_] = np.all((relief.course >= 0) & (relief.course < np.asarray(shape) - 1), axis=1)
    routes: List[Tuple[str, NDArray[np.float64]]] = []
    # Where a bend leaves the area, the line ends and another begins.
    for run in np.split(np.arange(inside.size), np.flatnonzero(np.diff(inside)) + 1):
        if inside[run[0]] and run.size > 30:
            routes.append(("river", relief.course[run] + 0.5))
    rows, columns = shape[0] // COARSE_PX, shape[1] // COARSE_PX
    slope = _coarse(exposure.slope_deg, rows, columns)
    wet = _coarse(relief.water, rows, columns)
    cost = 1.0 + (slope / 6.0) ** 2 + 25.0 * wet
    graph = _graph(cost)
    village = int(np.argmin(_village_score(relief, wet, rows, columns)))
    ends = [("road", int(np.argmin(cost[1]) + columns))]
    for _ in range(max(round(shape[0] * CELL_M / 2500.0), 2)):
        target = int(generator.integers(rows * columns))
        if wet.flat[target] < 0.3:
            ends.append(("trail", target))
    _, before = dijkstra(graph, indices=village, return_predecessors=True)
    for kind, end in ends:
        path = [end]
        while path[-1] != village and before[path[-1]] >= 0:
            path.append(int(before[path[-1]]))
        if len(path) > 5:
            line = np.stack(np.divmod(np.asarray(path), columns), axis=1) * COARSE_PX + COARSE_PX / 2
            routes.append((kind, ndimage.gaussian_filter1d(line.astype(np.float64), 1.0, axis=0, mode="nearest")))
    return tuple(routes)


def _coarse(values: FloatArray, rows: int, columns: int) -> NDArray[np.float64]:
    cut = values[: rows * COARSE_PX, : columns * COARSE_PX]
    mean: NDArray[np.float64] = cut.reshape(rows, COARSE_PX, columns, COARSE_PX).mean(axis=(1, 3), dtype=np.float64)
    return mean


def _village_score(relief: Relief, wet: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Low on dry ground at the river, near the middle of the area from east to west."""
    distance = _coarse(relief.river_distance_m, rows, columns)
    aside = np.abs(np.arange(columns) - columns * 0.45) / columns
    score: NDArray[np.float64] = np.abs(distance - 250.0) + 1e4 * (wet > 0.05) + 1500.0 * aside[None, :]
    return score


def _graph(cost: NDArray[np.float64]) -> sparse.csr_matrix:
    """Steps between neighbouring cells, both ways, each the mean cost of its ends times its length."""
    index = np.arange(cost.size).reshape(cost.shape)
    starts, ends, lengths = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, cost.shape[0] - down), slice(max(-right, 0), cost.shape[1] - max(right, 0)))
        there = (slice(down, cost.shape[0]), slice(max(right, 0), cost.shape[1] + min(right, 0)))
        starts.append(index[here].ravel())
        ends.append(index[there].ravel())
        lengths.append((0.5 * math.hypot(down, right) * (cost[here] + cost[there])).ravel())
    a, b, length = np.concatenate(starts), np.concatenate(ends), np.concatenate(lengths)
    pairs = (np.concatenate([a, b]), np.concatenate([b, a]))
    return sparse.csr_matrix((np.tile(length, 2), pairs), (cost.size, cost.size))


def _stops(
    generator: Generator, relief: Relief, routes: Tuple[Tuple[str, NDArray[np.float64]], ...], count: int
) -> NDArray[np.float64]:
    """Places where people leave the route, and a few to which they fly; no two closer than the spacing, (n, 2)."""
    height, width = relief.elevation.shape
    near = np.concatenate([line for _, line in routes]) if routes else np.empty((0, 2))
    near = near + 12.0 * generator.standard_normal(near.shape)
    near = near[generator.permutation(near.shape[0])]
    flown = generator.uniform(0, 1, (40 * count, 2)) * np.asarray([height, width])
    spacing = min(STOP_SPACING_M, 0.28 * height * CELL_M) / CELL_M
    stops: List[NDArray[np.float64]] = []
    for candidates, wanted in ((near, round((1 - FLOWN_IN) * count)), (flown, count)):
        for place in candidates:
            if len(stops) >= wanted:
                break
            row, column = int(place[0]), int(place[1])
            if not (10 <= row < height - 10 and 10 <= column < width - 10) or relief.water[row, column] > 0.2:
                continue
            if all(np.hypot(*(place - stop)) >= spacing for stop in stops):
                stops.append(place)
    return np.asarray(stops)


def _transects(
    generator: Generator, relief: Relief, stops: NDArray[np.float64], count: int
) -> Tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Walk straight lines from the stops, some stops far more often than others; (count, 2) places, their transect."""
    height, width = relief.elevation.shape
    visits = np.exp(0.6 * generator.standard_normal(len(stops)))
    visits /= visits.sum()
    places: List[Tuple[float, float]] = []
    transect: List[int] = []
    number = 0
    while len(places) < count:
        row, column = stops[generator.choice(len(stops), p=visits)]
        heading, step = generator.uniform(0, 2 * math.pi), generator.uniform(3.0, 7.0)
        reach = generator.uniform(1.0, 8.0)
        before = len(places)
        for n in range(int(generator.integers(4, 10))):
            aside = 0.8 * generator.standard_normal(2)
            r = row + (reach + n * step) * math.sin(heading) + aside[0]
            c = column + (reach + n * step) * math.cos(heading) + aside[1]
            inside = 1 <= r < height - 1 and 1 <= c < width - 1
            if inside and relief.water[int(r), int(c)] < 0.5 and len(places) < count:
                places.append((r, c))
                transect.append(number)
        number += len(places) > before
    return np.asarray(places), np.asarray(transect)


def nearest_m(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Distance of each place to its nearest other place, m, (N,)."""
    from scipy.spatial import cKDTree

    places = np.stack([x, y], axis=1)
    distances: NDArray[np.float64] = cKDTree(places).query(places, k=2)[0][:, 1]
    return distances


def clustering(x: NDArray[Any], y: NDArray[Any], area_m2: float) -> Dict[str, float]:
    """How clustered places are.

    Returns:
        ``nearest_m``: mean distance to the nearest other place. ``clark_evans``: that, divided by 1 / (2 sqrt(n / A)),
        what it would be at random (Clark & Evans 1954); under 1 is clustered. ``clusters_1km``, ...: connected groups
        with steps of at most 0.5, 1, 2 and 3 km (DBSCAN with two neighbours; lone places count as one each).
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    places = np.stack([x, y], axis=1)
    tree = cKDTree(places)
    mean = float(nearest_m(x, y).mean())
    result = {"nearest_m": mean, "clark_evans": mean * 2 * math.sqrt(x.size / area_m2)}
    for km in (0.5, 1, 2, 3):
        pairs = tree.query_pairs(km * 1000.0, output_type="ndarray")
        links = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (x.size, x.size))
        result[f"clusters_{km:g}km"] = float(connected_components(links, directed=False)[0])
    return result
