"""The simulated landscape's truth: near-surface permafrost and soil order of every cell, and how they come about.

The causes are written in docs/simulated-landscape.md and were fixed there before any model was fitted. Half of them
(A) a covariate or a single pixel can tell; the other half (B) only the spatial pattern of the image shows. Each class
is drawn independently, so the probability from which it was drawn is the best prediction that there can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from .simulated_alaska_climate import Climate, Exposure
from .simulated_alaska_relief import (
    CELL_M,
    OLD_BASIN,
    YOUNG_BASIN,
    BoolArray,
    FloatArray,
    Generator,
    Relief,
    smooth_noise,
)
from .sites import CLASSES

ByteArray = NDArray[np.uint8]

NODATA = 255
ORDERS = CLASSES["soil_order"]
NSP_SHARE = 0.227  # of labelled sites, as in the paper
DECISIVENESS = 8.0
# The paper's best accuracy with random folds is 66 %: real orders are not much better determined than this makes them.
ORDER_DECISIVENESS = 1.7
TALIK_M = 60.0
YEAR = 2023  # the landscape is as it was in this year
FIRE_FADES_Y = 40.0

# Weights of the causes, each of which has standard deviation 1 over the land.
CAUSES_COVARIATES: Mapping[str, float] = {
    "shade": 1.0,
    "cool summer": 0.8,
    "cold winter": 0.5,
    "wet ground": 0.7,
    "floodplain": -1.2,
    "steep": -0.4,
}
CAUSES_PATTERN: Mapping[str, float] = {"polygons": 1.2, "water tracks": 1.0, "thawed shore": -1.2, "fire": -1.0}

# P(order | permafrost present), and P(Gelisols | absent).
ORDERS_PRESENT: Mapping[str, float] = {"Gelisols": 0.92, "Inceptisols": 0.05, "Histosols": 0.03}
GELISOLS_ABSENT = 0.015
# Shares of the labelled sites that the other orders get; Inceptisols take what is left.
ORDER_SHARES: Mapping[str, float] = {
    "Andisols": 0.06,
    "Entisols": 0.09,
    "Histosols": 0.08,
    "Mollisols": 0.015,
    "Spodosols": 0.18,
}


@dataclass(frozen=True)
class Patterns:
    """What chance adds to the relief, (H, W) float32 in [0, 1] unless said otherwise.

    Attributes:
        polygons: How far the ground is patterned by ice-wedge polygons (0 off the lowland's terrace).
        polygon_room: Where polygons could be: the terrace.
        tracks: How far water tracks pattern the slope.
        track_room: Where water tracks could be: gentle slopes of the hills.
        fire: Effect of the last fire, fading with its age.
        fire_age_y: Years since the last fire; infinite where none is known.
        ash: Cover of volcanic ash.
        silt: Thickness of silt, mean 0 and standard deviation 1.
    """

    polygons: FloatArray
    polygon_room: FloatArray
    tracks: FloatArray
    track_room: FloatArray
    fire: FloatArray
    fire_age_y: FloatArray
    ash: FloatArray
    silt: FloatArray


@dataclass(frozen=True)
class Truth:
    """What is the case in every cell of 10 m, (H, W); open water has no soil.

    Attributes:
        nsp: 1 present, 0 absent, 255 open water.
        nsp_probability: From which it was drawn, float32; NaN on open water.
        soil_order: Index into ``CLASSES["soil_order"]``, 255 on open water.
        order_probability: Of each order, whatever NSP is, (7, H, W) float32; NaN on open water.
    """

    nsp: ByteArray
    nsp_probability: FloatArray
    soil_order: ByteArray
    order_probability: FloatArray


def make_patterns(generator: Generator, relief: Relief, exposure: Exposure) -> Patterns:
    """Draw polygonal ground, water tracks, fires, ash and silt."""
    shape = relief.elevation.shape
    room = relief.lowland * (1 - relief.floodplain) * (1 - relief.water)
    polygons = expit(5 * smooth_noise(generator, shape, 55))
    polygons[relief.basin == YOUNG_BASIN] = 0.0
    polygons[relief.basin == OLD_BASIN] = 1.0
    slope = ndimage.gaussian_filter(exposure.slope_deg, 4.0)
    track_room = (1 - relief.lowland) * np.clip((slope - 1.5) / 2, 0, 1) * np.clip((19 - slope) / 5, 0, 1)
    tracks = expit(5 * smooth_noise(generator, shape, 55))
    fire, age = _fires(generator, relief, exposure)
    side = max(shape)
    ash = expit(2.5 * (smooth_noise(generator, shape, side / 2.5) - 0.3))
    silt = smooth_noise(generator, shape, max(side / 8, 30)) + np.float32(0.8) * relief.lowland
    return Patterns(
        polygons=(ndimage.gaussian_filter(polygons, 1.5) * room).astype(np.float32),
        polygon_room=room.astype(np.float32),
        tracks=(tracks * track_room).astype(np.float32),
        track_room=track_room.astype(np.float32),
        fire=fire,
        fire_age_y=age,
        ash=ash.astype(np.float32),
        silt=((silt - silt.mean()) / silt.std()).astype(np.float32),
    )


def _fires(generator: Generator, relief: Relief, exposure: Exposure) -> Tuple[FloatArray, FloatArray]:
    """Burn patches of some square kilometres with ragged edges and islands; returns effect and age in years."""
    shape = relief.elevation.shape
    effect, age = np.zeros(shape, dtype=np.float32), np.full(shape, np.inf, dtype=np.float32)
    rows, columns = np.indices(shape, dtype=np.float32)
    km2 = shape[0] * shape[1] * CELL_M**2 / 1e6
    wet = ndimage.gaussian_filter(exposure.wetness, 6.0)
    wet = (wet - wet.mean()) / wet.std()
    # Later fires burn over earlier ones.
    for year in np.sort(generator.integers(1948, YEAR - 3, max(round(km2 / 30.0), 1))):
        heading, long_m = generator.uniform(0, math.pi), 1400.0 * math.exp(0.45 * generator.standard_normal())
        long_px, wide_px = long_m / CELL_M, long_m * generator.uniform(0.4, 0.8) / CELL_M
        y = rows - np.float32(generator.uniform(0, shape[0]))
        x = columns - np.float32(generator.uniform(0, shape[1]))
        along = (x * math.cos(heading) + y * math.sin(heading)) / long_px
        across = (y * math.cos(heading) - x * math.sin(heading)) / wide_px
        ragged = 0.45 * smooth_noise(generator, shape, 60) + 0.25 * smooth_noise(generator, shape, 16)
        depth = 1 - np.sqrt(along**2 + across**2) + 0.55 * ragged - 0.12 * wet
        burnt = (depth > 0) & (relief.floodplain < 0.5) & (relief.water < 0.5)
        effect[burnt] = math.exp(-(YEAR - int(year)) / FIRE_FADES_Y)
        age[burnt] = YEAR - int(year)
    return ndimage.gaussian_filter(effect, 0.8).astype(np.float32), age


def logit_parts(
    relief: Relief, climate: Climate, exposure: Exposure, patterns: Patterns
) -> Tuple[FloatArray, FloatArray]:
    """Return A (covariates) and B (pattern) of the module's table, each mean 0 and standard deviation 1 over land."""
    land = relief.water < 0.5
    near_river = relief.floodplain * (0.4 + 0.6 * np.exp(-relief.river_distance_m / 400.0))
    covariates = {
        "shade": -exposure.sun,
        "cool summer": -climate.summer_warmth_c,
        "cold winter": -climate.january_c,
        "wet ground": np.clip(standardised(exposure.wetness, land), -2, 2),
        "floodplain": near_river,
        "steep": np.clip(exposure.slope_deg, 0, 30) ** 2,
    }
    pattern = {
        "polygons": 2 * patterns.polygons - patterns.polygon_room,
        "water tracks": 2 * patterns.tracks - patterns.track_room,
        "thawed shore": np.exp(-relief.shore_distance_m / TALIK_M),
        "fire": patterns.fire,
    }
    return _weighted(covariates, CAUSES_COVARIATES, land), _weighted(pattern, CAUSES_PATTERN, land)


def _weighted(causes: Mapping[str, NDArray[Any]], weights: Mapping[str, float], land: BoolArray) -> FloatArray:
    total = sum(weights[name] * standardised(causes[name], land) for name in weights)
    return standardised(np.asarray(total), land)


def standardised(values: NDArray[Any], land: BoolArray) -> FloatArray:
    """Shift and scale to mean 0 and standard deviation 1 over ``land``; 0 where nothing varies."""
    mean, spread = values[land].mean(dtype=np.float64), values[land].std(dtype=np.float64)
    result: FloatArray = ((values - mean) / (spread if spread > 1e-9 else 1.0)).astype(np.float32)
    return result


def nsp_probability(parts: Tuple[FloatArray, FloatArray], at: Tuple[NDArray[Any], NDArray[Any]]) -> FloatArray:
    """Probability of NSP whose mean over the cells ``at`` (rows, columns) is :data:`NSP_SHARE`, (H, W)."""
    logit = np.float32(DECISIVENESS / math.sqrt(2.0)) * (parts[0] + parts[1])
    here = logit[at].astype(np.float64)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(here + middle).mean() < NSP_SHARE else (low, middle)
    probability: FloatArray = expit(logit + np.float32(low)).astype(np.float32)
    return probability


def order_scores(relief: Relief, climate: Climate, exposure: Exposure, patterns: Patterns) -> Dict[str, FloatArray]:
    """How well each place suits each order where there is no permafrost, without the orders' overall shares."""
    land = relief.water < 0.5
    sun, wet, rain, warm, slope = (
        np.clip(standardised(values, land), -2.5, 2.5)
        for values in (
            exposure.sun,
            exposure.wetness,
            climate.precipitation_mm,
            climate.summer_warmth_c,
            exposure.slope_deg,
        )
    )
    near_river = relief.floodplain * np.exp(-relief.river_distance_m / np.float32(450.0))
    gentle = np.exp(-((exposure.slope_deg - 9.0) ** 2) / np.float32(72.0))
    shore = np.exp(-relief.shore_distance_m / np.float32(TALIK_M))
    young = ndimage.gaussian_filter((relief.basin == YOUNG_BASIN).astype(np.float32), 1.0)
    unburnt = 1 - np.minimum(patterns.fire * 2, 1)
    high = np.clip(-warm, 0, 2.5)
    scores = {
        "Andisols": 4.5 * patterns.ash + 1.2 * high - 0.12 * exposure.slope_deg - 3.0 * relief.lowland,
        "Entisols": 5.0 * near_river + 1.1 * np.clip(slope, 0, 2.5) * high,
        "Histosols": 1.5 * wet - 0.9 * slope + 3.0 * young + 1.8 * shore + 0.5 * relief.lowland,
        "Inceptisols": np.zeros(relief.elevation.shape, dtype=np.float32),
        "Mollisols": 2.0 * sun + 1.0 * slope - 1.2 * rain - 0.8 * wet + 0.6 * patterns.silt,
        "Spodosols": 1.3 * rain + 2.4 * gentle * unburnt - 1.1 * patterns.silt - 1.0 * relief.lowland,
    }
    return {order: (ORDER_DECISIVENESS * values).astype(np.float32) for order, values in scores.items()}


def order_probability(
    scores: Mapping[str, FloatArray], present: FloatArray, at: Tuple[NDArray[Any], NDArray[Any]]
) -> Tuple[FloatArray, FloatArray]:
    """Probabilities of the orders where permafrost is absent, and overall, (7, H, W) each, in the order of CLASSES.

    Constants are added to the scores until the shares over the cells ``at`` are those of :data:`ORDER_SHARES`.
    """
    others = [order for order in ORDERS if order != "Gelisols"]
    shares = dict(ORDER_SHARES)
    gelisols = NSP_SHARE * ORDERS_PRESENT["Gelisols"] + (1 - NSP_SHARE) * GELISOLS_ABSENT
    shares["Inceptisols"] = 1.0 - gelisols - sum(shares.values())
    here = np.stack([scores[order][at] for order in others]).astype(np.float64)
    frozen = present[at].astype(np.float64)
    given = np.asarray([ORDERS_PRESENT.get(order, 0.0) for order in others])
    wanted = np.asarray([shares[order] for order in others])
    constants = np.zeros(len(others))
    for _ in range(200):
        weights = np.exp(here + constants[:, None])
        absent = weights / weights.sum(axis=0) * (1 - GELISOLS_ABSENT)
        found = (absent * (1 - frozen) + given[:, None] * frozen).mean(axis=1)
        constants += 0.7 * np.log(wanted / np.maximum(found, 1e-6))
        constants -= constants[others.index("Inceptisols")]
        np.clip(constants, -25, 25, out=constants)
    shape = (len(ORDERS), *present.shape)
    absent_map = np.empty(shape, dtype=np.float32)
    for index, order in enumerate(ORDERS):
        absent_map[index] = 0 if order == "Gelisols" else np.exp(scores[order] + constants[others.index(order)])
    absent_map *= (1 - GELISOLS_ABSENT) / absent_map.sum(axis=0)
    absent_map[ORDERS.index("Gelisols")] = GELISOLS_ABSENT
    overall = absent_map * (1 - present)
    for order, share in ORDERS_PRESENT.items():
        overall[ORDERS.index(order)] += np.float32(share) * present
    return absent_map, overall


def draw_truth(generator: Generator, relief: Relief, present: FloatArray, orders: Tuple[Any, Any]) -> Truth:
    """Draw NSP, then the soil order given NSP, for every cell by itself.

    Args:
        generator: Source of chance.
        relief: For the water, which has no soil.
        present: Probability of NSP, (H, W).
        orders: Result of :func:`order_probability`. The second is changed: NaN on water.
    """
    water = relief.water >= 0.5
    frozen = generator.random(present.shape, dtype=np.float32) < present
    chance = generator.random(present.shape, dtype=np.float32)
    drawn = np.full(present.shape, len(ORDERS) - 1, dtype=np.uint8)
    passed = np.zeros(present.shape, dtype=np.float32)
    open_yet = np.ones(present.shape, dtype=bool)
    for index, order in enumerate(ORDERS):
        passed += np.where(frozen, np.float32(ORDERS_PRESENT.get(order, 0.0)), orders[0][index])
        hit = open_yet & (chance < passed)
        drawn[hit] = index
        open_yet &= ~hit
    # What rounding leaves between the last sum and 1: the likeliest order, not the last of the alphabet.
    drawn[open_yet & frozen] = ORDERS.index("Gelisols")
    drawn[open_yet & ~frozen] = ORDERS.index("Inceptisols")
    nsp = frozen.astype(np.uint8)
    nsp[water] = NODATA
    drawn[water] = NODATA
    orders[1][:, water] = np.nan
    return Truth(nsp, np.where(water, np.float32(np.nan), present), drawn, orders[1])


def best_scores(truth: Truth, at: Tuple[Any, Any]) -> Dict[str, Dict[str, float]]:
    """Scores of a model that knew the probabilities, at the cells ``at``: the limit for any model there.

    NSP at 0.5: precision and recall of absent (0) and present (1), accuracy. Soil order by the likeliest class:
    support-weighted precision, recall (= accuracy) and F1. In per cent. Realised classes, so a small sample scatters.
    """
    label, probability = truth.nsp[at], truth.nsp_probability[at]
    nsp = _scores(label, (probability > 0.5).astype(np.uint8), 2)
    order = truth.soil_order[at]
    likeliest = truth.order_probability[(slice(None), *at)].argmax(axis=0).astype(np.uint8)
    many = _scores(order, likeliest, len(ORDERS))
    share = np.bincount(order, minlength=len(ORDERS)) / order.size
    return {
        "nsp": {
            "P0": 100 * nsp[0][0],
            "R0": 100 * nsp[1][0],
            "P1": 100 * nsp[0][1],
            "R1": 100 * nsp[1][1],
            "Acc": 100 * float((label == (probability > 0.5)).mean()),
        },
        "soil_order": {
            "P": 100 * float(share @ many[0]),
            "R": 100 * float(share @ many[1]),
            "F1": 100 * float(share @ many[2]),
        },
    }


def _scores(truth: NDArray[Any], found: NDArray[Any], classes: int) -> Tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Precision, recall and F1 of each class; 0 where undefined."""
    table = np.bincount(truth.astype(np.int64) * classes + found, minlength=classes * classes).reshape(classes, classes)
    hits = np.diag(table).astype(np.float64)
    precision = hits / np.maximum(table.sum(axis=0), 1)
    recall = hits / np.maximum(table.sum(axis=1), 1)
    return precision, recall, 2 * hits / np.maximum(table.sum(axis=0) + table.sum(axis=1), 1)
