"""An ONNX file where there is no GPU for it: in which runtime, and why."""

from __future__ import annotations

import platform
from typing import Any, NamedTuple

from yolact_deploy.artifacts.names import END_TO_END, CpuPrecision, OnnxRuntimeChoice, OnnxRuntimeName
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.errors import ArtifactError, pip_install
from yolact_deploy.optional import installed_version
from yolact_deploy.runtime.end_to_end import EndToEndModel, EndToEndPipeline
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.openvino.library import Target, is_int8_exact, why_unusable
from yolact_deploy.runtime.protocols import Network, Pipeline
from yolact_deploy.spec import NmsMode

_X86 = ("x86_64", "amd64")


class Choice(NamedTuple):
    """A runtime, and why it is that one."""

    runtime: OnnxRuntimeName
    reason: str = ""  # a few words for the description; "" where there was nothing to choose
    note: str | None = None  # what the user could do about it, or has to know


class HostRequest(NamedTuple):
    """What a Detector was asked for, as far as the host's runtimes are concerned."""

    runtime: OnnxRuntimeChoice = "auto"
    precision: CpuPrecision = "f32"
    threads: int | None = None
    nms: NmsMode | None = None
    device: str = "CPU"  # of OpenVINO's


def open_on_cpu(
    file: OnnxFile,
    request: HostRequest,
    *,
    fallback: str | None = None,
    notes: tuple[str, ...] = (),
    suffix: str = "",  # of the description
) -> Pipeline:
    """Raises ArtifactError, SpecError, DeviceError or MissingDependencyError when the file can't be run as it was asked for."""
    choice = choose_runtime(file, request)
    try:
        opened = _open(file, request, choice.runtime)
    except ArtifactError as exc:
        if request.runtime != "auto" or choice.runtime != "openvino" or request.precision != "f32":
            raise
        choice = Choice("onnxruntime", "OpenVINO can't run this file", str(exc))
        opened = _open(file, request, choice.runtime)
    said: dict[str, Any] = {
        "nms": request.nms,
        "fallback": fallback,
        "notes": (*notes, *filter(None, [choice.note])),
        "suffix": f"{f' ({choice.reason})' if choice.reason else ''}{suffix}",
    }
    return EndToEndPipeline(opened, file, **said) if isinstance(opened, EndToEndModel) else HostPipeline(opened, **said)


def choose_runtime(file: OnnxFile, request: HostRequest) -> Choice:
    """The runtime that was asked for; for "auto" the faster one that computes what the file says.

    INT8 files: OpenVINO, several times as fast, where it is installed and the CPU has VNNI; without, its sums saturate, and
    onnxruntime's float32 is the right one. Files in floating point: onnxruntime, in which the export was proven; the two differ
    by some percent in speed, and by rounding in what they compute.
    """
    if request.runtime != "auto":
        inexact = (
            request.runtime == "openvino" and file.precision == "int8" and request.device == "CPU" and not _is_exact()
        )
        return Choice(request.runtime, note=_SATURATES if inexact else None)
    if request.precision != "f32" or request.device != "CPU":
        return Choice("openvino")
    if missing := why_unusable():
        if file.precision != "int8":
            return Choice("onnxruntime")
        note = (
            f"{missing}, which computes INT8 in integers; onnxruntime computes it in float32: {pip_install('openvino')}"
        )
        return Choice("onnxruntime", note=note)
    if installed_version("onnxruntime") is None and installed_version("onnxruntime-gpu") is None:
        return Choice("openvino", "onnxruntime is not installed")
    if file.precision != "int8":
        return Choice("onnxruntime", "OpenVINO is no faster in floating point")
    if not _is_exact():
        return Choice("onnxruntime", "OpenVINO's INT8 saturates on this CPU")
    return Choice("openvino", "the faster one in INT8")


_SATURATES = (
    "this CPU has no VNNI, without which OpenVINO adds INT8 products in 16 bits, and saturates. onnxruntime computes what the "
    "file says."
)


def _is_exact() -> bool:
    """Elsewhere than on x86 nobody has measured it."""
    return platform.machine().lower() in _X86 and is_int8_exact()


def _open(file: OnnxFile, request: HostRequest, runtime: OnnxRuntimeName) -> Network | EndToEndModel:
    is_whole = file.form == END_TO_END
    if runtime == "openvino":
        from yolact_deploy.runtime.openvino.end_to_end import OpenvinoEndToEnd
        from yolact_deploy.runtime.openvino.network import OpenvinoNetwork

        target = Target(request.device, request.precision, request.threads)
        return OpenvinoEndToEnd(file, target) if is_whole else OpenvinoNetwork(file, target)
    from yolact_deploy.runtime.onnxruntime.end_to_end import EndToEndNetwork
    from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork

    kind = EndToEndNetwork if is_whole else OnnxNetwork
    return kind(file, device="cpu", threads=request.threads)
