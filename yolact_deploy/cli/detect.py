"""`yolact-deploy detect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.console import (
    ArtifactArgument,
    DebugOption,
    DeviceOption,
    JsonOption,
    MaxPixelsOption,
    NmsOption,
    ThreadsOption,
    print_json_with,
    print_tables,
    progress_bar,
    reports_errors,
    say,
    say_notes,
)
from yolact_deploy.reference.image_headers import MAX_PIXELS


@reports_errors
def detect(
    artifact: ArtifactArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, video files or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the overlays.")] = Path("detections"),
    overlays: Annotated[bool, typer.Option(help="Draw the detections.")] = True,
    coco: Annotated[Path | None, typer.Option(help="Write the detections as a COCO results file.")] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Scores must be above it.")] = 0.15,
    top_k: Annotated[int, typer.Option(min=1, help="The best so many per image.")] = 15,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Detect in images, folders and videos; draw overlays, write COCO JSON."""
    from yolact_deploy.file_detection import detect_files
    from yolact_deploy.files import JsonArray
    from yolact_deploy.reports.tables import detect_table

    with tempfile.TemporaryFile() as file:  # what a long video gives is kept there until it is known to be whole
        found = JsonArray(file, depth=1)
        with progress_bar() as progress:
            report = detect_files(
                artifact,
                images,
                overlays=output if overlays else None,
                coco=coco,
                score_threshold=score_threshold,
                top_k=top_k,
                nms=nms,
                device=device,
                threads=threads,
                max_pixels=max_pixels,
                on_result=(lambda result: found.add(result.to_dict(), result.number)) if json_output else None,
                on_failure=lambda number, _: found.remove_group(number),
                progress=lambda done, total: progress("detect", done, total),
            )
        found.close()
        if json_output:
            print_json_with("images", file, report.to_dict())
        elif report.files:
            print_tables([detect_table(report)])
    say_notes(report.notes, report.fallback)
    for error in report.failures.values():
        say(f"error: {error}")
    count = len(report.files) + len(report.failures)
    if report.failures and count > 1:
        say(f"{len(report.failures)} of {count} files failed{'; the others are done' if report.files else ''}.")
    if report.failures:
        raise typer.Exit(1 if report.files else 2)
