"""Building TensorRT and TensorRT-RTX plans from ONNX.

`build` does what `yolact-deploy build-engine` does, `lint_onnx` what `yolact-deploy inspect --lint` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.adapters import available_runtimes as available_runtimes
    from engines.builder import build as build
    from engines.lint.linter import lint_onnx as lint_onnx

_LAZY = {
    "available_runtimes": "engines.adapters",
    "build": "engines.builder",
    "lint_onnx": "engines.lint.linter",
}

__all__ = ["available_runtimes", "build", "lint_onnx"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
