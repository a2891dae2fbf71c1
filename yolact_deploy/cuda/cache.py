"""Compiled kernels, kept in the user's cache folder: each file whole, checked, and made once."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from yolact_deploy.errors import OutputError
from yolact_deploy.files import CACHE_VARIABLE, atomic_path, cache_folder

KIND = "kernels"
LOCK_TIMEOUT_S = 30.0  # far beyond what a compilation takes; after it one compiles without the lock

_MAGIC = b"yolact-deploy cubin 1\n"
_DIGEST_BYTES = 32
_POLL_S = 0.02


@dataclass(frozen=True)
class CacheState:
    """What the kernel cache holds."""

    folder: Path
    entries: int
    size_bytes: int
    writable: bool


def cached(
    key: str,
    make: Callable[[], bytes],
    notice: Callable[[str], None],  # told in words when the cache can't be used
) -> bytes:
    """The image kept under `key`, else what `make` gives, kept for the next time.

    Of processes that ask at once one makes it and the others wait for that. A damaged file is made again. Where the folder
    can't be written, what `make` gives is used all the same.
    """
    path = cache_path(key)
    found = _read(path)
    if found is not None:
        return found
    with _lock(path):
        found = _read(path)
        if found is not None:
            return found
        image = make()
        try:
            put(key, image)
        except (OutputError, OSError) as exc:
            notice(
                f"the compiled GPU kernels can't be kept in {path.parent} ({exc}), so that every process compiles them anew; "
                f"set {CACHE_VARIABLE} to a folder that can be written."
            )
        return image


def is_cached(key: str) -> bool:
    """Whether the cache has a whole entry of this key."""
    return read(key) is not None


def read(key: str) -> bytes | None:
    """The image kept under `key`; None where there is none, or it is damaged."""
    return _read(cache_path(key))


def keys_of(beginning: str) -> list[str]:
    """The keys of the entries that begin so, damaged ones too."""
    try:
        return sorted(path.stem for path in cache_folder(KIND).glob(f"{beginning}*.cubin"))
    except OSError:
        return []


def put(key: str, image: bytes) -> None:
    """Raises OutputError or OSError where the folder can't be written."""
    path = cache_path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_MAGIC + hashlib.sha256(image).digest() + image)


def cache_path(key: str) -> Path:
    """Where the entry of a key is, or would be."""
    return cache_folder(KIND) / f"{key}.cubin"


def cache_state() -> CacheState:
    """What the kernel cache holds, without reading its entries."""
    folder = cache_folder(KIND)
    try:
        sizes = [entry.stat().st_size for entry in folder.glob("*.cubin")]
    except OSError:
        sizes = []
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    return CacheState(folder, len(sizes), sum(sizes), existing.is_dir() and os.access(existing, os.W_OK))


def _read(path: Path) -> bytes | None:
    """None for a file that is not there, can't be read, or is not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    digest, image = content[len(_MAGIC) : start], content[start:]
    if not content.startswith(_MAGIC) or hashlib.sha256(image).digest() != digest:
        return None
    return image


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, where that can be had; the system lets go of it when its process ends. Files are written
    whole, so that without it two processes only compile twice."""
    with contextlib.ExitStack() as stack:
        # no time left, a folder that can't be written, a file system without locks
        with contextlib.suppress(Timeout, OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S, poll_interval=_POLL_S))
        yield
