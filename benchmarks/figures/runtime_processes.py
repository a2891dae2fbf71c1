"""The runtimes that can be had here, each with a file in a process of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import AnyArray

WEB, NCNN, PNNX = "onnxruntime-web@1.30.0", "ncnn==1.0.20261020", "pnnx==20261020"
COMMAND_LINE = [sys.executable, "-c", "from yolact_deploy.cli import main; main()"]
_WORKER = Path(__file__).with_name("runtime_worker.py")

Outputs = Mapping[str, AnyArray]


@dataclass(frozen=True)
class Runtime:
    """What may run it."""

    name: str
    title: str
    command: Sequence[str] | None  # the worker's, without its arguments; None: can't be had here
    why_not: str = ""


ONNXRUNTIME = Runtime("onnxruntime", "onnxruntime, default options", [sys.executable, str(_WORKER), "onnxruntime"])
TENSORRT_RTX = Runtime("tensorrt-rtx", "TensorRT-RTX, parse and build", [*COMMAND_LINE, "build-engine"])


class RefusalError(Exception):
    """A runtime did not take a file, or did not run it; the message is its first line."""


def get_runtimes(work: Path) -> list[Runtime]:
    """Those of this environment, and those that are fetched into the folder."""
    here = [sys.executable, str(_WORKER)]
    own = work / "ncnn"
    python = own / "bin" / "python"
    if not python.is_file():
        venv.create(own, with_pip=True)
    no_ncnn = _fetch(
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", NCNN, PNNX, f"numpy=={np.__version__}"]
    )
    package = work / "web" / "node_modules" / "onnxruntime-web"
    package.parents[1].mkdir(exist_ok=True)
    no_web = "" if package.is_dir() else _fetch(["npm", "install", "--prefix", str(package.parents[1]), WEB])
    web = ["node", str(_WORKER.with_suffix(".mjs")), str(package)]
    return [
        ONNXRUNTIME,
        Runtime("openvino", "OpenVINO", [*here, "openvino"]),
        Runtime("onnxruntime-web", "onnxruntime-web, WASM in Node", None if no_web else web, no_web),
        Runtime("opencv", "OpenCV dnn", [*here, "opencv"]),
        Runtime("ncnn", "ncnn, by pnnx", None if no_ncnn else [str(python), here[1], "ncnn"], no_ncnn),
        TENSORRT_RTX,
    ]


def _fetch(command: Sequence[str]) -> str:
    """Nothing, or why it can't be had."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]} on this machine"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"{command[0]} can't fetch it"


def build_plan(path: Path) -> dict[str, Any]:
    """Whether TensorRT-RTX takes the file; raises RefusalError. It runs nothing here."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "model.engine"
        where = ["-o", str(plan), "--runtime", "tensorrt-rtx", "--target", "sm86", "--json"]
        command = [*(TENSORRT_RTX.command or ()), str(path), *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RefusalError(_first_line(done.stderr).removeprefix("error: ").replace(str(path), path.name))
        return {
            "status": "ok",
            "version": json.loads(done.stdout)["sidecar"]["runtime_version"],
            "plan_bytes": plan.stat().st_size,
        }


class Worker:
    """A runtime with a file in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, log: Path) -> None:
        self._process, self._folder, self._log = process, folder, log
        self.version = str(self._answer()["version"])

    def run(
        self,
        image: AnyArray,  # [1, 3, S, S] or [1, H, W, 3]
    ) -> Outputs:
        """The outputs by name. Raises RefusalError."""
        answer = self._ask(image, str(self._folder))
        return {
            name: np.fromfile(self._folder / f"{name}.bin", each["dtype"]).reshape(each["shape"])
            for name, each in answer["outputs"].items()
        }

    def time_ms(
        self,
        image: AnyArray,  # [1, 3, S, S] or [1, H, W, 3]
    ) -> float:
        """Of one run. Raises RefusalError."""
        return float(self._ask(image, None)["ms"])

    def _ask(self, image: AnyArray, outputs: str | None) -> dict[str, Any]:
        path = self._folder / "image.bin"
        image.tofile(path)
        request = {"image": str(path), "shape": image.shape, "dtype": str(image.dtype), "outputs": outputs}
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            code = self._process.wait()
            raise RefusalError(
                _first_line(self._log.read_text(encoding="utf-8", errors="replace")) or f"ended with {code}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RefusalError(str(answer["error"]))
        return answer


@contextlib.contextmanager
def open_worker(
    runtime: Runtime,
    model: Path,
    outputs: Sequence[str],
    shape: Sequence[int],  # of the image batch
    threads: int,
) -> Iterator[Worker]:
    """Raises RefusalError where the runtime does not take the file."""
    arguments = [str(model), json.dumps(outputs), json.dumps(shape), str(threads)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        log = stack.enter_context((Path(name) / "log").open("wb"))
        command = [*(runtime.command or ()), *arguments]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = stack.enter_context(subprocess.Popen(command, stderr=log, **pipes))
        stack.callback(process.kill)
        yield Worker(process, Path(name), Path(name) / "log")


def _first_line(text: str) -> str:
    """With the next one, where it ends in a colon."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else ""
