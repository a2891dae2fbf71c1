"""Reading checkpoints, the PyTorch YOLACT, ONNX export, precision and parity.

`export`, `quantize`, `compare` and `inspect` do what the commands of these names do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.commands import export as export
    from exporters.commands import quantize as quantize
    from exporters.comparison.command import compare as compare
    from exporters.inspection import inspect as inspect

_LAZY = {
    "compare": "exporters.comparison.command",
    "export": "exporters.commands",
    "inspect": "exporters.inspection",
    "quantize": "exporters.commands",
}

__all__ = ["compare", "export", "inspect", "quantize"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
