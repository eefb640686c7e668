"""What an ONNX file may contain before the runtime is allowed to see it.

The runtime follows paths to external data and loads operators of any domain that it knows; both have led to reads
outside the model folder and to crashes. A model here is one self-contained file of standard operators. The check walks
the file's protobuf fields itself, so that the engine needs no onnx package; field numbers are those of onnx.proto3
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

from typing import Dict, Iterator, Tuple, Union

LARGEST_BYTES = 1_500_000_000
# The newest operator sets that the oldest supported runtime knows.
NEWEST_OPSET = {"": 22, "ai.onnx": 22, "ai.onnx.ml": 5}
_DEEPEST = 32

_Field = Tuple[int, Union[int, memoryview]]


class PolicyError(ValueError):
    """Raised when a graph is malformed or holds something that is not allowed. The text says what."""


def check_graph(data: bytes) -> Dict[str, int]:
    """Check an ONNX file's bytes.

    Returns:
        Opset version by domain.

    Raises:
        PolicyError: If it is no ONNX model, holds external data, operators outside the standard domains, or needs a
            newer operator set than the runtime is sure to know.
    """
    if not data:
        raise PolicyError("the file is empty")
    opsets: Dict[str, int] = {}
    graphs = 0
    for number, value in _fields(memoryview(data)):
        if number == 7:
            graphs += 1
            _check_body(_message(value), 0)
        elif number == 8:
            domain, version = _opset(_message(value))
            opsets[domain] = max(version, opsets.get(domain, 0))
        elif number == 25:
            _check_function(_message(value))
        elif number == 20:
            raise PolicyError("it holds training information")
    if graphs != 1 or not opsets:
        raise PolicyError("it is not an ONNX model")
    for domain, version in opsets.items():
        _check_domain(domain)
        if version > NEWEST_OPSET[domain]:
            raise PolicyError(
                f"it needs operator set {version} of '{domain or 'ai.onnx'}', the newest supported is "
                f"{NEWEST_OPSET[domain]}"
            )
    return opsets


def _check_domain(domain: str) -> None:
    if domain not in NEWEST_OPSET:
        raise PolicyError(f"it uses operators of the domain '{domain}'")


def _check_body(graph: memoryview, depth: int) -> None:
    """Check a GraphProto."""
    if depth > _DEEPEST:
        raise PolicyError("its graphs are nested too deeply")
    for number, value in _fields(graph):
        if number == 1:
            _check_node(_message(value), depth)
        elif number == 5:
            _check_tensor(_message(value))
        elif number == 15:
            _check_sparse(_message(value))


def _check_function(function: memoryview) -> None:
    """Check a FunctionProto (a model-local function)."""
    for number, value in _fields(function):
        if number == 7:
            _check_node(_message(value), 0)
        elif number == 10:
            _check_domain(_text(value))
        elif number == 11:
            _check_attribute(_message(value), 0)


def _check_node(node: memoryview, depth: int) -> None:
    for number, value in _fields(node):
        if number == 7:
            _check_domain(_text(value))
        elif number == 5:
            _check_attribute(_message(value), depth)


def _check_attribute(attribute: memoryview, depth: int) -> None:
    for number, value in _fields(attribute):
        if number in (5, 10):  # t, tensors
            _check_tensor(_message(value))
        elif number in (6, 11):  # g, graphs
            _check_body(_message(value), depth + 1)
        elif number in (22, 23):  # sparse_tensor, sparse_tensors
            _check_sparse(_message(value))


def _check_sparse(sparse: memoryview) -> None:
    for number, value in _fields(sparse):
        if number in (1, 2):  # values, indices
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise PolicyError("it refers to external data, in another file")


def _opset(message: memoryview) -> Tuple[str, int]:
    domain, version = "", 0
    for number, value in _fields(message):
        if number == 1:
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _message(value: Union[int, memoryview]) -> memoryview:
    if isinstance(value, int):
        raise PolicyError("it is not an ONNX model")
    return value


def _text(value: Union[int, memoryview]) -> str:
    try:
        return bytes(_message(value)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError("it is not an ONNX model") from error


def _fields(data: memoryview) -> Iterator[_Field]:
    """Yield (field number, value): an int for a varint, bytes for a length-delimited field, 0 for fixed numbers."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise PolicyError("it is not an ONNX model")
        if wire == 0:
            integer, position = _varint(data, position)
            yield number, integer
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise PolicyError("it is not an ONNX model")
        if position + length > end:
            raise PolicyError("it is cut off")
        yield number, data[position : position + length] if wire == 2 else 0
        position += length


def _varint(data: memoryview, position: int) -> Tuple[int, int]:
    result, shift = 0, 0
    while True:
        if position >= len(data) or shift > 63:
            raise PolicyError("it is cut off or not an ONNX model")
        byte = data[position]
        result |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return result, position
        shift += 7
