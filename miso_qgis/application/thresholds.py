"""What a threshold means: how much area lies above it, and what it costs in hits and false alarms.

The area comes from a histogram that is computed once per raster, so that moving a slider costs nothing. The cost comes
from the model folder's out-of-fold curves; it says how the model did where the truth was known, not on this map.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Dict, List, Optional, Sequence

from osgeo import gdal

from ..engine.manifest import TaskSpec

BINS = 1000  # a step of 0.001: every value of the spin box is the edge of a bin
EXACT_UP_TO_PX = 60_000_000  # about a second; larger rasters are counted on an overview


@dataclass(frozen=True)
class AreaAbove:
    """Cumulative histogram of a probability raster.

    Attributes:
        from_bin: ``from_bin[k]`` is the number of valid pixels with a probability of at least k / 1000.
        pixel_ha: Area of a pixel of the histogram.
        is_exact: False if it was counted on an overview.
    """

    from_bin: Sequence[float]
    pixel_ha: float
    is_exact: bool

    @property
    def valid_ha(self) -> float:
        """Area of all valid pixels."""
        return self.from_bin[0] * self.pixel_ha

    def hectares(self, threshold: float) -> float:
        """Return the area with a probability of at least ``threshold``."""
        index = min(max(round(threshold * BINS), 0), BINS)
        return self.from_bin[index] * self.pixel_ha


def count_area(path: str, is_percent: bool) -> AreaAbove:
    """Count a probability raster's pixels by probability.

    Args:
        path: Single-band raster in a CRS in metres, [0, 1] or whole percent.
        is_percent: True for 0 to 100.

    Raises:
        OSError: If GDAL cannot read it.
    """
    # Whether GDAL raises or returns None is a setting of the whole process, which other plugins may change.
    try:
        dataset = gdal.Open(path)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be opened ({error})") from error
    if dataset is None:
        raise OSError(f"{path} cannot be opened")
    band = dataset.GetRasterBand(1)
    _, width, _, _, _, height = dataset.GetGeoTransform()
    pixel_ha = abs(width * height) / 10_000
    pixels = band.XSize * band.YSize
    is_exact = pixels <= EXACT_UP_TO_PX
    if not is_exact:
        for overview in (band.GetOverview(i) for i in range(band.GetOverviewCount())):
            if overview.XSize * overview.YSize <= EXACT_UP_TO_PX:
                pixel_ha *= pixels / (overview.XSize * overview.YSize)
                band = overview
                break
    # From 0 to just above 1, so that 1 itself has a bin. The shift keeps whole thousandths, which float32 stores a
    # little too low or too high (0.3), on the upper side of their edge.
    step, shift = 1.0 / BINS, 1e-6
    top = 100.0 if is_percent else 1.0
    try:
        counts = band.GetHistogram(-shift * top, (1.0 + step - shift) * top, BINS + 1, False, False)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be read ({error})") from error
    if counts is None:
        raise OSError(f"{path} cannot be read")
    return AreaAbove(list(accumulate(reversed(counts)))[::-1], pixel_ha, is_exact)


def named_thresholds(task: TaskSpec, model: str) -> Dict[str, float]:
    """Return the thresholds that the model folder names for ``miso`` or ``rf``, 0.5 first."""
    named = {"0.5": 0.5}
    named.update({name.replace("_", " "): value for name, value in task.thresholds.get(model, {}).items()})
    return named


def describe_cost(task: TaskSpec, model: str, threshold: float) -> str:
    """Say what a threshold meant in validation, per split; empty if the model folder has no curves."""
    sentences: List[str] = []
    curves = task.curves.get(model, {})
    for split, curve in curves.items() if isinstance(curves, dict) else ():
        point = _point(curve, threshold)
        if point is not None:
            recall, precision = point
            sentences.append(f"{split}: finds {recall:.0%} of the presences; {precision:.0%} of its calls are right")
    return "In validation, " + "; ".join(sentences) + "." if sentences else ""


def _point(curve: object, threshold: float) -> Optional[Sequence[float]]:
    if not isinstance(curve, dict):
        return None
    thresholds, recall, precision = (curve.get(key, []) for key in ("threshold", "recall", "precision"))
    if not thresholds or not len(thresholds) == len(recall) == len(precision):
        return None
    # Curves are sampled densely; the nearest point at or above the threshold is what the map shows.
    pairs = sorted(zip(thresholds, recall, precision))
    index = min(bisect_left([pair[0] for pair in pairs], threshold - 1e-9), len(pairs) - 1)
    return pairs[index][1:]
