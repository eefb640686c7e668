"""A fitted Random Forest as one ONNX graph of sub-forests, built from scikit-learn's arrays.

Graph: ``features`` (M, F) float32 -> one ``TreeEnsembleRegressor`` per sub-forest, whose targets are the classes and
whose leaves hold the shares of their training sites -> ``Sum`` -> ``Mul`` by 1 / trees -> ``Clip`` ->
``probabilities`` (M, K) float32, K = 1 (the second class) for a binary task. That is the mean of the trees, as
scikit-learn computes it. Sub-forests, because the nodes of a whole forest do not fit into a processor's cache: the
runtime walks one sub-forest at a time over many rows. Sizes and speeds are in docs/random-forest.md.

No converter: its classifier stores every class of every leaf and needed 4.7 GB for seven classes; here a leaf lists
only the classes that occur in it, and one sub-forest's lists exist at a time.

**Exactness.** scikit-learn compares a float32 feature with a float64 threshold, ``x <= t``. For every float32 ``x``
that is the same as ``x <= f`` with f the largest float32 that is not above t, so thresholds are rounded *down*
(:func:`round_down`); rounding to nearest would send a feature that equals the rounded threshold to the wrong side.
Sums run in float32 over at most a sub-forest's trees: probabilities are within 1e-6 (2e-7 seen), and the most probable
class is the same but where two are equally probable (1 of 100,000 rows with 253 trees), which scikit-learn decides by
the last bit of its sums. In float64 throughout, files and times grow by 5 % and such ties stay.

A NaN is never ``<=`` anything, so it takes the right branch of every node. The engine never shows the forest a pixel
with a missing value, and fitting refuses one.

**Compression** (:class:`Compression`) trades exactness for size; :mod:`training.forest_size` measures the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier

from miso_qgis.engine.errors import InputError

FloatArray = NDArray[np.float32]

# Standard domains of onnxruntime releases that still run on old systems.
OPSET = 18
OPSET_ML = 3
IR_VERSION = 8
PARITY = 1e-6  # largest difference of a probability between an uncompressed graph and scikit-learn
# 253 trees in 8 parts: within 3 % of the speed of 16 parts and 5 % smaller in the zip (docs/random-forest.md).
SUBFOREST_TREES = 32
_MANTISSA_BITS = 23


@dataclass(frozen=True)
class Compression:
    """What may be rounded to make the file smaller.

    Attributes:
        leaf_bits: Shares of a leaf become multiples of 2 ** -leaf_bits, and still sum to 1; None keeps them.
        threshold_bits: Bits of the thresholds' mantissa that are kept (float32 has 23); None keeps all, exactly.
    """

    leaf_bits: Optional[int] = None
    threshold_bits: Optional[int] = None

    def __post_init__(self) -> None:
        for name, bits, most in (("Leaf", self.leaf_bits, 16), ("Threshold", self.threshold_bits, _MANTISSA_BITS)):
            if bits is not None and not 1 <= bits <= most:
                raise InputError(f"{name} bits", f"they are {bits}.", f"1 to {most} are possible.", "Use 10, say.")


EXACT = Compression()


def export_forest(
    model: RandomForestClassifier,
    classes: int,
    compression: Compression = EXACT,
    subforest_trees: int = SUBFOREST_TREES,
) -> onnx.ModelProto:
    """Write a fitted forest as ONNX.

    Args:
        model: Fitted on integer labels, each an index below ``classes``; classes that its training did not hold get
            probability 0 in their own column.
        classes: Classes of the task; 2 gives one column, the probability of class 1.
        compression: What may be rounded.
        subforest_trees: Trees per sub-forest at most.

    Returns:
        The graph; the same model gives the same bytes when serialised deterministically.

    Raises:
        ValueError: If a label of the model is not below ``classes``, or it knows one class only.
    """
    labels = np.asarray(model.classes_).astype(int)
    if labels.size < 2:
        raise ValueError("a forest of one class has nothing to tell apart")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"the forest's classes {labels.tolist()} are not all below {classes}")
    columns = 1 if classes == 2 else classes
    # The column of each of the forest's classes; absent is no column of a binary task.
    column_of = [int(label) - 1 if classes == 2 else int(label) for label in labels]
    trees = [estimator.tree_ for estimator in model.estimators_]
    parts = [trees[start : start + subforest_trees] for start in range(0, len(trees), subforest_trees)]
    nodes = [_subforest(number, part, column_of, columns, compression) for number, part in enumerate(parts)]
    leaf_unit = 1.0 if compression.leaf_bits is None else 2.0**-compression.leaf_bits
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("Sum", [f"sum_{number}" for number in range(len(parts))], ["sum"]),
            helper.make_node("Mul", ["sum", "share_of_a_tree"], ["mean"]),
            # Rounding may take the mean past 1 in the last bit.
            helper.make_node("Clip", ["mean", "low", "high"], ["probabilities"]),
        ],
        "rf",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["M", int(model.n_features_in_)])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["M", columns])],
        [
            helper.make_tensor(name, TensorProto.FLOAT, [], [value])
            for name, value in (("share_of_a_tree", leaf_unit / len(trees)), ("low", 0.0), ("high", 1.0))
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="miso-qgis")
    onnx.checker.check_model(proto)
    return proto


def round_down(thresholds: NDArray[np.float64]) -> FloatArray:
    """Return the largest float32 that is not above each threshold, (N,).

    Example: 0.1 lies between the float32 0.09999999403953552 and 0.10000000149011612; the nearest is the upper one,
    and a feature with that value is above the threshold, so the lower one is returned.
    """
    nearest = thresholds.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    result: FloatArray = np.where(nearest.astype(np.float64) > thresholds, below, nearest).astype(np.float32)
    return result


def shorten(thresholds: FloatArray, bits: int) -> FloatArray:
    """Return thresholds with the mantissa rounded to ``bits`` bits (half up in magnitude); zeros compress well."""
    dropped = _MANTISSA_BITS - bits
    if dropped == 0:
        return thresholds
    words = thresholds.view(np.uint32).astype(np.uint64)
    # A carry into the exponent is right: 1.99 becomes 2.0.
    kept = (words + np.uint64(1 << (dropped - 1))) & ~np.uint64((1 << dropped) - 1)
    result: FloatArray = kept.astype(np.uint32).view(np.float32)
    return result


def whole_shares(shares: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Return shares in units of 2 ** -bits, whole numbers that sum to 2 ** bits in each row (largest remainders).

    Args:
        shares: (N, K), rows sum to 1.
        bits: See :class:`Compression`.
    """
    scaled = shares * 2.0**bits
    whole = np.floor(scaled)
    missing = np.rint(2.0**bits - whole.sum(axis=1)).astype(int)
    order = np.argsort(-(scaled - whole), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    result: NDArray[np.float64] = whole + (rank < missing[:, None])
    return result


def _subforest(
    number: int, trees: Sequence[Any], column_of: Sequence[int], columns: int, compression: Compression
) -> onnx.NodeProto:
    lists = _Lists()
    for tree, structure in enumerate(trees):
        lists.add(tree, structure, column_of, compression)
    node = helper.make_node("TreeEnsembleRegressor", ["features"], [f"sum_{number}"], domain="ai.onnx.ml")
    node.attribute.extend(lists.attributes(columns))
    return node


class _Lists:
    """The flat lists by which ONNX describes trees."""

    def __init__(self) -> None:
        self._lists: Dict[str, List[NDArray[Any]]] = {}

    def _extend(self, name: str, values: NDArray[Any]) -> None:
        self._lists.setdefault(name, []).append(values)

    def add(self, tree: int, structure: Any, column_of: Sequence[int], compression: Compression) -> None:  # noqa: ANN401
        """Add one of scikit-learn's trees as number ``tree``."""
        leaf = structure.children_left < 0
        thresholds = np.zeros(leaf.size, np.float32)
        exact = round_down(structure.threshold[~leaf])
        bits = compression.threshold_bits
        thresholds[~leaf] = exact if bits is None else shorten(exact, bits)
        self._extend("nodes_treeids", np.full(leaf.size, tree))
        self._extend("nodes_nodeids", np.arange(leaf.size))
        self._extend("nodes_modes", np.where(leaf, b"LEAF", b"BRANCH_LEQ"))
        self._extend("nodes_featureids", np.where(leaf, 0, structure.feature))
        self._extend("nodes_values", thresholds)
        self._extend("nodes_truenodeids", np.where(leaf, 0, structure.children_left))
        self._extend("nodes_falsenodeids", np.where(leaf, 0, structure.children_right))
        shares = structure.value[leaf, 0, :]
        shares = shares / shares.sum(axis=1, keepdims=True)
        if compression.leaf_bits is not None:
            shares = whole_shares(shares, compression.leaf_bits)
        kept = np.asarray(column_of) >= 0
        weights, targets = shares[:, kept], np.asarray(column_of)[kept]
        # Only classes that occur; a leaf without any of them still needs one entry.
        listed = weights > 0
        if targets.size:
            listed[~listed.any(axis=1), 0] = True
        which, column = np.nonzero(listed)
        self._extend("target_treeids", np.full(which.size, tree))
        self._extend("target_nodeids", np.flatnonzero(leaf)[which])
        self._extend("target_ids", targets[column])
        self._extend("target_weights", weights[listed].astype(np.float32))

    def attributes(self, columns: int) -> List[onnx.AttributeProto]:
        """Return the attributes of the ONNX node."""
        made = [helper.make_attribute(name, np.concatenate(parts).tolist()) for name, parts in self._lists.items()]
        made += [helper.make_attribute("n_targets", columns), helper.make_attribute("aggregate_function", "SUM")]
        return [*made, helper.make_attribute("post_transform", "NONE")]
