"""`yolact-deploy eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.console import (
    ArtifactArgument,
    CpuPrecisionOption,
    DebugOption,
    DeviceOption,
    GpuPrecisionOption,
    JsonOption,
    MaxPixelsOption,
    NmsOption,
    OnnxRuntimeOption,
    ThreadsOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
    say_notes,
)
from yolact_deploy.reference.image_headers import MAX_PIXELS


@reports_errors
def evaluate(
    artifact: ArtifactArgument,
    images: Annotated[Path, typer.Option(help="Folder of the annotated images.")],
    annotations: Annotated[Path, typer.Option(help="COCO instance annotations (JSON).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, by id.")] = None,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    runtime: OnnxRuntimeOption = "auto",
    cpu_precision: CpuPrecisionOption = "f32",
    gpu_precision: GpuPrecisionOption = "fp32",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure COCO box and mask AP."""
    from yolact_deploy.evaluation import evaluate as measure
    from yolact_deploy.reports.tables import eval_table

    notes: list[str] = []
    with progress_bar() as progress:
        report = measure(
            artifact,
            images,
            annotations,
            limit=limit,
            nms=nms,
            device=device,
            runtime=runtime,
            cpu_precision=cpu_precision,
            gpu_precision=gpu_precision,
            threads=threads,
            max_pixels=max_pixels,
            progress=lambda done, total: progress("eval", done, total),
            on_doubt=lambda doubt: say(f"warning: {doubt}"),
            on_note=notes.append,
        )
    if json_output:
        print_json(report)
    else:
        print_tables([eval_table(report)])
    say_notes(notes, report["fallback"])
