"""The simulated landscape's relief: hills cut by running water, a lowland with a meandering river and thaw lakes.

Owns everything that has a shape in the ground: elevation, where water stands, how it runs, drained lake basins. Arrays
are (rows, columns), row 0 in the north, 10 m cells unless said otherwise. The hills lie in the north, the lowland with
the river in the south. Everything is invented.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, Dict, List, Tuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Shape = Tuple[int, int]
Generator = np.random.Generator

CELL_M = 10.0
# Made around the area and cut off again, so that no slope ends at the area's edge.
MARGIN_PX = 100
# Cell sizes at which water erodes, coarse to fine, in cells of 10 m, with the number of steps at each.
LEVELS: Tuple[Tuple[int, int], ...] = ((8, 220), (4, 30), (2, 6), (1, 2))
# Highest hills above the lowland where the area is 20 km wide; smaller areas hold smaller hills.
RELIEF_M = 520.0
LOWLAND_M = 140.0
ERODIBILITY = 0.3
# Below this, water runs over the slope and does not cut a channel.
CHANNEL_HEAD_HA = 60.0
# Creep of the soil per step: standard deviation of the smoothing.
CREEP_M = 60.0
VALLEY_FILL_M = 12.0
RIVER_WIDTH_M = 110.0
FLOODPLAIN_M = 1100.0
TERRACE_M = 5.0
STREAM_KM2 = 0.25

NO_BASIN, YOUNG_BASIN, OLD_BASIN = 0, 1, 2

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(function: _Kernel) -> _Kernel:
    """Compile with numba; keep the machine code between runs where some folder for it is writable."""
    try:
        kernel = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's nor the user's cache folder can be written
        kernel = numba.njit(nogil=True)(function)
    return cast(_Kernel, kernel)


@dataclass(frozen=True)
class Relief:
    """The ground, arrays (H, W).

    Attributes:
        elevation: Metres; flat on water.
        water: Share of the cell under open water, 0 to 1: river, oxbows, lakes.
        river: True on the main river.
        lowland: 1 on the lowland, 0 in the hills, between at the foot.
        floodplain: 1 on the active floodplain, 0 off it, between at its edge.
        scrolls: Ridges (1) and swales (-1) that the wandering river has left, along its course.
        river_distance_m: To the main river's middle.
        shore_distance_m: To the next lake or river; 0 on water.
        above_stream_m: Height above the stream into which the cell drains.
        drained_px: Cells that drain through the cell, itself included.
        basin: ``NO_BASIN``, ``YOUNG_BASIN`` or ``OLD_BASIN``: drained thaw lakes.
        course: The main river from east to west, (n, 2) as (row, column), fractional cells; parts may lie outside.
    """

    elevation: FloatArray
    water: FloatArray
    river: BoolArray
    lowland: FloatArray
    floodplain: FloatArray
    scrolls: FloatArray
    river_distance_m: FloatArray
    shore_distance_m: FloatArray
    above_stream_m: FloatArray
    drained_px: FloatArray
    basin: NDArray[np.uint8]
    course: NDArray[np.float64]

    def cropped(self, margin: int, side: int) -> Relief:
        """Return the square of ``side`` cells that begins ``margin`` cells from the north and the west."""
        part = slice(margin, margin + side)
        arrays: Dict[str, Any] = {
            item.name: np.ascontiguousarray(getattr(self, item.name)[part, part])
            for item in fields(self)
            if item.name != "course"
        }
        return replace(self, course=self.course - margin, **arrays)


def smooth_noise(generator: Generator, shape: Shape, length_px: float) -> FloatArray:
    """Make a smooth random field, mean 0 and standard deviation 1, float32.

    Random coefficients of cubic B-splines on a lattice: no matrix library, whose result would depend on the number of
    threads. Values more than two ``length_px`` apart hardly depend on each other.

    Args:
        generator: Source of chance.
        shape: Rows, columns.
        length_px: Spacing of the lattice, at least 1.
    """
    rows, columns = (_splines(size, length_px) for size in shape)
    coefficients = generator.standard_normal((rows.shape[1], columns.shape[1]))
    field = np.ascontiguousarray((columns @ (rows @ coefficients).T).T, dtype=np.float32)
    field -= field.mean(dtype=np.float64)
    spread = field.std(dtype=np.float64)
    return field / np.float32(spread if spread > 0 else 1.0)


def _splines(size: int, length_px: float) -> sparse.csr_matrix:
    """Values of the cubic B-splines with knots every ``length_px`` cells at each of ``size`` cells, sparse."""
    place = np.arange(size) / length_px
    first = np.floor(place).astype(np.int64)
    t = place - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    indices = first[:, None] + np.arange(4)
    count = int(indices.max()) + 1
    return sparse.csr_matrix((weights.T.ravel(), indices.ravel(), np.arange(0, 4 * size + 1, 4)), (size, count))


def make_relief(generator: Generator, side_px: int) -> Relief:
    """Make the ground of a square area of ``side_px`` cells a side."""
    coarsest = LEVELS[0][0]
    size = -(-(side_px + 2 * MARGIN_PX) // coarsest) * coarsest
    shape = (size, size)
    length_m = size * CELL_M
    foot_m, course_m = _layout(generator, size)
    plain = _plain(generator, shape, course_m)
    elevation = _hills(generator, foot_m, plain, length_m)
    elevation, above, drained = _valleys(generator, elevation, foot_m)
    course = _meander(generator, course_m, length_m)
    river_distance = _distance_to(course, shape)
    floodplain = _belt(generator, river_distance)
    lowland = _step(-foot_m / 400.0)
    elevation -= TERRACE_M * floodplain * lowland
    scrolls = _scrolls(generator, river_distance)
    elevation += 0.5 * scrolls * floodplain
    wide = 1.0 + 0.22 * smooth_noise(generator, shape, 45)
    elevation, water, river = _river(elevation, river_distance / np.clip(wide, 0.6, 1.8))
    elevation, water = _oxbows(generator, course, elevation, water, river_distance, floodplain)
    elevation, water, basin = _lakes(generator, elevation, water, lowland * (1 - floodplain), drained < 30_000)
    shore = ndimage.distance_transform_edt(water < 0.5).astype(np.float32) * np.float32(CELL_M)
    above = np.where(lowland > 0.5, np.minimum(above, np.maximum(elevation - plain + TERRACE_M, 0)), above)
    relief = Relief(
        elevation=elevation.astype(np.float32),
        water=water,
        river=river,
        lowland=lowland,
        floodplain=(floodplain * lowland).astype(np.float32),
        scrolls=scrolls,
        river_distance_m=river_distance,
        shore_distance_m=shore,
        above_stream_m=above.astype(np.float32),
        drained_px=drained.astype(np.float32),
        basin=basin,
        course=course,
    )
    return relief.cropped(MARGIN_PX, side_px)


def _step(values: NDArray[Any]) -> FloatArray:
    """Rise smoothly from 0 at -1 to 1 at +1."""
    t = np.clip(values * 0.5 + 0.5, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def _layout(generator: Generator, size: int) -> Tuple[FloatArray, NDArray[np.float64]]:
    """Return metres into the hills (negative on the lowland), (size, size), and the river's northing by column, m."""
    wide = smooth_noise(generator, (size, size), size / 5)
    fine = smooth_noise(generator, (size, size), max(size / 18, 20))
    rows = np.arange(size, dtype=np.float32)[:, None]
    foot = (0.55 + 0.055 * wide + 0.022 * fine) * np.float32(size) - rows
    bends = smooth_noise(generator, (1, size), size / 3)[0]
    course = (0.80 + 0.035 * bends.astype(np.float64)) * size * CELL_M
    return foot * np.float32(CELL_M), course


def _plain(generator: Generator, shape: Shape, course_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lowland without its landforms: falls to the river and with it to the west, low swells on it, m."""
    rows, columns = np.indices(shape, dtype=np.float32) * np.float32(CELL_M)
    across = np.abs(rows - course_m[None, :].astype(np.float32))
    swells = 1.6 * smooth_noise(generator, shape, 90) + 0.5 * smooth_noise(generator, shape, 14)
    plain: NDArray[np.float64] = (LOWLAND_M + 0.0011 * across + 0.0005 * columns + swells).astype(np.float64)
    return plain


def _hills(
    generator: Generator, foot_m: FloatArray, plain: NDArray[np.float64], length_m: float
) -> NDArray[np.float64]:
    """Lift the ground behind the foot and let water erode it, coarse cells first; returns m above sea level."""
    size = foot_m.shape[0]
    rock = 1.0 + 0.25 * smooth_noise(generator, foot_m.shape, max(size / 9, 12))
    uplift = _step(foot_m / (0.05 * length_m) - 0.6) * np.maximum(rock, 0.4)
    start = sum(a * smooth_noise(generator, foot_m.shape, b) for a, b in ((24.0, 160), (14.0, 60), (8.0, 24)))
    heights = np.maximum(_coarse(np.asarray(start + 30.0, dtype=np.float32), LEVELS[0][0]), 0.0)
    for factor, steps in LEVELS:
        lift, low = _coarse(uplift, factor), _coarse(-foot_m, factor) > 0
        if heights.shape != lift.shape:
            heights = np.asarray(ndimage.zoom(heights, 2, order=1, mode="nearest", grid_mode=True), dtype=np.float64)
        # Rock is not even: without it, valleys run along the lattice's diagonals.
        hardness = np.exp(0.4 * smooth_noise(generator, lift.shape, 2.0)).astype(np.float64)
        favour = np.exp(0.35 * generator.standard_normal(lift.shape))
        heights[low] = 0.0
        # Interpolation has dammed the gorges.
        heights = _carved(heights, low, favour)
        head = CHANNEL_HEAD_HA * 1e4 / (CELL_M * factor) ** 2
        for _ in range(steps):
            heights, area = _erode(heights, low, lift, ERODIBILITY * hardness, favour, head)
            # The same in metres whatever the cell. Streams carry off what creeps in: else gorges would be dammed.
            crept = ndimage.gaussian_filter(heights, CREEP_M / CELL_M / factor, mode="nearest")
            heights = np.where(area > head, np.minimum(crept, heights), crept)
            heights[low] = 0.0
    target = RELIEF_M * math.sqrt(length_m / 22_000.0)
    heights *= target / np.quantile(heights[foot_m > 0], 0.995)
    hills: NDArray[np.float64] = plain + ndimage.gaussian_filter(heights, 1.2)
    return hills


def _coarse(values: FloatArray, factor: int) -> NDArray[np.float64]:
    """Mean over squares of ``factor`` cells."""
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    mean: NDArray[np.float64] = values.reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float64)
    return mean


@compiled
def _drainage(surface: NDArray[Any], outlet: NDArray[Any], favour: NDArray[Any]) -> Tuple[Any, Any, Any]:
    """Fill pits from the outlets up (priority flood) and drain every cell to its steepest neighbour.

    ``favour`` (around 1) multiplies the drop towards a cell: without chance in it, streams follow the lattice.
    Returns the filled surface, the cells from the lowest up, and the cell into which each drains (itself at outlets).
    """
    height, width = surface.shape
    filled = surface.copy()
    order = np.empty(height * width, np.int32)
    receiver = np.empty(height * width, np.int32)
    known = np.zeros((height, width), np.bool_)
    queue = [(0.0, np.int32(0))]
    queue.pop()
    for i in range(height):
        for j in range(width):
            if outlet[i, j]:
                heapq.heappush(queue, (filled[i, j], np.int32(i * width + j)))
                known[i, j] = True
                receiver[i * width + j] = i * width + j
    n = 0
    while len(queue) > 0:
        level, cell = heapq.heappop(queue)
        order[n] = cell
        n += 1
        i = cell // width
        j = cell - i * width
        for m in range(max(i - 1, 0), min(i + 2, height)):
            for k in range(max(j - 1, 0), min(j + 2, width)):
                if not known[m, k]:
                    known[m, k] = True
                    filled[m, k] = max(surface[m, k], level + 1e-4)
                    receiver[m * width + k] = cell
                    heapq.heappush(queue, (filled[m, k], np.int32(m * width + k)))
    for n in range(order.size):
        cell = order[n]
        i = cell // width
        j = cell - i * width
        if outlet[i, j]:
            continue
        best = 0.0
        for m in range(max(i - 1, 0), min(i + 2, height)):
            for k in range(max(j - 1, 0), min(j + 2, width)):
                run = 1.0 if m == i or k == j else math.sqrt(2.0)
                drop = (filled[i, j] - filled[m, k]) / run * favour[m, k]
                if drop > best:
                    best = drop
                    receiver[cell] = m * width + k
    return filled, order, receiver


@compiled
def _carved(surface: NDArray[Any], outlet: NDArray[Any], favour: NDArray[Any]) -> Any:  # noqa: ANN401  # reason: numba
    """Let water out of every pit by cutting down what dams it."""
    _, order, receiver = _drainage(surface, outlet, favour)
    carved = surface.copy().ravel()
    for n in range(order.size - 1, -1, -1):
        cell = order[n]
        carved[receiver[cell]] = min(carved[receiver[cell]], carved[cell])
    return carved.reshape(surface.shape)


@compiled
def _accumulate(order: NDArray[Any], receiver: NDArray[Any]) -> NDArray[Any]:
    """Count the cells that drain through each cell, itself included."""
    area = np.ones(order.size)
    for n in range(order.size - 1, -1, -1):
        cell = order[n]
        if receiver[cell] != cell:
            area[receiver[cell]] += area[cell]
    return area


@compiled
def _erode(
    heights: NDArray[Any],
    outlet: NDArray[Any],
    lift: NDArray[Any],
    strength: NDArray[Any],
    favour: NDArray[Any],
    head: float,
) -> Tuple[Any, Any]:
    """One implicit step of uplift and stream-power erosion with exponents 1/2 and 1 (Braun & Willett 2013).

    With these exponents the cell's size cancels out. ``head`` is the area (cells) at which a channel begins.
    """
    width = heights.shape[1]
    filled, order, receiver = _drainage(heights, outlet, favour)
    area = _accumulate(order, receiver)
    for n in range(order.size):
        here = order[n]
        there = receiver[here]
        if here == there:
            continue
        i = here // width
        j = here - i * width
        p = there // width
        q = there - p * width
        f = strength[i, j] * math.sqrt(area[here])
        if i != p and j != q:
            f /= math.sqrt(2.0)
        filled[i, j] = (filled[i, j] + lift[i, j] + f * filled[p, q]) / (1.0 + f)
    return filled, area.reshape(heights.shape)


@compiled
def _above_stream(
    filled: NDArray[Any], order: NDArray[Any], receiver: NDArray[Any], area: NDArray[Any], least: float
) -> NDArray[Any]:
    """Height of each cell above the first cell on its way down through which at least ``least`` cells drain."""
    width = filled.shape[1]
    stream = np.empty(order.size)
    above = np.empty(filled.shape)
    for n in range(order.size):
        cell = order[n]
        i = cell // width
        j = cell - i * width
        if area[cell] >= least or receiver[cell] == cell:
            stream[cell] = filled[i, j]
        else:
            stream[cell] = stream[receiver[cell]]
        above[i, j] = filled[i, j] - stream[cell]
    return above


def _valleys(generator: Generator, elevation: NDArray[np.float64], foot_m: FloatArray) -> Tuple[Any, Any, Any]:
    """Fill valley bottoms with a gentle floor; returns elevation, height above the stream (m) and drained cells."""
    outlet = np.zeros(elevation.shape, dtype=bool)
    # Water leaves at the west end of the lowland, where the river does.
    outlet[:, 0] = foot_m[:, 0] < 0
    # On flat ground water follows what is too small to see; without it, streams run along rows and columns.
    unseen = 2.2 * smooth_noise(generator, foot_m.shape, 22) + 1.0 * smooth_noise(generator, foot_m.shape, 7)
    favour = np.exp(0.2 * generator.standard_normal(outlet.shape))
    # Gorges silt up: cut through what dams them, then round them.
    rounded = ndimage.gaussian_filter(_carved(elevation, outlet, favour), 3.0)
    surface = np.where(foot_m > 100.0, rounded, elevation)
    filled, order, receiver = _drainage(surface + unseen * _step(-foot_m / 400.0), outlet, favour)
    area = _accumulate(order, receiver)
    above = _above_stream(filled, order, receiver, area, STREAM_KM2 * 1e6 / CELL_M**2)
    floor = np.sqrt(above**2 + VALLEY_FILL_M**2) - VALLEY_FILL_M
    lowered = np.where(foot_m > 0, filled - ndimage.gaussian_filter(above - floor, 2.0), elevation)
    drained = area.reshape(filled.shape)
    lowered -= ndimage.gaussian_filter(0.5 * np.log1p(drained / 2500.0), 0.8)  # streams lie in small channels
    return lowered, np.maximum(floor, 0.0), drained


def _meander(generator: Generator, course_m: NDArray[np.float64], length_m: float) -> NDArray[np.float64]:
    """Let the river swing about its course (sine-generated curve, Langbein & Leopold 1966); (n, 2) row, column."""
    step = 10.0
    row, column = float(course_m[-1]), length_m + 600.0
    phase, places = float(generator.uniform(0, 2 * np.pi)), []
    chance = smooth_noise(generator, (2, 40 * int(length_m / step)), 90.0)
    for n in range(chance.shape[1]):
        if column < -600.0:
            break
        places.append((row, column))
        phase += 2 * np.pi * step / (2100.0 * math.exp(0.45 * float(chance[0, n])))
        swing = 1.2 + 0.45 * float(chance[1, n])
        wanted = float(course_m[min(max(int(column / CELL_M), 0), course_m.size - 1)])
        heading = min(max(swing, 0.5), 1.75) * math.sin(phase) - min(max((wanted - row) / 1500.0, -0.7), 0.7)
        row, column = row - step * math.sin(heading), column - step * math.cos(heading)
    course: NDArray[np.float64] = ndimage.gaussian_filter1d(np.asarray(places), 4.0, axis=0) / CELL_M - 0.5
    return course


def _distance_to(course: NDArray[np.float64], shape: Shape) -> FloatArray:
    """Distance (m) of every cell to a line of closely spaced places."""
    cells = np.rint(course).astype(np.int64)
    inside = ((cells >= 0) & (cells < np.asarray(shape))).all(axis=1)
    away = np.ones(shape, dtype=bool)
    away[tuple(cells[inside].T)] = False
    if away.all():
        return np.full(shape, 1e6, dtype=np.float32)
    distance: FloatArray = (ndimage.distance_transform_edt(away) * CELL_M).astype(np.float32)
    return distance


def _belt(generator: Generator, river_distance: FloatArray) -> FloatArray:
    """Where the river has been lately: a belt around it with ragged, fairly sharp edges, 0 to 1."""
    edge = FLOODPLAIN_M * (1.0 + 0.28 * smooth_noise(generator, river_distance.shape, 110))
    return _step((edge - river_distance) / 60.0)


def _scrolls(generator: Generator, river_distance: FloatArray) -> FloatArray:
    """Bands along the river, 150 m or so apart, broken and bent by chance."""
    bent = 45.0 * smooth_noise(generator, river_distance.shape, 28)
    strength = np.clip(0.5 + 0.6 * smooth_noise(generator, river_distance.shape, 40), 0, 1)
    bands: FloatArray = (strength * np.sin((river_distance + bent) * (2 * np.pi / 150.0))).astype(np.float32)
    return bands


def _river(elevation: NDArray[np.float64], distance: FloatArray) -> Tuple[NDArray[np.float64], FloatArray, BoolArray]:
    """Cut the channel: its level is that of the lowest ground along it, smoothed."""
    water = np.clip((RIVER_WIDTH_M / 2 - distance) / CELL_M + 0.5, 0, 1).astype(np.float32)
    level = ndimage.gaussian_filter(ndimage.minimum_filter(elevation, 15, mode="nearest"), 25, mode="nearest") - 1.5
    bank = np.minimum(elevation, level + np.maximum(distance - RIVER_WIDTH_M / 2, 0) * 0.06 + 0.4)
    cut = np.where(distance < 0.5 * RIVER_WIDTH_M + 60, bank, elevation)
    return np.where(water > 0.5, level, cut), water, water > 0.5


def _oxbows(
    generator: Generator,
    course: NDArray[np.float64],
    elevation: NDArray[np.float64],
    water: FloatArray,
    river_distance: FloatArray,
    floodplain: FloatArray,
) -> Tuple[NDArray[np.float64], FloatArray]:
    """Leave crescents of water where the river once ran: pieces of its own bends, moved aside."""
    length_m = elevation.shape[0] * CELL_M
    for _ in range(max(int(9 * length_m / 22_000.0), 1)):
        first = int(generator.integers(0, max(course.shape[0] - 120, 1)))
        bend = course[first : first + int(generator.integers(50, 110))]
        turn = generator.uniform(-0.6, 0.6)
        around = bend.mean(axis=0)
        rotation = np.asarray([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        moved = (bend - around) @ rotation.T + around + np.asarray([generator.choice([-1, 1]) * 45.0, 0.0])
        distance = _distance_to(moved, elevation.shape)
        width = generator.uniform(45, 80)
        there = np.clip((width / 2 - distance) / CELL_M + 0.5, 0, 1) * (river_distance > 200) * (floodplain > 0.6)
        water = np.maximum(water, there.astype(np.float32))
        if (there > 0.5).any():
            elevation = np.where(there > 0.5, elevation[there > 0.5].min() - 0.5, elevation)
    return elevation, water


@dataclass(frozen=True)
class _Blob:
    """A roundish lake: middle (row, column), radius in cells, and how its outline departs from a circle."""

    row: float
    column: float
    radius_px: float
    stretch: float
    heading: float
    waves: NDArray[np.float64]  # (4, 2): cosine and sine of the outline's second to fifth harmonic

    def inside(self, shape: Shape) -> Tuple[Tuple[slice, slice], FloatArray]:
        """Return a box around it and, in that box, the depth inside the outline in cells (negative outside)."""
        reach = int(self.radius_px * 1.9) + 3
        rows = slice(max(int(self.row) - reach, 0), min(int(self.row) + reach, shape[0]))
        columns = slice(max(int(self.column) - reach, 0), min(int(self.column) + reach, shape[1]))
        y, x = np.mgrid[rows, columns].astype(np.float64)
        y, x = y - self.row, x - self.column
        along = x * math.cos(self.heading) + y * math.sin(self.heading)
        across = (y * math.cos(self.heading) - x * math.sin(self.heading)) * self.stretch
        angle = np.arctan2(across, along)
        outline = 1.0 + sum(
            wave[0] * np.cos(k * angle) + wave[1] * np.sin(k * angle) for k, wave in enumerate(self.waves, start=2)
        )
        return (rows, columns), (self.radius_px * outline - np.hypot(along, across)).astype(np.float32)


def _blobs(generator: Generator, room: FloatArray, count: int, median_m: float, largest_m: float) -> List[_Blob]:
    """Draw lakes with their middles where there is room for them (> 0.9), of many sizes."""
    places = np.flatnonzero(room > 0.9)
    blobs: List[_Blob] = []
    for _ in range(count if places.size else 0):
        row, column = divmod(int(places[generator.integers(places.size)]), room.shape[1])
        radius = min(median_m * math.exp(0.7 * generator.standard_normal()), largest_m) / CELL_M
        waves = generator.standard_normal((4, 2)) * np.asarray([0.07, 0.06, 0.04, 0.03])[:, None]
        heading = 0.35 * generator.standard_normal() + 0.6
        blobs.append(_Blob(row, column, radius, float(generator.uniform(1.0, 1.5)), heading, waves))
    return blobs


def _lakes(
    generator: Generator, elevation: NDArray[np.float64], water: FloatArray, room: FloatArray, dry: BoolArray
) -> Tuple[NDArray[np.float64], FloatArray, NDArray[np.uint8]]:
    """Set thaw lakes and the basins of drained ones into the terrace: flat floors below the ground around them."""
    basin = np.zeros(elevation.shape, dtype=np.uint8)
    km2 = float((room > 0.9).sum()) * CELL_M**2 / 1e6
    elevation, water = elevation.copy(), water.copy()
    middles = room * dry
    for blob in _blobs(generator, middles, int(1.0 * km2), 230.0, 800.0):
        box, depth = blob.inside(elevation.shape)
        within = (depth > 0) & (room[box] > 0.5)
        if not within.any():
            continue
        floor = np.quantile(elevation[box][within], 0.1) - 1.5
        elevation[box] += np.where(room[box] > 0.3, np.clip(floor - elevation[box], -4, 0) * _step(depth / 4.0), 0.0)
        # The younger half of the basins overprints the older.
        basin[box][within] = YOUNG_BASIN if generator.random() < 0.45 else OLD_BASIN
    for blob in _blobs(generator, middles, int(2.2 * km2), 85.0, 650.0):
        box, depth = blob.inside(elevation.shape)
        within = (depth > 0) & (room[box] > 0.3)
        if not within.any():
            continue
        level = np.quantile(elevation[box][within], 0.1) - 1.0
        share = np.clip(depth + 0.5, 0, 1) * (room[box] > 0.3)
        elevation[box] = np.where(within, level, elevation[box])
        water[box] = np.maximum(water[box], share)
        basin[box][within] = NO_BASIN
    return elevation, water, basin
