"""A network that works on its own is given the next image before the last one's detections are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.unit.engines.tiny_network import TINY_SPEC
from yolact_deploy.arrays import FloatArray
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.runtime.streaming import stream_detections

IMAGE = np.zeros((8, 8, 3), np.uint8)


class RecordedNetwork:
    """Finds nothing, and says what it is asked for, with the number of the batch."""

    spec = TINY_SPEC
    description = "a network of the tests"
    mask_iou = None
    max_batch = None
    runs_at_once = 2

    def __init__(self) -> None:
        self.events: list[str] = []
        self._begun = 0

    def run(self, image: FloatArray) -> HeadTensors:
        return self.start(image)()

    def start(self, image: FloatArray) -> Callable[[], HeadTensors]:
        number = self._begun
        self._begun += 1
        self.events.append(f"begin {number}")
        heads = HeadTensors(
            *(np.zeros((len(image), *shape), np.float32) for shape in TINY_SPEC.output_shapes().values())
        )

        def wait() -> HeadTensors:
            self.events.append(f"wait {number}")
            return heads

        return wait


class RecordedPipeline(HostPipeline):
    def suppress(self, heads: HeadTensors) -> list[RawDetections]:
        network = self._network
        assert isinstance(network, RecordedNetwork)
        network.events.append("detections")
        return super().suppress(heads)


def streamed(network: RecordedNetwork, images: int) -> Iterator[Detections]:
    return stream_detections(
        RecordedPipeline(network),
        [IMAGE] * images,
        lambda item: item,
        batch_size=1,
        prefetch=0,
        score_threshold=0.0,
        masks="bits",
    )


def test_the_next_image_is_in_the_network_while_detections_are_made() -> None:
    network = RecordedNetwork()
    assert len(list(streamed(network, 3))) == 3
    assert network.events == [
        "begin 0", "begin 1", "wait 0", "detections", "begin 2", "wait 1", "detections", "wait 2", "detections",
    ]  # fmt: skip


def test_what_was_begun_is_waited_for_when_a_stream_is_left() -> None:
    network = RecordedNetwork()
    stream = streamed(network, 9)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert network.events == ["begin 0", "begin 1", "wait 0", "detections", "wait 1"]
