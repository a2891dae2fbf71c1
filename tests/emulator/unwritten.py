"""Memory that nobody has written yet, as device memory is at first, and which of its bytes a kernel has written since.

The emulator's build "races" tells of a kernel that reads a byte before any wrote it; on a GPU compute-sanitizer's initcheck
does, provided that no one uploads such memory.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.emulator.guarded import Bytes

_written: dict[int, Bytes] = {}  # by the id of the array that owns the memory: 1 for a byte that was written


def mark_unwritten(array: npt.NDArray[Any]) -> None:
    """All memory of which an array is a part holds nothing from now on."""
    owner = owner_of(array)
    if id(owner) not in _written:
        weakref.finalize(owner, _written.pop, id(owner))
    _written[id(owner)] = np.zeros(owner.nbytes, np.uint8)


def mark_written(array: npt.NDArray[Any]) -> None:
    """Python wrote it, for a kernel to read."""
    written = written_bytes(array)
    if written is not None:
        written[:] = 1


def written_bytes(array: npt.NDArray[Any]) -> Bytes | None:
    """uint8 [bytes of a contiguous array], to be kept up to date by who writes; None for memory that was never unwritten."""
    owner = owner_of(array)
    written = _written.get(id(owner))
    if written is None:
        return None
    start = array.ctypes.data - owner.ctypes.data
    return written[start : start + array.nbytes]


def owner_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array whose memory it is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
