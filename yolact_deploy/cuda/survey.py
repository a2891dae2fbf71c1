"""What a user wants to know of the GPU side: driver, package, GPUs, compiler, kept kernels."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from yolact_deploy.cuda.cubin_cache import cache_state
from yolact_deploy.cuda.driver import GpuDevice
from yolact_deploy.cuda.drivers import check_gpu, choose_package
from yolact_deploy.cuda.nvrtc import choose_nvrtc, installed
from yolact_deploy.errors import YolactDeployError


def survey(devices: Sequence[GpuDevice]) -> dict[str, Any]:
    """{"driver": newest CUDA it runs or None, "package": the one used or None, "gpus": [{"device", "name", "architecture",
    "memory_bytes", "multiprocessors"}], "nvrtc": [{"version", "path"}], "kernel_cache": {"path", "entries", "size_bytes",
    "writable"}, "problem": why the kernels can't run here, or None}."""
    cache = cache_state()
    return {
        "driver": ".".join(map(str, devices[0].driver_version)) if devices else None,
        "package": _package(),
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
        "problem": _problem(),
    }


def _package() -> str | None:
    try:
        package = choose_package()
    except YolactDeployError:
        return None
    return f"{package} {metadata.version(package)}"


def _problem() -> str | None:
    try:
        _, device = check_gpu()
        choose_nvrtc(device.architecture, device.driver_version)
    except YolactDeployError as exc:
        return str(exc)
    return None
