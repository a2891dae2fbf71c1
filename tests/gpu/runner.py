"""The kernels on the GPU, one launch at a time over NumPy arrays, as `tests.emulator.emulator.Emulator` runs them on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np

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
    """Every launch gets memory of its own, with guards around each buffer, and is waited for."""

    def __init__(self, driver: Driver, kernels: Kernels, *, guards: bool = True) -> None:
        self._driver, self._kernels = driver, kernels
        self._guard_bytes = _GUARD_BYTES if guards else 0

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
        guard = np.full(self._guard_bytes, _GUARD, np.uint8)
        framed = np.concatenate([guard, array.reshape(-1).view(np.uint8), guard])
        address = self._driver.allocate(max(framed.nbytes, 1), name)
        stack.callback(self._driver.free, address)
        self._driver.copy_to_device(address, framed.ctypes.data, framed.nbytes, stream)
        self._driver.synchronize(stream)
        return address + self._guard_bytes

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
