"""Inner tensors of a network on real images: one image at a time, so memory does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from exporters.calibrators import Histogram, NotFiniteError
from exporters.onnx_edit import float_tensors, open_session, with_outputs
from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import CalibrationError, ExportError, ImageError
from yolact_deploy.runtime.images import read_image
from yolact_deploy.runtime.preprocess import preprocess
from yolact_deploy.spec import ModelSpec

Progress = Callable[[str, int, int], None]  # what, done, of how many

# Of tensors fetched in one run. All that INT8 needs of a ResNet50 at 550 fit; larger networks are run more than once.
MAX_FETCHED_BYTES = 512 << 20
_FLOAT_BYTES = 4
_LARGEST, _SMALLEST = ":largest", ":smallest"


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen on a set of images."""

    histograms: Mapping[str, Histogram]  # of the tensors that were asked for
    absmax: Mapping[str, float]  # largest magnitude in every float tensor; inf where one was not finite
    used: tuple[Path, ...]
    skipped: tuple[str, ...]  # why, one sentence for each image that could not be read


def observe(
    model: onnx.ModelProto,  # float32
    spec: ModelSpec,
    images: Sequence[Path],
    *,
    histograms: Iterable[str] = (),
    max_fetched_bytes: int = MAX_FETCHED_BYTES,
    progress: Progress | None = None,
) -> Observation:
    """Run the network on `images`, prepared as the runtime does, and sum up its tensors.

    Images that can't be read are skipped and named. Raises CalibrationError when none can, or when a tensor of
    `histograms` is not finite; ExportError when onnxruntime can't run the graph.
    """
    shapes = float_tensors(model)
    wanted = list(dict.fromkeys(histograms))
    if unknown := [name for name in wanted if name not in shapes]:
        raise ExportError(f"the graph has no float32 tensor named {unknown[0]}.")
    session = open_session(_with_extremes(model, shapes, wanted))
    feed_name = model.graph.input[0].name
    groups = _groups(wanted, shapes, max_fetched_bytes)
    extremes = [name + suffix for name in shapes for suffix in (_LARGEST, _SMALLEST)]
    collected = {name: Histogram() for name in wanted}
    absmax = dict.fromkeys(shapes, 0.0)
    used: list[Path] = []
    skipped: list[str] = []
    for path, batch in _prepared(images, spec, skipped, progress):
        for number, group in enumerate(groups):
            # The scalars are few bytes: they come with the first group.
            names = [*extremes, *group] if number == 0 else group
            found = dict(zip(names, _run(session, names, {feed_name: batch}), strict=True))
            for name in group:
                _add(collected[name], found.pop(name) if name != feed_name else batch, name, path)
            if number == 0:
                for name in shapes:
                    largest = max(float(found[name + _LARGEST]), -float(found[name + _SMALLEST]))
                    absmax[name] = max(absmax[name], largest if math.isfinite(largest) else math.inf)
        used.append(path)
    if not used:
        listed = f" The first: {skipped[0]}" if skipped else ""
        raise CalibrationError(
            f"none of the {len(images)} images can be used.{listed} Give 64 to 512 images like those the model will see."
        )
    return Observation(collected, absmax, tuple(used), tuple(skipped))


def capture(
    session: Any,  # of `with_outputs(model, names)`
    feed_name: str,
    batch: FloatArray,
    names: Sequence[str],
) -> dict[str, FloatArray]:
    """The tensors `names` of one batch, as float32."""
    batch = batch.astype(np.float16) if session.get_inputs()[0].type == "tensor(float16)" else batch
    values = _run(session, list(names), {feed_name: batch})
    return {name: value.astype(np.float32, copy=False) for name, value in zip(names, values, strict=True)}


def prepared_images(images: Sequence[Path], spec: ModelSpec) -> Iterator[FloatArray]:
    """The network's input for each image that can be read."""
    for _, batch in _prepared(images, spec, [], None):
        yield batch


def _with_extremes(model: onnx.ModelProto, names: Iterable[str], fetched: Sequence[str]) -> onnx.ModelProto:
    """Also gives the largest and the smallest value of each tensor: scalars, where the tensors themselves are 100s of MB."""
    inputs = {value.name for value in model.graph.input}
    observed = with_outputs(model, (name for name in fetched if name not in inputs))
    for name in names:
        for operator, suffix in (("ReduceMax", _LARGEST), ("ReduceMin", _SMALLEST)):
            output = name + suffix
            observed.graph.node.append(helper.make_node(operator, [name], [output], name=output, keepdims=0))
            observed.graph.output.append(onnx.ValueInfoProto(name=output))
    return observed


def _groups(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], limit_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name in names:
        bytes_ = _FLOAT_BYTES * math.prod(shapes[name])
        if groups[-1] and size + bytes_ > limit_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_
    return groups


def _prepared(
    images: Sequence[Path], spec: ModelSpec, skipped: list[str], progress: Progress | None
) -> Iterator[tuple[Path, FloatArray]]:
    for number, path in enumerate(images):
        if progress is not None:
            progress("measuring activations", number, len(images))
        try:
            batch = preprocess([read_image(path)], spec)
        except ImageError as exc:
            skipped.append(str(exc))
            continue
        yield path, batch
    if progress is not None:
        progress("measuring activations", len(images), len(images))


def _run(session: Any, names: list[str], feeds: dict[str, Any]) -> list[Any]:
    try:
        # The input itself is no output of the graph.
        fetched = [name for name in names if name not in feeds]
        values = dict(zip(fetched, session.run(fetched, feeds), strict=True))
    except Exception as exc:  # onnxruntime's exception classes share no public base
        raise ExportError(f"onnxruntime failed on the graph: {str(exc).strip().partition(chr(10))[0]}") from exc
    return [feeds[name] if name in feeds else values[name] for name in names]


def _add(histogram: Histogram, values: FloatArray, name: str, path: Path) -> None:
    try:
        histogram.add(values)
    except NotFiniteError as exc:
        raise CalibrationError(
            f"the tensor {name} of the float32 model is not finite on {path}: it can't be quantized. "
            "Check the checkpoint, or keep its module out of INT8."
        ) from exc
