"""`yolact-deploy detect`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from yolact_deploy.cli.console import (
    ArtifactArgument,
    CpuPrecisionOption,
    DebugOption,
    DeviceOption,
    GpuPrecisionOption,
    JsonObject,
    JsonOption,
    MaxPixelsOption,
    NmsOption,
    OnnxRuntimeOption,
    ThreadsOption,
    end_in_words,
    print_line,
    progress_bar,
    reports_errors,
    say,
    say_notes,
)
from yolact_deploy.reference.image_headers import MAX_PIXELS
from yolact_deploy.text import counted

if TYPE_CHECKING:
    from yolact_deploy.detection_run import DetectReport, FileSummary


@reports_errors
def detect(
    artifact: ArtifactArgument,
    images: Annotated[
        list[str], typer.Argument(help='Images, videos, folders, or patterns in quotes ("photos/**/*.jpg").')
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the overlays.")] = Path("detections"),
    overlays: Annotated[bool, typer.Option(help="Draw the detections.")] = True,
    coco: Annotated[Path | None, typer.Option(help="Write the detections as a COCO results file.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Go into the folders within folders as well.")] = False,
    classes: Annotated[
        str | None, typer.Option(help="Only these classes, by name or category id, as person,car.")
    ] = None,
    image_ids: Annotated[
        Path | None, typer.Option(help="The images of this COCO annotation file, with its ids; IMAGES is their folder.")
    ] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Only detections with a higher score.")] = 0.15,
    top_k: Annotated[int, typer.Option(min=1, help="At most so many detections per image, the best ones.")] = 15,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    runtime: OnnxRuntimeOption = "auto",
    cpu_precision: CpuPrecisionOption = "f32",
    gpu_precision: GpuPrecisionOption = "fp32",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace overlays that are there; begin a broken-off run again.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was broken off.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Detect in images, folders and videos; draw overlays, write COCO JSON."""
    from yolact_deploy.file_detection import detect_files

    listed = JsonObject("images") if json_output else None
    lines = None if json_output else _Lines()
    broken_off: list[DetectReport] = []
    try:
        with progress_bar(beside_lines=lines is not None) as progress:

            def tell(done: int, total: int) -> None:
                if lines is not None:
                    lines.begin()
                progress("detect", done, total)

            report = detect_files(
                artifact,
                images,
                overlays=output if overlays else None,
                coco=coco,
                recursive=recursive,
                classes=classes,
                image_ids=image_ids,
                score_threshold=score_threshold,
                top_k=top_k,
                nms=nms,
                device=device,
                runtime=runtime,
                cpu_precision=cpu_precision,
                gpu_precision=gpu_precision,
                threads=threads,
                max_pixels=max_pixels,
                overwrite=overwrite,
                resume=resume,
                on_listed=listed.add if listed is not None else None,
                on_file=lines.add if lines is not None else None,
                on_broken_off=broken_off.append,
                progress=tell,
            )
    except BaseException as exc:
        if not broken_off:
            raise
        _end_early(broken_off[0], exc, listed, debug=debug)
    if listed is not None:
        listed.end(report.to_dict())
    if lines is not None:
        lines.end()
    say_notes(report.notes, report.fallback)
    for error in report.failures.values():
        say(f"error: {error}")
    count = len(report.files) + len(report.failures)
    if report.failures and count > 1:
        say(f"{len(report.failures)} of {count} files failed{'; the others are done' if report.files else ''}.")
    if report.failures:
        raise typer.Exit(1 if report.files else 2)


class _Lines:
    """A line on stdout for each file when it is done, and one for all of them. The time of a file is what passed since the one
    before it was done, so that they add up: reading, the network, drawing and writing, as far as these wait for each other."""

    def __init__(self) -> None:
        self._summaries: list[FileSummary] = []
        self._unread: BrokenPipeError | None = None
        self._begun = self._last = 0.0

    def begin(self) -> None:
        """A file begins; the first time counts, before which the model was opened."""
        if self._begun == 0.0:
            self._begun = self._last = time.perf_counter()

    def add(self, summary: FileSummary) -> None:
        """A file is done. Where nobody reads the lines any more, the work goes on all the same."""
        now = time.perf_counter()
        self._summaries.append(summary)
        self._print(_file_line(summary, now - self._last))
        self._last = now

    def end(self) -> None:
        """All are done. Raises BrokenPipeError where nobody read to the end."""
        if self._summaries:
            self._print(_total_line(self._summaries, self._last - self._begun))
        if self._unread is not None:
            raise self._unread

    def _print(self, line: str) -> None:
        if self._unread is None:
            try:
                print_line(line)
            except BrokenPipeError as exc:
                self._unread = exc


def _file_line(summary: FileSummary, seconds: float) -> str:
    """What `detect` found in an image or a video, by class, and in how long."""
    height, width = summary.image_hw
    found = ", ".join(f"{count} {name}" for name, count in summary.counts.items()) or "nothing"
    ms = f"{1e3 * seconds / (summary.frames or 1):.1f} ms"
    frames = "" if summary.frames is None else f"{summary.frames} frames, "
    return f"{summary.file}: {found}; {width}x{height}, {frames}{ms}{' each' if frames else ''}"


def _total_line(summaries: Sequence[FileSummary], seconds: float) -> str:
    """How much `detect` found in all, and how fast: with reading, drawing and writing."""
    images = sum(1 if summary.frames is None else summary.frames for summary in summaries)
    objects = sum(sum(summary.counts.values()) for summary in summaries)
    folders = sorted({str(Path(summary.overlay).parent) for summary in summaries if summary.overlay is not None})
    drawn = f"; drawn into {', '.join(folders)}" if folders else ""
    return (
        f"{counted(images, 'image')}, {counted(objects, 'object')} in {seconds:.1f} s: "
        f"{images / seconds:.1f} images/s{drawn}"
    )


def _end_early(report: DetectReport, exc: BaseException, listed: JsonObject | None, *, debug: bool) -> NoReturn:
    run = report.broken_off
    assert run is not None
    say(f"{run.done} of {run.of} files are done.")
    if run.coco is not None:
        say(f"What was found in them is in {run.coco}.")
    if run.trouble is not None:
        say(f"What was found in them could not be written: {run.trouble}")
    if run.journal is not None:
        say(f"{run.journal} holds all of it. Go on with the same command and --resume.")
    else:
        say(
            "Of a run with --coco or overlays there is a journal, from which --resume goes on; there is none of this one."
        )
    answer = None if listed is None else (lambda error: listed.end({**report.to_dict(), **error}))
    end_in_words(exc, debug=debug, answer=answer)
