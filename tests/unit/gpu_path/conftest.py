from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.availability import skip_without_compiler
from tests.emulator.backend import EmulatedGpu
from tests.emulator.driver import EmulatedDriver
from yolact_deploy import Detector


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(item for item in items if Path(__file__).parent in item.path.parents)


@pytest.fixture
def emulated() -> Iterator[Callable[..., EmulatedGpu]]:
    """Makes EmulatedGpus; at the end nothing may be left on them that their Detectors did not close."""
    made: list[EmulatedGpu] = []

    def emulate(driver: EmulatedDriver | None = None, **network_options: Any) -> EmulatedGpu:
        gpu = EmulatedGpu(driver, **network_options)
        made.append(gpu)
        return gpu

    yield emulate
    gc.collect()  # Detectors that were not closed are gone by now
    for gpu in made:
        assert gpu.driver.torn_down or not gpu.driver.left_over
        assert all(network.is_closed for network in gpu.networks)


@pytest.fixture(scope="session")
def on_cpu(shapes_onnx: Path) -> Detector:
    """What the GPU path is compared with."""
    return Detector(shapes_onnx, device="cpu", threads=1)
