"""How the kernels are launched: arguments in order, grids and blocks, and the buffers they need.

Buffers and scalars have the same names everywhere: a launch takes the values named in ARGUMENTS[kernel], in that order.
An image goes through

    preprocess -> (network) -> decode -> fast_nms -> select_detections -> assemble_masks

and then, where wanted, prototype_masks (what a mask-IoU network reads), unpack_masks, or
rle_columns -> rle_offsets -> rle_starts -> rle_runs. All images of a launch of assemble_masks, unpack_masks and the rle
kernels have one size; `first_image` is the first of them in the batch, while their masks are counted from 0. Buffers need no
clearing beforehand. hold_stream keeps what is behind it in a stream waiting, so that it can be timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from yolact_deploy.cuda.specialization import UNPACK_BYTES, Specialization
from yolact_deploy.errors import DeviceError

ArgumentKind: TypeAlias = Literal["pointer", "int32", "uint32", "int64", "float32"]
Triple: TypeAlias = tuple[int, int, int]

_WARP = 32
_MASK_TILE_ROWS = 64  # at most; fewer where the cells of a tile would not fit
_SHARED_BYTES = (
    42 * 1024
)  # of the 48 KiB that every GPU gives a block without being asked; the kernels' own are the rest

_IMAGE_SIZE: tuple[tuple[str, ArgumentKind], ...] = (("image_h", "int32"), ("image_w", "int32"))
_PROTO_SIZE: tuple[tuple[str, ArgumentKind], ...] = (("proto_h", "int32"), ("proto_w", "int32"))


def _pointers(*names: str) -> tuple[tuple[str, ArgumentKind], ...]:
    return tuple((name, "pointer") for name in names)


ARGUMENTS: Mapping[str, tuple[tuple[str, ArgumentKind], ...]] = {
    "preprocess": (
        *_pointers("images", "input"),
        *_IMAGE_SIZE,
        ("row_pitch", "int64"),
        ("image_pitch", "int64"),
        ("input_size", "int32"),
        ("is_rgb", "int32"),
        *((name, "float32") for name in ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b")),
        *((name, "float32") for name in ("pad_r", "pad_g", "pad_b")),
    ),
    "decode": (
        *_pointers("loc", "conf", "priors", "kept_words", "candidate_boxes", "candidate_scores", "candidate_class"),
        ("num_priors", "int32"),
        ("conf_threshold", "float32"),
    ),
    "fast_nms": (
        *_pointers("kept_words", "candidate_boxes", "candidate_scores", "pool_keys", "pool_priors"),
        ("num_priors", "int32"),
        ("iou_threshold", "float32"),
    ),
    "select_detections": (
        *_pointers("pool_keys", "pool_priors", "candidate_boxes", "candidate_scores"),
        *_pointers("candidate_class", "mask_coeff", "image_hw"),
        *_pointers("count", "prior_idx", "class_ids", "scores", "boxes", "pixel_boxes", "cells"),
        *_pointers("windows", "window_start", "coeff"),
        ("num_priors", "int32"),
        *_PROTO_SIZE,
        ("crop", "int32"),
        ("score_threshold", "float32"),
    ),
    "prototype_masks": (
        *_pointers("count", "cells", "coeff", "proto", "soft_masks"),
        *_PROTO_SIZE,
        ("crop", "int32"),
    ),
    "assemble_masks": (
        *_pointers("count", "cells", "windows", "window_start", "coeff", "proto", "mask_words"),
        *_PROTO_SIZE,
        *_IMAGE_SIZE,
        ("tile_rows", "int32"),
        ("tile_warps", "int32"),
        ("tile_cell_rows", "int32"),
        ("first_image", "int32"),
        ("crop", "int32"),
    ),
    "unpack_masks": (
        *_pointers("count", "windows", "window_start", "mask_words", "dense"),
        *_IMAGE_SIZE,
        ("first_image", "int32"),
    ),
    "rle_columns": (
        *_pointers("count", "windows", "window_start", "mask_words", "column_runs", "column_last"),
        *_IMAGE_SIZE,
        ("first_image", "int32"),
    ),
    "rle_offsets": (
        *_pointers("count", "column_runs", "column_last", "run_count"),
        ("image_w", "int32"),
        ("first_image", "int32"),
    ),
    "rle_starts": _pointers("run_count", "run_start"),
    "rle_runs": (
        *_pointers("count", "windows", "window_start", "mask_words", "column_runs", "column_last", "run_start", "runs"),
        *_IMAGE_SIZE,
        ("first_image", "int32"),
        ("capacity", "uint32"),
    ),
    "hold_stream": (*_pointers("gate"), ("polls", "int32")),
}


@dataclass(frozen=True)
class Launch:
    """A kernel and the grid it runs on."""

    kernel: str
    grid: Triple
    block: Triple
    shared_bytes: int = 0  # dynamic


@dataclass(frozen=True)
class Buffer:
    """Shape and type of an array in device memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def preprocess_launch(specialization: Specialization, input_size: int, images: int) -> Launch:
    """`images` images of one size."""
    geometry = specialization.geometry
    columns, lines = geometry.preprocess_columns, geometry.preprocess_lines
    grid = _ceil_div(input_size, columns), _ceil_div(input_size, lines * geometry.preprocess_rows), images
    return Launch("preprocess", grid, (columns, lines, 1))


def detect_launches(specialization: Specialization, num_priors: int, batch: int) -> tuple[Launch, ...]:
    """Head tensors to detections, in order."""
    words, geometry = _ceil_div(num_priors, _WARP), specialization.geometry
    return (
        Launch("decode", (words, batch, 1), (geometry.decode_threads, 1, 1)),
        Launch("fast_nms", (specialization.lists, batch, 1), (geometry.nms_threads, 1, 1)),
        Launch("select_detections", (batch, 1, 1), (geometry.select_threads, 1, 1)),
    )


def prototype_masks_launch(specialization: Specialization, proto_hw: tuple[int, int], batch: int) -> Launch:
    """Soft masks at the size of the prototypes, for a mask-IoU network: float32 `soft_masks` [B, M, Hp, Wp]."""
    threads = specialization.geometry.mask_threads
    grid = _ceil_div(proto_hw[0] * proto_hw[1], threads), specialization.max_out, batch
    return Launch("prototype_masks", grid, (threads, 1, 1))


def mask_tile(specialization: Specialization, proto_hw: tuple[int, int], image_hw: tuple[int, int]) -> dict[str, int]:
    """Arguments `tile_rows`, `tile_warps` and `tile_cell_rows` of assemble_masks: rows of pixels of a word for each warp, and
    warps of a tile, as many as leave the cells of a tile room in shared memory, and the rows of cells that a tile reaches at
    most. In small images a tile of few pixels reaches many cells."""
    rows, warps = _MASK_TILE_ROWS, specialization.geometry.mask_threads // _WARP
    while rows > 1 and rows >= 2 * image_hw[0]:
        rows //= 2
    while rows * warps > 1 and _mask_shared_bytes(specialization, proto_hw, image_hw, rows, warps) > _SHARED_BYTES:
        rows, warps = (rows // 2, warps) if rows > 1 else (rows, warps // 2)
    cell_rows = _cell_rows(specialization, proto_hw, image_hw, rows * warps)
    return {"tile_rows": rows, "tile_warps": warps, "tile_cell_rows": cell_rows}


def mask_launch(
    specialization: Specialization,
    proto_hw: tuple[int, int],
    image_hw: tuple[int, int],
    images: int,
    blocks: int,  # of all images together, which share the tiles of their masks among them
) -> Launch:
    """Masks of `images` images of one size."""
    tile = mask_tile(specialization, proto_hw, image_hw)
    shared_bytes = _mask_shared_bytes(specialization, proto_hw, image_hw, tile["tile_rows"], tile["tile_warps"])
    block = specialization.geometry.mask_threads, 1, 1
    return Launch("assemble_masks", (_ceil_div(blocks, images), images, 1), block, shared_bytes)


def unpack_launch(specialization: Specialization, image_hw: tuple[int, int], images: int) -> Launch:
    """Bit-packed masks to bytes."""
    threads = specialization.geometry.mask_threads
    chunks = _ceil_div(specialization.max_out * image_hw[0] * image_hw[1], UNPACK_BYTES)
    return Launch("unpack_masks", (_ceil_div(chunks, threads), images, 1), (threads, 1, 1))


def rle_launches(specialization: Specialization, image_hw: tuple[int, int], images: int) -> tuple[Launch, ...]:
    """Bit-packed masks to run lengths, in order."""
    threads = specialization.geometry.rle_threads
    columns, block = (_ceil_div(image_hw[1], threads), specialization.max_out, images), (threads, 1, 1)
    return (
        Launch("rle_columns", columns, block),
        Launch("rle_offsets", (specialization.max_out, images, 1), block),
        Launch("rle_starts", (images, 1, 1), (_WARP, 1, 1)),
        Launch("rle_runs", columns, block),
    )


def scratch_buffers(specialization: Specialization, num_priors: int, batch: int) -> dict[str, Buffer]:
    """What `detect_launches` pass from one to the next."""
    lists, max_out = specialization.lists, specialization.max_out
    return {
        "kept_words": _buffer(np.uint32, batch, _ceil_div(num_priors, _WARP)),
        "candidate_boxes": _buffer(np.float32, batch, num_priors, 4),
        "candidate_scores": _buffer(np.float32, batch, lists, num_priors),
        "candidate_class": _buffer(np.int32, batch, num_priors if specialization.cross_class else 1),
        "pool_keys": _buffer(np.uint32, batch, lists, max_out),
        "pool_priors": _buffer(np.int32, batch, lists, max_out),
    }


def result_buffers(specialization: Specialization, batch: int) -> dict[str, Buffer]:
    """Detections: of every image the first `count` rows hold."""
    max_out = specialization.max_out
    return {
        "count": _buffer(np.int32, batch),
        "prior_idx": _buffer(np.int32, batch, max_out),
        "class_ids": _buffer(np.int32, batch, max_out),
        "scores": _buffer(np.float32, batch, max_out),
        "boxes": _buffer(np.float32, batch, max_out, 4),
        "pixel_boxes": _buffer(np.float32, batch, max_out, 4),
        "cells": _buffer(np.int32, batch, max_out, 4),
        "windows": _buffer(np.int32, batch, max_out, 4),
        "window_start": _buffer(np.uint32, batch, max_out + 1),
        "coeff": _buffer(np.float32, batch, max_out, specialization.num_coeff),
    }


def mask_buffers(
    specialization: Specialization,
    image_hw: tuple[int, int],
    images: int,
    run_capacity: int,  # runs of all masks of an image; `run_start[:, -1]` tells how many it takes
) -> dict[str, Buffer]:
    """Bit-packed masks, with room for windows as large as the image, and what `rle_launches` and `unpack_launch` write.

    Raises DeviceError for images whose masks take more words than 32 bits count.
    """
    height, width = image_hw
    max_out = specialization.max_out
    if max_out * height * _ceil_div(width, _WARP) >= 1 << 32:
        raise DeviceError(
            f"{max_out} masks of {width}x{height} pixels are more than the GPU kernels can count; "
            'run the model with device="cpu", or make the image smaller.'
        )
    return {
        "mask_words": _buffer(np.uint32, images, max_out * height * _ceil_div(width, _WARP)),
        "dense": _buffer(np.uint8, images, _ceil_div(max_out * height * width, UNPACK_BYTES) * UNPACK_BYTES),
        "column_runs": _buffer(np.uint32, images, max_out, width),
        "column_last": _buffer(np.uint32, images, max_out, width),
        "run_count": _buffer(np.uint32, images, max_out),
        "run_start": _buffer(np.uint32, images, max_out + 1),
        "runs": _buffer(np.uint32, images, run_capacity),
    }


def _mask_shared_bytes(
    specialization: Specialization, proto_hw: tuple[int, int], image_hw: tuple[int, int], tile_rows: int, warps: int
) -> int:
    """Words of a tile's rows, their weights, coefficients, where rows of cells begin, and the cells that any tile reaches."""
    canvas_w = specialization.canvas_hw(image_hw)[1]
    cells = max(
        _cell_rows(specialization, proto_hw, image_hw, tile_rows * warps // words)
        * _cells_reached(min(_WARP * words, image_hw[1]), proto_hw[1], canvas_w)
        for words in (1 << power for power in range(warps.bit_length()))
    )
    row_begins = _cell_rows(specialization, proto_hw, image_hw, tile_rows * warps) + 1
    return 4 * (2 * warps * tile_rows + specialization.num_coeff + row_begins + cells)


def _cell_rows(
    specialization: Specialization, proto_hw: tuple[int, int], image_hw: tuple[int, int], tile_rows: int
) -> int:
    """That so many rows of an image reach at most."""
    return _cells_reached(min(tile_rows, image_hw[0]), proto_hw[0], specialization.canvas_hw(image_hw)[0])


def _cells_reached(pixels: int, size_in: int, size_out: int) -> int:
    """Upper bound of the cells that `pixels` neighbours read: one at each end, and one for rounding."""
    return min(size_in, int((pixels - 1) * size_in / size_out) + 4)


def _buffer(dtype: type[np.generic], *shape: int) -> Buffer:
    return Buffer(shape, np.dtype(dtype))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
