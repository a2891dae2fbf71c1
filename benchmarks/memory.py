"""Peak memory of this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KIB = 1024
_RESET_PEAK = "5"  # clear_refs, proc(5)


def peak_memory(work: Callable[[], object]) -> dict[str, Any]:
    """{"host_bytes", "method"}: the most memory resident while `work` ran, all else in the process included.

    Where the kernel's high-water mark can't be reset (not Linux, or not allowed), it is the peak since the process began.
    """
    reset = _reset_peak()
    work()
    resident = _peak_bytes()
    if resident is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"host_bytes": peak * (1 if sys.platform == "darwin" else _KIB), "method": "since start"}
    return {"host_bytes": resident, "method": "while running" if reset else "since start"}


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("VmHWM")), None)
