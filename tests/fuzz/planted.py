"""Readers with a fault each: what breaks a promise must be found, named and kept, whatever it does to its process."""

from __future__ import annotations

import ctypes
import os
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from tests.fuzz.target import Target
from yolact_deploy.errors import ArtifactError

BAD = b"bad"
BAD_NUMBER = 3  # of the one input that shows the fault


class _UnescapedError(ArtifactError):
    def __str__(self) -> str:
        return str(self.args[0])


def _say(message: str) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        raise _UnescapedError(message)

    return fail


def _exit() -> NoReturn:
    raise SystemExit(0)


def _read_elsewhere() -> None:
    with Path("/etc/passwd").open():
        pass


FAULTS: dict[str, Callable[[], object]] = {
    "raises": lambda: int("x"),
    "exits": _exit,
    "warns": lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1),
    "hangs": lambda: time.sleep(600),
    "crashes": lambda: ctypes.string_at(0),
    "leaves a file": lambda: Path("left").touch(),
    "leaves a temporary file": tempfile.mkstemp,
    "runs code": lambda: os.system("true"),
    "connects": lambda: socket.create_connection(("127.0.0.1", 9)),
    "reads elsewhere": _read_elsewhere,
    "takes memory": lambda: len(b"1" * (300 << 20)),
    "takes too much memory": lambda: bytearray(64 << 30),
    "says nothing": _say(" "),
    "says too much": _say("a" * 5000),
    "says an escape": _say("\x1b[2J"),
    "says half a character": _say("\udcff"),
    "refuses": _say("in words"),  # as it should
}


def _reader(fault: Callable[[], object]) -> Callable[[Path], object]:
    return lambda path: fault() if path.read_bytes() == BAD else None


def _mutate(_: random.Random, seeds: Sequence[bytes]) -> bytes:
    return seeds[0]


class _Planted(Target):
    def input(self, name: str, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
        return BAD if number == BAD_NUMBER else super().input(name, seeds, seed, number)


TARGETS: dict[str, Target] = {
    name: _Planted("input.bin", lambda _: [b"good"], _mutate, (_reader(fault),), 1) for name, fault in FAULTS.items()
}
