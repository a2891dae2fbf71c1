"""A linter for quantized ONNX graphs: what TensorRT refuses, misreads, runs slower or less accurately than it could.

Made for Q/DQ graphs of any origin: `yolact-deploy export --precision int8`, onnxruntime's quantizer, quantization-aware
training in PyTorch. What is an error was tried on TensorRT-RTX 1.7 (tests/unit/engines/test_lint.py).
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from engines.lint.checks import parameter_findings, placement_findings, weight_findings
from engines.lint.graph import CONVOLUTIONS, QdqGraph, structure_problem
from engines.lint.rules import RTX_INT8, RULES, Finding, Severity
from yolact_deploy.artifacts.onnx_file import DEQUANTIZE, QUANTIZE, OnnxFile, open_onnx
from yolact_deploy.errors import ArtifactError, one_line
from yolact_deploy.optional import require

if TYPE_CHECKING:
    import onnx

__all__ = ["RULES", "Finding", "LintReport", "lint_onnx"]


@dataclass(frozen=True)
class LintReport:
    """What was found in one file; of a graph without quantization, clashing float types and weights that are no
    numbers."""

    path: str
    sha256: str
    quantize_nodes: int
    dequantize_nodes: int
    convolutions: int
    int8_convolutions: int  # both the input and the weight come from DequantizeLinear
    findings: tuple[Finding, ...]  # errors first, then in the graph's order

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What TensorRT refuses."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What costs accuracy or speed."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[str, ...]:
        """What no edit of the graph changes."""
        return (RTX_INT8,) if self.int8_convolutions else ()

    @property
    def passed(self) -> bool:
        """No errors; warnings pass."""
        return not self.errors

    def summary(self, severity: Severity) -> list[str]:
        """One sentence for each rule that was broken: how often, where first, and the remedy."""
        lines = []
        findings = self._of(severity)
        for rule, count in Counter(finding.rule for finding in findings).items():
            first = next(finding for finding in findings if finding.rule == rule)
            more = f" and {count - 1} more" if count > 1 else ""
            lines.append(f"{rule} at {first.node}{more}: {first.found}. {first.remedy}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        counts = Counter(finding.rule for finding in self.findings)
        return {
            "path": self.path,
            "sha256": self.sha256,
            "passed": self.passed,
            "quantize_nodes": self.quantize_nodes,
            "dequantize_nodes": self.dequantize_nodes,
            "convolutions": self.convolutions,
            "int8_convolutions": self.int8_convolutions,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "rule_counts": dict(counts.most_common()),
            "notes": list(self.notes),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == severity)


def lint_onnx(source: str | os.PathLike[str] | OnnxFile) -> LintReport:
    """Lint an ONNX file, of this project or any other; no spec is needed. Raises ArtifactError when it can't be read."""
    file = open_onnx(source, whole=True)
    file.require_one_file()
    graph = QdqGraph(_model(file))
    if problem := structure_problem(graph):
        raise ArtifactError(f"{file.path} holds a malformed graph, which no runtime reads: {problem}.")
    positions = {id(node): index for index, node in enumerate(graph.nodes)}
    non_finite = file.weights.non_finite
    try:
        found = [*weight_findings(graph, non_finite), *parameter_findings(graph), *placement_findings(graph)]
    except ArtifactError as exc:
        raise ArtifactError(f"can't check {file.path}: {exc}") from exc
    found.sort(key=lambda item: (item[1].severity != "error", positions[id(item[0])]))
    operators = Counter(node.op_type for node in graph.nodes)
    convolutions = [node for node in graph.nodes if node.op_type in CONVOLUTIONS]
    return LintReport(
        path=str(file.path),
        sha256=file.sha256,
        quantize_nodes=operators[QUANTIZE],
        dequantize_nodes=operators[DEQUANTIZE],
        convolutions=len(convolutions),
        int8_convolutions=sum(all(graph.dequantized(name) for name in node.input[:2]) for node in convolutions),
        findings=tuple(finding for _, finding in found),
    )


def _model(file: OnnxFile) -> onnx.ModelProto:
    package = require("onnx", extra="rtx", purpose="checking an ONNX file")
    try:
        model: onnx.ModelProto = package.load_model_from_string(file.content)
    except Exception as exc:  # protobuf's own error type, which moved between its versions
        raise ArtifactError(f"{file.path} is not an ONNX model, or is damaged: {one_line(exc)}.") from exc
    return model
