"""The driver's own library by ctypes: what there is to know before any CUDA package is chosen, and what pycuda leaves out;
what the driver refuses, in words: its own name for it, what it means here, and what to do; and whether what it made still is.

All that a driver made goes with the primary context, when another library resets that. An address or a handle of a context
that is gone may be another's in the one that follows, so that nothing may be freed then.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from dataclasses import dataclass
from typing import Any

from yolact_deploy.cuda.drivers.interface import GpuDevice
from yolact_deploy.errors import DeviceError, DeviceMemoryError
from yolact_deploy.optional import NVIDIA_DRIVER

# CUdevice_attribute and CUpointer_attribute in the CUDA driver API
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_POINTER_MEMORY_TYPE = 2
_POINTER_DEVICE_ORDINAL = 9
_HOST_MEMORY = 1  # of CUmemorytype
_NAME_BYTES = 256
_HIGHEST_ERROR = 1000
_INIT_HINT = (
    "See whether nvidia-smi works and CUDA_VISIBLE_DEVICES names a GPU of this machine; a driver that was updated under a "
    "running system wants a restart."
)
OUT_OF_MEMORY = 2
INVALID_CONTEXT = 201
CONTEXT_LOST = frozenset({4, INVALID_CONTEXT, 709})  # 4 is deinitialized, 709 a destroyed context
_LOST = (
    "the CUDA context that this detector worked in is gone: another library in this process destroyed it (cudaDeviceReset, "
    "or a library's own shutdown). What the detector held on the GPU went with it; open a new Detector."
)
_STICKY = (
    "No CUDA work is possible any more in this process, by any library: restart it. "
    "compute-sanitizer shows which kernel it was; another library's kernel may be the cause."
)
_NO_IMAGE = "The kernels were compiled for another GPU or for a newer driver; update the NVIDIA driver."
_HINTS: dict[int, str] = {
    3: (  # not initialized: what the driver says in the child of a fork
        "CUDA does not survive a fork: open the Detector in the process that uses it, started by multiprocessing's "
        '"spawn" or "forkserver".'
    ),
    4: _LOST,
    201: _LOST,
    709: _LOST,
    200: _NO_IMAGE,  # invalid image
    209: _NO_IMAGE,  # no binary for this GPU
    218: _NO_IMAGE,  # invalid PTX
    222: _NO_IMAGE,  # unsupported PTX version
    214: _STICKY,  # uncorrectable ECC error
    700: _STICKY,  # illegal address
    702: _STICKY,  # a kernel ran too long for a GPU with a display
    710: _STICKY,  # assert
    714: _STICKY,  # hardware stack error
    715: _STICKY,  # illegal instruction
    716: _STICKY,  # misaligned address
    717: _STICKY,  # invalid address space
    718: _STICKY,  # invalid program counter
    719: _STICKY,  # launch failed
    701: "The kernel wants more registers or shared memory than this GPU gives a block.",
    801: "This GPU or this driver does not support it.",
    900: "Work that can't be recorded was enqueued while a CUDA graph was captured; try cuda_graph=False.",
    901: "The capture of a CUDA graph was broken by other work; try cuda_graph=False.",
    906: "Work on the default stream broke the capture of a CUDA graph; try cuda_graph=False.",
}


@functools.cache
def load() -> Any:
    """The library, as ctypes has it. Raises DeviceError where there is no NVIDIA driver."""
    try:
        return ctypes.CDLL(NVIDIA_DRIVER)
    except OSError as exc:
        raise DeviceError(
            f"no NVIDIA driver: {NVIDIA_DRIVER} can't be loaded ({exc}). Install the driver (in a container, start it with "
            "--gpus all), or run an ONNX on the CPU."
        ) from exc


def initialize() -> Any:
    """The library after cuInit. Raises DeviceError where the driver does not start."""
    library = load()
    code = library.cuInit(0)
    if code != 0:
        raise DeviceError(f"the NVIDIA driver does not start: {error_name(code)} ({error_text(code)}). {_INIT_HINT}")
    return library


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
    return _driver_string("cuGetErrorName", code) or f"CUDA error {code}"


def error_text(code: int) -> str:
    """The driver's own words for an error code."""
    return _driver_string("cuGetErrorString", code) or "no description"


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
    """Make a context the thread's current one."""
    load().cuCtxSetCurrent(ctypes.c_void_p(context))


def pop_context() -> None:
    """Give the thread back the context it had before."""
    load().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def is_primary_context_active(index: int) -> bool:
    """Whether somebody in this process holds the device's primary context."""
    flags, active = ctypes.c_uint(), ctypes.c_int()
    load().cuDevicePrimaryCtxGetState(ctypes.c_int(index), ctypes.byref(flags), ctypes.byref(active))
    return active.value != 0


def release_primary_context(index: int) -> None:
    """Give up one hold on the device's primary context."""
    load().cuDevicePrimaryCtxRelease_v2(ctypes.c_int(index))


def lock_pages(address: int, nbytes: int) -> tuple[int]:
    """The driver's code."""
    return (int(load().cuMemHostRegister_v2(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(0))),)


def unlock_pages(address: int) -> tuple[int]:
    """Undo `lock_pages`; returns the driver's code, in a tuple as cuda-bindings does."""
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


def _driver_string(function: str, code: int) -> str | None:
    text = ctypes.c_char_p()
    getattr(load(), function)(ctypes.c_int(code), ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else None


@functools.cache
def _codes_by_text() -> dict[str, int]:
    """Of several codes with the same words the lowest."""
    texts = {code: _driver_string("cuGetErrorString", code) for code in range(_HIGHEST_ERROR, -1, -1)}
    return {text: code for code, text in texts.items() if text is not None}


def driver_error(device: GpuDevice, action: str, code: int, name: str) -> DeviceError:
    """`action` says what was tried ("copying to the device"), `name` the driver's own, "CUDA_ERROR_..."."""
    hint = _HINTS.get(code, "See whether nvidia-smi shows the GPU healthy.")
    return DeviceError(f"cuda:{device.index} ({device.name}) failed in {action}: {name}. {hint}")


def context_lost_error(device: GpuDevice) -> DeviceError:
    """The error of a context that a reset, or a fault, has ended."""
    return DeviceError(f"cuda:{device.index} ({device.name}): {_LOST}")


def out_of_memory_error(device: GpuDevice, action: str) -> DeviceMemoryError:
    """The error of a device without memory for some action."""
    return DeviceMemoryError(
        f"cuda:{device.index} ({device.name}) is out of memory in {action}. End what else uses the GPU (nvidia-smi lists it)."
    )


def memory_error(
    device: GpuDevice,
    nbytes: int,
    purpose: str,
    free_bytes: int | None,  # None where the driver did not tell
    *,
    pinned: bool = False,
) -> DeviceMemoryError:
    """The error of an allocation that was refused: what for, how much, and how much is left."""
    if pinned:
        where, remedy = "page-locked memory of the host", "The host has none left to lock: lower the batch."
    else:
        where = f"memory of cuda:{device.index} ({device.name})"
        remedy = "Lower the batch or the size of the images, or end what else uses the GPU (nvidia-smi lists it)."
    left = ""
    if not pinned and free_bytes is not None:
        left = f" {_mib(free_bytes)} of {_mib(device.memory_bytes)} are free."
    return DeviceMemoryError(f"not enough {where}: {purpose} needs {_mib(nbytes)}.{left} {remedy}")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"


@dataclass(eq=False)
class CudaContextState:
    """Whether the context of a driver is still there."""

    lost: bool = False

    def observe(self, code: int) -> None:
        """What the driver gave; an invalid context is a lost one unless none was current, which is a mistake of ours."""
        if code in CONTEXT_LOST and (code != INVALID_CONTEXT or current_context() != 0):
            self.lost = True


_states: dict[int, weakref.WeakSet[CudaContextState]] = {}  # of the drivers that are open, by device


def track_cuda_context(index: int) -> CudaContextState:
    """To be called before the primary context is retained: if it is not there any more, then earlier drivers have lost it."""
    states = _states.setdefault(index, weakref.WeakSet())
    if not is_primary_context_active(index):
        for state in states:
            state.lost = True
        states.clear()
    state = CudaContextState()
    states.add(state)
    return state
