"""Carriers to JSON and back, exactly: what is read equals what was written.

Driven by the type hints of the dataclasses in cdiff.types, so that a new field needs no code here. Bytes travel as
base64, tuples as lists. Infinite and undefined numbers use Python's `Infinity` and `NaN`, which `json` reads back.
"""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

_PLAIN = frozenset({str, bool, int, float, type(None)})


def to_json(value: Any) -> Any:
    """Turn carriers, and mappings and sequences of them, into what `json.dumps` takes.

    Raises:
        TypeError: a value that would not come back as it was (an array, a set, a path).
    """
    kind: Any = type(value)
    if kind in _PLAIN:  # most of what there is; subclasses, as numpy's float64, are below
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _names(kind)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {_key(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"a {type(value).__name__} cannot be written to the ledger; give plain numbers, text or carriers"
    )


def from_json(kind: Any, value: Any) -> Any:
    """Build a carrier (or a tuple, list or mapping of carriers) of the given type from what `to_json` made of it.

    Raises:
        ValueError: a field is missing, unknown, or of another type.
    """
    return _read(kind, value)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys in the ledger are text, not {type(key).__name__}")
    return key


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_carrier(kind, value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _expect(value in inner, kind, value)
    if origin in (typing.Union, types.UnionType):
        return _read_union(inner, kind, value)
    if origin in (tuple, list, Sequence):
        return _read_sequence(origin, inner, kind, value)
    if origin in (dict, Mapping):
        _expect(isinstance(value, dict), kind, value)
        return {key: _read(inner[1], item) for key, item in value.items()}
    return _read_plain(kind, value)


def _read_plain(kind: Any, value: Any) -> Any:
    if kind is bytes:
        return base64.b64decode(_expect(isinstance(value, str), kind, value), validate=True)
    if kind is float:
        # An int stays one: it compares equal as it is, and hashes of carriers tell 0 from 0.0.
        return _expect(isinstance(value, int | float) and not isinstance(value, bool), kind, value)
    return _expect(type(value) is kind, kind, value)


def _read_carrier(kind: type, value: Any) -> Any:
    _expect(isinstance(value, dict), kind, value)
    hints = {field.name: _hints(kind)[field.name] for field in dataclasses.fields(kind)}
    missing = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    } - set(value)
    unknown = set(value) - set(hints)
    if missing or unknown:
        raise ValueError(f"{kind.__name__}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    return kind(**{name: _read(hints[name], item) for name, item in value.items()})


def _read_union(inner: tuple[Any, ...], kind: Any, value: Any) -> Any:
    if value is None:
        return _expect(type(None) in inner, kind, value)
    for option in inner:
        if option is not type(None):
            try:
                return _read(option, value)
            except ValueError:
                continue
    return _expect(False, kind, value)


def _read_sequence(origin: type, inner: tuple[Any, ...], kind: Any, value: Any) -> Any:
    _expect(isinstance(value, list), kind, value)
    if origin is not tuple or inner[-1] is Ellipsis:
        return (tuple if origin is tuple else list)(_read(inner[0], item) for item in value)
    _expect(len(value) == len(inner), kind, value)
    return tuple(_read(part, item) for part, item in zip(inner, value, strict=True))


def _expect(holds: bool, kind: Any, value: Any) -> Any:
    if not holds:
        raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {value!r:.80}")
    return value
