"""Every exported form in every runtime that can be had here: `python -m benchmarks.figures.runtimes`.

Writes benchmarks/results/runtimes.json and from it the tables of docs/runtimes.md. Takes Node and npm for onnxruntime-web; ncnn
and pnnx go into an environment of their own. What can't be had is left out, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.figures.networks import CONFIG, PLUS_CONFIG, golden_images
from benchmarks.figures.results_page import RESULTS
from benchmarks.figures.runtime_processes import (
    COMMAND_LINE,
    ONNXRUNTIME,
    TENSORRT_RTX,
    Outputs,
    RefusalError,
    Runtime,
    Worker,
    build_plan,
    get_runtimes,
    open_worker,
)
from benchmarks.figures.runtimes_page import write_page
from benchmarks.machine import environment
from exporters import quantize
from exporters.end_to_end.export import export_end_to_end
from exporters.matching import match_detections
from yolact_deploy import Detections, Detector
from yolact_deploy.annotations import load_annotations
from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts.names import END_TO_END
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.files import check_writable, write_json
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.end_to_end import read_outputs
from yolact_deploy.runtime.protocols import HeadTensors

FOUND_SCORE = 0.15  # detections that a user would see, as upstream draws them
MIN_FOUND = 0.95  # of these, for a runtime to count as right
_SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
_COMPARED = 4  # images
_AP_IMAGES = 50
_TURNS = 9


@dataclass(frozen=True)
class Form:
    """An exported file."""

    name: str
    title: str
    make: Callable[[Path], object]  # with the folder of the others
    has_ap: bool = False


def main() -> None:
    """Run all, write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "runtimes.json")
    parser.add_argument("--work", type=Path, help="folder that keeps files and packages for the next time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", nargs="*", metavar="NAME", help="only these; the others' results stay")
    parser.add_argument("--turns", type=int, default=_TURNS, help="runs of which the median time is taken")
    arguments = parser.parse_args()
    check_writable(arguments.out)
    forms = [form for form in FORMS if not arguments.forms or form.name in arguments.forms]
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        runtimes = get_runtimes(work.resolve())
        known = json.loads(arguments.out.read_text(encoding="utf-8"))["forms"] if arguments.out.is_file() else {}
        for form in forms:
            path = make_form(form, work.resolve())
            known[form.name] = measure_form(form, path, runtimes, arguments.threads, arguments.turns)
            report = {
                "kind": "runtimes",
                "environment": environment(),
                "threads": arguments.threads,
                "runtimes": {each.name: {"title": each.title, "why_not": each.why_not} for each in runtimes},
                "forms": {form.name: known[form.name] for form in FORMS if form.name in known},
            }
            write_json(arguments.out, report)
    write_page(arguments.out)


def make_form(form: Form, work: Path) -> Path:
    """The file, made unless it is there."""
    path = work / f"{form.name}.onnx"
    if not path.is_file():
        print(f"making {form.name}", file=sys.stderr)
        form.make(path)
    return path


def measure_form(form: Form, path: Path, runtimes: Sequence[Runtime], threads: int, turns: int) -> dict[str, Any]:
    """What each runtime makes of a file, against onnxruntime with the Detector's own options."""
    subject = Subject(path, threads)
    images = [read_image(each) for each in _shapes_images(_COMPARED)] if form.has_ap else golden_images()
    report: dict[str, Any] = {"title": form.title, "images": len(images), "runtimes": {}}
    if form.has_ap:
        report["ap"] = average_precision(subject.detector)
    for runtime in runtimes:
        if runtime.command is None:
            continue
        try:
            found = (
                build_plan(path)
                if runtime is TENSORRT_RTX
                else measure_runtime(subject, runtime, images, form.has_ap, turns)
            )
        except RefusalError as exc:
            found = {"status": "fails", "reason": str(exc)}
        report["runtimes"][runtime.name] = found
        print(f"{form.name} in {runtime.title}: {json.dumps(found)}", file=sys.stderr)
    return report


def measure_runtime(
    subject: Subject, runtime: Runtime, images: Sequence[Image], has_ap: bool, turns: int
) -> dict[str, Any]:
    """Errors, detections found again, differing mask pixels, AP, and the time relative to onnxruntime's, in turns."""
    with subject.worker(runtime, images[0]) as worker:

        def run(image: Image) -> tuple[Outputs, Detections]:
            return subject.read(worker.run(subject.batch(image)), image)

        compared = [compare(*subject.expected(image), *run(image)) for image in images]
        counts = {name: sum(each[name] for each in compared) for name in ("objects", "found", "pixels", "differ")}
        error = max(each["max_error"] for each in compared)
        right = bool(counts["found"] >= MIN_FOUND * counts["objects"] and np.isfinite(error))
        result: dict[str, Any] = {
            "status": "ok" if right else "wrong",
            "version": worker.version,
            "max_error": error if np.isfinite(error) else None,
            **counts,
        }
        if right and has_ap:
            result["ap"] = average_precision(lambda image: run(image)[1])
        if right:
            with subject.worker(ONNXRUNTIME, images[0]) as other:
                batch = subject.batch(images[0])
                times = [(worker.time_ms(batch), other.time_ms(batch)) for _ in range(turns + 1)][
                    1:
                ]  # the first warms up
            ours, theirs = (statistics.median(each) for each in zip(*times, strict=True))
            result["time_ratio"] = ours / theirs
    return result


class Subject:
    """A file, its Detector in onnxruntime, and what others' outputs mean."""

    def __init__(self, path: Path, threads: int) -> None:
        self.detector = Detector(path, device="cpu", runtime="onnxruntime", threads=threads)
        file = open_onnx(path)
        self._path, self._threads, self._whole = path, threads, file.form == END_TO_END
        self._outputs = [tensor.name for tensor in file.io_tensors if tensor.mode == "output"]

    def worker(self, runtime: Runtime, image: Image) -> contextlib.AbstractContextManager[Worker]:
        """The file in a runtime, for images of this size. Raises RefusalError."""
        return open_worker(runtime, self._path, self._outputs, self.batch(image).shape, self._threads)

    def batch(self, image: Image) -> AnyArray:
        """The input, of a batch of one."""
        return image[None] if self._whole else self.detector.preprocess([image])

    def expected(self, image: Image) -> tuple[Outputs, Detections]:
        """What the Detector gives: head tensors (none where the file is end to end), and detections."""
        heads = {} if self._whole else self.detector.run_network(self.batch(image))._asdict()
        return heads, self.detector(image)

    def read(self, outputs: Outputs, image: Image) -> tuple[Outputs, Detections]:
        """The same of a runtime's outputs."""
        spec = self.detector.spec
        if self._whole:
            return {}, read_outputs(outputs, 0, spec)
        heads = {name: outputs[name].reshape(1, *shape) for name, shape in spec.output_shapes().items()}
        (raw,) = self.detector.suppress(HeadTensors(**heads))
        return heads, self.detector.assemble(raw, (image.shape[0], image.shape[1]))


def compare(
    expected: Outputs,
    reference: Detections,
    found: Outputs,
    detections: Detections,  # of the same image
) -> dict[str, Any]:
    """The largest difference in the head tensors, or where there are none in scores; what is found again by class and box
    (IoU of 0.5) of what a user would see; mask pixels that differ there."""
    seen = reference.scores >= FOUND_SCORE
    pairs = match_detections(reference, detections)
    again = seen[pairs.rows_a]
    ours, theirs = reference[pairs.rows_a[again]], detections[pairs.rows_b[again]]
    pairs_of = [(expected[name], found[name]) for name in expected] or [(ours.scores, theirs.scores)]
    errors = [float(np.abs(a - b).max()) for a, b in pairs_of if a.size]
    return {
        "max_error": max(errors, default=0.0) if all(np.isfinite(errors)) else float("inf"),
        "objects": int(seen.sum()),
        "found": int(again.sum()),
        "pixels": int(np.count_nonzero(ours.masks)),
        "differ": int(np.count_nonzero(ours.masks != theirs.masks)),
    }


def average_precision(detect: Callable[[Image], Detections]) -> dict[str, float]:
    """{"box", "mask"}: AP in points of 100 on the first images of shapes val."""
    coco = load_annotations(_SHAPES / "val" / "instances.json")
    image_ids = sorted(coco.getImgIds())[:_AP_IMAGES]
    results: list[dict[str, Any]] = []
    for image_id, path in zip(image_ids, _shapes_images(_AP_IMAGES), strict=True):
        results += detect(read_image(path)).to_coco(image_id)
    return {
        name: 100 * coco_ap(coco, results, kind, image_ids)["AP"] for name, kind in (("box", "bbox"), ("mask", "segm"))
    }


def _shapes_images(count: int) -> list[Path]:
    coco = load_annotations(_SHAPES / "val" / "instances.json")
    names = [coco.imgs[image_id]["file_name"] for image_id in sorted(coco.getImgIds())]
    return [_SHAPES / "val" / name for name in names[:count]]


def _export_shapes(target: Path) -> None:
    checkpoint, spec = next(_SHAPES.glob("*.pth")), _SHAPES / "spec.json"
    export = ["export", str(checkpoint), "-o", str(target), "--spec", str(spec)]
    subprocess.run([*COMMAND_LINE, *export], check=True, stdout=sys.stderr)


def _export_golden(config: str, dcn: str = "auto") -> Callable[[Path], object]:
    """In a process of its own, which gives its memory back."""
    module = [sys.executable, "-m", "benchmarks.figures.networks"]
    return lambda target: subprocess.run([*module, str(target), config, dcn], check=True)


def _lowered(source: str, precision: Any) -> Callable[[Path], object]:
    def make(target: Path) -> None:
        calibration = _SHAPES / "calib"
        if source != "shapes":
            calibration = target.parent / "golden-images"
            calibration.mkdir(exist_ok=True)
            for number, image in enumerate(golden_images()):
                for turn in range(4):  # eight that differ
                    cv2.imwrite(str(calibration / f"{number}-{turn}.png"), np.rot90(image, turn))
        quantize(target.parent / f"{source}.onnx", target, precision=precision, calib=calibration)

    return make


def _end_to_end(source: str) -> Callable[[Path], object]:
    return lambda target: export_end_to_end(target.parent / f"{source}.onnx", target, parity=False)


def _forms_of(name: str, title: str, export: Callable[[Path], object], has_ap: bool) -> Iterator[Form]:
    yield Form(name, f"{title}, heads, float32", export, has_ap)
    yield Form(f"{name}-fp16", f"{title}, heads, FP16", _lowered(name, "fp16"), has_ap)
    yield Form(f"{name}-int8", f"{title}, heads, INT8", _lowered(name, "int8"), has_ap)
    yield Form(f"{name}-end-to-end", f"{title}, end to end, float32", _end_to_end(name), has_ap)
    yield Form(f"{name}-int8-end-to-end", f"{title}, end to end, INT8", _end_to_end(f"{name}-int8"), has_ap)


FORMS = (
    *_forms_of("shapes", "shapes", _export_shapes, has_ap=True),
    *_forms_of("resnet50", "ResNet50-550", _export_golden(CONFIG), has_ap=False),
    Form("plus-gridsample", "YOLACT++ ResNet50-550, GridSample, float32", _export_golden(PLUS_CONFIG)),
    Form("plus-deformconv", "YOLACT++ ResNet50-550, DeformConv, float32", _export_golden(PLUS_CONFIG, "native")),
)


if __name__ == "__main__":
    main()
