"""The claims of tests.emulator.checks, on the kernels as they are."""

from __future__ import annotations

import pytest

from tests.emulator.checks import CHECKS
from tests.emulator.emulator import emulator


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: str) -> None:
    CHECKS[check](emulator)
