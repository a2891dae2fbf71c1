"""The kernels on a GPU, each and together, beside what moving their bytes would take alone.

Times are of CUDA events around a CUDA graph that goes over several copies of all buffers, more than the L2 cache holds, and
are divided by their number: launches of a frame overlap with nothing, and no frame finds its inputs in the cache.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter_ns
from typing import Any, TypeAlias

import numpy as np

from benchmarks.device import Memory, bare_network
from benchmarks.statistics import percentiles
from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.cuda.compile import Kernels, load_kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.cuda.program import BatchLayout, BatchProgram, ImageKind, ModelConstants, Step, pack
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.runtime.gpu.pipeline import GpuPipeline, LoadKernels
from yolact_deploy.runtime.protocols import DEVICE_STAGES, DeviceNetwork, HeadTensors
from yolact_deploy.spec import INPUT, ModelSpec

COPY_BYTES = 1 << 30
_GRAPH_WARMUP = 3

Work: TypeAlias = Callable[[int], None]  # enqueues on a stream
LoadSpecialized: TypeAlias = Callable[[Driver, Specialization], Kernels]
_WARMUP = 10
_TIMED_STAGES = 20
_COPIES = ("host_to_device", "device_to_host")


class BatchOfOne:
    """Heads of one image on the device, and all that the kernels make of them for an image size."""

    def __init__(
        self,
        memory: Memory,
        kernels: Kernels,
        model: ModelConstants,
        uploads: Mapping[str, AnyArray],
        image_hw: tuple[int, int],
        stream: int,
    ) -> None:
        self._memory, self._kernels = memory, kernels
        self.program = BatchProgram(model, BatchLayout((ImageKind(image_hw, is_rgb=False, on_device=True),)))
        results = pack(self.program.results)
        self._result_bytes = results.nbytes
        self._results = memory.device(self._result_bytes, "results")
        self._pinned = memory.pinned(self._result_bytes, "results on the host")
        own = {name: buffer for name, buffer in self.program.workspace.items() if name not in uploads}
        self._at = {
            **results.at(self._results),
            **{name: memory.device(buffer.nbytes, name) for name, buffer in own.items()},
            **{name: memory.upload(array, name, stream) for name, array in uploads.items()},
        }
        self._pinned_masks = memory.pinned(self.program.workspace["mask_words"].nbytes, "masks on the host")
        self.steps = (*self.program.detect(self._at), *self.program.masks(self._at))

    def launch(self, step: Step, stream: int) -> None:
        """One kernel."""
        self._kernels.launch(*step, stream)

    def enqueue(self, stream: int) -> None:
        """Every kernel, and the detections (not the masks) to pinned memory."""
        for step in self.steps:
            self.launch(step, stream)
        self._memory.driver.copy_to_host(self._pinned, self._results, self._result_bytes, stream)

    def copy_masks(self, nbytes: int, stream: int) -> None:
        """So much of the masks to pinned memory."""
        self._memory.driver.copy_to_host(self._pinned_masks, self._at["mask_words"], nbytes, stream)

    def read(self, name: str, buffer: Buffer, stream: int) -> AnyArray:
        """A buffer's content, once `stream` is done."""
        found = np.empty(buffer.shape, buffer.dtype)
        self._memory.driver.copy_to_host(found.ctypes.data, self._at[name], found.nbytes, stream)
        self._memory.driver.synchronize(stream)
        return found


def measure_kernels(
    driver: Driver,
    spec: ModelSpec,
    heads: HeadTensors,  # of one image, batch 1, float32
    image_hw: tuple[int, int],
    *,
    copies: int = 8,
    repeats: int = 50,
    load: LoadSpecialized = load_kernels,
) -> dict[str, Any]:
    """{"image_hw", "detections", "candidates", "kernels": [{"kernel", "us", "bytes", "gb_per_s"}], "frame_us",
    "frame_call_us", "mask_copy_us", "mask_copy_bytes"}.

    "frame_us" is decode, FastNMS and masks, and the detections in pinned host memory, in a CUDA graph; "frame_call_us" the same
    as a host sees it, from the graph's launch to the end of waiting for it.
    """
    model = ModelConstants.of(spec, specialize(spec), multiprocessors=driver.device.multiprocessors)
    uploads = {**heads._asdict(), "priors": make_priors(spec), "image_hw": np.array([image_hw], np.int32)}
    with driver.current(), Memory(driver) as memory:
        kernels = load(driver, model.specialization)
        memory.callback(kernels.close)
        stream = memory.stream()
        batches = [BatchOfOne(memory, kernels, model, uploads, image_hw, stream) for _ in range(copies)]
        for batch in batches:
            batch.enqueue(stream)
        driver.synchronize(stream)
        one = batches[0]
        found = {name: one.read(name, one.program.results[name], stream) for name in ("count", "window_start")}
        detections, (mask_bytes,) = int(found["count"][0]), one.program.mask_bytes(found)
        kept_words = one.read("kept_words", one.program.workspace["kept_words"], stream)
        candidates = int(np.unpackbits(kept_words.view(np.uint8)).sum())
        timer = CudaGraphTimer(driver, stream, repeats)
        rows = []
        for number, (launch, _) in enumerate(one.steps):
            us = timer.each([partial(batch.launch, batch.steps[number]) for batch in batches])
            moved = _bytes_moved(launch.kernel, one.program, candidates, detections, mask_bytes)
            rows.append({"kernel": launch.kernel, "us": us, "bytes": moved, "gb_per_s": moved / us / 1e3})
        return {
            "image_hw": list(image_hw),
            "detections": detections,
            "candidates": candidates,
            "kernels": rows,
            "frame_us": timer.each([batch.enqueue for batch in batches]),
            "frame_call_us": timer.call(one.enqueue),
            "mask_copy_us": timer.each([partial(batch.copy_masks, mask_bytes) for batch in batches]),
            "mask_copy_bytes": mask_bytes,
        }


def measure_preprocess(
    driver: Driver,
    spec: ModelSpec,
    image_hw: tuple[int, int],
    *,
    copies: int = 16,
    repeats: int = 50,
    load: LoadSpecialized = load_kernels,
) -> dict[str, Any]:
    """{"image_hw", "input_size", "us", "bytes", "gb_per_s"} of one uint8 image to the network's input."""
    size = spec.input_size
    rng = np.random.default_rng(0)
    program = BatchProgram(
        ModelConstants.of(spec, specialize(spec)), BatchLayout((ImageKind(image_hw, is_rgb=False, on_device=False),))
    )
    pixels = list(program.staging)[-1]
    with driver.current(), Memory(driver) as memory:
        kernels = load(driver, program.model.specialization)
        memory.callback(kernels.close)
        stream = memory.stream()
        steps: list[Step] = []
        for _ in range(copies):
            image = rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)
            at = {pixels: memory.upload(image, "image", stream), INPUT: memory.device(12 * size * size, "input")}
            steps += program.preprocess(at)
        timer = CudaGraphTimer(driver, stream, repeats)
        us = timer.each([partial(kernels.launch, launch, values) for launch, values in steps])
        moved = 3 * image_hw[0] * image_hw[1] + 12 * size * size
        return {"image_hw": list(image_hw), "input_size": size, "us": us, "bytes": moved, "gb_per_s": moved / us / 1e3}


def _bytes_moved(kernel: str, program: BatchProgram, candidates: int, detections: int, mask_bytes: int) -> int:
    """The least a kernel has to read and write: each input once, each output once."""
    specialization, num_priors = program.model.specialization, program.model.num_priors
    lists = specialization.lists
    conf = program.workspace["conf"].nbytes
    pool = 8 * lists * specialization.max_out
    sorted_rows = lists * min(specialization.top_k, candidates)
    results = detections * (
        4 + 4 + 4 + 16 + 16 + 16 + 20 + 8 * specialization.num_coeff
    )  # coefficients are read and written
    words = num_priors // 8
    moved: dict[str, int] = {
        "decode": conf + words + candidates * (16 + 16 + 16 + 4 * lists),
        "fast_nms": words + 4 * lists * candidates + 16 * sorted_rows + pool,
        "select_detections": pool + results,
        "assemble_masks": program.workspace["proto"].nbytes + mask_bytes,
    }
    return moved[kernel]


def measure_frames(
    driver: Driver,
    open_network: Callable[[], DeviceNetwork],
    image: Image,  # [H, W, 3]
    *,
    repeats: int = 100,
    cuda_graph: bool = True,
    load: LoadKernels = load_kernels,
) -> dict[str, Any]:
    """{"network", "image_hw", "detections", "cuda_graph", "bare_network_ms", "stages_ms", "frame_ms", "floor_ms", "overhead",
    "in_flight", "throughput_fps", "device_bytes", "notes"}.

    "frame_ms" (percentiles) is of the host's clock; "floor_ms" the bare network and the copies to and from the device, by
    CUDA events; "overhead" what a frame takes beyond that, as a share of it. "throughput_fps" has two batches in flight.
    """
    bare_ms = _bare_network(driver, open_network(), repeats)
    with driver.current():
        free_before = driver.memory_info()[0]
    pipeline = GpuPipeline(driver, open_network(), load, cuda_graph=cuda_graph)
    try:
        frame = pipeline.load(image, "bgr")

        def whole() -> int:
            return len(pipeline.submit([frame], 0.0, "bits").result()[0])

        for _ in range(_WARMUP):
            found = whole()
        times = []
        for _ in range(repeats):
            begin = perf_counter_ns()
            whole()
            times.append(perf_counter_ns() - begin)
        throughput = _throughput(pipeline, frame, repeats)
        marks = [pipeline.timed([frame], 0.0, "bits")[1] for _ in range(_TIMED_STAGES)]
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


def _bare_network(driver: Driver, network: DeviceNetwork, repeats: int) -> float:
    """Median milliseconds of one execution, batch 1, by CUDA events; captured in a graph where it can be."""
    with bare_network(driver, network) as bare:
        timer = CudaGraphTimer(driver, bare.stream, repeats, capture=bare.context.capturable)
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


def copy_bandwidth(driver: Driver, *, nbytes: int = COPY_BYTES, repeats: int = 20) -> float:
    """GB/s of a device-to-device copy, bytes read and bytes written: what a kernel can hope for."""
    with driver.current(), Memory(driver) as memory:
        stream = memory.stream()
        source, target = memory.device(nbytes, "copy"), memory.device(nbytes, "copy")
        timer = CudaGraphTimer(driver, stream, repeats)
        us = timer.each([partial(driver.copy_on_device, target, source, nbytes)])
    return 2 * nbytes / us / 1e3


class CudaGraphTimer:
    """Times work enqueued on a stream as a CUDA graph; where that can't be captured, as it is."""

    def __init__(self, driver: Driver, stream: int, repeats: int, *, capture: bool = True) -> None:
        self._driver, self._stream, self._repeats = driver, stream, repeats
        self._capture = capture and driver.captures_cuda_graphs

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
            stack.callback(driver.destroy_cuda_graph, graph)
            replay = partial(driver.launch_cuda_graph, graph, stream)
        for _ in range(_GRAPH_WARMUP):
            replay()
        driver.synchronize(stream)
        return replay
