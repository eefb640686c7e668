"""How the watershed's parts differ in their covariates, and which features survive being carried to another part.

Labels are used west of the reserved columns only; the reserved part enters with its covariates alone. Everything here
is on the development seed.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import ks_2samp
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import cpcrw, metrics, splits, watershed
from .baselines import FeatureMap
from .cpcrw import WatershedStack
from .observations import Observations, cell_centres, grid_cells
from .predictions import out_of_fold

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

SECTOR_NAMES = ("north-west", "south-west", "north-east", "south-east")
RESERVED = "reserved (east)"
OPEN = "open"
NEIGHBOUR_SAMPLE = 4000
START, END = "<!-- shift: start (python -m training shift) -->", "<!-- shift: end -->"


class Parts:
    """The watershed's 50 m cells by part: the open area, its four sectors, and the reserved columns.

    Attributes:
        features: Features of every cell, (N, F): disc means of 50 m, stream power as its logarithm.
        names: Their names.
        masks: Part -> which cells, (N,).
        blocks: 1 km block of each cell, (N,).
    """

    def __init__(self, stack: WatershedStack) -> None:
        files = cpcrw.find()
        with rasterio.open(files.dem) as source:
            inside = source.read(1) != source.nodata
        rows, columns = (index.astype(np.int64) for index in np.nonzero(inside))
        grid_rows, grid_columns = grid_cells(*cell_centres(rows, columns, stack.grid), stack.grid)
        table = FeatureMap(stack, coordinates=False)
        self.names = table.names
        self.features = _logged(table.at_cells(grid_rows, grid_columns), self.names)
        whole = np.isfinite(self.features).all(axis=1)
        self.features, rows, columns = self.features[whole], rows[whole], columns[whole]
        self.blocks = splits.block_ids(rows, columns)
        cells = cpcrw.load_open_cells()
        sector_map = np.full(watershed.SHAPE, -1, dtype=np.int64)
        sector_map[cells.cell_row, cells.cell_col] = cells.sector_id
        sector = sector_map[rows, columns]
        self.masks: Dict[str, NDArray[np.bool_]] = {OPEN: sector >= 0}
        self.masks.update({name: sector == i for i, name in enumerate(SECTOR_NAMES)})
        self.masks[RESERVED] = columns >= watershed.RESERVED_FROM_COLUMN


def _logged(features: FloatArray, names: Sequence[str]) -> FloatArray:
    result = features.copy()
    column = list(names).index("stream_power_index")
    result[:, column] = np.log1p(np.maximum(result[:, column], 0.0))
    return result


def describe_parts(parts: Parts) -> List[str]:
    """Tabulate what the ground of each part is like: means, classes, and the way slopes face."""
    position = {name: i for i, name in enumerate(parts.names)}
    facing = np.degrees(
        np.arctan2(parts.features[:, position["aspect_sin"]], parts.features[:, position["aspect_cos"]])
    )
    quarter = (np.floor((facing + 45.0) / 90.0) % 4).astype(np.int64)  # 0 north, 1 east, 2 south, 3 west
    rows: List[Tuple[str, Callable[[NDArray[np.bool_]], str]]] = [
        ("cells", lambda m: f"{m.sum():,}"),
        ("elevation, m", lambda m: f"{parts.features[m, position['elevation']].mean():.0f}"),
        ("slope, degrees", lambda m: f"{parts.features[m, position['slope']].mean():.1f}"),
        ("SAGA wetness index", lambda m: f"{parts.features[m, position['saga_wetness_index']].mean():.2f}"),
    ]
    for i, name in enumerate(("north", "east", "south", "west")):
        rows.append((f"faces {name}, %", lambda m, i=i: f"{100 * (quarter[m] == i).mean():.0f}"))  # type: ignore[misc]
    for value in cpcrw.NLCD_CLASSES:
        title = f"{cpcrw.NLCD_LEGEND[str(value)].lower()}, %"
        column = position[f"nlcd_{value}"]
        rows.append((title, lambda m, c=column: f"{100 * parts.features[m, c].mean():.0f}"))  # type: ignore[misc]
    lines = ["| | " + " | ".join(parts.masks) + " |", "|---" * (len(parts.masks) + 1) + "|"]
    lines += [f"| {title} | " + " | ".join(show(mask) for mask in parts.masks.values()) + " |" for title, show in rows]
    return lines


def distances(parts: Parts) -> List[str]:
    """Tabulate how far each part lies from the rest of the open area.

    Told apart: ROC-AUC, on held-out 1 km blocks, of a forest that learns which of the two a cell belongs to (0.5: no
    difference). Distance: median distance, in standardised features, from a cell to the nearest of 4,000 cells of the
    rest, divided by that between cells of the rest in different 1 km blocks (1: no farther than its own kind).
    KS: the three features whose distributions differ most (Kolmogorov-Smirnov).
    """
    lines = ["| held out | against | told apart | distance | features that differ most (KS) |", "|---|---|---|---|---|"]
    for name in (*SECTOR_NAMES, RESERVED):
        there = parts.masks[name]
        rest = parts.masks[OPEN] & ~there
        told = _told_apart(parts.features, parts.blocks, there, rest)
        ratio = _distance_ratio(parts.features, parts.blocks, there, rest)
        pairs = ((parts.features[there, i], parts.features[rest, i]) for i in range(len(parts.names)))
        statistics = [ks_2samp(here, elsewhere).statistic for here, elsewhere in pairs]
        most = ", ".join(f"{parts.names[i]} {statistics[i]:.2f}" for i in np.argsort(statistics)[::-1][:3])
        against = "open" if name == RESERVED else "other sectors"
        lines.append(f"| {name} | {against} | {told:.2f} | {ratio:.2f} | {most} |")
    return lines


def _told_apart(features: FloatArray, blocks: IntArray, there: NDArray[np.bool_], rest: NDArray[np.bool_]) -> float:
    chosen = there | rest
    x, y, block = features[chosen], there[chosen].astype(np.uint8), blocks[chosen]
    fold = splits.deal_blocks(block, y, 4, cpcrw.DEVELOPMENT_SEED)
    scores = np.zeros(y.size)
    for k in range(4):
        forest = RandomForestClassifier(60, min_samples_leaf=20, class_weight="balanced", random_state=0, n_jobs=-1)
        scores[fold == k] = forest.fit(x[fold != k], y[fold != k]).predict_proba(x[fold == k])[:, 1]
    return metrics.Ranking(y, scores).measure()["roc_auc"]


def _distance_ratio(features: FloatArray, blocks: IntArray, there: NDArray[np.bool_], rest: NDArray[np.bool_]) -> float:
    scaled = StandardScaler().fit(features[rest]).transform(features)
    generator = np.random.default_rng(cpcrw.DEVELOPMENT_SEED)
    sample = generator.choice(np.flatnonzero(rest), NEIGHBOUR_SAMPLE, replace=False)
    fold = splits.deal_blocks(blocks[sample], np.zeros(sample.size, np.uint8), 5, cpcrw.DEVELOPMENT_SEED)
    own = np.zeros(sample.size)
    for k in range(5):
        own[fold == k] = cKDTree(scaled[sample[fold != k]]).query(scaled[sample[fold == k]])[0]
    away = cKDTree(scaled[sample]).query(scaled[there])[0]
    return float(np.median(away) / np.median(own))


class _Variant:
    """A set of features at cells of the 10 m grid; a stand-in for :class:`FeatureMap` in the comparison of sets."""

    def __init__(self, planes: Sequence[FloatArray]) -> None:
        self._planes = planes

    def at(self, places: Observations) -> FloatArray:
        return np.stack([plane[places.row, places.col] for plane in self._planes], axis=1)


def feature_sets(stack: WatershedStack) -> Dict[str, _Variant]:
    """Return the sets of features that are compared, by what they are called in the table."""
    specs = [spec.name for spec in cpcrw.channel_specs()]
    table = FeatureMap(stack, coordinates=False)
    rows, columns = np.indices(stack.grid.shape)
    everywhere = table.at_cells(rows.ravel(), columns.ravel())
    planes = dict(zip(specs, _logged(everywhere, table.names).T.reshape(len(specs), *stack.grid.shape)))
    surface = [name for name in specs if name.startswith("nlcd_")]
    terrain = [name for name in specs if name not in surface]
    gradient = np.tan(np.radians(planes["slope"]))
    faced = [gradient * planes["aspect_cos"], gradient * planes["aspect_sin"]]
    channel = dict(zip(specs, stack.channels))
    relative = [channel["elevation"] - _mean(channel["elevation"], radius) for radius in (200, 500, 1000, 2000)]
    wide = [_mean(channel[name], 200) for name in surface]

    def chosen(names: Sequence[str], *more: FloatArray) -> _Variant:
        return _Variant([*(planes[name] for name in names), *more])

    return {
        "terrain and surface (as the baselines)": chosen(specs),
        "terrain only": chosen(terrain),
        "surface only": chosen(surface),
        "without elevation": chosen([name for name in specs if name != "elevation"]),
        "and tan(slope) times sine and cosine of aspect": chosen(specs, *faced),
        "and elevation above its mean within 0.2, 0.5, 1, 2 km": chosen(specs, *relative),
        "and land cover within 200 m": chosen(specs, *wide),
        "and all three": chosen(specs, *faced, *relative, *wide),
        "and all three, without elevation": chosen([n for n in specs if n != "elevation"], *faced, *relative, *wide),
    }


def _mean(plane: FloatArray, radius_m: float) -> FloatArray:
    """Mean of the values within a square of side 2 ``radius_m``; a square is fast, and its shape is no matter here."""
    size = 2 * round(radius_m / cpcrw.RESOLUTION_M) + 1
    there = np.isfinite(plane)
    total = ndimage.uniform_filter(np.where(there, plane, 0.0).astype(np.float64), size, mode="constant")
    count = ndimage.uniform_filter(there.astype(np.float64), size, mode="constant")
    result: FloatArray = np.where(there, total / np.maximum(count, 1e-9), np.nan).astype(np.float32)
    return result


def compare_features(stack: WatershedStack, note: Callable[[str], None] = lambda text: None) -> List[str]:
    """Tabulate ROC-AUC / PR-AUC on all open cells for sets of features, on blocks and on sectors (seed 0)."""
    points, cells = cpcrw.load_observations(cpcrw.DEVELOPMENT_SEED), cpcrw.load_open_cells()
    lines = ["| features | forest, blocks | forest, sector | logistic, blocks | logistic, sector |", "|---" * 5 + "|"]
    makers: Mapping[str, Callable[[], object]] = {
        "forest": lambda: RandomForestClassifier(253, max_depth=16, min_samples_leaf=5, random_state=0, n_jobs=-1),
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
    }
    for title, variant in feature_sets(stack).items():
        found = []
        for make in makers.values():
            for split in ("blocks", "sector"):
                fit = _plain_fit(make, variant)
                predicted = out_of_fold(fit, split, cpcrw.DEVELOPMENT_SEED, points=points, cells=cells)
                measured = metrics.Ranking(cells.label, predicted.cells).measure()
                found.append(f"{measured['roc_auc']:.3f} / {measured['pr_auc']:.3f}")
        lines.append(f"| {title} | " + " | ".join(found) + " |")
        note(lines[-1])
    return lines


def _plain_fit(make: Callable[[], object], variant: _Variant):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def fit(training: Observations, seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202
        model = make().fit(variant.at(training), training.label)  # type: ignore[attr-defined]
        return lambda places: model.predict_proba(variant.at(places))[:, 1]

    return fit


def markdown(note: Callable[[str], None] = lambda text: None) -> str:
    """Write the page's part on the shift."""
    stack = cpcrw.load_stack()
    parts = Parts(stack)
    lines = ["What the ground of each part is like (means over 50 m cells):", "", *describe_parts(parts), ""]
    lines += ["How far each part lies from the rest:", "", *distances(parts), ""]
    note("\n".join(lines))
    lines += [
        "Which features carry over: ROC-AUC / PR-AUC on all open cells, development seed, settings fixed",
        "(forest: depth 16, leaves of 5; logistic: C 0.1):",
        "",
        *compare_features(stack, note),
    ]
    return "\n".join(lines) + "\n"
