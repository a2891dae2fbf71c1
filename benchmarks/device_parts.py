"""What a Detector on a GPU is made of, opened once more: to time a part of it alone, or with other heads in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.gpu_timer import Memory
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.runtime import gpu_backend
from yolact_deploy.runtime.gpu_pipeline import GpuPipeline
from yolact_deploy.runtime.network import OUTPUT_NAMES, DeviceContext, DeviceNetwork

NewContext = Callable[[int], DeviceContext]  # on a stream


def open_driver(detector: Detector) -> Driver:
    """The driver of a Detector's GPU; all drivers of a GPU share its primary context."""
    index = detector.arguments["device"].partition(":")[2]
    return gpu_backend.BACKEND.open_driver(int(index or 0))


def open_network(detector: Detector, driver: Driver) -> DeviceNetwork:
    return gpu_backend.BACKEND.open_network(detector.artifact, driver, detector.arguments["threads"])


@dataclass(frozen=True)
class BareNetwork:
    """A network between buffers of its own, on a stream of its own; what they hold does not matter to its speed."""

    context: DeviceContext
    addresses: Mapping[str, int]
    stream: int
    batch: int

    def enqueue(self) -> None:
        self.context.enqueue(self.addresses, self.batch)


@contextmanager
def bare_network(
    driver: Driver, network: DeviceNetwork, batch: int = 1, new_context: NewContext | None = None
) -> Iterator[BareNetwork]:
    """A network by itself, which has run once; the driver's context is current. The network is closed at the end.

    `new_context` gives another context for the same inputs and outputs than the network's own.
    """
    size = network.spec.input_size
    shapes = {"image": (3, size, size), **network.spec.output_shapes()}
    with driver.current(), Memory(driver) as memory:
        memory.callback(network.close)
        stream = memory.stream()
        addresses = {}
        for name in ("image", *OUTPUT_NAMES):
            nbytes = batch * network.dtypes[name].itemsize
            for length in shapes[name]:
                nbytes *= length
            addresses[name] = memory.device(nbytes, name)
        context = (new_context or network.new_context)(stream)
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
        frames = [self._pipeline.load(image, "bgr") for image in images]
        return self._pipeline.submit(frames, score_threshold, "bits").result()

    def timed(self, images: Sequence[Image], *, score_threshold: float) -> tuple[list[Detections], dict[str, float]]:
        frames = [self._pipeline.load(image, "bgr") for image in images]
        return self._pipeline.timed(frames, score_threshold, "bits")


@contextmanager
def open_pipeline(detector: Detector, driver: Driver, network: DeviceNetwork) -> Iterator[PipelineCalls]:
    """A pipeline with the Detector's arguments around a network, both closed at the end."""
    arguments = detector.arguments
    pipeline = GpuPipeline(
        driver,
        network,
        gpu_backend.BACKEND.load_kernels,
        nms=arguments["nms"],
        cuda_graph=arguments["cuda_graph"],
    )
    try:
        yield PipelineCalls(pipeline)
    finally:
        pipeline.close()
