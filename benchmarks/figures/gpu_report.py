"""The one file of a visit to a GPU machine, whole after every row, and the settings that all parts of the visit have."""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from yolact_deploy.files import write_json

MEASURED, REHEARSED = "gpu", "gpu-rehearsal"  # the kinds of a report: figures are shown of the first alone
_SPARE_S = 2.0  # before the end, for a traceback


class Report:
    """A JSON object on disk. One process writes it at a time: the visit, or the part that it waits for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """What is there by now; empty without a file."""
        if not self.path.is_file():
            return {}
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def keep(self, name: str, value: Any) -> None:
        """Write a value under its name, beside what is there."""
        write_json(self.path, {**self.read(), name: value})

    def add(self, name: str, row: dict[str, Any]) -> None:
        """One more row of a table."""
        self.keep(name, [*self.read().get(name, []), row])


@dataclass(frozen=True)
class Visit:
    """What a part of a visit is told."""

    report: Report
    device: int = 0  # N of cuda:N
    torch_device: str = "cuda:0"  # "cpu" where PyTorch has no CUDA
    rehearsal: bool = False  # small, and once: to see that it runs, on whatever runs it
    ends: float = float("inf")  # of time.monotonic
    again: bool = False  # after a crash: what is done is done

    @property
    def seconds_left(self) -> float:
        """Before the part is ended."""
        return self.ends - monotonic()

    @property
    def heads_file(self) -> Path:
        """Where the heads of the recorded scene are kept from one part to the next."""
        return self.report.path.with_suffix(".heads.npz")

    def arguments(self, seconds: float, *, again: bool = False) -> list[str]:
        """For the process of a part."""
        given = ["--out", str(self.report.path), "--device", str(self.device), "--torch-device", self.torch_device]
        given += ["--seconds", f"{seconds:.0f}"]
        return given + ["--rehearsal"] * self.rehearsal + ["--again"] * again


def run_part(parts: dict[str, Callable[[Visit], None]], arguments: Sequence[str] | None = None) -> None:
    """Run one of `parts` in this process, as the visit's own process calls it. Where it takes too long, it ends with the
    traceback of what it was in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--torch-device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args(arguments)
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(given.seconds - _SPARE_S, 1), exit=True, file=sys.stderr)
    ends = monotonic() + given.seconds - 2 * _SPARE_S
    visit = Visit(Report(given.out), given.device, given.torch_device, given.rehearsal, ends, given.again)
    parts[given.part](visit)
    faulthandler.cancel_dump_traceback_later()
