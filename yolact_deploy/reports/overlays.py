"""Drawn frames as a video, by OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import OutputError
from yolact_deploy.files import atomic_path

_CODEC = "mp4v"


@contextlib.contextmanager
def video_writer(target: Path, fps: float) -> Iterator[Callable[[Image], None]]:
    """What adds a frame (uint8 [H, W, 3] BGR, all of one size) to the video `target` (.mp4), which appears when the block ends
    without an error. Raises OutputError."""
    import cv2

    writer: Any = None
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(target))

        def add(frame: Image) -> None:
            nonlocal writer
            if writer is None:
                size_wh = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*_CODEC), fps, size_wh)
                stack.callback(writer.release)
                if not writer.isOpened():
                    raise OutputError(f"can't write the video {target}: this OpenCV has no {_CODEC} encoder.")
            writer.write(np.ascontiguousarray(frame))

        yield add
