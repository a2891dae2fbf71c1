"""Images that are on a GPU already, as other libraries hand them over: DLPack and the CUDA array interface.

DLPack is asked first, as it lets the owner order its own work before ours; the array interface names a stream to wait for
at best (its version 3). Of both, uint8 [H, W, 3] is taken, whose rows may lie further apart than their pixels reach.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import DeviceError, ImageError

_LEGACY_STREAM = 1  # what DLPack and the array interface call the default stream; the driver takes it for a handle too
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST, _DL_CUDA_MANAGED = 1, 2, 3, 13
_DL_UNSIGNED = 1


@dataclass(frozen=True)
class LoadedImage:
    """An image as it was given, checked if it is the host's."""

    pixels: Any  # uint8 [H, W, 3], a NumPy array or an array on the device
    is_rgb: bool
    on_device: bool


@dataclass(frozen=True)
class DeviceImage:
    """An image uint8 [H, W, 3] in device memory."""

    address: int
    image_hw: tuple[int, int]
    row_pitch: int  # bytes from one row to the next
    owner: Any  # keeps the memory
    release: Callable[[], None] = lambda: None  # to be called when nothing reads it any more


def import_image(item: Any, driver: Driver, stream: int) -> DeviceImage:
    """An image that work enqueued on `stream` from now on may read, until `release`.

    The driver's context is current. Raises ImageError for another type, shape or layout, DeviceError for another device.
    """
    if hasattr(item, "__dlpack__") and hasattr(item, "__dlpack_device__"):
        return _import_dlpack(item, driver, stream)
    return _import_array_interface(item, driver, stream)


def _import_array_interface(item: Any, driver: Driver, stream: int) -> DeviceImage:
    described = item.__cuda_array_interface__
    name, shape, strides = _name(item), tuple(described["shape"]), described.get("strides")
    if described["typestr"] not in ("|u1", "<u1", ">u1", "=u1"):
        raise _wrong_type(name, described["typestr"])
    if described.get("mask") is not None:
        raise ImageError(f"the image ({name}) has a mask, which means nothing here.")
    image_hw, row_pitch = _layout(name, shape, strides)
    address = int(described["data"][0])
    _check_device(name, driver.device_of(address), driver)
    # version 2 and below know no streams: their work is taken to be on the default one
    producer = described.get("stream") if described.get("version", 0) >= 3 else _LEGACY_STREAM
    if producer is not None:
        _wait_for(driver, stream, int(producer))
    return DeviceImage(address, image_hw, row_pitch, item)


def _wait_for(driver: Driver, stream: int, producer: int) -> None:
    event = driver.create_event()
    try:
        driver.record(event, producer)
        driver.wait(stream, event)
    finally:
        driver.destroy_event(event)  # the driver keeps what still waits for it


def _name(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}"


def _wrong_type(name: str, found: str) -> ImageError:
    return ImageError(f"the image ({name}) must be uint8, found {found}. Give values 0..255.")


def _layout(name: str, shape: Sequence[int], strides: Sequence[int] | None) -> tuple[tuple[int, int], int]:
    """Height and width, and bytes between rows, of an image of bytes."""
    if len(shape) != 3 or shape[2] != 3:
        raise ImageError(f"the image ({name}) must be [H, W, 3], found {list(shape)}.")
    height, width = int(shape[0]), int(shape[1])
    if not height or not width:
        raise ImageError(f"the image ({name}) has no pixels: {width}x{height}.")
    if strides is None:
        return (height, width), 3 * width
    row_pitch = int(strides[0]) if height > 1 else 3 * width
    if strides[2] != 1 or (width > 1 and strides[1] != 3) or row_pitch < 3 * width:
        raise ImageError(
            f"the image ({name}) must have its channels side by side and its pixels in order (strides [pitch, 3, 1] bytes), "
            f"found strides {list(strides)} for {list(shape)}. Make it contiguous first; channel_order tells BGR from RGB."
        )
    return (height, width), row_pitch


def _check_device(name: str, found: int | None, driver: Driver) -> None:
    wanted = driver.device.index
    if found is None:
        raise DeviceError(
            f"the image ({name}) is in memory that the driver of cuda:{wanted} does not know as a GPU's. "
            "Give a NumPy array, or copy the image to the GPU first."
        )
    if found != wanted:
        raise DeviceError(
            f"the image ({name}) is on cuda:{found}, this Detector on cuda:{wanted}. "
            f'Copy the image there, or open a Detector with device="cuda:{found}".'
        )


class _DlDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DlType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DlTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DlDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DlType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; null: contiguous
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # holds the interpreter's lock, as the owner may need it


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _DlTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DlTensor),
    )


# Name of a capsule -> what it points to, and its name once someone has taken it over. The names must outlive the capsules.
_CAPSULES: dict[bytes, tuple[type[_Managed] | type[_ManagedVersioned], bytes]] = {
    b"dltensor": (_Managed, b"used_dltensor"),
    b"dltensor_versioned": (_ManagedVersioned, b"used_dltensor_versioned"),
}
_SUPPORTED_MAJOR = 1


def _import_dlpack(item: Any, driver: Driver, stream: int) -> DeviceImage:
    name = _name(item)
    kind, index = (int(part) for part in item.__dlpack_device__())
    if kind not in (_DL_CUDA, _DL_CUDA_MANAGED):
        where = {_DL_CPU: "on the CPU", _DL_CUDA_HOST: "in page-locked host memory"}.get(
            kind, f"on DLPack device {kind}"
        )
        raise DeviceError(f"the image ({name}) is {where}; give it as a NumPy array.")
    if kind == _DL_CUDA:
        _check_device(name, index, driver)
    capsule = item.__dlpack__(stream=stream)
    managed, used_name = _open_capsule(name, capsule)
    tensor: _DlTensor = managed.tensor
    dtype = tensor.dtype
    if (dtype.code, dtype.bits, dtype.lanes) != (_DL_UNSIGNED, 8, 1):
        raise _wrong_type(name, str(getattr(item, "dtype", f"DLPack type {dtype.code} of {dtype.bits} bits")))
    shape = tensor.shape[: tensor.ndim]
    strides = tensor.strides[: tensor.ndim] if tensor.strides else None
    image_hw, row_pitch = _layout(name, shape, strides)
    address = int(tensor.data or 0) + int(tensor.byte_offset)
    _set_capsule_name(capsule, used_name)  # from here on it is ours to delete

    def release() -> None:
        if managed.deleter:
            _Deleter(managed.deleter)(ctypes.addressof(managed))

    return DeviceImage(address, image_hw, row_pitch, item, release)


def _open_capsule(name: str, capsule: Any) -> tuple[Any, bytes]:
    api = ctypes.pythonapi
    api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
    api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    for capsule_name, (structure, used_name) in _CAPSULES.items():
        if api.PyCapsule_IsValid(capsule, capsule_name):
            managed = structure.from_address(api.PyCapsule_GetPointer(capsule, capsule_name))
            if isinstance(managed, _ManagedVersioned) and managed.major != _SUPPORTED_MAJOR:
                raise ImageError(f"the image ({name}) is handed over in DLPack {managed.major}; up to 1 is known here.")
            return managed, used_name
    raise ImageError(f"the image ({name}) hands over {capsule!r}, which is no unused DLPack capsule.")


def _set_capsule_name(capsule: Any, name: bytes) -> None:
    ctypes.pythonapi.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
    ctypes.pythonapi.PyCapsule_SetName(capsule, name)
