"""From an artifact and a device to what runs images there: on a GPU, or in which of the CPU's runtimes, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from yolact_deploy.arguments import check_choice
from yolact_deploy.artifacts.names import (
    END_TO_END,
    TF32,
    CpuPrecision,
    GpuPrecision,
    OnnxRuntimeChoice,
    OnnxRuntimeName,
)
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.open import Runnable
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import (
    ArtifactError,
    DeviceError,
    DeviceMemoryError,
    MissingDependencyError,
    OptionError,
    SpecError,
    one_line,
    pip_install,
)
from yolact_deploy.optional import has_nvidia_driver, installed_version
from yolact_deploy.runtime.end_to_end import EndToEndModel, EndToEndPipeline
from yolact_deploy.runtime.host import HostPipeline
from yolact_deploy.runtime.openvino.library import Target, check_target, is_int8_exact, why_unusable
from yolact_deploy.runtime.protocols import Network, Pipeline
from yolact_deploy.spec import NmsMode

if TYPE_CHECKING:
    from yolact_deploy.runtime.gpu.pipeline import GpuBackend

OPENVINO = "openvino"
_DEVICES = 'device must be "auto", "cpu" or "cuda:N"'
_MORE_DEVICES = '"openvino:NAME" is another device of OpenVINO\'s.'
_NO_DRIVER = "this machine has no NVIDIA driver."
_SATURATES = (
    "this CPU has no VNNI, without which OpenVINO adds INT8 products in 16 bits, and saturates. onnxruntime computes what the "
    "file says."
)


class _Choice(NamedTuple):
    """A runtime, and why it is that one."""

    runtime: OnnxRuntimeName
    reason: str = ""  # a few words for the description; "" where there was nothing to choose
    note: str | None = None  # what the user could do about it, or has to know


class _CpuRequest(NamedTuple):
    """What a Detector was asked for, as far as the host's runtimes are concerned."""

    runtime: OnnxRuntimeChoice = "auto"
    precision: CpuPrecision = "f32"
    threads: int | None = None
    nms: NmsMode | None = None
    device: str = "CPU"  # of OpenVINO's


def open_pipeline(
    artifact: Runnable,
    *,
    device: str,
    runtime: OnnxRuntimeChoice,
    cpu_precision: CpuPrecision,
    gpu_precision: GpuPrecision,
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
    tf32 = gpu_precision == TF32
    options: dict[str, Any] = {"threads": threads, "nms": nms, "cuda_graph": cuda_graph, "tf32": tf32, "backend": gpu}
    if isinstance(artifact, PlanFile):
        _check_plan(artifact, kind, runtime, cpu_precision, gpu_precision)
        return _open_plan(artifact, kind, index, options)
    _check_options(device, kind, runtime, cpu_precision)
    if tf32:
        _check_tf32(artifact, device, runtime)
    request = _CpuRequest(runtime, cpu_precision, threads, nms)
    if kind == "openvino":
        return _open_on_cpu(artifact, request._replace(runtime="openvino", device=device.partition(":")[2] or "CPU"))
    if runtime == "openvino" or cpu_precision != "f32":
        return _open_on_cpu(artifact, request)
    fallback = None
    if kind != "cpu" and gpu is None and not has_nvidia_driver():
        if kind == "cuda":
            raise DeviceError(f'{device} can\'t be used: {_NO_DRIVER} Give device="cpu" (--device cpu), or "auto".')
        kind, device, fallback = "cpu", "cpu", _NO_DRIVER
    if kind == "cpu":
        return _open_on_cpu(artifact, request, fallback=fallback)
    if kind == "cuda":
        return _open_onnx_on_gpu(artifact, device, index, options)
    try:
        return _open_onnx_on_gpu(artifact, "cuda", index, options)
    except DeviceMemoryError:
        raise
    except (DeviceError, MissingDependencyError, SpecError) as exc:
        note = f"No GPU is used: {exc}"
        return _open_on_cpu(
            artifact,
            request,
            fallback=one_line(exc),
            notes=(note,),
            suffix=f"; {note}" if isinstance(exc, SpecError) else "",  # there is a GPU, but not for this model
        )


def cpu_runtime(file: OnnxFile) -> OnnxRuntimeName:
    """What runtime "auto" would run a file in on this CPU."""
    return _choose_runtime(file, _CpuRequest()).runtime


def check_on_cpu(runtime: OnnxRuntimeChoice, cpu_precision: CpuPrecision) -> None:
    """Raise what a Detector on the CPU would, whatever its file: OptionError for what contradicts itself, MissingDependencyError
    where OpenVINO is wanted and missing or too old, DeviceError for an arithmetic that this CPU has not."""
    check_choice("runtime", runtime, get_args(OnnxRuntimeChoice))
    check_choice("cpu_precision", cpu_precision, get_args(CpuPrecision))
    _check_options("cpu", "cpu", runtime, cpu_precision)
    if runtime == OPENVINO or cpu_precision != "f32":
        check_target(Target(precision=cpu_precision))


def _parse_device(device: Any) -> tuple[str, int]:
    """The kind of a device, and the index of a GPU of NVIDIA's."""
    if not isinstance(device, str):
        raise DeviceError(f"{_DEVICES}, found {device!r} ({type(device).__name__}). {_MORE_DEVICES}")
    kind, colon, index = device.partition(":")
    if kind == OPENVINO and (index or not colon):
        return kind, 0
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"{_DEVICES}, found {device!r}. {_MORE_DEVICES}")
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


def _check_tf32(artifact: OnnxFile, device: str, runtime: OnnxRuntimeChoice) -> None:
    """Raise OptionError where nothing could be computed in TF32."""
    kind = device.partition(":")[0]
    if kind in ("cpu", OPENVINO) or runtime == OPENVINO:
        where = f"device is {device!r}" if runtime != OPENVINO else f"runtime is {runtime!r}"
        raise OptionError(
            f"gpu_precision can't be {TF32!r} here: it is of NVIDIA's GPUs, and {where}. "
            'Give device="cuda:0", or leave it out.'
        )
    if artifact.precision != "fp32":
        raise OptionError(
            f"{artifact.path} is {artifact.precision}, and {TF32} is a way to compute float32: leave gpu_precision out, or give "
            "the fp32 file."
        )


def _check_plan(
    plan: PlanFile, kind: str, runtime: OnnxRuntimeChoice, cpu_precision: CpuPrecision, gpu_precision: GpuPrecision
) -> None:
    """Raise OptionError for what is said of ONNX files alone."""
    given = {
        f"device={OPENVINO!r}": kind == OPENVINO,
        f"runtime={runtime!r}": runtime != "auto",
        f"cpu_precision={cpu_precision!r}": cpu_precision != "f32",
        f"gpu_precision={gpu_precision!r}": gpu_precision != "fp32",
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
            EndToEndNetwork(file, device=device, threads=options["threads"], tf32=options["tf32"]),
            file,
            nms=options["nms"],
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


def _open_on_cpu(
    file: OnnxFile,
    request: _CpuRequest,
    *,
    fallback: str | None = None,
    notes: tuple[str, ...] = (),
    suffix: str = "",  # of the description
) -> Pipeline:
    """Raises ArtifactError, SpecError, DeviceError or MissingDependencyError when the file can't be run as it was asked for."""
    choice = _choose_runtime(file, request)
    try:
        opened = _open_in(choice.runtime, file, request)
    except ArtifactError as exc:
        if request.runtime != "auto" or choice.runtime != "openvino" or request.precision != "f32":
            raise
        choice = _Choice("onnxruntime", "OpenVINO can't run this file", str(exc))
        opened = _open_in(choice.runtime, file, request)
    said: dict[str, Any] = {
        "nms": request.nms,
        "fallback": fallback,
        "notes": (*notes, *filter(None, [choice.note])),
        "suffix": f"{f': {choice.reason}' if choice.reason else ''}{suffix}",
    }
    return EndToEndPipeline(opened, file, **said) if isinstance(opened, EndToEndModel) else HostPipeline(opened, **said)


def _choose_runtime(file: OnnxFile, request: _CpuRequest) -> _Choice:
    """The runtime that was asked for; for "auto" the faster one that computes what the file says.

    INT8 files: OpenVINO, several times as fast, where it is installed and the CPU has VNNI; without, its sums saturate, and
    onnxruntime's float32 is the right one. Files in floating point: onnxruntime, in which the export was proven; the two differ
    by some percent in speed, and by rounding in what they compute.
    """
    if request.runtime != "auto":
        return _Choice(request.runtime, note=_saturation(file, request) if request.runtime == "openvino" else None)
    if request.precision != "f32" or request.device != "CPU":
        return _Choice("openvino")
    has_onnxruntime = any(map(installed_version, ("onnxruntime", "onnxruntime-gpu")))
    if file.precision != "int8" and has_onnxruntime:
        return _Choice(
            "onnxruntime", "OpenVINO is no faster in floating point" if installed_version("openvino") else ""
        )
    if missing := why_unusable():
        if file.precision != "int8":
            return _Choice("onnxruntime")
        note = (
            f"INT8 is computed in float32, as what would in integers is not here: {missing}. {pip_install('openvino')}"
        )
        return _Choice("onnxruntime", note=note)
    if not has_onnxruntime:
        return _Choice("openvino", "onnxruntime is not installed", _saturation(file, request))
    try:
        exact = is_int8_exact()
    except ImportError as exc:  # an install that is broken
        return _Choice("onnxruntime", "OpenVINO can't be loaded", f"OpenVINO can't be loaded: {one_line(exc)}")
    if not exact:
        why = (
            "OpenVINO's INT8 saturates on this CPU"
            if exact is False
            else "OpenVINO does not tell whether its INT8 is exact here"
        )
        return _Choice("onnxruntime", why)
    return _Choice("openvino", "the faster one in INT8")


def _saturation(file: OnnxFile, request: _CpuRequest) -> str | None:
    """What has to be known of a file in OpenVINO; None where it computes what the file says, or does not tell."""
    is_doubtful = file.precision == "int8" and request.device == "CPU"
    return _SATURATES if is_doubtful and is_int8_exact() is False else None


def _open_in(runtime: OnnxRuntimeName, file: OnnxFile, request: _CpuRequest) -> Network | EndToEndModel:
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
