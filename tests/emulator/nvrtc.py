"""NVRTC of the wheel nvidia-cuda-nvrtc, by ctypes: compiles for any architecture, without a driver or a GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any


@functools.cache
def library() -> Any | None:
    """The loaded library; None when the wheel is not installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(entry) for entry in (spec.submodule_search_locations or [])] if spec is not None else []
    for folder in folders:
        for path in sorted(folder.glob("*/lib/libnvrtc.so.*")):
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # which libnvrtc looks for by name alone
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    return None


def compile_log(source: str, options: list[str]) -> tuple[bool, str, bytes]:
    """(compiled, log, cubin) of a unit of CUDA source."""
    nvrtc = library()
    if nvrtc is None:
        raise RuntimeError("the wheel nvidia-cuda-nvrtc is not installed")
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    compiled = nvrtc.nvrtcCompileProgram(program, len(options), encoded) == 0
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    cubin = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program) if compiled else b""
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return compiled, log.decode(errors="replace"), cubin


def _text(get_size: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw
