"""`yolact-deploy detect`: detections of many files, where one bad file does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import ImageError, OutputError
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import VIDEO_SUFFIXES, read_image
from yolact_deploy.reports.overlays import annotate_video, draw, write_image
from yolact_deploy.runtime.detector import Detector

_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # an overlay of another format is written as PNG


@dataclass(frozen=True)
class DetectOptions:
    """What `detect` was asked for."""

    score_threshold: float = 0.15
    top_k: int = 15
    overlays: Path | None = None  # folder for the drawn images; None draws nothing


@dataclass(frozen=True)
class FileResult:
    """Detections of one image, or of one frame of a video, as COCO entries with class names."""

    file: str
    image_id: int
    width: int
    height: int
    detections: list[dict[str, Any]]
    overlay: str | None = None
    frame: int | None = None


@dataclass(frozen=True)
class DetectReport:
    """What `detect` found in all its files."""

    results: list[FileResult]
    failures: dict[str, str]  # file -> why

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `detect --json`."""
        return {
            "images": [{k: v for k, v in vars(result).items() if v is not None} for result in self.results],
            "failed": [{"file": file, "error": error} for file, error in self.failures.items()],
        }

    def to_coco(self) -> list[dict[str, Any]]:
        """A COCO results list: image_id is the number in the file's name (000000000139.jpg) where every file is an image
        with a number of its own; else images and frames are counted from 1."""
        keep = ("image_id", "category_id", "bbox", "segmentation", "score")
        return [{key: entry[key] for key in keep} for result in self.results for entry in result.detections]


def detect_files(
    detector: Detector,
    files: Sequence[Path],
    options: DetectOptions,
    progress: Callable[[int, int], None] | None = None,
) -> DetectReport:
    """Detect in every image and video; a file that can't be read is put among the failures.

    Raises OutputError when overlays can't be written at all, or would replace a file that is to be read.
    """
    numbers = _numbers(files)
    next_id = 1
    overlays = _overlay_paths(files, options.overlays)
    results: list[FileResult] = []
    failures: dict[str, str] = {}
    for index, file in enumerate(files):
        if progress is not None:
            progress(index, len(files))
        found: list[FileResult] = []
        try:
            if _is_video(file):
                found = _detect_video(detector, file, next_id, overlays[index], options)
            else:
                image_id = numbers[index] if numbers else next_id
                found = [_detect_image(detector, file, image_id, overlays[index], options)]
        except ImageError as exc:
            failures[str(file)] = str(exc)
        results += found
        next_id += max(1, len(found))
    if progress is not None:
        progress(len(files), len(files))
    return DetectReport(results, failures)


def _detect_image(
    detector: Detector, file: Path, image_id: int, overlay: Path | None, options: DetectOptions
) -> FileResult:
    image = read_image(file)
    detections = _detect(detector, image, options)
    if overlay is not None:
        write_image(overlay, draw(image, detections))
    return FileResult(
        file=str(file),
        image_id=image_id,
        width=image.shape[1],
        height=image.shape[0],
        detections=_entries(detections, image_id),
        overlay=None if overlay is None else str(overlay),
    )


def _detect_video(
    detector: Detector, file: Path, first_id: int, overlay: Path | None, options: DetectOptions
) -> list[FileResult]:
    results: list[FileResult] = []

    def on_frame(frame: Image) -> Image:
        detections = _detect(detector, frame, options)
        image_id = first_id + len(results)
        results.append(
            FileResult(
                file=str(file),
                image_id=image_id,
                width=frame.shape[1],
                height=frame.shape[0],
                detections=_entries(detections, image_id),
                overlay=None if overlay is None else str(overlay),
                frame=len(results) + 1,
            )
        )
        return frame if overlay is None else draw(frame, detections)

    annotate_video(file, overlay, on_frame)
    return results


def _detect(detector: Detector, image: Image, options: DetectOptions) -> Detections:
    ranked = detector(image, score_threshold=options.score_threshold).by_mask_score()
    # A mask's own score may be below the threshold that its box has passed.
    return ranked.take(np.flatnonzero(ranked.scores >= np.float32(options.score_threshold))).top(options.top_k)


def _entries(detections: Detections, image_id: int) -> list[dict[str, Any]]:
    names = dict(zip(detections.category_ids, detections.names, strict=True))
    return [{**entry, "class_name": names[entry["category_id"]]} for entry in detections.to_coco(image_id)]


def _numbers(files: Sequence[Path]) -> list[int] | None:
    """The numbers in the names of image files, if each has one that no other has."""
    if any(_is_video(file) or not file.stem.isdecimal() for file in files):
        return None
    numbers = [int(file.stem) for file in files]
    return numbers if len(set(numbers)) == len(numbers) else None


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def _overlay_paths(files: Sequence[Path], folder: Path | None) -> list[Path | None]:
    """One name per file in `folder`, numbered where two files share a name."""
    if folder is None:
        return [None] * len(files)
    taken: set[str] = set()
    paths: list[Path | None] = []
    for file in files:
        suffix = file.suffix.lower()
        suffix = ".mp4" if _is_video(file) else suffix if suffix in _KEPT_SUFFIXES else ".png"
        name, number = f"{file.stem}{suffix}", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}{suffix}"
        taken.add(name)
        paths.append(folder / name)
    _make_folder(folder)
    _spare_inputs(files, paths)
    return paths


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"can't write overlays to {folder}: it is a file. Give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"can't write overlays to {folder}: {exc.strerror or exc}.") from exc


def _spare_inputs(files: Sequence[Path], overlays: Sequence[Path | None]) -> None:
    inputs = {file.resolve() for file in files}
    replaced = [overlay for overlay in overlays if overlay is not None and overlay.resolve() in inputs]
    if replaced:
        raise OutputError(f"the overlay {replaced[0]} would replace the file it is drawn from. Give another folder.")
