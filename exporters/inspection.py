"""What `yolact-deploy inspect` tells: of an ONNX, a plan or a spec what the file says of itself; of a checkpoint what is known of
its model, value by value, and from where: a tensor of the file, the trainer, or the spec."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_deploy.arguments import check_paths
from yolact_deploy.artifacts.names import is_onnx, is_plan
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.artifacts.open import inspect_onnx, inspect_plan
from yolact_deploy.errors import ArtifactError, CheckpointError, SpecError
from yolact_deploy.files import is_file, sha256_file, what_is_there
from yolact_deploy.optional import require_export
from yolact_deploy.runtime.opening import cpu_runtime
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import JsonError, encode, read_json

if TYPE_CHECKING:
    from torch import Tensor

    from exporters.checkpoints.checkpoint import CheckpointContent
    from exporters.checkpoints.spec_choice import SpecChoice

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
# What else has .json behind its name, by keys that it has and a spec has not.
_OTHER_JSON = {
    frozenset(("plan_sha256", "plan_bytes")): "the sidecar of a plan; inspect the plan beside it",
    frozenset(("plan_sha256", "layers")): "the layers of a plan; inspect the plan beside it",
    frozenset(("calibrator", "tensors")): "the ranges of a calibration (--calib-cache)",
    frozenset(("environment", "runs")): "what `bench --json` printed",
    frozenset(("images", "failed")): "what `detect --json` printed",
    frozenset(("bbox", "segm")): "what `eval --json` printed",
    frozenset(("images", "annotations")): "COCO annotations",
    frozenset(("image_id", "category_id")): "COCO results (`detect --coco`)",
}


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


def inspect(artifact: str | os.PathLike[str]) -> dict[str, Any]:
    """All that an artifact tells of itself, as a JSON object; "kind" says of what: "checkpoint", "onnx", "plan" or "spec".

    Each has its "path", and its "spec" where there is one. ONNX files and plans are told without PyTorch, ONNX or TensorRT;
    of a checkpoint, "inferred" says which tensor shows what, of an ONNX, "cpu_runtime" what "auto" would run it in here.

    Raises OptionError for what is no path, ArtifactError for what is not there, no ONNX, or JSON of another kind,
    PlanMismatchError for a plan that is not its sidecar's, SpecError for a malformed spec file, CheckpointError for a file
    that is no YOLACT, MissingDependencyError for a checkpoint without PyTorch.

    >>> found = inspect("model.onnx")
    >>> found["kind"], found["precision"], found["io_tensors"][0]["name"]
    ('onnx', 'fp32', 'image')
    """
    check_paths(artifact=artifact)
    path = Path(artifact)
    if not is_file(path):
        raise ArtifactError(f"{path} {what_is_there(path)}; nothing to inspect.")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty (0 bytes). Copy or download it again.")
    if is_onnx(path):
        file = open_onnx(path)
        return {**inspect_onnx(file), "cpu_runtime": cpu_runtime(file)}
    if is_plan(path):
        return inspect_plan(path)
    if path.suffix.lower() == ".json":
        return _inspect_spec(path)
    require_export("reading a checkpoint")
    return inspect_checkpoint(path)


def _inspect_spec(path: Path) -> dict[str, Any]:
    from exporters.checkpoints.configs import EXTENDS, load_spec

    try:
        content = read_json(path)
    except OSError as exc:
        raise ArtifactError(f"can't read {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise ArtifactError(f"{path} is not valid JSON: {exc}.") from exc
    first = content[0] if isinstance(content, list) and content else content
    keys = set(first) if isinstance(first, dict) else set()
    of_another_kind = next((what for known, what in _OTHER_JSON.items() if known <= keys), None)
    if of_another_kind is not None:
        raise ArtifactError(f"{path} is no artifact: it is {of_another_kind}.")
    of_specs = {EXTENDS, *(field.name for field in dataclasses.fields(ModelSpec))}
    if not isinstance(content, dict) or not keys & of_specs:
        raise ArtifactError(f"{path} is no artifact: it is JSON without any of the fields of a spec.")
    return {"kind": "spec", "path": str(path), "spec": load_spec(path).to_dict()}


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """JSON-able facts: "architecture" as the tensors show it, and the "spec" where name or tensors decide it; where they
    do not, "spec" is None and "spec_error" says what to give. "inferred" has every value with the tensor it was seen in,
    "not_in_tensors" the others with where they come from. Raises CheckpointError for a file that is no YOLACT.
    """
    from exporters.checkpoints.checkpoint import read_checkpoint
    from exporters.checkpoints.spec_choice import choose_spec

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
