"""Detections drawn on images, by the supervision library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.detections import Detections
from yolact_deploy.errors import OutputError
from yolact_deploy.files import atomic_path
from yolact_deploy.optional import require

_MASK_OPACITY = 0.45
_MIN_TEXT_SCALE = 0.4  # the smallest that can be read


def check_can_draw() -> None:
    """Raise MissingDependencyError now if overlays can't be drawn later."""
    _supervision()


def draw(image: Image, detections: Detections) -> Image:
    """A copy of the BGR image with masks, boxes and `class score` labels, one colour per class."""
    sv = _supervision()
    shown = detections.to_supervision()
    inverted = (shown.xyxy[:, 0] >= shown.xyxy[:, 2]) | (shown.xyxy[:, 1] >= shown.xyxy[:, 3])
    labels = [f"{name} {score:.2f}" for name, score in zip(detections.class_names, detections.scores, strict=True)]
    shown.data["label"] = np.array(labels, dtype=str)
    shown = shown[~inverted]
    shown = shown[::-1]  # the best comes last, on top of the others
    canvas: Any = np.array(image, order="C")
    scale = max(_MIN_TEXT_SCALE, sv.calculate_optimal_text_scale(canvas.shape[1::-1]))
    thickness = sv.calculate_optimal_line_thickness(canvas.shape[1::-1])
    canvas = sv.MaskAnnotator(opacity=_MASK_OPACITY).annotate(canvas, shown)
    canvas = sv.BoxAnnotator(thickness=thickness).annotate(canvas, shown)
    annotator = sv.LabelAnnotator(text_scale=scale, text_padding=3, text_color=sv.Color.BLACK, smart_position=True)
    drawn: Image = annotator.annotate(canvas, shown, labels=shown.data["label"].tolist())
    return drawn


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
