"""The project's own figures start as they are called, `python -m benchmarks.figures.NAME`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import benchmarks.figures

ROOT = Path(__file__).parents[3]
FIGURES = sorted(Path(next(iter(benchmarks.figures.__path__))).glob("[!_]*.py"))


def test_nothing_is_defined_after_a_module_has_run_itself() -> None:
    late = []
    for path in FIGURES:
        names = [ast.unparse(node) if isinstance(node, ast.If) else "" for node in ast.parse(path.read_text()).body]
        late += [path.name for name in names[:-1] if "__main__" in name]
    assert FIGURES
    assert late == []


def test_host_overhead_prints_a_row_per_size_and_number_of_detections() -> None:
    command = [sys.executable, "-m", "benchmarks.figures.host_overhead", "--repeats", "1", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)) == 6
