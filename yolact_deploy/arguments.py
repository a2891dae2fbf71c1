"""Arguments of the public functions, held against what makes sense before any work is done: Python refuses what the command
line refuses, by one error of the tree.

    check_counts(top_k=top_k, **given(threads=threads))
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from yolact_deploy.errors import OptionError

_SHOWN = 60  # characters of a value in a message


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None: of arguments that may be left out."""
    return {name: value for name, value in values.items() if value is not None}


def check_counts(least: int = 1, /, **values: Any) -> None:
    """Raise OptionError for anything but whole numbers of at least `least`.

    >>> check_counts(batch_size=8, top_k=15)
    >>> check_counts(batch_size=0)
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.OptionError: batch_size must be a whole number of at least 1, found 0.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}, found {_shown(value)}.")


def check_shares(**values: Any) -> None:
    """Raise OptionError for anything but numbers from 0 to 1.

    >>> check_shares(score_threshold="0.3")
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.OptionError: score_threshold must be a number from 0 to 1, found '0.3'.
    """
    for name, value in values.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise OptionError(f"{name} must be a number from 0 to 1, found {_shown(value)}.")


def check_numbers(**values: Any) -> None:
    """Raise OptionError for anything but finite numbers of at least 0."""
    for name, value in values.items():
        if not is_number(value) or value < 0:
            raise OptionError(f"{name} must be a number of at least 0, found {_shown(value)}.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise OptionError for anything but one of the words `choices`."""
    words = tuple(choices)
    if not isinstance(value, str) or value not in words:
        raise OptionError(f"{name} must be one of {', '.join(words)}, found {_shown(value)}.")


def check_flags(**values: Any) -> None:
    """Raise OptionError for anything but True and False: "no" would be taken for yes."""
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise OptionError(f"{name} must be True or False, found {_shown(value)}.")


def check_texts(**values: Any) -> None:
    """Raise OptionError for anything but texts."""
    for name, value in values.items():
        if not isinstance(value, str):
            raise OptionError(f"{name} must be a text, found {_shown(value)}.")


def check_text_lists(**values: Any) -> None:
    """Raise OptionError for anything but lists or tuples of texts: a single text is one of letters."""
    for name, value in values.items():
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
            raise OptionError(f"{name} must be a list of texts, found {_shown(value)}.")


def check_paths(**values: Any) -> None:
    """Raise OptionError for anything but texts and paths that are not empty: a number would be taken for an open file."""
    for name, value in values.items():
        if not _is_path(value):
            raise OptionError(f"{name} must be a path, found {_shown(value)}.")


def check_sources(**values: Any) -> None:
    """Raise OptionError for anything but a path, or a list or tuple of them."""
    for name, value in values.items():
        if not _is_path(value) and not (isinstance(value, (list, tuple)) and all(map(_is_path, value))):
            raise OptionError(f"{name} must be a path or a list of paths, found {_shown(value)}.")


def check_callables(**values: Any) -> None:
    """Raise OptionError for what is to be told of something and can't be called; None is told of nothing."""
    for name, value in values.items():
        if value is not None and not callable(value):
            raise OptionError(f"{name} must be a function, found {_shown(value)}.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, and no bool."""
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _is_path(value: Any) -> bool:
    if not isinstance(value, (str, os.PathLike)):
        return False
    path = os.fspath(value)
    return isinstance(path, str) and path != ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # of an object whose repr fails, or of an integer with too many digits for one
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
