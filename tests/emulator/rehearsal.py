"""The visit to a GPU machine, rehearsed without one: `make gpu-rehearsal`.

The code runs from what the kit holds, in an environment of exactly those packages that a bare GPU machine is taken to have, over
the stand-in libcuda. What it prints and writes are no measurements, and the report's kind says so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.figures.gpu import PARTS
from benchmarks.figures.gpu_kit import pack, specializations
from tests.emulator import standin
from tests.emulator.expectations import SMALL
from tests.emulator.originals import CASES
from tests.goldens import postgen
from tests.gpu.proofs import REHEARSED_CHECKS
from yolact_deploy.cuda.specialization import Specialization

PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "cuda-bindings", "nvidia-cuda-nvrtc")
_SANITIZER = """#!/bin/sh
echo "========= COMPUTE-SANITIZER"
[ "$1 $3 $4" = "--tool --error-exitcode 66" ] || exit 2
shift 4
"$@" || exit
echo "========= ERROR SUMMARY: 0 errors"
"""
_NCU = """#!/bin/sh
[ "$1 $2 $3 $4 $5" = "--clock-control none --csv --page raw" ] || exit 2
shift 7
"$@" || exit
echo '==PROF== Disconnected from process 1'
echo '"ID","Process ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum"'
echo '"","","","","","ns"'
echo '"0","1","decode","(256, 1, 1)","(602, 1, 1)","1,234"'
"""
_SHARED = ("nvidia", "cuda", "google")  # folders that several packages put theirs into


def main() -> None:
    """Rehearse, and say how it went. Raises SystemExit where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", help="as benchmarks.figures.gpu takes them")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the kit and the report")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.keep or Path(scratch)).resolve()
        visit = prepare(folder, [] if given.parts is None else ["--parts", given.parts])
        raise SystemExit(subprocess.run(visit.command, cwd=visit.kit, env=visit.environment).returncode)


@dataclass(frozen=True)
class Rehearsal:
    """A visit that can be begun: `command` in the folder `kit`."""

    command: list[str]
    kit: Path
    environment: dict[str, str]
    report: Path


def prepare(folder: Path, arguments: Sequence[str] = ()) -> Rehearsal:
    """A kit, an interpreter and a GPU, all in a folder."""
    kit, report = folder / "gpu-kit", folder / "gpu.json"
    pack(kit, [part.name for part in PARTS], architectures=())
    python = bare_python(folder / "python")
    environment = standin.environment(
        cache_dir=folder / "cache", specializations=[*specializations(), SMALL, _of_case()]
    )
    tools = _tools(folder / "bin")
    kept = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [
        str(python),
        "-m",
        "benchmarks.figures.gpu",
        "--out",
        str(report),
        "--rehearsal",
        "--torch-device",
        "cpu",
    ]
    return Rehearsal(
        [*command, *arguments],
        kit,
        {**kept, "OMP_NUM_THREADS": "2", "PATH": f"{tools}{os.pathsep}{kept['PATH']}"},
        report,
    )


def _tools(folder: Path) -> Path:
    """What stands for NVIDIA's tools: each runs what it is to watch, and prints what the real one would."""
    folder.mkdir(exist_ok=True)
    for name, script in {"compute-sanitizer": _SANITIZER, "ncu": _NCU}.items():
        tool = folder / name
        tool.write_text(script, encoding="utf-8")
        tool.chmod(0o755)
    return folder


def bare_python(folder: Path) -> Path:
    """An interpreter with PACKAGES, what they ask for, and nothing else."""
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for distribution in _closure(PACKAGES):
        for name in _entries(distribution):
            link = site / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(name))).resolve())
    return folder / "bin" / "python"


def _closure(names: Sequence[str]) -> list[metadata.Distribution]:
    """Packages with what they require."""
    found: dict[str, metadata.Distribution] = {}
    wanted = list(names)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system
            continue
        wanted += [
            match[0]
            for required in found[name].requires or []
            if "extra ==" not in required and (match := re.match(r"[\w.-]+", required))
        ]
    return list(found.values())


def _entries(distribution: metadata.Distribution) -> set[str]:
    """Its folders and files at the top, and those within folders that others share."""
    entries = set()
    for line in (distribution.read_text("RECORD") or "").splitlines():
        parts = line.partition(",")[0].split("/", 2)
        if parts[0] == ".." or parts[0] == "__pycache__":
            continue
        entries.add("/".join(parts[:2] if parts[0] in _SHARED and len(parts) > 1 else parts[:1]))
    return entries


def _of_case() -> Specialization:
    """What the rehearsed case of the original asks for."""
    case = next(case for case in CASES if REHEARSED_CHECKS[1].startswith(case["id"]))
    inputs = postgen().make_case(case["spec"])
    return Specialization(inputs["conf"].shape[2] - 1, inputs["proto"].shape[3])


if __name__ == "__main__":
    main()
