"""What INT8 costs module by module, and the fewest modules to keep in FP16 that pass a gate.

Modules are ranked by the error they bring into the network's outputs: differences of AP below 0.4 point are noise on a few
hundred images, the signal-to-noise ratio is not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from exporters.onnx_edit import float_tensors, is_inside, open_session, with_outputs
from exporters.precision.gate import Verdict
from exporters.precision.quantize import modules_with_convs, plan_placement, quantize
from exporters.precision.ranges import capture, prepared_images
from yolact_deploy.arrays import FloatArray
from yolact_deploy.artifacts.names import Progress, module_of
from yolact_deploy.errors import CalibrationError
from yolact_deploy.spec import ModelSpec

SAMPLE_IMAGES = 16  # on the trained example SQNR over them is within 1 dB of that over 128, the same for all modules
EXACT_DB = 200.0  # the ratio that stands for no noise at all; float32 rounding alone is near 140


@dataclass(frozen=True)
class ModuleSensitivity:
    """Signal-to-quantization-noise ratios in dB against float32: higher is better, 20 dB is 10% error."""

    module: str
    convs: int  # convolution nodes
    sqnr_db: float  # of the module's own outputs, when only it is in INT8
    output_sqnr_db: float  # of the worst network output, when only it is in INT8
    others_output_sqnr_db: float | None  # of the worst network output, when all but it are in INT8; None: not measured
    ap_drop: float | None  # points, when only it is in INT8; None where AP was not measured

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class AutoChoice:
    """The outcome of `choose_modules`."""

    keep_fp16: tuple[str, ...]
    verdict: Verdict  # of that choice
    tried: tuple[tuple[tuple[str, ...], Verdict], ...]  # in order

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "keep_fp16": list(self.keep_fp16),
            "tried": [{"keep_fp16": list(kept), **verdict.to_dict()} for kept, verdict in self.tried],
        }


def module_groups(model: onnx.ModelProto) -> tuple[str, ...]:
    """The modules that are judged, in the graph's order: backbone stem and stages, FPN, protonet, each head branch."""
    return tuple(dict.fromkeys(map(_group, modules_with_convs(model))))


def measure_sensitivity(
    model: onnx.ModelProto,  # float32
    spec: ModelSpec,
    ranges: Mapping[str, float],
    images: Sequence[Path],
    *,
    leave_one_out: bool = True,
    measure_ap: Callable[[tuple[str, ...]], float] | None = None,  # modules kept in FP16 -> points of AP lost
    progress: Progress | None = None,
) -> tuple[ModuleSensitivity, ...]:
    """Quantize each module alone and, with `leave_one_out`, all but it; most sensitive first.

    The rest is float32, so that only INT8 is judged. Raises CalibrationError when there is no image to use or a range is
    missing, ExportError when a graph can't be run.
    """
    groups = module_groups(model)
    heads = _head_tensors(model)
    outputs = {group: _module_outputs(model, group) for group in groups}
    reference = open_session(with_outputs(model, [*heads, *(name for own in outputs.values() for name in own)]))
    found: list[ModuleSensitivity] = []
    for number, group in enumerate(groups):
        if progress is not None:
            progress("measuring the sensitivity of modules", number, len(groups))
        others = tuple(name for name in groups if name != group)
        choices = [others, (group,)] if leave_one_out and others else [others]
        candidates = [quantize(model, ranges, keep_fp16=choice) for choice in choices]
        own = outputs[group]
        alone, *rest = _sqnr_db(reference, candidates, spec, images[:SAMPLE_IMAGES], [*own, *heads])
        found.append(
            ModuleSensitivity(
                module=group,
                convs=len(plan_placement(model, others).convs),
                sqnr_db=min(alone[name] for name in own),
                output_sqnr_db=min(alone[name] for name in heads),
                others_output_sqnr_db=min(rest[0][name] for name in heads) if rest else None,
                ap_drop=measure_ap(others) if measure_ap is not None else None,
            )
        )
    if progress is not None:
        progress("measuring the sensitivity of modules", len(groups), len(groups))
    return tuple(sorted(found, key=lambda module: module.output_sqnr_db))


def module_sqnr_db(
    model: onnx.ModelProto,  # float32
    candidate: onnx.ModelProto,  # of any precision, with the same tensors
    spec: ModelSpec,
    images: Sequence[Path],
) -> dict[str, float]:
    """SQNR of each group's outputs in `candidate` against float32."""
    outputs = {group: _module_outputs(model, group) for group in module_groups(model)}
    names = list(dict.fromkeys(name for own in outputs.values() for name in own))
    (ratios,) = sqnr_db(model, [candidate], spec, images[:SAMPLE_IMAGES], names)
    return {group: min(ratios[name] for name in own) for group, own in outputs.items()}


def sqnr_db(
    reference: onnx.ModelProto,
    candidates: Sequence[onnx.ModelProto],
    spec: ModelSpec,
    images: Sequence[Path],
    names: Sequence[str],  # tensors of all of them
) -> list[dict[str, float]]:
    """For each candidate, 10 log10(sum of squares / sum of squared differences) of each tensor over all images.

    At most EXACT_DB, and -EXACT_DB where the candidate is not finite.
    """
    return _sqnr_db(open_session(with_outputs(reference, names)), candidates, spec, images, names)


def _sqnr_db(
    reference: Any,  # a session that gives `names`
    candidates: Sequence[onnx.ModelProto],
    spec: ModelSpec,
    images: Sequence[Path],
    names: Sequence[str],
) -> list[dict[str, float]]:
    names = list(dict.fromkeys(names))
    others = [open_session(with_outputs(model, names)) for model in candidates]
    feed = reference.get_inputs()[0].name
    signal = dict.fromkeys(names, 0.0)
    noises = [dict.fromkeys(names, 0.0) for _ in candidates]
    seen = 0
    for batch in prepared_images(images, spec):
        exact = capture(reference, feed, batch, names)
        for name in names:
            signal[name] += _energy(exact[name])
        for other, noise in zip(others, noises, strict=True):
            rounded = capture(other, feed, batch, names)
            for name in names:
                noise[name] += _energy(rounded[name] - exact[name])
        seen += 1
    if not seen:
        raise CalibrationError(f"none of the {len(images)} sample images can be used, so no error can be measured.")
    return [{name: _decibel(signal[name], noise[name]) for name in names} for noise in noises]


def choose_modules(
    rank: Callable[[], Sequence[str]],  # modules, most sensitive first; asked only when a module must be kept
    judge: Callable[[tuple[str, ...]], Verdict],  # modules kept in FP16 -> the measured model
    *,
    kept: Sequence[str] = (),  # that stay in FP16 in any case
) -> AutoChoice:
    """Keep modules in FP16, most sensitive first, until the gate is passed; then give back those that it passes without.

    Each choice is measured. One module at least stays in INT8: a choice that does not pass with that is returned as it is.
    """
    chosen = tuple(kept)
    tried: list[tuple[tuple[str, ...], Verdict]] = []

    def measure(modules: tuple[str, ...]) -> Verdict:
        verdict = judge(modules)
        tried.append((modules, verdict))
        return verdict

    verdict = measure(chosen)
    if verdict.passed:
        return AutoChoice(chosen, verdict, tuple(tried))
    free = [name for name in rank() if not is_inside(name, chosen)]
    for module in free[:-1]:
        chosen = (*chosen, module)
        verdict = measure(chosen)
        if verdict.passed:
            break
    else:
        return AutoChoice(chosen, verdict, tuple(tried))
    # The last one was needed: without it the gate was missed.
    for module in [name for name in chosen[:-1] if name not in kept]:
        fewer = tuple(name for name in chosen if name != module)
        without = measure(fewer)
        if without.passed:
            chosen, verdict = fewer, without
    return AutoChoice(chosen, verdict, tuple(tried))


def _group(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "backbone":
        return ".".join(parts[:3] if parts[1:2] == ["layers"] else parts[:2])
    return ".".join(parts[:3]) if parts[0] == "prediction_layers" else parts[0]


def _head_tensors(model: onnx.ModelProto) -> list[str]:
    """The network's outputs, `conf` before its softmax: behind it the background outweighs everything."""
    names = []
    for value in ir.from_proto(model).graph.outputs:
        producer = value.producer()
        before = producer.inputs[0] if producer is not None and producer.op_type == "Softmax" else None
        names.append(str((before or value).name))
    return names


def _module_outputs(model: onnx.ModelProto, group: str) -> list[str]:
    """Float tensors that nodes of a module make and nodes outside it, or nobody, read."""
    floats = float_tensors(model)
    found: list[str] = []
    for node in ir.from_proto(model).graph:
        if is_inside(module_of(str(node.name)), [group]):
            for value in node.outputs:
                outside = [not is_inside(module_of(str(reader.name)), [group]) for reader in value.consumers()]
                if value.name in floats and (any(outside) or not outside):
                    found.append(value.name)
    return found


def _energy(values: FloatArray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def _decibel(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isinf(noise):
        return -EXACT_DB
    if noise == 0:
        return EXACT_DB
    return max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(signal / noise))) if signal > 0 else -EXACT_DB
