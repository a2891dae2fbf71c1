from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulator.availability import skip_without_compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_compiler(item for item in items if Path(__file__).parent in item.path.parents)
