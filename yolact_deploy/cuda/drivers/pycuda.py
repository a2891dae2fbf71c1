"""The CUDA driver through pycuda.driver.

pycuda's objects are kept by the handles and addresses that the interface speaks of. They free what they hold when they are
collected, each in a context that has to be current, and one whose context is gone would end the process: those are never
collected.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.bindings import CudaGraphCapture, bindings_fit, bindings_version, caller
from yolact_deploy.cuda.drivers.interface import Argument, GpuDevice
from yolact_deploy.cuda.drivers.libcuda import (
    OUT_OF_MEMORY,
    CudaContextState,
    context_lost_error,
    driver_error,
    memory_error,
    out_of_memory_error,
    track_cuda_context,
)
from yolact_deploy.cuda.launches import Launch
from yolact_deploy.errors import DeviceError, DeviceMemoryError

_NUMPY_TYPES: dict[str, Any] = {
    "pointer": np.uintp,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "float32": np.float32,
}
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_UNKNOWN = 999  # CUDA_ERROR_UNKNOWN


class PycudaDriver:
    """A `Driver`. The primary context is retained until the driver is collected."""

    def __init__(self, device: GpuDevice) -> None:
        import pycuda
        import pycuda.driver

        self.name = f"pycuda {pycuda.VERSION_TEXT}"
        self.device = device
        bindings = bindings_version()
        self.captures_cuda_graphs = bindings is not None and bindings_fit(bindings, device.driver_version)
        self._cuda = pycuda.driver
        self._streams: dict[int, Any] = {}  # apart: 1 and 2 are CUDA's default streams, and numbers of ours beside
        self._objects: dict[int, Any] = {}
        self._numbers = itertools.count(1)  # handles of what pycuda gives none
        self._state = track_cuda_context(device.index)
        self._call = caller(device, self._state)
        if self.captures_cuda_graphs:
            self._graphs = CudaGraphCapture(self._call)
        with self._refusals("opening the GPU"):
            pycuda.driver.init()
            self._context = pycuda.driver.Device(device.index).retain_primary_context()
        self._functions: dict[int, list[int]] = {}  # of a module
        kept = (self._streams, self._objects)
        self._at_end = weakref.finalize(self, _release, device.index, self._context, kept, self._state)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        if self._state.lost:
            raise context_lost_error(self.device)
        before = libcuda.current_context()
        with self._refusals("entering the CUDA context"):
            self._context.push()
        try:
            yield
        finally:
            try:
                self._cuda.Context.pop()
            except self._cuda.Error:  # pycuda's own stack still has it, and would for ever
                self._state.lost = True
                self._at_end.detach()
                _never_collect(self._context, *self._streams.values(), *self._objects.values())
                self._context.detach()
            if libcuda.current_context() != before:  # pycuda restores what it knows of, not what others made current
                libcuda.set_current_context(before)

    def allocate(self, nbytes: int, purpose: str) -> int:
        try:
            with self._refusals(f"allocating {purpose}"):
                memory = self._cuda.mem_alloc(nbytes)
        except DeviceMemoryError as exc:
            raise memory_error(self.device, nbytes, purpose, self._free_bytes()) from exc
        return self._keep(memory, int(memory))

    def free(self, address: int) -> None:
        memory = self._take(address)
        with self._refusals("freeing memory"):
            if not self._state.lost:
                memory.free()

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        try:
            with self._refusals(f"allocating {purpose}"):
                array = self._cuda.pagelocked_empty(nbytes, np.uint8)
        except DeviceMemoryError as exc:
            raise memory_error(self.device, nbytes, purpose, None, pinned=True) from exc
        return self._keep(array, int(array.ctypes.data))

    def free_pinned(self, address: int) -> None:
        memory = self._take(address)
        with self._refusals("freeing page-locked memory"):
            if not self._state.lost:
                memory.base.free()

    def lock_pages(self, address: int, nbytes: int) -> None:
        self._call("locking pages", libcuda.lock_pages, address, nbytes)

    def unlock_pages(self, address: int) -> None:
        if not self._state.lost:
            self._call("unlocking pages", libcuda.unlock_pages, address)

    def memory_info(self) -> tuple[int, int]:
        with self._refusals("asking for free memory"):
            free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    def device_of(self, address: int) -> int | None:
        return libcuda.device_of(address)

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        with self._refusals("copying to the GPU"):
            self._cuda.memcpy_htod_async(target, _host_bytes(source, nbytes), self._stream(stream))

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        with self._refusals("copying from the GPU"):
            self._cuda.memcpy_dtoh_async(_host_bytes(target, nbytes), source, self._stream(stream))

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        with self._refusals("copying on the GPU"):
            self._cuda.memcpy_dtod_async(target, source, nbytes, self._stream(stream))

    def create_stream(self) -> int:
        with self._refusals("making a stream"):
            stream = self._cuda.Stream(_NON_BLOCKING)
        handle = int(stream.handle)
        self._streams[handle] = stream
        return handle

    def destroy_stream(self, stream: int) -> None:
        self._take(stream, self._streams)

    def synchronize(self, stream: int) -> None:
        with self._refusals("the work on the GPU"):
            if stream in self._streams:
                self._streams[stream].synchronize()
            else:
                self._cuda.Context.synchronize()

    def create_event(self, *, timing: bool = False) -> int:
        flags = self._cuda.event_flags
        with self._refusals("making an event"):
            event = self._cuda.Event(flags.DEFAULT if timing else flags.DISABLE_TIMING)
        return self._keep(event, next(self._numbers))

    def destroy_event(self, event: int) -> None:
        self._take(event)

    def record(self, event: int, stream: int) -> None:
        """Another library's stream can't be given to pycuda: everything on the device is waited for instead."""
        with self._refusals("recording an event"):
            if stream and stream not in self._streams:
                self._cuda.Context.synchronize()
            self._objects[event].record(self._streams.get(stream))

    def wait(self, stream: int, event: int) -> None:
        """Another library's stream can't be given to pycuda: the event is waited for here instead."""
        with self._refusals("ordering two streams"):
            if stream in self._streams:
                self._streams[stream].wait_for_event(self._objects[event])
            else:
                self._objects[event].synchronize()

    def synchronize_event(self, event: int) -> None:
        with self._refusals("the work on the GPU"):
            self._objects[event].synchronize()

    def elapsed_ms(self, start: int, end: int) -> float:
        with self._refusals("timing"):
            return float(self._objects[start].time_till(self._objects[end]))

    def load_module(self, image: bytes) -> int:
        with self._refusals("loading the kernels"):
            return self._keep(self._cuda.module_from_buffer(image), next(self._numbers))

    def unload_module(self, module: int) -> None:
        for function in self._functions.pop(module, []):
            self._take(function)
        self._take(module)

    def get_function(self, module: int, name: str) -> int:
        with self._refusals(f"finding the kernel {name}"):
            function = self._objects[module].get_function(name)
        handle = self._keep(function, next(self._numbers))
        self._functions.setdefault(module, []).append(handle)
        return handle

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        values = [_NUMPY_TYPES[kind](value) for kind, value in arguments]
        with self._refusals(f"launching the kernel {launch.kernel}"):
            self._objects[function](
                *values, grid=launch.grid, block=launch.block, shared=launch.shared_bytes, stream=self._stream(stream)
            )

    def begin_capture(self, stream: int) -> None:
        self._graphs.begin(stream)

    def end_capture(self, stream: int) -> int:
        return self._graphs.end(stream)

    def launch_cuda_graph(self, graph: int, stream: int) -> None:
        self._graphs.launch(graph, stream)

    def destroy_cuda_graph(self, graph: int) -> None:
        if not self._state.lost:
            self._graphs.destroy(graph)

    def _keep(self, thing: Any, handle: int) -> int:
        self._objects[handle] = thing
        return handle

    def _take(self, handle: int, kept: dict[int, Any] | None = None) -> Any:
        """What is freed as soon as the caller drops it, but never where its context is gone."""
        thing = (self._objects if kept is None else kept).pop(handle)
        if self._state.lost:
            _never_collect(thing)
        return thing

    def _stream(self, stream: int) -> Any:
        if stream and stream not in self._streams:
            raise DeviceError(
                "pycuda can't enqueue work on a stream that another library made; "
                "copy on a stream of the driver's own, or choose cuda-bindings (YOLACT_DEPLOY_CUDA_DRIVER)."
            )
        return self._streams.get(stream)

    def _free_bytes(self) -> int | None:
        try:
            return self.memory_info()[0]
        except DeviceError:
            return None

    @contextlib.contextmanager
    def _refusals(self, action: str) -> Iterator[None]:
        """pycuda's errors as DeviceError: "routine failed: words", of which the code is found by its words."""
        try:
            yield
        except self._cuda.Error as exc:
            words = str(exc).partition(" failed: ")[2].partition(" - ")[0] or str(exc)
            code = libcuda.error_code(words)
            if code == OUT_OF_MEMORY:
                raise out_of_memory_error(self.device, action) from exc
            if code is None:
                raise driver_error(self.device, action, _UNKNOWN, words) from exc
            self._state.observe(code)
            raise driver_error(self.device, action, code, libcuda.error_name(code)) from exc


def _release(index: int, context: Any, kept: tuple[dict[int, Any], ...], state: CudaContextState) -> None:
    """Free what is left and give the primary context back, from any thread."""
    if not state.lost:
        try:
            context.push()
        except Exception:
            state.lost = True
    if state.lost:
        _never_collect(context, *(thing for things in kept for thing in things.values()))
        libcuda.release_primary_context(index)
        return
    for things in kept:
        things.clear()
    context.detach()
    libcuda.pop_context()  # detach leaves it on the driver's stack


def _never_collect(*things: Any) -> None:
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _host_bytes(address: int, nbytes: int) -> Any:
    """Host memory as pycuda takes it: a buffer."""
    return (ctypes.c_uint8 * nbytes).from_address(address)
