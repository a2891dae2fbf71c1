"""Detections drawn on images, by the supervision library, and on videos, frame by frame, by OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import ImageError, OutputError
from yolact_deploy.files import atomic_path
from yolact_deploy.optional import require
from yolact_deploy.reference.detections import Detections

_MASK_OPACITY = 0.45
_MIN_TEXT_SCALE = 0.4  # the smallest that can be read
_STROKE_PER_SCALE = 1.2  # pixels, of OpenCV's fonts
_PADDING_PER_SCALE = 6


def check_can_draw() -> None:
    """Raise MissingDependencyError now if overlays can't be drawn later."""
    _supervision()


def draw(image: Image, detections: Detections) -> Image:
    """A copy of the BGR image with masks, boxes and `class score` labels, one colour per class."""
    sv = _supervision()
    boxes = detections.boxes_xyxy
    has_area = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    detections = detections.take(np.flatnonzero(has_area)[::-1])  # the best comes last, on top of the others
    boxes_only = sv.Detections(xyxy=detections.boxes_xyxy, confidence=detections.scores, class_id=detections.class_ids)
    labels = [f"{name} {score:.2f}" for name, score in zip(detections.class_names, detections.scores, strict=True)]
    canvas: Any = _with_masks(np.array(image, order="C"), detections, sv.ColorPalette.DEFAULT)
    scale = max(_MIN_TEXT_SCALE, sv.calculate_optimal_text_scale(canvas.shape[1::-1]))
    thickness = sv.calculate_optimal_line_thickness(canvas.shape[1::-1])
    canvas = sv.BoxAnnotator(thickness=thickness).annotate(canvas, boxes_only)
    annotator = sv.LabelAnnotator(
        text_scale=scale,
        text_thickness=max(1, round(scale * _STROKE_PER_SCALE)),
        text_padding=max(3, round(scale * _PADDING_PER_SCALE)),
        text_color=sv.Color.BLACK,
        smart_position=True,
    )
    drawn: Image = annotator.annotate(canvas, boxes_only, labels=labels)
    return drawn


def _with_masks(canvas: Image, detections: Detections, palette: Any) -> Image:
    """Masks are painted one at a time: at the size of a photo, 100 of them would take gigabytes."""
    import cv2

    painted = canvas.copy()
    for region, class_id in zip(detections.iter_regions(), detections.class_ids.tolist(), strict=True):
        height, width = region.window.shape
        window = painted[region.row : region.row + height, region.column : region.column + width]
        window[region.window] = palette.by_idx(class_id).as_bgr()
    cv2.addWeighted(painted, _MASK_OPACITY, canvas, 1 - _MASK_OPACITY, 0, dst=canvas)
    return canvas


def write_image(path: Path, image: Image) -> None:
    """Encode by the suffix of `path`; the file appears whole or not at all. Raises OutputError."""
    import cv2

    done, encoded = cv2.imencode(path.suffix, image)
    if not done:
        raise OutputError(
            f"can't write {path}: OpenCV could not encode {image.shape[1]}x{image.shape[0]} as {path.suffix}."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _supervision() -> Any:
    return require("supervision", extra="draw", purpose="drawing overlays")


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
