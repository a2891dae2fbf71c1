"""OpenVINO itself: found, told what we want, and what it says when it refuses in our words."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from yolact_deploy.artifacts.names import CpuPrecision
from yolact_deploy.errors import ArtifactError, DeviceError, MissingDependencyError, one_line, pip_install
from yolact_deploy.files import is_file, what_is_there
from yolact_deploy.optional import installed_version, require

CPU = "CPU"

_LEAST_VERSION = (2025, 3)  # older ones can't read our INT8 files
_VIRTUAL_DEVICES = ("AUTO", "HETERO", "MULTI", "BATCH")  # which choose among, or split over, real ones
_NOISE = re.compile(r"^(Exception from |Check '.*' failed at |FrontEnd API failed with |Summary:|To facilitate )")
_SHOWN = 300  # characters of what it says
_ELSEWHERE = 'With runtime="onnxruntime" (--runtime onnxruntime) it may run all the same; else export it again.'
_ON_CPU = 'Give device="cpu" (--device cpu), or another of its devices.'


class Target(NamedTuple):
    """Where and how a network is computed."""

    device: str = CPU  # as OpenVINO names it
    precision: CpuPrecision = "f32"
    threads: int | None = None  # of the CPU; None: OpenVINO's own choice


def why_unusable() -> str | None:
    """Why OpenVINO can't be used here, as far as that is known without loading it: not installed, or too old. None: it can."""
    version = installed_version("openvino")
    if version is None:
        return "OpenVINO is not installed"
    return None if _numbers(version) >= _LEAST_VERSION else f"OpenVINO {version} is too old"


@functools.cache
def load_openvino() -> Any:
    """The module, without its telemetry. Raises MissingDependencyError where it is missing or too old."""
    module = require("openvino", extra="openvino", purpose="running an ONNX model in OpenVINO")
    if _numbers(version := _version(module)) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        error = MissingDependencyError("openvino", extra="openvino", purpose="running an ONNX model in OpenVINO")
        error.args = (
            f"running an ONNX model in OpenVINO takes OpenVINO {least} or newer, found {version}.\n  "
            f"{pip_install('openvino', '--upgrade')}",
        )
        raise error
    return module


def openvino_name() -> str:
    """ "OpenVINO 2026.4.1". Raises MissingDependencyError."""
    return f"OpenVINO {_version(load_openvino())}"


def describe_openvino() -> str:
    """Its version, its devices, and what they compute in: "OpenVINO 2026.4.1 on CPU (f32, bf16, INT8 without loss)". Raises
    MissingDependencyError."""
    devices = []
    for device in _core().available_devices:
        kinds = _capabilities(device)
        if device == CPU:
            int8 = {True: "INT8 without loss", False: "INT8 that saturates", None: "INT8"}[is_int8_exact()]
            kinds = ["f32", *(["bf16"] if _has_bf16() else []), int8]
        devices.append(f"{device} ({', '.join(kinds)})")
    return f"{openvino_name()} on {', '.join(devices)}"


def read_network(
    source: Path | bytes,  # an ONNX file, or one's content
    name: str,  # of the file, for errors
) -> Any:
    """The file as an openvino.Model, whose weights a model compiled of it shares. Raises ArtifactError for a file that OpenVINO
    can't read."""
    if isinstance(source, Path) and not is_file(source):
        raise ArtifactError(f"{source} {what_is_there(source)}. Give an exported .onnx file.")
    try:
        return _core().read_model(str(source) if isinstance(source, Path) else source)
    except Exception as exc:  # RuntimeError, and whatever its frontends raise
        raise ArtifactError(f"OpenVINO can't read {name}: {told(exc)}. {_ELSEWHERE}") from exc


def compile_network(
    model: Any,  # that `read_network` gave; it stays as it is
    target: Target,
    name: str,  # of the file, for errors
    *,
    batch: int | None = None,  # that it is made for; None: any that the file takes
    is_profiled: bool = False,
) -> Any:
    """The model as an openvino.CompiledModel; one that `is_profiled` counts the time of its layers.

    The precision is always said: left to itself OpenVINO computes float32 layers in bfloat16 on a CPU that has it. Threads are
    not bound to cores: two Detectors, or two processes, would be bound to the same ones. Raises ArtifactError for a file that
    OpenVINO can't run, DeviceError for a device that there is not, or that has no such arithmetic.
    """
    check_target(target)
    try:
        if batch is not None:
            model = model.clone()
            model.reshape([batch, *list(model.input(0).partial_shape)[1:]])
        return _core().compile_model(
            model, target.device, _properties(target) | ({"PERF_COUNT": True} if is_profiled else {})
        )
    except Exception as exc:
        if target.device != CPU:
            raise DeviceError(
                f"OpenVINO can't run {name} on its device {target.device}: {told(exc)}. {_ON_CPU}"
            ) from exc
        raise ArtifactError(f"OpenVINO can't run {name}: {told(exc)}. {_ELSEWHERE}") from exc


def check_target(target: Target) -> None:
    """Raise DeviceError for a device that is not here, and for bf16 where there is no arithmetic for it."""
    available = list(_core().available_devices)
    kind, _, _ = target.device.partition(":")
    if kind not in _VIRTUAL_DEVICES and not any(kind in (name, name.partition(".")[0]) for name in available):
        raise DeviceError(
            f"OpenVINO has no device {target.device} here; it has {', '.join(available)}. A GPU or an NPU of Intel's takes its "
            'driver (docs.openvino.ai, "Install system drivers").'
        )
    if target.precision == "bf16" and target.device == CPU and not _has_bf16():
        raise DeviceError(
            f"this CPU has no bfloat16 arithmetic (OpenVINO knows it as: {_instructions() or 'unknown'}), so bf16 would be no "
            'faster than f32 and less exact. Leave cpu_precision at "f32".'
        )


def is_int8_exact() -> bool | None:
    """Whether INT8 products are added without loss on this CPU: on x86 by VNNI (Intel's name is DL Boost); without it OpenVINO
    adds pairs of them in 16 bits, which saturate. None: not known, as of other CPUs, and where OpenVINO does not tell (2026.0).
    """
    found = _instructions()
    return "DL Boost" in found if found.startswith("Intel") else None  # which is said of any x86


def told(exc: Exception) -> str:
    """What an exception of OpenVINO says, without where in its source that was, short enough to quote."""
    lines = [line.strip(" -") for line in str(exc).splitlines()]
    text = "; ".join(line.rstrip(".:;") for line in lines if line and not _NOISE.match(line))
    return one_line(text)[:_SHOWN] or type(exc).__name__


def _properties(target: Target) -> dict[str, Any]:
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    capabilities = _capabilities(target.device)
    if target.precision == "bf16" or "FP32" in capabilities or not capabilities:  # an NPU has none but its own
        properties["INFERENCE_PRECISION_HINT"] = target.precision
    if target.device == CPU:
        properties["ENABLE_CPU_PINNING"] = False
        if target.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = int(target.threads)
    return properties


def _capabilities(device: str) -> list[str]:
    """What a device computes in ("FP32", "INT8"); none where it does not tell, as one that chooses among others."""
    try:
        return list(_core().get_property(device, "OPTIMIZATION_CAPABILITIES"))
    except Exception:  # RuntimeError
        return []


def _has_bf16() -> bool:
    found = _instructions()
    return "BF16" in _capabilities(CPU) and (not found or "bfloat16" in found)


@functools.cache
def _instructions() -> str:
    """The CPU's instructions in OpenVINO's words: "Intel AVX-512 with Intel DL Boost and bfloat16 support"; "" where it does not
    tell. A compiled model knows them, so a trivial one is."""
    openvino = load_openvino()
    from importlib import import_module

    operators = import_module("openvino.opset1")
    value = operators.parameter(openvino.Shape([1]), openvino.Type.f32)
    try:
        compiled = _core().compile_model(openvino.Model([operators.relu(value)], [value]), CPU)
        told_of = dict(entry.split("=", 1) for entry in str(compiled.get_property("RUNTIME_REQUIREMENTS")).split(";"))
    except Exception:  # of a version that has no such property
        return ""
    return str(told_of.get("isa", ""))


@functools.cache
def _core() -> Any:
    """One for the process, which can read deformable convolutions as well."""
    core = load_openvino().Core()
    from yolact_deploy.runtime.openvino.deformable import deformable_convolution_reader

    core.add_extension(deformable_convolution_reader())
    return core


def _version(module: Any) -> str:
    """Of "2026.4.1-22982-e213a147257-releases/2026/4", the beginning."""
    return str(module.__version__).partition("-")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
