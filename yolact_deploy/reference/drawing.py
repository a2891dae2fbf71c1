"""Detections drawn on an image by OpenCV: masks with contours, boxes, and labels that keep off small objects and each other.

supervision's annotators were used before: its labels either leave the image at the top, or (smart_position) float away from
their boxes and over small objects, and its mask annotator takes all masks at once, gigabytes for 100 masks of a photo.
"""

from __future__ import annotations

import colorsys
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, Image, IntArray
from yolact_deploy.errors import OutputError, OutputFailure
from yolact_deploy.files import atomic_path
from yolact_deploy.reference.decoding import is_video
from yolact_deploy.reference.masks import MaskRegion

Colour: TypeAlias = tuple[int, int, int]  # BGR

_MASK_OPACITY = 0.45
_CONTOUR_SHADE = 0.6  # of a mask's colour
_TEXT_PER_PIXEL, _MIN_TEXT, _MAX_TEXT = 0.9e-3, 0.4, 2.0  # scale of OpenCV's font by the image's shorter side
_SMALLEST_TEXT = 0.3  # where labels would hide the image: a crowd, or a small image
_MOST_LABELLED = 0.25  # of the image
_LINE_PER_PIXEL = 2.5e-3
_PADDING = 0.35  # around a label's text, of its height
_RELUCTANCE = 0.02  # of its area that a label would rather cover than take the next place
_SMALL = 6  # an object of less than so many labels' area is not to be covered
_STRIP_PIXELS = 1 << 18  # of a mask, blended at a time
_CODEC = "mp4v"
_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # an overlay of another format is written as PNG
_GOLDEN_RATIO = 0.618034  # turns of the colour circle between one class and the next: neighbours differ most


def draw(
    image: Image,  # [H, W, 3] BGR
    boxes_xyxy: AnyArray,  # [n, 4], pixels, each with an area; the best first
    class_ids: IntArray,  # [n]
    labels: Sequence[str],  # n
    regions: Iterable[MaskRegion],  # n masks
    *,
    in_place: bool = False,  # draw on `image` itself, where OpenCV can
) -> Image:
    """A copy of an image with masks, contours, boxes and labels, a colour per class; the best detection lies on top.

    Memory does not grow with the number of masks. `Detections.plot` is this with all that it takes.
    """
    import cv2

    own = in_place and image.flags.c_contiguous and image.flags.writeable
    canvas = image if own else np.array(image, order="C")
    shorter = min(canvas.shape[:2])
    line = max(1, round(shorter * _LINE_PER_PIXEL))
    scale = min(max(_MIN_TEXT, shorter * _TEXT_PER_PIXEL), _MAX_TEXT)
    colours = [colour_of(class_id) for class_id in class_ids.tolist()]
    _draw_masks(canvas, regions, colours, max(1, line // 2))
    corners = boxes_xyxy.astype(int)
    for (left, top, right, bottom), colour in reversed(list(zip(corners.tolist(), colours, strict=True))):
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, line)
    _draw_labels(canvas, labels, corners, colours, scale)
    return canvas


@lru_cache(maxsize=256)
def colour_of(class_id: int) -> Colour:
    """The colour of a class, BGR: as different as can be from those of the classes beside it."""
    hue = class_id * _GOLDEN_RATIO % 1.0
    saturation, value = (0.75, 1.0) if class_id % 2 == 0 else (0.95, 0.85)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def _draw_masks(canvas: Image, regions: Iterable[MaskRegion], colours: Sequence[Colour], line: int) -> None:
    """One mask at a time, the best first, each in strips of its window, where no better one lies already."""
    import cv2

    covered = np.zeros((canvas.shape[0], -(-canvas.shape[1] // 8)), np.uint8)  # a bit per pixel
    outlines = []
    for region, colour in zip(regions, colours, strict=True):
        height, width = region.window.shape
        if not height or not width:
            continue
        rows = max(1, _STRIP_PIXELS // width)
        for top in range(0, height, rows):
            _blend(canvas, covered, region.window[top : top + rows], (region.row + top, region.column), colour)
        contours, _ = cv2.findContours(
            np.ascontiguousarray(region.window).view(np.uint8),
            cv2.RETR_CCOMP,
            cv2.CHAIN_APPROX_SIMPLE,
            offset=(region.column, region.row),
        )
        outlines.append((contours, tuple(int(_CONTOUR_SHADE * part) for part in colour)))
    for contours, shade in reversed(outlines):
        cv2.drawContours(canvas, contours, -1, shade, line, cv2.LINE_AA)


def _blend(canvas: Image, covered: Image, mask: BoolArray, place: tuple[int, int], colour: Colour) -> None:
    import cv2

    (row, column), (height, width) = place, mask.shape
    first, end = column // 8, -(-(column + width) // 8)
    bits = np.unpackbits(covered[row : row + height, first:end], axis=1).view(bool)
    known = bits[:, column - 8 * first : column - 8 * first + width]
    part = canvas[row : row + height, column : column + width]
    paint = np.full_like(part, colour)
    cv2.addWeighted(paint, _MASK_OPACITY, part, 1 - _MASK_OPACITY, 0, dst=paint)
    np.copyto(part, paint, where=(mask & ~known)[..., None])
    known |= mask
    covered[row : row + height, first:end] = np.packbits(bits, axis=1)


def _draw_labels(
    canvas: Image,
    texts: Sequence[str],  # n, best first
    boxes: AnyArray,  # [n, 4], whole pixels
    colours: Sequence[Colour],
    scale: float,
) -> None:
    import cv2

    style = _label_style(texts, scale)
    if len(texts):
        room = canvas.shape[0] * canvas.shape[1] * _MOST_LABELLED / style.areas.prod(axis=1).sum()
        smaller = scale * min(1.0, room**0.5, canvas.shape[1] / style.areas[:, 0].max())
        if smaller < scale:
            style = _label_style(texts, max(_SMALLEST_TEXT, smaller))
    placed = place_labels(boxes, style.areas, (canvas.shape[0], canvas.shape[1]))
    for text, (left, top), (width, tall), colour, baseline in reversed(
        list(zip(texts, placed.tolist(), style.areas.tolist(), colours, style.baselines, strict=True))
    ):
        cv2.rectangle(canvas, (left, top), (left + width - 1, top + tall - 1), colour, -1)
        ink = (0, 0, 0) if 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2] > 110 else (255, 255, 255)
        at = (left + style.pad, top + tall - style.pad - baseline)
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, style.scale, ink, style.thickness, cv2.LINE_AA)


class _LabelStyle(NamedTuple):
    """How labels are written, and how large each is with its padding."""

    scale: float
    thickness: int
    pad: int
    areas: AnyArray  # [n, 2], width and height
    baselines: list[int]  # n


def _label_style(texts: Sequence[str], scale: float) -> _LabelStyle:
    import cv2

    thickness = max(1, round(1.3 * scale))
    sizes = [cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness) for text in texts]
    height = max((size[1] + baseline for size, baseline in sizes), default=0)
    pad = max(1 if scale < _MIN_TEXT else 2, round(_PADDING * height))
    areas = np.array([[size[0] + 2 * pad, height + 2 * pad] for size, _ in sizes], int).reshape(-1, 2)
    return _LabelStyle(scale, thickness, pad, areas, [baseline for _, baseline in sizes])


def write_image(path: Path, image: Image) -> None:
    """Encode uint8 [H, W, 3] BGR by the suffix of `path`; the file appears whole or not at all. Raises OutputError."""
    import cv2

    try:
        done, encoded = cv2.imencode(path.suffix, image)
    except cv2.error:  # a suffix that OpenCV has no encoder for
        done = False
    if not done:
        raise OutputError(
            f"can't write {path}: OpenCV could not encode {image.shape[1]}x{image.shape[0]} as {path.suffix or 'no suffix'}."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def place_labels(
    boxes: AnyArray,  # [n, 4], x1 y1 x2 y2, the first the most important
    sizes_wh: AnyArray,  # [n, 2], of the labels
    image_hw: tuple[int, int],
) -> AnyArray:
    """Top left corners [n, 2] of the labels: each at its own box and inside of the image, off the labels before it and off
    small objects as far as there is room."""
    placed = np.zeros((len(boxes), 4))
    for row, ((left, top, right, bottom), (width, height)) in enumerate(
        zip(boxes.tolist(), sizes_wh.tolist(), strict=True)
    ):
        small = boxes[_areas(boxes) < _SMALL * width * height]
        candidates = _around(left, top, right, bottom, width, height)
        candidates[:, 0] = np.clip(candidates[:, 0], 0, max(0, image_hw[1] - width))
        candidates[:, 1] = np.clip(candidates[:, 1], 0, max(0, image_hw[0] - height))
        places = np.concatenate([candidates, candidates + np.array([width, height])], axis=1)
        covered = 2 * _overlaps(places, placed[:row]) + _overlaps(places, small)
        best = int(np.argmin(covered + np.arange(len(places)) * _RELUCTANCE * width * height))
        placed[row] = places[best]
    return placed[:, :2].astype(int)


def _around(left: float, top: float, right: float, bottom: float, width: float, height: float) -> AnyArray:
    """Top left corners [m, 2] of a label that touches its box, the usual places first: over its top left corner, or its top
    right one; then within it, below it, at its sides, and half-way along all of these."""
    centre, middle = (left + right - width) / 2, (top + bottom - height) / 2
    above, below, inside = top - height, bottom, bottom - height
    before, after, flush = left - width, right, right - width
    corners = [(left, above), (flush, above), (left, top), (left, below), (flush, below), (flush, top), (after, top)]
    sides = [(before, top), (centre, above), (centre, below), (left, inside), (flush, inside), (after, inside)]
    rest = [(before, inside), (after, middle), (before, middle), (centre, top), (centre, inside), (left, middle)]
    return np.array(
        [*corners, *sides, *rest, (flush, middle), (before, above), (after, above), (before, below), (after, below)]
    )


def _areas(boxes: AnyArray) -> AnyArray:
    areas: AnyArray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _overlaps(places: AnyArray, others: AnyArray) -> AnyArray:
    """[m]: pixels that each place [m, 4] shares with all of the others [k, 4]."""
    low = np.maximum(places[:, None, :2], others[None, :, :2])
    high = np.minimum(places[:, None, 2:], others[None, :, 2:])
    shared: AnyArray = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return shared


@contextlib.contextmanager
def video_writer(target: Path, fps: float) -> Iterator[Callable[[Image], None]]:
    """What adds a frame (uint8 [H, W, 3] BGR, all of one size) to the video `target` (.mp4), which appears when the block ends
    without an error. Raises OutputError, OutputFailure where not all of it could be written: OpenCV does not say so."""
    import cv2

    writer: Any = None
    count = 0
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(target))

        def add(frame: Image) -> None:
            nonlocal writer, count
            if writer is None:
                size_wh = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*_CODEC), fps, size_wh)
                stack.callback(writer.release)
                if not writer.isOpened():
                    raise OutputError(f"can't write the video {target}: this OpenCV has no {_CODEC} encoder.")
            writer.write(np.ascontiguousarray(frame))
            count += 1

        yield add
        if writer is not None:
            writer.release()
            written = cv2.VideoCapture(str(temporary))
            if not written.isOpened() or written.get(cv2.CAP_PROP_FRAME_COUNT) < count:
                raise OutputFailure(f"can't write the video {target}: it broke off. Is there room on the disk?")


def overlay_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """Where the drawing of each file goes: one name per file in `folder`, numbered where two files share a name.

    Raises OutputError for a drawing that would replace the file it is drawn from.
    """
    taken: Counter[str] = Counter()
    paths: list[Path] = []
    for file in files:
        suffix = file.suffix.lower()
        suffix = ".mp4" if is_video(file) else suffix if suffix in _KEPT_SUFFIXES else ".png"
        wanted = name = f"{file.stem}{suffix}"
        while name in taken:
            taken[wanted] += 1
            name = f"{file.stem}-{taken[wanted]}{suffix}"
        taken[name] = 1
        paths.append(folder / name)
    inputs = {file.resolve() for file in files}
    replaced = [overlay for overlay in paths if overlay.resolve() in inputs]
    if replaced:
        raise OutputError(f"the overlay {replaced[0]} would replace the file it is drawn from. Give another folder.")
    return paths


def make_overlay_folder(folder: Path) -> None:
    """Raises OutputError where `folder` is a file, or can't be made."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"can't write overlays to {folder}: it is a file. Give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"can't write overlays to {folder}: {exc.strerror or exc}.") from exc


def check_not_there(overlays: Sequence[Path | None]) -> None:
    """Raise OutputError where a drawing is there already: another folder has to be chosen, or overwriting asked for."""
    there = [overlay for overlay in overlays if overlay is not None and os.path.lexists(overlay)]
    if there:
        others = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise OutputError(
            f"the overlay {there[0]} is there already{others}. Give another folder (--output), or replace it (--overwrite)."
        )
