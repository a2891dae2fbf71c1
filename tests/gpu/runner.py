"""The kernels on the GPU, one launch at a time over NumPy arrays, as `tests.emulator.emulator.Emulator` runs them on the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np

from tests.emulator.unwritten import owner_of, written_bytes
from yolact_deploy.cuda.compile import Kernels, load_kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.cuda.launches import ARGUMENTS, Launch
from yolact_deploy.cuda.specialization import Specialization

_GUARD_BYTES = 4096
_GUARD = 0x5C


class OutOfBoundsError(Exception):
    """A kernel wrote beside a buffer."""


class GpuRunner:
    """Every launch gets memory of its own, with guards around each buffer, and is waited for.

    Without guards, memory that is `unwritten` stays on the device from launch to launch, and of it nothing is uploaded but
    what Python wrote: initcheck takes for written what was uploaded.
    """

    def __init__(self, driver: Driver, kernels: Kernels, *, guards: bool = True) -> None:
        self._driver, self._kernels = driver, kernels
        self._guard_bytes = _GUARD_BYTES if guards else 0
        self._kept: dict[int, int] = {}  # address on the device, by the id of the array that owns the memory

    def launch(self, launch: Launch, arguments: Mapping[str, Any], *, schedule: int = 0) -> None:
        """Arrays are written in place. The GPU chooses its own order: `schedule` means nothing to it."""
        del schedule
        driver = self._driver
        with driver.current(), ExitStack() as stack:
            stream = driver.create_stream()
            stack.callback(driver.destroy_stream, stream)
            values: dict[str, Any] = {}
            for name, kind in ARGUMENTS[launch.kernel]:
                values[name] = (
                    self._upload(arguments[name], name, stream, stack) if kind == "pointer" else arguments[name]
                )
            self._kernels.launch(launch, values, stream)
            driver.synchronize(stream)
            for name, kind in ARGUMENTS[launch.kernel]:
                if kind == "pointer":
                    self._download(arguments[name], values[name], name, stream)

    def _upload(self, array: Any, name: str, stream: int, stack: ExitStack) -> int:
        written = None if self._guard_bytes else written_bytes(array)
        if written is not None:
            address = self._keep(array, name)
            content = array.reshape(-1).view(np.uint8)
            edges = np.flatnonzero(np.diff(written, prepend=0, append=0))
            for begin, end in edges.reshape(-1, 2).tolist():
                self._driver.copy_to_device(address + begin, content[begin:].ctypes.data, end - begin, stream)
            self._driver.synchronize(stream)
            return address
        guard = np.full(self._guard_bytes, _GUARD, np.uint8)
        framed = np.concatenate([guard, array.reshape(-1).view(np.uint8), guard])
        address = self._driver.allocate(max(framed.nbytes, 1), name)
        stack.callback(self._driver.free, address)
        self._driver.copy_to_device(address, framed.ctypes.data, framed.nbytes, stream)
        self._driver.synchronize(stream)
        return address + self._guard_bytes

    def _keep(self, array: Any, name: str) -> int:
        """Where it is on the device, for as long as the array that owns the memory lives."""
        owner = owner_of(array)
        if id(owner) not in self._kept:
            self._kept[id(owner)] = self._driver.allocate(owner.nbytes, name)
            weakref.finalize(owner, self._drop, id(owner)).atexit = False
        offset: int = array.ctypes.data - owner.ctypes.data
        return self._kept[id(owner)] + offset

    def _drop(self, owner: int) -> None:
        with self._driver.current():
            self._driver.free(self._kept.pop(owner))

    def _download(self, array: Any, address: int, name: str, stream: int) -> None:
        framed = np.empty(array.nbytes + 2 * self._guard_bytes, np.uint8)
        self._driver.copy_to_host(framed.ctypes.data, address - self._guard_bytes, framed.nbytes, stream)
        self._driver.synchronize(stream)
        content = framed[self._guard_bytes : self._guard_bytes + array.nbytes]
        array.reshape(-1).view(np.uint8)[...] = content
        outside = (framed[: self._guard_bytes], framed[self._guard_bytes + array.nbytes :])
        if any((guard != _GUARD).any() for guard in outside):
            raise OutOfBoundsError(f"a kernel wrote beside its buffer {name} of {array.nbytes} bytes")


@cache
def _gpu() -> Driver:
    return open_driver()


@cache
def gpu(specialization: Specialization, build: str = "plain") -> GpuRunner:
    """The kernels as the runtime loads them; builds of the emulator mean nothing here."""
    del build
    return GpuRunner(_gpu(), load_kernels(_gpu(), specialization))


@cache
def unguarded(specialization: Specialization, build: str = "plain") -> GpuRunner:
    """Buffers that end where their allocations end, for compute-sanitizer to watch."""
    del build
    return GpuRunner(_gpu(), load_kernels(_gpu(), specialization), guards=False)
