"""Model folders for tests: real ONNX graphs, small enough to know every answer.

The decoder looks up one channel at the queried pixels, so that a prediction is that channel's picture: a shift, flip or
half pixel anywhere between file and map shows. The forest answers with its first feature. Both scale by ``scale`` and
add ``offset``; missing values become 0, as a network would make of them something.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from miso_qgis.engine.manifest import (
    ChannelSpec,
    ForestFeature,
    ForestSpec,
    GroupSpec,
    InputSpec,
    Manifest,
    TaskSpec,
    TerrainSpec,
    WindowSpec,
    write_manifest,
)

pytest.importorskip("onnx", reason="the tests' models are built with the onnx package (training environment)")
from onnx import TensorProto, helper, numpy_helper

WINDOW = WindowSpec(size_px=64, resolution_m=10.0, stride_px=40, decode_px=48, weight="cosine")
LEGEND = {"41": "Deciduous forest", "42": "Evergreen forest", "52": "Shrub"}
DEM = InputSpec("continuous", "Digital elevation model", "m", (-100.0, 6500.0), 10.0)
NLCD = InputSpec("classes", "Land cover", legend=LEGEND)


def manifest(window=WINDOW, *, terrain=False, forest_buffer_m=0.0, **changes):
    """A manifest with the inputs dem and nlcd, taken as they are unless ``terrain``."""
    elevation = ChannelSpec("elevation", "dem", "terrain.elevation" if terrain else "value", unit="m", range=(0, 1000))
    groups = [GroupSpec("terrain", (elevation,))]
    if terrain:
        slope = ChannelSpec("slope", "dem", "terrain.slope", unit="deg", range=(0, 60))
        groups = [GroupSpec("terrain", (elevation, slope))]
    classes = tuple(ChannelSpec(f"nlcd_{code}", "nlcd", "one_hot", int(code)) for code in LEGEND)
    groups.append(GroupSpec("surface", classes))
    base = Manifest(
        format=1,
        name="tiny",
        title="Tiny test model",
        version="1",
        licence="none",
        citation="none",
        simulated=True,
        inputs={"dem": DEM, "nlcd": NLCD},
        groups=tuple(groups),
        tasks={
            "nsp": TaskSpec(
                "Near-surface permafrost",
                ("near-surface permafrost",),
                "permafrost within 1 m",
                thresholds={"miso": {"equal_recall": 0.4}, "rf": {"equal_recall": 0.6}},
            )
        },
        window=window,
        terrain=TerrainSpec(10.0, (0.0, 1.0, 0.0, 1.0)) if terrain else None,
        forests={"nsp": ForestSpec("rf_nsp.onnx", (ForestFeature("elevation", forest_buffer_m), ForestFeature("x")))},
    )
    return replace(base, **changes)


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def to_probability(source, target, scale, offset, prefix=""):
    """clip(scale * value + offset, 0, 1) with 0 for NaN."""
    keys = ("nan", "zero", "clean", "scale", "offset", "scaled", "sum", "low", "high")
    names = {key: f"{prefix}{key}" for key in keys}
    nodes = [
        helper.make_node("IsNaN", [source], [names["nan"]]),
        helper.make_node("Where", [names["nan"], names["zero"], source], [names["clean"]]),
        helper.make_node("Mul", [names["clean"], names["scale"]], [names["scaled"]]),
        helper.make_node("Add", [names["scaled"], names["offset"]], [names["sum"]]),
        helper.make_node("Clip", [names["sum"], names["low"], names["high"]], [target]),
    ]
    values = {"zero": 0.0, "scale": scale, "offset": offset, "low": 0.0, "high": 1.0}
    return nodes, [constant(names[key], value) for key, value in values.items()]


def model_bytes(nodes, inputs, outputs, initializers, opset=18, **options):
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "tiny", [info(*i) for i in inputs], [info(*o) for o in outputs], initializer=initializers
    )
    opsets = options.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **options).SerializeToString()


def encoder(spec):
    """Passes every group on as the map ``<group>_map``."""
    size = spec.window.size_px
    nodes = [helper.make_node("Identity", [group.name], [f"{group.name}_map"]) for group in spec.groups]
    inputs = [(group.name, ["N", len(group.channels), size, size]) for group in spec.groups]
    outputs = [(f"{group.name}_map", ["N", len(group.channels), size, size]) for group in spec.groups]
    return model_bytes(nodes, inputs, outputs, [])


def decoder(spec, scale, offset):
    """Answers with the first channel at (floor(row), floor(column)); the other maps are named, not used."""
    size = spec.window.size_px
    first = f"{spec.groups[0].name}_map"
    nodes, initializers = to_probability("picked", "nsp", scale, offset)
    pick = [
        helper.make_node("Slice", [first, "start", "stop", "axis"], ["channel"]),
        helper.make_node("Floor", ["rows"], ["row_floor"]),
        helper.make_node("Cast", ["row_floor"], ["row"], to=TensorProto.INT64),
        helper.make_node("Floor", ["columns"], ["column_floor"]),
        helper.make_node("Cast", ["column_floor"], ["column"], to=TensorProto.INT64),
        helper.make_node("Gather", ["channel", "row"], ["of_rows"], axis=2),
        helper.make_node("Gather", ["of_rows", "column"], ["picked"], axis=3),
    ]
    initializers += [constant("start", [0], np.int64), constant("stop", [1], np.int64), constant("axis", [1], np.int64)]
    inputs = [(f"{group.name}_map", ["N", len(group.channels), size, size]) for group in spec.groups]
    inputs += [("rows", ["R"]), ("columns", ["Q"])]
    return model_bytes([*pick, *nodes], inputs, [("nsp", ["N", 1, "R", "Q"])], initializers)


def forest(spec, scale, offset):
    """Answers with the first feature."""
    count = len(spec.forests["nsp"].features)
    nodes, initializers = to_probability("first", "probabilities", scale, offset)
    cut = helper.make_node("Slice", ["features", "start", "stop", "axis"], ["first"])
    initializers += [constant("start", [0], np.int64), constant("stop", [1], np.int64), constant("axis", [1], np.int64)]
    return model_bytes([cut, *nodes], [("features", ["M", count])], [("probabilities", ["M", 1])], initializers)


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS in the form of ``sha256sum *``."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def write_model(folder: Path, spec=None, *, scale=0.001, offset=0.0, rf_scale=None, rf_offset=None) -> Path:
    """Write a complete model folder and return it. By default 0 to 1000 m become probabilities 0 to 1."""
    spec = spec or manifest()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoder.onnx").write_bytes(encoder(spec))
    (folder / "decoder.onnx").write_bytes(decoder(spec, scale, offset))
    if spec.forests:
        wanted = (scale if rf_scale is None else rf_scale, offset if rf_offset is None else rf_offset)
        (folder / "rf_nsp.onnx").write_bytes(forest(spec, *wanted))
    (folder / "MODEL_CARD.md").write_text("A model for tests.\n", encoding="utf-8")
    write_manifest(spec, folder)
    write_sums(folder)
    return folder
