"""From the float32 ONNX to one of lower precision that was proven good enough."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import onnx

from exporters.onnx_edit import is_inside, load_onnx, read_spec, set_precision
from exporters.precision.calibration import DEFAULT_CALIBRATOR, Calibration, calibrate
from exporters.precision.fp16 import (
    IoPrecision,
    KeptFloat32,
    emulate_half,
    nodes_out_of_range,
    refuse_unless_float32,
    to_half,
)
from exporters.precision.gate import DEFAULT_MAX_AP_DROP, DEFAULT_MIN_AGREEMENT, AgreementJudge, ApJudge, Judge, Verdict
from exporters.precision.quantize import check_quantizable, plan_placement, quantize
from exporters.precision.ranges import Calibrator, Progress, observe
from exporters.precision.result import GateReport, LowPrecision, ModuleReport, PrecisionResult
from exporters.precision.sensitivity import (
    AutoChoice,
    ModuleSensitivity,
    choose_modules,
    measure_sensitivity,
    module_groups,
    module_sqnr_db,
)
from yolact_deploy.artifacts.names import module_of
from yolact_deploy.errors import CalibrationError, ExportError, OutputError
from yolact_deploy.files import atomic_path, check_writable, sha256_file
from yolact_deploy.spec import ModelSpec

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


_COSTLIEST = 3  # modules that a failed gate names


class PrecisionRun:
    """Measures, converts and judges; `folder` holds its temporary files."""

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        spec: ModelSpec,
        io: IoPrecision,
        images: tuple[Path, ...],
        progress: Progress | None,
    ) -> None:
        self._path, self._model, self._spec, self._io = path, model, spec, io
        self.sample_images, self._progress = images, progress
        self.folder = Path()
        self.calibration: Calibration | None = None
        self.kept_float32: tuple[KeptFloat32, ...] = ()
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to those of a step."""
        started = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def look_at_activations(self, precision: LowPrecision, calibrator: Calibrator, cache: Path | None) -> None:
        """Calibrate for INT8, or see what FP16 would overflow on."""
        if precision == "int8":
            self.calibration = calibrate(
                self._model, self._spec, self.sample_images, calibrator=calibrator, cache=cache, progress=self._progress
            )
            absmax = self.calibration.absmax
            self.warnings += self.calibration.warnings
        else:
            self.sample_images = self.sample_images or self._builtin_images()
            observation = observe(self._model, self._spec, self.sample_images, progress=self._progress)
            absmax = observation.absmax
            if observation.skipped:
                self.warnings.append(f"{len(observation.skipped)} images were skipped: {' '.join(observation.skipped)}")
        self.kept_float32 = nodes_out_of_range(self._model, absmax)

    def _builtin_images(self) -> tuple[Path, ...]:
        import cv2

        from exporters.parity import builtin_images

        self.warnings.append(
            "no images were given: whether activations stay in half's range was checked on built-in pictures only. "
            "Give images like those the model will see."
        )
        paths: list[Path] = []
        for number, (_, image) in enumerate(builtin_images()):
            paths.append(self.folder / f"built-in-{number}.png")
            cv2.imwrite(str(paths[-1]), image)
        return tuple(paths)

    @property
    def _ranges(self) -> Mapping[str, float]:
        return self.calibration.ranges if self.calibration is not None else {}

    def fp16(self) -> onnx.ModelProto:
        """The model in FP16."""
        return self._typed(self._model, "fp16")

    def int8(self, keep_fp16: Sequence[str]) -> onnx.ModelProto:
        """The model in INT8, but for some modules that stay in FP16."""
        return self._typed(quantize(self._model, self._ranges, keep_fp16=keep_fp16), "int8")

    def _typed(self, model: onnx.ModelProto, precision: LowPrecision) -> onnx.ModelProto:
        kept = {kept.node for kept in self.kept_float32}
        typed = to_half(model, float32_nodes=kept, io_precision=self._io)
        set_precision(typed, precision)
        return typed

    def save(self, model: onnx.ModelProto) -> Path:
        """What a GPU computes, as a file for the CPU; the next call replaces it, so that no disk is filled."""
        path = self.folder / "candidate.onnx"
        onnx.save(emulate_half(model), str(path))
        return path

    def sensitivity(self, judge: Judge | None) -> tuple[ModuleSensitivity, ...]:
        """All that is known of each module; its effect on AP where `judge` measures AP."""
        measure_ap: Callable[[tuple[str, ...]], float] | None = None
        if isinstance(judge, ApJudge):

            def measure_ap(kept: tuple[str, ...]) -> float:
                return judge(self.save(self.int8(kept)), "one module in INT8").drop

        return measure_sensitivity(
            self._model,
            self._spec,
            self._ranges,
            self._images_for("the sensitivity of modules"),
            measure_ap=measure_ap,
            progress=self._progress,
        )

    def ranking(self) -> tuple[ModuleSensitivity, ...]:
        """Only what ranks the modules."""
        images = self._images_for("the sensitivity of modules")
        return measure_sensitivity(
            self._model, self._spec, self._ranges, images, leave_one_out=False, progress=self._progress
        )

    def choose(
        self, found: tuple[ModuleSensitivity, ...], judge: Judge, kept: tuple[str, ...]
    ) -> tuple[AutoChoice, tuple[ModuleSensitivity, ...]]:
        """The fewest modules to keep in FP16 that pass the judge, most sensitive first; and the sensitivities found."""

        def rank() -> list[str]:
            nonlocal found
            found = found or self.ranking()
            return [module.module for module in found]

        def measure(keep_fp16: tuple[str, ...]) -> Verdict:
            return judge(self.save(self.int8(keep_fp16)), f"int8 with {len(keep_fp16)} modules in FP16")

        choice = choose_modules(rank, measure, kept=kept)
        return choice, found

    def report(
        self,
        built: onnx.ModelProto,
        precision: LowPrecision,
        kept: Sequence[str],
        found: Sequence[ModuleSensitivity],
    ) -> tuple[ModuleReport, ...]:
        """Module by module, what `built` computes in and how far from float32 that is."""
        ratios = self._module_sqnr_db(built)
        int8 = set(plan_placement(self._model, kept).convs) if precision == "int8" else set()
        float32 = {kept.node for kept in self.kept_float32}
        sensitivities = {module.module: module for module in found}
        reports: list[ModuleReport] = []
        for group in module_groups(self._model):
            nodes = [node for node in self._model.graph.node if is_inside(module_of(node.name), [group])]
            convs = {node.name for node in nodes if node.op_type == "Conv"}
            precisions = [
                *(["int8"] if convs & int8 else []),
                *(["fp16"] if convs - int8 - float32 else []),
                *(["fp32"] if any(node.name in float32 for node in nodes) else []),
            ]
            reports.append(
                ModuleReport(
                    group,
                    "+".join(precisions),
                    len(convs),
                    len(convs & int8),
                    ratios.get(group),
                    sensitivities.get(group),
                )
            )
        return tuple(reports)

    def _module_sqnr_db(self, built: onnx.ModelProto) -> Mapping[str, float]:
        """Of each module; none without images."""
        if not self.sample_images:
            return {}
        return module_sqnr_db(self._model, emulate_half(built), self._spec, self.sample_images)

    def failure(
        self,
        output: Path,
        precision: LowPrecision,
        kept: Sequence[str],
        verdict: Verdict,
        built: onnx.ModelProto,
        found: Sequence[ModuleSensitivity],
    ) -> str:
        """Why the gate was missed and which modules cost most, in words."""
        message = f"{output} was not written: {precision} misses the gate of {verdict.limit}: {verdict.describe()}."
        if precision == "fp16":
            ratios = self._module_sqnr_db(built)
            worst = sorted(ratios, key=ratios.__getitem__)[:_COSTLIEST]
            listed = ", ".join(f"{name} ({ratios[name]:.1f} dB)" for name in worst)
            return f"{message} Furthest from float32 are {listed}." if worst else message
        if not found and self.sample_images:
            found = self.ranking()
        free = [module for module in found if not is_inside(module.module, kept)][:_COSTLIEST]
        if not free:
            return message
        listed = ", ".join(f"{module.module} ({module.output_sqnr_db:.1f} dB)" for module in free)
        return (
            f"{message} By the error they bring into the outputs, these modules cost most: {listed}. "
            f"Keep them in FP16 (`--keep-fp16 {free[0].module}`), let `--auto` choose, or give more calibration images."
        )

    def _images_for(self, purpose: str) -> tuple[Path, ...]:
        if not self.sample_images:
            raise CalibrationError(f"images are needed to measure {purpose}. Give a folder of them (--calib DIR).")
        return self.sample_images
