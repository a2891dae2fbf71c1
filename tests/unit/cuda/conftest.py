from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kernels run on the CPU where there is a C++ compiler for Linux."""
    compiler = os.environ.get("CXX", "g++")
    if sys.platform == "linux" and shutil.which(compiler) is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"needs Linux and {compiler} to compile the kernels for the CPU"))
