"""What runs images for a Detector, wherever that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.cuda.frames import MaskForm
from yolact_deploy.detections import Detections, RawDetections
from yolact_deploy.runtime.images import ChannelOrder
from yolact_deploy.runtime.network import HeadTensors
from yolact_deploy.spec import ModelSpec


class Pending(Protocol):
    """Images on their way."""

    def result(self) -> list[Detections]: ...

    def discard(self) -> None: ...


class Stages(Protocol):
    """The steps of detecting, one at a time, over arrays of the host."""

    def preprocess(self, images: Sequence[Image]) -> FloatArray: ...

    def run_network(self, batch: FloatArray) -> HeadTensors: ...

    def suppress(self, heads: HeadTensors) -> list[RawDetections]: ...

    def assemble(self, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float = 0.0) -> Detections: ...


class Pipeline(Protocol):
    @property
    def spec(self) -> ModelSpec: ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than asked for or hoped, in words."""
        ...

    @property
    def max_batch(self) -> int | None:
        """None: any."""
        ...

    @property
    def in_flight(self) -> int:
        """How many batches may be submitted before the first of them is asked for."""
        ...

    @property
    def on_gpu(self) -> bool:
        """Whether images go through the kernels."""
        ...

    @property
    def graph_stages(self) -> tuple[str, ...]:
        """Stages that are replayed as CUDA graphs, as far as frames have been run."""
        ...

    @property
    def stages(self) -> Stages: ...

    def load(self, item: Any, channel_order: ChannelOrder) -> Any:
        """An image as `submit` takes it, checked; may be called in another thread. Raises ImageError or DeviceError."""
        ...

    def submit(self, images: Sequence[Any], score_threshold: float, masks: MaskForm) -> Pending:
        """Begin with loaded images; up to `in_flight` batches at once."""
        ...

    def timed(
        self, images: Sequence[Any], score_threshold: float, masks: MaskForm
    ) -> tuple[list[Detections], dict[str, float]]:
        """Detections, and milliseconds by stage. Raises EngineError where stages can't be timed within a call."""
        ...

    def close(self) -> None: ...
