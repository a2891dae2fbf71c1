"""Which GPUs there are, and the driver for one of them."""

from __future__ import annotations

import os
from importlib import metadata

from yolact_deploy.cuda.drivers import libcuda
from yolact_deploy.cuda.drivers.bindings import BindingsDriver, bindings_fit, bindings_version
from yolact_deploy.cuda.drivers.interface import Driver, GpuDevice
from yolact_deploy.cuda.drivers.pycuda import PycudaDriver
from yolact_deploy.errors import DeviceError, MissingDependencyError

DRIVER_VARIABLE = "YOLACT_DEPLOY_CUDA_DRIVER"
PACKAGES = ("cuda-bindings", "pycuda")  # in the order of preference
OLDEST_CAPABILITY = (7, 5)  # Turing, the oldest that CUDA 13 compiles for


def open_driver(index: int = 0, prefer: str | None = None) -> Driver:
    """The driver of GPU `index`: over cuda-bindings where that is installed and not too new for the GPU's driver, else over
    pycuda.

    `prefer` ("cuda-bindings" or "pycuda") decides, else the environment variable YOLACT_DEPLOY_CUDA_DRIVER. Raises
    MissingDependencyError when the package is not installed, DeviceError when there is no driver library, no such GPU, or
    one or the other is too old. The primary context is held for as long as the driver is.
    """
    package, device = check_gpu(index, prefer)
    return _open_pycuda(device) if package == "pycuda" else BindingsDriver(device)


def check_gpu(index: int = 0, prefer: str | None = None) -> tuple[str, GpuDevice]:
    """(package, GPU) that `open_driver` would use. Raises DeviceError and the others as it does, but opens nothing."""
    choose_package(prefer)  # first of all: without a package there is nothing to look for
    device = _device(index)
    package = choose_package(prefer, device.driver_version)
    version = bindings_version() or ""
    if package == "cuda-bindings" and not bindings_fit(version, device.driver_version):
        major, minor = device.driver_version
        raise DeviceError(
            f"cuda-bindings {version} wants a newer driver: that of cuda:{index} ({device.name}) is made for CUDA "
            f'{major}.{minor}. Update the NVIDIA driver, or pip install "cuda-bindings<{major + 1}".'
        )
    return package, device


def choose_package(prefer: str | None = None, driver_version: tuple[int, int] | None = None) -> str:
    """The package that `open_driver` would use, with a driver of a version or with any.

    Raises MissingDependencyError, or DeviceError for an unknown name.
    """
    wanted = prefer or os.environ.get(DRIVER_VARIABLE) or None
    if wanted is not None and wanted not in PACKAGES:
        source = "prefer" if prefer else DRIVER_VARIABLE
        raise DeviceError(f"no such CUDA package: {source} is {wanted!r}, want {' or '.join(PACKAGES)}.")
    installed_ones = [package for package in (PACKAGES if wanted is None else (wanted,)) if _is_installed(package)]
    fitting = [package for package in installed_ones if _fits(package, driver_version)]
    if installed_ones:
        return (fitting or installed_ones)[0]
    package = wanted or PACKAGES[0]
    extra = "pycuda" if package == "pycuda" else "gpu"
    raise MissingDependencyError(package, extra=extra, purpose="running on a GPU")


def visible_devices() -> tuple[GpuDevice, ...]:
    """Every GPU that the driver shows to this process; empty without a driver or a GPU. Never raises."""
    try:
        return libcuda.devices()
    except (DeviceError, AttributeError):  # AttributeError: a driver so old that it lacks the functions
        return ()


def _device(index: int) -> GpuDevice:
    devices = libcuda.devices()
    if not devices:
        raise DeviceError(
            "the NVIDIA driver shows no GPU to this process. See whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES does "
            "not hide it, or run an ONNX on the CPU."
        )
    if not 0 <= index < len(devices):
        listed = ", ".join(f"cuda:{device.index} ({device.name})" for device in devices)
        raise DeviceError(f"there is no cuda:{index}; there is {listed}.")
    device = devices[index]
    if device.compute_capability < OLDEST_CAPABILITY:
        found, oldest = (".".join(map(str, c)) for c in (device.compute_capability, OLDEST_CAPABILITY))
        raise DeviceError(
            f"cuda:{index} ({device.name}) is too old: compute capability {found}, the kernels want {oldest} (Turing) or "
            'newer; use device="cpu".'
        )
    return device


def _open_pycuda(device: GpuDevice) -> Driver:
    try:
        return PycudaDriver(device)
    except ImportError as exc:
        raise DeviceError(
            f"pycuda is installed but can't be loaded: {exc}. It was built for another CUDA driver or another Python; build it "
            'again (pip install --force-reinstall --no-cache-dir pycuda), or set YOLACT_DEPLOY_CUDA_DRIVER to "cuda-bindings".'
        ) from exc


def _fits(package: str, driver_version: tuple[int, int] | None) -> bool:
    return (
        package != "cuda-bindings" or driver_version is None or bindings_fit(bindings_version() or "", driver_version)
    )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
