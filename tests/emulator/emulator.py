"""The CUDA kernels on the CPU: compiled by g++ with `cuda_emulator.h`, one fiber per CUDA thread.

What it shows: results, deadlocks and diverged barriers, under several orders of threads and blocks; writes outside of buffers,
crashes and loops without end, none of which takes the process with it; with the build "races", accesses that no barrier orders,
and reads of what nobody wrote (`unwritten`);
with "asan", every access outside of buffers and undefined behaviour, which ends the process; with "costs", what a launch reads,
writes and waits for. What it can't: timing, alignment that only a GPU asks for, and races between launches.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.emulator.guarded import OutsideWriteError, guarded_copies
from tests.emulator.unwritten import written_bytes
from yolact_deploy.cuda.launches import ARGUMENTS, Launch
from yolact_deploy.cuda.specialization import Specialization, kernel_source

Array = npt.NDArray[Any]
Build: TypeAlias = Literal["plain", "quick", "races", "costs", "asan"]  # quick: to compile, where little is run

HERE = Path(__file__).parent
LIMIT_SECONDS = 60.0  # of processor time, far beyond what a kernel of a test takes
FORWARD, REVERSE = 0, 1  # schedules; any other number is the seed of a random one
_COMMON_FLAGS = ["-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-w"]
_BUILD_FLAGS: Mapping[Build, list[str]] = {
    "plain": ["-O2"],
    "quick": ["-O0"],
    "races": ["-O1", "-fsanitize=thread"],
    "costs": ["-O2", "-fsanitize=thread", "-fsanitize-coverage=trace-pc"],
    "asan": [
        "-O1",
        "-fsanitize=address,undefined",
        "-fsanitize-sections=emulated_shared",
        "-fno-sanitize-recover=all",
    ],
}
_OBSERVERS: Mapping[Build, str] = {"races": "races.cpp", "costs": "costs.cpp"}
_C_TYPES: Mapping[str, Any] = {
    "pointer": ctypes.c_void_p,
    "int32": ctypes.c_int32,
    "uint32": ctypes.c_uint32,
    "int64": ctypes.c_int64,
    "float32": ctypes.c_float,
}


class EmulatorError(Exception):
    """A deadlock, a divergent barrier or a race; what would have ended the process; or the kernels do not compile."""


class Emulator:
    """The kernels of one specialization. Not thread-safe: the fibers' state is global to the library."""

    def __init__(self, library: Path, build: Build = "plain") -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.emulator_launch.restype = ctypes.c_char_p
        self._build = build
        self.limit_seconds = LIMIT_SECONDS

    def launch(
        self, launch: Launch, arguments: Mapping[str, Any], *, schedule: int = FORWARD, guard: bool = True
    ) -> None:
        """Run a kernel to its end over NumPy arrays, which are written in place; `guard` for arrays that nothing guards yet.

        Raises EmulatorError, for a kernel that writes outside of its arrays, aborts or does not end as well: the process lives
        on. Under AddressSanitizer that is the sanitizer's.
        """
        arrays = {name: _array(arguments[name]) for name, kind in ARGUMENTS[launch.kernel] if kind == "pointer"}
        caught = self._build != "asan"
        self._library.emulator_catch(ctypes.c_double(self.limit_seconds if caught else 0))
        try:
            with guarded_copies(arrays) if guard and caught else _in_place(arrays) as addresses:
                self._launch(launch, {**arguments, **addresses}, arrays, schedule)
        except OutsideWriteError as exc:
            raise EmulatorError(f"{launch.kernel}: {exc}") from exc

    def _launch(self, launch: Launch, arguments: Mapping[str, Any], arrays: Mapping[str, Array], schedule: int) -> None:
        if self._build in _OBSERVERS:
            self._library.emulator_forget_all()
            for name, array in arrays.items():
                written = written_bytes(array)
                self._library.emulator_watch(
                    ctypes.c_void_p(arguments[name]),
                    ctypes.c_size_t(array.nbytes),
                    None if written is None else ctypes.c_void_p(written.ctypes.data),
                )
        values = [_C_TYPES[kind](arguments[name]) for name, kind in ARGUMENTS[launch.kernel]]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        problem = self._library.emulator_launch(
            launch.kernel.encode(),
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(*launch.block),
            ctypes.c_size_t(launch.shared_bytes),
            pointers,
            ctypes.c_uint64(schedule),
        )
        if problem is not None:
            raise EmulatorError(problem.decode())

    def costs(self) -> dict[str, int]:
        """What the last launch took, in the build "costs": {"blocks", "blocks_without_work", "bytes_read", "bytes_written",
        "barriers", "longest_thread_steps", "steps"}. A block without work writes nothing; a step is a basic block entered by a
        thread, "steps" those of all threads."""
        names = (
            "blocks",
            "blocks_without_work",
            "bytes_read",
            "bytes_written",
            "barriers",
            "longest_thread_steps",
            "steps",
        )
        found = (ctypes.c_uint64 * len(names))()
        self._library.emulator_costs(found)
        return dict(zip(names, found, strict=True))


@functools.cache
def emulator(specialization: Specialization, build: Build = "plain") -> Emulator:
    """The kernels as they are."""
    return Emulator(compiled(kernel_source(), specialization, build), build)


def compiled(source: str, specialization: Specialization, build: Build = "plain") -> Path:
    """The shared library of a unit of CUDA source, made once per source. Raises EmulatorError when it does not compile."""
    definitions = [f"-D{name}={value}" for name, value in specialization.definitions().items()]
    unit = _unit(source)
    flags = [*_COMMON_FLAGS, *_BUILD_FLAGS[build], *_cpu_flags()]
    link_flags = ["-shared", *(["-fsanitize=address,undefined"] if build == "asan" else [])]
    observer = _OBSERVERS.get(build, "no_observer.cpp")
    runtime = [_runtime_object(name) for name in ("runtime.cpp", observer)]
    key = _digest(unit, (HERE / "cuda_emulator.h").read_text(), repr((definitions, flags, link_flags, runtime)))
    library = _cache_folder() / f"kernels-{key}.so"
    with _locked(library):
        if not library.exists():
            unit_path = library.with_suffix(".cpp")
            unit_path.write_text(unit)
            header = ["-include", str(HERE / "cuda_emulator.h")]
            _run_compiler([*flags, *definitions, *header, "-c", str(unit_path), "-o", f"{library}.o"])
            partial = library.with_suffix(".partial")
            _run_compiler([*link_flags, f"{library}.o", *map(str, runtime), "-o", str(partial)])
            partial.rename(library)
    return library


def _unit(source: str) -> str:
    names = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(\w+\)\s+)?(\w+)\(", source)
    source = source.replace("extern __shared__ uint4 dynamic_shared[];", "using emulator::dynamic_shared;")
    return source + "".join(f"\nEMULATED_KERNEL({name})" for name in names) + "\n"


def _runtime_object(name: str) -> Path:
    """The emulator's own code, never instrumented."""
    flags = [*_COMMON_FLAGS, "-O2", "-U_FORTIFY_SOURCE"]  # which would refuse the jump out of a fiber
    headers = [(HERE / header).read_text() for header in ("cuda_emulator.h", "runtime.h", "memory_hooks.h")]
    key = _digest((HERE / name).read_text(), *headers, repr(flags))
    path = _cache_folder() / f"{Path(name).stem}-{key}.o"
    with _locked(path):
        if not path.exists():
            partial = path.with_suffix(".partial")
            _run_compiler([*flags, "-c", str(HERE / name), "-o", str(partial)])
            partial.rename(path)
    return path


def linked_library(name: str, soname: str) -> Path:
    """A shared library of one of the sources here, alone in its folder under `soname`."""
    flags = [*_COMMON_FLAGS, "-O2", "-shared", f"-Wl,-soname,{soname}"]
    stem = Path(name).stem
    key = _digest(*(source.read_text() for source in sorted(HERE.glob(f"{stem}*"))), repr(flags))
    path = _cache_folder() / f"{stem}-{key}" / soname
    path.parent.mkdir(exist_ok=True)
    with _locked(path.parent):
        if not path.exists():
            partial = path.parent.with_suffix(".partial")
            _run_compiler([*flags, str(HERE / name), "-o", str(partial), "-ldl"])
            partial.rename(path)
    return path


def _run_compiler(arguments: list[str]) -> None:
    done = subprocess.run([os.environ.get("CXX", "g++"), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise EmulatorError(f"g++ {' '.join(arguments)}\n{done.stderr}")


@functools.cache
def _cpu_flags() -> list[str]:
    """Instructions that are only faster: what fmaf and rint give is the same without them."""
    cpu_info = Path("/proc/cpuinfo")
    found = cpu_info.read_text() if cpu_info.exists() else ""
    return [f"-m{flag.replace('_', '.')}" for flag in ("fma", "sse4_1", "f16c") if f" {flag} " in found]


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"yolact-deploy-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds `<path>.lock`, so that of several processes one compiles and the others wait."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _array(value: Any) -> Array:
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
        raise EmulatorError(f"a buffer must be a C-contiguous array, found {type(value).__name__}")
    return value


@contextlib.contextmanager
def _in_place(arrays: Mapping[str, Array]) -> Iterator[dict[str, int]]:
    yield {name: array.ctypes.data for name, array in arrays.items()}
