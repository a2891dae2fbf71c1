"""Arguments of the public functions, held against what makes sense before any work is done: Python refuses what the command
line refuses, by one error of the tree."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from yolact_deploy.errors import OptionError

_SHOWN = 60  # characters of a value in a message


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise OptionError for anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, found {_shown(value)}.")


def check_share(name: str, value: Any) -> None:
    """Raise OptionError for anything but a number from 0 to 1.

    >>> check_share("score_threshold", 0.3)
    >>> check_share("score_threshold", "0.3")
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.OptionError: score_threshold must be a number from 0 to 1, found '0.3'.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise OptionError(f"{name} must be a number from 0 to 1, found {_shown(value)}.")


def check_least(name: str, value: Any, least: float) -> None:
    """Raise OptionError for anything but a finite number of at least `least`."""
    if not is_number(value) or value < least:
        raise OptionError(f"{name} must be a number of at least {least:g}, found {_shown(value)}.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise OptionError for anything but one of the words `choices`."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        raise OptionError(f"{name} must be one of {', '.join(words)}, found {_shown(value)}.")


def check_flag(name: str, value: Any) -> None:
    """Raise OptionError for anything but True and False: "no" would be taken for yes."""
    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{name} must be True or False, found {_shown(value)}.")


def check_path(name: str, value: Any) -> None:
    """Raise OptionError for anything but text or a path: a number would be taken for an open file, True for stdout."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes) or not os.fspath(value):
        raise OptionError(f"{name} must be a path, found {_shown(value)}.")


def check_paths(name: str, value: Any) -> None:
    """Raise OptionError for anything but a path or several."""
    if isinstance(value, (str, os.PathLike)):
        check_path(name, value)
        return
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"{name} must be a path or a list of paths, found {_shown(value)}.")
    for each in value:
        check_path(name, each)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no bool."""
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
