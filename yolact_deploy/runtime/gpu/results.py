"""From a batch's results in page-locked memory to Detections that own what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.cuda.buffers import BlockLender, Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import mask_pitch_words
from yolact_deploy.cuda.program import MaskPlan, Model, align
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_iou import MaskIouModel
from yolact_deploy.reference.mask_sources import DenseMasks, MaskSource, PackedMasks, RunMasks
from yolact_deploy.runtime.gpu.frame import FramePlan

_GROWTH = 1.25  # of the buffer of run lengths, beyond what was needed


@dataclass
class _Part:
    """Bytes at the beginning of a piece of memory on the device, and where in a block on the host they cross to."""

    source: int
    offset: int
    room: int  # bytes, of the block from there on
    crossed: int = 0


@dataclass
class Crossing:
    """The masks of a batch on their way to the host: of every image, then its soft masks if those are scored."""

    block: Image
    is_lent: bool
    parts: list[_Part]

    def content(self, part: int) -> Image:
        """What has crossed."""
        begin = self.parts[part].offset
        return self.block[begin : begin + self.parts[part].crossed]


class ResultReader:
    """Copies only the masks that were found. Methods are called with the context current.

    As many masks as a plan's last frame had are sent behind its next one, before it is known how many that has: only the
    masks of a frame that has more have to be asked for, and waited for, a second time.
    """

    def __init__(
        self,
        driver: Driver,
        model: Model,
        kernels: Kernels,
        buffers: Buffers,  # of the lane
        stream: int,
        mask_iou: MaskIouModel | None,
        note: Callable[[str], None],
    ) -> None:
        self._driver, self._model, self._kernels, self._buffers = driver, model, kernels, buffers
        self._stream, self._mask_iou = stream, mask_iou
        self._lender = BlockLender(driver, note)
        self._pinned = Buffers(driver)  # in no graph, so that growing voids none

    def send_expected(self, plan: FramePlan) -> Crossing | None:
        """Behind a frame: let as many masks cross as the plan's last frame had."""
        if plan.mask_bytes is None or not any(plan.mask_bytes):
            return None
        return self._send(self._sources(plan.masks), plan.mask_bytes)

    def send_rest(self, plan: FramePlan, sent: Crossing | None) -> tuple[Crossing, bool]:
        """Once the detections have crossed: let all masks cross that have not, and whether there were any."""
        results, masks = plan.results, plan.masks
        counts = results["count"].tolist()
        if masks.form == "rle":
            totals = results["run_start"][:, -1].tolist()
            masks = self._make_room_for_runs(plan, max(totals))
            sizes = [4 * total if count else 0 for total, count in zip(totals, counts, strict=True)]
        else:
            sizes = [count * each for count, each in zip(counts, masks.mask_bytes, strict=True)]
        if self._model.scores_masks:
            sizes += [count * masks.soft_mask_bytes for count in counts]
        plan.mask_bytes = sizes if masks is plan.masks else None
        if sent is None or masks is not plan.masks or _is_too_small(sent, sizes):
            return self._send(self._sources(masks), sizes), any(sizes)
        waits = False
        for part, nbytes in zip(sent.parts, sizes, strict=True):
            waits = waits or nbytes > part.crossed
            self._copy(sent.block, part, nbytes)
            part.crossed = nbytes  # not what was expected beyond it
        return sent, waits

    def build(self, plan: FramePlan, crossed: Crossing) -> list[Detections]:
        """Once the masks have crossed: detections in the order of the layout. Raises EngineError when masks can't be
        scored."""
        results, specialization = plan.results, self._model.specialization
        found = []
        for image, kind in enumerate(plan.layout.kinds):
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
                    mask_ious=self._judge(plan, crossed, image, class_ids),
                    canvas_hw=specialization.canvas_hw(kind.image_hw) if specialization.pad else None,
                    mask_source=_source(crossed, image, count, kind.image_hw, plan.masks, starts),
                )
            )
        return found

    def close(self) -> None:
        self._lender.close()
        self._pinned.close()

    def _sources(self, masks: MaskPlan) -> list[int]:
        """Where the masks, and the soft masks, of every image are on the device."""
        start = self._buffers.address(masks.crossing)
        sources = [start + offset for offset in masks.offsets]
        if self._model.scores_masks:
            start, each = (
                self._buffers.address("soft_masks"),
                self._model.specialization.max_out * masks.soft_mask_bytes,
            )
            sources += [start + image * each for image in range(masks.layout.batch)]
        return sources

    def _send(self, sources: Sequence[int], sizes: Sequence[int]) -> Crossing:
        *offsets, used = accumulate(map(align, sizes), initial=0)
        block, is_lent = self._block(used)
        parts = []
        for source, nbytes, offset, end in zip(sources, sizes, offsets, (*offsets[1:], block.size), strict=True):
            part = _Part(source, offset, end - offset)
            self._copy(block, part, nbytes)
            part.crossed = nbytes
            parts.append(part)
        return Crossing(block, is_lent, parts)

    def _block(self, nbytes: int) -> tuple[Image, bool]:
        """Page-locked memory, and whether its readers may keep it. Else the next frame overwrites it."""
        if nbytes == 0:
            return np.zeros(0, np.uint8), True
        lent = self._lender.lend(nbytes)
        if lent is not None:
            return lent, True
        self._pinned.reserve({}, {"masks": nbytes})
        return self._pinned.pinned_view("masks", nbytes), False

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

    def _copy(self, block: Image, part: _Part, nbytes: int) -> None:
        """What has not crossed yet of so many bytes."""
        if nbytes > part.crossed:
            target = block.ctypes.data + part.offset + part.crossed
            self._driver.copy_to_host(target, part.source + part.crossed, nbytes - part.crossed, self._stream)

    def _judge(self, plan: FramePlan, crossed: Crossing, image: int, class_ids: AnyArray) -> FloatArray | None:
        if self._mask_iou is None:
            return None
        count = len(class_ids)
        if not count:
            return np.zeros(0, np.float32)
        soft = crossed.content(plan.layout.batch + image)
        judged = self._mask_iou(soft.view(np.float32).reshape(count, *self._model.proto_hw))
        scores: FloatArray = judged[np.arange(count), class_ids]
        return scores


def _is_too_small(sent: Crossing, sizes: Sequence[int]) -> bool:
    return any(nbytes > part.room for part, nbytes in zip(sent.parts, sizes, strict=True))


def _source(
    crossed: Crossing,
    image: int,
    count: int,
    image_hw: tuple[int, int],
    masks: MaskPlan,
    run_starts: AnyArray | None,
) -> MaskSource:
    """Masks that own their memory, or keep what is lent to them."""
    height, width = image_hw
    content = crossed.content(image)
    if not crossed.is_lent:
        content = content.copy()
    if run_starts is not None:
        runs = content.view(np.uint32)
        return RunMasks([runs[begin:end] for begin, end in pairwise(run_starts)], image_hw)
    if masks.form == "dense":
        return DenseMasks(content.reshape(count, height, width).view(bool))
    return PackedMasks(content.view(np.uint32).reshape(count, height, mask_pitch_words(width)), image_hw)
