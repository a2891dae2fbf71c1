"""The project's own proofs and figures on a GPU, in one visit of at most ten minutes to a machine that has little:
`python -m benchmarks.figures.gpu --out benchmarks/results/NAME.json`.

Wanted are Python, NumPy, PyTorch with CUDA, onnx, cuda-bindings and NVRTC; nvcc, ncu and compute-sanitizer where they are. Every
part runs in a process of its own, under its own time limit: what crashes or hangs costs no other part. The report is whole on
disk after every row. A proof that fails is told beside the figures, not instead of them.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

from benchmarks.figures.gpu_page import gpu_section
from benchmarks.figures.gpu_report import MEASURED, REHEARSED, Report, Visit
from yolact_deploy.errors import OutputError
from yolact_deploy.files import CACHE_VARIABLE, check_writable

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
VISIT_SECONDS = 570.0  # of the ten minutes that a machine is lent for a command
AGAIN = 75  # what a part exits with that can't go on in its process, and has more to do
_REHEARSAL_PATIENCE = 3  # emulated kernels, on whatever machine
_GRACE_S = 3.0  # beyond its limit, for a part to end by itself
_LEAST_S = 5.0  # left, without which no part is started
_TAIL = 3000  # characters of what a part that failed has printed last
_TIMED_OUT = "its time was up"


@dataclass(frozen=True)
class Part:
    """A piece of the visit."""

    name: str
    seconds: float  # its limit
    module: str  # `python -m MODULE NAME` runs it
    restarts: bool = False  # after a crash it goes on with what is left


_FIGURES, _PROOFS = "benchmarks.figures.gpu_parts", "tests.gpu.proofs"
PARTS = (  # the first two import PyTorch from a cold disk
    Part("probe", 60, _FIGURES),
    Part("smoke", 90, _PROOFS),
    Part("kernels", 150, _FIGURES),
    Part("peers", 150, _FIGURES),
    Part("checks", 150, _PROOFS, restarts=True),
    Part("frames", 90, _FIGURES),
    Part("detector", 60, _PROOFS, restarts=True),
    Part("memcheck", 60, _PROOFS),
    Part("racecheck", 60, _PROOFS),
    Part("initcheck", 60, _PROOFS),
    Part("synccheck", 60, _PROOFS),
    Part("ncu", 60, _FIGURES),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prove and measure on a GPU, and write the report. Raises SystemExit with 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--parts", default=",".join(names), help=f"of {','.join(names)}; they run in this order")
    parser.add_argument("--seconds", type=float, help=f"for all parts together; {VISIT_SECONDS:.0f} if not given")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--torch-device", help="where PyTorch's networks and peers run; the same GPU")
    parser.add_argument(
        "--rehearsal", action="store_true", help="small and once: shows that all runs, measures nothing"
    )
    given = parser.parse_args(arguments)
    wanted = given.parts.split(",")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(names)}")
    try:
        check_writable(given.out)
    except OutputError as exc:
        raise SystemExit(f"error: {exc}") from exc
    torch_device = given.torch_device or f"cuda:{given.device}"
    visit = Visit(Report(given.out), given.device, torch_device, given.rehearsal)
    patience = _REHEARSAL_PATIENCE if given.rehearsal else 1
    parts = [replace(part, seconds=patience * part.seconds) for part in PARTS if part.name in wanted]
    failed = run_parts(visit, parts, given.seconds or patience * VISIT_SECONDS)
    report = visit.report.read()
    page = gpu_section(given.out.name, report)
    print(f"rehearsed: nothing was measured ({given.out})" if given.rehearsal else page)
    if given.out.resolve().parent == RESULTS and not given.rehearsal:
        _write_pages()
    if failed:
        raise SystemExit(f"not well: {', '.join(failed)}")


def _write_pages() -> None:
    try:
        from benchmarks.figures.results_page import write_pages
    except ModuleNotFoundError as exc:  # what a bare machine lacks
        print(f"the pages are made elsewhere, by `make readme`: {exc}")
    else:
        write_pages()


def run_parts(visit: Visit, parts: Sequence[Part], seconds: float) -> list[str]:
    """Run them one after the other, each kept in the report as it ends; what of an earlier visit is in the report stays there.

    Returns the names of those that failed, or were not begun for want of time.
    """
    ends, failed = monotonic() + seconds, []
    visit.report.keep("kind", REHEARSED if visit.rehearsal else MEASURED)
    for part in parts:
        left = ends - monotonic()
        _tell(visit, part, {"state": "running"})
        found = _run(visit, part, min(part.seconds, left)) if left >= _LEAST_S else {"state": "no time was left"}
        _tell(visit, part, found)
        if found["state"] != "done":
            failed.append(part.name)
        took = f"{found['seconds']:6.1f} s" if "seconds" in found else " " * 8
        print(f"{part.name:<10} {took}  {found['state']}", flush=True)
        if found.get("tail"):
            print("    " + found["tail"][-600:].strip().replace("\n", "\n    "), flush=True)
    visit.heads_file.unlink(missing_ok=True)
    return failed


def _tell(visit: Visit, part: Part, found: dict[str, Any]) -> None:
    visit.report.keep("parts", {**visit.report.read().get("parts", {}), part.name: found})


def _run(visit: Visit, part: Part, seconds: float) -> dict[str, Any]:
    """{"state", "seconds", "tail": what it printed last, if it failed}."""
    started = monotonic()
    starts = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        while True:
            starts += 1
            left = started + seconds - monotonic()
            command = [sys.executable, "-m", part.module, part.name, *visit.arguments(left, again=starts > 1)]
            code = _wait(command, printed, left)
            crashed = code == AGAIN or (code is not None and code < 0)
            if not (part.restarts and crashed and started + seconds - monotonic() > _LEAST_S):
                break
        printed.seek(0)
        tail = printed.read()[-_TAIL:]
    taken = monotonic() - started
    if code == 0:
        return {"state": "done", "seconds": taken, "starts": starts}
    state = _TIMED_OUT if code is None or taken >= seconds - _GRACE_S else f"failed with exit code {code}"
    return {"state": state, "seconds": taken, "starts": starts, "tail": tail}


def _wait(command: list[str], printed: Any, seconds: float) -> int | None:
    """The exit code of a process; None where it had to be ended, with all that it started."""
    environment = {"PYTHONUNBUFFERED": "1", CACHE_VARIABLE: str(kernel_cache()), **os.environ}
    # no thread runs here: what is called before the process begins is safe
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=subprocess.STDOUT,
        preexec_fn=_in_a_group_of_its_own,  # noqa: PLW1509
    )

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        _kill(process)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait(seconds + _GRACE_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        return None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_a_group_of_its_own() -> None:
    """So that it can be ended with all that it started; and it ends with the visit, however that ends."""
    os.setpgid(0, 0)
    with suppress(OSError, AttributeError):  # prctl(PR_SET_PDEATHSIG), Linux
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)  # one that hangs in the driver can't be waited for


def kernel_cache() -> Path:
    """Beside the sources, where git sees nothing: what a kit brought compiled, and what is compiled here."""
    return ROOT / "build" / "kernel-cache"


if __name__ == "__main__":
    main()
