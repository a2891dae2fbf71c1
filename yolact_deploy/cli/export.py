"""`yolact-deploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.artifacts.names import ChannelOrder, DcnChoice, Precision
from yolact_deploy.cli.console import (
    AnnotationsOption,
    CalibCacheOption,
    CalibOption,
    CalibratorOption,
    ConfigOption,
    DebugOption,
    ImagesOption,
    IoPrecisionOption,
    JsonOption,
    MaxApDropOption,
    SpecOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
)
from yolact_deploy.spec import ConfActivation, NmsMode


@reports_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A trained YOLACT checkpoint (.pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    config: ConfigOption = None,
    spec: SpecOption = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch the model may be given.")] = 8,
    opset: Annotated[int, typer.Option(min=18, max=20, help="ONNX opset; INT8 needs 19.")] = 19,
    conf: Annotated[ConfActivation, typer.Option(help="logits leaves the softmax to the runtime.")] = "softmax",
    dcn: Annotated[DcnChoice, typer.Option(help="YOLACT++: how deformable convolutions are written.")] = "auto",
    parity: Annotated[bool, typer.Option(help="Compare the ONNX with PyTorch before it is kept.")] = True,
    parity_images: Annotated[
        Path | None, typer.Option(help="Image or folder to compare on. Default: built-in pictures.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="fp16 or int8: as `quantize` would make it of the fp32 model.")
    ] = "fp32",
    calib: CalibOption = None,
    calibrator: CalibratorOption = "entropy",
    calib_cache: CalibCacheOption = None,
    max_ap_drop: MaxApDropOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    io_precision: IoPrecisionOption = "fp32",
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="One graph from an image's pixels to boxes and masks.")
    ] = False,
    nms: Annotated[
        NmsMode | None, typer.Option(help="With --end-to-end: fast or cross_class. Default: the model's.")
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None, typer.Option(help="With --end-to-end: order of the colours in its images. Default: bgr.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a trained checkpoint into a self-describing ONNX, and prove that it computes the same."""
    import exporters
    from yolact_deploy.reports.precision import precision_tables
    from yolact_deploy.reports.tables import end_to_end_table, export_table

    with progress_bar() as progress:
        result = exporters.export(
            checkpoint,
            output,
            config=config,
            spec=spec,
            max_batch=max_batch,
            opset=opset,
            conf=conf,
            dcn=dcn,
            parity=parity,
            parity_images=parity_images,
            precision=precision,
            calib=calib,
            calibrator=calibrator,
            calib_cache=calib_cache,
            max_ap_drop=max_ap_drop,
            annotations=annotations,
            images=images,
            io_precision=io_precision,
            end_to_end=end_to_end,
            nms=nms,
            channel_order=channel_order,
            progress=progress,
        )
    report = result.to_dict()
    for warning in report.get("lowered", {}).get("warnings", ()):
        say(f"warning: {warning}")
    if json_output:
        print_json(report)
        return
    for note in report["notes"]:
        say(f"note: {note}")
    tables = [export_table(report)]
    if "lowered" in report:
        tables.extend(precision_tables(report["lowered"]))
    if "end_to_end" in report:
        tables.append(end_to_end_table(report["end_to_end"]))
    print_tables(tables)
