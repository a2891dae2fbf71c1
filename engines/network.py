"""What a TensorRT network is told, the sizes of its input that a plan is optimized for, and what it tells: its layers, before
fusion those of the network, after it those of the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.names import END_TO_END, module_of, tensorrt_dtype
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.plan_file import BatchRange, Layer, LayerOutput, Layers
from yolact_deploy.errors import BuildRequestError
from yolact_deploy.spec import ModelSpec

Hw = tuple[int, int]
Shape = tuple[int, ...]

# The parser writes "[ONNX Layer: NODE]" into a layer's metadata, several of them once layers are fused.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")

# The engine inspector's spelling, inside a "Format/Datatype" like "Row major linear FP16 format"
_INSPECTOR_DTYPES = {"FP32": "float32", "Float": "float32", "FP16": "float16", "Half": "float16", "Int8": "int8"}


@dataclass(frozen=True)
class ImageRange:
    """Image sizes (height, width) of the optimization profile. Raises BuildRequestError."""

    min_hw: Hw = (32, 32)
    opt_hw: Hw = (480, 640)
    max_hw: Hw = (1280, 1280)

    def __post_init__(self) -> None:
        for axis in (0, 1):
            if not 1 <= self.min_hw[axis] <= self.opt_hw[axis] <= self.max_hw[axis]:
                raise BuildRequestError(
                    f"image sizes must satisfy 1 <= min <= opt <= max in width and in height, found {self}. "
                    "Give --image-size MIN,OPT,MAX as WIDTHxHEIGHT."
                )

    def __str__(self) -> str:
        return ",".join(f"{width}x{height}" for height, width in (self.min_hw, self.opt_hw, self.max_hw))


def input_shapes(
    graph: OnnxFile, spec: ModelSpec, batch: BatchRange, image_size: Hw | tuple[Hw, Hw, Hw] | None
) -> tuple[tuple[Shape, Shape, Shape], list[str]]:
    """MIN, OPT and MAX shape of the input `image`, and notes on what was decided for the user.

    Raises BuildRequestError for image sizes that can't be, or where the graph takes no images but the network's input.
    """
    images = _image_sizes(image_size)
    batches = (batch.min, batch.opt, batch.max)
    if graph.form != END_TO_END:
        if images is not None:
            raise BuildRequestError(
                f"{graph.path} takes preprocessed images of {spec.input_size}x{spec.input_size}, so there are no image sizes "
                "to choose. Leave --image-size out, or export with --end-to-end."
            )
        small, middle, large = ((count, 3, spec.input_size, spec.input_size) for count in batches)
        return (small, middle, large), []
    sizes = ImageRange() if images is None else ImageRange(*images)
    notes = (
        [] if images is not None else [f"no image sizes given: built for {sizes} (min, opt, max of width x height)."]
    )
    hws = (sizes.min_hw, sizes.opt_hw, sizes.max_hw)
    small, middle, large = ((count, *hw, 3) for count, hw in zip(batches, hws, strict=True))
    return (small, middle, large), notes


def _image_sizes(image_size: Hw | tuple[Hw, Hw, Hw] | None) -> tuple[Hw, Hw, Hw] | None:
    if image_size is None:
        return None
    sizes: Any = image_size if isinstance(image_size, (list, tuple)) and len(image_size) == 3 else (image_size,) * 3
    if not all(isinstance(size, (list, tuple)) and [type(side) for side in size] == [int, int] for size in sizes):
        raise BuildRequestError(f"image_size must be (height, width), or three of them, found {image_size!r}.")
    return sizes[0], sizes[1], sizes[2]


def network_tensors(network: Any) -> tuple[IoTensor, ...]:
    """Inputs and outputs of a network, in its order."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return (
        *(IoTensor(t.name, "input", tensorrt_dtype(t.dtype), tuple(t.shape)) for t in inputs),
        *(IoTensor(t.name, "output", tensorrt_dtype(t.dtype), tuple(t.shape)) for t in outputs),
    )


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
