"""All recorded Detect + postprocess cases of the original, through the kernels: exact."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.emulator import emulator
from tests.emulator.originals import CASES, MODES, expect_original


def _case(case: dict[str, Any]) -> Any:
    """Of the nets as large as people's, one is enough for every change."""
    large = case["spec"]["proto"][0] > 100 and case["id"] != "p34_real_crowded"
    return pytest.param(case, id=case["id"], marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [_case(case) for case in CASES])
def test_detections_boxes_and_masks_are_the_originals(case: dict[str, Any], mode: str) -> None:
    expect_original(emulator, case, mode)
