"""Videos, frame by frame, by OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import ImageError, OutputError
from yolact_deploy.files import atomic_path

_CODEC = "mp4v"
_FALLBACK_FPS = 25.0
_COUNTED_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi"})  # say how many frames they hold; others let one guess
_MIN_DECODED = 0.9  # of the frames a file says it holds: edit lists and repeated frames leave out a few


def annotate_video(source: Path, target: Path | None, on_frame: Callable[[Image], Image]) -> None:
    """Give every frame (uint8 [H, W, 3] BGR) to `on_frame`; what it returns becomes the video `target` (.mp4).

    Raises ImageError when `source` can't be opened, has no frame or breaks off, OutputError when `target` can't be written.
    """
    with contextlib.ExitStack() as stack:
        capture = stack.enter_context(_open(source))
        output = None if target is None else stack.enter_context(atomic_path(target))
        writer: Any = None
        frames = 0
        while True:
            more, frame = capture.read()
            if not more:
                break
            frames += 1
            drawn = on_frame(frame)
            if output is not None:
                if writer is None:
                    writer = stack.enter_context(_writer(output, capture, frame.shape[1::-1]))
                writer.write(np.ascontiguousarray(drawn))
        if not frames:
            raise ImageError(f"can't read the video {source}: no frame could be decoded.")
        _check_complete(source, frames, capture)


def _check_complete(source: Path, frames: int, capture: Any) -> None:
    import cv2

    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if source.suffix.lower() in _COUNTED_SUFFIXES and frames < _MIN_DECODED * promised:
        raise ImageError(
            f"can't read the video {source} to its end: {frames} of its {promised} frames could be decoded. "
            "If it was copied or downloaded, get it again."
        )


@contextlib.contextmanager
def _open(source: Path) -> Iterator[Any]:
    import cv2

    capture = cv2.VideoCapture(str(source))
    try:
        if not capture.isOpened():
            raise ImageError(f"can't read the video {source}: no decoder knows it, or it is damaged.")
        yield capture
    finally:
        capture.release()


@contextlib.contextmanager
def _writer(path: Path, capture: Any, size_wh: tuple[int, int]) -> Iterator[Any]:
    import cv2

    fps = capture.get(cv2.CAP_PROP_FPS) or _FALLBACK_FPS
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODEC), fps, size_wh)
    try:
        if not writer.isOpened():
            raise OutputError(f"can't write the video {path}: this OpenCV has no {_CODEC} encoder.")
        yield writer
    finally:
        writer.release()
