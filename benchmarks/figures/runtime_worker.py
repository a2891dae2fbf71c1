"""One ONNX file in one runtime, in a process of its own: `python runtime_worker.py RUNTIME MODEL OUTPUTS SHAPE THREADS`.

Answers in lines of JSON: first {"version"} or {"error"}, then for each request {"image": file, "shape", "dtype", "outputs":
folder or null} one {"ms", "outputs": {name: {"shape", "dtype"}}} or {"error"}; tensors lie in files of their bytes. Runs with
whichever Python has the runtime, so that nothing of the project is imported. `runtime_worker.mjs` answers the same in Node.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Run = Callable[[Array], Mapping[str, Array]]  # an image batch to the outputs by name
_IMAGE = "image"
_COLOURS = 3
# OpenVINO begins with where in its source it failed, and says last which operators it lacks.
_PLACES = ("Exception from ", "Check '", "FrontEnd API failed")
_LACKING = "-- No conversion rule found"


def open_onnxruntime(model: str, outputs: Sequence[str], shape: Sequence[int], threads: int) -> tuple[str, Run]:
    """With default options, but for the threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(image: Array) -> Mapping[str, Array]:
        return dict(zip(outputs, session.run(list(outputs), {_IMAGE: image}), strict=True))

    return onnxruntime.__version__, run


def open_openvino(model: str, outputs: Sequence[str], shape: Sequence[int], threads: int) -> tuple[str, Run]:
    """In float32, which is not its default where a CPU has bfloat16."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", hints)

    def run(image: Array) -> Mapping[str, Array]:
        found = compiled({_IMAGE: image})
        return {name: np.array(found[name]) for name in outputs}

    return openvino.__version__.partition("-")[0], run


def open_opencv(model: str, outputs: Sequence[str], shape: Sequence[int], threads: int) -> tuple[str, Run]:
    """The module dnn."""
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(model)

    def run(image: Array) -> Mapping[str, Array]:
        net.setInput(image, _IMAGE)
        return dict(zip(outputs, net.forward(list(outputs)), strict=True))

    return cv2.__version__, run


def open_ncnn(model: str, outputs: Sequence[str], shape: Sequence[int], threads: int) -> tuple[str, Run]:
    """What pnnx makes of the file for one size of image, in float32; it names outputs by their order. Raises RuntimeError."""
    import ncnn

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        copy.symlink_to(model)
        pnnx = Path(
            str(importlib.metadata.distribution("pnnx").locate_file("pnnx/pnnx"))
        )  # its package asks for PyTorch
        dtype = "u8" if shape[-1] == _COLOURS else "f32"  # an end-to-end file takes an image's bytes
        size = f"inputshape={json.dumps(shape, separators=(',', ':'))}{dtype}"
        done = subprocess.run(
            [str(pnnx), copy.name, size, "fp16=0"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines()
            raise RuntimeError(f"pnnx ended with {done.returncode}: {said[-1] if said else 'without a word'}")
        net = ncnn.Net()
        net.opt.num_threads = threads
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(net.opt, f"use_{option}", False)
        param, weights = (str(copy.with_suffix(f".ncnn.{kind}")) for kind in ("param", "bin"))
        with _stderr_of_c(Path(folder) / "log") as printed:
            loaded = not (net.load_param(param) or net.load_model(weights))
        if not loaded:
            raise RuntimeError(
                printed.read_text(encoding="utf-8", errors="replace") or "ncnn can't load what pnnx wrote"
            )

    def run(image: Array) -> Mapping[str, Array]:
        found: dict[str, Array] = {}
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(image[0]))
            for position, name in enumerate(outputs):
                failed, values = extractor.extract(f"out{position}")
                if failed:
                    raise RuntimeError(f"ncnn can't compute {name}")
                found[name] = np.array(values)[None]
        return found

    return str(ncnn.__version__), run


@contextlib.contextmanager
def _stderr_of_c(path: Path) -> Iterator[Path]:
    """A file of what a library prints."""
    with path.open("wb") as log:
        own = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield path
        finally:
            os.dup2(own, 2)
            os.close(own)


OPEN: Mapping[str, Callable[[str, Sequence[str], Sequence[int], int], tuple[str, Run]]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "opencv": open_opencv,
    "ncnn": open_ncnn,
}


def main(runtime: str, model: str, outputs: str, shape: str, threads: str) -> None:
    """Serve requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # runtimes print

    def answer(content: Mapping[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        version, run = OPEN[runtime](model, json.loads(outputs), json.loads(shape), int(threads))
        answer({"version": version})
        for line in sys.stdin:
            answer(_serve(json.loads(line), run))
    except Exception as exc:  # the runtimes' exceptions share no base
        answer({"error": first_line(exc)})


def first_line(exc: Exception) -> str:
    """What an exception says, as far as it is worth quoting."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    lines.sort(key=lambda line: (not line.startswith(_LACKING), line.startswith(_PLACES)))  # otherwise in their order
    return lines[0] if lines else type(exc).__name__


def _serve(request: Mapping[str, Any], run: Run) -> dict[str, Any]:
    image = np.fromfile(request["image"], request["dtype"]).reshape(request["shape"])
    started = time.perf_counter()
    found = run(image)
    answer: dict[str, Any] = {"ms": 1e3 * (time.perf_counter() - started), "outputs": {}}
    if request["outputs"]:
        for name, values in found.items():
            np.ascontiguousarray(values).tofile(Path(request["outputs"]) / f"{name}.bin")
            answer["outputs"][name] = {"shape": list(values.shape), "dtype": str(values.dtype)}
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
