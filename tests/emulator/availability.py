"""Where kernels can be compiled for the CPU."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

import pytest


def skip_without_compiler(items: Iterable[pytest.Item]) -> None:
    """Mark tests that need Linux and a C++ compiler, where either is missing."""
    compiler = os.environ.get("CXX", "g++")
    if sys.platform == "linux" and shutil.which(compiler) is not None:
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason=f"needs Linux and {compiler} to compile the kernels for the CPU"))
