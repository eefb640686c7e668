"""Inputs of networks trained with the released code: bands, covariates, their scaling, their rasters in a manifest.

The released code scales satellite bands and covariates linearly by fixed limits, sets missing pixels to 0 afterwards,
and resizes the 250 px window to 256 px. Here all of that is part of the network, so that a graph takes raw units.
Limits: reference code ``datasets/data_utils.py`` of the MISO paper (arXiv:2506.17302), as facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec

SATELLITE, COVARIATES = "satellite", "covariates"
# Side of the released code's windows at 10 m, and of the image that its encoders see.
WINDOW_PX, IMAGE_PX = 250, 256
RESOLUTION_M = 10.0
DEM = "dem"


@dataclass(frozen=True)
class Limits:
    """One channel of a released network: it is clipped to ``low``..``high`` and mapped to 0..1."""

    name: str
    low: float
    high: float


# Red, green and blue imitate the stretch of the true-colour product; the unit is reflectance times 10,000.
BANDS: Tuple[Limits, ...] = (
    Limits("red", 78.0, 3318.0),
    Limits("green", 158.0, 3411.0),
    Limits("blue", 167.0, 3335.0),
    Limits("red_edge_1", 0.0, 8160.0),
    Limits("red_edge_2", 0.0, 8160.0),
    Limits("red_edge_3", 0.0, 8160.0),
    Limits("nir", 0.0, 8160.0),
    Limits("swir_1", 0.0, 8160.0),
    Limits("swir_2", 0.0, 8160.0),
)
VARIABLES: Tuple[Limits, ...] = (
    Limits("aspect", -30.5223, 390.849),
    Limits("elevation", -18.2, 6161.18),
    Limits("maximum_curvature", -0.0614807, 0.195017),
    Limits("slope", -0.279193, 84.0483),
    Limits("stream_power_index", -2328630.0, 36558200.0),
    Limits("saga_wetness_index", 0.336838, 26.324),
    Limits("topographic_position_index", -151.879, 135.04),
    Limits("annual_precipitation", 101.981, 10187.9),
    Limits("summer_warmth_index", -121.997, 67.3781),
    Limits("january_minimum_temperature", -39.7864, 1.4687),
)

_BAND_NAMES = {
    "red": ("Sentinel-2 red (B04)", ("b04", "b4", "red")),
    "green": ("Sentinel-2 green (B03)", ("b03", "b3", "green")),
    "blue": ("Sentinel-2 blue (B02)", ("b02", "b2", "blue")),
    "red_edge_1": ("Sentinel-2 red edge 1 (B05)", ("b05", "b5", "redge1", "rededge1", "re1")),
    "red_edge_2": ("Sentinel-2 red edge 2 (B06)", ("b06", "b6", "redge2", "rededge2", "re2")),
    "red_edge_3": ("Sentinel-2 red edge 3 (B07)", ("b07", "b7", "redge3", "rededge3", "re3")),
    "nir": ("Sentinel-2 near infrared (B08)", ("b08", "b8", "nir")),
    "swir_1": ("Sentinel-2 short-wave infrared 1 (B11)", ("b11", "swir1")),
    "swir_2": ("Sentinel-2 short-wave infrared 2 (B12)", ("b12", "swir2")),
}
_TERRAIN_UNITS = {
    "elevation": "m",
    "maximum_curvature": "1/m",
    "slope": "degree",
    "stream_power_index": "m2",
    "saga_wetness_index": "",
    "topographic_position_index": "standard deviations",
}
_CLIMATE = {
    "annual_precipitation": InputSpec(
        kind="continuous",
        title="Annual precipitation",
        unit="mm",
        range=(0.0, 15000.0),
        training_resolution_m=800.0,
        aliases=("precipitation", "ppt_annual", "precip", "ppt"),
    ),
    "summer_warmth_index": InputSpec(
        kind="continuous",
        title="Summer warmth index (sum of monthly means, May to September)",
        unit="degree Celsius",
        range=(-250.0, 150.0),
        training_resolution_m=800.0,
        aliases=("summer_warmth", "tmean_swi"),
    ),
    "january_minimum_temperature": InputSpec(
        kind="continuous",
        title="Minimum temperature of January",
        unit="degree Celsius",
        range=(-70.0, 30.0),
        training_resolution_m=800.0,
        aliases=("tmin_january", "january_minimum", "tmin_jan"),
    ),
}


def manifest_inputs() -> Dict[str, InputSpec]:
    """Return the rasters that the user of an imported model supplies."""
    inputs = {
        name: InputSpec(
            kind="continuous",
            title=title,
            unit="reflectance x 10000",
            range=(-2000.0, 20000.0),
            training_resolution_m=RESOLUTION_M,
            aliases=aliases,
        )
        for name, (title, aliases) in _BAND_NAMES.items()
    }
    inputs[DEM] = InputSpec(
        kind="continuous",
        title="Digital elevation model",
        unit="m",
        range=(-100.0, 6500.0),
        training_resolution_m=RESOLUTION_M,
        aliases=("dem", "dtm", "elevation", "ifsar", "height"),
    )
    return {**inputs, **_CLIMATE}


def manifest_groups() -> Tuple[GroupSpec, ...]:
    """Return the channels of the exported graph, group by group.

    Aspect comes as sine and cosine, because the engine warps it so; the graph makes degrees of them again. A channel's
    range is what the released scaling spans; rasters in use are narrower by far.
    """
    bands = tuple(
        ChannelSpec(band.name, band.name, unit="reflectance x 10000", range=(band.low, band.high)) for band in BANDS
    )
    covariates = [
        ChannelSpec("aspect_sin", DEM, "terrain.aspect_sin", range=(-1.0, 1.0)),
        ChannelSpec("aspect_cos", DEM, "terrain.aspect_cos", range=(-1.0, 1.0)),
    ]
    for variable in VARIABLES[1:]:
        limits = (variable.low, variable.high)
        if variable.name in _CLIMATE:
            unit = _CLIMATE[variable.name].unit
            covariates.append(ChannelSpec(variable.name, variable.name, unit=unit, range=limits))
        else:
            unit = _TERRAIN_UNITS[variable.name]
            covariates.append(ChannelSpec(variable.name, DEM, f"terrain.{variable.name}", unit=unit, range=limits))
    return GroupSpec(SATELLITE, bands), GroupSpec(COVARIATES, tuple(covariates))


def aspect_degrees(sine: Tensor, cosine: Tensor) -> Tensor:
    """Aspect in degrees, [0, 360), from its sine and cosine, whatever their common length.

    Written with arctangent alone, which ONNX has. Where both are 0 (opposite slopes averaged away by a warp) the answer
    is 270, which is what SAGA gives flat cells.
    """
    tangent = sine / torch.where(cosine == 0, torch.ones_like(cosine), cosine)
    upright = torch.where(sine > 0, torch.full_like(sine, 90.0), torch.full_like(sine, 270.0)) + 0.0 * sine  # keeps NaN
    angle = torch.where(cosine == 0, upright, torch.atan(tangent) * (180.0 / torch.pi))
    angle = torch.where(cosine < 0, angle + 180.0, angle)
    angle = torch.where(angle < 0, angle + 360.0, angle)
    # A cosine of 1 and a sine of -1e-9 give 360 in single precision.
    return torch.where(angle >= 360.0, torch.zeros_like(angle), angle)


class Scaling(nn.Module):
    """Raw windows of one group, NaN where missing, to what the released encoders see: (N, C, 256, 256) in 0..1."""

    low: Tensor
    span: Tensor

    def __init__(self, limits: Tuple[Limits, ...]) -> None:
        super().__init__()
        self.has_aspect = limits[0].name == "aspect"

        def column(values: Tuple[float, ...]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)

        self.register_buffer("low", column(tuple(one.low for one in limits)), persistent=False)
        self.register_buffer("span", column(tuple(one.high - one.low for one in limits)), persistent=False)

    def forward(self, raw: Tensor) -> Tensor:
        """Scale and resize windows of the exported graph's channels."""
        if self.has_aspect:
            raw = torch.cat([aspect_degrees(raw[:, :1], raw[:, 1:2]), raw[:, 2:]], dim=1)
        return self.resize(self.scale(raw))

    def scale(self, values: Tensor) -> Tensor:
        """The released code's own channels (N, C, H, W) to 0..1; a pixel that misses one channel is 0 in all of them.

        The released code masks whole pixels of a source, because its sources share one nodata mask.
        """
        is_missing = torch.isnan(values)
        filled = torch.where(is_missing, torch.zeros_like(values), values)
        scaled = ((filled - self.low) / self.span).clamp(0.0, 1.0)
        known = 1.0 - is_missing.to(values.dtype).amax(dim=1, keepdim=True)
        return scaled * known

    def resize(self, scaled: Tensor) -> Tensor:
        """Bilinear, without antialiasing, pixel edges aligned: any side to 256 px."""
        return functional.interpolate(scaled, size=(IMAGE_PX, IMAGE_PX), mode="bilinear", align_corners=False)
