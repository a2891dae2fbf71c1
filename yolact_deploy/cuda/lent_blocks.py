"""Page-locked memory that is lent: results cross into it, and whoever has them keeps it for as long as they like.

It is ordinary memory of the process, whose pages are locked while the lender is open: what was lent outlives the lender,
and a context that another library resets. It is shared with forked processes, as copy-on-write could take the locked pages
away from the process that they were locked for; what was lent when one was forked is not written again.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.errors import DeviceError

MAX_BLOCKS = 4  # results that are kept beyond so many have to be copied
MAX_BYTES = 256 << 20
_LEAST_BYTES = 1 << 20


@dataclass
class _Block:
    memory: mmap.mmap
    address: int
    lent: weakref.ref[Image] | None = None
    is_shared: bool = False  # with a process that was forked while it was lent

    @property
    def is_idle(self) -> bool:
        return self.lent is None or self.lent() is None

    def lend(self) -> Image:
        array: Image = np.frombuffer(self.memory, np.uint8)
        self.lent = weakref.ref(array)
        return array


class BlockLender:
    """Methods are called with the driver's context current, and nothing running that writes to what is not lent any more."""

    def __init__(self, driver: Driver, note: Callable[[str], None]) -> None:
        """`note` is told in words when no pages can be locked."""
        self._driver, self._note = driver, note
        self._blocks: list[_Block] = []
        self._can_lock = True
        _watched().add(self)

    def lend(self, nbytes: int) -> Image | None:
        """uint8 [nbytes or more], until the array and all views of it are gone. None when as much is lent as there may be,
        or when the driver locks no more."""
        for block in [block for block in self._blocks if block.is_shared and block.is_idle]:
            self._unlock(block)
        idle = sorted((block for block in self._blocks if block.is_idle), key=lambda block: len(block.memory))
        for block in idle:
            if len(block.memory) >= nbytes:
                return block.lend()
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
        self._blocks.append(_Block(memory, address))
        return self._blocks[-1].lend()

    def close(self) -> None:
        """What is lent stays where it is, for those who have it."""
        while self._blocks:
            self._unlock(self._blocks[-1])

    def leave_to_fork(self) -> None:
        """What is lent now may be read by another process, unseen from here."""
        for block in self._blocks:
            block.is_shared = block.is_shared or not block.is_idle

    def _has_room(self, nbytes: int) -> bool:
        return len(self._blocks) < MAX_BLOCKS and sum(len(block.memory) for block in self._blocks) + nbytes <= MAX_BYTES

    def _unlock(self, block: _Block) -> None:
        self._blocks.remove(block)
        with contextlib.suppress(DeviceError):  # a context that is gone has unlocked it
            self._driver.unlock_pages(block.address)


@functools.cache
def _watched() -> weakref.WeakSet[BlockLender]:
    """The lenders that are told of forks."""
    lenders: weakref.WeakSet[BlockLender] = weakref.WeakSet()

    def tell() -> None:
        for lender in lenders:
            lender.leave_to_fork()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(before=tell)
    return lenders
