"""How often a file is opened, whoever does it and however."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_counts: dict[str, int] = {}  # of the files that are watched; Python takes no hook away again


@contextmanager
def opens_of(path: Path) -> Iterator[list[int]]:
    """A list that holds, after the block, how often the file was opened in it."""
    _hook_once()
    name, found = os.path.realpath(path), list[int]()
    _counts[name] = 0
    try:
        yield found
    finally:
        found.append(_counts.pop(name))


def _hook_once() -> None:
    if not getattr(_hook, "is_set", False):
        sys.addaudithook(_hook)
        _hook.is_set = True  # type: ignore[attr-defined]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counts and isinstance(arguments[0], (str, bytes)):
        name = os.path.realpath(os.fsdecode(arguments[0]))
        if name in _counts:
            _counts[name] += 1
