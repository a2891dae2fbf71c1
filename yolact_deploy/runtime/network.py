"""What every backend that runs a YOLACT offers to the Detector."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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
