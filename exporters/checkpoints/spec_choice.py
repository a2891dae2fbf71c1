"""Which spec a checkpoint has: from a spec file, `--config`, its file name or its tensors; or what to give when nothing tells."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.checkpoints.configs import EXTENDS, OTHER_TRAINERS, PUBLISHED, load_spec, published_spec
from exporters.checkpoints.inference import Architecture, deformable_blocks, differences
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import encode

_FILE_NAME = re.compile(r"(?P<config>.+?)_\d+_\d+(_interrupt)?")  # as the original's training writes it
_MAX_LISTED_CLASSES = 20
_MAX_LISTED_DIFFERENCES = 3
_SMALLEST_SCALE = 24  # pixels on the first FPN level in the published configurations; doubles per level
_ASPECT_RATIOS = [1, 0.5, 2]
_PLACEHOLDER = "class"
_LARGEST_PRIOR = 1.2  # of the input size; YOLACT++ has 1.11, the others 0.93 at most


@dataclass(frozen=True)
class SpecChoice:
    """The spec that goes with a checkpoint, and how it was found."""

    spec: ModelSpec
    source: str  # in words, for notes and errors
    notes: tuple[str, ...]
    from_tensors: bool = False  # nobody named it


def choose_spec(
    path: Path,
    found: Architecture,
    *,
    spec_file: Path | None = None,
    config: str | None = None,
) -> SpecChoice:
    """The spec from `spec_file`, else `config`, else the file name, else the tensors.

    Raises SpecError when the sources contradict each other or a name is not known, CheckpointError when the tensors
    contradict the spec or nothing tells which spec it is.
    """
    if spec_file is not None and config is not None:
        raise SpecError(f"give either the spec file {spec_file} or the configuration {config}, not both.")
    notes: list[str] = []
    from_tensors = False
    if spec_file is not None:
        spec, source = load_spec(spec_file, on_note=notes.append), f"the spec file {spec_file}"
    elif config is not None:
        spec, source = published_spec(config), f"--config {config}"
    elif (named := _config_in_name(path)) in _candidates(found):
        spec, source = _candidates(found)[named], "the file name"
    else:
        from_tensors = True
        spec, source = _from_tensors(path, found), "the tensors, which fit no other published configuration"
    contradictions = differences(found, spec)
    if contradictions:
        advice = (
            f"Correct the spec file, or give the checkpoint that it describes.{_advice_on_trainer(found)}"
            if spec_file is not None
            else _advice_on_published(path, found)
        )
        listed = "; ".join(map(str, contradictions[:_MAX_LISTED_DIFFERENCES]))
        raise CheckpointError(f"{path} does not fit {spec.name} (from {source}): {listed}. {advice}")
    return SpecChoice(
        spec, source, (f"spec {spec.name}: from {source}.", *notes, *_uncertainties(spec, found)), from_tensors
    )


def starter_spec(found: Architecture, name: str) -> str:
    """A spec file for a model trained on other classes, with placeholders for what tensors don't show."""
    base = _nearest_published(found)
    fields: dict[str, Any] = {EXTENDS: base.name, "name": name, "input_size": base.input_size}
    if found.num_classes != base.num_classes:
        fields["class_names"] = [f"{_PLACEHOLDER} {i}" for i in range(1, found.num_classes + 1)]
    fields.update(_backbone_fields(found, base))
    fpn = {"channels": found.fpn_channels, "num_downsample": found.num_downsample}
    if fpn != {"channels": base.fpn.channels, "num_downsample": base.fpn.num_downsample}:
        fields["fpn"] = fpn
    if found.protonet_layers != base.protonet.layers:
        fields["protonet"] = {"layers": [list(layer) for layer in found.protonet_layers]}
    if (found.head_layers, found.head_kernel) != (base.head.extra_layers, base.head.kernel_size):
        fields["head"] = {
            "extra_layers": [list(layer) for layer in found.head_layers],
            "kernel_size": found.head_kernel,
        }
    if found.mask_iou_layers != base.mask_iou_layers:
        fields["mask_iou_layers"] = [list(layer) for layer in found.mask_iou_layers]
    fields["priors"] = _placeholder_priors(found, base)
    return _one_field_per_line(fields)


def _uncertainties(spec: ModelSpec, found: Architecture) -> tuple[str, ...]:
    """What a spec says that no contradiction shows and that is still hardly meant."""
    doubts = []
    if any(re.fullmatch(rf"{_PLACEHOLDER} \d+", name) for name in spec.class_names):
        doubts.append(f'class names are still placeholders ("{spec.class_names[0]}", ...).')
    largest = max(scale for level in spec.priors.scales for scale in level)
    if spec.priors.use_pixel_scales and largest > _LARGEST_PRIOR * spec.input_size:
        fitting = [int(spec.input_size / 550 * scale) for scale in (24, 48, 96, 192, 384)]
        doubts.append(
            f"the largest prior ({largest:g} pixels) exceeds the input ({spec.input_size}): for that size the published "
            f"configurations would have scales {fitting}. Detections are wrong unless these are the training's."
        )
    usual = next(iter(_candidates(found).values()))
    settled = [
        ("preprocess.resize", spec.preprocess.resize, usual.preprocess.resize),
        ("fpn.downsample_activation", spec.fpn.downsample_activation, usual.fpn.downsample_activation),
        ("protonet.align_corners", spec.protonet.align_corners, usual.protonet.align_corners),
    ]
    if found.trainer in OTHER_TRAINERS:  # the original has configurations of both kinds
        settled.append(("priors.use_square_anchors", spec.priors.use_square_anchors, usual.priors.use_square_anchors))
    doubts += [
        f"{what} is {json.dumps(said)} in the spec; the configurations of {found.trainer} have {json.dumps(expected)}. "
        "Detections are wrong unless the training had it so."
        for what, said, expected in settled
        if said != expected
    ]
    return tuple(doubts)


def _candidates(found: Architecture) -> dict[str, ModelSpec]:
    """The published configurations of the trainer."""
    return OTHER_TRAINERS.get(found.trainer, PUBLISHED)


def _backbone_fields(found: Architecture, base: ModelSpec) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if (found.stages, found.selected_layers) != (base.backbone.stages, base.backbone.selected_layers):
        fields |= {"stages": list(found.stages), "selected_layers": list(found.selected_layers)}
    if found.deformable_blocks != deformable_blocks(base.backbone):
        fields |= {"dcn_blocks": list(found.dcn_blocks), "dcn_interval": found.dcn_interval}
    return {"backbone": fields} if fields else {}


def _config_in_name(path: Path) -> str:
    match = _FILE_NAME.fullmatch(path.stem)
    return match["config"] if match else path.stem


def _from_tensors(path: Path, found: Architecture) -> ModelSpec:
    fitting = _fitting(found)
    if len(fitting) == 1:
        return _candidates(found)[fitting[0]]
    if fitting:
        raise CheckpointError(
            f"{path} fits {_listed(fitting)}: their tensors are alike, they differ in the input size, and nothing in "
            f"the file or its name tells which it is. Give --config {fitting[0]} (or another of these)."
        )
    raise CheckpointError(
        f"{path} fits no published configuration, and its file name names none.\n"
        f"Found in the tensors: {found.describe()}.\n"
        "Not in the tensors: input size, prior scales, class names, category ids, aspect ratios, image transform.\n"
        f"What to do: {_how_to_write_one(path, found)}"
    )


def _advice_on_published(path: Path, found: Architecture) -> str:
    fitting = _fitting(found)
    if fitting:
        options = " or ".join(f"--config {name}" for name in fitting)
        return f"Its tensors fit {_listed(fitting)}: give {options}."
    return f"If it was trained on your own classes: {_how_to_write_one(path, found)}"


def _advice_on_trainer(found: Architecture) -> str:
    if found.trainer not in OTHER_TRAINERS:
        return ""
    return f" Configurations of {found.trainer} that it can extend: {', '.join(_candidates(found))}."


def _how_to_write_one(path: Path, found: Architecture) -> str:
    name = _config_in_name(path)
    return (
        f"write this to {name}.json, correct the input size, class names and prior scales to those of the training, add "
        '"category_ids" if your annotations do not count 1, 2, 3, ... '
        f"in this order, and give --spec {name}.json:\n{starter_spec(found, name)}"
    )


def _fitting(found: Architecture) -> list[str]:
    return [name for name, spec in _candidates(found).items() if not differences(found, spec)]


def _nearest_published(found: Architecture) -> ModelSpec:
    """The published spec with this backbone and its deformable blocks, or with the backbone, or at least its kind."""
    candidates = _candidates(found)
    alike = [
        spec
        for spec in candidates.values()
        if (spec.backbone.kind, spec.backbone.stages) == (found.backbone_kind, found.stages)
    ]
    if alike:
        exact = (spec for spec in alike if deformable_blocks(spec.backbone) == found.deformable_blocks)
        return next(exact, alike[0])
    if found.trainer in OTHER_TRAINERS:
        return list(candidates.values())[-1]
    return PUBLISHED["yolact_darknet53" if found.backbone_kind == "darknet" else "yolact_resnet50"]


def _placeholder_priors(found: Architecture, base: ModelSpec) -> dict[str, Any]:
    levels = range(len(found.selected_layers) + found.num_downsample)
    if found.trainer in OTHER_TRAINERS and (found.per_cell, len(levels)) == (base.priors.per_cell, base.num_levels):
        return {"scales": encode(base.priors.scales), "aspect_ratios": encode(base.priors.aspect_ratios)}
    ratios = _ASPECT_RATIOS if found.per_cell % len(_ASPECT_RATIOS) == 0 else [1]
    octave = found.per_cell // len(ratios)
    return {
        "scales": [[round(_SMALLEST_SCALE * 2 ** (level + i / octave)) for i in range(octave)] for level in levels],
        "aspect_ratios": [ratios for _ in levels],
    }


def _one_field_per_line(fields: dict[str, Any]) -> str:
    lines = []
    for key, value in fields.items():
        text = json.dumps(value)
        if isinstance(value, list) and len(value) > _MAX_LISTED_CLASSES:
            shown = ", ".join(json.dumps(item) for item in value[:2])
            text = f"[{shown}, ... {json.dumps(value[-1])}]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
