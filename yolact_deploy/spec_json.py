"""JSON: files of others read strictly, and dataclasses to JSON values and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from typing import Any, TypeVar

from yolact_deploy.errors import SpecError
from yolact_deploy.files import read_bytes
from yolact_deploy.text import is_printable, shorten

MAX_DEPTH = 64  # our own files need 6
_MAX_INTEGER_CHARS = 18  # what surely fits 64 bits
_SHOWN_OF_FILE = 40
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
# An escaped half of a character beyond 16 bits without its other half: no encoding can write such a string.
_HALF_CHARACTER = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F])"
)
_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b'"[]{}')))
T = TypeVar("T")
_SHOWN_CHARS = 60
_MAX_NAME_CHARS = 200  # names are printed, drawn and put into tables
SINCE = "since"  # in a field's metadata: the schema version that brought it; without it, 1


class JsonError(ValueError):
    """Text that is no JSON, or JSON that is refused; the message goes after "is not valid JSON: "."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises OSError for a file that can't be read, JsonError for what it holds."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, as UTF-8 if it is bytes, with or without a byte order mark.

    Raises JsonError for text that is no JSON, an object that has a key twice, nesting deeper than MAX_DEPTH, integers of more
    than 18 digits, numbers that are not finite, and strings that no encoding can write.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    yolact_deploy.spec_json.JsonError: the key 'a' is given twice in one object
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        decoded = text if isinstance(text, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise JsonError(f"it is not UTF-8 text (byte {exc.start})") from exc
    if (depth := _depth(data)) > MAX_DEPTH:
        raise JsonError(f"it is nested {depth} deep, {MAX_DEPTH} are read")
    if _HALF_CHARACTER.search(data):
        raise JsonError("a string in it holds half a character (a lone surrogate)")
    try:
        return json.loads(decoded.removeprefix("\ufeff"), object_pairs_hook=_object, **_NUMBERS)
    except JsonError:
        raise
    except ValueError as exc:
        raise JsonError(str(exc)) from exc


def _depth(data: bytes) -> int:
    """How deep lists and objects are nested in valid JSON: what is left of it without strings are brackets."""
    without_escapes = _ESCAPE.sub(b"", data) if b"\\" in data else data
    import numpy as np  # only here: names and choices, which `--help` shows, are light

    brackets = np.frombuffer(_STRING.sub(b"", without_escapes.translate(None, delete=_NOT_STRUCTURE)), np.uint8)
    opening, closing = np.isin(brackets, list(b"[{")), np.isin(brackets, list(b"]}"))
    return int(np.cumsum(opening.astype(np.int64) - closing).max(initial=0))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = twice if len(twice) <= _SHOWN_OF_FILE else f"{twice[:_SHOWN_OF_FILE]}…"
        raise JsonError(f"the key {shown!r} is given twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_CHARS:
        raise JsonError(f"the integer {digits[:_MAX_INTEGER_CHARS]}… has {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)  # "NaN", "Infinity" and "-Infinity" as well, which JSON does not have but Python's reads
    if not math.isfinite(value):
        raise JsonError(f"{shorten(digits)} is no number of JSON's, or too large for one")
    return value


_NUMBERS: dict[str, Any] = {"parse_int": _integer, "parse_float": _real, "parse_constant": _real}


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


def read_spec_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of a spec file, not yet checked. Raises SpecError when it can't be read or is no object."""
    try:
        value = read_json(path)
    except OSError as exc:
        raise SpecError(f"can't read the spec file {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise SpecError(f"{path} is not valid JSON: {exc}.") from exc
    if not isinstance(value, dict):
        raise SpecError(f"{path} must hold a JSON object, found {type(value).__name__}.")
    return value


def require_showable_name(field: str, name: str) -> None:
    """Raise SpecError for a name of a class or a model that can't be shown: empty, too long, or with control characters."""
    problem = (
        "is empty"
        if not name.strip()
        else f"has {len(name)} characters, {_MAX_NAME_CHARS} are allowed"
        if len(name) > _MAX_NAME_CHARS
        else "holds control characters"
        if not is_printable(name)
        else None
    )
    if problem:
        raise SpecError(f"{field} {problem}: '{shorten(name)}'. Give a name that can be shown.")
