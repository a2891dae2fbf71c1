"""JSON that somebody else may have written: specs, sidecars, annotations, baselines, calibration caches.

One reader for all of them, stricter than Python's, because what comes out of it is walked, compared and printed: no key
twice (the last would win unseen), no nesting that exhausts the stack of whoever walks it, no integer that fits no array, no
string that can't be written again.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np

from yolact_deploy.files import read_bytes

MAX_DEPTH = 64  # our own files need 6
_MAX_INTEGER_CHARS = 18  # what surely fits 64 bits
_SHOWN_CHARS = 40
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
# An escaped half of a character beyond 16 bits without its other half: no encoding can write such a string.
_HALF_CHARACTER = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F])"
)
_NOT_STRUCTURE = bytes(sorted(set(range(256)) - set(b'"[]{}')))


class JsonError(ValueError):
    """Text that is no JSON, or JSON that is refused; the message goes after "is not valid JSON: "."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises OSError for a file that can't be read, JsonError for what it holds."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, as UTF-8 if it is bytes, with or without a byte order mark.

    Raises JsonError for text that is no JSON, an object that has a key twice, nesting deeper than MAX_DEPTH, integers of more
    than 18 digits, and strings that no encoding can write.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    yolact_deploy.json_files.JsonError: the key 'a' is given twice in one object
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
        return json.loads(decoded.removeprefix("\ufeff"), object_pairs_hook=_object, parse_int=_integer)
    except JsonError:
        raise
    except ValueError as exc:
        raise JsonError(str(exc)) from exc


def _depth(data: bytes) -> int:
    """How deep lists and objects are nested in valid JSON: what is left of it without strings are brackets."""
    without_escapes = _ESCAPE.sub(b"", data) if b"\\" in data else data
    brackets = np.frombuffer(_STRING.sub(b"", without_escapes.translate(None, delete=_NOT_STRUCTURE)), np.uint8)
    opening, closing = np.isin(brackets, list(b"[{")), np.isin(brackets, list(b"]}"))
    return int(np.cumsum(opening.astype(np.int64) - closing).max(initial=0))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = twice if len(twice) <= _SHOWN_CHARS else f"{twice[:_SHOWN_CHARS]}…"
        raise JsonError(f"the key {shown!r} is given twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER_CHARS:
        raise JsonError(f"the integer {digits[:_MAX_INTEGER_CHARS]}… has {len(digits)} digits")
    return int(digits)
