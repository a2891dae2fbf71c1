"""The emulated GPU and the stand-in for TensorRT, as the runtime's own tests have them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.unit.cuda.conftest import emulated as emulated
from tests.unit.cuda.conftest import on_cpu as on_cpu
from tests.unit.runtime.conftest import make_bench as make_bench

_NEEDS_KERNELS = {"emulated", "make_bench"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kernels run on the CPU where there is a C++ compiler for Linux."""
    compiler = os.environ.get("CXX", "g++")
    if sys.platform == "linux" and shutil.which(compiler) is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and _NEEDS_KERNELS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=f"needs Linux and {compiler} to compile the kernels for the CPU"))
