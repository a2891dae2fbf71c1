"""What lowering a model's precision did to it, whole and module by module, for people and machines."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from exporters.onnx_edit import is_inside
from exporters.precision.calibration import Calibration
from exporters.precision.fp16 import Float32Node
from exporters.precision.gate import Accuracy, Verdict
from exporters.precision.sensitivity import AutoChoice, ModuleSensitivity, module_groups
from yolact_deploy.artifacts.names import IoPrecision, LowPrecision, module_of

_NAMED = 3  # modules, in the error of a missed gate


@dataclass(frozen=True)
class ModuleReport:
    """What a module of the network computes in, and what that costs."""

    module: str
    precision: str  # "int8", "fp16", "fp32" or several, joined by "+"
    convs: int  # convolution nodes, of which
    int8_convs: int
    sqnr_db: float | None  # of its outputs in the written graph against float32
    sensitivity: ModuleSensitivity | None  # where it was measured


@dataclass(frozen=True)
class GateReport:
    """What the gate measured, and whether it let the model pass."""

    passed: bool
    enforced: bool  # False: measured, but no drop was called too much
    reference: Accuracy | None  # of float32; None without annotations
    fp16: Verdict
    int8: Verdict | None  # None where INT8 was not asked for


@dataclass(frozen=True)
class PrecisionResult:
    """The written ONNX of lower precision, and what is known of it."""

    output: Path
    precision: LowPrecision
    io_precision: IoPrecision
    sha256: str  # of the written file
    size_bytes: int
    fp32_size_bytes: int
    convs: int  # convolution nodes, of which
    int8_convs: int
    kept_float32: tuple[Float32Node, ...]  # beside softmax
    keep_fp16: tuple[str, ...]  # modules kept out of INT8, as given or as `auto` chose
    calibration: Calibration | None  # None for fp16
    modules: tuple[ModuleReport, ...]
    gate: GateReport | None  # None where nothing was measured
    auto: AutoChoice | None
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]  # per step

    @property
    def size_ratio(self) -> float:
        """Size of the file over that of the float32 one."""
        return self.size_bytes / self.fp32_size_bytes

    @property
    def accuracy(self) -> str | None:
        """That nothing was measured, and the command that does; None where a gate did."""
        if self.gate is not None:
            return None
        command = f"yolact-deploy eval {shlex.quote(str(self.output))} --images DIR --annotations INSTANCES.json"
        return f"accuracy not measured. What this file reaches: {command}; with --annotations and --images it is measured here."

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        calibration, auto, gate = self.calibration, self.auto, self.gate
        return {
            "output": str(self.output),
            "precision": self.precision,
            "io_precision": self.io_precision,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "fp32_size_bytes": self.fp32_size_bytes,
            "size_ratio": self.size_ratio,
            "convs": self.convs,
            "int8_convs": self.int8_convs,
            "kept_float32": [dataclasses.asdict(kept) for kept in self.kept_float32],
            "keep_fp16": list(self.keep_fp16),
            "calibration": None if calibration is None else calibration.to_dict(),
            "modules": [dataclasses.asdict(module) for module in self.modules],
            "gate": None if gate is None else _gate_to_dict(gate),
            "accuracy": self.accuracy,
            "auto": None if auto is None else auto.to_dict(),
            "warnings": list(self.warnings),
            "seconds": dict(self.seconds),
        }


def _gate_to_dict(gate: GateReport) -> dict[str, Any]:
    return {
        "passed": gate.passed,
        "enforced": gate.enforced,
        "reference": None if gate.reference is None else dataclasses.asdict(gate.reference),
        "fp16": gate.fp16.to_dict(),
        "int8": None if gate.int8 is None else gate.int8.to_dict(),
    }


def report_modules(
    model: onnx.ModelProto,  # float32
    int8_convs: Sequence[str],  # nodes
    kept_float32: Sequence[Float32Node],
    sqnr_db: Mapping[str, float],  # by module; empty where nothing was measured
    sensitivities: Sequence[ModuleSensitivity],
) -> tuple[ModuleReport, ...]:
    """Each group of modules, in the graph's order."""
    int8, float32 = set(int8_convs), {kept.node for kept in kept_float32}
    measured = {module.module: module for module in sensitivities}
    reports: list[ModuleReport] = []
    for group in module_groups(model):
        nodes = [node for node in model.graph.node if is_inside(module_of(node.name), [group])]
        convs = {node.name for node in nodes if node.op_type == "Conv"}
        precisions = [
            *(["int8"] if convs & int8 else []),
            *(["fp16"] if convs - int8 - float32 else []),
            *(["fp32"] if any(node.name in float32 for node in nodes) else []),
        ]
        reports.append(
            ModuleReport(
                module=group,
                precision="+".join(precisions),
                convs=len(convs),
                int8_convs=len(convs & int8),
                sqnr_db=sqnr_db.get(group),
                sensitivity=measured.get(group),
            )
        )
    return tuple(reports)


def describe_least_accurate(sqnr_db: Mapping[str, float]) -> str:
    """The modules whose outputs are furthest from float32, as the end of an error; "" where nothing was measured."""
    worst = sorted(sqnr_db, key=sqnr_db.__getitem__)[:_NAMED]
    listed = ", ".join(f"{name} ({sqnr_db[name]:.1f} dB)" for name in worst)
    return f" Furthest from float32 are {listed}." if worst else ""


def describe_costliest(ranked: Sequence[ModuleSensitivity], kept: Sequence[str]) -> str:
    """The modules to keep in FP16 next, as the end of an error; "" where none is known."""
    free = [module for module in ranked if not is_inside(module.module, kept)][:_NAMED]
    if not free:
        return ""
    listed = ", ".join(f"{module.module} ({module.output_sqnr_db:.1f} dB)" for module in free)
    return (
        f" By the error they bring into the outputs, these modules cost most: {listed}. "
        f"Keep them in FP16 (`--keep-fp16 {free[0].module}`), let `--auto` choose, or give more calibration images."
    )
