"""Memory between addresses that nothing may touch: a kernel that leaves it by far faults, one that leaves it by little is seen in
the bytes around it, and neither meets memory of the tests."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]

GUARD = 0x5C
_PAGE = mmap.PAGESIZE
_ALIGNMENT = 256  # of CUDA's own allocations: copies lie as their originals do within so much
_PROT_NONE = 0
_GUARDED_BYTES = 16 << 20  # that fault, on either side: addresses, which take no memory


class OutsideWriteError(AssertionError):
    """A kernel wrote outside of its buffers."""


def guarded_bytes(nbytes: int) -> Bytes:
    """At least so many bytes, all of them GUARD, up to a page's end, between addresses that fault."""
    size = -(-nbytes // _PAGE) * _PAGE
    memory = np.frombuffer(mmap.mmap(-1, size + 2 * _GUARDED_BYTES), np.uint8)
    for start in (memory.ctypes.data, memory.ctypes.data + _GUARDED_BYTES + size):
        if _libc().mprotect(ctypes.c_void_p(start), ctypes.c_size_t(_GUARDED_BYTES), _PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    inner: Bytes = memory[_GUARDED_BYTES : _GUARDED_BYTES + size]
    inner[:] = GUARD
    return inner


@contextlib.contextmanager
def guarded_copies(
    arrays: Mapping[str, npt.NDArray[Any]],  # C-contiguous; some may be views of the same memory
) -> Iterator[dict[str, int]]:
    """Addresses of copies, which are written back at the end. Raises OutsideWriteError for what was written around them."""
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays.values())
    blocks: list[tuple[int, int]] = []
    for start, end in spans:
        if blocks and start < blocks[-1][1]:
            blocks[-1] = blocks[-1][0], max(end, blocks[-1][1])
        else:
            blocks.append((start, end))
    copies = []
    for start, end in blocks:
        memory = guarded_bytes(end - start + _ALIGNMENT)
        first = len(memory) - (end - start)
        first -= (memory.ctypes.data + first - start) % _ALIGNMENT
        memory[first : first + end - start] = _view(start, end - start)
        copies.append((start, end, first, memory))
    yield {
        name: next(
            memory.ctypes.data + first + array.ctypes.data - start
            for start, end, first, memory in copies
            if start <= array.ctypes.data <= end - array.nbytes
        )
        for name, array in arrays.items()
    }
    for start, end, first, memory in copies:
        last = first + end - start
        before, after = np.flatnonzero(memory[:first] != GUARD), np.flatnonzero(memory[last:] != GUARD)
        around = [*(before - first), *(after + end - start)]
        if around:
            names = ", ".join(name for name, array in arrays.items() if start <= array.ctypes.data < end)
            raise OutsideWriteError(
                f"byte {around[0]} was written, counted from the beginning of {names} of {end - start} bytes"
            )
    for start, end, first, memory in copies:
        for array in arrays.values():
            if start <= array.ctypes.data < end and array.flags.writeable:
                begin = first + array.ctypes.data - start
                array.reshape(-1).view(np.uint8)[:] = memory[begin : begin + array.nbytes]


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _view(address: int, nbytes: int) -> Bytes:
    view: Bytes = np.ndarray((nbytes,), np.uint8, buffer=memoryview((ctypes.c_uint8 * nbytes).from_address(address)))
    return view
