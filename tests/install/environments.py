"""Environments that live as long as a check."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def of_no_environment() -> dict[str, str]:
    """The variables of this process without those that would bring its own packages along."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def built_wheel(folder: Path) -> Path:
    """The one wheel in `folder`, by its full path: pip and the wheel's own words name it so."""
    (wheel,) = folder.resolve().glob("*.whl")
    return wheel


def environment_of(interpreter: str, folder: Path, *requirements: str) -> Path:
    """A fresh environment of `interpreter` in `folder` with `requirements`, as constraints.txt pins them.

    This environment's own pip installs into it, and leaves the bytecode to the modules that are imported: unpacking a pip
    and compiling all of PyTorch would take longer than what is tried.

    Raises:
        subprocess.CalledProcessError: the environment can't be made; what was printed is in its `stdout`.
    """
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--no-compile"]
    for step in (
        [interpreter, "-m", "venv", "--without-pip", str(folder)],
        [*pip, "--constraint", str(ROOT / "constraints.txt"), *requirements],
    ):
        subprocess.run(
            step, env=of_no_environment(), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    return folder
