"""Arrays: their types, and which are on a GPU. Shapes are in the comment beside each use."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Image: TypeAlias = npt.NDArray[np.uint8]  # [H, W, 3]
AnyArray: TypeAlias = npt.NDArray[Any]

_DLPACK_CUDA, _DLPACK_CUDA_MANAGED = 2, 13  # DLDeviceType


def is_device_array(item: Any) -> bool:
    """Whether an object says that it is in the memory of a GPU, by DLPack or by the CUDA array interface.

    >>> is_device_array(np.zeros(3))
    False
    """
    if hasattr(item, "__dlpack_device__"):
        return int(item.__dlpack_device__()[0]) in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED)
    return hasattr(item, "__cuda_array_interface__")
