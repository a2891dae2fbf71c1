"""Whole images on a CPU, ours beside what people run today, in turns in one run: `python -m benchmarks.figures.side_by_side`.

Times are of YOLACT-550 on ResNet50 with the recorded weights, one 480x640 image to full-size masks; AP is of the same runtime and
precision on the bundled model and shapes val, since the recorded weights have learned nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import torch

from benchmarks.figures.networks import golden_images, golden_model
from benchmarks.figures.plain_peers import Found, Network, detect, in_onnxruntime, in_openvino
from benchmarks.figures.results_page import RESULTS, write_pages
from benchmarks.machine import Watch, environment, watch_notes
from benchmarks.peer_comparison import interleaved, with_masks
from benchmarks.torch_peer import end_to_end
from exporters import export, quantize
from yolact_deploy import Detector, evaluate
from yolact_deploy.annotations import load_annotations
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import CpuPrecision, OnnxRuntimeChoice
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.files import check_writable, write_json
from yolact_deploy.reference.images import read_image
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples" / "shapes"
EAGER, PLAIN_ONNXRUNTIME = "PyTorch eager, original's Detect", "onnxruntime, NumPy"
_STREAMED = 16  # images

Whole = Callable[[], int]  # an image to its masks; how many


@dataclass(frozen=True)
class Ours:
    """A way to run a file with this project."""

    name: str
    int8: bool
    runtime: OnnxRuntimeChoice
    precision: CpuPrecision = "f32"


OURS = (
    Ours("yolact-deploy, fp32, onnxruntime", False, "onnxruntime"),
    Ours("yolact-deploy, fp32, OpenVINO", False, "openvino"),
    Ours("yolact-deploy, bf16, OpenVINO", False, "openvino", "bf16"),
    Ours("yolact-deploy, INT8, OpenVINO", True, "openvino"),
)
PLAIN: dict[str, tuple[Callable[[Path, int], Network], bool]] = {
    PLAIN_ONNXRUNTIME: (in_onnxruntime, False),
    "onnxruntime, NumPy, INT8": (in_onnxruntime, True),
    "OpenVINO, NumPy": (in_openvino, False),
    "OpenVINO, NumPy, INT8": (in_openvino, True),
}


def main() -> None:
    """Measure on the CPU, write the results, and the pages of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "side-by-side.json")
    parser.add_argument("--iterations", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    check_writable(arguments.out)
    torch.set_num_threads(arguments.threads)
    report = {
        "kind": "side-by-side",
        "environment": environment(),
        **side_by_side(arguments.iterations, arguments.threads),
    }
    write_json(arguments.out, report)
    if arguments.out.parent.samefile(RESULTS):
        write_pages()
    print(json.dumps(report, indent=2))


def side_by_side(iterations: int, threads: int) -> dict[str, Any]:
    """{"rows": [{"name", "ms": percentiles, "over_eager", "detections", "box_ap", "mask_ap"}], "stream": {name: {"loop_fps",
    "stream_fps"}}, "threads", "notes"}; AP on a scale of 0 to 1, None where it was not measured."""
    model, image = golden_model()
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = _golden_files(Path(folder))
        works: dict[str, Whole] = {}
        detectors: dict[str, Detector] = {}
        for ours in OURS:
            try:
                detector = stack.enter_context(_open(ours, files[ours.int8], threads))
            except YolactDeployError as exc:
                notes.append(f"no {ours.name}: {str(exc).splitlines()[0]}")
                continue
            detectors[ours.name] = detector
            works[ours.name] = lambda detector=detector: len(with_masks(detector(image)))  # type: ignore[misc]
        works.update(_torch(model, image, notes))
        for name, (opened, int8) in PLAIN.items():
            network, spec = opened(files[int8], threads), model.spec
            works[name] = lambda network=network, spec=spec: len(detect(network, spec, image).scores)  # type: ignore[misc]
        found = {name: work() for name, work in works.items()}
        watch = Watch()
        times = interleaved({**works}, iterations)
        notes += watch_notes(watch.report())
        streams = {name: _stream(detector, image) for name, detector in detectors.items()}
        accuracy = shapes_accuracy(Path(folder), threads, [ours for ours in OURS if ours.name in works])
    eager = times[EAGER]["p50"]
    rows = [
        {
            "name": name,
            "ms": times[name],
            "over_eager": eager / times[name]["p50"],
            "detections": found[name],
            **dict(zip(("box_ap", "mask_ap"), accuracy.get(name, (None, None)), strict=True)),
        }
        for name in works
    ]
    return {"rows": rows, "stream": streams, "threads": threads, "notes": notes}


def _golden_files(folder: Path) -> dict[bool, Path]:
    """The network as float32 and as INT8, by whether it is INT8; in processes of their own, which leave nothing behind."""
    plain, int8 = folder / "model.onnx", folder / "model.int8.onnx"
    subprocess.run([sys.executable, "-m", "benchmarks.figures.networks", str(plain)], check=True)
    (folder / "images").mkdir()
    for number, image in enumerate(golden_images()):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    quantized = "import sys; from exporters import quantize; quantize(sys.argv[1], sys.argv[2], calib=sys.argv[3])"
    subprocess.run(
        [sys.executable, "-c", quantized, str(plain), str(int8), str(folder / "images")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return {False: plain, True: int8}


def _open(ours: Ours, artifact: Path, threads: int) -> Detector:
    return Detector(artifact, device="cpu", runtime=ours.runtime, cpu_precision=ours.precision, threads=threads)


def _torch(model: Any, image: Image, notes: list[str]) -> dict[str, Whole]:
    priors = torch.from_numpy(make_priors(model.spec).copy())

    def whole(network: Any) -> Whole:
        def run() -> int:
            with torch.inference_mode():
                return len(end_to_end(network, image, priors).masks)

        return run

    works = {EAGER: whole(model)}
    compiled: Any = torch.compile(model)
    try:
        with torch.inference_mode():
            compiled(torch.zeros(1, 3, model.spec.input_size, model.spec.input_size))
    except Exception as exc:  # a missing compiler, an operator it can't take: its errors share no base
        notes.append(f"no torch.compile: {str(exc).strip().partition(chr(10))[0][:200]}")
        return works

    class Compiled:
        spec = model.spec

        def __call__(self, pixels: Any) -> Any:
            return compiled(pixels)

    return {**works, "torch.compile, original's Detect": whole(Compiled())}


def _stream(detector: Detector, image: Image) -> dict[str, float]:
    """Images per second of a loop of calls and of `stream`, each with its masks."""
    images = [image] * _STREAMED
    begun = perf_counter()
    for each in images:
        with_masks(detector(each))
    looped = perf_counter() - begun
    begun = perf_counter()
    for found in detector.stream(images):
        with_masks(found)
    return {"loop_fps": _STREAMED / looped, "stream_fps": _STREAMED / (perf_counter() - begun)}


def shapes_accuracy(folder: Path, threads: int, ours: list[Ours]) -> dict[str, tuple[float, float]]:
    """(box AP, mask AP) on shapes val by the name of who ran it."""
    original = json.loads((ROOT / "tests/golden/shapes/ap.json").read_text(encoding="utf-8"))["val"]
    plain, int8 = folder / "shapes.onnx", folder / "shapes.int8.onnx"
    export(next(SHAPES.glob("*.pth")), plain, spec=SHAPES / "spec.json", parity=False)
    quantize(plain, int8, calib=SHAPES / "calib")
    files = {False: plain, True: int8}
    measured = {EAGER: (original["bbox"]["AP"], original["segm"]["AP"])}
    annotations = SHAPES / "val" / "instances.json"
    for each in ours:
        with _open(each, files[each.int8], threads) as detector:
            report = evaluate(detector, SHAPES / "val", annotations)
        measured[each.name] = (report["bbox"]["AP"], report["segm"]["AP"])
    coco = load_annotations(annotations)
    image_ids = sorted(coco.getImgIds())
    spec = ModelSpec.from_file(SHAPES / "spec.json")
    for name, (opened, is_int8) in PLAIN.items():
        network = opened(files[is_int8], threads)
        results: list[dict[str, Any]] = []
        for image_id in image_ids:
            found: Found = detect(network, spec, read_image(SHAPES / "val" / coco.imgs[image_id]["file_name"]))
            results += found.to_coco(image_id, spec)
        box, mask = (coco_ap(coco, results, kind, image_ids)["AP"] for kind in ("bbox", "segm"))
        measured[name] = (box, mask)
    return measured


if __name__ == "__main__":
    main()
