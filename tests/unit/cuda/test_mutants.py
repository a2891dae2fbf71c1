"""Every planted bug is found by the check that was written for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.mutants import MUTANTS
from tests.emulator.sanitized import environment

PLAIN = [name for name, mutant in MUTANTS.items() if not mutant.sanitized]
SANITIZED = [name for name, mutant in MUTANTS.items() if mutant.sanitized]
GROUPS = 8  # processes, so that the cores share the work

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("group", range(GROUPS))
def test_planted_bugs_are_found(group: int) -> None:
    check_all_found(PLAIN[group::GROUPS], environment=None)


def test_planted_accesses_outside_of_buffers_are_found() -> None:
    check_all_found(SANITIZED, environment=environment())


def check_all_found(names: list[str], environment: dict[str, str] | None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulator.mutants", *names],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,  # what they may take is counted in processor time
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-4000:]}"
    assert done.stdout.count(": found (") == len(names)
