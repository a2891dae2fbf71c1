"""From an artifact and a device to what runs images there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact_deploy.artifacts.names import END_TO_END
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Runnable
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import (
    DeviceError,
    DeviceMemoryError,
    MissingDependencyError,
    SpecError,
    one_line,
)
from yolact_deploy.optional import has_nvidia_driver
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.protocols import Pipeline
from yolact_deploy.spec import NmsMode

if TYPE_CHECKING:
    from yolact_deploy.runtime.gpu.pipeline import GpuBackend

_NO_DRIVER = "this machine has no NVIDIA driver."


def open_pipeline(
    artifact: Runnable,
    *,
    device: str,
    threads: int | None,
    nms: NmsMode | None,
    cuda_graph: bool,
    gpu: GpuBackend | None,  # in the place of the machine's own
) -> Pipeline:
    """Device "auto" takes the CPU where there is no GPU, or one that can't run the model, and says why in `fallback`; work
    that fails on a GPU, as for want of memory, is an error there as well. A machine without a driver is not told in `notes`
    what a GPU would take.

    Raises DeviceError for a GPU that there is not, and ArtifactError, SpecError, EngineError or MissingDependencyError when the
    artifact can't be used there.
    """
    kind, index = _parse_device(device)
    options: dict[str, Any] = {"threads": threads, "nms": nms, "cuda_graph": cuda_graph, "backend": gpu}
    if isinstance(artifact, PlanFile):
        return _open_plan(artifact, kind, index, options)
    fallback = None
    if kind != "cpu" and gpu is None and not has_nvidia_driver():
        if kind == "cuda":
            raise DeviceError(f'{device} can\'t be used: {_NO_DRIVER} Give device="cpu" (--device cpu), or "auto".')
        kind, device, fallback = "cpu", "cpu", _NO_DRIVER
    if artifact.form == END_TO_END:
        from yolact_deploy.runtime.onnxruntime.end_to_end import EndToEndPipeline

        return EndToEndPipeline(artifact, device=device, threads=threads, nms=nms, fallback=fallback)
    if kind == "cpu":
        return _open_on_cpu(artifact, threads, nms, fallback=fallback)
    from yolact_deploy.runtime.gpu.pipeline import open_gpu_pipeline

    if kind == "cuda":
        return open_gpu_pipeline(artifact, index, **options)
    try:
        return open_gpu_pipeline(artifact, index, **options)
    except DeviceMemoryError:
        raise
    except (DeviceError, MissingDependencyError, SpecError) as exc:
        note = f"No GPU is used: {exc}"
        return _open_on_cpu(
            artifact,
            threads,
            nms,
            fallback=one_line(exc),
            notes=(note,),
            suffix=f"; {note}" if isinstance(exc, SpecError) else "",  # there is a GPU, but not for this model
        )


def _parse_device(device: Any) -> tuple[str, int]:
    if not isinstance(device, str):
        raise DeviceError(f'device must be "auto", "cpu" or "cuda:N", found {device!r} ({type(device).__name__}).')
    kind, colon, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f'device must be "auto", "cpu" or "cuda:N", found {device!r}.')
    return kind, int(index or 0)


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


def _open_on_cpu(artifact: OnnxFile, threads: int | None, nms: NmsMode | None, **said: Any) -> HostPipeline:
    """`said`: what HostPipeline is to say of itself."""
    from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork

    return HostPipeline(OnnxNetwork(artifact, device="cpu", threads=threads), nms=nms, **said)
