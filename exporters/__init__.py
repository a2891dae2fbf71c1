"""Reading checkpoints, the PyTorch YOLACT, ONNX export, precision and parity.

`export`, `quantize` and `compare` do what the commands of these names do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.commands import compare as compare
    from exporters.commands import export as export
    from exporters.commands import quantize as quantize

__all__ = ["compare", "export", "quantize"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("exporters.commands"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
