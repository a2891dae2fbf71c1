"""What is known of a checkpoint's model, value by value, and from where: a tensor of the file, the trainer, or the spec."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exporters.checkpoints.checkpoint import CheckpointContent, read_checkpoint
from exporters.checkpoints.spec_choice import SpecChoice, choose_spec
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec_json import encode

_HEAD = "prediction_layers.0"
_NOT_SHOWN = (
    "input size",
    "prior scales",
    "aspect ratios",
    "square priors",
    "class names",
    "category ids",
    "image transform",
)
_ASK = "not in the tensors: give --config or --spec"
_SOURCES = {"output": "the last FPN output", "backbone": "the backbone's last stage"}


@dataclass(frozen=True)
class Evidence:
    """One value and where it was seen; `tensor` and `shape` are those in the file, None where no tensor shows it."""

    field: str
    value: Any  # JSON-able; None: not known
    tensor: str | None
    shape: tuple[int, ...] | None
    how: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        value: dict[str, Any] = encode(self)
        return value


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """JSON-able facts: "architecture" as the tensors show it, and the "spec" where name or tensors decide it; where they
    do not, "spec" is None and "spec_error" says what to give. "inferred" has every value with the tensor it was seen in,
    "not_in_tensors" the others with where they come from. Raises CheckpointError for a file that is no YOLACT.
    """
    content = read_checkpoint(path)
    choice: SpecChoice | None = None
    spec_error = None
    try:
        choice = choose_spec(content.path, content.architecture)
    except (CheckpointError, SpecError) as exc:
        spec_error = str(exc)
    found = content.architecture
    return {
        "kind": "checkpoint",
        "path": str(content.path),
        "bytes": content.path.stat().st_size,
        "sha256": sha256_file(content.path),
        "num_tensors": content.num_stored,
        "num_parameters": sum(tensor.numel() for tensor in content.weights.tensors.values()),
        "trainer": found.trainer,
        "architecture": {"backbone": found.backbone, **encode(found)},
        "inferred": [evidence.to_dict() for evidence in seen_in_tensors(content)],
        "not_in_tensors": [evidence.to_dict() for evidence in not_in_tensors(choice)],
        "notes": [*(choice.notes if choice else ()), *content.notes],
        "spec": choice and choice.spec.to_dict(),
        "spec_error": spec_error,
    }


def seen_in_tensors(content: CheckpointContent) -> tuple[Evidence, ...]:
    """Everything that the tensors show, in the order of the network, after whose they are."""
    found, weights = content.architecture, content.weights
    signed = "no other trainer's names" if weights.recognised_by is None else f"recognised by {weights.recognised_by}"
    rows = [Evidence("trainer", found.trainer, None, None, signed)]
    for field, value, name, how in _observations(content):
        if name is None or name not in weights.tensors:
            rows.append(Evidence(field, value, None, None, how))
        else:
            rows.append(Evidence(field, value, weights.in_file(name), tuple(weights.tensors[name].shape), how))
    if found.conventions is not None:
        code = f"the code of {found.trainer}; no tensor shows it"
        rows += [
            Evidence("ReLU on FPN outputs", found.conventions.relu_pred_layers, None, None, code),
            Evidence("activation of downsampled levels", found.conventions.downsample_activation, None, None, code),
            Evidence("prototype upsampling: align_corners", found.conventions.align_corners, None, None, code),
        ]
    return tuple(rows)


def _observations(
    content: CheckpointContent,
) -> Iterable[tuple[str, Any, str | None, str]]:  # field, value, the original's name of the tensor that shows it, how
    found, tensors = content.architecture, content.weights.tensors
    deepest = _last(tensors, r"backbone\.layers\.(\d+)\.(\d+)\.(?:conv3|conv2\.0)\.weight")
    offsets = _last(tensors, r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.weight")
    prototypes = _last(tensors, r"proto_net\.(\d+)\.weight")
    judges = _last(tensors, r"maskiou_net\.maskiou_net\.(\d+)\.weight")
    downsampled = _last(tensors, r"fpn\.downsample_layers\.(\d+)\.weight")
    shared = _last(tensors, rf"{re.escape(_HEAD)}\.upfeature\.(\d+)\.weight")
    laterals, boxes, scores = "fpn.lat_layers.0.weight", f"{_HEAD}.bbox_layer.weight", f"{_HEAD}.conf_layer.weight"
    layers = "(channels, kernel) by shapes; upsampling where a number is left out"
    ratios = "outputs / 4; how many aspect ratios times how many scales is not to be seen"
    yield "backbone", found.backbone, deepest, "kind by the blocks' names, depth by their numbers"
    yield "blocks per stage", list(found.stages), deepest, "numbers of stages and blocks"
    yield "stages into the FPN", list(found.selected_layers), laterals, "its inputs are the channels of a stage"
    yield "FPN width", found.fpn_channels, laterals, "its outputs"
    yield "downsampled FPN levels", found.num_downsample, downsampled, "how many there are"
    source = _SOURCES[found.downsample_source]
    yield "first of them is made of", source, "fpn.downsample_layers.0.weight", "its inputs"
    yield "prototypes", found.num_prototypes, prototypes, "its outputs"
    yield "prototype network", encode(found.protonet_layers), prototypes, layers
    yield "shared head layers", encode(found.head_layers), shared, "(channels, kernel)"
    yield "head kernel size", found.head_kernel, boxes, "its last axis"
    yield "priors per cell", found.per_cell, boxes, ratios
    yield "foreground classes", found.num_classes, scores, f"outputs / {found.per_cell} - 1 for the background"
    if offsets:
        yield "deformable blocks per stage", found.deformable_blocks, offsets, "blocks that have it"
    else:
        yield "deformable blocks per stage", "none", None, "no tensor of offsets"
    if judges:
        judging = encode(found.mask_iou_layers)
        yield "mask-IoU network", judging, judges, "(channels, kernel) before the classes"
    else:
        yield "mask-IoU network", "none", None, "no tensor of it"


def _last(tensors: Mapping[str, Tensor], pattern: str) -> str | None:
    """The name that matches with the highest numbers."""
    matches = [match for match in (re.fullmatch(pattern, name) for name in tensors) if match]
    return max(matches, key=lambda match: tuple(map(int, match.groups()))).string if matches else None


def not_in_tensors(choice: SpecChoice | None) -> tuple[Evidence, ...]:
    """What no tensor shows, as the chosen spec has it; without one, with the value None."""
    if choice is None:
        return tuple(Evidence(field, None, None, None, _ASK) for field in _NOT_SHOWN)
    spec, pre = choice.spec, choice.spec.preprocess
    reason = "the only published configuration that fits" if choice.from_tensors else choice.source
    values = (
        spec.input_size,
        encode(spec.priors.scales),
        encode(spec.priors.aspect_ratios),
        spec.priors.use_square_anchors,
        list(spec.class_names),
        list(spec.category_ids),
        {"resize": pre.resize, "mean_rgb": list(pre.mean_rgb), "std_rgb": list(pre.std_rgb)},
    )
    return tuple(
        Evidence(field, value, None, None, f"{spec.name} ({reason})")
        for field, value in zip(_NOT_SHOWN, values, strict=True)
    )
