"""Times of a GPU's work by its own clock, at the clock that it runs at when it is busy.

An idle GPU has its clocks down and takes a while to raise them, so that whoever measures lets it work first. What is measured
runs as a CUDA graph, many times over between two events, and the clock is read while it runs; nothing is ever set.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter, perf_counter_ns
from typing import Any, TypeAlias

from benchmarks.device import Memory
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import DeviceError

COPY_BYTES = 1 << 30
SPIN_S = 1.0
REPLAYS = 16  # between two events
Work: TypeAlias = Callable[[int], None]  # enqueues on a stream

_GRAPH_WARMUP = 3
_L2_BYTES = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_SM_CLOCK = 1  # NVML_CLOCK_SM
_BUS_ID_CHARACTERS = 32
_SMI_SECONDS = 5


def device_attribute(index: int, attribute: int) -> int:
    """A CUdevice_attribute of a GPU; 0 where no driver tells."""
    device, value = ctypes.c_int(), ctypes.c_int()
    try:
        library = libcuda.initialize()
    except DeviceError:
        return 0
    library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index))
    code = library.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device)
    return value.value if code == 0 else 0


def l2_bytes(index: int) -> int:
    """Of the cache that all multiprocessors share."""
    return device_attribute(index, _L2_BYTES)


class SmClock:
    """Called, the MHz of a GPU's multiprocessors right now: by NVML, else by nvidia-smi; None where neither tells."""

    def __init__(self, index: int) -> None:
        self._bus_id = _bus_id(index)
        self._nvml: Any = None
        self._handle = ctypes.c_void_p()
        self._smi = self._bus_id is not None
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            bus_id = (self._bus_id or "").encode()
            if (
                nvml.nvmlInit_v2() == 0
                and nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(self._handle)) == 0
            ):
                self._nvml = nvml
        except (OSError, AttributeError):
            return

    def __call__(self) -> int | None:
        if self._nvml is not None:
            mhz = ctypes.c_uint()
            if self._nvml.nvmlDeviceGetClockInfo(self._handle, ctypes.c_int(_SM_CLOCK), ctypes.byref(mhz)) == 0:
                return mhz.value
        if not self._smi:
            return None
        command = ["nvidia-smi", "-i", str(self._bus_id), "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_SMI_SECONDS)
            return int(done.stdout.strip())
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._smi = False  # asked once: it takes long enough
            return None


def _bus_id(index: int) -> str | None:
    """ "0000:1B:00.0"; NVML counts GPUs otherwise than CUDA does."""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_BUS_ID_CHARACTERS)
    try:
        library = libcuda.initialize()
        library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index))
        code = library.cuDeviceGetPCIBusId(name, ctypes.c_int(len(name)), device)
    except (AttributeError, DeviceError):
        return None
    return name.value.decode() if code == 0 else None


class CudaGraphTimer:
    """Times work enqueued on a stream as a CUDA graph; where that can't be captured, as it is. `sm_mhz` are the clocks read
    at the first and the last end of the last `each`; `notes` tell of times that hold the host's, in whichever `each`."""

    def __init__(
        self,
        driver: Driver,
        stream: int,
        repeats: int,  # times that are taken, of which the median counts
        *,
        replays: int = 1,  # between two events; fewer of a graph that holds much work, but two
        capture: bool = True,
        clock: SmClock | None = None,
        kernels: Kernels | None = None,  # any, to hold the stream back with while work is enqueued
    ) -> None:
        self._driver, self._stream, self._repeats, self._replays = driver, stream, repeats, replays
        self._capture = capture and driver.captures_cuda_graphs
        self._clock, self._kernels = clock, kernels
        self.sm_mhz: list[int] = []
        self.notes: list[str] = []

    def spin(self, work: Work, seconds: float = SPIN_S) -> None:
        """Let the GPU do something for so long, so that its clocks are up."""
        with ExitStack() as stack:
            replay = self._prepared([work], stack)
            ends = perf_counter() + seconds
            while perf_counter() < ends:
                for _ in range(self._replays):
                    replay()
                self._driver.synchronize(self._stream)

    def each(self, works: Sequence[Work]) -> float:
        """Median microseconds of the device for one of `works`, which run one after the other."""
        self.sm_mhz = []
        with ExitStack() as stack:
            replay = self._prepared(works, stack)
            elapsed_ms = (
                self._between_events(stack) if self._kernels is None else self._behind_a_gate(stack, self._kernels)
            )
            replays = max(min(2, self._replays), -(-self._replays // len(works)))

            def enqueue() -> None:
                for _ in range(replays):
                    replay()

            times = []
            for number in range(self._repeats):
                times.append(elapsed_ms(enqueue) * 1e3 / (len(works) * replays))
                if self._clock is not None and number in (0, self._repeats - 1) and (mhz := self._clock()) is not None:
                    self.sm_mhz.append(mhz)
        return statistics.median(times)

    def _between_events(self, stack: ExitStack) -> Callable[[Callable[[], object]], float]:
        driver, stream = self._driver, self._stream
        start, end = (driver.create_event(timing=True) for _ in range(2))
        stack.callback(driver.destroy_event, start)
        stack.callback(driver.destroy_event, end)

        def elapsed_ms(enqueue: Callable[[], object]) -> float:
            driver.record(start, stream)
            enqueue()
            driver.record(end, stream)
            driver.synchronize_event(end)
            return driver.elapsed_ms(start, end)

        return elapsed_ms

    def _behind_a_gate(self, stack: ExitStack, kernels: Kernels) -> Callable[[Callable[[], object]], float]:
        stopwatch = Stopwatch(self._driver, kernels, self._stream, self._note)
        stack.callback(stopwatch.close)
        return lambda enqueue: stopwatch.time({"work": enqueue})["work"]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def call(self, work: Work) -> float:
        """Median microseconds of the host, from the launch to the end of waiting for it."""
        with ExitStack() as stack:
            replay = self._prepared([work], stack)
            times = []
            for _ in range(self._repeats * self._replays):
                begin = perf_counter_ns()
                replay()
                self._driver.synchronize(self._stream)
                times.append((perf_counter_ns() - begin) / 1e3)
        return statistics.median(times)

    def _prepared(self, works: Sequence[Work], stack: ExitStack) -> Callable[[], None]:
        """Warmed up, and captured where that can be."""
        driver, stream = self._driver, self._stream

        def run() -> None:
            for work in works:
                work(stream)

        run()
        driver.synchronize(stream)
        replay = run
        if self._capture:
            driver.begin_capture(stream)
            run()
            graph = driver.end_capture(stream)
            stack.callback(driver.destroy_cuda_graph, graph)
            replay = partial(driver.launch_cuda_graph, graph, stream)
        for _ in range(_GRAPH_WARMUP):
            replay()
        driver.synchronize(stream)
        return replay


def copy_bandwidth(driver: Driver, *, nbytes: int = COPY_BYTES, repeats: int = 20) -> float:
    """GB/s of a device-to-device copy, bytes read and bytes written: what a kernel can hope for."""
    with driver.current(), Memory(driver) as memory:
        stream = memory.stream()
        source, target = memory.device(nbytes, "copy"), memory.device(nbytes, "copy")
        timer = CudaGraphTimer(driver, stream, repeats)
        us = timer.each([partial(driver.copy_on_device, target, source, nbytes)])
    return 2 * nbytes / us / 1e3
