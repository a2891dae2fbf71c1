"""Arrays: their types, which are on a GPU, and float32 functions whose last bit does not depend on the platform, so that
implementations can agree bit for bit. Shapes are in the comment beside each use."""

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


def exp(x: FloatArray) -> FloatArray:
    """exp, of any shape, rounded correctly to float32 (by way of double); NumPy's own float32 exp is off by up to 2.5 units.

    >>> exp(np.float32([0, 1]))
    array([1.       , 2.7182817], dtype=float32)
    """
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(x.astype(np.float64)).astype(np.float32)


def sigmoid(x: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), of any shape, in float32 steps, as torch's CPU kernel computes it.

    >>> sigmoid(np.float32([0, 2]))
    array([0.5     , 0.880797], dtype=float32)
    """
    one = np.float32(1)
    result: FloatArray = one / (one + exp(-x))
    return result


def fma(a: AnyArray, b: AnyArray, c: AnyArray) -> FloatArray:
    """a * b + c of float32 values, shapes as they broadcast, fused: the product is exact in double.

    The sum is rounded there before it is rounded to float32, so that it is off by a last bit where the product is a tie of two
    float32 and c less than 2^-28 of it.
    """
    return (a.astype(np.float64) * b + c).astype(np.float32)
