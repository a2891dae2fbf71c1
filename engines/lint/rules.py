"""The rules of the Q/DQ linter: how grave each is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engines.lint.graph import QdqGraph, label

if TYPE_CHECKING:
    import onnx

Severity = Literal["error", "warning"]  # error: TensorRT refuses the graph, or computes something else than it says


@dataclass(frozen=True)
class Rule:
    """A rule of the linter, and what to do where it is broken."""

    name: str
    severity: Severity
    remedy: str


@dataclass(frozen=True)
class Finding:
    """A node that breaks a rule."""

    rule: str
    severity: Severity
    node: str
    operator: str
    module: str  # dotted path of the module it belongs to, "" where no name tells
    found: str
    remedy: str


Located = tuple["onnx.NodeProto", Finding]  # with the node itself, to sort by


def finding(graph: QdqGraph, node: onnx.NodeProto, rule: str, found: str) -> Located:
    """A broken rule at a node."""
    broken = RULES[rule]
    return node, Finding(rule, broken.severity, label(node), node.op_type, graph.module(node), found, broken.remedy)


RTX_INT8 = (
    "TensorRT-RTX builds a plan of INT8 convolutions, but its support matrix lists INT8 for weight-only matrix products (GEMM) "
    "alone: the speed of such a plan is unmeasured."
)
_SYMMETRIC = (
    "Only symmetric INT8 with zero point 0 is accepted: quantize activations and weights as symmetric QInt8 (onnxruntime: "
    "activation_type and weight_type QInt8, ActivationSymmetric and WeightSymmetric True), or use `yolact-deploy export "
    "--precision int8`."
)

RULES = {
    rule.name: rule
    for rule in (
        Rule("nonzero-zero-point", "error", _SYMMETRIC),
        Rule("not-int8", "error", _SYMMETRIC),
        Rule(
            "int32-bias",
            "error",
            "Keep biases in floating point, without DequantizeLinear (onnxruntime's quantizer: QuantizeBias=False).",
        ),
        Rule(
            "non-finite-weights",
            "error",
            "Export again from a checkpoint whose weights are numbers: what TensorRT computes with NaN or infinity is neither "
            "right nor refused.",
        ),
        Rule("bad-scale", "error", "Calibrate this tensor again: a scale must be positive and finite."),
        Rule(
            "dynamic-scale",
            "error",
            "Make the scale a constant: calibrate, or freeze the observers before exporting. TensorRT-RTX 1.7 ends the "
            "whole process on such a graph.",
        ),
        Rule(
            "scale-count",
            "error",
            "Give one scale, or one for each index of `axis`, and as many zero points as scales.",
        ),
        Rule(
            "mixed-float-types",
            "error",
            "Insert a Cast so that all inputs have one type, or convert with `yolact-deploy export --precision fp16`. "
            "DequantizeLinear gives the type of its scale.",
        ),
        Rule(
            "quantize-without-dequantize",
            "error",
            "Put a DequantizeLinear with the same scale behind the QuantizeLinear: TensorRT takes INT8 only as Q/DQ pairs.",
        ),
        Rule(
            "integer-operator",
            "error",
            "Quantize into QuantizeLinear/DequantizeLinear pairs instead (onnxruntime: quant_format=QuantFormat.QDQ).",
        ),
        Rule(
            "weights-per-tensor",
            "warning",
            "Give every output channel of the weight its own scale (onnxruntime: per_channel=True).",
        ),
        Rule(
            "weights-axis",
            "warning",
            "Quantize weights along the output channels: axis 0 of Conv, 1 of ConvTranspose.",
        ),
        Rule(
            "activation-per-channel",
            "warning",
            "Give activations a single scale: per-channel ones have no INT8 kernel.",
        ),
        Rule(
            "half-quantized",
            "warning",
            "Quantize both the input and the weight, or neither: with one alone it runs in floating point and only loses "
            "accuracy.",
        ),
        Rule(
            "half-beside-int8",
            "warning",
            "Keep the bias, the scales and the result of an INT8 convolution in float32, as `yolact-deploy quantize` does: "
            "TensorRT runs the same kernels, and onnxruntime's default options overflow in half and give wrong numbers.",
        ),
        Rule("quantized-bias", "warning", "Keep biases in floating point: they cost nothing there."),
        Rule(
            "scale-mismatch", "warning", "Give both nodes of a Q/DQ pair the same scale: the pair rescales the tensor."
        ),
        Rule(
            "scale-type",
            "warning",
            "Give the scale the type of the tensor: before opset 23 it is not valid ONNX and onnxruntime refuses it.",
        ),
        Rule(
            "half-scale-opset",
            "warning",
            "Export with opset 19 or newer: before, scales are float32 only. TensorRT reads it, onnxruntime does not.",
        ),
        Rule(
            "hardware-type", "warning", "Use INT8: this type is known to newer GPUs only, and others refuse the plan."
        ),
        Rule(
            "residual-both-sides",
            "warning",
            "Remove the Q/DQ between one convolution and the Add; keep it on the other (shortcut) side only. Then TensorRT "
            "adds inside the convolution's kernel.",
        ),
        Rule(
            "residual-conv-side",
            "warning",
            "Remove the Q/DQ between the convolution and the Add, and quantize the other side instead.",
        ),
        Rule(
            "before-activation",
            "warning",
            "Move the Q/DQ behind the activation: between the two it keeps TensorRT from making one kernel of them.",
        ),
        Rule(
            "concat-scales",
            "warning",
            "Leave Concat in floating point, or give all its inputs one scale: with different ones each is requantized.",
        ),
        Rule(
            "concat-quantized",
            "warning",
            "Leave the inputs of Concat in floating point, and quantize its readers' input.",
        ),
        Rule(
            "float-operator",
            "warning",
            "Remove the Q/DQ: this operator runs in floating point, and what it decodes (scores, boxes, coefficients) needs "
            "the precision.",
        ),
        Rule(
            "pass-through-one-sided",
            "warning",
            "Quantize behind it as well, with the same scale, or not in front: only between two Q/DQ it runs in INT8.",
        ),
        Rule(
            "unused-quantization",
            "warning",
            "Remove the Q/DQ: nothing behind it runs in INT8, so it only loses accuracy.",
        ),
    )
}
