"""What travels to a GPU machine, as a folder of less than 40 MB: `make gpu-kit`.

The sources, the recorded cases of the original, kernels compiled for the GPUs that are named (which need no compiler there, and
no time), and, for the parts that need it, the trained checkpoint. Prints the command to run in the folder, and its size.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.figures.gpu import PARTS, ROOT, kernel_cache
from benchmarks.figures.networks import CONFIG
from exporters.checkpoints.configs import published_spec
from yolact_deploy.artifacts.names import FLOAT32_OUTPUTS, INPUT, OUTPUTS
from yolact_deploy.cuda.compile import warm
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.errors import OutputError, YolactDeployError
from yolact_deploy.files import CACHE_VARIABLE
from yolact_deploy.spec import ModelSpec

MOST_BYTES = 40_000_000
TARGET = ROOT / "build" / "gpu-kit"
ARCHITECTURES = ("sm_90",)
CUDA = (13, 0)  # what compiles the kernels that travel; drivers of this CUDA and newer load them
_SOURCES = ("yolact_deploy", "exporters", "benchmarks", "tests/emulator", "tests/gpu")
_FILES = (
    "LICENSE",
    "pyproject.toml",
    "tests/__init__.py",
    "tests/goldens.py",
    "tests/golden/golden_fill.py",
    f"tests/golden/manifest/{CONFIG}.json",
    f"tests/golden/nets/{CONFIG}_img0_480x640.npz",
    "examples/shapes/spec.json",
)
_FOLDERS = ("tests/golden/post",)
_CHECKPOINT = "examples/shapes/yolact_resnet14_shapes_4_4909.pth"
_CHECKPOINT_PARTS = frozenset({"detector"})


def main() -> None:
    """Pack, and say what to do with it. Raises SystemExit for a kit that is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(part.name for part in PARTS)
    parser.add_argument("--out", type=Path, default=TARGET, help="a folder, which is made anew")
    parser.add_argument("--parts", default=names, help="that are to run there")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="to compile the kernels for")
    given = parser.parse_args()
    try:
        size = pack(given.out, given.parts.split(","), given.architectures.split(","))
    except YolactDeployError as exc:
        raise SystemExit(f"error: {exc}") from exc
    parts = "" if given.parts == names else f" --parts {given.parts}"
    print(f"{given.out}: {size / 1e6:.1f} MB. There, in this folder:")
    print(f"    python3 -m benchmarks.figures.gpu --out gpu.json{parts}")


def pack(target: Path, parts: Sequence[str], architectures: Sequence[str] = ARCHITECTURES) -> int:
    """Make the folder; returns its bytes. Raises OutputError for more than MOST_BYTES, or a folder that is something else."""
    if target.exists() and not (target / "benchmarks").is_dir() and any(target.iterdir()):
        raise OutputError(f"{target} is not a kit, so it is not made anew. Name a folder that is empty or not there.")
    shutil.rmtree(target, ignore_errors=True)
    for name in _tracked():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    if _CHECKPOINT_PARTS & set(parts):
        _pack_checkpoint(target)
        _pack_images(target)
    _pack_kernels(target, architectures)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise OutputError(f"the kit in {target} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}.")
    return size


def _tracked() -> Iterator[str]:
    """Files of the kit that are under version control, or are not ignored by it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *_SOURCES, *_FOLDERS, *_FILES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return (name for name in listed if (ROOT / name).is_file())


def _pack_checkpoint(target: Path) -> None:
    """The same records, compressed: PyTorch reads them as well."""
    with (
        zipfile.ZipFile(ROOT / _CHECKPOINT) as source,
        zipfile.ZipFile(target / _CHECKPOINT, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in source.namelist():
            packed.writestr(record, source.read(record))


def _pack_images(target: Path) -> None:
    """Decoded, as there is nothing on the machine that reads JPEG."""
    from tests.goldens import SHAPES_IMAGES
    from tests.gpu.detector_claims import shapes_images

    np.savez_compressed(target / SHAPES_IMAGES.relative_to(ROOT), *shapes_images())


def _pack_kernels(target: Path, architectures: Sequence[str]) -> None:
    folder = target / kernel_cache().relative_to(ROOT)
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        warm(specializations(), architectures, driver_version=CUDA)
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before
    for lock in folder.rglob("*.lock"):
        lock.unlink()


def specializations() -> list[Specialization]:
    """What every part but the checks asks for; those compile a model each."""
    recorded = published_spec(CONFIG)
    half = {name: name not in FLOAT32_OUTPUTS for name in (INPUT, *OUTPUTS)}  # as networks in float16 have them
    shapes = ModelSpec.from_file(ROOT / "examples" / "shapes" / "spec.json")
    return [
        specialize(recorded),
        specialize(recorded, nms="cross_class"),
        specialize(recorded, fp16_tensors=half),
        specialize(shapes),
    ]


if __name__ == "__main__":
    main()
