"""SatlasNet's Sentinel-2 weights in MISO's satellite encoder (Bastani et al. 2023, arXiv:2211.15660).

The nine-band single-image checkpoint holds torchvision's ``swin_v2_b`` under ``backbone.backbone.``, its first
convolution included. Its bands are the true-colour product's red, green and blue, then B05, B06, B07, B08, B11, B12:
the order of MISO's satellite group. The convolution means something only if features come scaled as SatlasNet had them,
so :func:`features` describes that scaling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence, Tuple, cast

from torch import Tensor

from miso_qgis.engine.errors import InputError

from .config import FeatureConfig
from .model import Branch, Miso
from .released_inputs import BANDS
from .released_state import Ledger, load_swin_v2, read_state
from .swin import SwinEncoder

PREFIX = "backbone.backbone."
CHANNELS = tuple(band.name for band in BANDS)
# What a SatlasNet file holds beside the encoder: the feature pyramid and upsampling, and the heads of its own tasks.
UNUSED = (r"intermediates\..*", r"heads\..*")


def features(channels: Sequence[str] = CHANNELS) -> Tuple[FeatureConfig, ...]:
    """Features of the satellite group as SatlasNet scales them, from reflectance times 10,000.

    Red, green and blue are stretched like the true-colour product, the others divided by 8160. Values are clipped to
    [-1, 1] in place of SatlasNet's [0, 1]; only what is darker than the stretch begins differs.

    Args:
        channels: The group's nine channels, in the order of the module's description.
    """
    if len(channels) != len(BANDS):
        raise ValueError(f"SatlasNet sees {len(BANDS)} bands, {len(channels)} channels were given")
    return tuple(
        FeatureConfig("value", (channel,), centre=band.low, scale=band.high - band.low, limit=1.0)
        for channel, band in zip(channels, BANDS)
    )


def load_encoder(encoder: SwinEncoder, state: Mapping[str, Tensor], name: str) -> None:
    """Fill an encoder from SatlasNet's tensors.

    Args:
        encoder: Version 2, of the sizes of ``SIZES["paper"]``, nine features.
        state: Tensors as :func:`training.released_state.read_state` gives them.
        name: The file, for messages.

    Raises:
        InputError: If a tensor is missing, unexpected, of another shape or not finite; all at once. The encoder's
            weights are then not to be used.
    """
    ledger = Ledger(state, name)
    load_swin_v2(ledger, PREFIX, encoder)
    ledger.skip("", UNUSED)
    ledger.close("SatlasNet's nine-band Sentinel-2 encoder (Swin V2 Base, single image)")


def start_from(model: Miso, path: Path, group: str = "satellite") -> None:
    """Fill the encoder of one group of a network from a SatlasNet file; everything else stays as it is.

    Raises:
        InputError: If the file cannot be used, or the network has no such group.
    """
    if group not in model.modalities:
        raise InputError(
            f'Checkpoint "{path}"',
            f'the network has no group "{group}".',
            f"Its groups are {', '.join(model.modalities)}.",
            "Name the group of the nine Sentinel-2 bands.",
        )
    load_encoder(cast("Branch", model.modalities[group]).encoder, read_state(path), f'Checkpoint "{path}"')
