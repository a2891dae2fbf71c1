"""compute-sanitizer finds nothing in the kernels: memory, races between threads of a block, reads of what nobody wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.checks import CHECKS
from tests.gpu.sanitized import GOLDENS

_TOOL = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
_ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(_TOOL is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_nothing_is_found(tool: str) -> None:
    done = subprocess.run(
        [
            str(_TOOL),
            "--tool",
            tool,
            "--error-exitcode",
            "66",
            "--print-limit",
            "1000000",
            sys.executable,
            "-m",
            "tests.gpu.sanitized",
            *CHECKS,
            *GOLDENS,
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=540,
    )
    if tool == "initcheck":  # which may tell of results copied to the host whole, of which no kernel wrote all
        assert "Uninitialized __global__" not in done.stdout, done.stdout[-4000:]
        assert done.stdout.count(" done\n") == len(CHECKS) + len(GOLDENS), done.stderr[-2000:]
        return
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert "ERROR SUMMARY: 0 errors" in done.stdout or "RACECHECK SUMMARY: 0 hazards" in done.stdout, done.stdout[
        -2000:
    ]
