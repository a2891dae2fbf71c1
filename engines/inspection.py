"""What a plan or an ONNX file holds, for `yolact-deploy inspect`; the layers of a plan, as TensorRT tells them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY, SPEC_METADATA_KEY, module_of, tensorrt_dtype
from yolact_deploy.artifacts.onnx_file import DEQUANTIZE, QUANTIZE, OnnxFile, open_onnx
from yolact_deploy.artifacts.plan_file import Layer, LayerOutput, Layers, PlanFile, open_plan
from yolact_deploy.errors import SpecError
from yolact_deploy.spec_json import encode

# The parser writes "[ONNX Layer: NODE]" into a layer's metadata, several of them once layers are fused.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")

# The engine inspector's spelling, inside a "Format/Datatype" like "Row major linear FP16 format"
_INSPECTOR_DTYPES = {"FP32": "float32", "Float": "float32", "FP16": "float16", "Half": "float16", "Int8": "int8"}


def network_layers(
    network: Any,
    modules: Mapping[str, str],  # ONNX node name -> module path
) -> Layers:
    """The layers of a typed network before fusion.

    In a strongly typed network the types are what the plan computes in; which layers share a kernel is decided later.
    """
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors = [layer.get_output(i) for i in range(layer.num_outputs)]
        outputs = tuple(LayerOutput(t.name, tensorrt_dtype(t.dtype), tuple(t.shape)) for t in tensors if t is not None)
        layers.append(
            Layer(layer.name, layer.type.name.lower(), _modules(layer.metadata, layer.name, modules), outputs)
        )
    return Layers("network", tuple(layers))


def engine_layers(trt: Any, logger: Any, plan: bytes, modules: Mapping[str, str]) -> Layers | None:
    """The fused layers of a plan, as TensorRT's engine inspector tells them; None where the plan can't be opened."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return parse_inspector(information, modules)


def parse_inspector(information: str, modules: Mapping[str, str]) -> Layers | None:
    """The inspector's JSON as layers; None where it has no detailed ones."""
    try:
        found = json.loads(information)["Layers"]
        layers = tuple(
            Layer(
                name=layer["Name"],
                kind=str(layer.get("LayerType", "")).lower(),
                modules=_modules(layer.get("Metadata", ""), layer["Name"], modules),
                outputs=tuple(
                    LayerOutput(
                        t["Name"], _inspector_dtype(t.get("Format/Datatype", "")), tuple(t.get("Dimensions", ()))
                    )
                    for t in layer.get("Outputs", ())
                ),
            )
            for layer in found
        )
    except (ValueError, KeyError, TypeError):
        return None
    return Layers("engine", layers) if layers else None


def _modules(metadata: str | None, name: str, modules: Mapping[str, str]) -> tuple[str, ...]:
    """The modules of the ONNX nodes a layer came from; none for layers that the parser added."""
    nodes = _ONNX_LAYER.findall(metadata or "") or ([name] if name in modules else [])
    return tuple(dict.fromkeys(modules.get(node, module_of(node)) for node in nodes))


def _inspector_dtype(text: str) -> str:
    return next((dtype for key, dtype in _INSPECTOR_DTYPES.items() if key in text), text)


_LARGE_METADATA = (SPEC_METADATA_KEY, MASK_IOU_METADATA_KEY)


def inspect_plan(plan: str | os.PathLike[str] | PlanFile) -> dict[str, Any]:
    """The sidecar's facts, and the layers where their file is beside the plan (else `layers` is None).

    Needs no TensorRT. Raises PlanMismatchError when the plan and its sidecar do not belong together.
    """
    file = open_plan(plan)
    layers = file.layers()
    return {
        "kind": "plan",
        "path": str(file.path),
        **file.sidecar.to_dict(),
        "layers": None if layers is None else {**_layer_counts(layers), **encode(layers)},
    }


def inspect_onnx(path: str | os.PathLike[str] | OnnxFile) -> dict[str, Any]:
    """What an ONNX file holds. A file that is not from yolact-deploy has `spec` None; `spec_error` says what is wrong.

    Raises ArtifactError when the file can't be read as ONNX.
    """
    graph = open_onnx(path)
    operators = Counter(node.operator for node in graph.nodes)
    spec, spec_error = _spec(graph)
    return {
        "kind": "onnx",
        "path": str(graph.path),
        "bytes": graph.num_bytes,
        "sha256": graph.sha256,
        "precision": graph.precision,
        "opsets": dict(graph.opsets),
        "ir_version": graph.ir_version,
        "producer": graph.producer,
        "io_tensors": [encode(tensor) for tensor in graph.io_tensors],
        "num_parameters": graph.num_parameters,
        "node_counts": _descending(operators),
        "module_counts": _descending(Counter(_top_modules(graph.modules.values()))),
        "num_quantize": operators[QUANTIZE],
        "num_dequantize": operators[DEQUANTIZE],
        "mask_iou_bytes": len(graph.metadata.get(MASK_IOU_METADATA_KEY, "")) * 3 // 4,  # base64
        "metadata": {key: value for key, value in graph.metadata.items() if key not in _LARGE_METADATA},
        "spec": spec,
        "spec_error": spec_error,
    }


def _spec(graph: OnnxFile) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return graph.spec.to_dict(), None
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
