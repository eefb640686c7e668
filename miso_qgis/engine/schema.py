"""Strict conversion between JSON and frozen dataclasses: unknown keys, missing keys and wrong types are errors.

Standard library only. Understands str, int, float, bool, Any, Optional, List, Tuple[..., ...], Dict[str, ...],
Literal-free unions with None, and nested dataclasses. One place for the job file, the messages and the manifest.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Dict, List, Type, TypeVar, Union

T = TypeVar("T")


class SchemaError(ValueError):
    """Raised when a JSON document does not have the declared form. The text names the key by its path."""


def to_json(value: Any) -> Any:  # noqa: ANN401  # reason: JSON is any of its types
    """Turn a dataclass (or a container of them) into what :mod:`json` can write. None-valued fields are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {_json_key(name): to_json(item) for name, item in items if item is not None}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Type[T], data: Any, where: str = "") -> T:  # noqa: ANN401  # reason: as above
    """Build a ``kind`` (a dataclass) from parsed JSON.

    Raises:
        SchemaError: If a key is unknown or missing, or a value has the wrong type; the text holds its path.
    """
    return typing.cast(T, _convert(kind, data, where or kind.__name__))


def _json_key(name: str) -> str:
    # A trailing underscore keeps Python keywords usable as JSON keys: ``from_`` is written ``from``.
    return name[:-1] if name.endswith("_") else name


def _convert(kind: Any, data: Any, where: str) -> Any:  # noqa: ANN401
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is Union:
        if data is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(inner, data, where)
    if origin in (list, List):
        _require(isinstance(data, list), where, "a list", data)
        return [_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data)]
    if origin is tuple:
        _require(isinstance(data, (list, tuple)), where, "a list", data)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        _require(len(data) == len(arguments), where, f"a list of {len(arguments)}", data)
        return tuple(_convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, data)))
    if origin in (dict, Dict):
        _require(isinstance(data, dict), where, "an object", data)
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    if kind is float:
        _require(isinstance(data, (int, float)) and not isinstance(data, bool), where, "a number", data)
        return float(data)
    if kind is int:
        _require(isinstance(data, int) and not isinstance(data, bool), where, "a whole number", data)
        return data
    _require(
        isinstance(data, kind), where, {"str": "a text", "bool": "true or false"}.get(kind.__name__, str(kind)), data
    )
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:  # noqa: ANN401
    _require(isinstance(data, dict), where, "an object", data)
    hints = typing.get_type_hints(kind)
    fields = {_json_key(f.name): f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise SchemaError(f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join(sorted(fields))}")
    values = {}
    for key, field in fields.items():
        if key in data:
            values[field.name] = _convert(hints[field.name], data[key], f"{where}.{key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{where}: key {key!r} is missing")
    return kind(**values)


def _require(condition: bool, where: str, needed: str, found: Any) -> None:  # noqa: ANN401
    if not condition:
        raise SchemaError(f"{where}: {needed} is needed, found {found!r}")
