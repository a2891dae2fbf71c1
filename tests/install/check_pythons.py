"""Run the fast tests on every Python this project supports, as far as this machine has them.

python -m tests.install.check_pythons WHEEL_FOLDER [3.10 3.13]

Each gets a fresh environment with the wheel's `cpu` extra, without PyTorch, whose tests are then skipped: what a user's
program needs is what is tried, and no gigabytes are unpacked for it. A Python that is not here is named and passed over.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.install.environments import built_wheel, environment_of, of_no_environment

ROOT = Path(__file__).parents[2]
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
TOOLS = ("onnx", "pytest", "pytest-xdist", "hypothesis", "filelock")
# Emulated kernels are C++, whatever the Python.
TESTS = (
    "-m",
    "not slow",
    "-p",
    "no:cacheprovider",
    "tests/unit",
    "--ignore=tests/unit/cuda",
    "--ignore=tests/unit/gpu_path",
)
IS_VERSION = "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != sys.argv[1])"


@dataclass(frozen=True)
class Outcome:
    version: str
    passed: bool
    text: str


def main() -> int:
    running = "{}.{}".format(*sys.version_info[:2])
    others = [version for version in SUPPORTED if version != running]  # the running one is `make test`'s
    wanted = sys.argv[2:] or others
    found = {version: _interpreter(version) for version in wanted}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=2) as pool:
        here = {version: path for version, path in found.items() if path is not None}
        wheel = built_wheel(Path(sys.argv[1]))
        outcomes = list(pool.map(lambda item: _check(item[0], item[1], wheel, Path(folder)), here.items()))
    for outcome in outcomes:
        if not outcome.passed:
            print(outcome.text)
            print(f"FAILED on Python {outcome.version}")
    missing = [version for version, path in found.items() if path is None]
    if missing:
        print(f"NOT TRIED: Python {', '.join(missing)}: not on this machine.")
    print(f"{sum(outcome.passed for outcome in outcomes)} of {len(outcomes)} other Pythons pass the fast tests.")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _interpreter(version: str) -> str | None:
    """A python of this version that starts: from the PATH (where pyenv's may not), or one that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(map(str, pyenv.glob(f"{version}.*/bin/python3")))
    for candidate in (shutil.which(f"python{version}"), *reversed(installed)):
        if candidate is not None:
            started = subprocess.run([candidate, "-c", IS_VERSION, version], capture_output=True)
            if started.returncode == 0:
                return candidate
    return None


def _check(version: str, interpreter: str, wheel: Path, work: Path) -> Outcome:
    start = time.monotonic()
    try:
        environment = environment_of(interpreter, work / f"venv-{version}", f"{wheel}[cpu]", *TOOLS)
    except subprocess.CalledProcessError as error:
        return Outcome(version, False, error.stdout)
    python = str(environment / "bin" / "python")
    done = subprocess.run(
        (python, "-m", "pytest", *TESTS),
        cwd=ROOT,
        env=of_no_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        return Outcome(version, False, done.stdout)
    summary = done.stdout.strip().splitlines()[-1]
    print(f"Python {version} ({interpreter}): {summary}, {time.monotonic() - start:.0f} s in all", flush=True)
    return Outcome(version, True, done.stdout)


if __name__ == "__main__":
    sys.exit(main())
