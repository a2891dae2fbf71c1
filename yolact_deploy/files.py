"""Files that appear whole or not at all, and their digests.

What is written lies beside its target under a known name, `.model.tmp.onnx`, `.model.tmp1.onnx` and so on, so that the next
writer meets what the last one left without reading the folder. Of what a killed writer left nothing stays: it is told by its
lock, which died with the writer. A file that nobody has locked has no writer any more, in this process, another one or another
container, and whatever the number of the process was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from yolact_deploy.errors import OutputError, OutputFailure, YolactDeployError

_MAX_WRITERS = 1000  # of one target, at once
CACHE_VARIABLE = "YOLACT_DEPLOY_CACHE"
_CHUNK_BYTES = 1 << 20
# The disk is full, the file too large for it or for what the user may have, or the disk is not there any more.
_FAILURES = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG, errno.EIO, errno.ENODEV})
_unfinished: dict[Path, Path] = {}  # of this process: temporary file -> the target that it will be


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is renamed onto `target`, on any error it is removed.

    The temporary name keeps the target's suffix, as some writers choose the format by it. What writers of `target` left that
    were killed is removed as well. Errors name `target`, never the temporary file. Raises OutputError when the folder is
    missing or not writable, or `target` is a folder.

    >>> with atomic_path("boxes.txt") as temporary:
    ...     _ = temporary.write_text("1 2 3 4")
    ...     Path("boxes.txt").exists()
    False
    >>> Path("boxes.txt").read_text()
    '1 2 3 4'
    """
    path = Path(target)
    if path in _unfinished:  # within another one: whole or not at all already
        with _errors_name(_unfinished[path], path):
            yield path
        return
    if path.is_dir():
        raise OutputError(f"can't write {path}: it is a folder. Give a file name.")
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(temporary_beside(path))
        except OSError as exc:
            raise _output_error(path, exc) from exc
        stack.callback(_unfinished.pop, temporary, None)
        _unfinished[temporary] = path
        with _errors_name(path, temporary):
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)


@contextlib.contextmanager
def _errors_name(target: Path, temporary: Path) -> Iterator[None]:
    """Errors of writing become OutputErrors of `target`; other errors of ours that name `temporary` name `target` instead."""
    try:
        yield
    except OSError as exc:
        raise _output_error(target, exc, temporary) from exc
    except YolactDeployError as exc:
        exc.args = tuple(
            part.replace(str(temporary), str(target)).replace(temporary.name, target.name)
            if isinstance(part, str)
            else part
            for part in exc.args
        )
        raise


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """A new empty file beside `target`, with its suffix, removed at the end if it is still there; and with it what earlier
    writers of `target` were killed over. Raises OSError where none can be made."""
    descriptor, number = _open_temporary(target)
    temporary = _name(target, number)
    try:
        _sweep(target, number + 1)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.close(descriptor)


def _open_temporary(target: Path) -> tuple[int, int]:
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
    """Lock an open file until it is closed or its process ends; False where another one has, or nothing can be locked.

    Not by filelock, whose locks are files of their own that stay beside what they guard.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def claim(descriptor: int) -> bool:
    """Lock an open file until it is closed or its process ends; False where another process has. Where nothing can be locked,
    it is taken for nobody's."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _is_open_file(name: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(name, follow_symlinks=False), os.fstat(descriptor))  # noqa: PTH116
    except FileNotFoundError:
        return False


def _name(target: Path, number: int) -> Path:
    return target.with_name(f".{target.stem}.tmp{number or ''}{target.suffix}")


@contextlib.contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong in the block with a file is an OutputError of `target`: OutputFailure where the disk is full, or gone."""
    try:
        yield
    except OSError as exc:
        raise _output_error(Path(target), exc) from exc


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise OutputError now, before long work, if `target` could not be written at its end."""
    path = Path(target)
    if path.is_dir():
        raise OutputError(f"can't write {path}: it is a folder. Give a file name.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as exc:
        raise _output_error(path, exc) from exc


def refuse_overwriting(target: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Raise OutputError if writing `target` would replace `source`, the input of the work."""
    output, given = Path(target), Path(source)
    if output.exists() and given.exists() and output.samefile(given):
        raise OutputError(f"the output {output} is the input itself. Give another name.")


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises OutputError as `atomic_path` does."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON, whole or not at all. Raises OutputError as `atomic_path` does."""
    write_text(target, json.dumps(value, indent=2) + "\n")


class JsonArray:
    """A JSON array that is written as its entries come, in the form of `json.dumps(..., indent=2)`, so that none is kept."""

    def __init__(
        self,
        write: Callable[[str], object],  # takes ASCII text
        *,
        depth: int = 0,  # of what the array is a part of
    ) -> None:
        self._write, self._outer = write, "  " * depth
        self._count = 0

    def add(self, value: Any) -> None:
        """Write one more entry."""
        text = textwrap.indent(json.dumps(value, indent=2), self._outer + "  ")
        self._write(f"{',' if self._count else '['}\n{text}")
        self._count += 1

    def close(self) -> None:
        """Write the end of the array."""
        self._write(f"\n{self._outer}]" if self._count else "[]")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file lies there; False for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises OSError for a name that is too long


def what_is_there(path: str | os.PathLike[str]) -> str:
    """Of what is no file, for an error: "is a folder", "is no file" or "does not exist"."""
    is_folder, is_something = os.path.isdir(path), os.path.exists(path)  # noqa: PTH110, PTH112 - as in is_file
    return "is a folder" if is_folder else "is no file" if is_something else "does not exist"


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """A file to read from, at any place in it.

    Neither waits for a pipe's writer nor opens a device without an end. Raises OSError.
    """
    descriptor, kind = _descriptor(path)
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is a pipe, a device or a socket and no file", str(path))


def sha256_file(*paths: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes, or of several files' one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> bytes:
    """What is in a file, or comes through a pipe that somebody has open for writing.

    Neither waits for a writer that never comes, nor reads from a device without an end. Raises OSError.
    """
    descriptor, kind = _descriptor(path)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise OSError(errno.EINVAL, "it is a device or a socket and no file", str(path))
        part: bytes | None = stream.read(_CHUNK_BYTES)  # None: of a pipe whose writer has not written yet
        if stat.S_ISFIFO(kind):
            if part == b"":
                raise OSError(errno.EPIPE, "it is a pipe that nobody writes to", str(path))
            os.set_blocking(descriptor, True)
        parts = [part or b""]
        size = len(parts[0])
        while part != b"":
            if max_bytes is not None and size > max_bytes:
                raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes", str(path))
            part = stream.read(_CHUNK_BYTES)
            parts.append(part or b"")
            size += len(parts[-1])
    return b"".join(parts)


def _descriptor(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Of what is opened for reading without waiting, and what it is (`st_mode`); never of a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as exc:  # a NUL in it, or half a character
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from exc
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return descriptor, kind


def cache_folder(kind: str) -> Path:
    """Where things of a kind ("kernels") are kept that can be made again. It need not exist.

    In the folder that the environment variable YOLACT_DEPLOY_CACHE names, else where the platform keeps caches.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / kind
    import platformdirs  # only here: a machine that names a folder does without it

    return platformdirs.user_cache_path("yolact-deploy", appauthor=False, opinion=False) / kind


def _output_error(target: Path, exc: OSError, temporary: Path | None = None) -> OutputError:
    kind = OutputFailure if exc.errno in _FAILURES else OutputError
    return kind(f"can't write {target}: {_reason(exc, target.parent, temporary)}")


def _reason(exc: OSError, folder: Path, temporary: Path | None = None) -> str:
    if isinstance(exc.filename, str) and temporary is not None and Path(exc.filename) != temporary:
        return f"{exc.strerror}: {exc.filename}."  # what failed on the way was another file
    if isinstance(exc, FileNotFoundError):
        return f"the folder {folder} does not exist. Create it first."
    if isinstance(exc, PermissionError):
        return f"no permission to write in {folder}."
    return f"{exc.strerror or exc}."


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
