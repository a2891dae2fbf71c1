"""`yolact-deploy compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.artifacts.names import OnnxRuntimeChoice
from yolact_deploy.cli.console import (
    AnnotationsOption,
    ConfigOption,
    CpuPrecisionOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    MaxPixelsOption,
    OnnxRuntimeOption,
    SpecOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
)
from yolact_deploy.reference.image_headers import MAX_PIXELS


@reports_errors
def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint or an ONNX of any precision; the reference.")],
    b: Annotated[Path, typer.Argument(help="What is compared with it.")],
    images: Annotated[Path, typer.Option(help="Image or folder to compare on.")],
    annotations: AnnotationsOption = None,
    config: ConfigOption = None,
    spec: SpecOption = None,
    score_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Only detections with a higher score are compared.")
    ] = 0.15,
    html: Annotated[Path | None, typer.Option(help="Write a page with the worst images side by side.")] = None,
    device: DeviceOption = "auto",
    runtime: OnnxRuntimeOption = "auto",
    runtime_b: Annotated[OnnxRuntimeChoice | None, typer.Option(help="What runs B, if not what runs A.")] = None,
    cpu_precision: CpuPrecisionOption = "f32",
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare what every module gives: where do the two part?")
    ] = False,
    save_inputs: Annotated[
        Path | None, typer.Option(help="With --layers: write the first image's input for Polygraphy.")
    ] = None,
    save_outputs: Annotated[
        Path | None, typer.Option(help="With --layers: write what modules gave for it, for Polygraphy.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare two artifacts on real images: tensors, detections, masks, AP."""
    import exporters
    from yolact_deploy.reports.precision import compare_tables

    with progress_bar() as progress:
        result = exporters.compare(
            a,
            b,
            images,
            annotations=annotations,
            config=config,
            spec=spec,
            score_threshold=score_threshold,
            html=html,
            device=device,
            runtime=runtime,
            runtime_b=runtime_b,
            cpu_precision=cpu_precision,
            max_pixels=max_pixels,
            layers=layers,
            save_inputs=save_inputs,
            save_outputs=save_outputs,
            progress=lambda done, total: progress("compare", done, total),
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
    else:
        print_tables(compare_tables(report))
    if result.verdict is not None:
        say(f"error: {result.verdict}")
    if result.skipped or not result.passed:
        raise typer.Exit(1)
