"""One run of `exporters.precision`: the float32 model, its images, and what was learnt of them so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from exporters.activations import Progress, observe
from exporters.calibration import Calibration, calibrate
from exporters.calibrators import Calibrator
from exporters.emulation import emulate_half
from exporters.fp16 import IoPrecision, KeptFloat32, nodes_out_of_range, to_half
from exporters.gate import ApJudge, Judge, Verdict
from exporters.onnx_edit import is_inside, set_precision
from exporters.precision_result import LowPrecision, ModuleReport
from exporters.quantize import plan_placement, quantize
from exporters.sensitivity import (
    AutoChoice,
    ModuleSensitivity,
    choose_modules,
    measure_sensitivity,
    module_groups,
    module_sqnr_db,
)
from yolact_deploy.errors import CalibrationError
from yolact_deploy.node_names import module_of
from yolact_deploy.spec import ModelSpec

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
        started = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started

    def look_at_activations(self, precision: LowPrecision, calibrator: Calibrator, cache: Path | None) -> None:
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
        return self._typed(self._model, "fp16")

    def int8(self, keep_fp16: Sequence[str]) -> onnx.ModelProto:
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
