"""A Detector on a GPU: timed by the host's clock and the device's, its parts opened once more, the memory it takes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import Any, ClassVar, Protocol

import numpy as np

from benchmarks.rounds import Samples
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS, TF32
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.cuda.stopwatch import Stopwatch
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.runtime.gpu.pipeline import REAL_GPU, GpuBackend, GpuPipeline
from yolact_deploy.runtime.protocols import DEVICE_STAGES, DeviceNetwork, ExecutionContext

NewExecutionContext = Callable[[int], ExecutionContext]  # on a stream
HOST = "host"  # what no stage of the device accounts for: launching, waiting, unpacking masks
TIMED_STAGES = (*DEVICE_STAGES, HOST)
_EMPTY_STAGES = 200
_NS_PER_MS = 1e6
_CALLS = 3  # step by step, recorded, replayed: none of its buffers shrinks in between
_METHOD = (
    "free memory of the GPU before another Detector like it is opened, less after 3 calls: its weights, activations, buffers "
    "and CUDA graphs; not the CUDA context, nor libraries that are loaded already"
)


def open_driver(detector: Detector) -> Driver:
    """The driver of a Detector's GPU; all drivers of a GPU share its primary context."""
    return _backend(detector).open_driver(detector.gpu_index or 0)


def open_network(detector: Detector, driver: Driver) -> DeviceNetwork:
    """The network of a Detector's artifact on its GPU, for itself alone."""
    arguments = detector.arguments
    return _backend(detector).open_network(
        detector.file, driver, arguments["threads"], arguments["gpu_precision"] == TF32
    )


@contextmanager
def open_kernels(detector: Detector, driver: Driver) -> Iterator[Kernels]:
    """Kernels for the model of a Detector on a GPU, in float32: for what is the same in all of them."""
    nms = detector.arguments["nms"]
    kernels = _backend(detector).load_kernels(driver, specialize(detector.spec, nms=nms), lambda _: None)
    try:
        yield kernels
    finally:
        with driver.current():
            kernels.close()


class Memory(ExitStack):
    """Device and pinned memory that lives as long as the `with` block."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def device(self, nbytes: int, purpose: str) -> int:
        """Device memory; returns its address."""
        address = self.driver.allocate(max(nbytes, 1), purpose)
        self.callback(self.driver.free, address)
        return address

    def pinned(self, nbytes: int, purpose: str) -> int:
        """Page-locked memory of the host; returns its address."""
        address = self.driver.allocate_pinned(max(nbytes, 1), purpose)
        self.callback(self.driver.free_pinned, address)
        return address

    def upload(self, array: AnyArray, purpose: str, stream: int) -> int:
        """Device memory with the content of an array of any shape; returns its address."""
        contiguous = np.ascontiguousarray(array)
        address = self.device(contiguous.nbytes, purpose)
        self.driver.copy_to_device(address, contiguous.ctypes.data, contiguous.nbytes, stream)
        self.driver.synchronize(stream)
        return address

    def stream(self) -> int:
        """A stream of its own."""
        stream = self.driver.create_stream()
        self.callback(self.driver.destroy_stream, stream)
        return stream


@dataclass(frozen=True)
class BareNetwork:
    """A network between buffers of its own, on a stream of its own; what they hold does not matter to its speed."""

    context: ExecutionContext
    addresses: Mapping[str, int]
    stream: int
    batch: int

    def enqueue(self) -> None:
        """Enqueue one run on the batch that is there."""
        self.context.enqueue(self.addresses, self.batch)


@contextmanager
def bare_network(
    driver: Driver, network: DeviceNetwork, batch: int = 1, new_execution_context: NewExecutionContext | None = None
) -> Iterator[BareNetwork]:
    """A network by itself, which has run once; the driver's context is current. The network is closed at the end.

    `new_execution_context` gives another context for the same inputs and outputs than the network's own.
    """
    shapes = network.spec.io_shapes()
    with driver.current(), Memory(driver) as memory:
        memory.callback(network.close)
        stream = memory.stream()
        addresses = {}
        for name in (INPUT, *OUTPUTS):
            nbytes = batch * network.dtypes[name].itemsize
            for length in shapes[name]:
                nbytes *= length
            addresses[name] = memory.device(nbytes, name)
        context = (new_execution_context or network.new_execution_context)(stream)
        memory.callback(context.close)
        bare = BareNetwork(context, addresses, stream, batch)
        bare.enqueue()
        driver.synchronize(stream)
        yield bare


class PipelineCalls:
    """A GPU's pipeline, called as a Detector is, whatever the batch."""

    def __init__(self, pipeline: GpuPipeline) -> None:
        self._pipeline = pipeline

    def __call__(self, images: list[Image], *, score_threshold: float) -> list[Detections]:
        loaded = [self._pipeline.load(image, "bgr") for image in images]
        return self._pipeline.submit(loaded, score_threshold, "bits").result()

    def timed(self, images: Sequence[Image], *, score_threshold: float) -> tuple[list[Detections], dict[str, float]]:
        loaded = [self._pipeline.load(image, "bgr") for image in images]
        return self._pipeline.timed(loaded, score_threshold, "bits")


@contextmanager
def open_pipeline(detector: Detector, driver: Driver, network: DeviceNetwork) -> Iterator[PipelineCalls]:
    """A pipeline with the Detector's arguments around a network, both closed at the end."""
    arguments = detector.arguments
    pipeline = GpuPipeline(
        driver,
        network,
        _backend(detector).load_kernels,
        nms=arguments["nms"],
        cuda_graph=arguments["cuda_graph"],
    )
    try:
        yield PipelineCalls(pipeline)
    finally:
        pipeline.close()


class Calls(Protocol):
    """A Detector on a GPU, or what is called like one."""

    def __call__(self, image: list[Image], /, *, score_threshold: float) -> list[Detections]: ...

    def timed(self, images: Sequence[Image], *, score_threshold: float) -> tuple[list[Detections], dict[str, float]]:
        """Detections of a batch of images [H, W, 3], and milliseconds by stage."""
        ...


class DeviceSamples(Samples):
    """A round is two calls: one as users make it, with CUDA graphs where the Detector uses them, and one marked by stage,
    for which there are none. Both end when all masks are in host memory at full size, unpacked from bits."""

    stages: ClassVar[tuple[str, ...]] = TIMED_STAGES

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
        for stage in DEVICE_STAGES:
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

    def overhead_ms(self) -> float:
        driver = open_driver(self.detector)
        with open_kernels(self.detector, driver) as kernels:
            return empty_stage_ms(driver, kernels)

    def peak_memory(self, images: list[Image], score_threshold: float) -> dict[str, Any]:
        """With what a Detector like it takes of the GPU: {"device_bytes", "device_method"} as well."""
        host = super().peak_memory(images, score_threshold)
        return {**host, **device_memory(self.detector, images, score_threshold)}

    def extra_ns(self) -> dict[str, list[int]]:
        return {"call": self.call_ns, "device": self.device_ns, "staged": self._staged_ns}


def empty_stage_ms(driver: Driver, kernels: Kernels) -> float:
    """What timing adds to a stage on the device: the median time between two events with nothing between them."""
    with driver.current(), Memory(driver) as memory:
        watch = Stopwatch(driver, kernels, memory.stream())
        memory.callback(watch.close)
        return statistics.median(watch.time({str(n): lambda: None for n in range(_EMPTY_STAGES)}).values())


def device_memory(detector: Detector, images: list[Image], score_threshold: float) -> dict[str, Any]:
    """{"device_bytes", "device_method"}; None with the reason where there is no room for a second one."""
    driver = open_driver(detector)

    def free_bytes() -> int:
        with driver.current():
            return driver.memory_info()[0]

    before = free_bytes()
    try:
        with copy.copy(detector) as another:
            for _ in range(_CALLS):
                another(images, score_threshold=score_threshold)
            taken = before - free_bytes()
    except YolactDeployError as exc:
        return {"device_bytes": None, "device_method": f"unmeasured: {exc}"}
    return {"device_bytes": taken, "device_method": _METHOD}


def _backend(detector: Detector) -> GpuBackend:
    backend: GpuBackend | None = detector.arguments["gpu"]
    return backend or REAL_GPU
