"""The claims of tests.emulator.checks, on the kernels as they are."""

from __future__ import annotations

import pytest

from tests.emulator.checks import CHECKS
from tests.emulator.emulator import emulator
from tests.emulator.mutants import MUTANTS
from yolact_deploy.cuda.specialization import kernel_source


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: str) -> None:
    CHECKS[check](emulator)


def test_every_planted_bug_is_of_these_kernels_and_has_a_check() -> None:
    source = kernel_source()
    assert {name for name, mutant in MUTANTS.items() if source.count(mutant.before) != 1} == set()
    assert {mutant.found_by for mutant in MUTANTS.values()} <= set(CHECKS)
