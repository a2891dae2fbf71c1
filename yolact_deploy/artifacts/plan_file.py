"""A plan and what lies beside it: the sidecar, a JSON file that says what the plan is and proves that the two belong
together.

A plan is opaque, so everything a runtime or a reader needs travels in `model.engine.json` beside `model.engine`; what
can't be put in words, the mask-IoU network of a YOLACT++, lies beside the two and is named in the sidecar. The layers are
told in a file for readers alone. The plan is the last to be replaced; whatever a kill before that leaves is refused, since
the old plan's digest disagrees with the new sidecar (or the plan did not change, and the new sidecar is right about it).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Literal

from yolact_deploy.artifacts.contract import IoTensor, describe, form_of
from yolact_deploy.artifacts.names import TF32, Form, PlanPrecision, RuntimeName
from yolact_deploy.errors import PlanMismatchError, SpecError
from yolact_deploy.files import open_bytes, read_bytes, write_json, write_text
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import JsonError, decode, encode, read_json
from yolact_deploy.text import is_printable

SIDECAR_SCHEMA_VERSION = 1
LAYERS_SCHEMA_VERSION = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"sm\d{2,3}")
_SHOWN_DIGEST_CHARS = 12


@dataclass(frozen=True)
class BatchRange:
    """The batch sizes of the optimization profile."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(f"batch must satisfy 1 <= min <= opt <= max, found {self.min},{self.opt},{self.max}.")


@dataclass(frozen=True)
class CompanionFile:
    """A file that must lie in the plan's folder."""

    name: str  # without folders
    sha256: str
    num_bytes: int

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise SpecError(f"sha256 must be 64 lower-case hexadecimal digits, found {self.sha256!r}.")
        if not _is_file_name(self.name):
            raise SpecError(f"{self.name!r} must be a file name without folders.")


@dataclass(frozen=True)
class Sidecar:
    """What a plan holds and where it may run. Raises SpecError when a field's value can't be right."""

    spec: ModelSpec
    plan_sha256: str
    plan_bytes: int
    runtime: RuntimeName
    runtime_version: str
    targets: tuple[str, ...]  # GPU architectures, "sm86"; empty when the building GPU could not be named
    precision: PlanPrecision
    batch: BatchRange
    onnx_sha256: str
    onnx_name: str  # file name only
    io_tensors: tuple[IoTensor, ...]
    created: str  # UTC, ISO 8601
    yolact_deploy_version: str
    notes: tuple[str, ...] = ()
    mask_iou: CompanionFile | None = None  # YOLACT++: the network that scores masks, an ONNX file
    schema_version: int = SIDECAR_SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("plan_sha256", "onnx_sha256"):
            if not _SHA256.fullmatch(getattr(self, name)):
                raise SpecError(f"{name} must be 64 lower-case hexadecimal digits, found {getattr(self, name)!r}.")
        if self.plan_bytes < 1:
            raise SpecError(f"plan_bytes must be positive, found {self.plan_bytes}.")
        if bad := [target for target in self.targets if not _TARGET.fullmatch(target)]:
            raise SpecError(f"targets must look like sm86, found {', '.join(map(repr, bad))}.")
        if not _is_file_name(self.onnx_name):
            raise SpecError(f"onnx_name must be a file name without folders, found {self.onnx_name!r}.")

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, the short facts first and the long spec last.

        `mask_iou` is left out where there is none, so that readers of before YOLACT++ read what they know.
        """
        encoded = encode(self)
        del encoded["spec"]
        if self.mask_iou is None:
            del encoded["mask_iou"]
        return {"schema_version": encoded.pop("schema_version"), **encoded, "spec": self.spec.to_dict()}


@dataclass(frozen=True)
class LayerOutput:
    """A tensor that a layer makes."""

    name: str
    dtype: str  # NumPy's name where it has one
    shape: tuple[int, ...]  # -1 where the size is chosen at run time


@dataclass(frozen=True)
class Layer:
    """A layer of a plan."""

    name: str
    kind: str
    modules: tuple[str, ...]  # of the ONNX nodes it was made from; several once they are fused
    outputs: tuple[LayerOutput, ...]


@dataclass(frozen=True)
class Layers:
    """`source` is "engine" for the fused layers that run, "network" for the typed layers they are made from."""

    source: Literal["engine", "network"]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class _LayersFile:
    schema_version: int
    plan_sha256: str
    source: Literal["engine", "network"]
    layers: tuple[Layer, ...]


def sidecar_path(plan: str | os.PathLike[str]) -> Path:
    """`model.engine` -> `model.engine.json`"""
    return Path(f"{Path(plan)}.json")


def mask_iou_path(plan: str | os.PathLike[str]) -> Path:
    """Where the builder puts the mask-IoU network: `model.engine` -> `model.engine.mask_iou.onnx`"""
    path = Path(plan)
    return path.with_name(f"{path.name}.mask_iou.onnx")


def layers_path(plan: str | os.PathLike[str]) -> Path:
    """Where the builder tells the plan's layers: `model.engine` -> `model.engine.layers.json`"""
    path = Path(plan)
    return path.with_name(f"{path.name}.layers.json")


def write_layers(target: str | os.PathLike[str], layers: Layers, plan_sha256: str) -> None:
    """Write to the file `target`, whole or not at all. Raises OutputError."""
    stored = _LayersFile(LAYERS_SCHEMA_VERSION, plan_sha256, layers.source, layers.layers)
    write_text(target, json.dumps(encode(stored)) + "\n")


def write_sidecar(target: str | os.PathLike[str], sidecar: Sidecar) -> None:
    """Write to the file `target`, whole or not at all. Raises OutputError."""
    write_json(target, sidecar.to_dict())


def read_sidecar(plan: str | os.PathLike[str]) -> Sidecar:
    """The sidecar of `plan`, not yet compared with it.

    Raises PlanMismatchError when it is missing, unreadable, malformed or of another schema version.
    """
    path = sidecar_path(plan)
    try:
        value = read_json(path)
    except FileNotFoundError as exc:
        raise PlanMismatchError(
            f"{plan} has no sidecar: {path.name} is not beside it. The sidecar says what the plan is, and must "
            f"travel with it: copy it here, or build again with {_rebuild(plan)}."
        ) from exc
    except OSError as exc:
        raise PlanMismatchError(f"can't read the sidecar {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise PlanMismatchError(
            f"the sidecar {path} is not valid JSON: {exc}. Build again with {_rebuild(plan)}."
        ) from exc
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != SIDECAR_SCHEMA_VERSION:
        raise PlanMismatchError(
            f"the sidecar {path} has schema version {version}, this version of yolact-deploy reads "
            f"{SIDECAR_SCHEMA_VERSION}. Build again with {_rebuild(plan)}, or use the version that wrote it."
        )
    try:
        return decode(Sidecar, value, "sidecar")
    except SpecError as exc:
        raise PlanMismatchError(f"the sidecar {path} is malformed: {exc} Build again with {_rebuild(plan)}.") from exc


@dataclass(frozen=True, eq=False)
class PlanFile:
    """A plan that `open_plan` has read and compared with its sidecar; handed on instead of a path, it is not read again."""

    kind: ClassVar[Literal["plan"]] = "plan"
    path: Path
    sidecar: Sidecar
    content: bytes = field(repr=False)  # what may be deserialized; b"" after `without_content`
    mask_iou: bytes | None = field(repr=False)  # YOLACT++: the ONNX file of the network that scores masks

    @property
    def spec(self) -> ModelSpec:
        """What the plan was built of."""
        return self.sidecar.spec

    @property
    def precision(self) -> PlanPrecision:
        """fp32, fp16 or int8: that of the ONNX it was built from; tf32 where that is fp32 and it computes in TF32."""
        return self.sidecar.precision

    @property
    def form(self) -> Form:
        """Whether the outputs are head tensors, or finished detections."""
        return form_of(self.sidecar.io_tensors)

    @property
    def batch(self) -> tuple[int, int | None]:
        """The smallest and the largest batch of the optimization profile."""
        return self.sidecar.batch.min, self.sidecar.batch.max

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the plan, which its content has."""
        return self.sidecar.plan_sha256

    @property
    def num_bytes(self) -> int:
        """The plan's size."""
        return self.sidecar.plan_bytes

    @property
    def rebuild(self) -> str:
        """The command that makes the plan again, quoted."""
        sidecar = self.sidecar
        tf32 = f" --precision {TF32}" if sidecar.precision == TF32 else ""
        return f"`yolact-deploy build-engine {sidecar.onnx_name} -o {self.path} --runtime {sidecar.runtime}{tf32}`"

    def describe(self) -> dict[str, Any]:
        """A JSON object: path, kind, precision, digest and size."""
        return describe(self)

    def layers(self) -> Layers | None:
        """Its layers; None where their file is not beside it, can't be read, or is another plan's."""
        try:
            stored = decode(_LayersFile, read_json(layers_path(self.path)), "layers")
        except (OSError, ValueError, SpecError):
            return None
        if stored.schema_version != LAYERS_SCHEMA_VERSION or stored.plan_sha256 != self.sha256:
            return None
        return Layers(stored.source, stored.layers)

    def without_content(self) -> PlanFile:
        """The same, to be kept after the plan was deserialized, without the memory that it takes."""
        return replace(self, content=b"", mask_iou=None)


def open_plan(source: str | os.PathLike[str] | PlanFile) -> PlanFile:
    """Read a plan and what lies beside it, and prove that they belong together; one that is open already is handed on.

    Raises PlanMismatchError.
    """
    if isinstance(source, PlanFile) and source.content:
        return source
    path = source.path if isinstance(source, PlanFile) else Path(source)
    sidecar = read_sidecar(path)
    try:
        with open_bytes(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            content = stream.read(size) if size == sidecar.plan_bytes else b""
    except OSError as exc:
        raise PlanMismatchError(f"can't read the plan {path}: {exc.strerror or exc}.") from exc
    _check_plan(path, sidecar, size, hashlib.sha256(content).hexdigest())
    return PlanFile(path, sidecar, content, _read_mask_iou(path, sidecar))


def _read_mask_iou(plan: Path, sidecar: Sidecar) -> bytes | None:
    companion = sidecar.mask_iou
    if companion is None:
        return None
    path = plan.with_name(companion.name)
    try:
        data = read_bytes(path)
    except FileNotFoundError as exc:
        raise PlanMismatchError(
            f"{plan} is a YOLACT++, but the network that scores its masks is missing: {companion.name} is not beside it. "
            f"Copy it here, or build again with {_rebuild(plan)}."
        ) from exc
    except OSError as exc:
        raise PlanMismatchError(f"can't read {path}, which belongs to {plan}: {exc.strerror or exc}.") from exc
    digest = hashlib.sha256(data).hexdigest()
    if digest != companion.sha256:
        raise PlanMismatchError(
            f"{path} is not the mask-IoU network that {plan} was built with: it has {len(data)} bytes and the SHA-256 "
            f"{_short(digest)}, the sidecar says {companion.num_bytes} and {_short(companion.sha256)}. Copy the plan and the "
            f"files beside it together again, or build again with {_rebuild(plan)}."
        )
    return data


def _check_plan(plan: str | os.PathLike[str], sidecar: Sidecar, size: int, digest: str) -> None:
    if size != sidecar.plan_bytes:
        found = "it was cut short" if size < sidecar.plan_bytes else "it is another file"
        raise PlanMismatchError(
            f"{plan} has {size} bytes, its sidecar says {sidecar.plan_bytes}: {found}. Copy the plan and "
            f"{sidecar_path(plan).name} together again, or build again with {_rebuild(plan)}."
        )
    if digest != sidecar.plan_sha256:
        raise PlanMismatchError(
            f"{plan} is not the plan its sidecar was written for: its SHA-256 is {_short(digest)}, the sidecar says "
            f"{_short(sidecar.plan_sha256)}. Copy the plan and {sidecar_path(plan).name} together again, or build again "
            f"with {_rebuild(plan)}."
        )


def _is_file_name(name: str) -> bool:
    """Whether a file in the same folder can have that name, on any system."""
    return name == PurePosixPath(PureWindowsPath(name).name).name not in ("", "..") and is_printable(name)


def _short(digest: str) -> str:
    return f"{digest[:_SHOWN_DIGEST_CHARS]}..."


def _rebuild(plan: str | os.PathLike[str]) -> str:
    return f"`yolact-deploy build-engine MODEL.onnx -o {plan}`"
