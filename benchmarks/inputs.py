"""Images to time with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.runtime.images import list_images, read_image

_DEFAULT_HW = (480, 640)
_BLOCK_PX = 40
_MAX_IMAGES = 64  # held in memory; enough that no cache holds them


def bench_images(source: Path | None) -> list[Image]:
    """The first images of a file or folder; without one, a made-up 480x640 image. Raises ImageError."""
    if source is not None:
        return [read_image(path) for path in list_images([source])[:_MAX_IMAGES]]
    return [made_up_image(_DEFAULT_HW)]


def made_up_image(image_hw: tuple[int, int]) -> Image:
    """Blocks of random colours, the same every time; uint8 [H, W, 3]."""
    height, width = image_hw
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-height // _BLOCK_PX), -(-width // _BLOCK_PX), 3), dtype=np.uint8)
    whole = blocks.repeat(_BLOCK_PX, axis=0).repeat(_BLOCK_PX, axis=1)
    return np.ascontiguousarray(whole[:height, :width])
