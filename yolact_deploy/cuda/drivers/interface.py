"""What the runtime asks of a CUDA driver: memory, streams, events, modules, launches, graphs.

Handles and addresses are the driver's own, as integers, so that TensorRT, onnxruntime and PyTorch can be given them. Every
driver works in the device's primary context, which those libraries share. Methods other than `current` are called with that
context current.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from yolact_deploy.cuda.launches import ArgumentKind, Launch

Argument: TypeAlias = tuple[ArgumentKind, int | float]  # a pointer's value is a device address


@dataclass(frozen=True)
class GpuDevice:
    """A GPU, as its driver describes it."""

    index: int  # N of "cuda:N"
    name: str
    compute_capability: tuple[int, int]
    driver_version: tuple[int, int]  # the newest CUDA it runs
    memory_bytes: int
    multiprocessors: int

    @property
    def architecture(self) -> str:
        """As NVRTC wants it, "sm_90"."""
        return "sm_{}{}".format(*self.compute_capability)

    @property
    def target(self) -> str:
        """As plans name it, "sm90"."""
        return "sm{}{}".format(*self.compute_capability)


class Driver(Protocol):
    """One GPU. Every method raises DeviceError, which names the driver's own error, when the driver refuses.

    When another library resets the context, all that was made in it is gone: it may still be freed and destroyed here, which
    then only forgets it, while `current` raises DeviceError from then on. A new driver works.
    """

    @property
    def name(self) -> str:
        """Package and version, for people."""
        ...

    @property
    def device(self) -> GpuDevice:
        """The GPU it drives."""
        ...

    @property
    def captures_cuda_graphs(self) -> bool:
        """Whether CUDA graphs can be recorded through it."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """The primary context, current in this thread for a `with` block; what was current before is so again after."""
        ...

    def allocate(self, nbytes: int, purpose: str) -> int:
        """Address of device memory. Raises DeviceMemoryError, which says how much was asked for, for what, and what is free."""
        ...

    def free(self, address: int) -> None:
        """Free device memory."""
        ...

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        """Address of page-locked host memory. Raises DeviceMemoryError."""
        ...

    def free_pinned(self, address: int) -> None:
        """Free page-locked memory of the host."""
        ...

    def lock_pages(self, address: int, nbytes: int) -> None:
        """Make ordinary memory of the host page-locked, until `unlock_pages`; `address` is the first of a page."""
        ...

    def unlock_pages(self, address: int) -> None:
        """Undo `lock_pages`."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def device_of(self, address: int) -> int | None:
        """Index of the device whose memory an address is in; None for memory the driver does not know."""
        ...

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """From a host address; returns at once only where that memory is pinned."""
        ...

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy of `nbytes` from device memory to page-locked memory of the host."""
        ...

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Enqueue a copy of `nbytes` within device memory."""
        ...

    def create_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Free a stream; nothing may be enqueued on it any more."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until everything enqueued on a stream is done. Errors of earlier work surface here."""
        ...

    def create_event(self, *, timing: bool = False) -> int:
        """A handle of an event, one that `elapsed_ms` can read if `timing`."""
        ...

    def destroy_event(self, event: int) -> None:
        """Free an event."""
        ...

    def record(self, event: int, stream: int) -> None:
        """Enqueue an event: it has happened once all work enqueued before it on the stream is done."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Work enqueued on `stream` from now on starts after `event`."""
        ...

    def synchronize_event(self, event: int) -> None:
        """Wait until an event has happened. Raises DeviceError for what failed before it."""
        ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Between two timing events that are done."""
        ...

    def load_module(self, image: bytes) -> int:
        """A module of a cubin."""
        ...

    def unload_module(self, module: int) -> None:
        """Free a module and its functions."""
        ...

    def get_function(self, module: int, name: str) -> int:
        """A handle of a kernel in a module. Raises DeviceError where it has none of that name."""
        ...

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        """Enqueue a kernel with its arguments, each as (type, value)."""
        ...

    def begin_capture(self, stream: int) -> None:
        """What is enqueued on `stream` from now on is recorded, not run."""
        ...

    def end_capture(self, stream: int) -> int:
        """The recorded work, ready to be launched."""
        ...

    def launch_cuda_graph(self, graph: int, stream: int) -> None:
        """Enqueue a recorded graph."""
        ...

    def destroy_cuda_graph(self, graph: int) -> None:
        """Free a recorded graph."""
        ...


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For the time of a capture: a finalizer that runs in its midst could ask the device for what breaks it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
