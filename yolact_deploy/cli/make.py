"""Commands that make artifacts: export, quantize, build-engine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from yolact_deploy.cli.console import Progress, print_json, print_table, progress_bar, reports_errors, say
from yolact_deploy.cli.end_to_end import check_end_to_end_request, image_range, make_end_to_end
from yolact_deploy.cli.options import (
    AnnotationsOption,
    AutoOption,
    CalibCacheOption,
    CalibOption,
    Calibrator,
    CalibratorOption,
    ChannelOrder,
    ConfActivation,
    ConfigOption,
    Dcn,
    DebugOption,
    ImagesOption,
    IoPrecision,
    IoPrecisionOption,
    JsonOption,
    KeepFp16Option,
    LimitOption,
    LowPrecision,
    MaxApDropOption,
    Nms,
    Precision,
    Runtime,
    SensitivityOption,
    SpecOption,
)
from yolact_deploy.optional import require_export

_INT8_OPSET = 19  # the first whose QuantizeLinear takes half scales


@reports_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A trained YOLACT checkpoint (.pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    config: ConfigOption = None,
    spec: SpecOption = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch the model may be given.")] = 8,
    opset: Annotated[int, typer.Option(min=17, help="ONNX opset.")] = 19,
    conf: Annotated[ConfActivation, typer.Option(help="logits leaves the softmax to the runtime.")] = (
        ConfActivation.softmax
    ),
    dcn: Annotated[Dcn, typer.Option(help="YOLACT++: how deformable convolutions are written.")] = Dcn.auto,
    parity: Annotated[bool, typer.Option(help="Compare the ONNX with PyTorch before it is kept.")] = True,
    parity_images: Annotated[Path | None, typer.Option(help="Image or folder for that. Default: built-in.")] = None,
    precision: Annotated[Precision, typer.Option(help="As `quantize` would make it of the fp32 model.")] = (
        Precision.fp32
    ),
    calib: CalibOption = None,
    calibrator: CalibratorOption = Calibrator.entropy,
    calib_cache: CalibCacheOption = None,
    max_ap_drop: MaxApDropOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    io_precision: IoPrecisionOption = IoPrecision.fp32,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="One graph from the image's bytes to boxes and masks.")
    ] = False,
    nms: Annotated[
        Nms | None, typer.Option(help="With --end-to-end: fast or cross_class. Default: the model's.")
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None, typer.Option(help="With --end-to-end: of the images it is given. Default: bgr.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a trained checkpoint into a self-describing ONNX, and prove that it computes the same."""
    require_export("exporting a checkpoint")
    from exporters.pipeline import export_checkpoint
    from yolact_deploy.files import check_writable, refuse_overwriting
    from yolact_deploy.reference.images import list_images
    from yolact_deploy.reports.tables import end_to_end_table, export_table

    check_writable(output)
    refuse_overwriting(output, checkpoint)
    lowered = precision is not Precision.fp32
    given = {"--calib": calib, "--calib-cache": calib_cache, "--max-ap-drop": max_ap_drop, "--annotations": annotations}
    _check_precision_request(precision, opset, given)
    check_end_to_end_request(end_to_end, nms, channel_order, io_precision)
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        heads = Path(folder) / f"{output.stem}.heads.onnx" if end_to_end else output
        fp32 = Path(folder) / f"{output.stem}.fp32.onnx" if lowered else heads
        result = export_checkpoint(
            checkpoint,
            fp32,
            spec_file=spec,
            config=config,
            opset=opset,
            max_batch=max_batch,
            conf=conf.value,
            dcn=dcn.value,
            parity=parity,
            parity_images=list_images([parity_images]) if parity_images else None,
            on_step=lambda step: progress(step, 0, 1),
        )
        report = result.to_dict()
        if lowered:
            report["lowered"] = _lower_precision(
                fp32,
                heads,
                LowPrecision(precision.value),
                progress,
                calib=calib,
                calibrator=calibrator.value,
                calibration_cache=calib_cache,
                max_ap_drop=max_ap_drop,
                annotations=annotations,
                annotated_images=images,
                io_precision=io_precision.value,
            )
            report["lowered"]["output"] = str(output)
            report |= {key: report["lowered"][key] for key in ("output", "size_bytes", "sha256")}
        if end_to_end:
            progress("making it end to end", 0, 1)
            report["end_to_end"] = make_end_to_end(heads, output, nms, channel_order, parity, parity_images)
            report |= {key: report["end_to_end"][key] for key in ("output", "size_bytes", "sha256")}
    if json_output:
        print_json(report)
        return
    for note in report["notes"]:
        say(f"note: {note}")
    print_table(export_table(report))
    if lowered:
        _print_precision(report["lowered"])
    if end_to_end:
        print_table(end_to_end_table(report["end_to_end"]))


@reports_errors
def quantize(
    model: Annotated[Path, typer.Argument(help="A float32 ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The typed ONNX to write.")],
    precision: Annotated[LowPrecision, typer.Option(help="fp16, or int8 with the rest in fp16.")] = LowPrecision.int8,
    calib: CalibOption = None,
    calibrator: CalibratorOption = Calibrator.entropy,
    calib_cache: CalibCacheOption = None,
    keep_fp16: KeepFp16Option = None,
    io_precision: IoPrecisionOption = IoPrecision.fp32,
    max_ap_drop: MaxApDropOption = None,
    annotations: AnnotationsOption = None,
    images: ImagesOption = None,
    limit: LimitOption = None,
    auto: AutoOption = False,
    sensitivity: SensitivityOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a float32 ONNX in FP16 or INT8, and measure what that costs."""
    require_export("changing a model's precision")
    with progress_bar() as progress:
        report = _lower_precision(
            model,
            output,
            precision,
            progress,
            calib=calib,
            calibrator=calibrator.value,
            calibration_cache=calib_cache,
            keep_fp16=keep_fp16 or (),
            io_precision=io_precision.value,
            max_ap_drop=max_ap_drop,
            annotations=annotations,
            annotated_images=images,
            limit=limit,
            auto=auto,
            sensitivity=sensitivity,
        )
    if json_output:
        print_json(report)
    else:
        _print_precision(report)


@reports_errors
def build_engine(
    model: Annotated[Path, typer.Argument(help="An ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write; its sidecar goes beside it.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Fail unless the ONNX has it; fp16 is made of fp32.")
    ] = None,
    runtime: Annotated[Runtime, typer.Option(help="auto: TensorRT with a GPU, else TensorRT-RTX.")] = Runtime.auto,
    target: Annotated[str | None, typer.Option(help="GPUs of an RTX plan, such as sm86,sm89.")] = None,
    batch: Annotated[str, typer.Option(help="Optimization profile MIN,OPT,MAX, or one number.")] = "1,1,1",
    image_size: Annotated[
        str | None, typer.Option(help="Of an end-to-end ONNX: WIDTHxHEIGHT, as MIN,OPT,MAX or one size.")
    ] = None,
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Limit of the builder's workspace.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Read if present, written afterwards.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan. RTX plans are built ahead of time, on any machine."""
    from engines.adapters import parse_targets
    from engines.builder import build_engine as build
    from yolact_deploy.files import check_writable
    from yolact_deploy.reports.tables import build_table

    batch_range, targets = _batch_range(batch), parse_targets([target]) if target else ()
    images = image_range(image_size) if image_size else None
    check_writable(output)
    with progress_bar() as progress:
        typed = _typed_model(model, precision, progress)
        result = build(
            typed,
            output,
            runtime=runtime.value,
            targets=targets,
            batch=batch_range,
            images=images,
            precision=precision.value if precision else None,
            workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
            timing_cache=timing_cache,
            progress=progress,
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
    else:
        for note in report["notes"]:
            say(f"note: {note}")
        print_table(build_table(report))


def _lower_precision(
    fp32: Path, output: Path, precision: LowPrecision, progress: Progress, *, calib: Path | None, **options: Any
) -> dict[str, Any]:
    from exporters.precision.run import apply_precision
    from yolact_deploy.reference.images import list_images

    images = list_images([calib]) if calib else ()
    result = apply_precision(
        fp32, output, precision=precision.value, calibration_images=images, progress=progress, **options
    )
    return result.to_dict()


def _print_precision(report: dict[str, Any]) -> None:
    from yolact_deploy.reports.precision import precision_tables

    for warning in report["warnings"]:
        say(f"warning: {warning}")
    for table in precision_tables(report):
        print_table(table)


def _check_precision_request(precision: Precision, opset: int, given: dict[str, Any]) -> None:
    """Refuse before the export what would fail or have no effect after it."""
    from yolact_deploy.annotations import load_annotations
    from yolact_deploy.errors import CalibrationError
    from yolact_deploy.reference.images import list_images

    idle = [option for option, value in given.items() if value is not None]
    if precision is Precision.fp32 and idle:
        raise CalibrationError(
            f"{', '.join(idle)} has no effect on fp32. Add --precision fp16 or int8, or leave it out."
        )
    if precision is Precision.int8 and opset < _INT8_OPSET:
        raise CalibrationError(f"INT8 with half scales needs opset {_INT8_OPSET}, found --opset {opset}.")
    if precision is Precision.int8 and given["--calib"] is None and given["--calib-cache"] is None:
        raise CalibrationError("INT8 needs images like those the model will see: give a folder of them with --calib.")
    if given["--calib"] is not None:
        list_images([given["--calib"]])
    if given["--annotations"] is not None:
        load_annotations(given["--annotations"])


def _typed_model(model: Path, precision: Precision | None, progress: Progress) -> Path:
    """`model`, or the FP16 ONNX made of it beside it when that is asked for and it is float32.

    A file that stands there already is used if it is of the same checkpoint and spec, and never replaced.
    """
    if precision is not Precision.fp16:
        return model
    from yolact_deploy.artifacts.names import CHECKPOINT_SHA256_METADATA_KEY, SPEC_METADATA_KEY
    from yolact_deploy.artifacts.onnx_file import open_onnx
    from yolact_deploy.errors import OutputError

    graph = open_onnx(model)
    if graph.precision != Precision.fp32.value:
        return model
    typed = model.with_name(f"{model.stem}.fp16.onnx")
    if typed.exists():
        found = open_onnx(typed)
        keys = (SPEC_METADATA_KEY, CHECKPOINT_SHA256_METADATA_KEY)
        same = all(found.metadata.get(key) == graph.metadata.get(key) for key in keys)
        if found.precision != Precision.fp16.value or not same:
            raise OutputError(f"{typed} is in the way: it is not the FP16 form of {model}. Move it, or build from it.")
        say(f"note: {model} is float32; built from its FP16 form {typed}, which was there.")
        return typed
    require_export("changing a model's precision")
    report = _lower_precision(model, typed, LowPrecision.fp16, progress, calib=None)
    say(f"note: {model} is float32; its FP16 form was written to {typed}.")
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    return typed


def _batch_range(text: str) -> tuple[int, int, int]:
    from yolact_deploy.errors import BuildRequestError

    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise BuildRequestError(f"--batch takes MIN,OPT,MAX or one number, found {text!r}.")
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
