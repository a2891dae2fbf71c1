"""The program of a batch: how its images, and all that is made of them, lie in buffers, and the launches, each with its values,
that take them from pixels to masks.

The runtime, the tests and the figures run the same lists: each says at which addresses its buffers are. Images are ordered so
that those of one size lie side by side, as a launch takes images of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.cuda import launches
from yolact_deploy.cuda.launches import Buffer, Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.spec import INPUT, OUTPUTS, ModelSpec

Addresses: TypeAlias = Mapping[str, int]  # of buffers on the device
Values: TypeAlias = dict[str, int | float]  # of a launch by the names of its ARGUMENTS: addresses and numbers
Step: TypeAlias = tuple[Launch, Values]

ALIGNMENT = 256
FIRST_RUN_CAPACITY = 1 << 16  # run lengths of an image, until one has more
MASK_BLOCKS_PER_MULTIPROCESSOR = 4
_RUN_BYTES = 4


@dataclass(frozen=True)
class ImageKind:
    """What of an image is part of a program: all but its pixels."""

    image_hw: tuple[int, int]
    is_rgb: bool
    on_device: bool


@dataclass(frozen=True)
class ImageGroup:
    """Images first .. first + count - 1 of a batch, all alike."""

    first: int
    count: int
    image_hw: tuple[int, int]
    is_rgb: bool  # of its first image


@dataclass(frozen=True)
class BatchLayout:
    """Images of a batch, in the order in which they lie on the device."""

    kinds: tuple[ImageKind, ...]

    @property
    def batch(self) -> int:
        """B."""
        return len(self.kinds)

    @property
    def sizes(self) -> tuple[ImageGroup, ...]:
        """Images of one size."""
        return tuple(_groups(self.kinds, lambda kind: kind.image_hw))

    @property
    def uploads(self) -> tuple[ImageGroup, ...]:
        """Images of the host of one size and order of channels."""
        return tuple(group for group in _groups(self.kinds, lambda kind: kind) if not self.kinds[group.first].on_device)


def order_by_layout(kinds: Sequence[ImageKind]) -> tuple[BatchLayout, list[int]]:
    """The layout of images, and which of them lie where in it."""
    order = sorted(range(len(kinds)), key=lambda i: (kinds[i].image_hw, kinds[i].is_rgb, kinds[i].on_device, i))
    return BatchLayout(tuple(kinds[i] for i in order)), order


@dataclass(frozen=True)
class Request:
    """What is asked of a batch."""

    score_threshold: float = 0.0  # only scores strictly above it
    masks: MaskForm = "bits"
    crop: bool = True  # masks end at their boxes


@dataclass(frozen=True, eq=False)
class ModelConstants:
    """What is the same for every batch."""

    specialization: Specialization
    input_size: int  # S
    num_priors: int  # P
    proto_hw: tuple[int, int]
    constants: Mapping[str, float]  # thresholds and colours, by the names of their arguments
    scores_masks: bool = False  # a mask-IoU network wants the soft masks
    mask_blocks: int = MASK_BLOCKS_PER_MULTIPROCESSOR  # that assemble masks at once

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        specialization: Specialization,
        *,
        scores_masks: bool = False,
        multiprocessors: int = 1,  # of the GPU
    ) -> ModelConstants:
        """The sizes and constants of a spec."""
        pixels, rules = spec.preprocess, spec.postprocess
        colours = {"mean": pixels.mean_rgb, "std": pixels.std_rgb, "pad": pixels.pad_rgb or (0.0, 0.0, 0.0)}
        constants = {
            **{f"{name}_{c}": value for name, rgb in colours.items() for c, value in zip("rgb", rgb, strict=True)},
            "conf_threshold": rules.conf_threshold,
            "iou_threshold": rules.iou_threshold,
        }
        proto_hw = spec.proto_size, spec.proto_size
        blocks = MASK_BLOCKS_PER_MULTIPROCESSOR * multiprocessors
        return cls(specialization, spec.input_size, spec.num_priors, proto_hw, constants, scores_masks, blocks)

    def network_buffers(self, batch: int) -> dict[str, Buffer]:
        """The network's input and its heads."""
        spec, size, priors = self.specialization, self.input_size, self.num_priors
        shapes = (
            (priors, 4),
            (priors, 1 + spec.num_classes),
            (priors, spec.num_coeff),
            (*self.proto_hw, spec.num_coeff),
        )
        return {
            name: Buffer((batch, *shape), spec.dtypes[name])
            for name, shape in zip((INPUT, *OUTPUTS), ((3, size, size), *shapes), strict=True)
        }


@dataclass(frozen=True, eq=False)
class BatchProgram:
    """Every buffer and every launch of a batch. `at` in its methods says where each buffer of `staging`, `results` and
    `workspace` is, and "priors" [P, 4]."""

    model: ModelConstants
    layout: BatchLayout
    request: Request = Request()
    run_capacity: int = FIRST_RUN_CAPACITY  # run lengths of an image that there is room for

    @cached_property
    def staging(self) -> dict[str, Buffer]:
        """What crosses to the device: the sizes of the images, and the pixels of those of the host."""
        pixels = {
            _pixels(number): Buffer((*kind.image_hw, 3), np.dtype(np.uint8))
            for number, kind in enumerate(self.layout.kinds)
            if not kind.on_device
        }
        return {"image_hw": Buffer((self.layout.batch, 2), np.dtype(np.int32)), **pixels}

    @cached_property
    def sizes_hw(self) -> AnyArray:
        """int32 [B, 2], what belongs into "image_hw"."""
        return np.array([kind.image_hw for kind in self.layout.kinds], np.int32)

    @cached_property
    def results(self) -> dict[str, Buffer]:
        """What crosses to the host every time; masks beside it, as many as there are."""
        results = launches.result_buffers(self.model.specialization, self.layout.batch)
        if self.request.masks == "rle":
            runs = launches.mask_buffers(self.model.specialization, (1, 1), self.layout.batch, 1)
            results["run_start"] = runs["run_start"]
        return results

    @cached_property
    def workspace(self) -> dict[str, Buffer]:
        """What stays on the device: the network's input and heads, what the kernels pass on, masks."""
        model, batch = self.model, self.layout.batch
        scratch = launches.scratch_buffers(model.specialization, model.num_priors, batch)
        workspace = {**model.network_buffers(batch), **scratch, **self._mask_blocks[0]}
        if model.scores_masks:
            shape = (batch, model.specialization.max_out, *model.proto_hw)
            workspace["soft_masks"] = Buffer(shape, np.dtype(np.float32))
        return workspace

    def preprocess(self, at: Addresses) -> list[Step]:
        """Pixels of the host's images to the network's input."""
        return [
            self._preprocess(at, group, at[_pixels(group.first)], 3 * group.image_hw[1])
            for group in self.layout.uploads
        ]

    def preprocess_on_device(self, at: Addresses, number: int, pixels: int, row_pitch: int) -> Step:
        """The same of an image that is where its owner has it, which no list can know beforehand."""
        kind = self.layout.kinds[number]
        return self._preprocess(at, ImageGroup(number, 1, kind.image_hw, kind.is_rgb), pixels, row_pitch)

    def detect(self, at: Addresses) -> list[Step]:
        """Heads to detections."""
        model, values = self.model, self._values(at)
        return [
            (launch, values)
            for launch in launches.detect_launches(model.specialization, model.num_priors, self.layout.batch)
        ]

    def masks(self, at: Addresses) -> list[Step]:
        """Detections to masks in the form that was asked for."""
        return list(self._masks(at))

    @property
    def mask_block(self) -> str:
        """The buffer of `workspace` that masks cross to the host from."""
        return {"bits": "mask_words", "dense": "dense", "rle": "runs"}[self.request.masks]

    @cached_property
    def mask_offsets(self) -> tuple[int, ...]:
        """Where in `mask_block` the masks of every image begin."""
        return tuple(
            offsets[self.mask_block] + number * self._mask_buffers(group.image_hw, 1)[self.mask_block].nbytes
            for group, offsets in zip(self.layout.sizes, self._mask_blocks[1], strict=True)
            for number in range(group.count)
        )

    def mask_bytes(self, results: Mapping[str, AnyArray]) -> list[int]:
        """Of the masks of every image in `mask_block`, once `results` are on the host."""
        counts = results["count"].tolist()
        if self.request.masks == "dense":
            sizes = (height * width for height, width in (kind.image_hw for kind in self.layout.kinds))
            return [count * each for count, each in zip(counts, sizes, strict=True)]
        totals = results["run_start" if self.request.masks == "rle" else "window_start"][:, -1].tolist()
        return [4 * total if count else 0 for total, count in zip(totals, counts, strict=True)]

    @cached_property
    def mask_rooms(self) -> list[int]:
        """Bytes for the masks, and then the soft masks if those are scored, of every image: what there can be at most."""
        sizes = (kind.image_hw for kind in self.layout.kinds)
        rooms = [self._mask_buffers(image_hw, 1)[self.mask_block].nbytes for image_hw in sizes]
        soft = self.model.specialization.max_out * self.soft_mask_bytes
        return rooms + [soft] * (len(rooms) if self.model.scores_masks else 0)

    @property
    def soft_mask_bytes(self) -> int:
        """Of one soft mask."""
        return 4 * math.prod(self.model.proto_hw)

    def _preprocess(self, at: Addresses, group: ImageGroup, pixels: int, row_pitch: int) -> Step:
        image = self.model.network_buffers(1)[INPUT]
        height, width = group.image_hw
        values = {
            **self._values(at),
            "images": pixels,
            "input": at[INPUT] + group.first * image.nbytes,
            "image_h": height,
            "image_w": width,
            "row_pitch": row_pitch,
            "image_pitch": align(3 * height * width),  # as `pack` has them; one image alone needs none
            "is_rgb": int(group.is_rgb),
        }
        return launches.preprocess_launch(self.model.specialization, self.model.input_size, group.count), values

    def _masks(self, at: Addresses) -> Iterator[Step]:
        specialization, proto_hw = self.model.specialization, self.model.proto_hw
        values = self._values(at)
        if self.model.scores_masks:
            yield launches.prototype_masks_launch(specialization, proto_hw, self.layout.batch), values
        for group, offsets in zip(self.layout.sizes, self._mask_blocks[1], strict=True):
            size, count = group.image_hw, group.count
            own: Values = {
                **values,
                **{name: at[name] + offset for name, offset in offsets.items()},
                "image_h": size[0],
                "image_w": size[1],
                "first_image": group.first,
                **launches.mask_tile(specialization, proto_hw, size),
            }
            yield launches.mask_launch(specialization, proto_hw, size, count, self.model.mask_blocks), own
            if self.request.masks == "rle":
                run_start = at["run_start"] + 4 * group.first * (specialization.max_out + 1)
                for launch in launches.rle_launches(specialization, size, count):
                    yield launch, {**own, "run_start": run_start}
            elif self.request.masks == "dense":
                yield launches.unpack_launch(specialization, size, count), own

    def _values(self, at: Addresses) -> Values:
        """What no launch has of its own."""
        proto_h, proto_w = self.model.proto_hw
        return {
            **at,
            **self.model.constants,
            "input_size": self.model.input_size,
            "num_priors": self.model.num_priors,
            "proto_h": proto_h,
            "proto_w": proto_w,
            "score_threshold": self.request.score_threshold,
            "crop": int(self.request.crop),
            "capacity": self.run_capacity,
        }

    @cached_property
    def _mask_blocks(self) -> tuple[dict[str, Buffer], tuple[dict[str, int], ...]]:
        """The buffers of masks, and where in each those of every size begin."""
        names = {"bits": (), "dense": ("dense",), "rle": ("column_runs", "column_last", "run_count", "runs")}
        kept = ("mask_words", *names[self.request.masks])
        groups = [self._mask_buffers(group.image_hw, group.count) for group in self.layout.sizes]
        placed = {name: pack({str(i): buffers[name] for i, buffers in enumerate(groups)}) for name in kept}
        blocks = {name: Buffer((block.nbytes,), np.dtype(np.uint8)) for name, block in placed.items()}
        return blocks, tuple({name: placed[name].offsets[str(i)] for name in kept} for i in range(len(groups)))

    def _mask_buffers(self, image_hw: tuple[int, int], count: int) -> dict[str, Buffer]:
        return launches.mask_buffers(self.model.specialization, image_hw, count, self.run_capacity)


@dataclass(frozen=True)
class PackedBuffers:
    """Buffers side by side in one block of memory."""

    buffers: Mapping[str, Buffer]
    offsets: Mapping[str, int]  # where each begins
    nbytes: int

    def at(self, address: int) -> dict[str, int]:
        """Where each buffer is when the block is at an address."""
        return {name: address + offset for name, offset in self.offsets.items()}

    def views(self, content: Image) -> dict[str, AnyArray]:
        """Each buffer as an array, of the block's bytes on the host."""
        return {
            name: content[self.offsets[name] : self.offsets[name] + buffer.nbytes]
            .view(buffer.dtype)
            .reshape(buffer.shape)
            for name, buffer in self.buffers.items()
        }


def pack(buffers: Mapping[str, Buffer]) -> PackedBuffers:
    """Buffers side by side, in their order."""
    offsets, end = {}, 0
    for name, buffer in buffers.items():
        offsets[name] = align(end)
        end = offsets[name] + buffer.nbytes
    return PackedBuffers(buffers, offsets, end)


def align(nbytes: int) -> int:
    """Up to what a buffer may begin at."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def run_capacity(nbytes: int, batch: int) -> int:
    """Run lengths of an image for which a buffer of so many bytes has room."""
    return max(FIRST_RUN_CAPACITY, nbytes // batch // ALIGNMENT * ALIGNMENT // _RUN_BYTES)


def _pixels(number: int) -> str:
    """The buffer of an image of the host."""
    return f"pixels of image {number}"


def _groups(kinds: Sequence[ImageKind], alike: Callable[[ImageKind], object]) -> Iterator[ImageGroup]:
    first = 0
    for _, members in groupby(kinds, alike):
        count = len(list(members))
        yield ImageGroup(first, count, kinds[first].image_hw, kinds[first].is_rgb)
        first += count
