"""Temporary files beside a target, of which nothing stays: what a killed writer left is told by its lock, which died with it.

The names of a target's temporaries are known, `.model.tmp.onnx`, `.model.tmp1.onnx` and so on, so that the next writer meets
what the last one left without reading the folder. A file that nobody has locked has no writer any more, in this process, another
one or another container, and whatever the number of the process was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MAX_WRITERS = 1000  # of one target, at once


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new empty file beside `target`, with its suffix, removed at the end if it is still there; and with it what earlier
    writers of `target` were killed over. Raises OSError where none can be made."""
    descriptor, number = _claim(target)
    temporary = _name(target, number)
    try:
        _sweep(target, number + 1)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.close(descriptor)


def _claim(target: Path) -> tuple[int, int]:
    """An open, locked file and its number: the first that no living writer holds."""
    for number in range(_MAX_WRITERS):
        name = _name(target, number)
        _remove_dead(name)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        except FileExistsError:
            continue
        _lock(descriptor)
        if _is_open_file(name, descriptor):
            return descriptor, number
        os.close(descriptor)  # another writer came between, and took it for a dead one's
    raise OSError(errno.EEXIST, f"{_MAX_WRITERS} others are writing it")


def _sweep(target: Path, number: int) -> None:
    while _remove_dead(_name(target, number)):
        number += 1


def _remove_dead(name: Path) -> bool:
    """Remove a temporary file without a living writer; whether there was one."""
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, AttributeError):  # there is none, it is not ours, or this is a platform without locks
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _lock(descriptor, wait=False):
            return False
        if _is_open_file(name, descriptor):
            name.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock an open file until it is closed or its process ends; False where another one has, or nothing can be locked."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _is_open_file(name: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, follow_symlinks=False), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _name(target: Path, number: int) -> Path:
    return target.with_name(f".{target.stem}.tmp{number or ''}{target.suffix}")
