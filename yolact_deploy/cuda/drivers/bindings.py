"""The CUDA driver through cuda-bindings, and stream capture through it on the handles of whichever package made the stream."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

from yolact_deploy.cuda.drivers import libcuda
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

C_TYPES: dict[str, Any] = {
    "pointer": ctypes.c_void_p,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}


class CudaGraphCapture:
    """CUDA graphs by way of cuda-bindings, which pycuda's driver borrows."""

    def __init__(self, call: Callable[..., Any]) -> None:
        """`call(action, function, *arguments)` calls cuda.bindings.driver and raises what the driver refuses."""
        self._call = call

    def begin(self, stream: int) -> None:
        """Record what is enqueued on a stream from now on. Raises DeviceError."""
        from cuda.bindings import driver as cuda

        # whatever else this thread or another asks of the device meanwhile (to allocate, to free, to wait) breaks no capture
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call("starting to record a CUDA graph", cuda.cuStreamBeginCapture, stream, mode)

    def end(self, stream: int) -> int:
        """A handle of what was recorded, ready to launch. Raises DeviceError."""
        from cuda.bindings import driver as cuda

        graph = self._call("recording a CUDA graph", cuda.cuStreamEndCapture, stream)
        try:
            return int(self._call("making a CUDA graph", cuda.cuGraphInstantiate, graph, 0))
        finally:
            self._call("making a CUDA graph", cuda.cuGraphDestroy, graph)

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue what was recorded. Raises DeviceError."""
        from cuda.bindings import driver as cuda

        self._call("launching a CUDA graph", cuda.cuGraphLaunch, graph, stream)

    def destroy(self, graph: int) -> None:
        """Free a recorded graph."""
        from cuda.bindings import driver as cuda

        self._call("freeing a CUDA graph", cuda.cuGraphExecDestroy, graph)


class BindingsDriver:
    """A `Driver`. The primary context is retained until the driver is collected; at the end of the process it is left to
    whatever of other libraries still lives in it."""

    def __init__(self, device: GpuDevice) -> None:
        from cuda.bindings import driver

        self.name = f"cuda-bindings {bindings_version()}"
        self.device = device
        self.captures_cuda_graphs = True
        self._cuda = driver
        self._state = track_cuda_context(device.index)
        self._call = caller(device, self._state)
        self._graphs = CudaGraphCapture(self._call)
        self._call("starting the driver", driver.cuInit, 0)
        ordinal = self._call("opening the GPU", driver.cuDeviceGet, device.index)
        self._context = self._call("opening the GPU", driver.cuDevicePrimaryCtxRetain, ordinal)
        weakref.finalize(self, driver.cuDevicePrimaryCtxRelease, ordinal).atexit = False

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        if self._state.lost:
            raise context_lost_error(self.device)
        self._call("entering the CUDA context", self._cuda.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent()  # what it could say, the work within has said

    def allocate(self, nbytes: int, purpose: str) -> int:
        try:
            return int(self._call(f"allocating {purpose}", self._cuda.cuMemAlloc, nbytes))
        except DeviceMemoryError as exc:
            raise memory_error(self.device, nbytes, purpose, self._free_bytes()) from exc

    def free(self, address: int) -> None:
        self._release("freeing memory", self._cuda.cuMemFree, address)

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        try:
            return int(self._call(f"allocating {purpose}", self._cuda.cuMemHostAlloc, nbytes, 0))
        except DeviceMemoryError as exc:
            raise memory_error(self.device, nbytes, purpose, None, pinned=True) from exc

    def free_pinned(self, address: int) -> None:
        self._release("freeing page-locked memory", self._cuda.cuMemFreeHost, address)

    def lock_pages(self, address: int, nbytes: int) -> None:
        self._call("locking pages", self._cuda.cuMemHostRegister, address, nbytes, 0)

    def unlock_pages(self, address: int) -> None:
        self._release("unlocking pages", self._cuda.cuMemHostUnregister, address)

    def memory_info(self) -> tuple[int, int]:
        free, total = self._call("asking for free memory", self._cuda.cuMemGetInfo)
        return int(free), int(total)

    def device_of(self, address: int) -> int | None:
        return libcuda.device_of(address)

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("copying to the GPU", self._cuda.cuMemcpyHtoDAsync, target, source, nbytes, stream)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("copying from the GPU", self._cuda.cuMemcpyDtoHAsync, target, source, nbytes, stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("copying on the GPU", self._cuda.cuMemcpyDtoDAsync, target, source, nbytes, stream)

    def create_stream(self) -> int:
        flags = int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
        return int(self._call("making a stream", self._cuda.cuStreamCreate, flags))

    def destroy_stream(self, stream: int) -> None:
        self._release("freeing a stream", self._cuda.cuStreamDestroy, stream)

    def synchronize(self, stream: int) -> None:
        self._call("the work on the GPU", self._cuda.cuStreamSynchronize, stream)

    def create_event(self, *, timing: bool = False) -> int:
        flags = self._cuda.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return int(self._call("making an event", self._cuda.cuEventCreate, int(kind)))

    def destroy_event(self, event: int) -> None:
        self._release("freeing an event", self._cuda.cuEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        self._call("recording an event", self._cuda.cuEventRecord, event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("ordering two streams", self._cuda.cuStreamWaitEvent, stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        self._call("the work on the GPU", self._cuda.cuEventSynchronize, event)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._call("timing", self._cuda.cuEventElapsedTime, start, end))

    def load_module(self, image: bytes) -> int:
        return int(self._call("loading the kernels", self._cuda.cuModuleLoadData, image))

    def unload_module(self, module: int) -> None:
        self._release("unloading the kernels", self._cuda.cuModuleUnload, module)

    def get_function(self, module: int, name: str) -> int:
        return int(self._call(f"finding the kernel {name}", self._cuda.cuModuleGetFunction, module, name.encode()))

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        values = [C_TYPES[kind](value) for kind, value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        self._call(
            f"launching the kernel {launch.kernel}",
            self._cuda.cuLaunchKernel,
            function,
            *launch.grid,
            *launch.block,
            launch.shared_bytes,
            stream,
            ctypes.addressof(pointers),
            0,
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

    def _release(self, action: str, function: Any, handle: int) -> None:
        if not self._state.lost:
            self._call(action, function, handle)

    def _free_bytes(self) -> int | None:
        try:
            return self.memory_info()[0]
        except DeviceError:
            return None


def bindings_version() -> str | None:
    """None when cuda-bindings is not installed."""
    try:
        return metadata.version("cuda-bindings")
    except metadata.PackageNotFoundError:
        return None


def bindings_fit(version: str, driver_version: tuple[int, int]) -> bool:
    """Whether a driver has what cuda-bindings of that version calls: a package serves drivers of its own CUDA and newer."""
    return int(version.partition(".")[0]) <= driver_version[0]


def caller(device: GpuDevice, state: CudaContextState) -> Callable[..., Any]:
    """`call(action, function, *arguments)`: the value of a function of cuda.bindings.driver, or DeviceError."""

    def call(action: str, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        try:
            result, *values = function(*arguments)
        except RuntimeError as exc:  # cuda-bindings found no such function in the driver
            raise DeviceError(
                f"cuda:{device.index} ({device.name}) failed in {action}: {exc}. The driver, made for CUDA "
                "{}.{}, is older than what this cuda-bindings calls; update it, or ".format(*device.driver_version)
                + f'pip install "cuda-bindings<{device.driver_version[0] + 1}".'
            ) from exc
        code = int(result)
        if code == OUT_OF_MEMORY:
            raise out_of_memory_error(device, action)
        state.observe(code)
        if code != 0:
            raise driver_error(device, action, code, libcuda.error_name(code))
        return values[0] if len(values) == 1 else tuple(values)

    return call
