"""The kernels on a GPU: the original's cases, the directed claims, and the emulator's bits."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.emulator.checks import CHECKS
from tests.emulator.originals import CASES, MODES, expect_original
from tests.gpu.equality import SPECIALIZATIONS, expect_emulators_bits, expect_emulators_case
from tests.gpu.runner import gpu
from yolact_deploy.cuda.specialization import Specialization


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_detections_boxes_and_masks_are_the_originals(case: dict[str, Any], mode: str) -> None:
    expect_original(gpu, case, mode)


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: str) -> None:
    CHECKS[check](gpu)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_every_bit_of_the_originals_cases_is_the_emulators(case: dict[str, Any], mode: str) -> None:
    expect_emulators_case(case, mode)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++")
@pytest.mark.parametrize("specialization", SPECIALIZATIONS, ids=str)
def test_every_bit_of_random_heads_is_the_emulators(specialization: Specialization) -> None:
    expect_emulators_bits(specialization)
