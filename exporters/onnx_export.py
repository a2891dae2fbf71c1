"""The PyTorch YOLACT as an ONNX file: named inputs and outputs, dynamic batch, the spec inside, no trace of this machine.

onnxslim was tried after the exporter's own optimiser and is not used: it finds no node to remove.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import nn

from exporters.network.deformable import NATIVE_OPSET, exportable
from exporters.onnx_edit import finished
from yolact_deploy import __version__
from yolact_deploy.artifacts.contract import io_problem
from yolact_deploy.artifacts.names import (
    INPUT,
    MASK_IOU_INPUT,
    MASK_IOU_METADATA_KEY,
    MASK_IOU_OUTPUT,
    MAX_BATCH_METADATA_KEY,
    ONNX_SUFFIX,
    OUTPUTS,
    PRECISION_METADATA_KEY,
    SPEC_METADATA_KEY,
    VERSION_METADATA_KEY,
    DcnChoice,
    DcnForm,
)
from yolact_deploy.artifacts.onnx_file import parse_onnx
from yolact_deploy.errors import ExportError
from yolact_deploy.files import atomic_path
from yolact_deploy.spec import ModelSpec

BATCH_DIM = "batch"
MASK_COUNT_DIM = "count"
DEFAULT_OPSET = 19
SUPPORTED_OPSETS = (18, 19, 20)  # 18 is the exporter's first, 20 the last that is tested here
DEFAULT_MAX_BATCH = 8
PORTABLE_DCN: DcnForm = "gridsample"  # onnxruntime, TensorRT and TensorRT-RTX take it; the last has no DeformConv
OUTPUTS_SCOPE = "outputs"  # the module name of nodes that belong to no submodule
_CONSTANT_PREFIX = "val_"  # of initializers that are no parameter of the model
_SCOPE_KEY = "pkg.torch.onnx.name_scopes"
_PRODUCER = "yolact-deploy"


def export_onnx(
    model: nn.Module,
    spec: ModelSpec,
    target: str | os.PathLike[str],
    *,
    opset: int = DEFAULT_OPSET,
    max_batch: int = DEFAULT_MAX_BATCH,
    dcn: DcnChoice = "auto",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model` to `target`: `image` float32 [B, 3, S, S] in; `loc`, `conf`, `mask_coeff`, `proto` float32 out.

    B is dynamic up to `max_batch`, or fixed when that is 1. `metadata` is added to what the file says of itself. A node
    is named "<module path>/<operator>" ("backbone.layers.2.0.conv1/Conv"), and so is the tensor it gives; weights keep
    the checkpoint's names.

    `dcn` says what a deformable convolution of YOLACT++ becomes: "native" is ONNX's DeformConv (opset 19 and later),
    "gridsample" is made of operators that every runtime has; "auto" takes the latter. The mask-IoU network goes into the
    metadata, as an ONNX of its own. Raises ExportError, OutputError.
    """
    if opset not in SUPPORTED_OPSETS:
        raise ExportError(f"can't export opset {opset}; choose from {', '.join(map(str, SUPPORTED_OPSETS))}.")
    if max_batch < 1:
        raise ExportError(f"max_batch must be at least 1, found {max_batch}.")
    form = PORTABLE_DCN if dcn == "auto" else dcn
    has_dcn = any(spec.backbone.dcn_blocks)
    if has_dcn and form == "native" and opset < NATIVE_OPSET:
        raise ExportError(
            f"the native form of deformable convolutions needs opset {NATIVE_OPSET} or later, asked was {opset}. "
            f"Give --opset {NATIVE_OPSET} or --dcn gridsample."
        )
    proto = _trace_network(exportable(model, form, spec.input_size) if has_dcn else model, spec, opset, max_batch)
    described = {
        SPEC_METADATA_KEY: spec.to_json(),
        PRECISION_METADATA_KEY: "fp32",
        VERSION_METADATA_KEY: __version__,
        MAX_BATCH_METADATA_KEY: str(max_batch),
        **(metadata or {}),
    }
    if spec.mask_iou_layers:
        mask_iou = _trace_mask_iou(model.get_submodule("maskiou_net"), spec, opset)
        described[MASK_IOU_METADATA_KEY] = base64.b64encode(mask_iou.SerializeToString()).decode("ascii")
    onnx.helper.set_model_props(proto, described)
    content = finished(proto)
    _check(proto, content, spec, max_batch)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def _trace_network(model: nn.Module, spec: ModelSpec, opset: int, max_batch: int) -> onnx.ModelProto:
    batch = torch.export.Dim(BATCH_DIM, min=1, max=max_batch) if max_batch > 1 else None
    shape = (3, spec.input_size, spec.input_size)
    return _trace(model, spec.name, (INPUT, shape, batch), OUTPUTS, opset)


def _trace_mask_iou(model: nn.Module, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    count = torch.export.Dim(MASK_COUNT_DIM, min=1)
    name, shape = f"the mask-IoU network of {spec.name}", (spec.proto_size, spec.proto_size)
    return _trace(model, name, (MASK_IOU_INPUT, shape, count), (MASK_IOU_OUTPUT,), opset)


def _trace(
    model: nn.Module,
    name: str,  # for errors
    example_input: tuple[str, tuple[int, ...], Any],  # name, shape without the first dimension, that one or None if 1
    output_names: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    input_name, shape, first = example_input
    example = torch.zeros(1 if first is None else 2, *shape)  # a dynamic 1 would be taken for a constant
    dynamic = None if first is None else ({0: first},)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    # The exporter's own exceptions have no common base, and anything may come out of a decomposition.
    except Exception as exc:
        raise ExportError(f"PyTorch could not export {name} to ONNX opset {opset}: {exc}") from exc
    if program is None:
        raise ExportError(f"PyTorch gave no ONNX program for {name}.")
    proto: onnx.ModelProto = program.model_proto
    _clean_names(proto)
    proto.producer_name, proto.producer_version = _PRODUCER, __version__
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of packages that are not needed here; stdout belongs to the caller."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean_names(proto: onnx.ModelProto) -> None:
    """Name nodes and tensors by the module they come from; drop everything else that the exporter noted."""
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    kept_names = {value.name for value in (*graph.input, *graph.output)}
    renamed: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for node in graph.node:
        name = f"{_scope(node, weights)}/{node.op_type}"
        node.name = name if not seen[name] else f"{name}_{seen[name]}"
        seen[name] += 1
        for position, output in enumerate(node.output):
            if output and output not in kept_names:
                renamed[output] = node.name if position == 0 else f"{node.name}:{position}"
        constants = [
            name for name in dict.fromkeys(node.input) if name in weights and name.startswith(_CONSTANT_PREFIX)
        ]
        for number, name in enumerate(constants):
            renamed.setdefault(name, f"{node.name}:constant{f'_{number}' if number else ''}")
    for tensor in graph.initializer:
        # What is left of a folded batch norm beside the weight; the exporter calls it "x.weight_bias".
        if tensor.name.endswith(".weight_bias"):
            renamed[tensor.name] = tensor.name.removesuffix("weight_bias") + "bias"
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for described in (*graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, proto):
        described.ClearField("metadata_props")
        described.ClearField("doc_string")
    # Values that only folded constants used.
    used = {name for node in graph.node for name in (*node.input, *node.output)} | kept_names
    for field in (graph.value_info, graph.initializer):
        live = [entry for entry in field if entry.name in used]
        del field[:]
        field.extend(live)


def _scope(node: onnx.NodeProto, weights: set[str]) -> str:
    # A convolution with a folded batch norm is marked as the batch norm; its weight tells whose it is.
    if node.op_type == "Conv" and node.input[1] in weights:
        return str(node.input[1]).removesuffix(".weight")
    for entry in node.metadata_props:
        if entry.key == _SCOPE_KEY:
            scopes = ast.literal_eval(entry.value)  # root, modules outside in, the operation itself
            return scopes[-2] or OUTPUTS_SCOPE if len(scopes) > 1 else OUTPUTS_SCOPE
    return OUTPUTS_SCOPE


def _check(proto: onnx.ModelProto, content: bytes, spec: ModelSpec, max_batch: int) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the exported graph of {spec.name} is not valid ONNX: {exc}") from exc
    file = parse_onnx(content, f"{spec.name}{ONNX_SUFFIX}")
    problem = io_problem(file.io_tensors, spec)
    if problem is None and file.fixed_batch != (None if max_batch > 1 else 1):
        problem = f"its batch is {file.fixed_batch or 'dynamic'}, asked was one up to {max_batch}"
    if problem is not None:
        raise ExportError(f"the exported graph of {spec.name} is not what its spec says: {problem}.")
