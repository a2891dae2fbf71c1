"""One change of the kernels' source that must be found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    before: str  # text that is in the source once
    after: str
    found_by: str  # name in CHECKS
    sanitized: bool = (
        False  # the check finds it under AddressSanitizer; needs the environment of tests.emulator.sanitized
    )
