"""Commands that run models: detect, eval, bench."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from yolact_deploy.cli.console import (
    INTERRUPTED,
    print_json,
    print_json_with,
    print_table,
    progress_bar,
    reports_errors,
    say,
)
from yolact_deploy.cli.options import (
    ArtifactArgument,
    DebugOption,
    DeviceOption,
    JsonOption,
    NmsOption,
    ThreadsOption,
)
from yolact_deploy.errors import one_line

Scenario = Literal["single-stream", "offline", "server"]


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
                nms=nms.value if nms else None,
                device=device,
                threads=threads,
                on_result=(lambda result: found.add(result.to_dict(), result.number)) if json_output else None,
                on_failure=lambda number, _: found.take_back(number),
                progress=lambda done, total: progress("detect", done, total),
            )
        found.close()
        if json_output:
            print_json_with("images", file, report.to_dict())
        elif report.files:
            print_table(detect_table(report))
    for note in report.notes:
        say(f"note: {one_line(note)}")
    for error in report.failures.values():
        say(f"error: {error}")
    count = len(report.files) + len(report.failures)
    if report.failures and count > 1:
        say(f"{len(report.failures)} of {count} files failed{'; the others are done' if report.files else ''}.")
    if report.failures:
        raise typer.Exit(1 if report.files else 2)


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
    from yolact_deploy.reports.tables import eval_table

    with progress_bar() as progress:
        report = evaluate(
            artifact,
            images,
            annotations,
            limit=limit,
            nms=nms.value if nms else None,
            device=device,
            threads=threads,
            progress=lambda done, total: progress("eval", done, total),
            on_doubt=lambda doubt: say(f"warning: {doubt}"),
            on_note=lambda note: say(f"note: {one_line(note)}"),
        )
    if json_output:
        print_json(report)
    else:
        print_table(eval_table(report))


@reports_errors
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported .onnx files or plans, timed in turns.")],
    images: Annotated[Path | None, typer.Option(help="Image or folder to rotate. Default: one made up.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per iteration.")] = 1,
    iterations: Annotated[int | None, typer.Option(min=1, help="Timed iterations. Default: 50, or --seconds.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Time so long; with --iterations, at most.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Iterations before. Default: until times settle.")] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Masks are made above it.")] = 0.0,
    streams: Annotated[int | None, typer.Option(min=1, help="Also images per second through so many streams.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also vary batch, detections and image size.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also time the network module by module.")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Also time PyTorch and the bare engine.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="The .pth of the first artifact, for --peers.")] = None,
    scenario: Annotated[Scenario | None, typer.Option(help="Also run MLPerf's LoadGen.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier --json to compare with; exit 1 if slower.")] = None,
    max_regression: Annotated[str, typer.Option(help="How much slower than the baseline is allowed.")] = "5%",
    allow_other_machine: Annotated[
        bool, typer.Option("--allow-other-machine", help="Compare with a baseline of another machine.")
    ] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Keep every time in the JSON: the best baseline.")] = False,
    report_file: Annotated[Path | None, typer.Option("--report", help="Write a page (.html) as well.")] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Replay frames on a GPU.")] = True,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure latency, end to end and per stage; compare with peers and with an earlier time."""
    import benchmarks
    from yolact_deploy.reports.bench import bench_tables

    with progress_bar() as progress:
        report = benchmarks.bench(
            artifacts,
            images=images,
            batch=batch,
            iterations=iterations,
            seconds=seconds,
            warmup=warmup,
            score_threshold=score_threshold,
            streams=streams,
            sweep=sweep,
            layers=layers,
            peers=peers,
            checkpoint=checkpoint,
            scenario=scenario,
            baseline=baseline,
            max_regression=max_regression,
            allow_other_machine=allow_other_machine,
            samples=samples,
            report=report_file,
            device=device,
            threads=threads,
            cuda_graph=cuda_graph,
            progress=progress,
        )
    if json_output:
        print_json(report)
    else:
        for table in bench_tables(report):
            print_table(table)
    for note in report["notes"]:
        say(f"note: {note}")
    if report["interrupted"]:
        raise typer.Exit(INTERRUPTED)
    if benchmarks.regressed(report):
        raise typer.Exit(1)
