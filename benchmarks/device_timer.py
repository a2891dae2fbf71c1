"""Memory that is given back, and times of work on a GPU's stream."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray
from yolact_deploy.cuda.drivers.interface import Driver

COPY_BYTES = 1 << 30
_WARMUP = 3

Work: TypeAlias = Callable[[int], None]  # enqueues on a stream


class Memory(ExitStack):
    """Device and pinned memory that lives as long as the `with` block."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def device(self, nbytes: int, purpose: str) -> int:
        address = self.driver.allocate(max(nbytes, 1), purpose)
        self.callback(self.driver.free, address)
        return address

    def pinned(self, nbytes: int, purpose: str) -> int:
        address = self.driver.allocate_pinned(max(nbytes, 1), purpose)
        self.callback(self.driver.free_pinned, address)
        return address

    def upload(self, array: AnyArray, purpose: str, stream: int) -> int:
        contiguous = np.ascontiguousarray(array)
        address = self.device(contiguous.nbytes, purpose)
        self.driver.copy_to_device(address, contiguous.ctypes.data, contiguous.nbytes, stream)
        self.driver.synchronize(stream)
        return address

    def stream(self) -> int:
        stream = self.driver.create_stream()
        self.callback(self.driver.destroy_stream, stream)
        return stream


def copy_bandwidth(driver: Driver, *, nbytes: int = COPY_BYTES, repeats: int = 20) -> float:
    """GB/s of a device-to-device copy, bytes read and bytes written: what a kernel can hope for."""
    with driver.current(), Memory(driver) as memory:
        stream = memory.stream()
        source, target = memory.device(nbytes, "copy"), memory.device(nbytes, "copy")
        timer = GraphTimer(driver, stream, repeats)
        us = timer.each([partial(driver.copy_on_device, target, source, nbytes)])
    return 2 * nbytes / us / 1e3


class GraphTimer:
    """Times work enqueued on a stream as a CUDA graph; where that can't be captured, as it is."""

    def __init__(self, driver: Driver, stream: int, repeats: int, *, capture: bool = True) -> None:
        self._driver, self._stream, self._repeats = driver, stream, repeats
        self._capture = capture and driver.captures_graphs

    def each(self, works: Sequence[Work]) -> float:
        """Median microseconds of the device for one of `works`, which run one after the other."""
        driver, stream = self._driver, self._stream
        with ExitStack() as stack:
            start, end = (driver.create_event(timing=True) for _ in range(2))
            stack.callback(driver.destroy_event, start)
            stack.callback(driver.destroy_event, end)
            replay = self._prepared(works, stack)
            times = []
            for _ in range(self._repeats):
                driver.record(start, stream)
                replay()
                driver.record(end, stream)
                driver.synchronize_event(end)
                times.append(driver.elapsed_ms(start, end) * 1e3 / len(works))
        return statistics.median(times)

    def call(self, work: Work) -> float:
        """Median microseconds of the host, from the launch to the end of waiting for it."""
        with ExitStack() as stack:
            replay = self._prepared([work], stack)
            times = []
            for _ in range(self._repeats):
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
            stack.callback(driver.destroy_graph, graph)
            replay = partial(driver.launch_graph, graph, stream)
        for _ in range(_WARMUP):
            replay()
        driver.synchronize(stream)
        return replay
