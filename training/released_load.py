"""From a checkpoint of the released code to the network: sizes from shapes, then every tensor by its name."""

from __future__ import annotations

from dataclasses import replace
from typing import Mapping, cast

import torch
from torch import Tensor

from miso_qgis.engine.errors import InputError

from .implicit import ImplicitFunction
from .model import Head, Mapper
from .released import GeoLayer, ReleasedBranch, ReleasedForm, ReleasedMiso
from .released_inputs import COVARIATES, SATELLITE
from .released_state import Ledger, counted, load_swin_v1, load_swin_v2, names_of, swin_v1_size, swin_v2_size

_SATELLITE, _COVARIATES = "sat_encoder.feature_extractor.", "cov_encoder.feature_extractor."


def released_form(ledger: Ledger, task: str) -> ReleasedForm:
    """Sizes of a released network from the shapes of its tensors.

    Raises:
        InputError: If this is no checkpoint of it.
    """
    state = ledger.state
    what = "MISO as the released code makes it (sat_encoder, cov_encoder, out, ...)"
    try:
        sizes = []
        for encoder, size in (
            ("sat_encoder", swin_v2_size(state, _SATELLITE)),
            ("cov_encoder", swin_v1_size(state, _COVARIATES)),
        ):
            widths = []
            for stage in range(len(size.depths)):
                at = f"{encoder}.query_layers.{stage}.mlp.layers"
                widths.append((state[f"{at}.0.weight"].shape[0], state[f"{at}.2.weight"].shape[0]))
            embedding = state[f"{encoder}.norm.weight"].shape[0]
            sizes.append(replace(size, embedding=embedding, implicit_widths_by_stage=tuple(widths)))
        return ReleasedForm(
            satellite=sizes[0],
            covariates=sizes[1],
            task=task,
            outputs=state["out.4.weight"].shape[0],
            frequencies=state["geo_encoder.layers.0.lin.weight"].shape[1] // 4,
            geo_layers=counted(state, "geo_encoder.layers.{}."),
        )
    except KeyError as error:
        found = f"it lacks {error.args[0]}; it begins with {names_of(list(state)[:3])}."
        remedy = "Choose a checkpoint that was trained with the released code."
        raise InputError(ledger.name, found, f"A checkpoint of {what} is needed.", remedy) from error
    except (ValueError, IndexError, ZeroDivisionError) as error:
        remedy = "Choose a checkpoint that was trained with the released code."
        raise InputError(ledger.name, f"{error}.", f"A checkpoint of {what} is needed.", remedy) from error


def load_released(state: Mapping[str, Tensor], name: str, task: str) -> ReleasedMiso:
    """Make the network of a released checkpoint, in evaluation mode.

    Args:
        state: Its tensors, as :func:`read_state` gives them.
        name: The file, for messages: ``Checkpoint "best_model.pth"``.
        task: What its outputs are called.

    Raises:
        InputError: If a tensor is missing, unexpected, misshapen or not finite; all at once.
    """
    ledger = Ledger(state, name)
    form = released_form(ledger, task)
    try:
        model = ReleasedMiso(form).eval()
    except ValueError as error:
        raise InputError(
            name, f"{error}.", "Branches of one width are needed.", "Choose another checkpoint."
        ) from error
    for group, encoder, mapper in ((SATELLITE, "sat_encoder", "sat_mapper"), (COVARIATES, "cov_encoder", "cov_mapper")):
        _load_branch(ledger, model.branch(group), encoder)
        _load_mapper(ledger, model.branch(group).mapper, mapper)
    load_swin_v2(ledger, _SATELLITE, model.branch(SATELLITE).encoder)
    load_swin_v1(ledger, _COVARIATES, model.branch(COVARIATES).encoder)
    _load_mapper(ledger, model.visual, "visual_mapper")
    _load_head(ledger, cast("Head", model.heads[task]), "out")
    for number, module in enumerate(model.geo.layers):
        layer = cast("GeoLayer", module)
        ledger.fill_layer(layer.linear, f"geo_encoder.layers.{number}.lin")
        if layer.norm is not None:
            ledger.fill_layer(layer.norm, f"geo_encoder.layers.{number}.layer_norm")
    _load_mapper(ledger, model.geo_mapper, "geo_mapper")
    _load_head(ledger, model.geo_head, "geo_out")
    ledger.close("MISO as the released code makes it")
    return model


def _load_branch(ledger: Ledger, branch: ReleasedBranch, prefix: str) -> None:
    for stage, module in enumerate(branch.implicit):
        function, at = cast("ImplicitFunction", module), f"{prefix}.query_layers.{stage}"
        hidden, channels = function.cell.weight.shape
        weight = ledger.take(f"{at}.mlp.layers.0.weight", (hidden, channels + 2))  # the token, then the offset
        with torch.no_grad():
            function.cell.weight.copy_(weight[:, :channels])
            function.offset.weight.copy_(weight[:, channels:])
        ledger.fill(function.cell.bias, f"{at}.mlp.layers.0.bias")
        ledger.fill_layer(function.middle, f"{at}.mlp.layers.2")
        ledger.fill_layer(function.last, f"{at}.mlp.layers.4")
        ledger.fill_layer(function.output, f"{at}.output_layer")
        ledger.fill_layer(function.norm, f"{at}.norm")
    ledger.fill_layer(branch.norm, f"{prefix}.norm")


def _load_mapper(ledger: Ledger, mapper: Mapper, prefix: str) -> None:
    ledger.fill_layer(mapper.first, f"{prefix}.0.layers.0")
    ledger.fill_layer(mapper.second, f"{prefix}.0.layers.2")
    ledger.fill_layer(mapper.norm, f"{prefix}.1")


def _load_head(ledger: Ledger, head: Head, prefix: str) -> None:
    for number, layer in ((0, head.first), (2, head.second), (4, head.last)):
        ledger.fill_layer(layer, f"{prefix}.{number}")
