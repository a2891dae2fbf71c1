"""INT8 ranges out of what inner tensors are on real images: histograms of magnitudes that grow with what they see, and the four
ways to choose a symmetric range from one. One image at a time, so that memory does not grow with their number.

onnxruntime's calibrators are not used: they keep every activation of every image (9.9 GB for 128 images of
256x256), and their entropy counts the zeros that ReLU makes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from exporters.onnx_edit import float_tensors, open_session, with_outputs
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import Calibrator, Progress
from yolact_deploy.errors import CalibrationError, ExportError, ImageError
from yolact_deploy.reference.images import preprocess, read_image
from yolact_deploy.spec import ModelSpec

CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)

NUM_BINS = 8192  # a power of two; at least half of them are in use
INT8_LEVELS = 127  # above zero
PERCENTILE = 99.999  # of the values that are not exactly 0
_ENTROPY_BINS = 2048
_ENTROPY_LEVELS = 128
_ENTROPY_STEP = 8  # bins between the ranges that are tried
_MSE_FRACTIONS = np.linspace(0.1, 1.0, 91)  # of the largest magnitude
_BLOCK = 1 << 17  # values that fit in a core's cache with their indices
# Below it the number that scales values to bins is beyond float32. No INT8 scale is as small: halves end at 2^-24.
_MIN_EXPONENT = -64

Values = npt.NDArray[Any]
# Of tensors fetched in one run. All that INT8 needs of a ResNet50 at 550 fit; larger networks are run more than once.
MAX_FETCHED_BYTES = 512 << 20
_FLOAT_BYTES = 4
_LARGEST, _SMALLEST = ":largest", ":smallest"
_ONE_COLOUR_LEVELS = 4  # of 255, between the darkest and the brightest: what a sensor and JPEG make of nothing


class NotFiniteError(ValueError):
    """Values with NaN or infinity among them."""


class Histogram:
    """Counts of |x| in NUM_BINS equal bins over [0, 2^e), e as small as fits what was added but -64 at least.

    A bin's width is a power of two, and growing adds neighbours up: whatever the order and the parts in which values are
    added, the counts are those of all of them at once. Exact zeros are counted apart, because every range keeps them.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.exponent: int | None = None  # None until a value other than 0 was added
        self.zeros = 0
        self.maximum = 0.0  # exact

    @property
    def bin_width(self) -> float:
        """Of its NUM_BINS bins, in units of the activation."""
        return math.ldexp(1.0, self.exponent or 0) / NUM_BINS

    @property
    def total(self) -> int:
        """Values added, zeros included."""
        return self.zeros + int(self.counts.sum())

    def add(self, values: Values) -> None:
        """Raises NotFiniteError."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        largest = max(float(flat.max()), -float(flat.min()))
        if not math.isfinite(largest):
            raise NotFiniteError("the values are not all finite")
        if largest > 0:
            self._grow(max(_MIN_EXPONENT, math.frexp(largest)[1]))
            self.maximum = max(self.maximum, largest)
        # The exponent of the whole, not of this part: what was seen before may reach further.
        per_value = NUM_BINS / math.ldexp(1.0, self.exponent or 0)
        for start in range(0, flat.size, _BLOCK):
            block = np.abs(flat[start : start + _BLOCK])
            zeros = block.size - int(np.count_nonzero(block))
            block *= per_value
            counts = np.bincount(block.astype(np.intp), minlength=NUM_BINS)
            counts[0] -= zeros
            self.counts += counts
            self.zeros += zeros

    def _grow(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        doublings = exponent - self.exponent
        if doublings <= 0:
            return
        merged = min(1 << doublings, NUM_BINS)
        grown = np.zeros_like(self.counts)
        grown[: NUM_BINS // merged] = self.counts.reshape(-1, merged).sum(1)
        self.counts, self.exponent = grown, exponent


def choose_range(histogram: Histogram, calibrator: Calibrator) -> float:
    """The magnitude that INT8's 127 stands for; 0 where all values are 0. Raises CalibrationError for other names."""
    choose: dict[str, Callable[[Histogram], float]] = {
        "max": max_range,
        "entropy": entropy_range,
        "percentile": percentile_range,
        "mse": mse_range,
    }
    if calibrator not in choose:
        raise CalibrationError(f"unknown calibrator {calibrator!r}; choose {', '.join(CALIBRATORS)}.")
    return choose[calibrator](histogram) if histogram.maximum else 0.0


def max_range(histogram: Histogram) -> float:
    """The largest magnitude: nothing saturates."""
    return histogram.maximum


def percentile_range(histogram: Histogram, percentile: float = PERCENTILE) -> float:
    """The magnitude that `percentile` percent of the values other than 0 don't exceed."""
    below = np.cumsum(histogram.counts)
    wanted = below[-1] * percentile / 100
    position = int(np.searchsorted(below, wanted))
    inside = (wanted - (below[position - 1] if position else 0)) / histogram.counts[position]
    return min(float((position + inside) * histogram.bin_width), histogram.maximum)


def mse_range(histogram: Histogram) -> float:
    """The range whose rounding and saturation cost the least squared error; bins stand for their middles."""
    used = np.flatnonzero(histogram.counts)
    counts, middles = histogram.counts[used].astype(np.float64), (used + 0.5) * histogram.bin_width
    errors = []
    for limit in _MSE_FRACTIONS * histogram.maximum:
        scale = limit / INT8_LEVELS
        rounded = np.minimum(np.rint(middles / scale), INT8_LEVELS) * scale
        errors.append(float(counts @ (middles - rounded) ** 2))
    return float(_MSE_FRACTIONS[int(np.argmin(errors))] * histogram.maximum)


def entropy_range(histogram: Histogram) -> float:
    """The range whose 128-level distribution diverges least (Kullback-Leibler) from the full one.

    The method of "8-bit Inference with TensorRT" (S. Migacz, GTC 2017), but zeros are left out: after a ReLU they are half
    of all values, cost nothing in any range, and outweigh the tail until far too much of it is cut off.
    """
    counts = histogram.counts.reshape(_ENTROPY_BINS, -1).sum(1).astype(np.float64)
    top = int(np.flatnonzero(counts)[-1]) + 1
    if top <= _ENTROPY_LEVELS:
        return histogram.maximum
    limits = [*range(_ENTROPY_LEVELS, top, _ENTROPY_STEP), top]
    best = min(limits, key=lambda limit: _divergence(counts[:top], limit))
    return min(float(best) * histogram.bin_width * (NUM_BINS // _ENTROPY_BINS), histogram.maximum)


def _divergence(counts: npt.NDArray[np.float64], limit: int) -> float:
    inside = counts[:limit]
    reference = inside.copy()
    reference[-1] += counts[limit:].sum()
    levels = np.arange(limit) * _ENTROPY_LEVELS // limit
    occupied = inside > 0
    per_level = np.bincount(levels, inside, _ENTROPY_LEVELS)
    bins_per_level = np.bincount(levels, occupied, _ENTROPY_LEVELS)
    spread = np.where(occupied, (per_level / np.maximum(bins_per_level, 1))[levels], 0.0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1.0)
    compared = p > 0
    with np.errstate(divide="ignore"):
        return float(np.sum(p[compared] * np.log(p[compared] / q[compared])))


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen on a set of images."""

    histograms: Mapping[str, Histogram]  # of the tensors that were asked for
    absmax: Mapping[str, float]  # largest magnitude in every float tensor; inf where one was not finite
    used: tuple[Path, ...]
    skipped: tuple[str, ...]  # why, one sentence for each image that could not be read
    constant: int = 0  # of those used, images of one colour
    distinct: int = 0  # of the others, those that no other equals once it is the network's input


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
    constant = 0
    inputs: set[bytes] = set()
    for path, image, batch in _prepared(images, spec, skipped, progress):
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
        if _is_of_one_colour(image):
            constant += 1
        else:
            inputs.add(hashlib.sha256(batch.tobytes()).digest())
    if not used:
        listed = f" The first: {skipped[0]}" if skipped else ""
        raise CalibrationError(
            f"none of the {len(images)} images can be used.{listed} Give 64 to 512 images like those the model will see."
        )
    return Observation(collected, absmax, tuple(used), tuple(skipped), constant, len(inputs))


def capture(
    session: Any,  # of `with_outputs(model, names)`
    feed_name: str,
    batch: FloatArray,  # [B, 3, S, S]
    names: Sequence[str],
) -> dict[str, FloatArray]:
    """The tensors `names` of one batch, as float32."""
    batch = batch.astype(np.float16) if session.get_inputs()[0].type == "tensor(float16)" else batch
    values = _run(session, list(names), {feed_name: batch})
    return {name: value.astype(np.float32, copy=False) for name, value in zip(names, values, strict=True)}


def prepared_images(images: Sequence[Path], spec: ModelSpec) -> Iterator[FloatArray]:
    """The network's input for each image that can be read."""
    for _, _, batch in _prepared(images, spec, [], None):
        yield batch


def _is_of_one_colour(image: Image) -> bool:
    return bool((np.ptp(image, axis=(0, 1)) <= _ONE_COLOUR_LEVELS).all())


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
) -> Iterator[tuple[Path, Image, FloatArray]]:
    for number, path in enumerate(images):
        if progress is not None:
            progress("measuring activations", number, len(images))
        try:
            image = read_image(path)
            batch = preprocess([image], spec)
        except ImageError as exc:
            skipped.append(str(exc))
            continue
        yield path, image, batch
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
