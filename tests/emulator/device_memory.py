"""Memory of an emulated GPU and its page-locked host memory: full of garbage at first, guarded at both ends, bounds checked."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from tests.emulator.guarded import GUARD, Bytes, guarded_bytes

GARBAGE = 0xA5
_GUARD_BYTES = 256
_PAGE_BYTES = 4096


class EmulatorMisuseError(AssertionError):
    """What CUDA leaves undefined: no error that the code under test may catch."""


@dataclass
class Allocation:
    storage: Bytes
    address: int
    nbytes: int
    device: int | None  # None: page-locked memory of the host
    is_locked: bool = False  # memory of the process, to which locking makes no difference

    def check_guards(self) -> None:
        start = self.address - self.storage.ctypes.data
        if (self.storage[:start] != GUARD).any() or (self.storage[start + self.nbytes :] != GUARD).any():
            raise EmulatorMisuseError(f"something was written around the {self.nbytes} bytes at {self.address:#x}")


class EmulatedMemory:
    """Raises EmulatorMisuseError for every address that is not within an allocation of the right kind."""

    def __init__(self) -> None:
        self._allocations: dict[int, Allocation] = {}

    def __len__(self) -> int:
        return len(self._allocations)

    @property
    def device_bytes(self) -> int:
        return sum(each.nbytes for each in self._allocations.values() if each.device is not None)

    def allocate(self, nbytes: int, device: int | None) -> int:
        if nbytes <= 0:
            raise EmulatorMisuseError(f"an allocation of {nbytes} bytes")
        storage = guarded_bytes(nbytes + 3 * _GUARD_BYTES)
        start = len(storage) - _GUARD_BYTES - nbytes
        start -= start % _GUARD_BYTES
        storage[start : start + nbytes] = GARBAGE
        address: int = storage.ctypes.data + start
        self._allocations[address] = Allocation(storage, address, nbytes, device)
        return address

    def release(self, address: int, *, pinned: bool) -> None:
        found = self._allocations.pop(address, None)
        if found is None or (found.device is None) != pinned or found.is_locked:
            raise EmulatorMisuseError(f"{address:#x} is freed, but it is no allocation of its kind")
        found.check_guards()
        found.storage[:] = GUARD

    def lock(self, address: int, nbytes: int) -> None:
        """Let ordinary memory be known as page-locked."""
        if address % _PAGE_BYTES:
            raise EmulatorMisuseError(f"{address:#x} is locked, but no page begins there")
        self._allocations[address] = Allocation(host_view(address, nbytes), address, nbytes, None, is_locked=True)

    def unlock(self, address: int) -> None:
        if not self._allocations.pop(address).is_locked:
            raise EmulatorMisuseError(f"{address:#x} is unlocked, but it was not locked")

    def find(self, address: int) -> Allocation | None:
        for each in self._allocations.values():
            if each.address <= address < each.address + each.nbytes:
                return each
        return None

    def within(self, address: int, nbytes: int, *, pinned: bool | None = None) -> Bytes:
        found = self.find(address)
        if found is None or address + nbytes > found.address + found.nbytes:
            raise EmulatorMisuseError(f"{nbytes} bytes at {address:#x} are not within an allocation")
        if pinned is not None and (found.device is None) != pinned:
            raise EmulatorMisuseError(f"{address:#x} is {'device' if pinned else 'host'} memory")
        start = address - found.storage.ctypes.data
        return found.storage[start : start + nbytes]

    def rest(self, address: int, *, pinned: bool = False) -> Bytes:
        """From an address on the device, or of page-locked memory, to the end of its allocation, for a kernel."""
        found = self.find(address)
        if found is None or (found.device is None) != pinned:
            raise EmulatorMisuseError(f"a kernel is given {address:#x}, which is no device memory")
        return self.within(address, found.address + found.nbytes - address)


def host_view(address: int, nbytes: int) -> Bytes:
    """Any memory of the process."""
    memory = memoryview((ctypes.c_uint8 * nbytes).from_address(address))
    view: Bytes = np.ndarray((nbytes,), np.uint8, buffer=memory)
    return view
