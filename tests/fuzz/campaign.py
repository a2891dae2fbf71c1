"""Many inputs over several processes: what became of them, and the inputs that broke a promise, each kept in a file."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.child import HANG_S, ROOT, Tally, keep, table_of

TABLE = "tests.fuzz.targets"
_PER_PROCESS = 2000  # inputs: a new process costs as much as some hundred
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
Work = list[list[Any]]  # [target, first number, how many]


@dataclass
class Report:
    """Of a run; `tallies` by target."""

    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The first input of each mistake: "target", "file", "what" happened, its "key" and "trace"."""
        return [finding for tally in self.tallies.values() for finding in tally.findings]

    def add(self, name: str, found: Tally) -> None:
        """Count what another process found."""
        tally = self.tallies.setdefault(name, Tally())
        tally.inputs, tally.taken = tally.inputs + found.inputs, tally.taken + found.taken
        tally.refused, tally.cpu_s = tally.refused + found.refused, tally.cpu_s + found.cpu_s
        known = {finding["key"] for finding in tally.findings}
        tally.findings += [finding for finding in found.findings if finding["key"] not in known]

    def table(self) -> str:
        """For people."""
        rows = [f"{'target':<18}{'inputs':>9}{'taken':>9}{'refused':>9}{'broken':>8}{'CPU s':>8}{'ms each':>9}"]
        total = Tally()
        for name, tally in self.tallies.items():
            rows.append(_row(name, tally, len(tally.findings)))
            total.inputs, total.taken = total.inputs + tally.inputs, total.taken + tally.taken
            total.refused, total.cpu_s = total.refused + tally.refused, total.cpu_s + tally.cpu_s
        return "\n".join([*rows, _row("all", total, len(self.findings))])


def run(
    failures: Path,  # folder of the inputs that broke a promise
    *,
    seed: int,
    inputs: int | None = None,
    minutes: float | None = None,  # instead of `inputs`
    first: int = 0,  # number of the first input of each target
    workers: int = 2,
    only: tuple[str, ...] = (),  # targets; () = all
    table: str = TABLE,
    hang_s: float = HANG_S,
) -> Report:
    """Try so many inputs, or for so long. Targets get their shares of them; one with 0 inputs left out is tried at least once."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    report, lock = Report(seed), threading.Lock()
    portions = _portions(table, only, inputs, first)

    def work_on() -> None:
        while deadline is None or time.monotonic() < deadline:
            with lock:
                work = next(portions, None)
            if work is None:
                return
            for name, tally in _in_processes(work, failures, seed, table, hang_s):
                with lock:
                    report.add(name, tally)

    with ThreadPoolExecutor(workers) as pool:
        for worker in [pool.submit(work_on) for _ in range(workers)]:
            worker.result()
    return report


def _portions(table: str, only: tuple[str, ...], inputs: int | None, first: int) -> Any:
    """What a process has to do, one after the other: without `inputs`, for ever."""
    shares = {name: target.share for name, target in table_of(table).items() if not only or name in only}
    whole = sum(shares.values())
    left = {name: None if inputs is None else max(1, round(inputs * share / whole)) for name, share in shares.items()}
    for round_number in itertools.count():
        work: Work = []
        for name, share in shares.items():
            each = max(1, _PER_PROCESS * share // whole)
            remaining = left[name]
            count = each if remaining is None else min(each, remaining - round_number * each)
            if count > 0:
                work.append([name, first + round_number * each, count])
        if not work:
            return
        yield work


def _in_processes(work: Work, failures: Path, seed: int, table: str, hang_s: float) -> Any:
    """(target, tally) of the work; a process that dies over an input is followed by one that goes on behind it."""
    while work:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            job = {
                "folder": folder,
                "failures": str(failures),
                "seed": seed,
                "table": table,
                "hang_s": hang_s,
                "work": work,
            }
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.child", json.dumps(job)],
                cwd=ROOT,
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(ROOT)},
                capture_output=True,
            )
            finished = [json.loads(line) for line in done.stdout.splitlines()]
            for found in finished:
                name = found.pop("target")
                yield name, Tally(**found)
            if done.returncode == 0:
                return
            place = Path(folder)
            if not (place / "target").exists():
                raise RuntimeError(f"no input could be tried:\n{done.stderr.decode(errors='replace')[-4000:]}")
            name, first, count = work[len(finished)]
            (number,) = struct.unpack("<q", (place / "number").read_bytes())
            yield name, _died(place, failures, name, number, number - first + 1, done)
            work = [[name, number + 1, first + count - number - 1], *work[len(finished) + 1 :]]
            work = work if work[0][2] > 0 else work[1:]


def _died(
    place: Path, failures: Path, name: str, number: int, inputs: int, done: subprocess.CompletedProcess[bytes]
) -> Tally:
    """What is known of a process that an input took with it. What became of the inputs before that one is not known."""
    hang, crash = ((place / file).read_text() if (place / file).exists() else "" for file in ("hang.txt", "crash.txt"))
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    what = "hangs" if hang else f"ends the process ({how})"
    trace = hang or crash or done.stderr.decode(errors="replace")[-4000:]
    lines = [line.strip() for line in trace.splitlines() if "File " in line]
    where = next((line for line in lines if str(ROOT) in line and "/tests/" not in line), lines[0] if lines else "")
    lies = place / "scratch" / (place / "input").read_text()
    kept = keep(failures, name, lies.read_bytes() if lies.is_file() else b"", lies.suffix)
    finding = {
        "target": name,
        "number": number,
        "file": str(kept),
        "key": f"{what} {where}",
        "what": what,
        "trace": trace,
    }
    return Tally(inputs=inputs, findings=[finding])


def _row(name: str, tally: Tally, broken: int) -> str:
    each = 1000 * tally.cpu_s / max(1, tally.inputs)
    return f"{name:<18}{tally.inputs:>9}{tally.taken:>9}{tally.refused:>9}{broken:>8}{tally.cpu_s:>8.1f}{each:>9.2f}"
