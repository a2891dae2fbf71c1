"""Install the wheel with each extra alone, in a fresh environment, and try what it should and should not be able to do.

python -m tests.install.check_extras WHEEL_FOLDER

Run by `make test-install`; not part of the test suite, as it installs packages.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.install.environments import built_wheel, environment_of, of_no_environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("yolact_deploy", "exporters", "engines", "benchmarks")
LEFT_OUT = ("benchmarks/figures", "benchmarks/results")
SHAPES = ROOT / "examples" / "shapes"
IMAGE = SHAPES / "val" / "val_public_0000.jpg"

EXPORT = (
    "export",
    str(SHAPES / "yolact_resnet14_shapes_4_4909.pth"),
    "--spec",
    str(SHAPES / "spec.json"),
    "-o",
    "model.onnx",
)
EXPORT_UNCHECKED = (*EXPORT, "--no-parity")
BUILD = ("build-engine", "model.onnx", "-o", "model.engine", "--target", "sm86")
DETECT = ("detect", "model.onnx", str(IMAGE), "--overwrite")  # of the extra before
BENCH = ("bench", "model.onnx", "--iterations", "2", "--warmup", "0")
INSPECT = ("inspect", "model.onnx")
WARM = ("doctor", "--warm", "--target", "sm89")  # the kernels around a plan


@dataclass(frozen=True)
class Extra:
    name: str  # "" is the wheel alone
    works: tuple[tuple[str, ...], ...] = ()
    lacks: tuple[tuple[tuple[str, ...], str], ...] = ()  # a command, and the extra its error must name


EXTRAS = (
    Extra("export", works=(EXPORT, INSPECT, DETECT), lacks=((BUILD, "rtx"),)),
    Extra("", lacks=((EXPORT, "export"), (BUILD, "rtx"), (DETECT, "cpu"))),
    Extra("cpu", works=(DETECT, BENCH), lacks=((EXPORT, "export"), (BUILD, "rtx"))),
    Extra("openvino", works=(DETECT, BENCH, (*BENCH, "--peers")), lacks=((EXPORT, "export"), (BUILD, "rtx"))),
    Extra("rtx", works=(BUILD, INSPECT, WARM), lacks=((EXPORT, "export"), (DETECT, "cpu"))),
    Extra("draw", lacks=((EXPORT, "export"), (DETECT, "cpu"))),
)


def main() -> int:
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = built_wheel(Path(sys.argv[1]))
        failures += _check_contents(wheel)
        for extra in EXTRAS:
            failures += _check(extra, wheel, work)
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(EXTRAS) - len({f.split(':')[0] for f in failures})} of {len(EXTRAS)} installs behave as promised.")
    return 1 if failures else 0


def _check_contents(wheel: Path) -> list[str]:
    """The packages and nothing else: the project's own figures are measured from a checkout."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    unwanted = [name for name in names if name.partition("/")[0] not in PACKAGES or name.startswith(LEFT_OUT)]
    missing = [package for package in PACKAGES if f"{package}/py.typed" not in names]
    found = ((unwanted, "should not be in it"), (missing, "lack py.typed"))
    return [f"wheel: {' '.join(bad)} {why}" for bad, why in found if bad]


def _check(extra: Extra, wheel: Path, work: Path) -> list[str]:
    label = extra.name or "no extra"
    requirement = f"{wheel}[{extra.name}]" if extra.name else str(wheel)
    environment = environment_of(sys.executable, work / f"venv-{extra.name or 'none'}", requirement)
    failures = []
    version, built = _run(environment, ("--version",), work).stdout.strip(), wheel.name.split("-")[1]
    if version != built:
        failures.append(f"{label}: --version says {version}, the wheel is {built}")
    for arguments in (("--help",), ("doctor",), *extra.works):
        result = _run(environment, arguments, work)
        if result.returncode != 0:
            failures.append(f"{label}: {' '.join(arguments)} exited with {result.returncode}: {result.stderr}")
    for arguments, named in extra.lacks:
        result = _run(environment, arguments, work)
        promise = f'pip install "{wheel}[{named}]"'  # from where it was installed: no index has it
        if result.returncode != 2 or promise not in result.stderr or "Traceback" in result.stderr:
            failures.append(f"{label}: {' '.join(arguments)} should exit with 2 and say {promise}, but: {result}")
    print(f"{label}: {'failed' if failures else 'ok'}", flush=True)
    return failures


def _run(environment: Path, arguments: tuple[str, ...], work: Path) -> subprocess.CompletedProcess[str]:
    command = [str(environment / "bin" / "yolact-deploy"), *arguments]
    clean = {**of_no_environment(), "YOLACT_DEPLOY_CACHE": str(environment / "cache")}
    return subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
