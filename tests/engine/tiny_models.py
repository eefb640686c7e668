"""Model folders for tests: real ONNX graphs, small enough to know every answer.

The decoder looks up one channel at the queried pixels, so that a prediction is that channel's picture: a shift, flip or
half pixel anywhere between file and map shows. The forest answers with its first feature. Both scale by ``scale`` and
add ``offset``; missing values become 0, as a network would make of them something.

A task of K > 1 classes answers with tents over that value: with t = value * (K - 1), class k has max(0, 1 - |t - k|),
so that the classes sum to 1 and the most probable one is the nearest whole number to t (:func:`tents`).
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
ORDERS = ("Andisols", "Entisols", "Gelisols", "Histosols", "Inceptisols", "Mollisols", "Spodosols")
NSP = TaskSpec(
    "Near-surface permafrost",
    ("near-surface permafrost",),
    "permafrost within 1 m",
    thresholds={"miso": {"equal_recall": 0.4}, "rf": {"equal_recall": 0.6}},
)
SOIL_ORDER = TaskSpec("Soil order", ORDERS, "order of the soil")


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
        tasks={"nsp": NSP},
        window=window,
        terrain=TerrainSpec(10.0, (0.0, 1.0, 0.0, 1.0)) if terrain else None,
        forests={"nsp": ForestSpec("rf_nsp.onnx", (ForestFeature("elevation", forest_buffer_m), ForestFeature("x")))},
    )
    return replace(base, **changes)


def two_tasks(**changes):
    """The manifest of a model with both tasks and a forest for each."""
    features = (ForestFeature("elevation"), ForestFeature("x"))
    forests = {task: ForestSpec(f"rf_{task}.onnx", features) for task in ("nsp", "soil_order")}
    return manifest(**{"tasks": {"nsp": NSP, "soil_order": SOIL_ORDER}, "forests": forests, **changes})


def tents(values, classes):
    """The answer of a task of several classes to values from 0 to 1: (classes, ...) that sum to 1."""
    heights = np.asarray(values, np.float64) * (classes - 1)
    numbers = np.arange(classes).reshape(-1, *[1] * heights.ndim)
    return np.maximum(0.0, 1.0 - np.abs(heights - numbers))


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


def answers(spec, task, source, target, scale, offset, axes):
    """Nodes that turn a value (N, 1, ...) into a task's answer (N, K, ...); ``axes`` is the number of axes."""
    classes = len(spec.tasks[task].classes)
    if classes == 1:
        return to_probability(source, target, scale, offset, f"{task}_")
    nodes, initializers = to_probability(source, f"{task}_value", scale, offset, f"{task}_")
    numbers = np.arange(classes, dtype=np.float32).reshape(1, -1, *[1] * (axes - 2))
    initializers += [
        constant(f"{task}_steps", classes - 1.0),
        constant(f"{task}_numbers", numbers),
        constant(f"{task}_one", 1.0),
    ]
    steps = (
        ("Mul", [f"{task}_value", f"{task}_steps"], f"{task}_height"),
        ("Sub", [f"{task}_height", f"{task}_numbers"], f"{task}_off"),
        ("Abs", [f"{task}_off"], f"{task}_distance"),
        ("Sub", [f"{task}_one", f"{task}_distance"], f"{task}_tent"),
        ("Relu", [f"{task}_tent"], target),
    )
    return [*nodes, *(helper.make_node(name, given, [made]) for name, given, made in steps)], initializers


def decoder(spec, scale, offset):
    """Answers with the first channel at (floor(row), floor(column)); the other maps are named, not used."""
    size = spec.window.size_px
    first = f"{spec.groups[0].name}_map"
    pick = [
        helper.make_node("Slice", [first, "start", "stop", "axis"], ["channel"]),
        helper.make_node("Floor", ["rows"], ["row_floor"]),
        helper.make_node("Cast", ["row_floor"], ["row"], to=TensorProto.INT64),
        helper.make_node("Floor", ["columns"], ["column_floor"]),
        helper.make_node("Cast", ["column_floor"], ["column"], to=TensorProto.INT64),
        helper.make_node("Gather", ["channel", "row"], ["of_rows"], axis=2),
        helper.make_node("Gather", ["of_rows", "column"], ["picked"], axis=3),
    ]
    initializers = [constant("start", [0], np.int64), constant("stop", [1], np.int64), constant("axis", [1], np.int64)]
    for task in spec.tasks:
        nodes, more = answers(spec, task, "picked", task, scale, offset, 4)
        pick, initializers = [*pick, *nodes], [*initializers, *more]
    inputs = [(f"{group.name}_map", ["N", len(group.channels), size, size]) for group in spec.groups]
    inputs += [("rows", ["R"]), ("columns", ["Q"])]
    outputs = [(task, ["N", len(about.classes), "R", "Q"]) for task, about in spec.tasks.items()]
    return model_bytes(pick, inputs, outputs, initializers)


def forest(spec, scale, offset, task="nsp"):
    """Answers with the first feature."""
    count, classes = len(spec.forests[task].features), len(spec.tasks[task].classes)
    nodes, initializers = answers(spec, task, "first", "probabilities", scale, offset, 2)
    cut = helper.make_node("Slice", ["features", "start", "stop", "axis"], ["first"])
    initializers += [constant("start", [0], np.int64), constant("stop", [1], np.int64), constant("axis", [1], np.int64)]
    return model_bytes([cut, *nodes], [("features", ["M", count])], [("probabilities", ["M", classes])], initializers)


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
    for task in spec.forests:
        wanted = (scale if rf_scale is None else rf_scale, offset if rf_offset is None else rf_offset)
        (folder / f"rf_{task}.onnx").write_bytes(forest(spec, *wanted, task))
    (folder / "MODEL_CARD.md").write_text("A model for tests.\n", encoding="utf-8")
    write_manifest(spec, folder)
    write_sums(folder)
    return folder
