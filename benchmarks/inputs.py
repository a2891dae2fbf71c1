"""Images to time with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.runtime.images import list_images, read_image

_DEFAULT_HW = (480, 640)
_MAX_IMAGES = 64  # held in memory; enough that no cache holds them


def bench_images(source: Path | None) -> list[Image]:
    """The first images of a file or folder; without one, a made-up 480x640 image. Raises ImageError."""
    if source is not None:
        return [read_image(path) for path in list_images([source])[:_MAX_IMAGES]]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (_DEFAULT_HW[0] // 40, _DEFAULT_HW[1] // 40, 3), dtype=np.uint8)
    return [np.ascontiguousarray(blocks.repeat(40, axis=0).repeat(40, axis=1))]
