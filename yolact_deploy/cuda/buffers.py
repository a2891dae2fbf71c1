"""Memory of a GPU and page-locked memory of its host: buffers that grow and never shrink, and blocks that are lent to results.

Results cross into lent memory, and whoever has them keeps it for as long as they like. It is ordinary memory of the process,
whose pages are locked while the pool is open: what was lent outlives the pool, and a context that another library resets.
It is shared with forked processes, as copy-on-write could take the locked pages away from the process that they were locked
for; what was lent when one was forked is not written again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import DeviceError

MAX_BLOCKS = 4  # results that are kept beyond so many have to be copied
MAX_BYTES = 256 << 20
_LEAST_BYTES = 1 << 20


@dataclass
class _Block:
    address: int = 0
    nbytes: int = 0


class Buffers:
    """Blocks by name. Methods are called with the driver's context current, and nothing running that uses a block which
    is to grow: its content is lost, and it moves."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._device: dict[str, _Block] = {}
        self._pinned: dict[str, _Block] = {}
        self.generation = 0  # changes whenever a block has moved: what was captured with its address is void

    def reserve(
        self,
        device: Mapping[str, int],  # name -> bytes
        pinned: Mapping[str, int],
    ) -> None:
        """Make every named block at least so large.

        Raises DeviceMemoryError naming the block: it is then empty, and the others are as before or as asked for.
        """
        for name, nbytes in device.items():
            self._grow(self._device, name, nbytes)
        for name, nbytes in pinned.items():
            self._grow(self._pinned, name, nbytes)

    def address(self, name: str) -> int:
        """Of a block on the device."""
        return self._device[name].address

    def pinned_address(self, name: str) -> int:
        """Address of a page-locked block."""
        return self._pinned[name].address

    def pinned_view(self, name: str, nbytes: int, offset: int = 0) -> Image:
        """uint8 [nbytes] of a block on the host; not to be kept beyond the next `reserve`."""
        block = self._pinned[name]
        memory = (ctypes.c_uint8 * nbytes).from_address(block.address + offset)
        view: Image = np.ndarray((nbytes,), np.uint8, buffer=memoryview(memory))
        return view

    def device_bytes(self, name: str) -> int:
        """What a block has room for; 0 for one that there is not."""
        return self._device[name].nbytes if name in self._device else 0

    def sizes(self) -> dict[str, int]:
        """Bytes of every block on the device."""
        return {name: block.nbytes for name, block in self._device.items()}

    def close(self) -> None:
        """Free everything; a driver that refuses (as after a reset of the device) has nothing left to free."""
        for blocks in (self._device, self._pinned):
            for block in blocks.values():
                with contextlib.suppress(DeviceError):
                    self._free(blocks, block)
            blocks.clear()
        self.generation += 1

    def _grow(self, blocks: dict[str, _Block], name: str, nbytes: int) -> None:
        block = blocks.setdefault(name, _Block())
        if block.nbytes >= nbytes:
            return
        self.generation += 1
        self._free(blocks, block)  # first, as there may be no room for both
        allocate = self._driver.allocate if blocks is self._device else self._driver.allocate_pinned
        block.address = allocate(nbytes, f"the buffer {name!r}")
        block.nbytes = nbytes

    def _free(self, blocks: dict[str, _Block], block: _Block) -> None:
        address, block.address, block.nbytes = block.address, 0, 0
        if address:
            (self._driver.free if blocks is self._device else self._driver.free_pinned)(address)


@dataclass
class _PooledBlock:
    memory: mmap.mmap
    address: int
    lent: weakref.ref[Image] | None = None
    is_shared: bool = False  # with a process that was forked while it was lent

    @property
    def is_idle(self) -> bool:
        return self.lent is None or self.lent() is None

    def acquire(self) -> Image:
        array: Image = np.frombuffer(self.memory, np.uint8)
        self.lent = weakref.ref(array)
        return array


class PinnedMemoryPool:
    """Methods are called with the driver's context current, and nothing running that writes to what is not lent any more."""

    def __init__(self, driver: Driver, note: Callable[[str], None]) -> None:
        """`note` is told in words when no pages can be locked."""
        self._driver, self._note = driver, note
        self._blocks: list[_PooledBlock] = []
        self._can_lock = True
        _watched().add(self)

    def acquire(self, nbytes: int) -> Image | None:
        """uint8 [nbytes or more], until the array and all views of it are gone. None when as much is lent as there may be,
        or when the driver locks no more."""
        for block in [block for block in self._blocks if block.is_shared and block.is_idle]:
            self._unlock(block)
        idle = sorted((block for block in self._blocks if block.is_idle), key=lambda block: len(block.memory))
        for block in idle:
            if len(block.memory) >= nbytes:
                return block.acquire()
        made = self._lock(nbytes, idle)
        return None if made is None else made.acquire()

    def prepare(self, nbytes: int, count: int) -> None:
        """Have so many blocks ready to be lent: to lock pages takes longer than to fill them, and here nobody waits for it."""
        ready = sum(block.is_idle and len(block.memory) >= nbytes for block in self._blocks)
        for _ in range(count - ready):
            self._lock(nbytes, [])

    def close(self) -> None:
        """What is lent stays where it is, for those who have it."""
        while self._blocks:
            self._unlock(self._blocks[-1])

    def mark_shared_with_fork(self) -> None:
        """What is lent now may be read by another process, unseen from here."""
        for block in self._blocks:
            block.is_shared = block.is_shared or not block.is_idle

    def _lock(self, nbytes: int, idle: list[_PooledBlock]) -> _PooledBlock | None:
        """A new block, for which those that are idle make room. None where there may be no more, or none can be locked."""
        size = max(_LEAST_BYTES, 1 << (nbytes - 1).bit_length())
        if not self._can_lock or size > MAX_BYTES:
            return None
        while idle and not self._has_room(size):
            self._unlock(idle.pop(0))
        if not self._has_room(size):
            return None
        memory = mmap.mmap(-1, size)
        address = np.frombuffer(memory, np.uint8).ctypes.data
        try:
            self._driver.lock_pages(address, size)
        except DeviceError as exc:
            self._can_lock = False
            self._note(
                f"Masks are copied once more on the host, as no memory could be locked for them to stay in: {exc}"
            )
            return None
        self._blocks.append(_PooledBlock(memory, address))
        return self._blocks[-1]

    def _has_room(self, nbytes: int) -> bool:
        return len(self._blocks) < MAX_BLOCKS and sum(len(block.memory) for block in self._blocks) + nbytes <= MAX_BYTES

    def _unlock(self, block: _PooledBlock) -> None:
        self._blocks.remove(block)
        with contextlib.suppress(DeviceError):  # a context that is gone has unlocked it
            self._driver.unlock_pages(block.address)


@functools.cache
def _watched() -> weakref.WeakSet[PinnedMemoryPool]:
    """The pools that are told of forks."""
    pools: weakref.WeakSet[PinnedMemoryPool] = weakref.WeakSet()

    def tell() -> None:
        for pool in pools:
            pool.mark_shared_with_fork()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=tell)
    return pools
