"""`yolact-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.artifacts.names import Scenario
from yolact_deploy.cli.console import (
    INTERRUPTED,
    CpuPrecisionOption,
    DebugOption,
    DeviceOption,
    GpuPrecisionOption,
    JsonOption,
    MaxPixelsOption,
    OnnxRuntimeOption,
    ThreadsOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
)
from yolact_deploy.reference.image_headers import MAX_PIXELS


@reports_errors
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported .onnx files or plans, timed in turns.")],
    images: Annotated[
        Path | None, typer.Option(help="Image, or folder whose images take turns. Default: a made-up one.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per iteration.")] = 1,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="How many iterations are timed. Default: 50, or as --seconds says.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time for so many seconds; with --iterations, at most so long.")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Iterations before those that count. Default: until times settle.")
    ] = None,
    score_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Only detections with a higher score get masks.")
    ] = 0.0,
    streams: Annotated[
        int | None, typer.Option(min=1, help="Also measure images per second with so many Detectors at once.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also time other batches, numbers of detections and image sizes.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also time the network module by module.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also time the same network in PyTorch and in the bare engine.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="The .pth of the first artifact, for --peers.")] = None,
    scenario: Annotated[Scenario | None, typer.Option(help="Also run MLPerf's LoadGen.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="What --json printed earlier, to compare with; exit code 1 if slower.")
    ] = None,
    max_regression: Annotated[str, typer.Option(help="How much slower than the baseline is allowed.")] = "5%",
    allow_other_machine: Annotated[
        bool, typer.Option("--allow-other-machine", help="Compare with a baseline of another machine.")
    ] = False,
    samples: Annotated[bool, typer.Option("--samples", help="Keep every time in the JSON: the best baseline.")] = False,
    report_file: Annotated[Path | None, typer.Option("--report", help="Write a page (.html) as well.")] = None,
    device: DeviceOption = "auto",
    runtime: OnnxRuntimeOption = "auto",
    cpu_precision: CpuPrecisionOption = "f32",
    gpu_precision: GpuPrecisionOption = "fp32",
    threads: ThreadsOption = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Replay recorded CUDA graphs on a GPU.")
    ] = True,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
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
            runtime=runtime,
            cpu_precision=cpu_precision,
            gpu_precision=gpu_precision,
            threads=threads,
            cuda_graph=cuda_graph,
            max_pixels=max_pixels,
            progress=progress,
        )
    if json_output:
        print_json(report)
    else:
        print_tables(bench_tables(report))
    for note in report["notes"]:
        say(f"note: {note}")
    if report["interrupted"]:
        raise typer.Exit(INTERRUPTED)
    if benchmarks.regressed(report):
        raise typer.Exit(1)
