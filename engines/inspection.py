"""What a plan or an ONNX file holds, as JSON-able dictionaries for `yolact-deploy inspect`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from engines.layers import Layers, read_layers
from engines.onnx_graph import OnnxGraph, read_onnx
from yolact_deploy.errors import SpecError
from yolact_deploy.sidecar import verify_plan
from yolact_deploy.spec import MASK_IOU_METADATA_KEY, SPEC_METADATA_KEY
from yolact_deploy.spec_json import encode

_LARGE_METADATA = (SPEC_METADATA_KEY, MASK_IOU_METADATA_KEY)


def inspect_plan(plan: str | os.PathLike[str]) -> dict[str, Any]:
    """The sidecar's facts, and the layers where their file is beside the plan (else `layers` is None).

    Needs no TensorRT. Raises PlanMismatchError when the plan and its sidecar do not belong together.
    """
    sidecar = verify_plan(plan)
    layers = read_layers(plan, sidecar.plan_sha256)
    return {
        "kind": "plan",
        "path": os.fspath(plan),
        **sidecar.to_dict(),
        "layers": None if layers is None else {**_layer_counts(layers), **encode(layers)},
    }


def inspect_onnx(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an ONNX file holds. A file that is not from yolact-deploy has `spec` None; `spec_error` says what is wrong.

    Raises ArtifactError when the file can't be read as ONNX.
    """
    graph = read_onnx(path)
    operators = Counter(node.op_type for node in graph.model.graph.node)
    spec, spec_error = _spec(graph)
    return {
        "kind": "onnx",
        "path": os.fspath(path),
        "bytes": len(graph.data),
        "sha256": graph.sha256,
        "precision": graph.precision,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in graph.model.opset_import},
        "ir_version": graph.model.ir_version,
        "producer": " ".join(filter(None, (graph.model.producer_name, graph.model.producer_version))),
        "io_tensors": [encode(tensor) for tensor in graph.io_tensors],
        "num_parameters": sum(_size(tensor.dims) for tensor in graph.model.graph.initializer),
        "node_counts": _descending(operators),
        "module_counts": _descending(Counter(_top_modules(graph.modules.values()))),
        "num_quantize": operators["QuantizeLinear"],
        "num_dequantize": operators["DequantizeLinear"],
        "mask_iou_bytes": len(graph.metadata.get(MASK_IOU_METADATA_KEY, "")) * 3 // 4,  # base64
        "metadata": {key: value for key, value in graph.metadata.items() if key not in _LARGE_METADATA},
        "spec": spec,
        "spec_error": spec_error,
    }


def _spec(graph: OnnxGraph) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return graph.spec().to_dict(), None
    except SpecError as exc:
        return None, str(exc)


def _layer_counts(layers: Layers) -> dict[str, dict[str, int]]:
    listed = layers.layers
    return {
        "kind_counts": _descending(Counter(layer.kind for layer in listed)),
        "dtype_counts": _descending(Counter(output.dtype for layer in listed for output in layer.outputs)),
        "module_counts": _descending(Counter(_top_modules(module for layer in listed for module in layer.modules))),
    }


def _top_modules(modules: Iterable[str]) -> list[str]:
    return [module.partition(".")[0] for module in modules]


def _descending(counts: Counter[str]) -> dict[str, int]:
    return dict(counts.most_common())


def _size(dims: Iterable[int]) -> int:
    size = 1
    for dim in dims:
        size *= dim
    return size
