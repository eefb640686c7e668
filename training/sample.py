"""The sample project of the demo: real rasters of the watershed where they can be had, else the simulated valley.

Owns the choice and the sentence that says which it was. Runs in the engine's environment.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional

import numpy as np
import pyogrio
import rasterio
import rasterio.features
import shapely
import shapely.geometry

from miso_qgis.engine.errors import InputError

from . import simulation, watershed

KIND_WATERSHED = "watershed"
KIND_SIMULATED = "simulated"


@dataclass(frozen=True)
class Sample:
    """A prepared sample.

    Attributes:
        paths: ``dem``, ``nlcd``, ``aoi`` and ``description`` (sample.json).
        kind: ``watershed`` or ``simulated``.
        sentence: Which data these are and why, for the user.
    """

    paths: Dict[str, Path]
    kind: str
    sentence: str


def prepare_sample(folder: Path, cache: Optional[Path] = None, base_url: str = watershed.SOURCE_URL) -> Sample:
    """Write ``dem.tif``, ``nlcd.tif``, ``aoi.gpkg`` and ``sample.json`` into ``folder``.

    The area of interest is the outline of the watershed's cells, half a cell wider (the published boundary polygon cuts
    some of them off), or the simulated valley's box. Each file is written under another name first and renamed when
    whole; sample.json comes last.

    Args:
        folder: Where to write; made if it is missing. Files of an earlier sample are replaced.
        cache: Where downloads are kept, by default ``watershed`` in the checkout's ``.cache``.
        base_url: Where the watershed's public source is served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"dem": folder / "dem.tif", "nlcd": folder / "nlcd.tif", "aoi": folder / "aoi.gpkg"}
    description = folder / "sample.json"
    description.unlink(missing_ok=True)
    cache = cache or Path(__file__).resolve().parents[1] / ".cache" / "watershed"
    try:
        found = watershed.find_watershed(cache, base_url=base_url)
    except InputError as error:
        kind, sentence = KIND_SIMULATED, _why_simulated(error)
        simulation.simulate_valley(folder)
        _place(paths["aoi"], lambda part: _write_box(paths["dem"], part))
    else:
        kind, sentence = KIND_WATERSHED, _which_watershed(found)
        for name, source in (("dem", found.dem), ("nlcd", found.nlcd)):
            _place(paths[name], lambda part, source=source: shutil.copyfile(source, part))  # type: ignore[misc]
        _place(paths["aoi"], lambda part: _write_outline(found.dem, part))
    names = {name: path.name for name, path in paths.items()}
    text = json.dumps({"kind": kind, "source": sentence, **names}, indent=1, ensure_ascii=False)
    _place(description, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    return Sample({**paths, "description": description}, kind, sentence)


def _which_watershed(found: watershed.Watershed) -> str:
    where = "found beside the checkout" if found.source == "sibling" else "downloaded from its public source"
    return f"Caribou-Poker Creeks watershed near Fairbanks, 50 m, {where}."


def _why_simulated(error: InputError) -> str:
    problem = error.problems[0]
    return (
        f"{simulation.SENTENCE} The watershed's data are not beside the checkout and could not be downloaded "
        f"({problem.what} {problem.found.rstrip('.')})."
    )


def _place(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name (same suffix), then rename it to ``path``."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.unlink(missing_ok=True)
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write_box(dem: Path, path: Path) -> None:
    with rasterio.open(dem) as source:
        _write_polygon(shapely.geometry.box(*source.bounds), source.crs.to_string(), path)


def _write_outline(dem: Path, path: Path) -> None:
    """Outline of all cells with data and half a cell around them, without holes."""
    with rasterio.open(dem) as source:
        valid = (source.read(1) != source.nodata).astype(np.uint8)
        shapes = rasterio.features.shapes(valid, mask=valid == 1, transform=source.transform)
        # Half a cell joins cells that touch at a corner only, so that one polygon is left.
        cells = [shapely.geometry.shape(shape).buffer(source.res[0] / 2, join_style="mitre") for shape, _ in shapes]
        merged = shapely.unary_union(cells)
        largest = max(shapely.get_parts(merged), key=lambda polygon: polygon.area)
        _write_polygon(shapely.geometry.Polygon(largest.exterior), source.crs.to_string(), path)


def _write_polygon(polygon: shapely.geometry.Polygon, crs: str, path: Path) -> None:
    pyogrio.raw.write(
        path,
        np.asarray([shapely.to_wkb(polygon)], dtype=object),
        [np.asarray(["area of interest"], dtype=object)],
        ["name"],
        layer="aoi",
        driver="GPKG",
        geometry_type="Polygon",
        crs=crs,
    )
