"""All recorded Detect + postprocess cases of the original, through the kernels: exact."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.emulator import emulator
from tests.emulator.originals import CASES, MODES, expect_original


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_detections_boxes_and_masks_are_the_originals(case: dict[str, Any], mode: str) -> None:
    expect_original(emulator, case, mode)
