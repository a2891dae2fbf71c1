"""From the float32 ONNX to one of lower precision that was proven good enough."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import onnx

from exporters.activations import Progress
from exporters.calibration import DEFAULT_CALIBRATOR
from exporters.calibrators import Calibrator
from exporters.fp16 import IoPrecision, refuse_unless_float32
from exporters.gate import DEFAULT_MAX_AP_DROP, DEFAULT_MIN_AGREEMENT, AgreementJudge, ApJudge, Judge
from exporters.onnx_edit import load_onnx, read_spec
from exporters.precision_result import GateReport, LowPrecision, PrecisionResult
from exporters.precision_run import PrecisionRun
from exporters.quantize import check_quantizable, plan_placement
from exporters.sensitivity import AutoChoice, ModuleSensitivity
from yolact_deploy.errors import CalibrationError, ExportError, OutputError
from yolact_deploy.files import atomic_path, check_writable, sha256_file

AGREEMENT_IMAGES = 64  # of the sample images, where there are no annotations


def apply_precision(
    fp32_onnx: Path,
    output: Path,
    *,
    precision: LowPrecision,
    calibration_images: Sequence[Path] = (),
    calibrator: Calibrator = DEFAULT_CALIBRATOR,
    calibration_cache: Path | None = None,
    keep_fp16: Sequence[str] = (),
    io_precision: IoPrecision = "fp32",
    annotations: Path | None = None,
    annotated_images: Path | None = None,
    limit: int | None = None,
    max_ap_drop: float | None = None,
    auto: bool = False,
    sensitivity: bool = False,
    progress: Progress | None = None,
) -> PrecisionResult:
    """Write the float32 ONNX of `yolact-deploy export` as typed "fp16" or explicitly quantized "int8" ONNX.

    `calibration_images` give INT8 its ranges, and show which layers leave half's range; fp16 without any is checked on
    built-in pictures. `keep_fp16` are module paths to keep out of INT8.

    With `annotations` (COCO, over the first `limit` images of the folder `annotated_images`), AP is measured, and more
    than `max_ap_drop` points lost are an error. Without them, any `max_ap_drop` asks for the agreement of
    `gate.DEFAULT_MIN_AGREEMENT` with the float32 detections on the calibration images, and a warning says so. `auto`
    adds to `keep_fp16` the fewest modules that pass; `sensitivity` measures what each module costs.
    `progress(what, done, total)` is called often.

    `output` appears only when all is passed. Raises ArtifactError, SpecError, CalibrationError, ImageError,
    AnnotationError, OutputError, MissingDependencyError for what was given; ExportError for a failed conversion or gate.
    """
    fp32_onnx, output = Path(fp32_onnx), Path(output)
    _check_request(fp32_onnx, output, precision, io_precision, keep_fp16, auto, annotations, annotated_images)
    model = load_onnx(fp32_onnx)
    refuse_unless_float32(model, fp32_onnx)
    spec = read_spec(model, fp32_onnx)
    if precision == "int8":
        check_quantizable(model, fp32_onnx)
        plan_placement(model, keep_fp16)  # a mistaken module path is told now, not after minutes of calibration
    work = PrecisionRun(fp32_onnx, model, spec, io_precision, tuple(calibration_images), progress)
    with tempfile.TemporaryDirectory() as folder:
        work.folder = Path(folder)
        with work.timed("calibration"):
            work.look_at_activations(precision, calibrator, calibration_cache)
        judge: Judge | None = None
        with work.timed("gate"):
            if annotations is not None and annotated_images is not None:
                allowed = max_ap_drop if max_ap_drop is not None else DEFAULT_MAX_AP_DROP
                judge = ApJudge(
                    fp32_onnx, annotated_images, annotations, max_ap_drop=allowed, limit=limit, progress=progress
                )
            elif max_ap_drop is not None or auto:
                judge = AgreementJudge(fp32_onnx, work.sample_images[:AGREEMENT_IMAGES], progress=progress)
                if max_ap_drop is not None:
                    work.warnings.append(
                        f"without annotations the gate is agreement of at least {DEFAULT_MIN_AGREEMENT:g} of 100 with the "
                        "float32 detections; the number of --max-ap-drop needs --annotations."
                    )
        found: tuple[ModuleSensitivity, ...] = ()
        if precision == "int8" and sensitivity:
            with work.timed("sensitivity"):
                found = work.sensitivity(judge)
        chosen: AutoChoice | None = None
        kept = tuple(keep_fp16)
        if precision == "int8" and auto and judge is not None:
            with work.timed("auto"):
                chosen, found = work.choose(found, judge, kept)
                kept = chosen.keep_fp16
        built = work.fp16() if precision == "fp16" else work.int8(kept)
        gate: GateReport | None = None
        if judge is not None:
            with work.timed("gate"):
                half = built if precision == "fp16" else work.fp16()
                fp16 = judge(work.save(half), "fp16")
                int8 = None
                if precision == "int8":
                    int8 = chosen.verdict if chosen is not None else judge(work.save(built), "int8")
                enforced = max_ap_drop is not None or auto
                decisive = int8 or fp16
                gate = GateReport(decisive.passed, enforced, judge.reference, fp16, int8)
            if enforced and not decisive.passed:
                raise ExportError(work.failure(output, precision, kept, decisive, built, found))
        with work.timed("report"):
            modules = work.report(built, precision, kept, found)
        with atomic_path(output) as temporary:
            onnx.save(built, str(temporary))
    convs = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return PrecisionResult(
        output=output,
        precision=precision,
        io_precision=io_precision,
        sha256=sha256_file(output),
        size_bytes=output.stat().st_size,
        fp32_size_bytes=fp32_onnx.stat().st_size,
        convs=len(convs),
        int8_convs=len(plan_placement(model, kept).convs) if precision == "int8" else 0,
        kept_float32=work.kept_float32,
        keep_fp16=kept,
        calibration=work.calibration,
        modules=modules,
        gate=gate,
        auto=chosen,
        warnings=tuple(work.warnings),
        seconds=work.seconds,
    )


def _check_request(
    fp32_onnx: Path,
    output: Path,
    precision: str,
    io_precision: str,
    keep_fp16: Sequence[str],
    auto: bool,
    annotations: Path | None,
    annotated_images: Path | None,
) -> None:
    for what, value, choices in (
        ("precision", precision, get_args(LowPrecision)),
        ("I/O precision", io_precision, get_args(IoPrecision)),
    ):
        if value not in choices:
            raise CalibrationError(f"unknown {what} {value!r}; choose {' or '.join(choices)}.")
    if precision == "fp16" and (auto or keep_fp16):
        raise CalibrationError("keeping modules in FP16 is a choice of int8; with fp16 all are.")
    if (annotations is None) != (annotated_images is None):
        raise CalibrationError("AP needs both the annotations and the folder of their images; one is missing.")
    check_writable(output)
    if output.exists() and fp32_onnx.exists() and output.samefile(fp32_onnx):
        raise OutputError(f"the output {output} is the float32 ONNX itself. Give another name.")
