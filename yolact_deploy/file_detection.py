"""`yolact-deploy detect`: detections of many files, where one bad file does not stop the rest."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.annotations import image_paths, read_image_ids
from yolact_deploy.arguments import (
    check_callables,
    check_counts,
    check_flags,
    check_paths,
    check_shares,
    check_sources,
    given,
)
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import CpuPrecision, GpuPrecision, OnnxRuntimeChoice, StepProgress
from yolact_deploy.detection_run import DetectReport, FileSummary, Journal, Run, journal_path
from yolact_deploy.errors import ImageError, OptionError
from yolact_deploy.files import check_writable
from yolact_deploy.reference.decoding import is_video, open_video
from yolact_deploy.reference.detections import Detections, find_classes
from yolact_deploy.reference.drawing import make_overlay_folder, overlay_paths, video_writer, write_image
from yolact_deploy.reference.images import MAX_PIXELS, check_max_pixels, list_images, read_image
from yolact_deploy.runtime.detector import Detector, detector_for_many
from yolact_deploy.spec import NmsMode

PathLike = str | os.PathLike[str]


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


def detect_files(
    artifact: PathLike | Detector,
    inputs: PathLike | Sequence[PathLike],
    *,
    overlays: PathLike | None = None,
    coco: PathLike | None = None,
    recursive: bool = False,
    classes: str | Sequence[str | int] | None = None,
    image_ids: PathLike | None = None,
    score_threshold: float = 0.15,
    top_k: int = 15,
    nms: NmsMode | None = None,
    device: str = "auto",
    runtime: OnnxRuntimeChoice = "auto",
    cpu_precision: CpuPrecision = "f32",
    gpu_precision: GpuPrecision = "fp32",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    resume: bool = False,
    on_result: Callable[[FileResult], None] | None = None,
    on_failure: Callable[[int, str], None] | None = None,
    on_file: Callable[[FileSummary], None] | None = None,
    on_listed: Callable[[dict[str, Any]], None] | None = None,
    on_broken_off: Callable[[DetectReport], None] | None = None,
    progress: StepProgress | None = None,
) -> DetectReport:
    """Detect in image files, videos, folders of them and patterns such as "photos/**/*.jpg", in their order.

    `overlays` is a folder for the drawn images and videos; those that are there already are replaced only with `overwrite`.
    `coco` is a file for the detections as a COCO results list, whose image_id is the number in the file's name
    (000000000139.jpg) where every file is an image with a number of its own; else images and frames are counted from 1. With
    `image_ids`, a COCO annotation file, the images and their ids are those that it lists, and `inputs` is the one folder that
    they lie in. `recursive` goes into the folders of folders.

    Of each image the best `top_k` detections above `score_threshold` count; with `classes` (names, or category ids; a text may
    hold several with commas between them) only those of these classes. `nms` and `device` to `threads` are those of `Detector`,
    and those of a Detector that is given instead of a file. Images and frames of more than `max_pixels` are not read.

    Images are read ahead in a thread and go through `Detector.stream`; nothing is kept of one when its turn is over.
    `on_result` is given each, in order; masks and run lengths that nobody asks for are not made. A file that can't be read is
    put among the failures, and `on_failure(number, why)` is told; what was found in a video up to its break counts for nothing.
    `on_file` is given a summary of each file that is done. `progress(done, total)` counts files. At the end `on_listed` is given
    `FileResult.to_dict()` of every image and frame.

    A run that is broken off (Ctrl-C, a full disk, any error) loses nothing of the files it is through with. They are in a
    journal beside `coco`, NAME.journal, or in the folder `overlays`, and `resume` goes on from there to what an unbroken run
    would have left, byte for byte; artifact, options and images have to be the same. Before the error goes on its way, the
    results so far are written beside `coco` as NAME.partial.json and given to `on_listed`, and `on_broken_off` is given a report.
    After a kill -9 there is the journal alone. A new run replaces a journal only with `overwrite`.

    Raises ImageError for an input that does not exist, AnnotationError for `image_ids` that do not go with the images,
    OptionError for arguments that make no sense, OutputError when overlays or `coco` can't be written, or would replace a file
    that is to be read, and for a `resume` of another run; and what `Detector` raises.

    >>> report = detect_files("model.onnx", ["image.jpg", "annotations.json"], score_threshold=0.0)
    >>> [summary.file for summary in report.files], list(report.failures)
    (['image.jpg'], ['annotations.json'])
    """
    check_flags(recursive=recursive, overwrite=overwrite, resume=resume)
    check_paths(**given(overlays=overlays, coco=coco, image_ids=image_ids))
    check_sources(inputs=inputs)
    check_shares(score_threshold=score_threshold)
    check_counts(top_k=top_k)
    check_max_pixels(max_pixels)
    check_callables(on_result=on_result, on_failure=on_failure, on_file=on_file, on_listed=on_listed)
    check_callables(on_broken_off=on_broken_off, progress=progress)
    if resume and (overwrite or (coco is None and overlays is None)):
        raise OptionError(
            "resume and overwrite contradict each other: give one of them."
            if overwrite
            else "resume goes on from the journal that lies beside the COCO file, or with the overlays: give one of them."
        )
    folder = None if overlays is None else Path(overlays)
    files, ids = _sources(inputs, image_ids, recursive=recursive, outside=folder)
    if coco is not None:
        check_writable(coco)
    with contextlib.ExitStack() as stack:
        detector, batch_size = stack.enter_context(
            detector_for_many(
                artifact,
                device=device,
                runtime=runtime,
                cpu_precision=cpu_precision,
                gpu_precision=gpu_precision,
                threads=threads,
                nms=nms,
                max_pixels=max_pixels,
            )
        )
        spec = detector.spec
        chosen = None if classes is None else find_classes(classes, spec.class_names, spec.category_ids)
        targets: Sequence[Path | None] = [None] * len(files)
        if folder is not None:
            make_overlay_folder(folder)
            targets = overlay_paths(files, folder)
        run = Run(detector, files, ids, targets, None if coco is None else Path(coco), on_listed, on_broken_off)
        if run.is_listed or folder is not None:
            options = {
                "score_threshold": float(score_threshold),
                "top_k": int(top_k),
                "classes": chosen,
                "overlays": str(folder),
            }
            run.journal = stack.enter_context(Journal(journal_path(run.coco, folder)))
            run.begin(options, resume=resume, overwrite=overwrite)

        def report(result: FileResult) -> None:
            run.add(result.to_dict)
            if on_result is not None:
                on_result(result)

        stream = functools.partial(
            detector.stream,
            prefetch=max(2, batch_size or 1),
            batch_size=batch_size,
            score_threshold=score_threshold,
            masks="rle" if folder is None else "bits",
        )
        frames = _stream_files(stream, files[run.done :], max_pixels)
        choose = functools.partial(_best, score_threshold=score_threshold, top_k=top_k, classes=chosen)
        keep_masks = on_result is not None or run.is_listed
        with run.kept():
            for number in range(run.done, len(files)):
                if progress is not None:
                    progress(number, len(files))
                try:
                    summary = _detect_in_file(
                        _FileTask(number, files[number], targets[number], run.first_id(number)),
                        frames,
                        choose,
                        report,
                        keep_masks=keep_masks,
                    )
                except ImageError as exc:
                    run.fail(str(exc))
                    if on_failure is not None:
                        on_failure(number, str(exc))
                else:
                    run.finish(summary)
                    if on_file is not None:
                        on_file(summary)
            if progress is not None:
                progress(len(files), len(files))
            run.write()
        return run.report()


def _sources(
    inputs: PathLike | Sequence[PathLike], image_ids: PathLike | None, *, recursive: bool, outside: Path | None
) -> tuple[list[Path], list[int] | None]:
    """The files, and their ids unless they are to be counted."""
    sources = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    if image_ids is None:
        files = list_images(sources, videos=True, recursive=recursive, outside=outside)
        return files, _numbers(files)
    if len(sources) != 1 or not os.path.isdir(sources[0]):  # noqa: PTH112 - False for any name, however long
        raise OptionError(
            f"with image_ids, give the one folder that the images of {image_ids} lie in, found {len(sources)} sources."
            if len(sources) != 1
            else f"with image_ids, {sources[0]} must be the folder of the images."
        )
    listed = read_image_ids(image_ids)
    return image_paths(listed.values(), Path(sources[0]), image_ids), list(listed)


def _best(detections: Detections, *, score_threshold: float, top_k: int, classes: Sequence[int] | None) -> Detections:
    ranked = detections.by_mask_score() if classes is None else detections.of_classes(classes).by_mask_score()
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
    choose: Callable[[Detections], Detections],
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
            read, detections = event[0], choose(event[1])
            if task.overlay is not None:
                detections = detections.assembled() if keep_masks else detections
                drawn = detections.plot(read.image, in_place=True)  # nobody looks at it again
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


@dataclass(frozen=True)
class _SourceImage:
    """An image of a file that was handed to the Detector."""

    image: Image
    fps: float | None  # of a video


@dataclass(frozen=True)
class _EndOfFile:
    """No more images of a file, and why."""

    error: ImageError | None


def _stream_files(
    stream: Callable[[Iterator[Image]], Iterator[Detections]],  # as `Detector.stream`
    files: Sequence[Path],
    max_pixels: int,
) -> Iterator[tuple[_SourceImage, Detections] | _EndOfFile]:
    """The images and frames of all files with what was found in them, and where each file ends: those that can't be read do at
    once, or half-way, with an error."""
    read: deque[_SourceImage | _EndOfFile] = deque()
    for detections in stream(_images_of(files, read, max_pixels)):
        while isinstance(event := read.popleft(), _EndOfFile):
            yield event
        yield event, detections
    yield from (event for event in read if isinstance(event, _EndOfFile))


def _images_of(files: Sequence[Path], read: deque[_SourceImage | _EndOfFile], max_pixels: int) -> Iterator[Image]:
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


def _numbers(files: Sequence[Path]) -> list[int] | None:
    """The numbers in the names of image files, if each has one that no other has."""
    if any(is_video(file) or not file.stem.isdecimal() for file in files):
        return None
    numbers = [int(file.stem) for file in files]
    return numbers if len(set(numbers)) == len(numbers) else None
