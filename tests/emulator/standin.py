"""A stand-in `libcuda.so.1`, under which the GPU code runs unchanged on the CPU, in a process of its own.

    folder = tmp_path / "cache"
    environment = standin.environment(specializations=[specialization], cache_dir=folder)
    subprocess.run([sys.executable, "-c", CODE], env=environment, cwd=ROOT, ...)

In that process `open_driver()` finds "Emulated GPU 0", and `load_kernels` finds in the kernel cache, under the key of the cubin,
the emulator's shared object of that specialization: nothing of the product is replaced. Any specialization that the code
under test asks for has to be listed; one that is not is compiled by NVRTC to a real cubin, which the stand-in refuses
(CUDA_ERROR_NO_BINARY_FOR_GPU). What the stand-in checks, and its further variables, are told in libcuda.cpp.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest

from tests.emulator.emulator import compiled, linked_library
from yolact_deploy.cuda.cache import put
from yolact_deploy.cuda.compile import cache_key, choose_nvrtc
from yolact_deploy.cuda.drivers.opening import DRIVER_VARIABLE
from yolact_deploy.cuda.specialization import Specialization, kernel_source
from yolact_deploy.files import CACHE_VARIABLE

KINDS = ("memory", "pinned", "stream", "event", "module", "graph", "context")


def library() -> Path:
    """The stand-in, built once per source; alone in its folder, which is what LD_LIBRARY_PATH has to name."""
    return linked_library("libcuda.cpp", "libcuda.so.1")


def environment(
    *,
    cache_dir: Path,  # YOLACT_DEPLOY_CACHE of the process
    specializations: Sequence[Specialization] = (),  # whose kernels the process will load
    driver: str = "cuda-bindings",  # or "pycuda"
    compute_capability: str = "90",
    driver_version: tuple[int, int] = (13, 0),
    devices: int = 1,
    memory_mb: int = 4096,  # of each GPU, and of page-locked memory
    init_result: int = 0,  # of cuInit
    eager: bool = False,  # work runs when it is enqueued, and not as late as it may
) -> dict[str, str]:
    """Variables of a process that has this GPU."""
    place_kernels(cache_dir, specializations, compute_capability, driver_version)
    search_path = [str(library().parent), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, search_path)),
        CACHE_VARIABLE: str(cache_dir),
        DRIVER_VARIABLE: driver,
        "STANDIN_CUDA_CAPABILITY": compute_capability,
        "STANDIN_CUDA_DRIVER": str(driver_version[0] * 1000 + driver_version[1] * 10),
        "STANDIN_CUDA_DEVICES": str(devices),
        "STANDIN_CUDA_MEMORY_MB": str(memory_mb),
        "STANDIN_CUDA_INIT": str(init_result),
        "STANDIN_CUDA_EAGER": str(int(eager)),
    }


def place_kernels(
    cache_dir: Path,
    specializations: Sequence[Specialization],
    compute_capability: str = "90",
    driver_version: tuple[int, int] = (13, 0),
) -> None:
    """Put the emulator's kernels where the cubins of these specializations are looked for."""
    if not specializations:
        return
    architecture = f"sm_{compute_capability}"
    nvrtc = choose_nvrtc(architecture, driver_version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(cache_dir))
        for specialization in specializations:
            image = compiled(kernel_source(), specialization).read_bytes()
            put(cache_key(specialization, architecture, nvrtc), image)


def installed_driver(package: str) -> str:
    """The package; skips the test where it is not installed, unless YOLACT_DEPLOY_TEST_PYCUDA=required."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        if os.environ.get("YOLACT_DEPLOY_TEST_PYCUDA") == "required":
            raise
        pytest.skip(f"{package} is not installed here (`make pycuda` builds pycuda)")
    return package


def live(kind: str) -> int:
    """In a process that has the stand-in: how many there are of one of KINDS; "context" counts retentions."""
    return int(_loaded().standin_live(kind.encode()))


def live_by_kind() -> dict[str, int]:
    """Only of what there is."""
    return {kind: count for kind in KINDS if (count := live(kind))}


def fail(function: str, code: int, nth: int = 1) -> None:
    """In a process that has the stand-in: the n-th call from now, of the function as libcuda exports it, gives `code`."""
    _loaded().standin_fail(function.encode(), ctypes.c_int(nth), ctypes.c_int(code))


def reset_device(index: int = 0) -> None:
    """What another library does that calls cudaDeviceReset."""
    _loaded().cuDevicePrimaryCtxReset_v2(ctypes.c_int(index))


def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
