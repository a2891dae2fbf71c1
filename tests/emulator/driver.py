"""A CUDA driver in this process: memory is the host's, kernels run in the emulator, and nothing runs before it is waited for.

Work is kept per stream and done when a stream or an event is synchronized: what reads a result too early reads garbage.
Memory starts as garbage, every copy must lie within an allocation, and every allocation has guards around it. Freeing waits
for all streams, as CUDA does; allocating, freeing and waiting are refused while a stream is captured.

Its clock counts a millisecond for each piece of work. With `host_takes_time` it also counts one for each call of the host, and
no work begins before it was enqueued: what is timed by events has the host's time in it, unless a gate held it back.
"""

from __future__ import annotations

import contextlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from tests.emulator.device_memory import EmulatedMemory, EmulatorMisuseError, host_view
from tests.emulator.emulator import emulator
from tests.emulator.guarded import Bytes
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Argument, GpuDevice
from yolact_deploy.cuda.launches import ARGUMENTS, Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.errors import DeviceError, DeviceMemoryError

Work: TypeAlias = Callable[[], None]

LEGACY_STREAM, PER_THREAD_STREAM = 1, 2
_GATE = "hold_stream"  # looks at memory of the host, and ends when the host says so


@dataclass
class _Stream:
    work: list[tuple[int, Work]] = field(default_factory=list)  # with the host's time at which it was enqueued
    done_ms: list[int] = field(default_factory=lambda: [0])  # when each piece of it was
    enqueued: int = 0
    capture: list[Work] | None = None

    @property
    def done(self) -> int:
        """Of `enqueued`."""
        return len(self.done_ms) - 1


@dataclass
class _Event:
    timing: bool
    recorded: tuple[int, int] | None = None  # stream, and how much was enqueued there
    host_ms: int = 0  # when it was


class EmulatedDriver:
    """`yolact_deploy.cuda.drivers.interface.Driver` without a GPU. `memory_bytes` bounds device memory."""

    name = "emulated driver"

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 40,
        captures_cuda_graphs: bool = True,
        index: int = 0,
        host_takes_time: bool = False,
    ) -> None:
        self.device = GpuDevice(index, "emulated GPU", (9, 0), (13, 0), memory_bytes, 1)
        self.captures_cuda_graphs = captures_cuda_graphs
        self.locks_pages = True
        self.launches: Counter[str] = Counter()  # kernels, as they run
        self.graph_launches = 0
        self.copied: Counter[str] = Counter()  # bytes, as they are copied
        self.allocated: list[tuple[str, int]] = []
        self.fail_capture: str | None = None  # what `end_capture` complains of
        self.torn_down = False  # another library has reset the context
        self._memory = EmulatedMemory()
        self._streams: dict[int, _Stream] = {LEGACY_STREAM: _Stream(), PER_THREAD_STREAM: _Stream()}
        self._events: dict[int, _Event] = {}
        self._modules: dict[int, Specialization] = {}
        self._functions: dict[int, tuple[int, str]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._next_handle = 100
        self._is_current = 0
        self._host_ms, self._ms_of_a_call = 0, int(host_takes_time)

    def load_kernels(self, specialization: Specialization) -> Kernels:
        """As `yolact_deploy.cuda.compile.load_kernels`, with the specialization as the "cubin"."""
        with self.current():
            return Kernels(self, specialization, pickle.dumps(specialization))

    @property
    def left_over(self) -> dict[str, int]:
        """What was made and not yet given back."""
        kinds = {
            "memory": len(self._memory),
            "streams": len(self._streams) - 2,
            "events": len(self._events),
            "modules": len(self._modules),
            "graphs": len(self._graphs),
        }
        return {kind: count for kind, count in kinds.items() if count}

    @property
    def device_bytes(self) -> int:
        return self._memory.device_bytes

    def view(self, address: int, nbytes: int) -> Bytes:
        """Memory of this driver. Raises EmulatorMisuseError outside of its allocations."""
        return self._memory.within(address, nbytes)

    def call(self, stream: int, work: Work) -> None:
        """Enqueue a function of the host, as a network's own kernels would be."""
        self._enqueue(stream, work)

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._is_current += 1
        try:
            yield
        finally:
            self._is_current -= 1

    def current(self) -> AbstractContextManager[None]:
        return self._current()

    def allocate(self, nbytes: int, purpose: str) -> int:
        self._check("cuMemAlloc", may_capture=False)
        free = self.device.memory_bytes - self.device_bytes
        if nbytes > free:
            raise DeviceMemoryError(
                f"no memory for {purpose}: {nbytes} bytes were asked for, {free} of {self.device.memory_bytes} are free."
            )
        self.allocated.append((purpose, nbytes))
        return self._memory.allocate(nbytes, self.device.index)

    def free(self, address: int) -> None:
        self._release(address, pinned=False)

    def allocate_pinned(self, nbytes: int, purpose: str) -> int:
        self._check("cuMemHostAlloc", may_capture=False)
        return self._memory.allocate(nbytes, None)

    def free_pinned(self, address: int) -> None:
        self._release(address, pinned=True)

    def lock_pages(self, address: int, nbytes: int) -> None:
        self._check("cuMemHostRegister", may_capture=False)
        if not self.locks_pages:
            raise DeviceError("cuMemHostRegister failed: CUDA_ERROR_NOT_SUPPORTED")
        self._memory.lock(address, nbytes)

    def unlock_pages(self, address: int) -> None:
        self._check("cuMemHostUnregister", may_capture=False)
        for stream in list(self._streams):
            self._run(stream)
        self._memory.unlock(address)

    def memory_info(self) -> tuple[int, int]:
        return self.device.memory_bytes - self.device_bytes, self.device.memory_bytes

    def device_of(self, address: int) -> int | None:
        found = self._memory.find(address)
        return None if found is None else found.device

    def copy_to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._check("cuMemcpyHtoDAsync")
        into = self._memory.within(target, nbytes, pinned=False)
        if self._memory.find(source) is None:  # pageable: CUDA has read it when it returns
            self._refuse_in_capture(stream, "a copy from pageable memory")
            content: Bytes = np.array(host_view(source, nbytes))
        else:
            content = self._memory.within(source, nbytes, pinned=True)

        def copy() -> None:
            into[:] = content
            self.copied["to_device"] += nbytes

        self._enqueue(stream, copy)

    def copy_to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._check("cuMemcpyDtoHAsync")
        pageable = self._memory.find(target) is None
        into = host_view(target, nbytes) if pageable else self._memory.within(target, nbytes, pinned=True)
        content = self._memory.within(source, nbytes, pinned=False)

        def copy() -> None:
            into[:] = content
            self.copied["to_host"] += nbytes

        if pageable:
            self._refuse_in_capture(stream, "a copy to pageable memory")
        self._enqueue(stream, copy)
        if pageable:
            self.synchronize(stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._check("cuMemcpyDtoDAsync")
        into = self._memory.within(target, nbytes, pinned=False)
        content = self._memory.within(source, nbytes, pinned=False)
        self._enqueue(stream, lambda: np.copyto(into, content))

    def create_stream(self) -> int:
        self._check("cuStreamCreate")
        return self._add(self._streams, _Stream())

    def destroy_stream(self, stream: int) -> None:
        self._check("cuStreamDestroy")
        self._run(stream)
        del self._streams[stream]

    def synchronize(self, stream: int) -> None:
        self._check("cuStreamSynchronize", may_capture=False)
        self._run(stream)
        if self._ms_of_a_call:
            self._host_ms = max(self._host_ms, self._streams[stream].done_ms[-1])

    def create_event(self, *, timing: bool = False) -> int:
        self._check("cuEventCreate")
        return self._add(self._events, _Event(timing))

    def destroy_event(self, event: int) -> None:
        self._check("cuEventDestroy")
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        self._check("cuEventRecord")
        found = self._events[event]
        found.recorded, found.host_ms = (stream, self._streams[stream].enqueued), self._host_ms

    def wait(self, stream: int, event: int) -> None:
        self._check("cuStreamWaitEvent")
        recorded = self._events[event].recorded
        if recorded is not None:
            self._enqueue(stream, lambda: self._run(*recorded))  # whose time is not looked at

    def synchronize_event(self, event: int) -> None:
        self._check("cuEventSynchronize", may_capture=False)
        recorded = self._events[event].recorded
        if recorded is not None:
            self._run(*recorded)

    def elapsed_ms(self, start: int, end: int) -> float:
        self._check("cuEventElapsedTime")
        times = []
        for event in (self._events[start], self._events[end]):
            if not event.timing or event.recorded is None:
                raise DeviceError("cuEventElapsedTime failed: CUDA_ERROR_INVALID_HANDLE")
            stream, position = event.recorded
            if self._streams[stream].done < position:
                raise DeviceError("cuEventElapsedTime failed: CUDA_ERROR_NOT_READY")
            times.append(max(event.host_ms, self._streams[stream].done_ms[position]))
        return float(times[1] - times[0])

    def load_module(self, image: bytes) -> int:
        self._check("cuModuleLoadData")
        return self._add(self._modules, pickle.loads(image))

    def unload_module(self, module: int) -> None:
        self._check("cuModuleUnload")
        del self._modules[module]

    def get_function(self, module: int, name: str) -> int:
        self._check("cuModuleGetFunction")
        if module not in self._modules:
            raise EmulatorMisuseError("the module is not loaded")
        return self._add(self._functions, (module, name))

    def launch(self, function: int, launch: Launch, arguments: Sequence[Argument], stream: int) -> None:
        self._check("cuLaunchKernel")
        module, kernel = self._functions[function]
        kernels = emulator(self._modules[module])
        values: dict[str, Any] = {}
        for (name, kind), (given, value) in zip(ARGUMENTS[kernel], arguments, strict=True):
            if kind != given:
                raise EmulatorMisuseError(f"{name} of {kernel} is {kind}, given as {given}")
            values[name] = self._memory.rest(int(value), pinned=kernel == _GATE) if kind == "pointer" else value

        def run() -> None:
            kernels.launch(launch, values, guard=False)  # its memory is
            self.launches[kernel] += 1
            if kernel == _GATE and self._ms_of_a_call:
                self._streams[stream].done_ms[-1] = self._host_ms

        self._enqueue(stream, run)

    def begin_capture(self, stream: int) -> None:
        self._check("cuStreamBeginCapture")
        if not self.captures_cuda_graphs:
            raise DeviceError("this driver captures no graphs")
        self._streams[stream].capture = []

    def end_capture(self, stream: int) -> int:
        self._check("cuStreamEndCapture")
        recorded, self._streams[stream].capture = self._streams[stream].capture, None
        if recorded is None:
            raise DeviceError("cuStreamEndCapture failed: CUDA_ERROR_ILLEGAL_STATE")
        if self.fail_capture is not None:
            raise DeviceError(self.fail_capture)
        return self._add(self._graphs, recorded)

    def launch_cuda_graph(self, graph: int, stream: int) -> None:
        self._check("cuGraphLaunch")
        if graph not in self._graphs:
            raise EmulatorMisuseError("the graph is destroyed")
        self.graph_launches += 1
        for work in self._graphs[graph]:
            self._enqueue(stream, work)

    def destroy_cuda_graph(self, graph: int) -> None:
        self._check("cuGraphDestroy")
        del self._graphs[graph]

    def _check(self, function: str, *, may_capture: bool = True) -> None:
        if self.torn_down:
            raise DeviceError(f"{function} failed: CUDA_ERROR_CONTEXT_IS_DESTROYED")
        if not self._is_current:
            raise EmulatorMisuseError(f"{function} without a current context")
        if not may_capture and any(stream.capture is not None for stream in self._streams.values()):
            raise DeviceError(f"{function} failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        self._host_ms += self._ms_of_a_call

    def _refuse_in_capture(self, stream: int, what: str) -> None:
        if self._streams[stream].capture is not None:
            raise DeviceError(f"{what} failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _enqueue(self, stream: int, work: Work) -> None:
        target = self._streams[stream]
        if target.capture is not None:
            target.capture.append(work)
        else:
            target.work.append((self._host_ms, work))
            target.enqueued += 1

    def _run(self, stream: int, until: int | None = None) -> None:
        """What was enqueued first, up to the `until`-th."""
        target = self._streams[stream]
        while target.work and (until is None or target.done < until):
            enqueued_ms, work = target.work.pop(0)
            target.done_ms.append(max(enqueued_ms, target.done_ms[-1]) + 1)
            work()

    def _release(self, address: int, *, pinned: bool) -> None:
        self._check("cuMemFree", may_capture=False)
        for stream in list(self._streams):
            self._run(stream)
        self._memory.release(address, pinned=pinned)

    def _add(self, handles: dict[int, Any], item: Any) -> int:
        self._next_handle += 1
        handles[self._next_handle] = item
        return self._next_handle
