"""Named memory of a device and page-locked memory of its host, which grows and never shrinks."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.errors import DeviceError


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
