"""The simulated landscape's midsummer image: nine Sentinel-2 bands of a mixture of covers, with the ground's texture.

Owns spectra and texture. The spectra are typical surface reflectances of boreal covers in July, rounded; for red edge
to short-wave infrared they lie where a real tundra scene of July has them (medians there: red edge 1310 to 2440,
near infrared 2470, short wave 2260 and 1170; water under 80 in the short wave).

The texture is one field whose values have the same distribution everywhere (normal, mean 0, standard deviation 1); only
its arrangement differs: a net of polygons, stripes of water tracks, or patches without either. It changes the colours
by a few per cent around the cover's own. So in bands of 10 m the value of a single cell does not tell one from the
other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Tuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtri

from .simulated_alaska_climate import Climate, Exposure
from .simulated_alaska_relief import NO_BASIN, FloatArray, Generator, Relief, compiled, smooth_noise
from .simulated_alaska_truth import Patterns, standardised


@dataclass(frozen=True)
class Band:
    """A Sentinel-2 band in the paper's order.

    Attributes:
        name: Channel name.
        title: For people.
        source_m: Pixel size of the instrument.
        texture: Relative change of the reflectance for one standard deviation of the texture.
    """

    name: str
    title: str
    source_m: int
    texture: float


# Drier and paler ground is brighter in the visible and the short wave and darker where leaves shine.
BANDS: Tuple[Band, ...] = (
    Band("red", "Sentinel-2 B04, red", 10, 0.10),
    Band("green", "Sentinel-2 B03, green", 10, 0.06),
    Band("blue", "Sentinel-2 B02, blue", 10, 0.08),
    Band("red_edge_1", "Sentinel-2 B05, red edge", 20, 0.07),
    Band("red_edge_2", "Sentinel-2 B06, red edge", 20, -0.03),
    Band("red_edge_3", "Sentinel-2 B07, red edge", 20, -0.04),
    Band("nir", "Sentinel-2 B08, near infrared", 10, -0.05),
    Band("swir_1", "Sentinel-2 B11, short-wave infrared", 20, 0.09),
    Band("swir_2", "Sentinel-2 B12, short-wave infrared", 20, 0.11),
)

# Reflectance x 10000 in the order of BANDS.
SPECTRA: Mapping[str, Tuple[float, ...]] = {
    "black spruce": (270, 340, 190, 590, 1330, 1570, 1670, 980, 470),
    "white spruce": (230, 370, 170, 620, 1620, 1960, 2080, 960, 420),
    "broadleaf": (270, 490, 210, 850, 2620, 3260, 3480, 1720, 750),
    "shrub": (310, 570, 230, 970, 2440, 2960, 3120, 1880, 890),
    "tussock tundra": (570, 560, 320, 1080, 1900, 2200, 2340, 2260, 1210),
    "muskeg": (450, 500, 270, 910, 1700, 1990, 2100, 1720, 880),
    "wet sedge": (430, 560, 280, 980, 1960, 2290, 2400, 1520, 720),
    "alpine tundra": (860, 760, 540, 1230, 1720, 1900, 2030, 2560, 1750),
    "scree": (1320, 1180, 960, 1500, 1620, 1700, 1790, 2500, 2250),
    "steppe bluff": (940, 830, 540, 1330, 1900, 2110, 2240, 2840, 1880),
    "fresh burn": (640, 540, 390, 880, 1270, 1430, 1560, 2280, 1760),
    "gravel bar": (1480, 1340, 1080, 1680, 1810, 1900, 2000, 2580, 2240),
}
LAKE: Tuple[float, ...] = (170, 270, 260, 140, 105, 100, 85, 45, 30)
RIVER: Tuple[float, ...] = (1080, 1090, 820, 960, 640, 600, 480, 90, 60)

HIGHEST = 10_000


def make_bands(
    generator: Generator, relief: Relief, climate: Climate, exposure: Exposure, patterns: Patterns
) -> NDArray[np.uint16]:
    """Make the image, (9, H, W) uint16, reflectance x 10000, in the order of :data:`BANDS`."""
    covers = make_covers(generator, relief, climate, exposure, patterns)
    texture = make_texture(generator, relief, patterns) * (1 - relief.water)
    light = 1 + np.float32(0.55) * (exposure.noon - 1)
    light = np.clip(light, 0.35, 1.5) * (1 - relief.water) + relief.water
    # Canopies differ from cell to cell, in all bands together.
    light *= 1 + np.float32(0.025) * generator.standard_normal(light.shape, dtype=np.float32)
    silty = np.clip(1.2 - relief.river_distance_m / np.float32(120.0), 0, 1)
    bands = np.empty((len(BANDS), *light.shape), dtype=np.uint16)
    for index, band in enumerate(BANDS):
        ground = np.zeros(light.shape, dtype=np.float32)
        for name, share in covers.items():
            ground += share * np.float32(SPECTRA[name][index])
        water = np.float32(LAKE[index]) + silty * np.float32(RIVER[index] - LAKE[index])
        value = (ground * (1 - relief.water) + water * relief.water) * light * (1 + np.float32(band.texture) * texture)
        bands[index] = _sensed(generator, value, band.source_m)
    return bands


def _sensed(generator: Generator, value: FloatArray, source_m: int) -> NDArray[np.uint16]:
    """Blur a little, take the mean of 2 x 2 cells in bands of 20 m, add noise, round."""
    value = ndimage.gaussian_filter(value, 0.35, mode="nearest")
    if source_m == 20:
        rows, columns = value.shape
        even = np.pad(value, [(0, rows % 2), (0, columns % 2)], mode="edge")
        mean = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
        mean += _noise(generator, mean)
        value = mean.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
    else:
        value = value + _noise(generator, value)
    result: NDArray[np.uint16] = np.clip(np.rint(value), 1, HIGHEST).astype(np.uint16)
    return result


def _noise(generator: Generator, value: FloatArray) -> FloatArray:
    noise: FloatArray = generator.standard_normal(value.shape, dtype=np.float32) * (6 + np.float32(0.008) * value)
    return noise


def make_covers(
    generator: Generator, relief: Relief, climate: Climate, exposure: Exposure, patterns: Patterns
) -> Dict[str, FloatArray]:
    """Share of each cover in each cell, (H, W) float32 by name; they add up to 1."""
    scores = _cover_scores(relief, climate, exposure, patterns)
    shape = relief.elevation.shape
    total = np.zeros(shape, dtype=np.float32)
    for name in scores:
        stands = 0.45 * smooth_noise(generator, shape, 9) + 0.45 * smooth_noise(generator, shape, 32)
        scores[name] = np.exp(np.clip(2.2 * (scores[name] + stands), -25, 25)).astype(np.float32)
        total += scores[name]
    for name in scores:
        scores[name] /= total
    return scores


def _cover_scores(relief: Relief, climate: Climate, exposure: Exposure, patterns: Patterns) -> Dict[str, NDArray[Any]]:
    """How well each place suits each cover. Nothing here looks at polygons, tracks or the truth."""
    land = relief.water < 0.5
    wet = np.clip(standardised(exposure.wetness, land), -2, 2)
    sun = np.clip((exposure.sun - 1) / np.float32(0.12), -2.5, 1.5)
    warm = np.clip((climate.summer_warmth_c - np.float32(47.5)) / np.float32(2.5), -3, 2)  # 0 at the tree line
    slope, low = exposure.slope_deg, relief.lowland
    banks = relief.floodplain * np.exp(-relief.river_distance_m / np.float32(350.0))
    brook = (1 - low) * np.exp(-relief.above_stream_m / np.float32(6.0))
    shore = np.exp(-relief.shore_distance_m / np.float32(45.0)) * (1 - relief.floodplain)
    basin = ndimage.gaussian_filter((relief.basin != NO_BASIN).astype(np.float32), 0.7)
    rim = np.clip(4 * basin * (1 - basin), 0, 1)
    fresh = np.clip(1 - patterns.fire_age_y / np.float32(14.0), 0, 1)
    young = np.exp(-(((patterns.fire_age_y - 35) / np.float32(22.0)) ** 2)) * (1 - fresh)
    burnt = np.maximum(fresh, young)
    bar = np.clip(2 - np.abs(relief.river_distance_m - 70) / 20 + relief.scrolls, -3, 2.5)
    ridges = relief.floodplain * relief.scrolls
    return {
        "black spruce": 1.0 + 0.35 * wet - 0.55 * sun + 0.7 * np.minimum(warm, 1) - 0.2 * low - 3 * burnt - 1.5 * basin,
        "white spruce": -0.9
        + 2.6 * relief.floodplain
        - 0.7 * banks
        + 0.4 * np.minimum(warm, 1)
        + 0.3 * sun
        - 3 * burnt
        + 0.7 * ridges,
        "broadleaf": -0.45
        + 0.8 * sun
        - 0.35 * wet
        + 0.8 * np.minimum(warm, 1)
        - 1.5 * low
        + 1.8 * young
        - 2 * fresh
        + 1.2 * banks,
        "shrub": 0.1
        - 0.35 * np.abs(warm)
        + 1.2 * brook
        + 1.5 * young
        + 0.4 * fresh
        + 2.0 * banks
        + 1.4 * rim
        - 0.5 * low
        - 0.5 * ridges,
        "tussock tundra": 0.0 + 0.5 * low - 0.5 * warm - 0.05 * slope + 0.5 * fresh - 0.8 * relief.floodplain,
        "muskeg": -0.6 + 1.7 * low + 0.2 * wet - 0.06 * slope - 1.2 * relief.floodplain - 2 * burnt,
        "wet sedge": -1.7 + 0.8 * low + 0.5 * wet * low + 1.5 * shore + 1.9 * basin - 0.08 * slope - 1.2 * ridges,
        "alpine tundra": -1.6 - 1.25 * warm - 3 * low,
        "scree": -3.4 - 0.9 * warm + 0.10 * slope - 3 * low,
        "steppe bluff": -6.2 + 2.2 * sun + 0.13 * slope + 0.5 * warm - 3 * low,
        "fresh burn": -3.0 + 5.5 * fresh,
        "gravel bar": -3.5 + 3.2 * bar,
    }


def make_texture(generator: Generator, relief: Relief, patterns: Patterns) -> FloatArray:
    """One texture for the whole area, (H, W) float32; at each cell normal with mean 0 and standard deviation 1."""
    shape = relief.elevation.shape
    net = _normal_scores(_polygon_net(generator, shape))
    stripes = _stripes(generator, relief.elevation)
    patches = smooth_noise(generator, shape, 9)
    other = np.clip(1 - patterns.polygons - patterns.tracks, 0, 1)
    # Independent parts: dividing by the root of the squares keeps the variance at 1 where they mix.
    size = np.sqrt(patterns.polygons**2 + patterns.tracks**2 + other**2)
    texture: FloatArray = (patterns.polygons * net + patterns.tracks * stripes + other * patches) / size
    return texture


def _normal_scores(values: FloatArray) -> FloatArray:
    """Give values a normal distribution, keeping their order."""
    level = (np.arange(512) + 0.5) / 512
    known = np.quantile(values[::3, ::3], level)
    scores: FloatArray = np.interp(values, known, ndtri(level)).astype(np.float32)
    scores -= scores.mean(dtype=np.float64)
    scores /= np.float32(scores.std(dtype=np.float64))
    return scores


def _polygon_net(generator: Generator, shape: Tuple[int, int]) -> FloatArray:
    """Distance to the border between polygons about 29 m across, in cells: low in the troughs."""
    spacing = 2.9
    lattice = (math.ceil(shape[0] / spacing) + 4, math.ceil(shape[1] / spacing) + 4)
    middles = generator.random((2, *lattice))
    net = np.empty(shape, dtype=np.float32)
    _border_distance(middles, spacing, net)
    return net


@compiled
def _border_distance(middles: NDArray[Any], spacing: float, net: NDArray[Any]) -> None:
    """Second nearest minus nearest middle of a jittered lattice, as a mean over 2 x 2 points of each cell."""
    for i in range(net.shape[0]):
        for j in range(net.shape[1]):
            total = 0.0
            for part in range(4):
                y = (i + 0.25 + 0.5 * (part // 2)) / spacing + 2.0
                x = (j + 0.25 + 0.5 * (part % 2)) / spacing + 2.0
                first = second = 1e9
                for m in range(int(y) - 1, int(y) + 2):
                    for k in range(int(x) - 1, int(x) + 2):
                        d = math.hypot(m + middles[0, m, k] - y, k + middles[1, m, k] - x)
                        if d < first:
                            first, second = d, first
                        elif d < second:
                            second = d
                total += second - first
            net[i, j] = total * spacing / 4.0


def _stripes(generator: Generator, elevation: FloatArray) -> FloatArray:
    """Random stripes that run down the slope, 20 to 40 m apart: noise averaged along the steepest descent."""
    smooth = ndimage.gaussian_filter(elevation, 8.0, mode="nearest").astype(np.float64)
    southwards, eastwards = np.gradient(smooth)
    steep = np.maximum(np.hypot(southwards, eastwards), 1e-9)
    noise = generator.standard_normal(elevation.shape, dtype=np.float32)
    stripes = np.empty(elevation.shape, dtype=np.float32)
    _along(noise, southwards / steep, eastwards / steep, 14, stripes)
    return _normal_scores(ndimage.gaussian_filter(stripes, 0.4))


@compiled
def _along(noise: NDArray[Any], down: NDArray[Any], right: NDArray[Any], reach: int, stripes: NDArray[Any]) -> None:
    """Mean of ``noise`` along the flow lines through each cell, ``reach`` steps of one cell each way."""
    height, width = noise.shape
    for i in range(height):
        for j in range(width):
            total = noise[i, j]
            n = 1
            for sign in range(2):
                y = i + 0.5
                x = j + 0.5
                for _ in range(reach):
                    a = int(y)
                    b = int(x)
                    step = 1.0 if sign == 0 else -1.0
                    y += step * down[a, b]
                    x += step * right[a, b]
                    if y < 0.0 or x < 0.0 or y >= height or x >= width:
                        break
                    total += noise[int(y), int(x)]
                    n += 1
            stripes[i, j] = total / math.sqrt(n)
