"""NVRTC, NVIDIA's compiler as a library, by ctypes: it needs neither a driver nor a GPU, nor one package of Python more.

It is found in NVIDIA's wheels (nvidia-cuda-nvrtc for CUDA 13, nvidia-cuda-nvrtc-cu12 for CUDA 12), in a CUDA toolkit, or
where the system looks for libraries.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.errors import DeviceError, EngineError, MissingDependencyError

_SUPPORTED_MAJORS = (13, 12)
_FILES = ("nvrtc64_*.dll",) if sys.platform == "win32" else ("libnvrtc.so.[0-9]*",)
_BUILTINS = "nvrtc-builtins64_*.dll" if sys.platform == "win32" else "libnvrtc-builtins.so.*"
_WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}


@dataclass(frozen=True)
class Nvrtc:
    path: str
    version: tuple[int, int]
    size_bytes: int  # tells builds of one version apart; 0 where the file is not known
    architectures: tuple[int, ...]  # 75, 80, ...

    @property
    def name(self) -> str:
        return "NVRTC {}.{}".format(*self.version)

    def compile(self, source: str, options: Sequence[str]) -> tuple[bytes, str]:
        """(cubin, log) of a unit of CUDA source. Raises EngineError with NVRTC's log when it does not compile."""
        library = _load(self.path)
        program = ctypes.c_void_p()
        encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        if code != 0:
            raise EngineError(f"{self.name} ({self.path}) can't start: {_error(library, code)}.")
        try:
            code = library.nvrtcCompileProgram(program, len(options), encoded)
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            words = log.rstrip(b"\0").decode(errors="replace")
            if code != 0:
                raise EngineError(
                    f"{self.name} could not compile the GPU kernels ({' '.join(options)}): {_error(library, code)}\n{words}"
                )
            return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), words
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))


def choose_nvrtc(
    architecture: str,  # "sm_90"
    driver_version: tuple[int, int] | None = None,  # that will load the cubin; None: any
) -> Nvrtc:
    """The newest NVRTC whose cubins the driver loads.

    Raises MissingDependencyError without any, DeviceError when those found are too new for the driver or do not know the GPU.
    """
    found = installed()
    if not found:
        raise MissingDependencyError("nvidia-cuda-nvrtc", extra="gpu", purpose="compiling the GPU kernels")
    fitting = [nvrtc for nvrtc in found if driver_version is None or nvrtc.version[0] <= driver_version[0]]
    if not fitting and driver_version is not None:
        wheel = _WHEELS.get(driver_version[0])
        raise DeviceError(
            f"{found[0].name} makes kernels for drivers of CUDA {found[0].version[0]} and newer, and this one is made for CUDA "
            "{}.{}: update the NVIDIA driver".format(*driver_version)
            + (f", or pip install {wheel}." if wheel else ".")
        )
    number = int(architecture.removeprefix("sm_"))
    for nvrtc in fitting:
        if number in nvrtc.architectures:
            return nvrtc
    raise DeviceError(
        f"{fitting[0].name} can't compile for {architecture}, it knows sm_{', sm_'.join(map(str, fitting[0].architectures))}: "
        + (
            'pip install --upgrade "yolact-deploy[gpu]" nvidia-cuda-nvrtc for a newer GPU.'
            if number > max(fitting[0].architectures)
            else "the GPU is too old or the name is wrong."
        )
    )


@functools.cache
def installed() -> tuple[Nvrtc, ...]:
    """Every NVRTC here, the newest first."""
    found = {nvrtc.version: nvrtc for nvrtc in map(_open, _candidates()) if nvrtc is not None}
    return tuple(found[version] for version in sorted(found, reverse=True))


def _candidates() -> Iterator[str]:
    """What comes first is what a system wants least: of one version the last counts, the wheel's."""
    for major in _SUPPORTED_MAJORS:
        yield f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root:
            yield from _libraries(Path(root))
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        spec = None
    for entry in (spec.submodule_search_locations or []) if spec is not None else []:
        for folder in sorted(Path(entry).glob("*")):
            yield from _libraries(folder)


def _libraries(root: Path) -> Iterator[str]:
    for folder in ("lib64", "lib", "bin"):
        for pattern in _FILES:
            for path in sorted((root / folder).glob(pattern)):
                major = re.search(r"(?:\.so\.|64_)(\d\d)", path.name)
                if major is not None and int(major[1]) in _SUPPORTED_MAJORS:
                    yield str(path)


def _open(path: str) -> Nvrtc | None:
    try:
        library = _load(path)
    except OSError:
        return None
    major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    architectures = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(architectures)
    file = Path(path)
    return Nvrtc(
        path, (major.value, minor.value), file.stat().st_size if file.is_absolute() else 0, tuple(sorted(architectures))
    )


@functools.cache
def _load(path: str) -> Any:
    for builtins in sorted(Path(path).parent.glob(_BUILTINS)) if Path(path).is_absolute() else []:
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # which NVRTC looks for by name alone
    return ctypes.CDLL(path)


def _error(library: Any, code: int) -> str:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    text = library.nvrtcGetErrorString(code)
    return text.decode(errors="replace") if text else f"error {code}"


def _text(get_size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw
