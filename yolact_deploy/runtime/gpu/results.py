"""From what a batch left on the device to Detections that own what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray, Image
from yolact_deploy.cuda.buffers import Buffers, PinnedMemoryPool
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.program import Addresses, BatchProgram, align, run_capacity
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_sources import DenseMasks, MaskSource, RunMasks, WindowMasks
from yolact_deploy.runtime.protocols import DeviceNetwork

Copy: TypeAlias = Callable[[], None]  # enqueues it

_GROWTH = 1.25  # of the buffer of run lengths, beyond what was needed
_PREPARED_BLOCKS = 2  # of masks: one that crosses while the one before is in use
_SPARE_BYTES = 1 << 16  # beyond what the last batch's masks took: those of the next may be a little larger


@dataclass(eq=False)
class BatchResults:
    """Where the results of a program are."""

    program: BatchProgram
    at: Addresses  # of all its buffers
    host: dict[str, AnyArray]  # where `program.results` are copied to
    mask_bytes: list[int] | None = None  # of the masks that were copied last time; None: not known


@dataclass
class _Part:
    """Bytes at the beginning of a piece of memory on the device, and where in a block on the host they are copied to."""

    source: int
    offset: int
    room: int  # bytes, of the block from there on
    copied: int = 0


@dataclass
class MaskTransfer:
    """The masks of a batch on their way to the host: of every image, then its soft masks if those are scored."""

    block: Image
    is_lent: bool
    parts: list[_Part]

    def content(self, part: int) -> Image:
        """What was copied."""
        begin = self.parts[part].offset
        return self.block[begin : begin + self.parts[part].copied]


class ResultReader:
    """Copies only the masks that were found, and of them only their windows. Methods are called with the context current.

    As many bytes as the masks of the last batch of its kind took, and some more, are sent behind the next one, before it is
    known how many that has: only what is beyond them has to be asked for, and waited for, a second time.
    """

    def __init__(
        self,
        driver: Driver,
        network: DeviceNetwork,
        kernels: Kernels,
        buffers: Buffers,  # of the lane
        stream: int,
        note: Callable[[str], None],
    ) -> None:
        self._driver, self._kernels, self._buffers, self._stream = driver, kernels, buffers, stream
        self._spec, self._mask_iou = network.spec, network.mask_iou
        self._pool = PinnedMemoryPool(driver, note)
        self._pinned = Buffers(driver)  # in no graph, so that growing voids none
        self._pool.prepare(_bytes_at_input_size(kernels.specialization, self._spec.input_size), _PREPARED_BLOCKS)

    def send_expected(self, results: BatchResults) -> MaskTransfer | None:
        """Behind a batch: copy as much as the masks of the last one took, and some more, as far as there is more."""
        if results.mask_bytes is None or not any(results.mask_bytes):
            return None
        rooms = results.program.mask_rooms
        expected = [
            min(int(nbytes * _GROWTH) + _SPARE_BYTES, room) if nbytes else 0
            for nbytes, room in zip(results.mask_bytes, rooms, strict=True)
        ]
        transfer, copies = self._transfer(self._sources(results.program), expected)
        for copy in copies:
            copy()
        return transfer

    def plan_rest(self, results: BatchResults, sent: MaskTransfer | None) -> tuple[MaskTransfer, list[Copy]]:
        """Once the detections are on the host: all masks, and what enqueues the copies of those that are not sent yet."""
        program = results.program
        if program.request.masks == "rle":
            program = self._make_room_for_runs(results, int(results.host["run_start"][:, -1].max()))
        sizes = program.mask_bytes(results.host)
        if program.model.scores_masks:
            sizes += [count * program.soft_mask_bytes for count in results.host["count"].tolist()]
        results.mask_bytes = sizes if program is results.program else None
        if sent is None or program is not results.program or _is_too_small(sent, sizes):
            return self._transfer(self._sources(program), sizes)
        return sent, self._copies(sent, sizes)

    def build(self, results: BatchResults, masks: MaskTransfer) -> list[Detections]:
        """Once the masks are on the host: detections in the order of the layout. Raises EngineError when masks can't be
        scored."""
        program, specialization = results.program, results.program.model.specialization
        found = []
        for image, kind in enumerate(program.layout.kinds):
            count = int(results.host["count"][image])
            rows = {name: array[image, :count] for name, array in results.host.items() if array.ndim > 1}
            class_ids = rows["class_ids"].astype(np.int64)
            raw = RawDetections(
                rows["prior_idx"].astype(np.int64),
                class_ids,
                rows["scores"].copy(),
                rows["boxes"].copy(),
                rows["coeff"].copy(),
                np.zeros((0, 0, specialization.num_coeff), np.float32),
            )
            found.append(
                Detections(
                    raw,
                    kind.image_hw,
                    rows["pixel_boxes"].copy(),
                    names=self._spec.class_names,
                    category_ids=self._spec.category_ids,
                    mask_ious=self._score_masks(program, masks, image, class_ids),
                    canvas_hw=specialization.canvas_hw(kind.image_hw) if specialization.pad else None,
                    mask_source=_source(results, masks, image, count),
                )
            )
        return found

    def close(self) -> None:
        """Give back what is not lent."""
        self._pool.close()
        self._pinned.close()

    def _sources(self, program: BatchProgram) -> list[int]:
        """Where the masks, and the soft masks, of every image are on the device."""
        start = self._buffers.address(program.mask_block)
        sources = [start + offset for offset in program.mask_offsets]
        if program.model.scores_masks:
            start = self._buffers.address("soft_masks")
            each = program.model.specialization.max_out * program.soft_mask_bytes
            sources += [start + image * each for image in range(program.layout.batch)]
        return sources

    def _transfer(self, sources: Sequence[int], sizes: Sequence[int]) -> tuple[MaskTransfer, list[Copy]]:
        *offsets, used = accumulate(map(align, sizes), initial=0)
        block, is_lent = self._block(used)
        rooms = [end - offset for offset, end in zip(offsets, (*offsets[1:], block.size), strict=True)]
        parts = [_Part(*part) for part in zip(sources, offsets, rooms, strict=True)]
        transfer = MaskTransfer(block, is_lent, parts)
        return transfer, self._copies(transfer, sizes)

    def _copies(self, transfer: MaskTransfer, sizes: Sequence[int]) -> list[Copy]:
        """Of what was not sent yet of so many bytes of every part."""
        copies: list[Copy] = []
        for part, nbytes in zip(transfer.parts, sizes, strict=True):
            if nbytes > part.copied:
                target = transfer.block.ctypes.data + part.offset + part.copied
                source, missing = part.source + part.copied, nbytes - part.copied
                copies.append(partial(self._driver.copy_to_host, target, source, missing, self._stream))
            part.copied = nbytes  # not what was expected beyond it
        return copies

    def _block(self, nbytes: int) -> tuple[Image, bool]:
        """Page-locked memory, and whether its readers may keep it. Else the next batch overwrites it."""
        if nbytes == 0:
            return np.zeros(0, np.uint8), True
        lent = self._pool.acquire(nbytes)
        if lent is not None:
            return lent, True
        self._pinned.reserve({}, {"masks": nbytes})
        return self._pinned.pinned_view("masks", nbytes), False

    def _make_room_for_runs(self, results: BatchResults, needed: int) -> BatchProgram:
        """Runs that found no room are made again, with room."""
        program = results.program
        if needed <= program.run_capacity:
            return program
        batch = program.layout.batch
        self._buffers.reserve({"runs": batch * align(int(4 * needed * _GROWTH))}, {})
        roomy = dataclasses.replace(program, run_capacity=run_capacity(self._buffers.device_bytes("runs"), batch))
        for launch, values in roomy.masks({**results.at, "runs": self._buffers.address("runs")}):
            if launch.kernel == "rle_runs":
                self._kernels.launch(launch, values, self._stream)
        return roomy

    def _score_masks(
        self, program: BatchProgram, masks: MaskTransfer, image: int, class_ids: AnyArray
    ) -> FloatArray | None:
        if self._mask_iou is None:
            return None
        count = len(class_ids)
        if not count:
            return np.zeros(0, np.float32)
        soft = masks.content(program.layout.batch + image)
        mask_ious = self._mask_iou(soft.view(np.float32).reshape(count, *program.model.proto_hw))
        own: FloatArray = mask_ious[np.arange(count), class_ids]
        return own


def _bytes_at_input_size(specialization: Specialization, input_size: int) -> int:
    """Of as many masks as there can be, of an image of the network's own size: those of larger ones are rarely more, as of a
    mask only its box's window crosses."""
    return 4 * specialization.max_out * input_size * -(-input_size // 32)


def _is_too_small(sent: MaskTransfer, sizes: Sequence[int]) -> bool:
    return any(nbytes > part.room for part, nbytes in zip(sent.parts, sizes, strict=True))


def _source(results: BatchResults, masks: MaskTransfer, image: int, count: int) -> MaskSource:
    """Masks that own their memory, or keep what is lent to them."""
    image_hw = results.program.layout.kinds[image].image_hw
    content = masks.content(image)
    if not masks.is_lent:
        content = content.copy()
    form = results.program.request.masks
    if form == "dense":
        return DenseMasks(content.reshape(count, *image_hw).view(bool))
    words = content.view(np.uint32)
    if form == "rle":
        return RunMasks(
            [words[begin:end] for begin, end in pairwise(results.host["run_start"][image, : count + 1])], image_hw
        )
    windows = results.host["windows"][image, :count].astype(np.int64)
    starts = results.host["window_start"][image, :count].astype(np.int64)
    return WindowMasks(words, windows, starts, image_hw)
