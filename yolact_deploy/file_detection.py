"""`yolact-deploy detect`: detections of many files, where one bad file does not stop the rest."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import StepProgress
from yolact_deploy.errors import ImageError, OutputError
from yolact_deploy.files import JsonArray, atomic_path, check_writable
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.drawing import video_writer, write_image
from yolact_deploy.reference.images import MAX_PIXELS, check_max_pixels, is_video, list_images, open_video, read_image
from yolact_deploy.runtime.detector import Detector, detector_for_many
from yolact_deploy.spec import NmsMode

PathLike = str | os.PathLike[str]

_KEPT_SUFFIXES = (".jpg", ".jpeg", ".png")  # an overlay of another format is written as PNG
_COCO_KEYS = ("image_id", "category_id", "bbox", "segmentation", "score")


@dataclass(frozen=True)
class FileResult:
    """What was found in one image, or in one frame of a video."""

    number: int  # of the file, counted from 0
    file: str
    image_id: int
    detections: Detections  # best first, by the masks' scores
    overlay: str | None = None
    frame: int | None = None  # of a video, counted from 1

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """COCO entries with class names; their run lengths are made when they are first asked for."""
        names = self.detections.listed().class_names
        entries = self.detections.to_coco(self.image_id)
        return [{**entry, "class_name": name} for entry, name in zip(entries, names, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """An entry of "images" in the JSON of `detect --json`."""
        height, width = self.detections.image_hw
        content = {
            "file": self.file,
            "image_id": self.image_id,
            "width": width,
            "height": height,
            "detections": self.entries,
            "overlay": self.overlay,
            "frame": self.frame,
        }
        return {key: value for key, value in content.items() if value is not None}


@dataclass(frozen=True)
class FileSummary:
    """An image, or a whole video."""

    file: str
    image_hw: tuple[int, int]
    counts: dict[str, int]  # of detections by class name
    overlay: str | None
    frames: int | None  # None for an image


@dataclass(frozen=True)
class DetectReport:
    """What `detect_files` did; what it found went to `coco`, to the overlays and to `on_result`."""

    files: list[FileSummary]  # without those that failed
    failures: dict[str, str]  # file -> why
    backend: str
    fallback: str | None  # why the CPU was taken, where device "auto" took it
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `detect --json` without its "images"."""
        return {
            "failed": [{"file": file, "error": error} for file, error in self.failures.items()],
            "backend": self.backend,
            "fallback": self.fallback,
        }


def detect_files(
    artifact: PathLike | Detector,
    inputs: Sequence[PathLike],
    *,
    overlays: PathLike | None = None,
    coco: PathLike | None = None,
    score_threshold: float = 0.15,
    top_k: int = 15,
    nms: NmsMode | None = None,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_result: Callable[[FileResult], None] | None = None,
    on_failure: Callable[[int, str], None] | None = None,
    progress: StepProgress | None = None,
) -> DetectReport:
    """Detect in image files, videos and folders of them, in their order.

    `overlays` is a folder for the drawn images and videos; `coco` a file for the detections as a COCO results list, whose
    image_id is the number in the file's name (000000000139.jpg) where every file is an image with a number of its own; else
    images and frames are counted from 1. Of each image the best `top_k` detections above `score_threshold` count. `nms`,
    `device` and `threads` are those of `Detector`, and those of a Detector that is given instead of a file. Images and frames
    of more than `max_pixels` are not read.

    Images are read ahead in a thread and go through `Detector.stream`; nothing is kept of one once it is done.
    `on_result` is given each, in order; masks and run lengths that nobody asks for are not made. A file that can't be read is
    put among the failures, and `on_failure(number, why)` is told; what was found in a video up to its break counts for nothing.
    `progress(done, total)` counts files.

    Raises ImageError for an input that does not exist, OutputError when overlays or `coco` can't be written, or would replace a
    file that is to be read, and what `Detector` raises.

    >>> report = detect_files("model.onnx", ["image.jpg", "annotations.json"], score_threshold=0.0)
    >>> [summary.file for summary in report.files], list(report.failures)
    (['image.jpg'], ['annotations.json'])
    """
    check_max_pixels(max_pixels)
    files = list_images(inputs, videos=True)
    if coco is not None:
        check_writable(coco)
    with contextlib.ExitStack() as stack:
        detector, batch_size = stack.enter_context(
            detector_for_many(artifact, device=device, threads=threads, nms=nms, max_pixels=max_pixels)
        )
        targets = _overlay_paths(files, None if overlays is None else Path(overlays))
        listed = None if coco is None else stack.enter_context(_json_file(coco))

        def report(result: FileResult) -> None:
            if listed is not None:
                for entry in result.entries:
                    listed.add({key: entry[key] for key in _COCO_KEYS}, group=result.number)
            if on_result is not None:
                on_result(result)

        read: deque[_SourceImage | _EndOfFile] = deque()
        found = detector.stream(
            _images(files, read, max_pixels),
            prefetch=max(2, batch_size or 1),
            batch_size=batch_size,
            score_threshold=score_threshold,
            masks="rle" if overlays is None else "bits",
        )
        frames = _frames(found, read, lambda detections: _best(detections, score_threshold, top_k))
        summaries: list[FileSummary] = []
        failures: dict[str, str] = {}
        numbers, next_id = _numbers(files), 1
        for number, file in enumerate(files):
            if progress is not None:
                progress(number, len(files))
            task = _FileTask(number, file, targets[number], numbers[number] if numbers else next_id)
            try:
                summary = _detect_in_file(task, frames, report, keep_masks=on_result is not None or coco is not None)
            except ImageError as exc:
                failures[str(file)] = str(exc)
                next_id += 1
                if listed is not None:
                    listed.remove_group(number)
                if on_failure is not None:
                    on_failure(number, str(exc))
            else:
                summaries.append(summary)
                next_id += summary.frames or 1
        if progress is not None:
            progress(len(files), len(files))
        return DetectReport(summaries, failures, detector.description, detector.fallback, detector.notes)


@contextlib.contextmanager
def _json_file(path: PathLike) -> Iterator[JsonArray]:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        array = JsonArray(stream)
        yield array
        array.close()


@dataclass(frozen=True)
class _SourceImage:
    """An image that was handed to the Detector."""

    image: Image
    fps: float | None  # of a video


@dataclass(frozen=True)
class _EndOfFile:
    """No more images of a file, and why."""

    error: ImageError | None


def _images(files: Sequence[Path], read: deque[_SourceImage | _EndOfFile], max_pixels: int) -> Iterator[Image]:
    """The images of all files, for a thread that reads ahead; `read` tells of each, and where a file ends."""
    for file in files:
        error: ImageError | None = None
        try:
            if is_video(file):
                with open_video(file, max_pixels=max_pixels) as video:
                    for image in video.frames:
                        read.append(_SourceImage(image, video.fps))
                        yield image
            else:
                image = read_image(file, max_pixels=max_pixels)
                read.append(_SourceImage(image, None))
                yield image
        except ImageError as exc:
            error = exc
        read.append(_EndOfFile(error))


def _frames(
    found: Iterator[Detections], read: deque[_SourceImage | _EndOfFile], best: Callable[[Detections], Detections]
) -> Iterator[tuple[_SourceImage, Detections] | _EndOfFile]:
    """What was read, each image with what was found in it."""
    for detections in found:
        while isinstance(event := read.popleft(), _EndOfFile):
            yield event
        yield event, best(detections)
    yield from (event for event in read if isinstance(event, _EndOfFile))


def _best(detections: Detections, score_threshold: float, top_k: int) -> Detections:
    ranked = detections.by_mask_score()
    # A mask's own score may be below the threshold that its box has passed.
    return ranked.take(np.flatnonzero(ranked.scores >= np.float32(score_threshold))).top(top_k)


@dataclass(frozen=True)
class _FileTask:
    """A file to go through."""

    number: int
    file: Path
    overlay: Path | None
    first_id: int


def _detect_in_file(
    task: _FileTask,
    frames: Iterator[tuple[_SourceImage, Detections] | _EndOfFile],
    report: Callable[[FileResult], None],
    *,
    keep_masks: bool,  # as they are both drawn and listed
) -> FileSummary:
    """Go through one file's frames. Raises ImageError where it can't be read, or not to its end; there is no overlay then."""
    file, overlay = str(task.file), None if task.overlay is None else str(task.overlay)
    counts: Counter[str] = Counter()
    of_video: int | None = None  # the number of the frame
    image_hw = (0, 0)
    with contextlib.ExitStack() as stack:
        add_frame: Callable[[Image], None] | None = None
        for image_id, event in enumerate(frames, task.first_id):
            if isinstance(event, _EndOfFile):
                if event.error is not None:
                    raise event.error
                break
            read, detections = event
            if task.overlay is not None:
                detections = detections.assembled() if keep_masks else detections
                drawn = detections.plot(read.image)
                if read.fps is None:
                    write_image(task.overlay, drawn)
                else:
                    add_frame = add_frame or stack.enter_context(video_writer(task.overlay, read.fps))
                    add_frame(drawn)
            image_hw = detections.image_hw
            counts.update(detections.listed().class_names)
            of_video = None if read.fps is None else image_id - task.first_id + 1
            report(FileResult(task.number, file, image_id, detections, overlay, of_video))
    return FileSummary(file, image_hw, dict(counts), overlay, of_video)


def _numbers(files: Sequence[Path]) -> list[int] | None:
    """The numbers in the names of image files, if each has one that no other has."""
    if any(is_video(file) or not file.stem.isdecimal() for file in files):
        return None
    numbers = [int(file.stem) for file in files]
    return numbers if len(set(numbers)) == len(numbers) else None


def _overlay_paths(files: Sequence[Path], folder: Path | None) -> list[Path | None]:
    """One name per file in `folder`, numbered where two files share a name."""
    if folder is None:
        return [None] * len(files)
    taken: set[str] = set()
    paths: list[Path | None] = []
    for file in files:
        suffix = file.suffix.lower()
        suffix = ".mp4" if is_video(file) else suffix if suffix in _KEPT_SUFFIXES else ".png"
        name, number = f"{file.stem}{suffix}", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}{suffix}"
        taken.add(name)
        paths.append(folder / name)
    _make_folder(folder)
    _check_inputs_stay(files, paths)
    return paths


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"can't write overlays to {folder}: it is a file. Give a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"can't write overlays to {folder}: {exc.strerror or exc}.") from exc


def _check_inputs_stay(files: Sequence[Path], overlays: Sequence[Path | None]) -> None:
    inputs = {file.resolve() for file in files}
    replaced = [overlay for overlay in overlays if overlay is not None and overlay.resolve() in inputs]
    if replaced:
        raise OutputError(f"the overlay {replaced[0]} would replace the file it is drawn from. Give another folder.")
