"""Maps of a tile: Random Forest beside MISO and where they disagree (the paper's Figures 9 and 10).

Reads the rasters that a prediction wrote into a folder, ``<task>_probability_<model>.tif``, in blocks: areas come from
every pixel, pictures from averages of them. There is no truth in a map, so nothing here says who is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import rasterio
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.predict import DISAGREEMENT_COLOURS, DISAGREEMENT_NAMES

from .metrics import HALF
from .report_comparison import FOREST, MISO, TASK_TITLES, number, title_of
from .report_figures import WIDTH_IN, Picture, canvas, picture, styled
from .sites import CLASSES

FloatArray = NDArray[np.float64]
Json = Dict[str, Any]

PAIR = (FOREST, MISO)
SHOWN_PX = 600
BINS = 1000  # of the joint histogram: a step of 0.001
SHOWN_ORDERS = 2
# The paper shows these two; others are taken where a map lacks them.
PAPER_ORDERS = ("Histosols", "Entisols")
_BLOCK_ROWS = 512
_NAMES = {"neither": "neither", "rf_only": "Random Forest only", "miso_only": "MISO only", "both": "both"}


@dataclass(frozen=True)
class TaskMaps:
    """The two models' maps of one task.

    Attributes:
        task: Key of :data:`training.sites.CLASSES`.
        classes: What the bands are: ``present``, or the orders.
        shown: {model: (K, h, w) probabilities at reduced resolution, NaN where there is none}.
        extent_km: Width and height of the tile.
        pixel_km2: Area of a pixel of the files.
        pixels: Pixels with a value in both.
        disagreement: {name of the reading: Json}: areas of the four classes at stated thresholds.
        simulated: Whether a file says that it is of invented data.
    """

    task: str
    classes: Tuple[str, ...]
    shown: Dict[str, FloatArray]
    extent_km: Tuple[float, float]
    pixel_km2: float
    pixels: int
    disagreement: Dict[str, Json]
    simulated: bool


def read_maps(folder: Path) -> List[TaskMaps]:
    """Read all pairs of probability maps of a prediction's folder.

    Raises:
        InputError: If there is no pair, the two are not on one grid, or a file cannot be read.
    """
    found: List[TaskMaps] = []
    for task in CLASSES:
        paths = {model: Path(folder) / f"{task}_probability_{model}.tif" for model in PAIR}
        if all(path.is_file() for path in paths.values()):
            found.append(_read_task(task, paths))
    if not found:
        raise InputError(
            f'Folder of maps "{folder}"',
            "holds no probability maps of both models.",
            "Files such as nsp_probability_miso.tif and nsp_probability_rf.tif are needed.",
            "Name the folder that a prediction wrote.",
        )
    return found


def _read_task(task: str, paths: Dict[str, Path]) -> TaskMaps:
    try:
        with rasterio.open(paths[FOREST]) as forest, rasterio.open(paths[MISO]) as miso:
            readers = {FOREST: forest, MISO: miso}
            _same_grid(task, forest, miso)
            classes = ("present",) if forest.count == 1 else _bands(forest)
            pixel_km2 = abs(forest.transform.a * forest.transform.e) / 1e6
            shown = {model: _reduced(reader) for model, reader in readers.items()}
            areas, pixels = _binary_areas(readers) if forest.count == 1 else _order_areas(readers, classes)
            simulated = any(reader.tags().get("MISO_SIMULATED") == "yes" for reader in readers.values())
            extent = (forest.width * abs(forest.transform.a) / 1e3, forest.height * abs(forest.transform.e) / 1e3)
    except RasterioError as error:
        raise InputError(
            f'Maps of {TASK_TITLES[task]} in "{paths[MISO].parent}"',
            f"cannot be read ({error}).",
            "Rasters that a prediction wrote are needed.",
            "Make the maps again.",
        ) from error
    return TaskMaps(task, classes, shown, extent, pixel_km2, pixels, areas, simulated)


def _same_grid(task: str, first: DatasetReader, second: DatasetReader) -> None:
    same = first.shape == second.shape and first.count == second.count and first.crs == second.crs
    metric = first.crs is not None and first.crs.is_projected
    if same and metric and first.transform.almost_equals(second.transform, 1e-6):
        return
    raise InputError(
        f"Maps of {TASK_TITLES[task]}",
        "of the two models differ in grid or bands, or have no CRS in metres.",
        "Maps of one prediction are needed.",
        "Predict both models in one run.",
    )


def _bands(reader: DatasetReader) -> Tuple[str, ...]:
    orders = CLASSES["soil_order"]
    names = [next((o for o in orders if o.lower() in (d or "").lower()), "") for d in reader.descriptions]
    return tuple(name or f"band {i + 1}" for i, name in enumerate(names))


def _probabilities(values: np.ma.MaskedArray[Any, Any], dtype: str) -> FloatArray:
    scale = 0.01 if np.issubdtype(np.dtype(dtype), np.integer) else 1.0
    result: FloatArray = np.where(np.ma.getmaskarray(values), np.nan, values.data.astype(np.float64) * scale)
    return result


def _reduced(reader: DatasetReader) -> FloatArray:
    factor = max(1.0, max(reader.shape) / SHOWN_PX)
    shape = (reader.count, max(1, round(reader.height / factor)), max(1, round(reader.width / factor)))
    values = reader.read(out_shape=shape, resampling=Resampling.average, masked=True)
    return _probabilities(values, reader.dtypes[0])


def _blocks(readers: Dict[str, DatasetReader]) -> Iterator[Dict[str, FloatArray]]:
    height, width = next(iter(readers.values())).shape
    for row in range(0, height, _BLOCK_ROWS):
        window = Window(0, row, width, min(_BLOCK_ROWS, height - row))
        yield {
            model: _probabilities(reader.read(window=window, masked=True), reader.dtypes[0])
            for model, reader in readers.items()
        }


def _binary_areas(readers: Dict[str, DatasetReader]) -> Tuple[Dict[str, Json], int]:
    """Areas of the four classes at 0.5, and with the forest's threshold moved to MISO's area, from every pixel."""
    side = BINS + 1
    joint = np.zeros((side, side), dtype=np.int64)
    for block in _blocks(readers):
        rf, miso = block[FOREST][0], block[MISO][0]
        valid = np.isfinite(rf) & np.isfinite(miso)
        # The shift keeps float32 values of whole thousandths on the upper side of their edge.
        rows, columns = (np.clip((v[valid] + 1e-6) * BINS, 0, BINS).astype(np.int64) for v in (rf, miso))
        joint += np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)
    total = int(joint.sum())
    half = round(HALF * BINS)
    areas = {"half": _four(joint, half, half)}
    target = int(joint[:, half:].sum())
    if 0 < target < total:
        above = np.cumsum(joint.sum(axis=1)[::-1])[::-1]  # pixels at or above each step of the forest
        areas["equal_area"] = _four(joint, int(np.abs(above - target).argmin()), half)
    return areas, total


def _four(joint: NDArray[np.int64], rf: int, miso: int) -> Json:
    cells = (joint[:rf, :miso], joint[rf:, :miso], joint[:rf, miso:], joint[rf:, miso:])
    counts = {name: int(cell.sum()) for name, cell in zip(DISAGREEMENT_NAMES, cells)}
    return {"thresholds": {FOREST: rf / BINS, MISO: miso / BINS}, "pixels": counts}


def _order_areas(readers: Dict[str, DatasetReader], classes: Sequence[str]) -> Tuple[Dict[str, Json], int]:
    """Joint counts of the most probable order of both models, from every pixel."""
    count = len(classes)
    joint, total = np.zeros((count, count), dtype=np.int64), 0
    for block in _blocks(readers):
        valid = np.isfinite(block[FOREST]).all(axis=0) & np.isfinite(block[MISO]).all(axis=0)
        best = [block[model][:, valid].argmax(axis=0) for model in PAIR]
        joint += np.bincount(best[0] * count + best[1], minlength=count**2).reshape(count, count)
        total += int(valid.sum())
    result: Dict[str, Json] = {}
    for k, name in enumerate(classes):
        both, rf, miso = int(joint[k, k]), int(joint[k].sum()), int(joint[:, k].sum())
        counts = (total - rf - miso + both, rf - both, miso - both, both)
        result[name] = {"pixels": dict(zip(DISAGREEMENT_NAMES, counts))}
    return result, total


def maps_json(maps: Sequence[TaskMaps]) -> List[Json]:
    """Return areas as JSON, in km2."""
    return [
        {
            "task": one.task,
            "extent_km": [number(v) for v in one.extent_km],
            "area_km2": number(one.pixels * one.pixel_km2),
            "disagreement_km2": {
                reading: {
                    **({"thresholds": found["thresholds"]} if "thresholds" in found else {}),
                    **{name: number(count * one.pixel_km2) for name, count in found["pixels"].items()},
                }
                for reading, found in one.disagreement.items()
            },
        }
        for one in maps
    ]


# --- pictures ---


@styled
def draw(maps: TaskMaps) -> List[Tuple[str, Picture]]:
    """Return captions and pictures of one task: one for permafrost, one per chosen order."""
    if maps.classes == ("present",):
        return [_draw_binary(maps)]
    return [_draw_order(maps, k) for k in _chosen_orders(maps)]


def _chosen_orders(maps: TaskMaps) -> List[int]:
    """Return the paper's two orders where the maps call anything so, then those with the largest disagreement."""

    def differing(k: int) -> int:
        found = maps.disagreement[maps.classes[k]]["pixels"]
        return int(found["rf_only"] + found["miso_only"])

    mapped = [
        k for k in range(len(maps.classes)) if maps.pixels - maps.disagreement[maps.classes[k]]["pixels"]["neither"]
    ]
    first = [k for name in PAPER_ORDERS for k in mapped if maps.classes[k] == name]
    rest = sorted((k for k in mapped if k not in first), key=differing, reverse=True)
    return (first + rest)[:SHOWN_ORDERS]


def _draw_binary(maps: TaskMaps) -> Tuple[str, Picture]:
    forest, miso = maps.shown[FOREST][0], maps.shown[MISO][0]
    readings = [name for name in ("half", "equal_area") if name in maps.disagreement]
    aspect = maps.extent_km[1] / maps.extent_km[0]
    figure, panels = canvas(WIDTH_IN, 0.9 + 2 * 3.0 * min(max(aspect, 0.4), 1.6), 2, 2)
    shown = _probability(panels[0], forest, f"{title_of(FOREST)}", maps)
    _probability(panels[1], miso, title_of(MISO), maps)
    figure.colorbar(shown, ax=panels, label="probability of permafrost within 1 m", shrink=0.5)
    for axes, name in zip(panels[2:], readings):
        limits = maps.disagreement[name]["thresholds"]
        title = "disagreement at 0.5" if name == "half" else f"at equal mapped area (forest at {limits[FOREST]:.3f})"
        _classes(axes, forest >= limits[FOREST], miso >= limits[MISO], np.isfinite(forest + miso), title, maps)
    for axes in panels[2 + len(readings) :]:
        axes.set_axis_off()
    figure.legend(handles=_class_handles(), loc="outside lower center", ncols=4)
    words = "; ".join(f"{_reading(name)}: {_areas(maps, name)}" for name in readings)
    caption = (
        f"Near-surface permafrost on {maps.extent_km[0]:,.1f} x {maps.extent_km[1]:,.1f} km; {words}. Areas are "
        "counted on every pixel, the picture shows averages."
    )
    return caption, picture(figure, "Permafrost maps of both models and where they disagree.", "png")


def _reading(name: str) -> str:
    return "at 0.5" if name == "half" else "at equal mapped area"


def _areas(maps: TaskMaps, name: str) -> str:
    found = maps.disagreement[name]["pixels"]
    total = max(maps.pixels, 1)
    return ", ".join(
        f"{_NAMES[key]} {found[key] * maps.pixel_km2:,.1f} km² ({100 * found[key] / total:.1f} %)"
        for key in ("both", "miso_only", "rf_only")
    )


def _draw_order(maps: TaskMaps, k: int) -> Tuple[str, Picture]:
    forest, miso, order = maps.shown[FOREST][k], maps.shown[MISO][k], maps.classes[k]
    aspect = maps.extent_km[1] / maps.extent_km[0]
    figure, panels = canvas(WIDTH_IN, 1.1 + 2.2 * min(max(aspect, 0.4), 1.6), 1, 3)
    shown = _probability(panels[0], forest, title_of(FOREST), maps)
    _probability(panels[1], miso, title_of(MISO), maps)
    figure.colorbar(
        shown, ax=panels[:2], label=f"probability of {order}", orientation="horizontal", shrink=0.7, aspect=40
    )
    best = [np.argmax(np.nan_to_num(maps.shown[model], nan=-1.0), axis=0) == k for model in PAIR]
    _classes(panels[2], best[0], best[1], np.isfinite(forest + miso), "most probable order", maps)
    figure.legend(handles=_class_handles(), loc="outside lower center", ncols=4)
    caption = f"{order}: {_areas(maps, order)}, where the most probable order is {order}."
    return caption, picture(figure, f"Maps of {order} by both models and where they disagree.", "png")


def _probability(axes: Axes, values: FloatArray, title: str, maps: TaskMaps) -> Any:  # noqa: ANN401
    extent = (0.0, maps.extent_km[0], 0.0, maps.extent_km[1])
    shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, extent=extent, interpolation="nearest")
    _frame(axes, title)
    return shown


def _classes(
    axes: Axes, rf: NDArray[np.bool_], miso: NDArray[np.bool_], valid: NDArray[np.bool_], title: str, maps: TaskMaps
) -> None:
    codes = np.ma.masked_where(~valid, rf.astype(int) + 2 * miso.astype(int))
    colours = ListedColormap([_hex(code) for code in range(4)])
    extent = (0.0, maps.extent_km[0], 0.0, maps.extent_km[1])
    axes.imshow(codes, cmap=colours, norm=BoundaryNorm(np.arange(-0.5, 4), 4), extent=extent, interpolation="nearest")
    _frame(axes, title)


def _frame(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.grid(visible=False)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("km", fontsize=7)


def _hex(code: int) -> str:
    red, green, blue, _ = DISAGREEMENT_COLOURS[code]
    return f"#{red:02X}{green:02X}{blue:02X}"


def _class_handles() -> List[Patch]:
    return [Patch(color=_hex(code), label=_NAMES[name]) for code, name in enumerate(DISAGREEMENT_NAMES)]
