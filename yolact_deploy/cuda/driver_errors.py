"""What the driver refuses, in words: the driver's own name for it, what it means here, and what to do."""

from __future__ import annotations

from yolact_deploy.cuda.driver import GpuDevice
from yolact_deploy.errors import DeviceError, DeviceMemoryError

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


def driver_error(device: GpuDevice, action: str, code: int, name: str) -> DeviceError:
    """`action` says what was tried ("copying to the device"), `name` the driver's own, "CUDA_ERROR_..."."""
    hint = _HINTS.get(code, "See whether nvidia-smi shows the GPU healthy.")
    return DeviceError(f"cuda:{device.index} ({device.name}) failed in {action}: {name}. {hint}")


def lost_error(device: GpuDevice) -> DeviceError:
    return DeviceError(f"cuda:{device.index} ({device.name}): {_LOST}")


def full_error(device: GpuDevice, action: str) -> DeviceMemoryError:
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
