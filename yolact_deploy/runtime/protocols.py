"""What runs a network, and what runs images for a Detector, wherever that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import ChannelOrder
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.spec import ModelSpec

Stage: TypeAlias = Literal["host_to_device", "preprocess", "network", "detect", "masks", "device_to_host"]
STAGES: tuple[Stage, ...] = ("preprocess", "network", "detect", "masks")  # what every Detector does, in this order
DEVICE_STAGES: tuple[Stage, ...] = ("host_to_device", *STAGES, "device_to_host")  # of one whose work is on a GPU


class HeadTensors(NamedTuple):
    """What the network gives for a batch, float32."""

    loc: FloatArray  # [B, P, 4]
    conf: FloatArray  # [B, P, 1 + C]
    mask_coeff: FloatArray  # [B, P, K]
    proto: FloatArray  # [B, Hp, Wp, K]


class Network(Protocol):
    """Head tensors of images on the host."""

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec that came with the artifact."""
        ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def mask_iou(self) -> MaskIouModel | None:
        """YOLACT++'s judge of masks; None where masks keep their box's score."""
        ...

    @property
    def max_batch(self) -> int | None:
        """The largest batch that `run` takes; None: any."""
        ...

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads of a preprocessed batch [B, 3, S, S]."""
        ...


@runtime_checkable
class AsynchronousNetwork(Network, Protocol):
    """One that works on a batch while its caller does something else."""

    @property
    def runs_at_once(self) -> int:
        """How many batches may be on their way before one of them is waited for."""
        ...

    def start(self, image: FloatArray) -> Callable[[], HeadTensors]:
        """Begin with a preprocessed batch [B, 3, S, S]; what is returned waits for its heads, and has to be called."""
        ...


class ExecutionContext(Protocol):
    """One execution of a network at a time, on one stream."""

    @property
    def capturable(self) -> bool:
        """Whether `enqueue`, once it has run for a batch size, may be recorded in a CUDA graph."""
        ...

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        """Enqueue a run from device memory to device memory: `addresses` of INPUT and of every one of OUTPUTS, each
        contiguous, batch first, of the network's dtypes. Returns before it is done. Raises EngineError."""
        ...

    def close(self) -> None:
        """Give its device memory back."""
        ...


class DeviceNetwork(Protocol):
    """A network on a GPU: heads of a preprocessed batch, without leaving the device."""

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec that came with the artifact."""
        ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def engine(self) -> str:
        """What runs it, and of which version: the description without the device."""
        ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        """float32 or float16 of INPUT and of every one of OUTPUTS."""
        ...

    @property
    def max_batch(self) -> int | None:
        """None: any."""
        ...

    @property
    def mask_iou(self) -> MaskIouModel | None:
        """YOLACT++'s network that rescores masks; None where the spec has none."""
        ...

    def new_execution_context(self, stream: int) -> ExecutionContext:
        """Contexts of several streams run side by side."""
        ...

    def close(self) -> None:
        """Contexts first."""
        ...


class Pending(Protocol):
    """Images on their way."""

    def result(self) -> list[Detections]:
        """Wait for the batch, and return its detections."""
        ...

    def discard(self) -> None:
        """Let the batch go without reading its results."""
        ...


class Stages(Protocol):
    """The steps of detecting, one at a time, over arrays of the host."""

    def preprocess(self, images: Sequence[Image]) -> FloatArray:
        """Images [H, W, 3] to the network's input float32 [B, 3, S, S]."""
        ...

    def run_network(self, batch: FloatArray) -> HeadTensors:
        """float32 [B, 3, S, S] to head tensors."""
        ...

    def suppress(self, heads: HeadTensors) -> list[RawDetections]:
        """Head tensors to the detections that non-maximum suppression leaves."""
        ...

    def assemble(self, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float = 0.0) -> Detections:
        """Detections with their masks at the images' sizes."""
        ...


class Pipeline(Protocol):
    """Images to detections on one backend: what a Detector runs."""

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec that came with the artifact."""
        ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than asked for or hoped, in words."""
        ...

    @property
    def fallback(self) -> str | None:
        """Why device "auto" took the CPU, in one line; None where it did not, or another device was asked for."""
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
    def gpu_index(self) -> int | None:
        """Of the GPU that the network runs on; None where it runs on the CPU."""
        ...

    @property
    def graph_stages(self) -> tuple[str, ...]:
        """Stages that are replayed as CUDA graphs, as far as batches have been run."""
        ...

    @property
    def stages(self) -> Stages:
        """The steps one by one: this network between those of the NumPy reference. Raises EngineError where there are none."""
        ...

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

    def close(self) -> None:
        """Give back what it holds. A closed one refuses work."""
        ...
