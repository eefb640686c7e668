"""Simulated Alaska: a landscape with all 19 channels, surveys, and the truth, as a folder that training can use.

Owns the order of things, the files, and their description. The parts: ``simulated_alaska_relief`` (ground and water),
``simulated_alaska_climate``, ``simulated_alaska_truth`` (causes, permafrost, soil orders),
``simulated_alaska_reflectance`` (image), ``simulated_alaska_survey`` (who dug where), ``simulated_alaska_picture``.

Causes, fixed before the code was written and never adjusted to a model's score (docs/simulated-landscape.md has the
table): the logit of near-surface permafrost is one half shade, cold, wetness and floodplain, which covariates tell, and
one half polygonal ground, water tracks, shores and fire scars, which only the image's pattern tells. Classes are drawn
cell by cell, so the best possible scores are known and are written to ``summary.json``.

Each subject draws from its own stream of the seed, so that a change of one leaves the chance of the others as it was.
The same seed gives the same bytes on the same versions of the libraries. Runs in the engine's environment.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec, TerrainSpec
from miso_qgis.engine.messages import RasterSource
from miso_qgis.engine.terrain import tpi_statistics

from .dataset import FORMAT, Dataset, ObservationFile, write_dataset
from .simulated_alaska_climate import SOURCE_M, Climate, make_climate, make_exposure
from .simulated_alaska_reflectance import BANDS, HIGHEST, make_bands
from .simulated_alaska_relief import CELL_M, Relief, make_relief
from .simulated_alaska_survey import Survey, clustering, make_survey
from .simulated_alaska_truth import (
    NODATA,
    ORDERS,
    Truth,
    best_scores,
    draw_truth,
    logit_parts,
    make_patterns,
    nsp_probability,
    order_probability,
    order_scores,
)

CRS = "EPSG:3338"
# On the lines of the AKVEG grid, inside its tile AK050H047V012 (about 66.2 degrees north, 151.4 west) for areas up to
# 30 km. Nothing of that place is depicted.
LEFT, TOP = 115_005.0, 1_835_005.0
SMALLEST_KM, LARGEST_KM = 3.0, 30.0
LAND_CELLS = 300
FLOAT_NODATA = -9999.0
README, SUMMARY, SITES, ACCESS = "README.txt", "summary.json", "sites.csv", "access.gpkg"
SENTENCE = "SIMULATED landscape: everything in this folder is invented. Not for decisions."
LICENCE = "CC0-1.0"
TASKS = ("nsp", "soil_order")

CLIMATE: Tuple[Tuple[str, str, str, Tuple[float, float], Tuple[str, ...]], ...] = (
    ("precipitation_mm", "Annual precipitation", "mm", (0.0, 12000.0), ("precipitation", "ppt", "ppt_annual")),
    (
        "summer_warmth_c",
        "Summer warmth index (sum of the monthly mean temperatures, May to September)",
        "degC",
        (-130.0, 80.0),
        ("summer_warmth", "tmean_swi"),
    ),
    ("january_c", "January mean minimum temperature", "degC", (-60.0, 15.0), ("january", "tmin_january")),
)
CLIMATE_NAMES = {
    "precipitation_mm": "annual_precipitation",
    "summer_warmth_c": "summer_warmth_index",
    "january_c": "january_minimum_temperature",
}

Note = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What landscape to make.

    Attributes:
        seed: Seed of everything.
        side_km: Side of the square area, in steps of 10 m.
    """

    seed: int = 1
    side_km: float = 20.0

    def __post_init__(self) -> None:
        if not (SMALLEST_KM <= self.side_km <= LARGEST_KM and math.isfinite(self.side_km)):
            raise InputError(
                "Simulated landscape",
                f"a side of {self.side_km:g} km was asked for.",
                f"{SMALLEST_KM:g} to {LARGEST_KM:g} km are possible: less holds no survey, more needs too much memory.",
                "Choose another --side-km.",
            )
        if self.seed < 0:
            raise InputError(
                "Simulated landscape", f"the seed is {self.seed}.", "Seeds count from 0.", "Choose another --seed."
            )

    @property
    def side_px(self) -> int:
        """Side in cells."""
        return round(self.side_km * 1000.0 / CELL_M)

    @property
    def bounds(self) -> Tuple[float, float, float, float]:
        """xmin, ymin, xmax, ymax in EPSG:3338."""
        side = self.side_px * CELL_M
        return LEFT, TOP - side, LEFT + side, TOP

    def chance(self, subject: int) -> np.random.Generator:
        """Return a subject's own stream of random numbers."""
        return np.random.default_rng([self.seed, subject])


@dataclass(frozen=True)
class Landscape:
    """A landscape in memory; arrays (H, W) on 10 m."""

    settings: Settings
    relief: Relief
    climate: Climate
    bands: NDArray[np.uint16]
    truth: Truth
    survey: Survey


def make_landscape(settings: Settings, note: Optional[Note] = None) -> Landscape:
    """Make a landscape without writing it."""
    say = note or _nothing
    say("Relief: water erodes the hills")
    relief = make_relief(settings.chance(0), settings.side_px)
    climate, exposure = make_climate(settings.chance(1), relief), make_exposure(relief)
    patterns = make_patterns(settings.chance(2), relief, exposure)
    say("Surveys")
    survey = make_survey(settings.chance(3), relief, exposure)
    say("Truth: permafrost and soil orders")
    rows, columns = survey.cells
    parts = logit_parts(relief, climate, exposure, patterns)
    # A few cells of land keep a handful of sites in a small area from setting the shares of all of it.
    anywhere = settings.chance(6).choice(np.flatnonzero(relief.water < 0.5), LAND_CELLS)
    more_rows, more_columns = np.divmod(anywhere, settings.side_px)

    def shares_over(chosen: NDArray[np.bool_]) -> Tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.concatenate([rows[chosen], more_rows]), np.concatenate([columns[chosen], more_columns])

    present = nsp_probability(parts, shares_over(survey.has_nsp))
    with_order = shares_over(survey.has_order)
    orders = order_probability(order_scores(relief, climate, exposure, patterns), present, with_order)
    truth = draw_truth(settings.chance(4), relief, present, orders)
    say("Image")
    bands = make_bands(settings.chance(5), relief, climate, exposure, patterns)
    return Landscape(settings, relief, climate, bands, truth, survey)


def simulate_alaska(folder: Path, settings: Optional[Settings] = None, note: Optional[Note] = None) -> Dict[str, Any]:
    """Make a landscape and write it; the folder appears whole or not at all.

    Args:
        folder: Where to write: a new or an empty folder.
        settings: What to make.
        note: Told what is being done.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: If the folder holds something.
    """
    settings, folder = settings or Settings(), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f'Folder "{folder}"',
            "is not an empty folder." if folder.is_dir() else "is a file.",
            "A new or an empty folder is needed; nothing is overwritten.",
            "Choose another --out, or delete it first.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        landscape = make_landscape(settings, note)
        (note or _nothing)("Files")
        summary = _write_all(landscape, part)
        os.chmod(part, 0o755)  # mkdtemp makes it private
        if folder.exists():
            folder.rmdir()
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return summary


def _nothing(text: str) -> None:
    """Tell nobody."""


def _write_all(landscape: Landscape, folder: Path) -> Dict[str, Any]:
    _write_rasters(landscape, folder)
    _write_sites(landscape, folder / SITES)
    _write_access(landscape, folder / ACCESS)
    write_dataset(describe(landscape.settings, folder), folder)
    summary = summarise(landscape)
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(landscape.settings, summary), encoding="utf-8")
    return summary


def _write_rasters(landscape: Landscape, folder: Path) -> None:
    here = Affine(CELL_M, 0.0, LEFT, 0.0, -CELL_M, TOP)
    truth = landscape.truth
    order_percent = np.where(np.isnan(truth.order_probability), NODATA, np.rint(100 * truth.order_probability))
    bands = [(band.title, "reflectance x 10000") for band in BANDS]
    _write(folder / "sentinel2.tif", landscape.bands, None, here, bands)
    _write(folder / "dem.tif", landscape.relief.elevation[None], FLOAT_NODATA, here, [("Elevation", "m")])
    _write(folder / "truth_nsp.tif", truth.nsp[None], NODATA, here, [("Near-surface permafrost (1 present)", "")])
    probability = np.where(np.isnan(truth.nsp_probability), FLOAT_NODATA, truth.nsp_probability).astype(np.float32)
    title = "Probability from which near-surface permafrost was drawn"
    _write(folder / "truth_nsp_probability.tif", probability[None], FLOAT_NODATA, here, [(title, "1")])
    names = ", ".join(f"{code} {order}" for code, order in enumerate(ORDERS))
    _write(folder / "truth_soil_order.tif", truth.soil_order[None], NODATA, here, [(f"Soil order: {names}", "")])
    described = [(f"Probability of {order}", "%") for order in ORDERS]
    _write(folder / "truth_soil_order_probability.tif", order_percent.astype(np.uint8), NODATA, here, described)
    coarse = Affine(SOURCE_M, 0.0, LEFT - SOURCE_M, 0.0, -SOURCE_M, TOP + SOURCE_M)
    means = landscape.climate.coarse()
    for key, title, unit, _, _ in CLIMATE:
        _write(folder / f"{CLIMATE_NAMES[key]}.tif", means[key][None], FLOAT_NODATA, coarse, [(title, unit)])


def _write(
    path: Path,
    cells: NDArray[Any],
    nodata: Optional[float],
    transform: Affine,
    bands: Sequence[Tuple[str, str]],
) -> None:
    """Write (C, H, W) cells as a tiled, compressed GeoTIFF that says it is simulated."""
    predictor = 3 if cells.dtype.kind == "f" else 2
    profile: Dict[str, Any] = {"tiled": True, "blockxsize": 256, "blockysize": 256} if cells.shape[1] >= 256 else {}
    profile.update(compress="deflate", predictor=predictor, zlevel=6, num_threads=1)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=cells.shape[0],
        height=cells.shape[1],
        width=cells.shape[2],
        dtype=cells.dtype.name,
        crs=CRS,
        transform=transform,
        nodata=nodata,
        **profile,
    ) as sink:
        sink.write(cells)
        for index, (title, unit) in enumerate(bands, start=1):
            sink.set_band_description(index, f"SIMULATED {title}")
            if unit:
                sink.set_band_unit(index, unit)
        sink.update_tags(SIMULATED="yes", TIFFTAG_IMAGEDESCRIPTION=SENTENCE)


def site_table(landscape: Landscape) -> List[List[str]]:
    """Rows of sites.csv: id, x, y, date, nsp (0 or 1), soil_order (name); empty where nothing is recorded."""
    survey, truth = landscape.survey, landscape.truth
    x, y = LEFT + survey.column * CELL_M, TOP - survey.row * CELL_M
    rows = []
    for n, cell in enumerate(zip(*survey.cells)):
        nsp = str(truth.nsp[cell]) if survey.has_nsp[n] else ""
        order = ORDERS[truth.soil_order[cell]] if survey.has_order[n] else ""
        rows.append([f"SIM{n + 1:05d}", f"{x[n]:.2f}", f"{y[n]:.2f}", str(survey.date[n]), nsp, order])
    return rows


def _write_sites(landscape: Landscape, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(["id", "x", "y", "date", "nsp", "soil_order"])
        writer.writerows(site_table(landscape))


def _write_access(landscape: Landscape, path: Path) -> None:
    kinds = [kind for kind, _ in landscape.survey.routes]
    lines = [
        shapely.LineString(np.stack([LEFT + line[:, 1] * CELL_M, TOP - line[:, 0] * CELL_M], axis=1))
        for _, line in landscape.survey.routes
    ]
    # GeoPackage stores when it was written; the same seed is to give the same bytes.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": "2023-12-31T00:00:00.000Z"})
    try:
        pyogrio.raw.write(
            path,
            geometry=shapely.to_wkb(np.asarray(lines, dtype=object)),
            field_data=[np.asarray(kinds, dtype=object), np.asarray(["yes"] * len(kinds), dtype=object)],
            fields=["kind", "simulated"],
            layer="access",
            driver="GPKG",
            geometry_type="LineString",
            crs=CRS,
        )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def describe(settings: Settings, folder: Path) -> Dataset:
    """Describe the folder for training; ``dem.tif`` must be in it."""
    reflectance = {
        band.name: InputSpec(
            "continuous",
            band.title,
            "reflectance x 10000",
            (0.0, float(HIGHEST)),
            float(CELL_M),
            aliases=(band.name, band.title.split()[1].rstrip(",").lower()),
        )
        for band in BANDS
    }
    inputs = {
        **reflectance,
        "dem": InputSpec(
            "continuous",
            "Digital elevation model",
            "m",
            (-100.0, 6500.0),
            float(CELL_M),
            aliases=("dem", "elevation", "dtm"),
        ),
        **{
            CLIMATE_NAMES[key]: InputSpec("continuous", title, unit, legal, SOURCE_M, aliases=aliases)
            for key, title, unit, legal, aliases in CLIMATE
        },
    }
    sources = {band.name: RasterSource("sentinel2.tif", n) for n, band in enumerate(BANDS, start=1)}
    sources["dem"] = RasterSource("dem.tif")
    sources.update({name: RasterSource(f"{name}.tif") for name in CLIMATE_NAMES.values()})
    satellite = tuple(ChannelSpec(band.name, band.name, unit="reflectance x 10000") for band in BANDS)
    terrain = tuple(ChannelSpec(name, "dem", f"terrain.{name}", unit=unit) for name, unit in TERRAIN)
    climate = tuple(ChannelSpec(CLIMATE_NAMES[key], CLIMATE_NAMES[key], unit=unit) for key, _, unit, _, _ in CLIMATE)
    return Dataset(
        format=FORMAT,
        name="alaska-simulated",
        title=f"Simulated Alaska, seed {settings.seed}, {settings.side_km:g} km",
        simulated=True,
        licence=LICENCE,
        citation="Simulated; no observation of a real place is in it.",
        bounds=settings.bounds,
        inputs=inputs,
        sources=sources,
        groups=(GroupSpec("satellite", satellite), GroupSpec("covariates", terrain + climate)),
        observations=(ObservationFile(SITES, {}, CRS),),
        tasks=TASKS,
        crs=CRS,
        resolution_m=float(CELL_M),
        terrain=TerrainSpec(float(CELL_M), tpi_statistics(RasterSource(str(folder / "dem.tif")))),
        truth={"nsp": RasterSource("truth_nsp.tif"), "soil_order": RasterSource("truth_soil_order.tif")},
    )


# In the order of the paper's covariates, aspect first.
TERRAIN: Tuple[Tuple[str, str], ...] = (
    ("aspect_sin", "1"),
    ("aspect_cos", "1"),
    ("elevation", "m"),
    ("maximum_curvature", "1/m"),
    ("slope", "degree"),
    ("stream_power_index", "m2"),
    ("saga_wetness_index", "1"),
    ("topographic_position_index", "standard deviation"),
)


def summarise(landscape: Landscape) -> Dict[str, Any]:
    """Return figures of a landscape: shares, clustering, and the best scores that any model can reach."""
    survey, truth, settings = landscape.survey, landscape.truth, landscape.settings
    rows, columns = survey.cells
    with_nsp = (rows[survey.has_nsp], columns[survey.has_nsp])
    with_order = (rows[survey.has_order], columns[survey.has_order])
    land_rows, land_columns = np.nonzero(truth.nsp != NODATA)
    land = (land_rows, land_columns)
    area = (settings.side_px * CELL_M) ** 2

    def shares(at: Tuple[Any, Any]) -> Dict[str, float]:
        counts = np.bincount(truth.soil_order[at], minlength=len(ORDERS)) / max(len(at[0]), 1)
        return {order: round(100 * float(share), 2) for order, share in zip(ORDERS, counts)}

    def rounded(scores: Dict[str, float], digits: int = 2) -> Dict[str, float]:
        return {name: round(value, digits) for name, value in scores.items()}

    everywhere = best_scores(truth, land)
    at_sites = {"nsp": best_scores(truth, with_nsp)["nsp"], "soil_order": best_scores(truth, with_order)["soil_order"]}
    return {
        "simulated": True,
        "seed": settings.seed,
        "side_km": settings.side_km,
        "bounds": list(settings.bounds),
        "water_percent": round(100 * float((truth.nsp == NODATA).mean()), 2),
        "sites": {
            "all": survey.row.size,
            "with_nsp": int(survey.has_nsp.sum()),
            "with_soil_order": int(survey.has_order.sum()),
            "nsp_present_percent": round(100 * float((truth.nsp[with_nsp] == 1).mean()), 2),
            "soil_order_percent": shares(with_order),
            "clustering": rounded(clustering(survey.column * CELL_M, survey.row * CELL_M, area), 3),
        },
        "land": {
            "nsp_present_percent": round(100 * float((truth.nsp[land] == 1).mean()), 2),
            "soil_order_percent": shares(land),
        },
        "best_possible_percent": {
            "everywhere": {task: rounded(scores) for task, scores in everywhere.items()},
            "at_sites": {task: rounded(scores) for task, scores in at_sites.items()},
        },
    }


def _readme(settings: Settings, summary: Dict[str, Any]) -> str:
    sites, best = summary["sites"], summary["best_possible_percent"]
    scores = "\n".join(
        f"  {task}, {where.replace('_', ' ')}: " + "  ".join(f"{name} {value:.1f}" for name, value in part.items())
        for where, tasks in best.items()
        for task, part in tasks.items()
    )
    return f"""{SENTENCE}

Seed {settings.seed}, {settings.side_km:g} x {settings.side_km:g} km, EPSG:3338, 10 m. Made by:
  python -m training simulate --alaska --out FOLDER --seed {settings.seed} --side-km {settings.side_km:g}

dataset.json                       describes the folder for training
sentinel2.tif                      nine bands (R G B RE1 RE2 RE3 NIR SWIR1 SWIR2), midsummer, reflectance x 10000
dem.tif                            elevation, m
annual_precipitation.tif           mm, 800 m
summer_warmth_index.tif            degC, sum of the monthly means of May to September, 800 m
january_minimum_temperature.tif    degC, 800 m
sites.csv                          observations: id, x, y (EPSG:3338), date, nsp (0 absent, 1 present), soil_order
access.gpkg                        river, road and trails that the surveys followed
truth_nsp.tif                      0 absent, 1 present, 255 open water
truth_nsp_probability.tif          from which it was drawn, nodata -9999
truth_soil_order.tif               {", ".join(f"{n} {order}" for n, order in enumerate(ORDERS))}; 255 open water
truth_soil_order_probability.tif   per cent by order, 255 open water
summary.json                       shares, clustering, best possible scores

{sites["all"]} sites, {sites["with_nsp"]} with NSP ({sites["nsp_present_percent"]:.1f} % present), \
{sites["with_soil_order"]} with a soil order.
Best scores that any model can reach here, in per cent (it would have to know the true probabilities):
{scores}

Each cell's class was drawn by itself, so a map of the truth is speckled where its probability is near one half.
Causes: docs/simulated-landscape.md of the project. Licence: {LICENCE}.
"""
