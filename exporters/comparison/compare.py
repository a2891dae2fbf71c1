"""Two artifacts side by side on real images: their tensors, their detections, their masks, their AP.

Polygraphy's comparator is not used, for the reason given in `exporters.parity`: it judges tensors one at a time by
tolerances, while what is asked here is whether the same objects come out; it runs no checkpoint and knows no spec. ONNX
files and plans run in the `Detector` that serves them later.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporters.comparison.layers import compare_layers
from exporters.comparison.report import (
    Agreement,
    ApComparison,
    CompareReport,
    Example,
    ImageComparison,
    OutputDifference,
    Side,
    check_comparable,
    differing_rules,
    open_side,
)
from exporters.matching import Matches, capped_size, detect_heads, mask_ious, match_detections
from yolact_deploy.annotations import check_categories, load_annotations
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import OUTPUTS, CpuPrecision, OnnxRuntimeChoice, StepProgress
from yolact_deploy.errors import AnnotationError, ImageError
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.images import MAX_PIXELS, list_images, preprocess, read_image

PathLike = str | os.PathLike[str]

# What people look at: `detect` draws from this score on. AP counts every score.
DEFAULT_SCORE_THRESHOLD = 0.15
DEFAULT_EXAMPLES = 6


def compare(
    a: PathLike,
    b: PathLike,
    images: Sequence[PathLike],
    *,
    annotations: PathLike | None = None,
    spec_file: Path | None = None,
    config: str | None = None,
    score_threshold: float = DEFAULT_SCORE_THRESHOLD,
    examples: int = DEFAULT_EXAMPLES,
    device: str = "auto",
    runtime: OnnxRuntimeChoice = "auto",
    runtime_b: OnnxRuntimeChoice | None = None,
    cpu_precision: CpuPrecision = "f32",
    max_pixels: int = MAX_PIXELS,
    layers: bool = False,
    save_inputs: Path | None = None,
    save_outputs: Path | None = None,
    progress: StepProgress | None = None,
) -> CompareReport:
    """Run `a` (taken as the reference) and `b` on the same images and measure how they differ.

    Each is a checkpoint, an exported ONNX of any precision, or a plan where plans can be run; `spec_file` and `config`
    say what a checkpoint is. `images` are files and folders; those that can't be read are skipped and named. With COCO
    `annotations` the AP of both is computed on the images that they name. Detections above `score_threshold` are
    matched: same class, box IoU of at least 0.5, greedily by A's score; a YOLACT++'s scores are those of its masks. The
    `examples` worst images are kept for the HTML page. `runtime_b` is that of B, where it is not `runtime`. With `layers` the
    outputs of their modules are compared as well, see `compare_layers`. `progress(done, images)`.

    Raises SpecError naming the first contradiction between the two, ImageError when no image can be read,
    AnnotationError, and what opening an artifact raises (see `open_side`).
    """
    paths = list_images(images)
    coco = None if annotations is None else load_annotations(annotations)
    options: dict[str, Any] = {"device": device, "cpu_precision": cpu_precision}
    runtimes = (runtime, runtime if runtime_b is None else runtime_b)
    side_a, side_b = (
        open_side(side, spec_file=spec_file, config=config, runtime=of_side, **options)
        for side, of_side in zip((a, b), runtimes, strict=True)
    )
    check_comparable(side_a, side_b)
    compared_layers = None
    if layers:
        compared_layers = compare_layers(
            side_a,
            side_b,
            paths,
            max_pixels=max_pixels,
            save_inputs=save_inputs,
            save_outputs=save_outputs,
            progress=progress,
        )
    sides = (side_a, side_b)
    scoring = None if coco is None else _Scoring(coco, paths, sides, str(annotations))

    tensors = [_Tensor(name, side_a.spec.output_shapes()[name]) for name in OUTPUTS]
    compared: list[ImageComparison] = []
    skipped: list[tuple[str, str]] = []
    worst: list[tuple[float, int, Example]] = []  # a heap with the least bad on top
    for done, path in enumerate(paths):
        if progress is not None:
            progress(done, len(paths))
        try:
            image = read_image(path, max_pixels=max_pixels)
        except ImageError as exc:
            skipped.append((str(path), str(exc)))
            continue
        heads = [side.run(preprocess([image], side.spec)) for side in sides]
        raws = [detect_heads(each, side.spec) for each, side in zip(heads, sides, strict=True)]
        if scoring is not None:
            scoring.add(path, image, raws)
        relative = {
            tensor.name: tensor.add(str(path), first, second)
            for tensor, first, second in zip(tensors, *heads, strict=True)
        }
        a_shown, b_shown = (
            _shown(side, raw, capped_size(image.shape), score_threshold) for side, raw in zip(sides, raws, strict=True)
        )
        example = _example(path, image, a_shown, b_shown, relative)
        compared.append(example.comparison)
        heapq.heappush(worst, (-example.comparison.agreement.quality, -done, example))
        if len(worst) > max(0, examples):
            heapq.heappop(worst)
    if progress is not None:
        progress(len(paths), len(paths))
    if not compared:
        raise ImageError(f"none of the {len(paths)} images can be read. The first: {skipped[0][1]}")
    return CompareReport(
        a=side_a.info,
        b=side_b.info,
        class_names=side_a.spec.class_names,
        input_size=side_a.spec.input_size,
        resize=(side_a.spec.preprocess.resize, side_b.spec.preprocess.resize),
        score_threshold=score_threshold,
        outputs=tuple(tensor.result() for tensor in tensors),
        images=tuple(compared),
        ap=None if scoring is None else scoring.result(),
        skipped=tuple(skipped),
        notes=(*_notes(side_a, side_b), *differing_rules(side_a, side_b)),
        layers=compared_layers,
        examples=tuple(example for _, _, example in sorted(worst, key=lambda entry: entry[:2], reverse=True)),
    )


def _notes(a: Side, b: Side) -> list[str]:
    notes = [f"{label}: {note}" for label, side in (("A", a), ("B", b)) for note in side.notes]
    if a.info.sha256 == b.info.sha256:
        notes.append("A and B are the same file.")
    return notes


class _Tensor:
    """Sums over the images, from which the errors of one output follow; nothing of the tensors is kept."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self._max_error, self._worst_image = -1.0, ""
        self._aa = self._bb = self._ab = self._squared_error = 0.0
        self._non_finite = [0, 0]

    def add(self, image: str, a: FloatArray, b: FloatArray) -> float:
        """The relative L2 of this image; NaN where a value is no number."""
        flat_a, flat_b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
        broken = [int(flat.size - np.isfinite(flat).sum()) for flat in (flat_a, flat_b)]
        if any(broken):
            self._worst_image = self._worst_image if any(self._non_finite) else image
            self._non_finite = [total + count for total, count in zip(self._non_finite, broken, strict=True)]
            return math.nan
        difference = flat_a - flat_b
        error = float(np.abs(difference).max(initial=0.0))
        if error > self._max_error and not any(self._non_finite):
            self._max_error, self._worst_image = error, image
        squared_error, squared = float(difference @ difference), float(flat_a @ flat_a)
        self._squared_error += squared_error
        self._aa += squared
        self._bb += float(flat_b @ flat_b)
        self._ab += float(flat_a @ flat_b)
        return _relative(squared_error, squared)

    def result(self) -> OutputDifference:
        norms = float(np.sqrt(self._aa) * np.sqrt(self._bb))
        comparable = not any(self._non_finite)
        return OutputDifference(
            name=self.name,
            shape=self.shape,
            max_abs_error=max(0.0, self._max_error) if comparable else math.nan,
            relative_l2=_relative(self._squared_error, self._aa) if comparable else math.nan,
            cosine=math.nan if not comparable else self._ab / norms if norms else float(not self._squared_error),
            non_finite_a=self._non_finite[0],
            non_finite_b=self._non_finite[1],
            worst_image=self._worst_image,
        )


def _relative(squared_error: float, squared: float) -> float:
    if not squared:
        return 0.0 if not squared_error else float("inf")
    return float(np.sqrt(squared_error / squared))


def _shown(side: Side, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float) -> Detections:
    """What `detect` shows: of a YOLACT++ by the masks' scores, which must reach the threshold as well."""
    ranked = side.assemble(raw, image_hw, score_threshold).by_mask_score()
    return ranked.take(np.flatnonzero(ranked.scores >= np.float32(score_threshold)))


def _example(path: Path, image: Image, a: Detections, b: Detections, relative: dict[str, float]) -> Example:
    matches = match_detections(a, b)
    image_hw = (image.shape[0], image.shape[1])
    return Example(
        ImageComparison(str(path), image_hw, _agreement(a, b, matches), relative), image, a.raw, b.raw, matches
    )


def _agreement(a: Detections, b: Detections, matches: Matches) -> Agreement:
    first, second = a.take(matches.rows_a), b.take(matches.rows_b)
    matched = len(matches.rows_a)
    ious = mask_ious(first, second)
    return Agreement(
        detections_a=len(a),
        detections_b=len(b),
        matched=matched,
        mask_iou_sum=float(ious.astype(np.float64).sum()),
        min_mask_iou=float(ious.min()) if matched else None,
        max_score_difference=float(np.abs(first.scores - second.scores).max()) if matched else None,
    )


class _Scoring:
    """COCO results of both, collected image by image."""

    def __init__(self, coco: Any, paths: Sequence[Path], sides: tuple[Side, Side], annotations: str) -> None:
        check_categories(coco, sides[0].spec.category_ids, annotations)
        self._coco, self._sides = coco, sides
        self._ids = {Path(entry["file_name"]).as_posix(): image_id for image_id, entry in coco.imgs.items()}
        self._results: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        self._seen: dict[int, None] = {}  # in the order of the images
        if not any(self._image_id(path) is not None for path in paths):
            raise AnnotationError(
                f"{annotations} names none of the {len(paths)} images; it begins with {next(iter(self._ids))}, they with "
                f"{paths[0]}. Give the images that were annotated, or leave the annotations out."
            )

    def add(self, path: Path, image: Image, raws: Sequence[RawDetections]) -> None:
        image_id = self._image_id(path)
        if image_id is None or image_id in self._seen:
            return
        self._seen[image_id] = None
        for side, raw, results in zip(self._sides, raws, self._results, strict=True):
            results.extend(side.assemble(raw, (image.shape[0], image.shape[1]), 0.0).to_coco(image_id))

    def result(self) -> ApComparison:
        a, b = (
            {kind: coco_ap(self._coco, results, kind, list(self._seen)) for kind in ("bbox", "segm")}
            for results in self._results
        )
        return ApComparison(len(self._seen), a, b)

    def _image_id(self, path: Path) -> int | None:
        """Of the annotated image whose file name, with its folders if it has any, ends the path."""
        ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1))
        return next((self._ids[end] for end in ends if end in self._ids), None)
