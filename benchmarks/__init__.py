"""Timing, peers and reports: `bench` does what `yolact-deploy bench` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.command import bench as bench
    from benchmarks.command import regressed as regressed

_LAZY = {"bench": "benchmarks.command", "regressed": "benchmarks.command"}

__all__ = ["bench", "regressed"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
