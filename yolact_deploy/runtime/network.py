"""What every backend that runs a YOLACT offers to the Detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from yolact_deploy.arrays import FloatArray
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.spec import ModelSpec

OUTPUT_NAMES = ("loc", "conf", "mask_coeff", "proto")


class HeadTensors(NamedTuple):
    loc: FloatArray  # [B, P, 4]
    conf: FloatArray  # [B, P, 1 + C]
    mask_coeff: FloatArray  # [B, P, K]
    proto: FloatArray  # [B, Hp, Wp, K]


class Network(Protocol):
    @property
    def spec(self) -> ModelSpec: ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def mask_iou(self) -> MaskIouModel | None:
        """YOLACT++'s judge of masks; None where masks keep their box's score."""
        ...

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads of a preprocessed batch [B, 3, S, S]."""
        ...


class DeviceContext(Protocol):
    """One execution of a network at a time, on one stream."""

    @property
    def capturable(self) -> bool:
        """Whether `enqueue`, once it has run for a batch size, may be recorded in a CUDA graph."""
        ...

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        """Enqueue a run from device memory to device memory: `addresses` of "image" and of every one of OUTPUT_NAMES, each
        contiguous, batch first, of the network's dtypes. Returns before it is done. Raises EngineError."""
        ...

    def close(self) -> None: ...


class DeviceNetwork(Protocol):
    """A network on a GPU: heads of a preprocessed batch, without leaving the device."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        ...

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        """float32 or float16 of "image" and of every one of OUTPUT_NAMES."""
        ...

    @property
    def max_batch(self) -> int | None:
        """None: any."""
        ...

    @property
    def mask_iou(self) -> MaskIouModel | None: ...

    def new_context(self, stream: int) -> DeviceContext:
        """Contexts of several streams run side by side."""
        ...

    def close(self) -> None:
        """Contexts first."""
        ...
