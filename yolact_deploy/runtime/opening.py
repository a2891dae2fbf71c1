"""From an artifact and a device to what runs images there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact_deploy.artifacts.names import END_TO_END, CpuPrecision, OnnxRuntimeChoice
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Runnable
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import (
    DeviceError,
    DeviceMemoryError,
    MissingDependencyError,
    OptionError,
    SpecError,
    one_line,
)
from yolact_deploy.optional import has_nvidia_driver
from yolact_deploy.runtime.end_to_end import EndToEndPipeline
from yolact_deploy.runtime.on_cpu import HostRequest, open_on_cpu
from yolact_deploy.runtime.protocols import Pipeline
from yolact_deploy.spec import NmsMode

if TYPE_CHECKING:
    from yolact_deploy.runtime.gpu.pipeline import GpuBackend

OPENVINO = "openvino"
_DEVICES = 'device must be "auto", "cpu" or "cuda:N", or "openvino:NAME" for another device of OpenVINO'
_NO_DRIVER = "this machine has no NVIDIA driver."


def open_pipeline(
    artifact: Runnable,
    *,
    device: str,
    runtime: OnnxRuntimeChoice,
    cpu_precision: CpuPrecision,
    threads: int | None,
    nms: NmsMode | None,
    cuda_graph: bool,
    gpu: GpuBackend | None,  # in the place of the machine's own
) -> Pipeline:
    """Device "auto" takes the CPU where there is no GPU, or one that can't run the model, and says why in `fallback`; work
    that fails on a GPU, as for want of memory, is an error there as well. A machine without a driver is not told in `notes`
    what a GPU would take.

    Raises DeviceError for a GPU that there is not, OptionError for a runtime, a precision and a device that do not go together,
    and ArtifactError, SpecError, EngineError or MissingDependencyError when the artifact can't be used there.
    """
    kind, index = _parse_device(device)
    options: dict[str, Any] = {"threads": threads, "nms": nms, "cuda_graph": cuda_graph, "backend": gpu}
    if isinstance(artifact, PlanFile):
        _check_plan(artifact, kind, runtime, cpu_precision)
        return _open_plan(artifact, kind, index, options)
    _check_options(device, kind, runtime, cpu_precision)
    request = HostRequest(runtime, cpu_precision, threads, nms)
    if kind == "openvino":
        return open_on_cpu(artifact, request._replace(runtime="openvino", device=device.partition(":")[2] or "CPU"))
    if runtime == "openvino" or cpu_precision != "f32":
        return open_on_cpu(artifact, request)
    fallback = None
    if kind != "cpu" and gpu is None and not has_nvidia_driver():
        if kind == "cuda":
            raise DeviceError(f'{device} can\'t be used: {_NO_DRIVER} Give device="cpu" (--device cpu), or "auto".')
        kind, device, fallback = "cpu", "cpu", _NO_DRIVER
    if kind == "cpu":
        return open_on_cpu(artifact, request, fallback=fallback)
    if kind == "cuda":
        return _open_onnx_on_gpu(artifact, device, index, options)
    try:
        return _open_onnx_on_gpu(artifact, "cuda", index, options)
    except DeviceMemoryError:
        raise
    except (DeviceError, MissingDependencyError, SpecError) as exc:
        note = f"No GPU is used: {exc}"
        return open_on_cpu(
            artifact,
            request,
            fallback=one_line(exc),
            notes=(note,),
            suffix=f"; {note}" if isinstance(exc, SpecError) else "",  # there is a GPU, but not for this model
        )


def _parse_device(device: Any) -> tuple[str, int]:
    """The kind of a device, and the index of a GPU of NVIDIA's."""
    if not isinstance(device, str):
        raise DeviceError(f"{_DEVICES}, found {device!r} ({type(device).__name__}).")
    kind, colon, index = device.partition(":")
    if kind == OPENVINO and (index or not colon):
        return kind, 0
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"{_DEVICES}, found {device!r}.")
    return kind, int(index or 0)


def _check_options(device: str, kind: str, runtime: OnnxRuntimeChoice, cpu_precision: CpuPrecision) -> None:
    """Raise OptionError for what contradicts itself."""
    if kind == OPENVINO and runtime == "onnxruntime":
        raise OptionError(
            f'device {device!r} is one of OpenVINO\'s: give runtime="openvino" with it, or leave runtime out.'
        )
    if kind == "cuda" and runtime == OPENVINO:
        raise OptionError(
            f'OpenVINO runs on no GPU of NVIDIA\'s, found device {device!r}: give device="cpu" with runtime="openvino".'
        )
    if cpu_precision != "f32" and (runtime == "onnxruntime" or kind == "cuda"):
        what = (
            "onnxruntime has no bfloat16 on a CPU" if kind != "cuda" else f"it is of the CPU, and device is {device!r}"
        )
        raise OptionError(
            f'cpu_precision can\'t be {cpu_precision!r} here: {what}. Give runtime="openvino" with device="cpu", or leave it out.'
        )


def _check_plan(plan: PlanFile, kind: str, runtime: OnnxRuntimeChoice, cpu_precision: CpuPrecision) -> None:
    """Raise OptionError for what is said of ONNX files alone."""
    given = {
        f"device={OPENVINO!r}": kind == OPENVINO,
        f"runtime={runtime!r}": runtime != "auto",
        f"cpu_precision={cpu_precision!r}": cpu_precision != "f32",
    }
    if wrong := [text for text, is_given in given.items() if is_given]:
        raise OptionError(
            f"{plan.path} is a {plan.sidecar.runtime} plan, which runs in nothing else: {', '.join(wrong)} is for ONNX files. "
            f"Give the ONNX it was built from ({plan.sidecar.onnx_name}), or leave that out."
        )


def _open_onnx_on_gpu(file: OnnxFile, device: str, index: int, options: dict[str, Any]) -> Pipeline:
    if file.form == END_TO_END:
        from yolact_deploy.runtime.onnxruntime.end_to_end import EndToEndNetwork

        return EndToEndPipeline(
            EndToEndNetwork(file, device=device, threads=options["threads"]), file, nms=options["nms"]
        )
    from yolact_deploy.runtime.gpu.pipeline import open_gpu_pipeline

    return open_gpu_pipeline(file, index, **options)


def _open_plan(plan: PlanFile, kind: str, index: int, options: dict[str, Any]) -> Pipeline:
    runtime, onnx = plan.sidecar.runtime, plan.sidecar.onnx_name
    if kind == "cpu":
        raise DeviceError(
            f"{plan.path} is a {runtime} plan, and plans run on GPUs only. "
            f'Give device="cuda:0", or run the ONNX it was built from ({onnx}).'
        )
    from yolact_deploy.runtime.gpu.pipeline import open_gpu_pipeline

    try:
        return open_gpu_pipeline(plan, index, **options)
    except DeviceMemoryError:
        raise
    except (DeviceError, MissingDependencyError) as exc:
        raise DeviceError(
            f"{plan.path} is a {runtime} plan and can't be run here: {exc} "
            f"The ONNX it was built from ({onnx}) runs without a GPU."
        ) from exc
