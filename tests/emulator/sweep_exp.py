"""The kernels' exp against the reference's, over the float32 values whose exp is neither 0, 1 nor infinite.

python -m tests.emulator.sweep_exp    all of them, 564 million, in about a minute
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np

from tests.emulator.emulator import Array, compiled
from yolact_deploy.arrays import exp
from yolact_deploy.cuda.specialization import Specialization, kernel_source

_EXP_OF_MANY = """
extern "C" void exp_of_many(const float* x, float* y, long long n) {
  for (long long i = 0; i < n; i++) y[i] = exp_rounded(x[i]);
}
"""
_SMALLEST, _LARGEST = 0x32000000, 0x42D20000  # bits of 2^-27 and 105
_CHUNK = 1 << 22


def disagreements(step: int) -> tuple[int, int]:
    """(values compared, values that differ) over every `step`-th float32."""
    library = ctypes.CDLL(str(compiled(kernel_source() + _EXP_OF_MANY, Specialization(num_classes=1, num_coeff=1))))
    compared = different = 0
    for x in _values(step):
        found = np.empty_like(x)
        library.exp_of_many(
            ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(found.ctypes.data), ctypes.c_longlong(len(x))
        )
        compared += len(x)
        different += int(np.count_nonzero(found.view(np.uint32) != exp(x).view(np.uint32)))
    return compared, different


def _values(step: int) -> Iterator[Array]:
    for sign in (0, 1 << 31):
        for start in range(_SMALLEST, _LARGEST, _CHUNK * step):
            bits = np.arange(start, min(start + _CHUNK * step, _LARGEST), step, dtype=np.int64) + sign
            yield bits.astype(np.uint32).view(np.float32)


if __name__ == "__main__":
    values, differing = disagreements(1)
    print(f"{values} values, {differing} differ")
