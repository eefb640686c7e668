"""A contact sheet of a simulated landscape, to judge it by eye. Needs matplotlib, which the engine does not have."""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pyogrio
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window
from scipy import ndimage

from .simulated_alaska import ACCESS, SENTENCE, SITES
from .simulated_alaska_truth import NODATA, ORDERS

# Colours of the NRCS map of global soil regions.
ORDER_COLOURS = {
    "Andisols": "#ff00c5",
    "Entisols": "#ffaa00",
    "Gelisols": "#6677cd",
    "Histosols": "#895a44",
    "Inceptisols": "#d7d79e",
    "Mollisols": "#267300",
    "Spodosols": "#c29ed7",
}
ROUTE_COLOURS = {"river": "#3a7ebf", "road": "#b02020", "trail": "#222222"}
SITE_COLOURS = {"": ("no NSP label", "#777777"), "0": ("absent", "#e69f00"), "1": ("present", "#0072b2")}
CLOSE_PX = 130  # side of the close-ups: 1.3 km
LARGEST_PX = 1000  # overviews are read at no more than this


def picture(folder: Path, path: Path, width_in: float = 16.0, dpi: int = 100, colours: int = 0) -> None:
    """Draw true colour, relief, truth, surveys and two close-ups of a landscape into one PNG.

    Args:
        folder: What :func:`training.simulated_alaska.simulate_alaska` has written.
        path: PNG to write, whole or not at all.
        width_in: Width in inches.
        dpi: Pixels per inch.
        colours: At most so many colours, for a small file; 0 keeps all.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    folder, path = Path(folder), Path(path)
    figure, panels = plt.subplots(2, 4, figsize=(width_in, width_in * 0.60), layout="constrained")
    water = ListedColormap(["#cfe3f2"])
    shade, extent = _shade(folder)
    nsp, order = _overview(folder / "truth_nsp.tif", 1), _overview(folder / "truth_soil_order.tif", 1)
    wet = np.where(nsp == NODATA, 1.0, np.nan)
    true, false = _colours(folder, (1, 2, 3)), _colours(folder, (8, 7, 1))
    panels[0, 0].imshow(true, extent=extent)
    panels[0, 0].set_title("True colour")
    panels[0, 1].imshow(false, extent=extent)
    panels[0, 1].set_title("SWIR 1, near infrared, red")
    panels[0, 2].imshow(shade, cmap="gray", vmin=0, vmax=1, extent=extent)
    _surveys(folder, panels[0, 2])
    panels[0, 2].set_title("Relief, access and sites")
    blank = np.where(nsp == NODATA, np.nan, nsp.astype(float))
    panels[1, 0].imshow(blank, cmap=ListedColormap(["#eeeeee", "#0072b2"]), interpolation="nearest", extent=extent)
    panels[1, 0].imshow(wet, cmap=water, interpolation="nearest", extent=extent)
    panels[1, 0].set_title("Near-surface permafrost (NSP), truth")
    kinds_map = ListedColormap([ORDER_COLOURS[name] for name in ORDERS])
    kinds = np.where(order == NODATA, np.nan, order.astype(float))
    panels[1, 1].imshow(kinds, cmap=kinds_map, vmin=-0.5, vmax=6.5, interpolation="nearest", extent=extent)
    panels[1, 1].imshow(wet, cmap=water, interpolation="nearest", extent=extent)
    panels[1, 1].set_title("Soil order, truth")
    chance = _overview(folder / "truth_nsp_probability.tif", 1)
    panels[1, 2].imshow(np.where(chance < 0, np.nan, chance), cmap="cividis", vmin=0, vmax=1, extent=extent)
    panels[1, 2].imshow(wet, cmap=water, interpolation="nearest", extent=extent)
    panels[1, 2].set_title("NSP, true probability (yellow 1)")
    entries = {**ORDER_COLOURS, **{f"site: {kind}": colour for kind, colour in SITE_COLOURS.values()}}
    handles = [Patch(color=colour, label=name) for name, colour in {**entries, **ROUTE_COLOURS}.items()]
    figure.legend(handles=handles, loc="outside lower center", ncol=7, frameon=False)
    for panel, (title, window) in zip((panels[0, 3], panels[1, 3]), _close_ups(folder)):
        with rasterio.open(folder / "sentinel2.tif") as source:
            panel.imshow(_stretched(source.read((1, 2, 3), window=window)), interpolation="nearest")
        panel.set_title(title)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    figure.suptitle(SENTENCE, fontsize=13)
    handle, part = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part.png", dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(part, dpi=dpi, metadata={"Software": None, "Description": SENTENCE})
        if colours:
            from PIL import Image  # matplotlib brings it

            with Image.open(part) as image:
                full = image.convert("RGB")
            # Rare colours (a road) must keep their own; what lies between two is dithered.
            few = full.quantize(palette=full.quantize(colours, Image.Quantize.MAXCOVERAGE))
            few.save(part, optimize=True)
        os.chmod(part, 0o644)  # mkstemp makes it private
        os.replace(part, path)
    finally:
        plt.close(figure)
        Path(part).unlink(missing_ok=True)


def _overview(path: Path, band: int) -> NDArray[Any]:
    with rasterio.open(path) as source:
        step = max(-(-source.height // LARGEST_PX), 1)
        cells: NDArray[Any] = source.read(band)[::step, ::step]
    return cells


def _stretched(bands: NDArray[Any]) -> NDArray[Any]:
    limits = np.asarray([1350.0, 1250.0, 1000.0])[:, None, None]
    picture: NDArray[Any] = np.clip(bands / limits, 0, 1).transpose(1, 2, 0) ** 0.65
    return picture


def _colours(folder: Path, bands: Tuple[int, int, int]) -> NDArray[Any]:
    cells = np.stack([_overview(folder / "sentinel2.tif", band) for band in bands]).astype(float)
    if bands == (1, 2, 3):
        return _stretched(cells)
    limits = np.asarray([3300.0, 4000.0, 1500.0])[:, None, None]
    picture: NDArray[Any] = np.clip(cells / limits, 0, 1).transpose(1, 2, 0)
    return picture


def _shade(folder: Path) -> Tuple[NDArray[Any], Tuple[float, float, float, float]]:
    with rasterio.open(folder / "dem.tif") as source:
        elevation, bounds = source.read(1).astype(float), source.bounds
    southwards, eastwards = np.gradient(elevation, 10.0)
    length = np.sqrt(1 + (2 * southwards) ** 2 + (2 * eastwards) ** 2)
    # Twice as steep as it is, lit from the north-west at 45 degrees.
    light = (2 * eastwards * 0.5 + 2 * southwards * 0.5 + 0.707) / length
    step = max(-(-light.shape[0] // LARGEST_PX), 1)
    return np.clip(light, 0, 1)[::step, ::step], (bounds.left, bounds.right, bounds.bottom, bounds.top)


def _surveys(folder: Path, panel: Any) -> None:  # noqa: ANN401  # reason: matplotlib is imported late
    _, _, shapes, fields = pyogrio.raw.read(folder / ACCESS)
    for line, kind in zip(shapely.from_wkb(shapes), fields[0]):
        x, y = shapely.get_coordinates(line).T
        panel.plot(x, y, color=ROUTE_COLOURS.get(kind, "black"), linewidth=1.0)
    with (folder / SITES).open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    for value, (_, colour) in SITE_COLOURS.items():
        chosen = [(float(row["x"]), float(row["y"])) for row in rows if row["nsp"] == value]
        if chosen:
            x, y = zip(*chosen)
            panel.scatter(x, y, s=2.0, color=colour, linewidths=0)


def _close_ups(folder: Path) -> List[Tuple[str, Window]]:
    """Windows where fine texture is strongest: on level low ground, and on slopes."""
    with rasterio.open(folder / "sentinel2.tif") as source:
        red = source.read(1).astype(float)
    with rasterio.open(folder / "dem.tif") as source:
        elevation = source.read(1).astype(float)
    with rasterio.open(folder / "truth_nsp.tif") as source:
        land = (source.read(1) != NODATA).astype(float)
    side = min(CLOSE_PX, red.shape[0])
    fine = np.abs(red - ndimage.uniform_filter(red, 3)) / red
    slope = np.hypot(*np.gradient(ndimage.gaussian_filter(elevation, 3), 10.0))
    found = []
    for title, suits in (("Close-up: lowland, 1.3 km", slope < 0.02), ("Close-up: slope, 1.3 km", slope > 0.07)):
        score = ndimage.uniform_filter(np.minimum(fine, 0.2) * suits * land, side)
        inner = score[side // 2 : score.shape[0] - side // 2, side // 2 : score.shape[1] - side // 2]
        row, column = np.unravel_index(int(inner.argmax()), inner.shape)
        found.append((title, Window(int(column), int(row), side, side)))
    return found
