from __future__ import annotations

from pathlib import Path

import pytest

from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.errors import YolactDeployError


def _why_not() -> str | None:
    try:
        driver = open_driver()
        with driver.current():
            driver.memory_info()
    except YolactDeployError as exc:
        return str(exc).splitlines()[0]
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and (reason := _why_not()) is not None:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))


@pytest.fixture(scope="session")
def driver() -> Driver:
    return open_driver()
