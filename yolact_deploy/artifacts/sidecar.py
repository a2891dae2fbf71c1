"""The sidecar: a JSON file beside a plan that says what the plan is and proves that the two belong together.

A plan is opaque, so everything a runtime or a reader needs travels in `model.engine.json` beside `model.engine`; what
can't be put in words, the mask-IoU network of a YOLACT++, lies beside the two and is named in the sidecar. The plan is the
last to be replaced; whatever a kill before that leaves is refused, since the old plan's digest disagrees with the new
sidecar (or the plan did not change, and the new sidecar is right about it).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.names import Precision, RuntimeName
from yolact_deploy.errors import PlanMismatchError, SpecError
from yolact_deploy.files import sha256_file, write_json
from yolact_deploy.json_files import JsonError, read_json
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import decode, encode

SIDECAR_SCHEMA_VERSION = 1

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
        if self.name != _file_name(self.name):
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
    precision: Precision
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
        if self.onnx_name != _file_name(self.onnx_name):
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


def sidecar_path(plan: str | os.PathLike[str]) -> Path:
    """`model.engine` -> `model.engine.json`"""
    path = Path(plan)
    return path.with_name(f"{path.name}.json")


def mask_iou_path(plan: str | os.PathLike[str]) -> Path:
    """Where the builder puts the mask-IoU network: `model.engine` -> `model.engine.mask_iou.onnx`"""
    path = Path(plan)
    return path.with_name(f"{path.name}.mask_iou.onnx")


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


def verify_plan(plan: str | os.PathLike[str]) -> Sidecar:
    """The sidecar of `plan`, after checking that the plan, and what must lie beside it, are the very files it was written for.

    Raises PlanMismatchError.
    """
    sidecar = read_sidecar(plan)
    try:
        size = Path(plan).stat().st_size
        digest = sha256_file(plan) if size == sidecar.plan_bytes else ""
    except OSError as exc:
        raise _unreadable(plan, exc) from exc
    _check_plan(plan, sidecar, size, digest)
    load_mask_iou(plan, sidecar)
    return sidecar


def load_plan(plan: str | os.PathLike[str]) -> tuple[bytes, Sidecar]:
    """The plan's bytes and its sidecar, checked against each other: these bytes, not a second reading, are what may be
    deserialized. Raises PlanMismatchError.
    """
    sidecar = read_sidecar(plan)
    try:
        data = Path(plan).read_bytes()
    except OSError as exc:
        raise _unreadable(plan, exc) from exc
    _check_plan(plan, sidecar, len(data), hashlib.sha256(data).hexdigest())
    return data, sidecar


def load_mask_iou(plan: str | os.PathLike[str], sidecar: Sidecar) -> bytes | None:
    """The mask-IoU network's ONNX file, checked against the sidecar; None where the sidecar names none.

    Raises PlanMismatchError.
    """
    companion = sidecar.mask_iou
    if companion is None:
        return None
    path = Path(plan).with_name(companion.name)
    try:
        data = path.read_bytes()
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


def _unreadable(plan: str | os.PathLike[str], exc: OSError) -> PlanMismatchError:
    return PlanMismatchError(f"can't read the plan {plan}: {exc.strerror or exc}.")


def _file_name(name: str) -> str:
    return PurePosixPath(PureWindowsPath(name).name).name


def _short(digest: str) -> str:
    return f"{digest[:_SHOWN_DIGEST_CHARS]}..."


def _rebuild(plan: str | os.PathLike[str]) -> str:
    return f"`yolact-deploy build-engine MODEL.onnx -o {plan}`"
