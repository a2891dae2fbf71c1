"""Text of others, as it may be shown: a file name or a class name can hold what a terminal takes for a command."""

from __future__ import annotations

import re

# What moves the cursor, changes colours, ends the line or turns the direction of reading; and halves of characters.
_UNSHOWABLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
_ANY = re.compile(f"[{_UNSHOWABLE}]")
_ANY_BUT_NEWLINE = re.compile(f"(?!\n)[{_UNSHOWABLE}]")


def is_printable(text: str) -> bool:
    r"""Whether `text` holds nothing that a terminal would act on instead of showing it.

    >>> is_printable("Käfer 甲虫"), is_printable("red\x1b[31m"), is_printable("two\nlines")
    (True, False, False)
    """
    return _ANY.search(text) is None


def printable(text: str, *, keep_newlines: bool = False) -> str:
    r"""`text` with what a terminal would act on as Python escapes.

    >>> print(printable("a\x1b[2Jb\n"))
    a\x1b[2Jb\n
    """
    return (_ANY_BUT_NEWLINE if keep_newlines else _ANY).sub(_escape, text)


def counted(number: int, noun: str) -> str:
    """A number of things, for people.

    >>> counted(1, "image"), counted(0, "image")
    ('1 image', '0 images')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, length: int = 60) -> str:
    """The beginning of a long text, as `length` characters that can be shown.

    >>> shorten("a" * 100, 8)
    'aaaaaaa…'
    """
    shown = printable(text[:length])
    return shown if len(text) <= length and len(shown) <= length else f"{shown[: length - 1]}…"


def _escape(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode("ascii")
