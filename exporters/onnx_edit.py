"""ONNX graphs as the precision passes see them: read, looked up by name, checked after an edit, run with inner tensors shown."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto

from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.contract import is_end_to_end
from yolact_deploy.artifacts.names import PRECISION_METADATA_KEY, WEIGHTS_SHA256_METADATA_KEY
from yolact_deploy.artifacts.onnx_file import no_stages, open_onnx, parse_onnx, spec_in
from yolact_deploy.errors import ArtifactError, ExportError
from yolact_deploy.optional import require
from yolact_deploy.runtime.onnxruntime.network import session_options
from yolact_deploy.spec import ModelSpec

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
QUANTIZING = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"}
)


class UniqueNames:
    """Gives new nodes names of the exporter's form, "<module path>/<operator>", that are not taken yet."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._seen: Counter[str] = Counter()

    @classmethod
    def of(cls, graph: onnx.GraphProto | ir.Graph) -> UniqueNames:
        """Beside the names of a graph's nodes and tensors."""
        if isinstance(graph, onnx.GraphProto):
            return cls(name for node in graph.node for name in (node.name, *node.input, *node.output))
        values = (value.name for node in graph for value in (*node.inputs, *node.outputs) if value is not None)
        return cls(name for name in (*(node.name for node in graph), *values) if name is not None)

    def new(self, module: str, operator: str) -> str:
        """ "<module>/<operator>", numbered where that is taken."""
        base = f"{module}/{operator}"
        while True:
            name = base if not self._seen[base] else f"{base}_{self._seen[base]}"
            self._seen[base] += 1
            if name not in self._taken:
                self._taken.add(name)
                return name


def typed_ir_model(model: onnx.ModelProto) -> ir.Model:
    """For editing: with the types of all tensors, and the weights of `model` itself. Raises ExportError."""
    inferred = _inferred(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    del inferred  # a copy of all weights
    typed = ir.from_proto(model)
    for value in (value for node in typed.graph for value in node.outputs):
        value.dtype = ir.DataType(types.get(value.name or "", TensorProto.UNDEFINED))
    return typed


def operation(
    operator: str, inputs: Sequence[ir.Value], name: str, *, gives: str | None = None, **attributes: int
) -> ir.Node:
    """A node of one output, which is named `gives` or like the node."""
    node = ir.node(operator, inputs, attributes, name=name)
    node.outputs[0].name = gives or name
    return node


def add_initializer(graph: ir.Graph, name: str, values: AnyArray) -> ir.Value:
    """A new weight of the graph, of the shape and type of `values` (any shape)."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape))
    graph.register_initializer(value)
    return value


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model after an edit, metadata in their order; types of inner tensors are to be inferred anew."""
    proto = ir.to_proto(model)
    onnx.helper.set_model_props(proto, model.metadata_props)
    del proto.graph.value_info[:]
    return proto


def is_inside(module: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted module path is one of `prefixes` or lies below one: "a.b.c" is inside "a.b", "a.bc" is not."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def load_onnx(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Raises ArtifactError for what is missing, is no ONNX model, or has nodes without distinct names."""
    try:
        open_onnx(path)  # onnx.load alone reads on where a file has no end
        model = onnx.load(str(path))
    except OSError as exc:
        raise ArtifactError(f"can't read {path}: {exc.strerror or exc}. Give an exported .onnx file.") from exc
    except ArtifactError:
        raise
    except Exception as exc:  # protobuf's own error type, which moved between its versions
        raise ArtifactError(f"{path} is not an ONNX model, or is damaged: {exc}.") from exc
    names = [node.name for node in model.graph.node]
    if not names or not all(names) or len(set(names)) != len(names):
        raise ArtifactError(
            f"{path} {'has nodes without names of their own' if names else 'holds no graph'}, so its layers can't be told "
            "apart. Export it with `yolact-deploy export`."
        )
    return model


def read_spec(model: onnx.ModelProto, path: str | os.PathLike[str]) -> ModelSpec:
    """Raises SpecError when the file carries no spec, or a malformed one, ArtifactError for an end-to-end one."""
    if is_end_to_end(metadata(model)):
        raise no_stages(path)
    return spec_in(metadata(model), str(path))


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """What the file says of itself."""
    return {entry.key: entry.value for entry in model.metadata_props}


def set_precision(model: onnx.ModelProto, precision: str) -> None:
    """Say in the file's metadata what its precision is; the digest of other weights goes."""
    kept = {key: value for key, value in metadata(model).items() if key != WEIGHTS_SHA256_METADATA_KEY}
    onnx.helper.set_model_props(model, {**kept, PRECISION_METADATA_KEY: precision})


def finished(model: onnx.ModelProto) -> bytes:
    """The file of a model that is done, whose metadata tell the digest of its weights. Raises ExportError for weights that are
    no numbers."""
    weights = parse_onnx(model.SerializeToString(), "the graph").weights
    if weights.non_finite:
        raise ExportError(
            f"the graph would hold {weights.describe_non_finite()}. The checkpoint or its conversion is broken: take an earlier "
            "checkpoint, or another precision."
        )
    onnx.helper.set_model_props(model, {**metadata(model), WEIGHTS_SHA256_METADATA_KEY: weights.sha256})
    content: bytes = model.SerializeToString()
    return content


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 where the file names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def onnx_graph_digest(model: onnx.ModelProto) -> str:
    """Hex SHA-256 of what the graph computes with: nodes and weights, not the metadata."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def float_tensors(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape at batch 1 of every float32 tensor that nodes make, and of the float32 inputs. Raises ExportError."""
    graph = _inferred(model).graph
    shapes: dict[str, tuple[int, ...]] = {}
    made = {name for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type == FLOAT and value.name not in weights and (value.name in made or value in graph.input):
            shapes[value.name] = tuple(dim.dim_value or 1 for dim in tensor.shape.dim)
    return shapes


def check_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of all its tensors written in; raises ExportError where they contradict."""
    del model.graph.value_info[:]
    inferred = _inferred(model)
    try:
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ExportError(f"the converted graph is not valid ONNX: {exc}") from exc
    return inferred


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as exc:
        raise ExportError(f"the types of the graph contradict each other: {exc}") from exc


def open_session(model: onnx.ModelProto) -> Any:
    """An onnxruntime session on the CPU that computes what the graph says, Q/DQ included.

    Raises ExportError where onnxruntime does not take the graph.
    """
    ort = require("onnxruntime", extra="export", purpose="measuring activations")
    options = session_options(ort)
    options.enable_cpu_mem_arena = False  # it would keep the memory of all tensors that are fetched, to use again
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's exception classes share no public base
        raise ExportError(f"onnxruntime can't open the graph: {str(exc).strip().partition(chr(10))[0]}") from exc


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of a model whose tensors `names` are outputs too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy
