"""What is installed, what can run here, and what to install for the rest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

from yolact_deploy import __version__

_PACKAGES = (
    "numpy", "opencv-python-headless", "pycocotools", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "tensorrt", "tensorrt-rtx", "cuda-bindings", "supervision",
)  # fmt: skip


class Builder(Protocol):
    """A plan builder as `engines` finds it; this module may not import that package."""

    @property
    def name(self) -> str: ...
    @property
    def usable(self) -> bool: ...
    @property
    def reason(self) -> str: ...


def examine(builders: Sequence[Builder], gpus: Sequence[str]) -> dict[str, Any]:
    """{"version", "python", "executable", "platform", "gpus": [name], "packages": {name: version or None},
    "abilities": [{"name", "available", "reason"}]}; a reason is what is used, or what is missing and its `pip install`."""
    packages = {name: _version(name) for name in _PACKAGES}
    providers = _onnxruntime_providers()
    abilities = [
        _ability("export", packages, ("torch", "onnx", "onnxscript", "onnxruntime"), "export"),
        *({"name": f"build-engine ({b.name})", "available": b.usable, "reason": b.reason} for b in builders),
        _runs_on("CPU", "CPUExecutionProvider", providers, "cpu"),
        _runs_on("CUDA", "CUDAExecutionProvider", providers, "gpu", present=bool(gpus)),
        _ability("draw overlays", packages, ("supervision",), "draw"),
    ]
    return {
        "version": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "gpus": list(gpus),
        "packages": packages,
        "abilities": abilities,
    }


def _ability(name: str, packages: dict[str, str | None], needed: tuple[str, ...], extra: str) -> dict[str, Any]:
    missing = [package for package in needed if packages[package] is None]
    if missing == ["onnxruntime"] and packages["onnxruntime-gpu"] is not None:
        needed, missing = (*needed[:-1], "onnxruntime-gpu"), []
    if missing:
        return {"name": name, "available": False, "reason": f"lacks {', '.join(missing)}: {_pip_install(extra)}"}
    return {"name": name, "available": True, "reason": "with " + ", ".join(f"{p} {packages[p]}" for p in needed)}


def _runs_on(
    device: str, provider: str, providers: list[str] | None, extra: str, *, present: bool = True
) -> dict[str, Any]:
    name = f"detect, eval, bench on {device}"
    if not present:
        return {"name": name, "available": False, "reason": "no NVIDIA GPU and driver is visible"}
    if providers is None:
        return {"name": name, "available": False, "reason": f"lacks onnxruntime: {_pip_install(extra)}"}
    if provider not in providers:
        return {
            "name": name,
            "available": False,
            "reason": f"this onnxruntime has no {provider}: {_pip_install(extra)}",
        }
    return {"name": name, "available": True, "reason": f"with onnxruntime's {provider}"}


def _pip_install(extra: str) -> str:
    return f'pip install "yolact-deploy[{extra}]"'


def _onnxruntime_providers() -> list[str] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    return list(onnxruntime.get_available_providers())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
