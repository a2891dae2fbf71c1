"""Images in the memory of an EmulatedDriver, handed over as other libraries do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.emulator.driver import EmulatedDriver
from yolact_deploy.arrays import Image
from yolact_deploy.cuda import device_arrays


class OnDevice:
    """An image on the device, its rows `pitch` bytes apart. Its pixels arrive only when `stream` is come to."""

    def __init__(self, driver: EmulatedDriver, image: Image, *, pitch: int | None = None, stream: int = 1) -> None:
        self.driver, self.shape, self.stream = driver, image.shape, stream
        height, width = image.shape[:2]
        self.pitch = pitch or 3 * width
        with driver.current():
            self.address = driver.allocate(height * self.pitch, "an image of another library")
        rows = driver.view(self.address, height * self.pitch).reshape(height, self.pitch)

        def fill() -> None:
            rows[:, : 3 * width] = image.reshape(height, 3 * width)

        driver.call(stream, fill)

    def free(self) -> None:
        with self.driver.current():
            self.driver.free(self.address)


class ArrayInterface:
    """Offers `__cuda_array_interface__`; `changes` are other entries of it, None leaves an entry out."""

    def __init__(self, image: OnDevice, **changes: Any) -> None:
        described = {
            "shape": image.shape,
            "typestr": "|u1",
            "data": (image.address, False),
            "strides": (image.pitch, 3, 1),
            "stream": image.stream,
            "version": 3,
            **changes,
        }
        self.__cuda_array_interface__ = {key: value for key, value in described.items() if value is not ...}


class Dlpack:
    """Offers DLPack, in its old form or the versioned one; counts how often it was deleted."""

    def __init__(
        self,
        image: OnDevice,
        *,
        versioned: bool = False,
        device: tuple[int, int] = (2, 0),
        bits: int = 8,
        version: int = 1,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.asked_for: list[int | None] = []  # streams
        self.deleted = 0
        self._image, self._device = image, device
        sizes = shape or image.shape
        self._shape = (ctypes.c_int64 * len(sizes))(*sizes)
        self._strides = (ctypes.c_int64 * 3)(image.pitch, 3, 1)
        self._structure = device_arrays._ManagedVersioned() if versioned else device_arrays._Managed()
        if isinstance(self._structure, device_arrays._ManagedVersioned):
            self._structure.major = version
        tensor = self._structure.tensor
        tensor.data, tensor.byte_offset = image.address - 16, 16
        tensor.device.kind, tensor.device.index = device
        tensor.ndim = len(sizes)
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = 1, bits, 1
        tensor.shape, tensor.strides = self._shape, self._strides
        self._deleter: Callable[..., None] = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(self._delete)
        self._structure.deleter = ctypes.cast(self._deleter, ctypes.c_void_p)
        self._name = b"dltensor_versioned" if versioned else b"dltensor"

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.asked_for.append(stream)
        driver = self._image.driver
        if stream is not None:  # order our work before theirs
            with driver.current():
                event = driver.create_event()
                driver.record(event, self._image.stream)
                driver.wait(stream, event)
                driver.destroy_event(event)
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
        return new(ctypes.addressof(self._structure), self._name, None)

    def _delete(self, managed: int) -> None:
        assert managed == ctypes.addressof(self._structure)
        self.deleted += 1


def pitched(image: Image) -> int:
    """More bytes than the rows hold, and no multiple of anything."""
    return int(np.prod(image.shape[1:])) + 13
