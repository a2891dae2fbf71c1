"""The kernels as a cubin: from the cache, else by NVRTC."""

from __future__ import annotations

import functools
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from yolact_deploy.cuda.cubin_cache import cached, is_cached
from yolact_deploy.cuda.nvrtc import Nvrtc, choose_nvrtc
from yolact_deploy.cuda.specialization import Specialization, compile_options, kernel_source
from yolact_deploy.errors import OutputError


@dataclass(frozen=True)
class Warmed:
    specialization: Specialization
    architecture: str
    compiler: str
    was_cached: bool
    seconds: float


def compiled_kernels(
    specialization: Specialization,
    architecture: str,  # "sm_90"
    *,
    driver_version: tuple[int, int] | None = None,  # that will load it; None: any
    notice: Callable[[str], None] | None = None,  # told once in words of a cache that can't be used; None: a warning
) -> bytes:
    """The cubin of a specialization, compiled at its first use on this machine.

    Raises EngineError with NVRTC's log where the kernels do not compile, DeviceError where the NVRTC here serves neither the
    architecture nor the driver, MissingDependencyError without NVRTC.
    """
    nvrtc = choose_nvrtc(architecture, driver_version)
    make = functools.partial(_compile, nvrtc, specialization, architecture)
    return cached(cache_key(specialization, architecture, nvrtc), make, notice or _warn)


def warm(
    specializations: Sequence[Specialization],
    architectures: Sequence[str],  # "sm_90"
    *,
    driver_version: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,  # (done, total)
) -> list[Warmed]:
    """Fill the cache, for this machine or for one that will get the folder.

    Raises OutputError when the cache can't be written, and what `compiled_kernels` raises.
    """
    warmed: list[Warmed] = []
    total = len(specializations) * len(architectures)
    for architecture in architectures:
        nvrtc = choose_nvrtc(architecture, driver_version)
        for specialization in specializations:
            if progress is not None:
                progress(len(warmed), total)
            was_cached = is_cached(cache_key(specialization, architecture, nvrtc))
            started = time.perf_counter()
            compiled_kernels(specialization, architecture, driver_version=driver_version, notice=_refuse)
            seconds = time.perf_counter() - started
            warmed.append(Warmed(specialization, architecture, nvrtc.name, was_cached, seconds))
    if progress is not None:
        progress(total, total)
    return warmed


def cache_key(specialization: Specialization, architecture: str, nvrtc: Nvrtc) -> str:
    """SHA-256 of all that the cubin is made of."""
    options = compile_options(specialization, architecture)
    parts = (kernel_source(), *options, nvrtc.name, str(nvrtc.size_bytes))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _compile(nvrtc: Nvrtc, specialization: Specialization, architecture: str) -> bytes:
    return nvrtc.compile(kernel_source(), compile_options(specialization, architecture))[0]


def _refuse(message: str) -> NoReturn:
    raise OutputError(message)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
