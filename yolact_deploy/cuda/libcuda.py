"""The driver's own library by ctypes: what there is to know before any CUDA package is chosen, and what pycuda leaves out."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from yolact_deploy.cuda.driver import GpuDevice
from yolact_deploy.errors import DeviceError

LIBRARY_NAME = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CUdevice_attribute and CUpointer_attribute in the CUDA driver API
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_POINTER_MEMORY_TYPE = 2
_POINTER_DEVICE_ORDINAL = 9
_HOST_MEMORY = 1  # of CUmemorytype
_NAME_BYTES = 256
_HIGHEST_ERROR = 1000


@functools.cache
def load() -> Any:
    """The library, as ctypes has it. Raises DeviceError where there is no NVIDIA driver."""
    try:
        return ctypes.CDLL(LIBRARY_NAME)
    except OSError as exc:
        raise DeviceError(
            f"no NVIDIA driver: {LIBRARY_NAME} can't be loaded ({exc}). Install the driver (in a container, start it with "
            "--gpus all), or run an ONNX on the CPU."
        ) from exc


def initialize() -> Any:
    """The library after cuInit. Raises DeviceError where the driver does not start."""
    library = load()
    code = library.cuInit(0)
    if code != 0:
        raise DeviceError(f"the NVIDIA driver does not start: {error_name(code)} ({error_text(code)}). {_INIT_HINT}")
    return library


_INIT_HINT = (
    "See whether nvidia-smi works and CUDA_VISIBLE_DEVICES names a GPU of this machine; a driver that was updated under a "
    "running system wants a restart."
)


def devices() -> tuple[GpuDevice, ...]:
    """Every GPU visible to this process. Raises DeviceError as `initialize` does, or when the driver refuses to tell."""
    library = initialize()
    version, count = ctypes.c_int(), ctypes.c_int()
    _checked(library.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _checked(library.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    driver_version = (version.value // 1000, version.value % 1000 // 10)
    return tuple(_describe(library, index, driver_version) for index in range(count.value))


def error_name(code: int) -> str:
    """ "CUDA_ERROR_OUT_OF_MEMORY" of 2."""
    return _words("cuGetErrorName", code) or f"CUDA error {code}"


def error_text(code: int) -> str:
    return _words("cuGetErrorString", code) or "no description"


def error_code(text: str) -> int | None:
    """The code that `error_text` describes so; pycuda keeps only the words."""
    return _codes_by_text().get(text)


def device_of(address: int) -> int | None:
    """Index of the GPU whose memory an address is in; None for memory of the host, or that the driver does not know."""
    if _pointer_attribute(_POINTER_MEMORY_TYPE, address) in (None, _HOST_MEMORY):
        return None
    return _pointer_attribute(_POINTER_DEVICE_ORDINAL, address)


def current_context() -> int:
    """Handle of what is current in this thread; 0 for none."""
    context = ctypes.c_void_p()
    load().cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0


def set_current_context(context: int) -> None:
    load().cuCtxSetCurrent(ctypes.c_void_p(context))


def pop_context() -> None:
    load().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def is_primary_context_active(index: int) -> bool:
    flags, active = ctypes.c_uint(), ctypes.c_int()
    load().cuDevicePrimaryCtxGetState(ctypes.c_int(index), ctypes.byref(flags), ctypes.byref(active))
    return active.value != 0


def release_primary_context(index: int) -> None:
    load().cuDevicePrimaryCtxRelease_v2(ctypes.c_int(index))


def lock_pages(address: int, nbytes: int) -> tuple[int]:
    """The driver's code."""
    return (int(load().cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(0))),)


def unlock_pages(address: int) -> tuple[int]:
    return (int(load().cuMemHostUnregister(ctypes.c_void_p(address))),)


def _describe(library: Any, index: int, driver_version: tuple[int, int]) -> GpuDevice:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    memory = ctypes.c_size_t()
    _checked(library.cuDeviceGet(ctypes.byref(device), ctypes.c_int(index)), "cuDeviceGet")
    _checked(library.cuDeviceGetName(name, ctypes.c_int(_NAME_BYTES), device), "cuDeviceGetName")
    _checked(library.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    major, minor, multiprocessors = (
        _attribute(library, attribute, device)
        for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _MULTIPROCESSOR_COUNT)
    )
    return GpuDevice(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(major, minor),
        driver_version=driver_version,
        memory_bytes=memory.value,
        multiprocessors=multiprocessors,
    )


def _attribute(library: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _checked(library.cuDeviceGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), device), "cuDeviceGetAttribute")
    return value.value


def _pointer_attribute(attribute: int, address: int) -> int | None:
    value = ctypes.c_int()
    code = load().cuPointerGetAttribute(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_uint64(address))
    return value.value if code == 0 else None


def _checked(code: int, function: str) -> None:
    if code != 0:
        raise DeviceError(f"the NVIDIA driver can't tell which GPUs there are: {function} gave {error_name(code)}.")


def _words(function: str, code: int) -> str | None:
    text = ctypes.c_char_p()
    getattr(load(), function)(ctypes.c_int(code), ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else None


@functools.cache
def _codes_by_text() -> dict[str, int]:
    """Of several codes with the same words the lowest."""
    texts = {code: _words("cuGetErrorString", code) for code in range(_HIGHEST_ERROR, -1, -1)}
    return {text: code for code, text in texts.items() if text is not None}
