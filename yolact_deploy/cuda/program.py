"""How the images of a batch lie in the device's buffers, and which launches take them from pixels to masks.

Images are ordered so that those of one size lie side by side, as a launch takes images of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np

from yolact_deploy.cuda import launches
from yolact_deploy.cuda.launches import Buffer, Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.spec import ModelSpec

Values: TypeAlias = dict[str, int | float]
Offsets: TypeAlias = dict[str, int]

ALIGNMENT = 256
_FIRST_RUN_CAPACITY = 1 << 16  # run lengths of an image, until one has more
_RUN_BYTES = 4


@dataclass(frozen=True)
class ImageKind:
    image_hw: tuple[int, int]
    is_rgb: bool
    on_device: bool


@dataclass(frozen=True)
class Group:
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
        return len(self.kinds)

    @property
    def sizes(self) -> tuple[Group, ...]:
        """Images of one size."""
        return tuple(_groups(self.kinds, lambda kind: kind.image_hw))

    @property
    def uploads(self) -> tuple[Group, ...]:
        """Images of the host of one size and order of channels."""
        return tuple(group for group in _groups(self.kinds, lambda kind: kind) if not self.kinds[group.first].on_device)

    def staging(self) -> tuple[Offsets, int]:
        """Where the sizes of the images ("image_hw") and the pixels of every image of the host (by its number) are in the
        block that crosses to the device, and its bytes."""
        offsets, used = {"image_hw": 0}, align(8 * self.batch)
        for number, kind in enumerate(self.kinds):
            if not kind.on_device:
                offsets[str(number)] = used
                used += align(pixel_bytes(kind.image_hw))
        return offsets, used


def order_images(kinds: Sequence[ImageKind]) -> list[int]:
    """The given images in the order of a BatchLayout."""
    return sorted(range(len(kinds)), key=lambda i: (kinds[i].image_hw, kinds[i].is_rgb, kinds[i].on_device, i))


def pixel_bytes(image_hw: tuple[int, int]) -> int:
    return 3 * image_hw[0] * image_hw[1]


def align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def place(buffers: dict[str, Buffer]) -> tuple[Offsets, int]:
    """Buffers side by side: where each begins, and the bytes of all."""
    offsets, used = {}, 0
    for name, buffer in buffers.items():
        offsets[name] = used
        used += align(buffer.nbytes)
    return offsets, used


@dataclass(frozen=True)
class Model:
    """What is the same for every frame."""

    spec: ModelSpec
    specialization: Specialization
    dtypes: dict[str, np.dtype[np.generic]]  # of the input and of every head
    scores_masks: bool  # a mask-IoU network wants the soft masks

    @property
    def proto_hw(self) -> tuple[int, int]:
        return self.spec.proto_size, self.spec.proto_size

    def network_buffers(self, batch: int) -> dict[str, int]:
        """Bytes of the network's input and of every head."""
        shapes = self.spec.io_shapes()
        return {name: batch * _count(shape) * self.dtypes[name].itemsize for name, shape in shapes.items()}

    def results(self, batch: int, form: MaskForm) -> dict[str, Buffer]:
        """What crosses to the host for every frame."""
        results = launches.result_buffers(self.specialization, batch)
        if form == "rle":
            runs = launches.mask_buffers(self.specialization, (1, 1), batch, 1)
            results["run_start"] = runs["run_start"]
        return results

    def scalars(self, score_threshold: float) -> Values:
        rules, pixels = self.spec.postprocess, self.spec.preprocess
        return {
            "input_size": self.spec.input_size,
            **dict(zip(("mean_r", "mean_g", "mean_b"), pixels.mean_rgb, strict=True)),
            **dict(zip(("std_r", "std_g", "std_b"), pixels.std_rgb, strict=True)),
            **dict(zip(("pad_r", "pad_g", "pad_b"), pixels.pad_rgb or (0.0, 0.0, 0.0), strict=True)),
            "num_priors": self.spec.num_priors,
            "proto_h": self.spec.proto_size,
            "proto_w": self.spec.proto_size,
            "conf_threshold": rules.conf_threshold,
            "iou_threshold": rules.iou_threshold,
            "score_threshold": score_threshold,
            "crop": 1,
        }


class MaskPlan:
    """Where the masks of a batch are in their buffers, and the launches that make them."""

    def __init__(
        self,
        model: Model,
        layout: BatchLayout,
        form: MaskForm,
        room_for_runs: int,  # bytes that the buffer of runs has
    ) -> None:
        self.model, self.layout, self.form = model, layout, form
        runs = room_for_runs // layout.batch // ALIGNMENT * ALIGNMENT // _RUN_BYTES
        self.capacity = max(_FIRST_RUN_CAPACITY, runs)
        self._names = ["mask_words"]
        if form == "rle":
            self._names += ["column_runs", "column_last", "run_count", "runs"]
        elif form == "dense":
            self._names += ["dense"]
        self._offsets: list[Offsets] = []
        self.nbytes: dict[str, int] = dict.fromkeys(self._names, 0)
        for group in layout.sizes:
            buffers = launches.mask_buffers(model.specialization, group.image_hw, group.count, self.capacity)
            self._offsets.append(dict(self.nbytes))
            for name in self._names:
                self.nbytes[name] += align(buffers[name].nbytes)
        if model.scores_masks:
            self.nbytes["soft_masks"] = layout.batch * model.specialization.max_out * self.soft_mask_bytes
        # the buffer that crosses to the host, and where in it the masks of every image are
        self.crossing = {"bits": "mask_words", "dense": "dense", "rle": "runs"}[form]
        self.offsets = tuple(self._image_offsets())
        self.mask_bytes = tuple(self._mask_bytes(kind.image_hw) for kind in layout.kinds)  # of one; not of runs

    @property
    def soft_mask_bytes(self) -> int:
        """Of one soft mask."""
        return 4 * _count(self.model.proto_hw)

    def launches(self, values: Values, run_start: int) -> Iterator[tuple[Launch, Values]]:
        """Every launch with its values; `values` has the address of each buffer by name, `run_start` is where the first
        image's are."""
        specialization = self.model.specialization
        if self.model.scores_masks:
            launch = launches.prototype_masks_launch(specialization, self.model.proto_hw, self.layout.batch)
            yield launch, values
        for group, offsets in zip(self.layout.sizes, self._offsets, strict=True):
            height, width = group.image_hw
            own: Values = {
                **values,
                **{name: values[name] + offset for name, offset in offsets.items()},
                "run_start": run_start + 4 * group.first * (specialization.max_out + 1),
                "image_h": height,
                "image_w": width,
                "first_image": group.first,
                "tile_rows": launches.mask_tile_rows(specialization, self.model.proto_hw, group.image_hw),
                "capacity": self.capacity,
            }
            yield launches.mask_launch(specialization, self.model.proto_hw, group.image_hw, group.count), own
            if self.form == "rle":
                for launch in launches.rle_launches(specialization, group.image_hw, group.count):
                    yield launch, own
            elif self.form == "dense":
                yield launches.unpack_launch(specialization, group.image_hw, group.count), own

    def _mask_bytes(self, image_hw: tuple[int, int]) -> int:
        height, width = image_hw
        return height * width if self.form == "dense" else 4 * height * launches.mask_pitch_words(width)

    def _image_offsets(self) -> Iterator[int]:
        for group, offsets in zip(self.layout.sizes, self._offsets, strict=True):
            of_one = launches.mask_buffers(self.model.specialization, group.image_hw, 1, self.capacity)[self.crossing]
            yield from (offsets[self.crossing] + number * of_one.nbytes for number in range(group.count))


def _groups(kinds: Sequence[ImageKind], alike: Callable[[ImageKind], object]) -> Iterator[Group]:
    first = 0
    for _, members in groupby(kinds, alike):
        count = len(list(members))
        yield Group(first, count, kinds[first].image_hw, kinds[first].is_rgb)
        first += count


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
