"""The kernels as a cubin, from the cache or by NVRTC, and loaded on a GPU.

NVRTC is NVIDIA's compiler as a library, here by ctypes: it needs neither a driver nor a GPU, nor one package of Python more.
It is found in NVIDIA's wheels (nvidia-cuda-nvrtc for CUDA 13, nvidia-cuda-nvrtc-cu12 for CUDA 12), in a CUDA toolkit, or
where the system looks for libraries. cuda-pathfinder finds one of them, and cuda-bindings calls that of its own CUDA version;
here all are wanted, to choose the one whose cubins the driver loads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from yolact_deploy.artifacts.names import StepProgress
from yolact_deploy.cuda.cache import cached, is_cached, keys_of, read
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import ARGUMENTS, Launch
from yolact_deploy.cuda.specialization import Specialization, compile_options, kernel_source
from yolact_deploy.errors import DeviceError, EngineError, MissingDependencyError, OutputError, pip_install

_SUPPORTED_MAJORS = (13, 12)
_FILES = ("nvrtc64_*.dll",) if sys.platform == "win32" else ("libnvrtc.so.[0-9]*",)
_BUILTINS = "nvrtc-builtins64_*.dll" if sys.platform == "win32" else "libnvrtc-builtins.so.*"
_TOOLKIT = Path("/usr/local/cuda")  # where it is unless somebody chose otherwise; the linker may not look there
_WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}


@dataclass(frozen=True)
class Nvrtc:
    """A library of NVIDIA's runtime compiler on this machine."""

    path: str
    version: tuple[int, int]
    size_bytes: int  # tells builds of one version apart; 0 where the file is not known
    architectures: tuple[int, ...]  # 75, 80, ...

    @property
    def name(self) -> str:
        """Name and version, for people."""
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
            f"{pip_install('gpu', '--upgrade')} nvidia-cuda-nvrtc for a newer GPU."
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
    compiler = shutil.which("nvcc")
    for toolkit in (Path(compiler).resolve().parents[1] if compiler else None, _TOOLKIT):
        if toolkit is not None:
            yield from _libraries(toolkit)
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


@dataclass(frozen=True)
class WarmedKernels:
    """Kernels that are in the cache now."""

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

    A cache that was filled elsewhere is enough: where no NVRTC serves the GPU, what another one made and the driver loads is
    taken. Raises EngineError with NVRTC's log where the kernels do not compile; where the cache has none either, DeviceError if
    the NVRTC here serves neither the architecture nor the driver, MissingDependencyError without NVRTC.
    """
    try:
        nvrtc = choose_nvrtc(architecture, driver_version)
    except (MissingDependencyError, DeviceError):
        brought = _made_elsewhere(specialization, architecture, driver_version)
        if brought is None:
            raise
        return brought
    make = functools.partial(_compile, nvrtc, specialization, architecture)
    return cached(cache_key(specialization, architecture, nvrtc), make, notice or _warn)


def warm(
    specializations: Sequence[Specialization],
    architectures: Sequence[str],  # "sm_90"
    *,
    driver_version: tuple[int, int] | None = None,
    progress: StepProgress | None = None,  # (done, total)
) -> list[WarmedKernels]:
    """Fill the cache, for this machine or for one that will get the folder.

    Raises OutputError when the cache can't be written, and what `compiled_kernels` raises.
    """
    warmed: list[WarmedKernels] = []
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
            warmed.append(WarmedKernels(specialization, architecture, nvrtc.name, was_cached, seconds))
    if progress is not None:
        progress(total, total)
    return warmed


def cache_key(specialization: Specialization, architecture: str, nvrtc: Nvrtc) -> str:
    """All that the cubin is made of: a digest of source and options, and the compiler."""
    made_by = "{}.{}-{}".format(*nvrtc.version, nvrtc.size_bytes)
    return f"{_source_digest(specialization, architecture)}-nvrtc{made_by}"


def _source_digest(specialization: Specialization, architecture: str) -> str:
    parts = (kernel_source(), *compile_options(specialization, architecture))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _made_elsewhere(
    specialization: Specialization, architecture: str, driver_version: tuple[int, int] | None
) -> bytes | None:
    """The cubin that the newest compiler made whose cubins the driver loads."""
    made: dict[tuple[int, int], str] = {}
    for key in keys_of(f"{_source_digest(specialization, architecture)}-nvrtc"):
        version = re.search(r"-nvrtc(\d+)\.(\d+)-", key)
        if version is not None and (driver_version is None or int(version[1]) <= driver_version[0]):
            made[int(version[1]), int(version[2])] = key
    return next((image for version in sorted(made, reverse=True) if (image := read(made[version]))), None)


def _compile(nvrtc: Nvrtc, specialization: Specialization, architecture: str) -> bytes:
    return nvrtc.compile(kernel_source(), compile_options(specialization, architecture))[0]


def _refuse(message: str) -> NoReturn:
    raise OutputError(message)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


class Kernels:
    """Launches by name. Methods are called with the driver's context current; `close` unloads what is loaded."""

    def __init__(
        self,
        driver: Driver,
        specialization: Specialization,
        image: bytes,  # a cubin
    ) -> None:
        self.specialization = specialization
        self._driver = driver
        self._module: int | None = driver.load_module(image)
        self._functions: dict[str, int] = {}

    def launch(
        self,
        launch: Launch,
        values: Mapping[str, int | float],  # by the names of ARGUMENTS[launch.kernel]: device addresses and scalars
        stream: int,
    ) -> None:
        """Enqueue a kernel. Raises EngineError for a value that is missing or after `close`, DeviceError by the driver."""
        names = ARGUMENTS[launch.kernel]
        missing = [name for name, _ in names if name not in values]
        if missing:
            raise EngineError(f"the kernel {launch.kernel} was launched without {', '.join(missing)}.")
        arguments = [(kind, values[name]) for name, kind in names]
        self._driver.launch(self._function(launch.kernel), launch, arguments, stream)

    def close(self) -> None:
        """Unload; nothing may be launched after, nor be running. Safe to call twice."""
        module, self._module = self._module, None
        self._functions.clear()
        if module is not None:
            self._driver.unload_module(module)

    def _function(self, kernel: str) -> int:
        if self._module is None:
            raise EngineError(f"the kernel {kernel} was launched after the kernels were closed.")
        if kernel not in self._functions:
            self._functions[kernel] = self._driver.get_function(self._module, kernel)
        return self._functions[kernel]


def load_kernels(
    driver: Driver,
    specialization: Specialization,
    notice: Callable[[str], None] | None = None,  # told in words of a cache that can't be used
) -> Kernels:
    """The kernels for the driver's GPU: from the cache, else compiled by NVRTC at this first use and kept there.

    Raises EngineError where they do not compile; where they are not in the cache either, DeviceError if NVRTC and the GPU or its
    driver do not go together, MissingDependencyError without NVRTC.
    """
    image = compiled_kernels(
        specialization, driver.device.architecture, driver_version=driver.device.driver_version, notice=notice
    )
    with driver.current():
        return Kernels(driver, specialization, image)
