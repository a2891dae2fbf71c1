"""The project's own figures on a CPU, in one command: `python -m benchmarks.figures.cpu`.

Writes benchmarks/results/<name>.json, and with all files there benchmarks/RESULTS.md and the figures of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures.networks import golden_model
from benchmarks.figures.results_page import RESULTS, write_pages
from benchmarks.latency import time_detectors, without_samples
from benchmarks.machine import environment
from benchmarks.peer_comparison import interleaved, with_masks
from benchmarks.statistics import percentiles
from benchmarks.sweep import BATCHES, sweep
from benchmarks.torch_peer import TorchDetections, detect_and_assemble, end_to_end
from exporters import export, quantize
from exporters.network.yolact import Yolact
from yolact_deploy import Detections, Detector
from yolact_deploy.arrays import Image
from yolact_deploy.files import check_writable, write_json
from yolact_deploy.reference.postprocess import make_priors

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
_HELP_RUNS = 9


def main() -> None:
    """Measure on the CPU, write the results, and the page of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only-ap", action="store_true", help="measure AP again and leave the times of --out as they are"
    )
    arguments = parser.parse_args()
    check_writable(arguments.out)
    torch.set_num_threads(arguments.threads)
    if arguments.only_ap:
        report = {**json.loads(arguments.out.read_text(encoding="utf-8")), "shapes_ap": shapes_ap()}
    else:
        report = {
            "kind": "cpu",
            "environment": environment(),
            "threads": arguments.threads,
            **latency(arguments.iterations, arguments.threads),
            "shapes_ap": shapes_ap(),
            "help_cpu_ms": help_cpu_ms(),
        }
    write_json(arguments.out, report)
    if arguments.out.parent.samefile(RESULTS):
        write_pages()
    print(json.dumps(report, indent=2))


def latency(iterations: int, threads: int) -> dict[str, Any]:
    """Ours by stage and by amount of work ("bench", "sweep"), then beside PyTorch."""
    model, image = golden_model()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.onnx"
        # in a process of its own, so that tracing leaves nothing behind in the one that is measured
        subprocess.run([sys.executable, "-m", "benchmarks.figures.networks", str(artifact)], check=True)
        detector = Detector(artifact, device="cpu", threads=threads, batch_size=max(BATCHES))
        against_torch = _against_torch(model, image, detector, iterations)
        stages = without_samples(time_detectors([detector], [image], iterations=iterations, threads=threads))
        swept = sweep(detector, [image])
    for described in (swept, *stages["runs"]):
        described["artifact"] = artifact.name  # where it lay is of no interest
    stages["notes"] = [note.replace(str(artifact), artifact.name) for note in stages["notes"]]
    return {"bench": stages, "sweep": swept, **against_torch}


def _against_torch(model: Yolact, image: Image, detector: Detector, iterations: int) -> dict[str, Any]:
    """In turns, on the same image and the same 100 detections."""
    priors = torch.from_numpy(make_priors(detector.spec).copy())
    heads = detector.run_network(detector.preprocess([image]))
    loc, conf, mask_coeff, proto = (torch.from_numpy(head[0]) for head in heads)
    image_hw = (image.shape[0], image.shape[1])

    def ours_after_network() -> Detections:
        return with_masks(detector.assemble(detector.suppress(heads)[0], image_hw))

    with torch.inference_mode():
        times = interleaved(
            {
                "end_to_end_ms": lambda: with_masks(detector(image)),
                "torch_end_to_end_ms": lambda: end_to_end(model, image, priors),
                "detect_and_masks_ms": ours_after_network,
                "torch_detect_and_masks_ms": lambda: detect_and_assemble(
                    loc, conf, mask_coeff, proto, priors, image_hw
                ),
            },
            iterations,
        )
        theirs = detect_and_assemble(loc, conf, mask_coeff, proto, priors, image_hw)
    ours = ours_after_network()
    _check_same(ours, theirs)
    p50 = {name: result["p50"] for name, result in times.items()}
    return {
        "detections": len(ours),
        **times,
        "end_to_end_speedup": p50["torch_end_to_end_ms"] / p50["end_to_end_ms"],
        "detect_and_masks_speedup": p50["torch_detect_and_masks_ms"] / p50["detect_and_masks_ms"],
    }


def shapes_ap() -> dict[str, Any]:
    """AP of the bundled checkpoint's ONNX in every precision beside the original's, on a scale of 0 to 1."""
    original = json.loads((SHAPES.parents[1] / "tests/golden/shapes/ap.json").read_text(encoding="utf-8"))["val"]
    annotations = SHAPES / "val" / "instances.json"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "shapes.onnx"
        export(next(SHAPES.glob("*.pth")), model, spec=SHAPES / "spec.json")
        lowered = quantize(
            model, Path(folder) / "int8.onnx", calib=SHAPES / "calib", annotations=annotations, images=SHAPES / "val"
        ).to_dict()
    gate, calibration = lowered["gate"], lowered["calibration"]
    found = {"": gate["reference"], "fp16_": gate["fp16"]["accuracy"], "int8_": gate["int8"]["accuracy"]}
    return {
        "date": environment()["date"],
        "images": len(json.loads(annotations.read_text(encoding="utf-8"))["images"]),
        "calibrator": calibration["calibrator"],
        "calibration_images": calibration["images"],
        **{
            kind: {f"{name}AP": ap[points] / 100 for name, ap in found.items()} | {"original_AP": original[kind]["AP"]}
            for kind, points in (("bbox", "box_ap"), ("segm", "mask_ap"))
        },
    }


def help_cpu_ms() -> dict[str, float]:
    """User and system time of `yolact-deploy --help` in a fresh process."""
    command = [
        sys.executable,
        "-c",
        "import sys; from yolact_deploy.cli import main; sys.argv[1:] = ['--help']; main()",
    ]
    times_ns = []
    for _ in range(_HELP_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "80"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_ns.append(int((after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1e9))
    return percentiles(times_ns)


def _check_same(ours: Detections, theirs: TorchDetections) -> None:
    """A faster wrong answer is no figure."""
    same = (
        np.array_equal(ours.class_ids, theirs.class_ids.numpy())
        and np.array_equal(ours.boxes_xyxy, theirs.boxes_xyxy.numpy())
        and np.count_nonzero(ours.masks != theirs.masks.numpy().astype(bool)) <= len(ours)
    )
    if not same:
        raise SystemExit("the PyTorch peer found something else; no figure is written.")


if __name__ == "__main__":
    main()
