"""A GPU that does nothing, at no cost: for timing what the host does around it."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.cuda.driver import Argument, Driver, GpuDevice
from yolact_deploy.cuda.kernels import Kernels
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.runtime.gpu_backend import GpuBackend
from yolact_deploy.runtime.network import OUTPUT_NAMES
from yolact_deploy.spec import ModelSpec

_PAGE = 4096


class NullDriver:
    """A `Driver`: page-locked memory is the host's, addresses on the device are numbers, and whatever is enqueued is done.

    `pinned` has the page-locked blocks by the last word of their purpose.
    """

    name = "null driver"
    captures_graphs = True

    def __init__(self) -> None:
        self.device = GpuDevice(0, "null GPU", (9, 0), (13, 0), 1 << 40, 1)
        self.pinned: dict[str, Image] = {}
        self._context: AbstractContextManager[None] = contextlib.nullcontext()
        self._addresses = itertools.count(1 << 40, 1 << 32)
        self._handles = itertools.count(1)

    def current(self) -> AbstractContextManager[None]:
        return self._context

    def allocate(self, nbytes: int, purpose: str) -> int:
        return next(self._addresses)

    def free(self, address: int) -> None:
        pass

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        block: Image = np.zeros(nbytes + _PAGE, np.uint8)
        first = -block.ctypes.data % _PAGE  # as the driver's is
        self.pinned[purpose.split()[-1].strip("'")] = block[first : first + nbytes]
        return block.ctypes.data + first

    def free_pinned(self, address: int) -> None:
        for name, block in self.pinned.items():
            if block.ctypes.data == address:
                del self.pinned[name]
                return

    def lock_pages(self, address: int, nbytes: int) -> None:
        pass

    def unlock_pages(self, address: int) -> None:
        pass

    def memory_info(self) -> tuple[int, int]:
        return self.device.memory_bytes, self.device.memory_bytes

    def device_of(self, address: int) -> int | None:
        return 0

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        pass

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        pass

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        pass

    def create_stream(self) -> int:
        return next(self._handles)

    def destroy_stream(self, stream: int) -> None:
        pass

    def synchronize(self, stream: int) -> None:
        pass

    def create_event(self, *, timing: bool = False) -> int:
        return next(self._handles)

    def destroy_event(self, event: int) -> None:
        pass

    def record(self, event: int, stream: int) -> None:
        pass

    def wait(self, stream: int, event: int) -> None:
        pass

    def synchronize_event(self, event: int) -> None:
        pass

    def elapsed_ms(self, start: int, end: int) -> float:
        return 0.0

    def load_module(self, image: bytes) -> int:
        return next(self._handles)

    def unload_module(self, module: int) -> None:
        pass

    def get_function(self, module: int, name: str) -> int:
        return next(self._handles)

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        pass

    def begin_capture(self, stream: int) -> None:
        pass

    def end_capture(self, stream: int) -> int:
        return next(self._handles)

    def launch_graph(self, graph: int, stream: int) -> None:
        pass

    def destroy_graph(self, graph: int) -> None:
        pass


class CallCounter:
    """Another driver, whose calls are counted in `calls` by name."""

    def __init__(self, driver: NullDriver) -> None:
        self.calls: Counter[str] = Counter()
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._driver, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return attribute(*arguments, **options)

        return call


class NullNetwork:
    """A DeviceNetwork, and its own context, that leaves everything as it is."""

    description = "null network"
    max_batch = None
    mask_iou: MaskIouModel | None = None
    capturable: bool

    def __init__(self, spec: ModelSpec, *, capturable: bool = True) -> None:
        self.spec, self.capturable = spec, capturable
        self.dtypes: Mapping[str, np.dtype[np.generic]] = dict.fromkeys(("image", *OUTPUT_NAMES), np.dtype(np.float32))

    def new_context(self, stream: int) -> NullNetwork:
        return self

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        pass

    def close(self) -> None:
        pass


def null_backend(driver: Any, network: NullNetwork) -> GpuBackend:
    """In the place of `gpu_backend.BACKEND`."""

    def open_network(path: Path, driver: Driver, threads: int | None) -> NullNetwork:
        return network

    def load(driver: Driver, specialization: Specialization, notice: Callable[[str], None]) -> Kernels:
        return Kernels(driver, specialization, b"")

    return GpuBackend(lambda _: None, lambda _: driver, open_network, load)


def write_block(block: Image, offset: int, values: AnyArray) -> None:
    """An array into a block of bytes."""
    block[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)
