"""Whole frames on a GPU around a network, beside that network alone."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from benchmarks.device import bare_network
from benchmarks.figures.gpu_timing import CudaGraphTimer
from benchmarks.statistics import percentiles
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.compile import load_kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.runtime.gpu.pipeline import GpuPipeline, LoadKernels
from yolact_deploy.runtime.protocols import DEVICE_STAGES, DeviceNetwork

_WARMUP = 10
_TIMED_STAGES = 20
_REPLAYS = 10  # of a network, between two events
_COPIES = ("host_to_device", "device_to_host")


def measure_frames(
    driver: Driver,
    open_network: Callable[[], DeviceNetwork],
    image: Image,  # [H, W, 3]
    *,
    repeats: int = 100,
    spin_s: float = 0.0,
    cuda_graph: bool = True,
    load: LoadKernels = load_kernels,
) -> dict[str, Any]:
    """{"network", "image_hw", "detections", "cuda_graph", "bare_network_ms", "stages_ms", "frame_ms", "floor_ms", "overhead",
    "in_flight", "throughput_fps", "device_bytes", "notes"}.

    "frame_ms" (percentiles) is of the host's clock; "floor_ms" the bare network and the copies to and from the device, by
    CUDA events; "overhead" what a frame takes beyond that, as a share of it. "throughput_fps" has two batches in flight.
    """
    bare_ms = _bare_network(driver, open_network(), repeats, spin_s)
    with driver.current():
        free_before = driver.memory_info()[0]
    pipeline = GpuPipeline(driver, open_network(), load, cuda_graph=cuda_graph)
    try:
        frame = pipeline.load(image, "bgr")

        def whole() -> int:
            return len(pipeline.submit([frame], 0.0, "bits").result()[0])

        for _ in range(min(_WARMUP, repeats)):
            found = whole()
        times = []
        for _ in range(repeats):
            begin = perf_counter_ns()
            whole()
            times.append(perf_counter_ns() - begin)
        throughput = _throughput(pipeline, frame, repeats)
        marks = [pipeline.timed([frame], 0.0, "bits")[1] for _ in range(min(_TIMED_STAGES, repeats))]
        with driver.current():
            used = free_before - driver.memory_info()[0]
        notes = list(pipeline.notes)
        description, in_flight = pipeline.description, pipeline.in_flight
    finally:
        pipeline.close()
    stages: dict[str, float] = {
        str(stage): statistics.median([mark.get(stage, 0.0) for mark in marks]) for stage in DEVICE_STAGES
    }
    frame_ms = percentiles(times)
    floor = bare_ms + sum(stages[stage] for stage in _COPIES)
    return {
        "network": description,
        "image_hw": list(image.shape[:2]),
        "detections": found,
        "cuda_graph": cuda_graph and driver.captures_cuda_graphs,
        "bare_network_ms": bare_ms,
        "stages_ms": stages,
        "frame_ms": frame_ms,
        "floor_ms": floor,
        "overhead": frame_ms["p50"] / floor - 1,
        "in_flight": in_flight,
        "throughput_fps": throughput,
        "device_bytes": used,
        "notes": notes,
    }


def _bare_network(driver: Driver, network: DeviceNetwork, repeats: int, spin_s: float) -> float:
    """Median milliseconds of one execution, batch 1, by CUDA events; captured in a graph where it can be."""
    with bare_network(driver, network) as bare:
        timer = CudaGraphTimer(driver, bare.stream, min(repeats, 20), replays=_REPLAYS, capture=bare.context.capturable)
        timer.spin(lambda _: bare.enqueue(), spin_s)
        return timer.each([lambda _: bare.enqueue()]) / 1e3


def _throughput(pipeline: GpuPipeline, frame: Any, repeats: int) -> float:
    """Images per second with as many batches in flight as the pipeline allows."""
    pending: deque[Any] = deque()
    begin = perf_counter_ns()
    for _ in range(repeats):
        if len(pending) == pipeline.in_flight:
            pending.popleft().result()
        pending.append(pipeline.submit([frame], 0.0, "bits"))
    while pending:
        pending.popleft().result()
    return repeats * 1e9 / (perf_counter_ns() - begin)
