"""Commands that run models: detect, eval, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.options import (
    ArtifactArgument,
    DebugOption,
    DeviceOption,
    JsonOption,
    NmsOption,
    ThreadsOption,
)
from yolact_deploy.console import print_json, print_table, progress_bar, reports_errors, say


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
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Detect in images, folders and videos; draw overlays, write COCO JSON."""
    from yolact_deploy.detect_files import DetectOptions, detect_files
    from yolact_deploy.files import check_writable, write_json
    from yolact_deploy.overlays import check_can_draw
    from yolact_deploy.reports import detect_table
    from yolact_deploy.runtime.detector import Detector
    from yolact_deploy.runtime.images import list_images

    files = list_images(images, videos=True)
    if overlays:
        check_can_draw()
    if coco is not None:
        check_writable(coco)
    detector = Detector(artifact, device=device, threads=threads, nms=nms.value if nms else None)
    options = DetectOptions(score_threshold, top_k, output if overlays else None)
    with progress_bar() as progress:
        report = detect_files(detector, files, options, lambda step, total: progress("detect", step, total))
    if coco is not None:
        write_json(coco, report.to_coco())
    if json_output:
        print_json(report.to_dict())
    elif report.results:
        print_table(detect_table(report))
    for error in report.failures.values():
        say(f"error: {error}")
    if report.failures and len(files) > 1:
        say(f"{len(report.failures)} of {len(files)} files failed{'; the others are done' if report.results else ''}.")
    if report.failures:
        raise typer.Exit(1 if report.results else 2)


@reports_errors
def evaluate_ap(
    artifact: ArtifactArgument,
    images: Annotated[Path, typer.Option(help="Folder of the annotated images.")],
    annotations: Annotated[Path, typer.Option(help="COCO instance annotations (JSON).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, by id.")] = None,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure COCO box and mask AP."""
    from yolact_deploy.evaluation import evaluate
    from yolact_deploy.reports import eval_table
    from yolact_deploy.runtime.detector import Detector

    detector = Detector(artifact, device=device, threads=threads, nms=nms.value if nms else None)
    with progress_bar() as progress:
        report = evaluate(
            detector, images, annotations, limit=limit, progress=lambda step, total: progress("eval", step, total)
        )
    if json_output:
        print_json(report)
    else:
        print_table(eval_table(report))


@reports_errors
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported .onnx files, timed in turns.")],
    images: Annotated[Path | None, typer.Option(help="Image or folder to rotate. Default: one made up.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per iteration.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Timed iterations.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations before them.")] = 5,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Masks are made above it.")] = 0.0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure latency, end to end and per stage."""
    from benchmarks.inputs import bench_images
    from benchmarks.latency import bench as run_bench
    from yolact_deploy.reports import bench_tables
    from yolact_deploy.runtime.detector import Detector

    inputs = bench_images(images)
    detectors = [Detector(path, device=device, threads=threads, batch_size=batch) for path in artifacts]
    with progress_bar() as progress:
        report = run_bench(
            detectors,
            inputs,
            batch=batch,
            iterations=iterations,
            warmup=warmup,
            score_threshold=score_threshold,
            progress=lambda step, total: progress("bench", step, total),
        )
    if json_output:
        print_json(report)
    else:
        for table in bench_tables(report):
            print_table(table)
