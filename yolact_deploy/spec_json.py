"""Dataclasses to JSON values and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from yolact_deploy.errors import SpecError

T = TypeVar("T")
_SHOWN_CHARS = 60
SINCE = "since"  # in a field's metadata: the schema version that brought it; without it, 1


def encode(value: Any, schema_version: int | None = None) -> Any:
    """Dataclasses become objects, tuples become lists. Fields that `schema_version` does not know are left out."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: encode(getattr(value, f.name), schema_version)
            for f in dataclasses.fields(value)
            if schema_version is None or f.metadata.get(SINCE, 1) <= schema_version
        }
    if isinstance(value, (tuple, list)):
        return [encode(item, schema_version) for item in value]
    return value


def lowest_schema_version(value: Any) -> int:
    """The lowest version that loses nothing of a dataclass: later fields have their defaults."""
    if not dataclasses.is_dataclass(value):
        return 1
    versions = [1]
    for f in dataclasses.fields(value):
        held = getattr(value, f.name)
        versions.append(lowest_schema_version(held))
        if held != f.default:
            versions.append(f.metadata.get(SINCE, 1))
    return max(versions)


def decode(cls: type[T], value: Any, path: str) -> T:
    """Build the dataclass `cls` from a JSON object; `path` names it in errors.

    Raises SpecError for a missing, unknown or wrongly typed field.
    """
    if not isinstance(value, dict):
        raise SpecError(f"{path} must be an object, found {_describe(value)}.")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in value:
        if name not in fields:
            raise SpecError(f"{path} has the unknown field {_show(name)}; known are {', '.join(fields)}.")
    arguments: dict[str, Any] = {}
    for name, info in fields.items():
        if name in value:
            arguments[name] = _decode_value(hints[name], value[name], f"{path}.{name}")
        elif info.default is dataclasses.MISSING and info.default_factory is dataclasses.MISSING:
            raise SpecError(f"{path} lacks the field {name!r}.")
    return cls(**arguments)


def _decode_value(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type[Any], hint), value, path)
    if origin is tuple:
        return _decode_tuple(args, value, path)
    if origin is typing.Literal:
        if value not in args:
            raise SpecError(f"{path} must be one of {', '.join(map(repr, args))}, found {_show(value)}.")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _decode_value(next(a for a in args if a is not type(None)), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return value  # kept as written: 24 and 24.0 are the same scale
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise SpecError(f"{path} must be {hint.__name__}, found {_describe(value)}.")
    return value


def _decode_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{path} must be a list, found {_describe(value)}.")
    if len(args) == 2 and args[1] is Ellipsis:
        hints = [args[0]] * len(value)
    else:
        if len(value) != len(args):
            raise SpecError(f"{path} must have {len(args)} entries, found {len(value)}.")
        hints = list(args)
    return tuple(_decode_value(h, item, f"{path}[{i}]") for i, (h, item) in enumerate(zip(hints, value, strict=True)))


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {_show(value)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
