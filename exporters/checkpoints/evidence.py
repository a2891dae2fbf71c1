"""What is known of a checkpoint's model, value by value, and from where: a tensor of the file, the trainer, or the spec."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exporters.checkpoints.checkpoint import drop_old_names
from exporters.checkpoints.inference import Architecture, infer_architecture
from exporters.checkpoints.spec_choice import SpecChoice, choose_spec
from exporters.checkpoints.trainers.mapping import ORIGINAL, Weights
from exporters.checkpoints.trainers.recognition import as_original
from exporters.checkpoints.weights_file import read_weights
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec_json import encode

_HEAD = "prediction_layers.0"
_ASK = "not in the tensors: give --config or --spec"


@dataclass(frozen=True)
class Evidence:
    """One value and where it was seen; `tensor` and `shape` are those in the file, None where no tensor shows it."""

    field: str
    value: Any  # JSON-able; None: not known
    tensor: str | None
    shape: tuple[int, ...] | None
    how: str

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = encode(self)
        return value


def inferred(found: Architecture, tensors: Mapping[str, Tensor], weights: Weights) -> tuple[Evidence, ...]:
    """Everything that the tensors (under the original's names) show, in the order of the network."""
    see = _Seer(tensors, weights.in_file)
    deepest = see.last(r"backbone\.layers\.(\d+)\.(\d+)\.(?:conv3|conv2\.0)\.weight")
    offsets = see.last(r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.weight")
    prototypes = see.last(r"proto_net\.(\d+)\.weight")
    judges = see.last(r"maskiou_net\.maskiou_net\.(\d+)\.weight")
    laterals = "fpn.lat_layers.0.weight"
    downsampled = see.last(r"fpn\.downsample_layers\.(\d+)\.weight")
    shared = see.last(rf"{re.escape(_HEAD)}\.upfeature\.(\d+)\.weight")
    rows = [
        see("backbone", found.backbone, deepest, "kind by the blocks' names, depth by their numbers"),
        see("blocks per stage", list(found.stages), deepest, "numbers of stages and blocks"),
        see("stages into the FPN", list(found.selected_layers), laterals, "its inputs are the channels of a stage"),
        see("FPN width", found.fpn_channels, laterals, "its outputs"),
        see("downsampled FPN levels", found.num_downsample, downsampled, "how many there are"),
        see(
            "first of them is made of",
            {"output": "the last FPN output", "backbone": "the backbone's last stage"}[found.downsample_source],
            "fpn.downsample_layers.0.weight",
            "its inputs",
        ),
        see("prototypes", found.num_prototypes, prototypes, "its outputs"),
        see(
            "prototype network",
            encode(found.protonet_layers),
            prototypes,
            "(channels, kernel) by shapes; upsampling where a number is left out",
        ),
        see("shared head layers", encode(found.head_layers), shared, "(channels, kernel)"),
        see("head kernel size", found.head_kernel, f"{_HEAD}.bbox_layer.weight", "its last axis"),
        see(
            "priors per cell",
            found.per_cell,
            f"{_HEAD}.bbox_layer.weight",
            "outputs / 4; how many aspect ratios times how many scales is not to be seen",
        ),
        see(
            "foreground classes",
            found.num_classes,
            f"{_HEAD}.conf_layer.weight",
            f"outputs / {found.per_cell} - 1 for the background",
        ),
        see(
            "deformable blocks per stage",
            found.deformable_blocks if offsets else "none",
            offsets,
            "blocks that have it" if offsets else "no tensor of offsets",
        ),
        see(
            "mask-IoU network",
            encode(found.mask_iou_layers) if judges else "none",
            judges,
            "(channels, kernel) before the classes" if judges else "no tensor of it",
        ),
    ]
    if found.conventions is not None:
        code = f"the code of {found.trainer}; no tensor shows it"
        rows += [
            Evidence("ReLU on FPN outputs", found.conventions.relu_pred_layers, None, None, code),
            Evidence("activation of downsampled levels", found.conventions.downsample_activation, None, None, code),
            Evidence("prototype upsampling: align_corners", found.conventions.align_corners, None, None, code),
        ]
    signed = (
        "no other trainer's names" if found.trainer == ORIGINAL else weights.notes[0].partition(": ")[2].split(";")[0]
    )
    return (Evidence("trainer", found.trainer, None, None, signed), *rows)


def not_in_tensors(choice: SpecChoice | None) -> tuple[Evidence, ...]:
    """What no tensor shows, as the chosen spec has it; without one, with the value None."""
    how, spec = _ASK, None
    if choice is not None:
        spec = choice.spec
        reason = "the only published configuration that fits" if choice.from_tensors else choice.source
        how = f"{spec.name} ({reason})"
    values: dict[str, Any] = dict.fromkeys(
        (
            "input size",
            "prior scales",
            "aspect ratios",
            "square priors",
            "class names",
            "category ids",
            "image transform",
        )
    )
    if spec is not None:
        pre = spec.preprocess
        values = {
            "input size": spec.input_size,
            "prior scales": encode(spec.priors.scales),
            "aspect ratios": encode(spec.priors.aspect_ratios),
            "square priors": spec.priors.use_square_anchors,
            "class names": list(spec.class_names),
            "category ids": list(spec.category_ids),
            "image transform": {"resize": pre.resize, "mean_rgb": list(pre.mean_rgb), "std_rgb": list(pre.std_rgb)},
        }
    return tuple(Evidence(field, value, None, None, how) for field, value in values.items())


class _Seer:
    def __init__(self, tensors: Mapping[str, Tensor], in_file: Callable[[str], str]) -> None:
        self._tensors, self._in_file = tensors, in_file

    def __call__(self, field: str, value: Any, name: str | None, how: str) -> Evidence:
        if name is None or name not in self._tensors:
            return Evidence(field, value, None, None, how)
        return Evidence(field, value, self._in_file(name), tuple(self._tensors[name].shape), how)

    def last(self, pattern: str) -> str | None:
        """The name that matches with the highest numbers."""
        matches = [match for match in (re.fullmatch(pattern, name) for name in self._tensors) if match]
        return max(matches, key=lambda match: tuple(map(int, match.groups()))).string if matches else None


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """JSON-able facts: "architecture" as the tensors show it, and the "spec" where name or tensors decide it; where they
    do not, "spec" is None and "spec_error" says what to give. "inferred" has every value with the tensor it was seen in,
    "not_in_tensors" the others with where they come from. Raises CheckpointError for a file that is no YOLACT.
    """
    path = Path(path)
    stored, read_notes = read_weights(path)
    notes = list(read_notes)
    weights = as_original(stored, path)
    notes += weights.notes
    tensors = drop_old_names(weights.tensors, notes)
    found = infer_architecture(tensors, path, trainer=weights.trainer, conventions=weights.conventions)
    choice: SpecChoice | None = None
    spec_error = None
    try:
        choice = choose_spec(path, found)
        notes[:0] = choice.notes
    except (CheckpointError, SpecError) as exc:
        spec_error = str(exc)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "num_tensors": len(stored),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "trainer": found.trainer,
        "architecture": {"backbone": found.backbone, **encode(found)},
        "inferred": [evidence.to_dict() for evidence in inferred(found, tensors, weights)],
        "not_in_tensors": [evidence.to_dict() for evidence in not_in_tensors(choice)],
        "notes": notes,
        "spec": choice and choice.spec.to_dict(),
        "spec_error": spec_error,
    }
