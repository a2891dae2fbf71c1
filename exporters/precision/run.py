"""From the float32 ONNX to one of lower precision that was proven good enough."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from exporters.onnx_edit import finished, load_onnx, read_spec, set_precision
from exporters.precision.calibration import DEFAULT_CALIBRATOR, Calibration, calibrate
from exporters.precision.fp16 import Float32Node, emulate_half, nodes_out_of_range, refuse_unless_float32, to_half
from exporters.precision.gate import DEFAULT_MAX_AP_DROP, DEFAULT_MIN_AGREEMENT, AgreementJudge, ApJudge, Judge, Verdict
from exporters.precision.quantize import check_quantizable, plan_placement, quantize
from exporters.precision.ranges import observe
from exporters.precision.result import (
    GateReport,
    PrecisionResult,
    describe_costliest,
    describe_least_accurate,
    report_modules,
)
from exporters.precision.sensitivity import (
    AutoChoice,
    ModuleSensitivity,
    choose_modules,
    measure_sensitivity,
    module_sqnr_db,
)
from yolact_deploy.artifacts.names import (
    Calibrator,
    CpuPrecision,
    IoPrecision,
    LowPrecision,
    OnnxRuntimeChoice,
    Progress,
)
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import ArtifactError, CalibrationError, ExportError
from yolact_deploy.files import atomic_path, check_writable, refuse_overwriting, sha256_file
from yolact_deploy.runtime.opening import check_on_cpu
from yolact_deploy.spec import ModelSpec

AGREEMENT_IMAGES = 64  # of the sample images, where there are no annotations
_BY_AGREEMENT = (
    f"without annotations the gate is agreement of at least {DEFAULT_MIN_AGREEMENT:g} of 100 with the float32 detections; "
    "the number of --max-ap-drop needs --annotations."
)
_BUILT_IN_ONLY = (
    "no images were given: whether activations stay in half's range was checked on built-in pictures only. Give a "
    "folder of images like those the model will see: `yolact-deploy quantize --precision fp16 --calib DIR`."
)


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
    runtime: OnnxRuntimeChoice = "auto",
    cpu_precision: CpuPrecision = "f32",
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
    _check_request(precision, io_precision, keep_fp16, auto, annotations, annotated_images)
    check_on_cpu(runtime, cpu_precision)
    check_writable(output)
    refuse_overwriting(output, fp32_onnx)
    model = load_onnx(fp32_onnx)
    refuse_unless_float32(model, fp32_onnx)
    spec = read_spec(model, fp32_onnx)
    source = open_onnx(fp32_onnx)
    if source.weights.non_finite:
        raise ArtifactError(
            f"{fp32_onnx} holds {source.weights.describe_non_finite()}: no precision mends that. Export it again from an "
            "earlier checkpoint."
        )
    if precision == "int8":
        check_quantizable(model, fp32_onnx)
        plan_placement(model, keep_fp16)  # a mistaken module path is told now, not after minutes of calibration
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _timed(seconds, "calibration"):
            if precision == "int8":
                seen = _calibrated(model, spec, calibration_images, calibrator, calibration_cache, progress)
            else:
                seen = _observed(model, spec, calibration_images, folder, progress)
        candidates = _Candidates(model, spec, seen, io_precision, folder, progress)
        enforced = max_ap_drop is not None or auto
        with _timed(seconds, "gate"):
            judge: Judge | None = None
            if annotations is not None and annotated_images is not None:
                allowed = max_ap_drop if max_ap_drop is not None else DEFAULT_MAX_AP_DROP
                judge = ApJudge(
                    fp32_onnx,
                    annotated_images,
                    annotations,
                    max_ap_drop=allowed,
                    limit=limit,
                    runtime=runtime,
                    cpu_precision=cpu_precision,
                    progress=progress,
                )
            elif enforced:
                judge = AgreementJudge(
                    fp32_onnx,
                    seen.images[:AGREEMENT_IMAGES],
                    runtime=runtime,
                    cpu_precision=cpu_precision,
                    progress=progress,
                )
        found: tuple[ModuleSensitivity, ...] = ()
        if precision == "int8" and sensitivity:
            with _timed(seconds, "sensitivity"):
                found = candidates.sensitivity(judge)
        kept: tuple[str, ...] = tuple(keep_fp16)
        chosen: AutoChoice | None = None
        if precision == "int8" and auto and judge is not None:
            with _timed(seconds, "auto"):
                chosen, found = candidates.choose(found, judge, kept)
                kept = chosen.keep_fp16
        built = candidates.fp16() if precision == "fp16" else candidates.int8(kept)
        gate: GateReport | None = None
        if judge is not None:
            with _timed(seconds, "gate"):
                fp16 = judge(candidates.save(built if precision == "fp16" else candidates.fp16()), "fp16")
                int8 = None
                if precision == "int8":
                    int8 = chosen.verdict if chosen is not None else judge(candidates.save(built), "int8")
                gate = GateReport((int8 or fp16).passed, enforced, judge.reference, fp16, int8)
            if enforced and not gate.passed:
                raise ExportError(candidates.failure(output, precision, int8 or fp16, kept, built, found))
        with _timed(seconds, "report"):
            int8_convs = plan_placement(model, kept).convs if precision == "int8" else ()
            modules = report_modules(model, int8_convs, seen.kept_float32, candidates.module_sqnr_db(built), found)
        with atomic_path(output) as temporary:
            temporary.write_bytes(finished(built))
    by_agreement = annotations is None and max_ap_drop is not None
    return PrecisionResult(
        output=output,
        precision=precision,
        io_precision=io_precision,
        sha256=sha256_file(output),
        size_bytes=output.stat().st_size,
        fp32_size_bytes=fp32_onnx.stat().st_size,
        convs=sum(node.op_type == "Conv" for node in model.graph.node),
        int8_convs=len(int8_convs),
        kept_float32=seen.kept_float32,
        keep_fp16=kept,
        calibration=seen.calibration,
        modules=modules,
        gate=gate,
        auto=chosen,
        warnings=(*source.weights_notes, *seen.warnings, *([_BY_AGREEMENT] if by_agreement else [])),
        seconds=seconds,
    )


def _check_request(
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


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, eq=False)
class _Activations:
    """What the float32 model showed on images."""

    images: tuple[Path, ...]
    calibration: Calibration | None  # of INT8
    kept_float32: tuple[Float32Node, ...]
    warnings: tuple[str, ...]


def _calibrated(
    model: onnx.ModelProto,
    spec: ModelSpec,
    images: Sequence[Path],
    calibrator: Calibrator,
    cache: Path | None,
    progress: Progress | None,
) -> _Activations:
    found = calibrate(model, spec, images, calibrator=calibrator, cache=cache, progress=progress)
    return _Activations(tuple(images), found, nodes_out_of_range(model, found.absmax), found.warnings)


def _observed(
    model: onnx.ModelProto, spec: ModelSpec, images: Sequence[Path], folder: Path, progress: Progress | None
) -> _Activations:
    warnings = [] if images else [_BUILT_IN_ONLY]
    looked_at = tuple(images) or _builtin_images(folder)
    found = observe(model, spec, looked_at, progress=progress)
    if images and not found.distinct:
        warnings.append(f"all {found.constant} images are of one colour: they don't show what leaves half's range.")
    if found.skipped:
        warnings.append(f"{len(found.skipped)} images were skipped: {' '.join(found.skipped)}")
    return _Activations(looked_at, None, nodes_out_of_range(model, found.absmax), tuple(warnings))


def _builtin_images(folder: Path) -> tuple[Path, ...]:
    import cv2

    from exporters.parity import builtin_images

    paths = []
    for number, (_, image) in enumerate(builtin_images()):
        paths.append(folder / f"built-in-{number}.png")
        cv2.imwrite(str(paths[-1]), image)
    return tuple(paths)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The graphs that can be made of one float32 model, and what each costs."""

    model: onnx.ModelProto
    spec: ModelSpec
    seen: _Activations
    io: IoPrecision
    folder: Path  # for files to be judged
    progress: Progress | None

    def fp16(self) -> onnx.ModelProto:
        """The model in FP16."""
        return self._typed(self.model, "fp16")

    def int8(self, keep_fp16: Sequence[str]) -> onnx.ModelProto:
        """The model in INT8, but for some modules that stay in FP16."""
        return self._typed(quantize(self.model, self._ranges, keep_fp16=keep_fp16), "int8")

    def _typed(self, model: onnx.ModelProto, precision: LowPrecision) -> onnx.ModelProto:
        float32_nodes = {kept.node for kept in self.seen.kept_float32}
        typed = to_half(model, float32_nodes=float32_nodes, io_precision=self.io)
        set_precision(typed, precision)
        return typed

    @property
    def _ranges(self) -> Mapping[str, float]:
        return {} if self.seen.calibration is None else self.seen.calibration.ranges

    def save(self, typed: onnx.ModelProto) -> Path:
        """What a GPU computes, as a file for the CPU; the next call replaces it, so that no disk is filled."""
        path = self.folder / "candidate.onnx"
        onnx.save(emulate_half(typed), str(path))
        return path

    def module_sqnr_db(self, typed: onnx.ModelProto) -> Mapping[str, float]:
        """Of each module's outputs against float32; none without images."""
        if not self.seen.images:
            return {}
        return module_sqnr_db(self.model, emulate_half(typed), self.spec, self.seen.images)

    def sensitivity(self, judge: Judge | None) -> tuple[ModuleSensitivity, ...]:
        """All that is known of each module; its effect on AP where `judge` measures AP."""

        def measure_ap(kept: tuple[str, ...]) -> float:
            return judge(self.save(self.int8(kept)), "one module in INT8").drop if judge is not None else 0.0

        return self._measure(measure_ap=measure_ap if isinstance(judge, ApJudge) else None)

    def ranking(self) -> tuple[ModuleSensitivity, ...]:
        """Only what ranks the modules."""
        return self._measure(leave_one_out=False)

    def _measure(self, **options: Any) -> tuple[ModuleSensitivity, ...]:
        if not self.seen.images:
            raise CalibrationError(
                "images are needed to measure the sensitivity of modules. Give a folder of them (--calib DIR)."
            )
        return measure_sensitivity(
            self.model, self.spec, self._ranges, self.seen.images, progress=self.progress, **options
        )

    def choose(
        self, found: tuple[ModuleSensitivity, ...], judge: Judge, kept: tuple[str, ...]
    ) -> tuple[AutoChoice, tuple[ModuleSensitivity, ...]]:
        """The fewest modules to keep beside `kept`; with what ranked them, where that had to be measured."""

        def rank() -> list[str]:
            nonlocal found
            found = found or self.ranking()
            return [module.module for module in found]

        def measure(keep_fp16: tuple[str, ...]) -> Verdict:
            return judge(self.save(self.int8(keep_fp16)), f"int8 with {len(keep_fp16)} modules in FP16")

        choice = choose_modules(rank, measure, kept=kept)
        return choice, found

    def failure(
        self,
        output: Path,
        precision: LowPrecision,
        verdict: Verdict,
        kept: Sequence[str],
        built: onnx.ModelProto,
        found: tuple[ModuleSensitivity, ...],
    ) -> str:
        """Why nothing was written, and what may help."""
        missed = f"{output} was not written: {precision} misses the gate of {verdict.limit}: {verdict.describe()}."
        if precision == "fp16":
            return f"{missed}{describe_least_accurate(self.module_sqnr_db(built))}"
        return f"{missed}{describe_costliest(found or (self.ranking() if self.seen.images else ()), kept)}"
