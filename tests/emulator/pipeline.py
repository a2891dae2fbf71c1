"""The whole chain of kernels over NumPy arrays, launched as the runtime launches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.emulator.emulator import FORWARD
from yolact_deploy.cuda import launches
from yolact_deploy.cuda.launches import Buffer, Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.mask_sources import unpack_mask_words

Array = npt.NDArray[Any]
Run: TypeAlias = Callable[[Launch, Mapping[str, Any]], None]


class Runner(Protocol):
    """What runs a kernel to its end over NumPy arrays, in place: the emulator, or a GPU."""

    def launch(self, launch: Launch, arguments: Mapping[str, Any], *, schedule: int = FORWARD) -> None: ...


@dataclass(frozen=True)
class Found:
    """Detections of one image."""

    prior_idx: Array  # [n]
    class_ids: Array  # [n]
    scores: Array  # [n]
    boxes: Array  # [n, 4], relative
    pixel_boxes: Array  # [n, 4]
    coeff: Array  # [n, K]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass
class Pipeline:
    """Buffers of a batch and the kernels over them. Buffers start full of garbage, as device memory does."""

    runner: Runner
    specialization: Specialization
    schedule: int = FORWARD

    def detect(
        self,
        loc: Array,  # [B, P, 4]
        conf: Array,  # [B, P, 1 + C]
        mask_coeff: Array,  # [B, P, K]
        proto: Array,  # [B, Hp, Wp, K]
        priors: Array,  # [P, 4]
        *,
        image_hws: list[tuple[int, int]],
        conf_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        score_threshold: float = -np.inf,
    ) -> list[Found]:
        batch, num_priors = loc.shape[:2]
        self.proto_hw = (proto.shape[1], proto.shape[2])
        self.arrays: dict[str, Any] = {
            "loc": aligned(loc),
            "conf": aligned(conf),
            "mask_coeff": aligned(mask_coeff),
            "proto": aligned(proto),
            "priors": aligned(priors),
            "image_hw": np.array(image_hws, np.int32),
            "num_priors": num_priors,
            "proto_h": proto.shape[1],
            "proto_w": proto.shape[2],
            "conf_threshold": conf_threshold,
            "iou_threshold": iou_threshold,
            "score_threshold": score_threshold,
            **garbage(launches.scratch_buffers(self.specialization, num_priors, batch)),
            **garbage(launches.result_buffers(self.specialization, batch)),
        }
        for launch in launches.detect_launches(self.specialization, num_priors, batch):
            self._run(launch)
        names = ("prior_idx", "class_ids", "scores", "boxes", "pixel_boxes", "coeff")
        counts = self.arrays["count"].tolist()
        return [Found(*(self.arrays[name][b, :n] for name in names)) for b, n in enumerate(counts)]

    def place(self, image: int, coeff: Array, cells: Array) -> None:
        """Detections of one's own in place of those found, to see their masks."""
        self.arrays["count"][image] = len(coeff)
        self.arrays["coeff"][image, : len(coeff)] = coeff
        self.arrays["cells"][image, : len(coeff)] = cells

    def soft_masks(self, *, crop: bool = True) -> Array:
        """float32 [B, M, Hp, Wp], sigmoided and cropped; zeros beyond `count`."""
        launch = launches.prototype_masks_launch(self.specialization, self.proto_hw, len(self.arrays["count"]))
        shape = (len(self.arrays["count"]), self.specialization.max_out, *self.proto_hw)
        self.arrays |= {**garbage({"soft_masks": Buffer(shape, np.dtype(np.float32))}), "crop": int(crop)}
        self._run(launch)
        soft: Array = self.arrays["soft_masks"]
        return soft

    def masks(self, image_hw: tuple[int, int], *, images: int = 1, first_image: int = 0, crop: bool = True) -> Array:
        """bool [images, M, H, W] of masks assembled as bits; the first `count` of each image hold."""
        self.arrays |= {
            **garbage(launches.mask_buffers(self.specialization, image_hw, images, self._run_capacity(image_hw))),
            "image_h": image_hw[0],
            "image_w": image_hw[1],
            "first_image": first_image,
            "crop": int(crop),
            "tile_rows": launches.mask_tile_rows(self.specialization, self.proto_hw, image_hw),
            "capacity": self._run_capacity(image_hw),
        }
        self._images, self._image_hw = images, image_hw
        self._run(launches.mask_launch(self.specialization, self.proto_hw, image_hw, images))
        return unpack_mask_words(self.arrays["mask_words"], image_hw[1])

    def dense(self) -> Array:
        """uint8 [images, M, H, W], made of the bits."""
        self._run(launches.unpack_launch(self.specialization, self._image_hw, self._images))
        height, width = self._image_hw
        max_out = self.specialization.max_out
        used: Array = self.arrays["dense"][:, : max_out * height * width]
        return used.reshape(self._images, max_out, height, width)

    def runs(self) -> list[list[list[int]]]:
        """Run lengths of every mask of every image."""
        self.write_runs()
        starts, runs = self.arrays["run_start"], self.arrays["runs"]
        first = self.arrays["first_image"]
        return [
            [runs[i, starts[i, n] : starts[i, n + 1]].tolist() for n in range(self.arrays["count"][first + i])]
            for i in range(self._images)
        ]

    def write_runs(self) -> None:
        for launch in launches.rle_launches(self.specialization, self._image_hw, self._images):
            self._run(launch)

    def _run_capacity(self, image_hw: tuple[int, int]) -> int:
        return (
            self.specialization.max_out * (image_hw[0] * image_hw[1] + 1)
            if image_hw[0] * image_hw[1] < 4096
            else 1 << 20
        )

    def _run(self, launch: Launch) -> None:
        self.runner.launch(launch, self.arrays, schedule=self.schedule)


def garbage(buffers: Mapping[str, Buffer]) -> dict[str, Array]:
    """Arrays of the buffers' exact sizes, full of bytes that mean nothing."""
    return {
        name: aligned(np.full(b.nbytes, 0xA5, np.uint8).view(b.dtype).reshape(b.shape)) for name, b in buffers.items()
    }


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 16, as device memory does, and is followed by what the allocator guards."""
    raw = np.empty(array.nbytes, np.uint8)
    if raw.ctypes.data % 16:
        raw = np.empty(array.nbytes + 16, np.uint8)
        start = -raw.ctypes.data % 16
        raw = raw[start : start + array.nbytes]
    view: Array = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
