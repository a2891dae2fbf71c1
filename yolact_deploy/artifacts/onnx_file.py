"""An ONNX file: what it says of itself and what its graph is, read without the onnx package and without a session.

Field numbers are those of onnx.proto (github.com/onnx/onnx), messages and fields by the names they have there.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

from yolact_deploy.arguments import check_paths
from yolact_deploy.artifacts.contract import IoTensor, Mode, check_io, describe, is_end_to_end
from yolact_deploy.artifacts.names import (
    END_TO_END,
    FORM_METADATA_KEY,
    INPUT,
    MASK_IOU_METADATA_KEY,
    MAX_BATCH_METADATA_KEY,
    SPEC_METADATA_KEY,
    WEIGHTS_SHA256_METADATA_KEY,
    Form,
    Precision,
    is_checkpoint,
    is_plan,
    module_of,
)
from yolact_deploy.artifacts.onnx_bytes import Message, Weights, Window, WireError, each, read_weights
from yolact_deploy.errors import ArtifactError, SpecError
from yolact_deploy.files import is_file, open_bytes, sha256_file
from yolact_deploy.spec import ModelSpec

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_EXPORT_AGAIN = "Export it again with `yolact-deploy export`."
_FLOAT16 = 10  # TensorProto.DataType
_BATCH = re.compile(r"[1-9][0-9]{0,8}")
_EXTERNAL = 1  # TensorProto.DataLocation
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "object", 9: "bool",
    _FLOAT16: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
_UNDEFINED = "undefined"


class Node(NamedTuple):
    """A node of the graph."""

    name: str  # "" where the exporter gave none
    operator: str


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An ONNX file that `open_onnx` has looked into."""

    kind: ClassVar[Literal["onnx"]] = "onnx"
    path: Path
    metadata: Mapping[str, str]  # metadata_props
    io_tensors: tuple[IoTensor, ...]  # inputs, then outputs, in the graph's order
    nodes: tuple[Node, ...]
    precision: Precision  # of the graph, whatever the metadata says: see `_precision`
    num_parameters: int
    opsets: Mapping[str, int]  # domain -> version
    ir_version: int
    producer: str
    external: Mapping[str, Path]  # weights that lie in other files: tensor -> file, in the folder of this one
    _content: bytes | None = field(default=None, repr=False)  # where it was opened whole

    @functools.cached_property
    def spec(self) -> ModelSpec:
        """Raises SpecError when the file carries none, or one that can't be used."""
        return spec_in(self.metadata, str(self.path))

    @property
    def form(self) -> Form:
        """Whether the outputs are head tensors, or finished detections."""
        return END_TO_END if is_end_to_end(self.metadata) else "heads"

    @property
    def dtypes(self) -> dict[str, str]:
        """NumPy's name of the type of every input and output, by name."""
        return {tensor.name: tensor.dtype for tensor in self.io_tensors}

    @property
    def batch(self) -> tuple[int, int | None]:
        """The smallest and the largest batch it takes; None where the export did not record one."""
        fixed = self.fixed_batch
        if fixed is not None:
            return fixed, fixed
        text = self.metadata.get(MAX_BATCH_METADATA_KEY, "")
        return 1, int(text) if _BATCH.fullmatch(text) else None

    @property
    def fixed_batch(self) -> int | None:
        """The batch of the input's shape; None where it is chosen at run time."""
        shape = next((tensor.shape for tensor in self.io_tensors if tensor.name == INPUT), ())
        return shape[0] if shape and shape[0] != -1 else None

    @functools.cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file; where weights lie in other files, of it and of these, one after the other."""
        if self._content is not None and not self.external:
            return hashlib.sha256(self._content).hexdigest()
        return sha256_file(*self._files)

    @functools.cached_property
    def weights(self) -> Weights:
        """The digest of its weights, and those that are no numbers, also of the mask-IoU network that it carries. Raises
        ArtifactError when they can't be read."""
        judge = self.metadata.get(MASK_IOU_METADATA_KEY)
        try:
            with self.path.open("rb") if self._content is None else io.BytesIO(self._content) as stream:
                size = stream.seek(0, os.SEEK_END)
                graphs = Message(Window(stream, size), 0, size).messages(7)  # graph
                own = read_weights(each(graphs, 5), self.external, judge)
        except (OSError, WireError) as exc:
            raise ArtifactError(f"can't read the weights of {self.path}: {exc}.") from exc
        try:
            inner = parse_onnx(base64.b64decode(judge or ""), self.path).weights.non_finite if judge else {}
        except (ValueError, ArtifactError):  # `mask_iou` tells what is wrong with it
            inner = {}
        return replace(
            own, non_finite={**own.non_finite, **{f"mask_iou/{name}": found for name, found in inner.items()}}
        )

    @property
    def weights_are_as_exported(self) -> bool | None:
        """Whether the weights are those that the metadata have the digest of; None where they have none."""
        told = self.metadata.get(WEIGHTS_SHA256_METADATA_KEY)
        return None if told is None else told == self.weights.sha256

    @property
    def weights_notes(self) -> tuple[str, ...]:
        """What a user of the file should know of its weights: that they were changed, that some are no numbers."""
        notes = []
        if self.weights_are_as_exported is False:
            notes.append(
                f"the weights of {self.path} are not those that were exported: the file was edited, or damaged on its way. If "
                "nobody meant to, copy or export it again."
            )
        if self.weights.non_finite:
            notes.append(
                f"{self.path} holds {self.weights.describe_non_finite()}: what is computed of them is no number."
            )
        return tuple(notes)

    @property
    def num_bytes(self) -> int:
        """Of the file, and of those in which its weights lie."""
        own, *others = self._files
        size = own.stat().st_size if self._content is None else len(self._content)
        return size + sum(path.stat().st_size for path in others)

    @functools.cached_property
    def content(self) -> bytes:
        """The file's bytes: the very ones that were looked into, where it was opened whole."""
        return self.path.read_bytes() if self._content is None else self._content

    @functools.cached_property
    def mask_iou(self) -> bytes | None:
        """The ONNX file of the network that scores masks; None for a model whose masks keep their box's score, and for an
        end-to-end one, which holds that network in its graph. Raises SpecError for one that is missing or damaged."""
        return None if self.form == END_TO_END else mask_iou_in(self.metadata, self.spec, str(self.path))

    @functools.cached_property
    def operators(self) -> dict[str, str]:
        """Node name -> operator, of the named nodes."""
        return {node.name: node.operator for node in self.nodes if node.name}

    @functools.cached_property
    def modules(self) -> dict[str, str]:
        """Node name -> dotted path of the module it came from, "" for none."""
        return {node.name: module_of(node.name) for node in self.nodes if node.name}

    def check_form(self, form: Form) -> None:
        """Raise ArtifactError for an end-to-end file where heads are wanted, SpecError for the other way round."""
        if form == "heads" and self.form != form:
            raise no_stages(self.path)
        if self.form != form:
            raise SpecError(
                f"{self.path} is not an end-to-end ONNX of this project: its metadata lacks {FORM_METADATA_KEY!r}. "
                "Export it again with `yolact-deploy export --end-to-end`."
            )

    def check_io(self, form: Form = "heads") -> None:
        """Raise as `check_form`, and SpecError unless inputs and outputs are those of the spec. Outputs of an end-to-end file
        tell their own sizes."""
        self.check_form(form)
        check_io(self.io_tensors, self.spec, form, str(self.path), unknown_fits=form == END_TO_END)

    def require_one_file(self) -> None:
        """Raise ArtifactError where weights lie in other files, for what takes the file's bytes alone."""
        if tensor := next(iter(self.external), None):
            raise ArtifactError(
                f"{self.path} keeps weights in a separate file (tensor {tensor}). Save it as one file: "
                "onnx.save(onnx.load(PATH), NEW_PATH), or export again with `yolact-deploy export`."
            )

    def describe(self) -> dict[str, Any]:
        """A JSON object: path, kind, precision, digest and size."""
        return describe(self)

    @property
    def _files(self) -> list[Path]:
        return [self.path, *sorted(set(self.external.values()))]


def open_onnx(source: str | os.PathLike[str] | OnnxFile, *, whole: bool = False) -> OnnxFile:
    """Look into an ONNX file; one that is open already is handed on.

    Its weights are passed over unread, unless it is opened `whole`: then `content` and `sha256` are of the very bytes that
    were looked into. Raises ArtifactError when it can't be read, is no ONNX model, or lacks files with its
    weights, OptionError for what is no path.

    >>> file = open_onnx("model.onnx")
    >>> [tensor.name for tensor in file.io_tensors], file.form, file.batch
    (['image', 'loc', 'conf', 'mask_coeff', 'proto'], 'heads', (1, None))
    >>> file.nodes[0]
    Node(name='backbone.stem/Conv', operator='Conv')
    """
    if isinstance(source, OnnxFile):
        return source
    check_paths(source=source)
    path = Path(source)
    try:
        with open_bytes(path) as stream:
            if whole:
                return parse_onnx(stream.read(), path)
            return _read_onnx(path, stream, stream.seek(0, os.SEEK_END))
    except OSError as exc:
        raise ArtifactError(f"can't read {path}: {exc.strerror or exc}.") from exc


def parse_onnx(content: bytes, path: str | os.PathLike[str]) -> OnnxFile:
    """As `open_onnx`, of bytes that `path` has or will have."""
    return _read_onnx(Path(path), io.BytesIO(content), len(content), content)


def no_stages(path: str | os.PathLike[str]) -> ArtifactError:
    """The error for what needs the network's own outputs: comparing tensors, timing stages, lower precision."""
    return ArtifactError(
        f"{path} is an end-to-end ONNX: it goes from image to detections in one run, and gives no head tensors to time, "
        "compare or quantize. Take the ordinary export of the same checkpoint (`yolact-deploy export` without --end-to-end)."
    )


def spec_in(
    metadata: Mapping[str, str],
    source: str,  # names the file in errors
) -> ModelSpec:
    """The spec in an ONNX's metadata. Raises SpecError when there is none, or one that can't be used."""
    text = metadata.get(SPEC_METADATA_KEY)
    if text is None:
        raise SpecError(
            f"{source} carries no YOLACT spec: it carries no {SPEC_METADATA_KEY!r} metadata, so its classes, priors and "
            "preprocessing are unknown. Export it from its checkpoint with `yolact-deploy export`."
        )
    try:
        return ModelSpec.from_json(text)
    except SpecError as exc:
        raise SpecError(f"{source} carries a spec that can't be used: {exc}") from exc


def mask_iou_in(
    metadata: Mapping[str, str],  # of an ordinary export
    spec: ModelSpec,
    source: str,  # names the file in errors
) -> bytes | None:
    """The ONNX file of the network that scores masks; None for a model whose masks keep their box's score.

    Raises SpecError when the spec asks for one and the metadata has none, or one that is damaged.
    """
    if not spec.mask_iou_layers:
        return None
    encoded = metadata.get(MASK_IOU_METADATA_KEY)
    if encoded is None:
        raise SpecError(
            f"{source} is a YOLACT++ by its spec, but carries no mask-IoU network ({MASK_IOU_METADATA_KEY!r}), so its "
            f"masks can't be scored. {_EXPORT_AGAIN}"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as exc:  # ValueError: not even ASCII
        raise SpecError(f"the mask-IoU network in {source} is damaged: {exc}. {_EXPORT_AGAIN}") from exc


def _read_onnx(path: Path, stream: BinaryIO, size: int, content: bytes | None = None) -> OnnxFile:
    model = Message(Window(stream, size), 0, size)  # ModelProto
    try:
        graphs = model.messages(7)  # graph
        nodes = each(graphs, 1)  # node
        if not nodes:
            raise WireError("it holds no graph" if size else "it is empty")
        weights = each(graphs, 5)  # initializer
        names = {weight.text(8) for weight in weights}  # name
        return OnnxFile(
            path=path,
            metadata={entry.text(1): entry.text(2) for entry in model.messages(14)},  # metadata_props: key, value
            io_tensors=(
                *(_io_tensor(value, "input") for value in each(graphs, 11) if value.text(1) not in names),
                *(_io_tensor(value, "output") for value in each(graphs, 12)),
            ),
            nodes=tuple(Node(node.text(3), node.text(4)) for node in nodes),  # name, op_type
            precision=_precision(nodes, weights),
            num_parameters=sum(_count(weight) for weight in weights),
            opsets={entry.text(1) or "ai.onnx": entry.integer(2) for entry in model.messages(8)},  # domain, version
            ir_version=model.integer(1),
            producer=" ".join(filter(None, (model.text(2), model.text(3)))),  # producer_name, producer_version
            external={weight.text(8): _beside(path, weight) for weight in weights if weight.integer(14) == _EXTERNAL},
            _content=content,
        )
    except WireError as exc:
        raise _no_onnx(path, size, exc) from exc


def _no_onnx(path: Path, size: int, exc: WireError) -> ArtifactError:
    remedy = f"If the file was copied or downloaded, get it again; else {_EXPORT_AGAIN[0].lower()}{_EXPORT_AGAIN[1:]}"
    if is_checkpoint(path):
        remedy = f"Export it first: yolact-deploy export {path} -o {path.stem}.onnx"
    elif is_plan(path):
        remedy = "It is named as a plan is: give the ONNX it was built from."
    return ArtifactError(
        f"can't open {path} ({size} bytes): {path.name} is not an ONNX model, or is damaged: {exc}. {remedy}"
    )


def _io_tensor(value: Message, mode: Mode) -> IoTensor:
    """Of a ValueInfoProto; -1 for a symbolic or unknown size."""
    types = each(value.messages(2), 1)  # type.tensor_type
    elements = [number for tensor in types for number in tensor.integers(1)]  # elem_type
    sizes = [next(reversed(dim.integers(1)), -1) for dim in each(each(types, 2), 1)]  # shape.dim.dim_value
    return IoTensor(
        value.text(1), mode, _DTYPES.get(elements[-1], _UNDEFINED) if elements else _UNDEFINED, tuple(sizes)
    )


def _precision(nodes: Iterable[Message], weights: Iterable[Message]) -> Precision:
    """int8 where it quantizes, else fp16 where any tensor is made or stored as float16, else fp32."""
    operators = [(node.text(4), node) for node in nodes]
    if any(operator in (QUANTIZE, DEQUANTIZE) for operator, _ in operators):
        return "int8"
    if any(weight.integer(2) == _FLOAT16 for weight in weights):  # data_type
        return "fp16"
    for operator, node in operators:
        for attribute in node.messages(5) if operator in ("Cast", "Constant") else ():
            name = attribute.text(1)
            if operator == "Cast" and name == "to" and attribute.integer(3) == _FLOAT16:  # i
                return "fp16"
            is_value = operator == "Constant" and name == "value"
            if is_value and any(tensor.integer(2) == _FLOAT16 for tensor in attribute.messages(5)):  # t
                return "fp16"
    return "fp32"


def _count(weight: Message) -> int:
    size = 1
    for dim in weight.integers(1):  # dims
        size *= dim
    return size


def _beside(path: Path, weight: Message) -> Path:
    """The file in which a TensorProto's values lie: one in the folder of the ONNX, or below it."""
    entries = {entry.text(1): entry.text(2) for entry in weight.messages(13)}  # external_data: key, value
    location = entries.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
        raise ArtifactError(
            f"{path} names {location!r} as the file of the tensor {weight.text(8)}, which is not in its folder, so it was not "
            f"opened. {_EXPORT_AGAIN}"
        )
    file = path.parent.joinpath(*parts)
    if not is_file(file):
        raise ArtifactError(
            f"{path} keeps weights in {location} (tensor {weight.text(8)}), which is not beside it. Copy the files together."
        )
    return file
