"""Timing a Detector on a GPU: whole calls on the host's clock, stages on the device's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter_ns, process_time_ns
from typing import ClassVar, Protocol

from benchmarks.rounds import Samples
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.runtime import gpu_frame

HOST = "host"  # what no stage of the device accounts for: launching, waiting, unpacking masks
DEVICE_STAGES = (*gpu_frame.STAGES, HOST)
_EMPTY_STAGES = 200
_NS_PER_MS = 1e6


class Calls(Protocol):
    """A Detector on a GPU, or what is called like one."""

    def __call__(self, image: list[Image], /, *, score_threshold: float) -> list[Detections]: ...

    def timed(
        self, images: Sequence[Image], *, score_threshold: float
    ) -> tuple[list[Detections], dict[str, float]]: ...


class DeviceSamples(Samples):
    """A round is two calls: one as users make it, with CUDA graphs where the Detector uses them, and one marked by stage,
    for which there are none. Both end when all masks are in host memory at full size, unpacked from bits."""

    stages: ClassVar[tuple[str, ...]] = DEVICE_STAGES

    def __init__(self, detector: Detector, calls: Calls | None = None) -> None:
        super().__init__(detector)
        self._calls: Calls = calls if calls is not None else detector
        self.call_ns: list[int] = []  # of the whole: until detections and bit-packed masks are in host memory
        self.device_ns: list[int] = []  # sum of the stages on the device
        self._staged_ns: list[int] = []

    def run(self, images: list[Image], score_threshold: float) -> int:
        begin = perf_counter_ns()
        masks = [found.masks for found in self._calls(images, score_threshold=score_threshold)]
        taken = perf_counter_ns() - begin
        del masks
        self._calls.timed(images, score_threshold=score_threshold)
        return taken

    def time(self, images: list[Image], score_threshold: float) -> None:
        before = process_time_ns()
        begin = perf_counter_ns()
        found = self._calls(images, score_threshold=score_threshold)
        called = perf_counter_ns()
        masks = [each.masks for each in found]
        end = perf_counter_ns()
        self.cpu_ns.append(process_time_ns() - before)
        del found, masks  # freed after the clock was read: giving memory back is the caller's business
        self.total_ns.append(end - begin)
        self.call_ns.append(called - begin)
        self._time_stages(images, score_threshold)

    def _time_stages(self, images: list[Image], score_threshold: float) -> None:
        begin = perf_counter_ns()
        found, stages_ms = self._calls.timed(images, score_threshold=score_threshold)
        masks = [each.masks for each in found]
        taken = perf_counter_ns() - begin
        del found, masks
        device = 0
        for stage in gpu_frame.STAGES:
            stage_ns = round(_NS_PER_MS * stages_ms.get(stage, 0.0))
            self.stages_ns[stage].append(stage_ns)
            device += stage_ns
        self.stages_ns[HOST].append(max(0, taken - device))  # two clocks: they may differ by a tick
        self._staged_ns.append(taken)
        self.device_ns.append(device)

    def time_whole(self, images: list[Image], score_threshold: float) -> None:
        """Every round has one."""

    @property
    def staged_ns(self) -> list[int]:
        return self._staged_ns

    def more_ns(self) -> dict[str, list[int]]:
        return {"call": self.call_ns, "device": self.device_ns, "staged": self._staged_ns}


def samples_of(detector: Detector) -> Samples:
    return DeviceSamples(detector) if detector.on_gpu else Samples(detector)


def empty_stage_ms(driver: Driver) -> float:
    """What timing adds to a stage on the device: the median time between two events with nothing between them."""
    with driver.current(), ExitStack() as stack:
        stream = driver.create_stream()
        stack.callback(driver.destroy_stream, stream)
        events = [driver.create_event(timing=True) for _ in range(2)]
        for event in events:
            stack.callback(driver.destroy_event, event)
        times = []
        for _ in range(_EMPTY_STAGES):
            for event in events:
                driver.record(event, stream)
            driver.synchronize(stream)
            times.append(driver.elapsed_ms(*events))
    return statistics.median(times)
