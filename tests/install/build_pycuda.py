"""Build pycuda from PyPI without a CUDA toolkit or a driver, and install it into this environment.

python tests/install/build_pycuda.py [--target FOLDER]

The headers come from NVIDIA's wheels, and what it links to is the tests' stand-in for the driver; at run time it takes the
`libcuda.so.1` that is there. Nothing is written outside of the environment and a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADERS = ("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-profiler-api")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="install into this folder instead of the environment")
    target: Path | None = parser.parse_args().target
    sys.path.insert(0, str(ROOT))
    from tests.emulator import standin

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        include = _download_headers(work)
        (work / "lib").mkdir()
        (work / "lib" / "libcuda.so").symlink_to(standin.library())
        # pycuda's setup reads its options from the home folder
        settings = {"CUDA_ENABLE_CURAND": False, "CUDA_INC_DIR": [str(include)], "CUDADRV_LIB_DIR": [str(work / "lib")]}
        (work / ".aksetup-defaults.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
        home = Path.home()
        kept = {"XDG_CONFIG_HOME": str(home / ".config"), "XDG_CACHE_HOME": str(home / ".cache")}  # pip's own
        environment = {**kept, **os.environ, "HOME": str(work)}
        where = [] if target is None else ["--target", str(target)]
        _pip("install", "--no-binary", "pycuda", "--no-cache-dir", *where, "pycuda", environment=environment)


def _download_headers(work: Path) -> Path:
    _pip("download", "--no-deps", "--dest", str(work), *HEADERS)
    for wheel in work.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "headers")
    return next((work / "headers" / "nvidia").glob("*/include"))


def _pip(command: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
    pip = [sys.executable, "-m", "pip", command, "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *arguments], env=environment, check=True)


if __name__ == "__main__":
    main()
