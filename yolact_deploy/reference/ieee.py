"""Float32 functions whose last bit does not depend on the platform, so that implementations can agree bit for bit."""

from __future__ import annotations

import numpy as np

from yolact_deploy.arrays import AnyArray, FloatArray


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
    """a * b + c of float32 values, shapes as they broadcast, rounded once: the product is exact in double."""
    return (a.astype(np.float64) * b + c).astype(np.float32)
