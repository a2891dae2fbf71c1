"""The emulated GPU and the stand-in for TensorRT, as the runtime's own tests have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.availability import skip_without_compiler
from tests.unit.gpu_path.conftest import emulated as emulated
from tests.unit.gpu_path.conftest import on_cpu as on_cpu
from tests.unit.runtime.conftest import make_bench as make_bench

_NEEDS_KERNELS = {"emulated", "make_bench"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    skip_without_compiler(item for item in here if _NEEDS_KERNELS & set(getattr(item, "fixturenames", ())))
