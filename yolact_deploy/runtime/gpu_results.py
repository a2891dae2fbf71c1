"""From a batch's results in page-locked memory to Detections that own what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.cuda.frames import MaskPlan, Model, align
from yolact_deploy.cuda.kernels import Kernels
from yolact_deploy.cuda.launches import mask_pitch_words
from yolact_deploy.detections import Detections, RawDetections
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.mask_sources import DenseMasks, MaskSource, PackedMasks, RunMasks
from yolact_deploy.runtime.gpu_frame import FramePlan

_GROWTH = 1.25  # of the buffer of run lengths, beyond what was needed


@dataclass(frozen=True)
class _Copy:
    """Bytes of the masks of an image, in the block of masks on the host."""

    offset: int
    nbytes: int


class ResultReader:
    """Copies only the masks that were found. Methods are called with the context current."""

    def __init__(
        self,
        driver: Driver,
        model: Model,
        kernels: Kernels,
        buffers: Buffers,  # of the lane
        stream: int,
        mask_iou: MaskIouModel | None,
    ) -> None:
        self._driver, self._model, self._kernels, self._buffers = driver, model, kernels, buffers
        self._stream, self._mask_iou = stream, mask_iou
        self._pinned = Buffers(driver)  # in no graph, so that growing voids none

    def enqueue(self, plan: FramePlan) -> tuple[list[_Copy], list[_Copy]]:
        """Once the detections have crossed: let their masks cross, and the soft masks if those are scored."""
        results = plan.results
        counts = results["count"].tolist()
        masks = plan.masks
        if masks.form == "rle":
            totals = results["run_start"][:, -1].tolist()
            masks = self._make_room_for_runs(plan, max(totals))
            sizes = [4 * total if count else 0 for total, count in zip(totals, counts, strict=True)]
        else:
            sizes = [count * each for count, each in zip(counts, masks.mask_bytes, strict=True)]
        mask_copies, used = _place(sizes, 0)
        soft_bytes = masks.soft_mask_bytes if self._model.scores_masks else 0
        soft_copies, used = _place([count * soft_bytes for count in counts], used)
        self._pinned.reserve({}, {"masks": max(used, 1)})
        source = self._buffers.address(masks.crossing)
        for copy, offset in zip(mask_copies, masks.offsets, strict=True):
            self._copy(source + offset, copy)
        for image, soft in enumerate(soft_copies if soft_bytes else ()):
            offset = image * self._model.specialization.max_out * soft_bytes
            self._copy(self._buffers.address("soft_masks") + offset, soft)
        return mask_copies, soft_copies

    def build(self, plan: FramePlan, copies: tuple[list[_Copy], list[_Copy]]) -> list[Detections]:
        """Once the masks have crossed: detections in the order of the layout. Raises EngineError when masks can't be
        scored."""
        results = plan.results
        found = []
        for image, (kind, copy, soft) in enumerate(zip(plan.layout.kinds, *copies, strict=True)):
            count = int(results["count"][image])
            rows = {name: array[image, :count] for name, array in results.items() if name not in ("count", "run_start")}
            class_ids = rows["class_ids"].astype(np.int64)
            raw = RawDetections(
                rows["prior_idx"].astype(np.int64),
                class_ids,
                rows["scores"].copy(),
                rows["boxes"].copy(),
                rows["coeff"].copy(),
                np.zeros((0, 0, self._model.specialization.num_coeff), np.float32),
            )
            starts = results["run_start"][image, : count + 1] if plan.masks.form == "rle" else None
            found.append(
                Detections(
                    raw,
                    kind.image_hw,
                    rows["pixel_boxes"].copy(),
                    names=self._model.spec.class_names,
                    category_ids=self._model.spec.category_ids,
                    mask_ious=self._judge(self._view(soft), class_ids),
                    mask_source=_source(self._view(copy), count, kind.image_hw, plan.masks, starts),
                )
            )
        return found

    def close(self) -> None:
        self._pinned.close()

    def _make_room_for_runs(self, plan: FramePlan, needed: int) -> MaskPlan:
        """Runs that found no room are made again, with room."""
        if needed <= plan.masks.capacity:
            return plan.masks
        room = plan.layout.batch * align(int(4 * needed * _GROWTH))
        self._buffers.reserve({"runs": room}, {})
        masks = MaskPlan(self._model, plan.layout, "rle", self._buffers.device_bytes("runs"))
        values = {**plan.values, "runs": self._buffers.address("runs")}
        for launch, own in masks.launches(values, int(values["run_start"])):
            if launch.kernel == "rle_runs":
                self._kernels.launch(launch, own, self._stream)
        return masks

    def _copy(self, source: int, copy: _Copy) -> None:
        if copy.nbytes:
            target = self._pinned.pinned_address("masks") + copy.offset
            self._driver.copy_to_host(target, source, copy.nbytes, self._stream)

    def _view(self, copy: _Copy) -> Image:
        return self._pinned.pinned_view("masks", copy.nbytes, copy.offset)

    def _judge(self, soft: Image, class_ids: AnyArray) -> FloatArray | None:
        if self._mask_iou is None:
            return None
        count = len(class_ids)
        if not count:
            return np.zeros(0, np.float32)
        judged = self._mask_iou(soft.view(np.float32).reshape(count, *self._model.proto_hw))
        scores: FloatArray = judged[np.arange(count), class_ids]
        return scores


def _place(sizes: Sequence[int], used: int) -> tuple[list[_Copy], int]:
    copies = []
    for nbytes in sizes:
        copies.append(_Copy(used, nbytes))
        used += align(nbytes)
    return copies, used


def _source(
    content: Image, count: int, image_hw: tuple[int, int], masks: MaskPlan, run_starts: AnyArray | None
) -> MaskSource:
    """Masks that own their memory."""
    height, width = image_hw
    if run_starts is not None:
        runs = content.view(np.uint32).copy()
        return RunMasks([runs[begin:end] for begin, end in pairwise(run_starts)], image_hw)
    if masks.form == "dense":
        return DenseMasks(content.reshape(count, height, width).copy().view(bool))
    return PackedMasks(content.view(np.uint32).reshape(count, height, mask_pitch_words(width)).copy(), image_hw)
