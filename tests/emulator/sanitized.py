"""Checks on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer, in a process that has their library loaded.

python -m tests.emulator.sanitized CHECK...    (with `environment()`)
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.emulator.checks import CHECKS
from tests.emulator.emulator import Build, Emulator, emulator
from yolact_deploy.cuda.specialization import Specialization

SANITIZER_EXIT_CODE = 66  # of a process that a sanitizer has ended


def environment() -> dict[str, str]:
    """Variables under which a Python process can load a sanitized library: the sanitizer has to come first."""
    library = subprocess.run(
        [os.environ.get("CXX", "g++"), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER_EXIT_CODE}",
        "PYTHONMALLOC": "malloc",
    }


def build_sanitized(specialization: Specialization, build: Build = "plain") -> Emulator:
    del build
    return emulator(specialization, "asan")


if __name__ == "__main__":
    for check in sys.argv[1:]:
        CHECKS[check](build_sanitized)
        print(check, "clean")
