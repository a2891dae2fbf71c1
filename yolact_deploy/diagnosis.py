"""What is installed, what can run here, and what to install for the rest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

from yolact_deploy import __version__
from yolact_deploy.arguments import check_callables, check_flags, check_text_lists
from yolact_deploy.artifacts.names import StepProgress
from yolact_deploy.cuda.cache import cache_state
from yolact_deploy.cuda.compile import WarmedKernels, choose_nvrtc, installed
from yolact_deploy.cuda.compile import warm as warm_cache
from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.cuda.drivers.opening import check_gpu, choose_package, visible_devices
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.errors import (
    BuildRequestError,
    MissingDependencyError,
    SpecError,
    YolactDeployError,
    one_line,
    pip_install,
)
from yolact_deploy.optional import installed_version, require
from yolact_deploy.runtime.openvino.library import describe_openvino, why_unusable
from yolact_deploy.spec import ModelSpec, NmsMode

_PACKAGES = (
    "numpy", "opencv-python-headless", "pycocotools", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "openvino", "tensorrt", "tensorrt-rtx", "cuda-bindings", "pycuda", "supervision",
    "polygraphy", "numba",
)  # fmt: skip


_GPU_NMS: tuple[NmsMode, ...] = ("fast", "cross_class")
_PUBLISHED = [
    Specialization(classes, 32, cross_class=cross_class) for classes in (80, 20) for cross_class in (False, True)
]


class Builder(Protocol):
    """A plan builder as `engines` finds it; this module may not import that package."""

    @property
    def name(self) -> str:
        """ "tensorrt" or "tensorrt-rtx"."""
        ...

    @property
    def usable(self) -> bool:
        """Whether it can build plans here."""
        ...

    @property
    def reason(self) -> str:
        """Why not, or which version can, in words."""
        ...


def diagnose(
    builders: Sequence[Builder] = (),
    *,
    warm: bool = False,
    artifact: dict[str, Any] | None = None,
    targets: Sequence[str] = (),
    progress: StepProgress | None = None,
) -> dict[str, Any]:
    """What is installed here, what can run, and what to install for the rest: the JSON of `doctor --json`.

    `builders` of plans are those of `engines.adapters.available_runtimes()`. With `warm`, the GPU kernels are compiled into
    the cache now, under "warmed": for the model that `artifact` is (what `inspect` tells of it; None: the published COCO and
    Pascal models) and for both kinds of NMS, on `targets` ("sm86"; none: every GPU here). `progress(done, total)` counts
    compilations.

    {"version", "python", "executable", "platform", "gpus": [name], "cuda": of `cuda_report`, "packages": {name: version or None},
    "abilities": [{"name", "available", "reason"}], "warmed": [{"architecture", "classes", "nms", "compiler", "was_cached",
    "seconds"}]}; a reason is what is used, or what is missing and its `pip install`.

    Raises OptionError for arguments that make no sense, BuildRequestError when there is neither a target nor a GPU,
    SpecError for a model that the kernels are not made for, DeviceError, EngineError, MissingDependencyError or OutputError
    when they can't be compiled or kept.

    >>> report = diagnose()
    >>> next(ability["name"] for ability in report["abilities"] if ability["name"].endswith("CPU"))
    'detect, eval, bench on CPU'
    """
    check_flags(warm=warm)
    check_text_lists(targets=targets)
    check_callables(progress=progress)
    gpus = visible_devices()
    warmed = warm_kernels(artifact, targets, gpus, progress=progress) if warm else None
    report = examine(builders, gpus)
    if warmed is not None:
        report["warmed"] = [
            {
                "architecture": entry.architecture,
                "classes": entry.specialization.num_classes,
                "nms": "cross_class" if entry.specialization.cross_class else "fast",
                "compiler": entry.compiler,
                "was_cached": entry.was_cached,
                "seconds": entry.seconds,
            }
            for entry in warmed
        ]
    return report


def examine(builders: Sequence[Builder], gpus: Sequence[GpuDevice]) -> dict[str, Any]:
    """The report of `diagnose` without "warmed"."""
    packages = {name: installed_version(name) for name in _PACKAGES}
    providers = _onnxruntime_providers()
    cuda = cuda_report(gpus)
    abilities = [
        _ability("export", packages, ("torch", "onnx", "onnxscript", "onnxruntime"), "export"),
        *({"name": f"build-engine ({b.name})", "available": b.usable, "reason": b.reason} for b in builders),
        _runs_on("CPU", "CPUExecutionProvider", providers, "cpu"),
        _runs_in_openvino(),
        _runs_on("CUDA", "CUDAExecutionProvider", providers, "gpu", present=bool(gpus)),
        {
            "name": "kernels on a GPU",
            "available": cuda["problem"] is None,
            "reason": cuda["problem"] or f"with {cuda['package']} and NVRTC {cuda['nvrtc'][0]['version']}",
        },
        _ability("Detections.to_supervision", packages, ("supervision",), "draw"),
        _ability("compiled masks on CPU", packages, ("numba",), "fast"),
        _ability("compare --layers", packages, ("polygraphy",), "compare"),
    ]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "gpus": [gpu.name for gpu in gpus],
        "cuda": cuda,
        "packages": packages,
        "abilities": abilities,
    }


def warm_kernels(
    artifact: dict[str, Any] | None,  # as `inspect` tells of it; None: the published COCO and Pascal models
    targets: Sequence[str],  # "sm86"; empty: every GPU of `gpus`
    gpus: Sequence[GpuDevice],
    *,
    progress: StepProgress | None = None,
) -> list[WarmedKernels]:
    """Compile the kernels into the cache before they are first needed, for both kinds of NMS.

    Raises BuildRequestError when there is neither a target nor a GPU, SpecError for a model that the kernels are not made for,
    and what `warm` raises.
    """
    if not targets and not gpus:
        raise BuildRequestError("no GPU is visible here to compile the kernels for: say which with --target sm86,sm89.")
    architectures = [f"sm_{target.removeprefix('sm')}" for target in targets] or [gpu.architecture for gpu in gpus]
    drivers = [gpu.driver_version for gpu in gpus]
    return warm_cache(
        _PUBLISHED if artifact is None else _specializations(artifact),
        list(dict.fromkeys(architectures)),
        driver_version=min(drivers, default=None),
        progress=progress,
    )


def _specializations(artifact: dict[str, Any]) -> list[Specialization]:
    if not artifact.get("spec"):
        raise SpecError(
            f"{artifact['path']} carries no spec, so its classes are unknown; give the exported .onnx or the plan."
        )
    spec = ModelSpec.from_dict(artifact["spec"])
    fp16 = {tensor["name"]: tensor["dtype"] == "float16" for tensor in artifact.get("io_tensors") or ()}
    return [specialize(spec, nms=nms, fp16_tensors=fp16) for nms in _GPU_NMS]


def cuda_report(devices: Sequence[GpuDevice]) -> dict[str, Any]:
    """{"driver": newest CUDA it runs or None, "package": the one used or None, "gpus": [{"device", "name", "architecture",
    "memory_bytes", "multiprocessors"}], "nvrtc": [{"version", "path"}], "kernel_cache": {"path", "entries", "size_bytes",
    "writable"}, "problem": why the kernels can't run here, or None}."""
    cache = cache_state()
    return {
        "driver": ".".join(map(str, devices[0].driver_version)) if devices else None,
        "package": _cuda_package(devices[0].driver_version if devices else None),
        "gpus": [
            {
                "device": f"cuda:{device.index}",
                "name": device.name,
                "architecture": device.architecture,
                "memory_bytes": device.memory_bytes,
                "multiprocessors": device.multiprocessors,
            }
            for device in devices
        ],
        "nvrtc": [{"version": ".".join(map(str, nvrtc.version)), "path": nvrtc.path} for nvrtc in installed()],
        "kernel_cache": {
            "path": str(cache.folder),
            "entries": cache.entries,
            "size_bytes": cache.size_bytes,
            "writable": cache.writable,
        },
        "problem": _cuda_problem(),
    }


def _cuda_package(driver_version: tuple[int, int] | None) -> str | None:
    try:
        package = choose_package(driver_version=driver_version)
    except YolactDeployError:
        return None
    return f"{package} {metadata.version(package)}"


def _cuda_problem() -> str | None:
    try:
        _, device = check_gpu()
        choose_nvrtc(device.architecture, device.driver_version)
    except YolactDeployError as exc:
        return str(exc)
    return None


def _ability(name: str, packages: dict[str, str | None], needed: tuple[str, ...], extra: str) -> dict[str, Any]:
    missing = [package for package in needed if packages[package] is None]
    if missing == ["onnxruntime"] and packages["onnxruntime-gpu"] is not None:
        needed, missing = (*needed[:-1], "onnxruntime-gpu"), []
    if missing:
        return {"name": name, "available": False, "reason": f"lacks {', '.join(missing)}: {pip_install(extra)}"}
    return {"name": name, "available": True, "reason": "with " + ", ".join(f"{p} {packages[p]}" for p in needed)}


def _runs_on(
    device: str, provider: str, providers: list[str] | None, extra: str, *, present: bool = True
) -> dict[str, Any]:
    name = f"detect, eval, bench on {device}"
    if not present:
        return {"name": name, "available": False, "reason": "no NVIDIA GPU and driver is visible"}
    if providers is None:
        return {"name": name, "available": False, "reason": f"lacks onnxruntime: {pip_install(extra)}"}
    if provider not in providers:
        return {
            "name": name,
            "available": False,
            "reason": f"this onnxruntime has no {provider}: {pip_install(extra)}",
        }
    return {"name": name, "available": True, "reason": f"with onnxruntime's {provider}"}


def _runs_in_openvino() -> dict[str, Any]:
    name = "detect, eval, bench in OpenVINO"
    if missing := why_unusable():
        upgrade = "" if missing.endswith("installed") else "--upgrade"
        return {"name": name, "available": False, "reason": f"{missing}: {pip_install('openvino', upgrade)}"}
    try:
        found = describe_openvino()
    except (YolactDeployError, ImportError) as exc:  # an install that is broken
        return {"name": name, "available": False, "reason": one_line(exc)}
    return {"name": name, "available": True, "reason": f"with {found}"}


def _onnxruntime_providers() -> list[str] | None:
    try:
        onnxruntime = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
    except (MissingDependencyError, ImportError):
        return None
    return list(onnxruntime.get_available_providers())
