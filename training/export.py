"""Networks to ONNX: ``encoder.onnx`` and ``decoder.onnx`` as :mod:`miso_qgis.engine.manifest` describes them.

The decoder evaluates the implicit functions on a grid of rows x columns by the exact factorisation that
:mod:`training.implicit` explains: the part of f's first linear that sees the token is computed once per token, in the
encoder graph; the part that sees the offset once per row and once per column; gathers go by row and column numbers; f's
last linear, the blend and the output linear are one product. Members of an ensemble share the two graphs; the mean of
their logits, divided by the calibrated temperature, becomes the probability. The geographic encoder is left out.

Weights are stored in half precision and cast when the runtime loads the graph, so that it computes in float32.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union, cast

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from .implicit import (
    RELEASED,
    ImplicitFunction,
    neighbours,
    released_centres,
    released_shares,
    released_tokens,
    to_unit,
)
from .model import Head, Mapper, Miso, Modality
from .released import ReleasedMiso

OPSET = 18
# Opset 18 came with IR version 8, which every runtime since 1.14 loads; the exporter would write a newer one.
IR_VERSION = 8
# Smaller tensors (biases, norms, scales) stay in single precision: they cost nothing and their rounding would show.
HALF_PRECISION_FROM = 256
# These stay in single precision as well: in the released form the parts of token and query nearly cancel.
_SINGLE_PRECISION = (".row_part", ".column_part")

Exportable = Union[Miso, ReleasedMiso]


class CellMap(nn.Module):
    """The per-token part of an implicit function's first linear: what the encoder hands to the decoder."""

    def __init__(self, function: ImplicitFunction) -> None:
        super().__init__()
        self.cell = function.cell
        self.is_released = function.offset_convention == RELEASED
        if self.is_released:
            row, column = function.token_parts()
            self.row_part, self.column_part = nn.Parameter(row.detach()), nn.Parameter(column.detach())

    def forward(self, features: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H, W, h1)."""
        cells: Tensor = self.cell(features)
        return cells + self.row_part + self.column_part if self.is_released else cells


class EncoderGraph(nn.Module):
    """Raw windows of every group -> per-token maps of every member, group and stage, each (N, H, W, h1)."""

    def __init__(self, members: Sequence[Exportable]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.cells = nn.ModuleList(
            nn.ModuleList(
                CellMap(cast("ImplicitFunction", function)) for function in cast("Modality", modality).implicit
            )
            for member in members
            for modality in member.modalities.values()
        )

    def forward(self, *raw: Tensor) -> Tuple[Tensor, ...]:
        """One tensor per group, in the config's order -> maps in the order of :func:`map_names`."""
        outputs: List[Tensor] = []
        parts = [part for member in self.members for part in cast("Miso", member).modalities.values()]
        for number, (part, cells) in enumerate(zip(parts, self.cells)):
            maps = cast("Modality", part).maps(raw[number % len(raw)])
            outputs += [cell(features) for cell, features in zip(cast("nn.ModuleList", cells), maps)]
        return tuple(outputs)


class GridCorners(NamedTuple):
    """The four tokens around each query of a grid of R rows and Q columns.

    Attributes:
        row: Rows of tokens, (R, 2), int64.
        column: Columns of tokens, (Q, 2), int64.
        row_offset: What multiplies the row's part of f's first linear, (R, 2).
        column_offset: What multiplies the column's part, (Q, 2).
        weight: Share of each token, (R, Q, 2, 2).
    """

    row: Tensor
    column: Tensor
    row_offset: Tensor
    column_offset: Tensor
    weight: Tensor


class GridImplicit(nn.Module):
    """One implicit function on a grid of queries, factorised."""

    def __init__(self, function: ImplicitFunction) -> None:
        super().__init__()
        self.token_px, self.tokens = function.token_px, function.tokens
        self.is_released = function.offset_convention == RELEASED
        # The released form swaps the axes: a row's coordinate is in the second offset, in units of 1 / tokens.
        row, column = (1, 0) if self.is_released else (0, 1)
        gain = function.offset_gain * (float(self.tokens) if self.is_released else 1.0)
        parts = function.offset.weight.detach() * gain  # (h1, 2)
        self.row_part, self.column_part = nn.Parameter(parts[:, row].clone()), nn.Parameter(parts[:, column].clone())
        self.middle = function.middle
        weight, bias = function.merged()
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.norm = function.norm

    def forward(self, cells: Tensor, rows_px: Tensor, columns_px: Tensor) -> Tensor:
        """Cells (N, H, W, h1), rows (R,), columns (Q,) -> (N * R * Q, D)."""
        around = self._around_released(rows_px, columns_px) if self.is_released else self._around(rows_px, columns_px)
        blended = None
        for i in range(2):
            offset = around.row_offset[:, i, None] * self.row_part  # (R, h1)
            near = torch.index_select(cells, 1, around.row[:, i]) + offset[:, None, :]  # (N, R, W, h1)
            for j in range(2):
                offset = around.column_offset[:, j, None] * self.column_part  # (Q, h1)
                hidden = torch.relu(torch.index_select(near, 2, around.column[:, j]) + offset)  # (N, R, Q, h1)
                flat = torch.relu(self.middle(hidden.reshape(-1, hidden.shape[-1])))  # (N * R * Q, h2)
                share = around.weight[:, :, i, j].expand(cells.shape[0], -1, -1).reshape(-1, 1)
                blended = flat * share if blended is None else blended + flat * share
        normed: Tensor = self.norm(functional.linear(cast("Tensor", blended), self.weight, self.bias))
        return normed

    def _around(self, rows_px: Tensor, columns_px: Tensor) -> GridCorners:
        row = neighbours(rows_px, self.token_px, self.tokens)
        column = neighbours(columns_px, self.token_px, self.tokens)
        weight = row.weight[:, None, :, None] * column.weight[None, :, None, :]
        return GridCorners(row.token, column.token, row.offset, column.offset, weight)

    def _around_released(self, rows_px: Tensor, columns_px: Tensor) -> GridCorners:
        window_px = self.token_px * self.tokens
        y, x = to_unit(rows_px, window_px), to_unit(columns_px, window_px)
        row, column = released_tokens(y, self.tokens), released_tokens(x, self.tokens)
        centre = released_centres(self.tokens).to(x.device)
        shape = (y.shape[0], x.shape[0], 2, 2)
        first = (x[None, :, None] - torch.index_select(centre, 0, row.flatten()).reshape(-1, 1, 2)) * self.tokens
        second = (y[:, None, None] - torch.index_select(centre, 0, column.flatten()).reshape(1, -1, 2)) * self.tokens
        weight = released_shares(first[:, :, :, None].expand(shape), second[:, :, None, :].expand(shape))
        return GridCorners(row, column, y[:, None].expand(-1, 2), x[:, None].expand(-1, 2), weight)


class DecoderMember(nn.Module):
    """One member's decoder: grid implicit functions, mappers and heads; logits (N * R * Q, K) per task."""

    def __init__(self, model: Exportable) -> None:
        super().__init__()
        parts = [cast("Modality", modality) for modality in model.modalities.values()]
        self.stages = nn.ModuleList(
            nn.ModuleList(GridImplicit(cast("ImplicitFunction", function)) for function in part.implicit)
            for part in parts
        )
        self.norms = nn.ModuleList(part.norm for part in parts)
        self.mappers = nn.ModuleList(part.mapper for part in parts)
        self.visual: Mapper = model.visual
        self.heads = model.heads
        order = list(model.modalities)
        self.views = [[order.index(name) for name in view] for view in model.config.all_views]

    def forward(self, rows_px: Tensor, columns_px: Tensor, maps: Sequence[Tensor]) -> Dict[str, Tensor]:
        """Maps of this member, group after group and stage after stage."""
        rest = list(maps)
        modalities: List[Tensor] = []
        for stages, norm, mapper in zip(self.stages, self.norms, self.mappers):
            embedding = None
            for stage in cast("nn.ModuleList", stages):
                value = stage(rest.pop(0), rows_px, columns_px)
                embedding = value if embedding is None else embedding + value
            modalities.append(mapper(norm(embedding)))
        visuals = [self.visual(_total([modalities[i] for i in view])) for view in self.views]
        return {
            task: _total([cast("Head", head)(visual) for visual in visuals]) * (1.0 / len(visuals))
            for task, head in self.heads.items()
        }


class DecoderGraph(nn.Module):
    """Rows (R,), columns (Q,), maps -> probabilities (N, K, R, Q) of every task, in the config's order."""

    def __init__(self, members: Sequence[Exportable], temperature: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(DecoderMember(member) for member in members)
        self.temperature = temperature

    def forward(self, rows: Tensor, columns: Tensor, *maps: Tensor) -> Tuple[Tensor, ...]:
        """See the class."""
        per_member = len(maps) // len(self.members)
        found = [
            member(rows, columns, maps[i * per_member : (i + 1) * per_member]) for i, member in enumerate(self.members)
        ]
        outputs = []
        for task in found[0]:
            logit = found[0][task]
            for one in found[1:]:
                logit = logit + one[task]
            logit = logit * (1.0 / (len(found) * self.temperature))
            probability = torch.sigmoid(logit) if logit.shape[-1] == 1 else torch.softmax(logit, dim=-1)
            shape = (maps[0].shape[0], rows.shape[0], columns.shape[0], logit.shape[-1])
            outputs.append(probability.reshape(shape).permute(0, 3, 1, 2))
        return tuple(outputs)


class WholeGraph(nn.Module):
    """One image (N, C, S, S) of all channels, group after group -> probabilities of all tasks at every pixel."""

    def __init__(self, members: Sequence[Exportable], temperature: float) -> None:
        super().__init__()
        self.encoder, self.decoder = EncoderGraph(members), DecoderGraph(members, temperature)
        self.counts = [len(group.channels) for group in members[0].config.groups]
        self.side = members[0].window_px

    def forward(self, image: Tensor) -> Tuple[Tensor, ...]:
        """See the class."""
        maps = self.encoder(*torch.split(image, self.counts, dim=1))
        centres = torch.arange(self.side, dtype=torch.float32) + 0.5
        probabilities: Tuple[Tensor, ...] = self.decoder(centres, centres, *maps)
        return probabilities


def _total(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def map_names(members: Sequence[Exportable]) -> List[str]:
    """Names of the maps between the graphs: ``<group>_stage<s>_member<m>``."""
    config = members[0].config
    stages = range(len(config.size.depths))
    return [
        f"{group.name}_stage{stage}_member{m}"
        for m in range(len(members))
        for group in config.groups
        for stage in stages
    ]


def export(
    members: Sequence[Exportable], folder: Path, temperature: float = 1.0, *, half: bool = True
) -> Dict[str, Path]:
    """Write ``encoder.onnx`` and ``decoder.onnx``.

    Args:
        members: Networks of one config, whose logits are averaged.
        folder: Existing folder.
        temperature: Divisor of the mean logit.
        half: Store large weights in half precision.

    Returns:
        Paths by name of the graph.
    """
    members = [member.eval() for member in members]
    config = members[0].config
    for member in members:
        member.bake()
    side = members[0].window_px
    raw = tuple(torch.randn(2, len(group.channels), side, side) for group in config.groups)
    names = map_names(members)
    batch = torch.export.Dim("N", min=1, max=1024)
    encoder = EncoderGraph(members).eval()
    written = {
        "encoder": _export(
            encoder,
            raw,
            ({0: batch},) * len(raw),
            [group.name for group in config.groups],
            names,
            folder / "encoder.onnx",
            half,
        )
    }
    with torch.no_grad():
        maps = encoder(*raw)
    rows, columns = torch.rand(5) * side, torch.rand(7) * side
    shapes = (
        {0: torch.export.Dim("R", min=1, max=65536)},
        {0: torch.export.Dim("Q", min=1, max=65536)},
        *({0: batch} for _ in maps),
    )
    written["decoder"] = _export(
        DecoderGraph(members, temperature).eval(),
        (rows, columns, *maps),
        shapes,
        ["rows", "columns", *names],
        list(config.tasks),
        folder / "decoder.onnx",
        half,
    )
    return written


def export_whole(members: Sequence[Exportable], path: Path, temperature: float = 1.0, *, half: bool = True) -> Path:
    """Write a graph with a single input ``image`` and all maps as output, for other tools; never shipped."""
    members = [member.eval() for member in members]
    for member in members:
        member.bake()
    config = members[0].config
    channels = sum(len(group.channels) for group in config.groups)
    image = (torch.randn(2, channels, members[0].window_px, members[0].window_px),)
    batch = torch.export.Dim("N", min=1, max=1024)
    return _export(
        WholeGraph(members, temperature).eval(), image, ({0: batch},), ["image"], list(config.tasks), path, half
    )


def _export(
    graph: nn.Module,
    arguments: Tuple[Tensor, ...],
    shapes: Tuple[Mapping[int, object], ...],
    inputs: List[str],
    outputs: List[str],
    path: Path,
    half: bool,
) -> Path:
    # A forward of *args takes its shapes as one nested tuple.
    nested: Tuple[object, ...] = tuple(shapes)
    if isinstance(graph, EncoderGraph):
        nested = (tuple(shapes),)
    elif isinstance(graph, DecoderGraph):
        nested = (*shapes[:2], tuple(shapes[2:]))
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad(), warnings.catch_warnings():
        # The exporter tells of torchvision's absence, of its own pytree and of axes that share one name: all meant.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        raw = Path(scratch) / "graph.onnx"
        torch.onnx.export(
            graph,
            arguments,
            str(raw),
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=nested,
            external_data=False,
            verbose=False,
        )
        model = onnx.load(str(raw))
    tidy(model)
    if half:
        halve(model.graph)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def tidy(model: onnx.ModelProto) -> None:
    """Make a graph small and the same on every machine, in place.

    Removes what the exporter notes about its own run (stack traces with local paths) and merges equal initialisers.
    """
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "miso-qgis", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "miso", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    _merge_equal(graph)


def _merge_equal(graph: onnx.GraphProto) -> None:
    # Digests, not the bytes: a network of 200 million weights would be held in memory once more.
    first: Dict[Tuple[int, Tuple[int, ...], bytes], str] = {}
    renamed: Dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(array.tobytes()).digest())
        if key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def halve(graph: onnx.GraphProto) -> None:
    """Store large float32 initialisers in half precision, each with a Cast that the runtime folds; in place."""
    casts = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or array.size < HALF_PRECISION_FROM:
            continue
        if tensor.name.endswith(_SINGLE_PRECISION):
            continue
        half = array.astype(np.float16)
        if not np.isfinite(half).all():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
