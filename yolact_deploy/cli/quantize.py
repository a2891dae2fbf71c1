"""`yolact-deploy quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.artifacts.names import LowPrecision
from yolact_deploy.cli.console import (
    AnnotationsOption,
    AutoOption,
    CalibCacheOption,
    CalibOption,
    CalibratorOption,
    CpuPrecisionOption,
    DebugOption,
    ImagesOption,
    IoPrecisionOption,
    JsonOption,
    KeepFp16Option,
    LimitOption,
    MaxApDropOption,
    OnnxRuntimeOption,
    SensitivityOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
)


@reports_errors
def quantize(
    model: Annotated[Path, typer.Argument(help="A float32 ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The typed ONNX to write.")],
    precision: Annotated[LowPrecision, typer.Option(help="fp16, or int8 for the convolutions.")] = "int8",
    calib: CalibOption = None,
    calibrator: CalibratorOption = "entropy",
    calib_cache: CalibCacheOption = None,
    keep_fp16: KeepFp16Option = None,
    io_precision: IoPrecisionOption = "fp32",
    max_ap_drop: MaxApDropOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    limit: LimitOption = None,
    auto: AutoOption = False,
    sensitivity: SensitivityOption = False,
    runtime: OnnxRuntimeOption = "auto",
    cpu_precision: CpuPrecisionOption = "f32",
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a float32 ONNX in FP16 or INT8, and measure what that costs."""
    import exporters
    from yolact_deploy.reports.precision import precision_tables

    with progress_bar() as progress:
        result = exporters.quantize(
            model,
            output,
            precision=precision,
            calib=calib,
            calibrator=calibrator,
            calib_cache=calib_cache,
            keep_fp16=keep_fp16 or (),
            io_precision=io_precision,
            max_ap_drop=max_ap_drop,
            annotations=annotations,
            images=images,
            limit=limit,
            auto=auto,
            sensitivity=sensitivity,
            runtime=runtime,
            cpu_precision=cpu_precision,
            progress=progress,
        )
    report = result.to_dict()
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    if json_output:
        print_json(report)
        return
    print_tables(precision_tables(report))
