"""Detections drawn on images, by the supervision library, and on videos, frame by frame, by OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import OutputError
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
