"""The program of a batch over NumPy arrays: the launches and values that the runtime has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tests.emulator.emulator import FORWARD
from tests.emulator.unwritten import mark_unwritten, mark_written
from yolact_deploy.cuda.launches import Buffer, Launch
from yolact_deploy.cuda.program import BatchLayout, BatchProgram, ImageKind, ModelConstants, Request, Step
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.mask_sources import MaskForm, WindowMasks

Array = npt.NDArray[Any]


class Runner(Protocol):
    """What runs a kernel to its end over NumPy arrays, in place: the emulator, or a GPU."""

    def launch(self, launch: Launch, arguments: Mapping[str, Any], *, schedule: int = FORWARD) -> None: ...


@dataclass(frozen=True)
class At:
    """An array in the place of an address, to which a program adds bytes."""

    array: Array

    def __add__(self, nbytes: int) -> At:
        return At(self.array.reshape(-1).view(np.uint8)[nbytes:]) if nbytes else self


def run(runner: Runner, steps: Iterable[Step], *, schedule: int = FORWARD) -> None:
    """Steps of a program whose addresses are arrays."""
    for launch, values in steps:
        given: dict[str, Any] = {**values}
        arrays = {name: value.array for name, value in given.items() if isinstance(value, At)}
        runner.launch(launch, given | arrays, schedule=schedule)


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
    has_placed: bool = False  # detections that no kernel found

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
        thresholds = {"conf_threshold": conf_threshold, "iou_threshold": iou_threshold}
        self.proto_hw, self.has_placed = (proto.shape[1], proto.shape[2]), False
        model = ModelConstants(self.specialization, 1, loc.shape[1], self.proto_hw, thresholds, scores_masks=True)
        self.program = BatchProgram(model, layout(image_hws), Request(score_threshold))
        inputs = {"loc": loc, "conf": conf, "mask_coeff": mask_coeff, "proto": proto, "priors": priors}
        self.arrays: dict[str, Array] = {
            **garbage({**self.program.workspace, **self.program.results}),
            **{name: aligned(array) for name, array in inputs.items()},
            "image_hw": np.array(image_hws, np.int32),
        }
        self._run(self.program.detect(self._at))
        names = ("prior_idx", "class_ids", "scores", "boxes", "pixel_boxes", "coeff")
        counts = self.arrays["count"].tolist()
        return [Found(*(self.arrays[name][b, :n].copy() for name in names)) for b, n in enumerate(counts)]

    def place(self, image: int, coeff: Array, cells: Array) -> None:
        """Detections of one's own in place of those found, to see their masks."""
        self.has_placed = True
        self.arrays["count"][image] = len(coeff)
        self.arrays["coeff"][image, : len(coeff)] = coeff
        self.arrays["cells"][image, : len(coeff)] = cells
        for name in ("count", "coeff", "cells"):
            mark_written(self.arrays[name])

    def soft_masks(self, *, crop: bool = True) -> Array:
        """float32 [B, M, Hp, Wp], sigmoided and cropped; zeros beyond `count`."""
        request = dataclasses.replace(self.program.request, crop=crop)
        program = dataclasses.replace(self.program, request=request)
        self.arrays |= garbage({"soft_masks": program.workspace["soft_masks"]})
        self._run(step for step in program.masks(self._at) if step[0].kernel == "prototype_masks")
        return self.arrays["soft_masks"]

    def masks(self, image_hw: tuple[int, int], *, crop: bool = True) -> list[Array]:
        """bool [n, H, W] of every image, the masks at one size."""
        return self.masks_of([image_hw] * self.program.layout.batch, crop=crop)

    def masks_of(self, image_hws: Sequence[tuple[int, int]], *, crop: bool = True) -> list[Array]:
        """bool [n, H, W] of every image: the masks of the last `detect` for images of these sizes, assembled as bits."""
        request = dataclasses.replace(self.program.request, masks="bits", crop=crop)
        self.program = dataclasses.replace(
            self.program,
            layout=layout(image_hws),
            request=request,
            run_capacity=_run_capacity(self.specialization, image_hws),
        )
        self.arrays["image_hw"] = np.array(image_hws, np.int32)
        self.arrays |= garbage({"mask_words": self.program.workspace["mask_words"]})
        if self.has_placed:
            self._place_windows()
        else:
            self._run(step for step in self.program.detect(self._at) if step[0].kernel == "select_detections")
        self._run(step for step in self.program.masks(self._at) if step[0].kernel == "assemble_masks")
        found = self.windowed()
        for image, (windowed, image_hw) in enumerate(zip(found, image_hws, strict=True)):
            np.testing.assert_array_equal(windowed.windows, self.expected_windows(image, image_hw))
        return [windowed.dense() for windowed in found]

    def _place_windows(self) -> None:
        for image, kind in enumerate(self.program.layout.kinds):
            windows = self.expected_windows(image, kind.image_hw)
            self.arrays["windows"][image, : len(windows)] = windows
            sizes = np.zeros(self.specialization.max_out, np.uint32)
            sizes[: len(windows)] = windows[:, 2] * windows[:, 3]
            self.arrays["window_start"][image] = [0, *np.cumsum(sizes)]
        for name in ("windows", "window_start"):
            mark_written(self.arrays[name])

    def expected_windows(self, image: int, image_hw: tuple[int, int]) -> Array:
        """int [n, 4], top, left, rows and words of the pixels over a detection's cells, and of one more at each end."""
        cells = self.arrays["cells"][image, : self.arrays["count"][image]].astype(np.float32)
        if not self.program.request.crop:
            cells[:] = [0, self.proto_hw[1], 0, self.proto_hw[0]]
        pixels = []
        for axis, first in ((1, 0), (0, 2)):
            scale = np.float32(self.specialization.canvas_hw(image_hw)[axis]) / np.float32(self.proto_hw[axis])
            low = np.maximum((cells[:, first] * scale).astype(int) - 1, 0)
            high = np.minimum(np.ceil(cells[:, first + 1] * scale).astype(int) + 1, image_hw[axis])
            pixels += [low, np.where(cells[:, first] < cells[:, first + 1], high, 0)]
        left, right, top, bottom = pixels
        word = left // 32
        windows = np.stack([top, 32 * word, bottom - top, -(-right // 32) - word], axis=1)
        return np.where(((left < right) & (top < bottom))[:, None], windows, 0)

    def windowed(self) -> list[WindowMasks]:
        """The first `count` masks of every image, as they cross to the host: no other word is looked at."""
        block, found = self.arrays["mask_words"].reshape(-1).view(np.uint8), []
        sizes = self.program.mask_bytes(self.arrays)
        for image, (offset, nbytes) in enumerate(zip(self.program.mask_offsets, sizes, strict=True)):
            count = int(self.arrays["count"][image])
            words = block[offset : offset + nbytes].view(np.uint32)
            windows = self.arrays["windows"][image, :count].astype(np.int64)
            starts = self.arrays["window_start"][image, :count].astype(np.int64)
            found.append(WindowMasks(words, windows, starts, self.program.layout.kinds[image].image_hw))
        return found

    def dense(self) -> list[Array]:
        """uint8 [M, H, W] of every image, made of the bits."""
        program = self._unpack("dense")
        return self._of_images(program, [(np.dtype(np.uint8), kind.image_hw) for kind in program.layout.kinds])

    def runs(self) -> list[list[list[int]]]:
        """Run lengths of every mask of every image."""
        program = self.write_runs()
        found = []
        for image, (offset, count) in enumerate(zip(program.mask_offsets, self.arrays["count"].tolist(), strict=True)):
            starts = self.arrays["run_start"][image]
            runs = self.arrays["runs"].reshape(-1).view(np.uint32)[offset // 4 :]
            found.append([runs[starts[n] : starts[n + 1]].tolist() for n in range(count)])
        return found

    def write_runs(self, into: Array | None = None) -> BatchProgram:
        """Run lengths, of a batch of one where they are to be written into a place of one's own."""
        if into is None:
            return self._unpack("rle")
        self.program = dataclasses.replace(self.program, run_capacity=len(into))
        return self._unpack("rle", runs=into)

    def _unpack(self, form: MaskForm, **places: Array) -> BatchProgram:
        """Another form of the masks that are there as bits."""
        request = dataclasses.replace(self.program.request, masks=form)
        program = dataclasses.replace(self.program, request=request)
        declared, known = ({**each.workspace, **each.results} for each in (program, self.program))
        self.arrays |= garbage({name: buffer for name, buffer in declared.items() if name not in known}) | places
        made = ("prototype_masks", "assemble_masks")
        self._run(step for step in program.masks(self._at) if step[0].kernel not in made)
        return program

    def _of_images(self, program: BatchProgram, forms: Sequence[tuple[np.dtype[Any], tuple[int, int]]]) -> list[Array]:
        """[M, ...] of every image, of the buffer that masks cross to the host from."""
        block = self.arrays[program.mask_block].reshape(-1)
        max_out = self.specialization.max_out
        found = []
        for offset, (dtype, shape) in zip(program.mask_offsets, forms, strict=True):
            nbytes = max_out * shape[0] * shape[1] * dtype.itemsize
            found.append(block[offset : offset + nbytes].view(dtype).reshape(max_out, *shape))
        return found

    @property
    def _at(self) -> Any:
        return {name: At(array) for name, array in self.arrays.items()}

    def _run(self, steps: Iterable[Step]) -> None:
        run(self.runner, steps, schedule=self.schedule)


def layout(image_hws: Sequence[tuple[int, int]]) -> BatchLayout:
    return BatchLayout(tuple(ImageKind(hw, is_rgb=False, on_device=True) for hw in image_hws))


def garbage(buffers: Mapping[str, Buffer]) -> dict[str, Array]:
    """Arrays of the buffers' exact sizes, full of bytes that mean nothing and count as unwritten."""
    made = {
        name: aligned(np.full(b.nbytes, 0xA5, np.uint8).view(b.dtype).reshape(b.shape)) for name, b in buffers.items()
    }
    for array in made.values():
        mark_unwritten(array)
    return made


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


def _run_capacity(specialization: Specialization, image_hws: Sequence[tuple[int, int]]) -> int:
    """Of an image: what its masks can have at most, where that is little."""
    most = max(height * width for height, width in image_hws)
    return specialization.max_out * (most + 1) if most < 4096 else 1 << 20
