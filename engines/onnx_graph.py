"""An ONNX file as the builder and `inspect` see it: its bytes, spec, I/O tensors, precision and modules."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.artifacts.contract import IoTensor, is_end_to_end
from yolact_deploy.artifacts.names import (
    END_TO_END,
    MAX_BATCH_METADATA_KEY,
    SPEC_METADATA_KEY,
    Form,
    Precision,
    is_checkpoint,
    is_plan,
    module_of,
)
from yolact_deploy.errors import ArtifactError, SpecError
from yolact_deploy.optional import require
from yolact_deploy.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

_EXPORT_AGAIN = "Export it with `yolact-deploy export CHECKPOINT -o model.onnx`."


@dataclass(frozen=True, eq=False)
class OnnxGraph:
    """A parsed ONNX file; `data` are the bytes `model` and `sha256` were made from."""

    path: Path
    data: bytes
    model: onnx.ModelProto

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def has_spec(self) -> bool:
        return SPEC_METADATA_KEY in self.metadata

    def spec(self) -> ModelSpec:
        """Raises SpecError when the file carries none, or a malformed one."""
        if not self.has_spec:
            raise SpecError(f"{self.path} carries no YOLACT spec in its metadata. {_EXPORT_AGAIN}")
        try:
            return ModelSpec.from_json(self.metadata[SPEC_METADATA_KEY])
        except SpecError as exc:
            raise SpecError(f"{self.path} carries a spec that can't be used: {exc}") from exc

    @property
    def max_batch(self) -> int | None:
        """The largest batch it was exported for, where the export recorded one."""
        text = self.metadata.get(MAX_BATCH_METADATA_KEY, "")
        return int(text) if text.isdigit() else None

    @functools.cached_property
    def io_tensors(self) -> tuple[IoTensor, ...]:
        """Inputs, then outputs, in the graph's order; -1 for a symbolic or unknown size."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = [_io_tensor(value, "input") for value in self.model.graph.input if value.name not in weights]
        return (*inputs, *(_io_tensor(value, "output") for value in self.model.graph.output))

    @property
    def form(self) -> Form:
        """Whether the outputs are head tensors, or finished detections."""
        return END_TO_END if is_end_to_end(self.metadata) else "heads"

    @functools.cached_property
    def precision(self) -> Precision:
        """int8 where it quantizes, else fp16 where any tensor is made or stored as float16, else fp32."""
        operators = {node.op_type for node in self.model.graph.node}
        if operators & {"QuantizeLinear", "DequantizeLinear"}:
            return "int8"
        return "fp16" if _has_float16(self.model) else "fp32"

    @functools.cached_property
    def operators(self) -> dict[str, str]:
        """Node name -> operator, of the named nodes."""
        return {node.name: node.op_type for node in self.model.graph.node if node.name}

    @functools.cached_property
    def modules(self) -> dict[str, str]:
        """Node name -> dotted path of the module it came from, "" for none."""
        return {node.name: module_of(node.name) for node in self.model.graph.node if node.name}


def read_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """Raises ArtifactError when the file is missing, is no ONNX model, or keeps its weights in other files."""
    onnx = require("onnx", extra="rtx", purpose="reading an ONNX file")
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise ArtifactError(f"can't read {file}: {exc.strerror or exc}.") from exc
    try:
        model = onnx.load_model_from_string(data)
    except Exception as exc:  # protobuf's own error type, which moved between its versions
        hint = f" Export it first: yolact-deploy export {file} -o {file.stem}.onnx" if is_checkpoint(file) else ""
        if is_plan(file):
            hint = " It is named as a plan is: give the ONNX it was built from."
        raise ArtifactError(f"{file} is not an ONNX model, or is damaged ({_first_line(exc)}).{hint}") from exc
    if not model.graph.node:
        found = "it is empty" if not data else "it holds no graph"
        raise ArtifactError(f"{file} is not an ONNX model, or is damaged: {found}.")
    external = onnx.TensorProto.EXTERNAL
    if outside := next((t.name for t in model.graph.initializer if t.data_location == external), None):
        raise ArtifactError(
            f"{file} keeps weights in a separate file (tensor {outside}). Save it as one file: "
            "onnx.save(onnx.load(PATH), NEW_PATH), or export again with `yolact-deploy export`."
        )
    return OnnxGraph(file, data, model)


def _io_tensor(value: onnx.ValueInfoProto, mode: str) -> IoTensor:
    onnx = require("onnx", extra="rtx", purpose="reading an ONNX file")
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = "undefined"
    return IoTensor(name=value.name, mode="input" if mode == "input" else "output", dtype=dtype, shape=shape)


def _has_float16(model: onnx.ModelProto) -> bool:
    half = require("onnx", extra="rtx", purpose="reading an ONNX file").TensorProto.FLOAT16
    if any(tensor.data_type == half for tensor in model.graph.initializer):
        return True
    return any(
        (node.op_type == "Cast" and attribute.name == "to" and attribute.i == half)
        or (node.op_type == "Constant" and attribute.name == "value" and attribute.t.data_type == half)
        for node in model.graph.node
        for attribute in node.attribute
    )


def _first_line(exc: Exception) -> str:
    return (str(exc) or type(exc).__name__).strip().splitlines()[0]
