"""What a checkpoint's tensors tell about the network they belong to, deformable blocks and the mask-IoU network of a YOLACT++
included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from exporters.checkpoints.trainers.mapping import ORIGINAL, Conventions, convolution_shape, examples
from yolact_deploy.errors import CheckpointError
from yolact_deploy.spec import BackboneKind, BackboneSpec, DownsampleSource, ModelSpec

_KNOWN_BACKBONES: dict[tuple[BackboneKind, tuple[int, ...]], str] = {
    ("resnet", (3, 4, 6, 3)): "ResNet50",
    ("resnet", (3, 4, 23, 3)): "ResNet101",
    ("resnet", (3, 8, 36, 3)): "ResNet152",
    ("darknet", (1, 2, 8, 8, 4)): "DarkNet53",
}
_UPSAMPLING = (None, -2)  # an upsampling has no weights; 2 is the only factor the published configurations use
_INDICES_PER_LAYER = 2  # of proto_net and of the mask-IoU network: every layer is followed by its ReLU
_DEFORMABLE = re.compile(r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.weight")
_MASK_IOU = re.compile(r"maskiou_net\.maskiou_net\.(\d+)\.weight")


@dataclass(frozen=True)
class Architecture:
    """The part of a `ModelSpec` that tensors show; they say nothing of the input size, prior scales or class names."""

    backbone_kind: BackboneKind
    stages: tuple[int, ...]
    selected_layers: tuple[int, ...]
    fpn_channels: int
    num_downsample: int
    protonet_layers: tuple[tuple[int | None, int], ...]
    head_layers: tuple[tuple[int, int], ...]
    head_kernel: int
    per_cell: int
    num_classes: int  # foreground
    dcn_blocks: tuple[int, ...] = ()  # as in BackboneSpec; () = none deformable
    dcn_interval: int = 1
    mask_iou_layers: tuple[tuple[int, int], ...] = ()
    downsample_source: DownsampleSource = "output"
    trainer: str = ORIGINAL
    conventions: Conventions | None = None  # of another trainer's code; the original's has options for them

    @property
    def backbone(self) -> str:
        """The backbone's name, "ResNet-101", or its stages where it has none."""
        return backbone_name(self.backbone_kind, self.stages)

    @property
    def num_prototypes(self) -> int:
        """K: prototypes, and so coefficients of a mask."""
        return self.protonet_layers[-1][0] or 0

    @property
    def deformable_blocks(self) -> list[list[int]]:
        """Numbers of the deformable blocks, per stage."""
        return deformable_blocks(
            BackboneSpec(self.backbone_kind, self.stages, self.selected_layers, self.dcn_blocks, self.dcn_interval)
        )

    def describe(self) -> str:
        """In a line, for people."""
        count = sum(map(len, self.deformable_blocks))
        plus = (f", {count} deformable blocks" if count else "") + (
            ", a mask-IoU network" if self.mask_iou_layers else ""
        )
        of_trainer = "" if self.trainer == ORIGINAL else f"{self.trainer}, "
        return (
            f"{of_trainer}{self.backbone}, FPN width {self.fpn_channels}, {self.num_classes} foreground classes, "
            f"{self.num_prototypes} prototypes, {self.per_cell} priors per cell{plus}"
        )


def infer_architecture(
    tensors: Mapping[str, Tensor],  # the original's names
    path: Path,  # named in errors
    *,
    trainer: str = ORIGINAL,
    conventions: Conventions | None = None,
) -> Architecture:
    """What the tensors show, and with them what the code of the `trainer` that they come from is known to compute.

    Raises CheckpointError when these are not the tensors of a whole YOLACT that is supported here.
    """
    _check_is_yolact(tensors, path)
    kind, stages, stage_channels = _backbone(tensors, path)
    channels_in = [
        convolution_shape(tensors, name, path)[1] for name in _numbered(tensors, r"fpn\.lat_layers\.(\d+)\.weight")
    ]
    if not channels_in or any(channels not in stage_channels for channels in channels_in):
        raise CheckpointError(
            f"{path}: the FPN takes {channels_in} channels, which is not what the stages of its "
            f"{backbone_name(kind, stages)} give ({stage_channels}). The file mixes two models."
        )
    box_channels = convolution_shape(tensors, "prediction_layers.0.bbox_layer.weight", path)[0]
    per_cell = box_channels // 4
    conf_channels = convolution_shape(tensors, "prediction_layers.0.conf_layer.weight", path)[0]
    mask_channels = convolution_shape(tensors, "prediction_layers.0.mask_layer.weight", path)[0]
    protonet_layers = _protonet(tensors, path)
    fitting = per_cell * (protonet_layers[-1][0] or 0)
    if not per_cell or box_channels % 4 or conf_channels % per_cell or mask_channels != fitting:
        raise CheckpointError(
            f"{path}: its prediction head gives {box_channels} box, {conf_channels} class and {mask_channels} "
            f"coefficient channels, which don't fit together with {protonet_layers[-1][0]} prototypes. "
            "Only heads with one coefficient per prototype are supported."
        )
    num_classes = conf_channels // per_cell - 1
    dcn_blocks, dcn_interval = _deformable_rule(tensors, kind, stages, path)
    return Architecture(
        backbone_kind=kind,
        stages=stages,
        selected_layers=tuple(stage_channels.index(channels) for channels in reversed(channels_in)),
        fpn_channels=convolution_shape(tensors, "fpn.lat_layers.0.weight", path)[0],
        num_downsample=len(_numbered(tensors, r"fpn\.downsample_layers\.(\d+)\.weight")),
        protonet_layers=protonet_layers,
        head_layers=tuple(
            (shape[0], shape[-1])
            for name in _numbered(tensors, r"prediction_layers\.0\.upfeature\.(\d+)\.weight")
            for shape in [convolution_shape(tensors, name, path)]
        ),
        head_kernel=convolution_shape(tensors, "prediction_layers.0.bbox_layer.weight", path)[-1],
        per_cell=per_cell,
        num_classes=num_classes,
        dcn_blocks=dcn_blocks,
        dcn_interval=dcn_interval,
        mask_iou_layers=_mask_iou_layers(tensors, num_classes, path),
        downsample_source=_downsample_source(tensors, conventions, path),
        trainer=trainer,
        conventions=conventions,
    )


def _check_is_yolact(tensors: Mapping[str, Tensor], path: Path) -> None:
    if any(re.match(r"prediction_layers\.[1-9]", name) for name in tensors):
        raise CheckpointError(f"{path} has a prediction head per FPN level; only the shared head is supported.")
    parts = ("backbone.layers.", "fpn.", "proto_net.", "prediction_layers.0.")
    missing = [part for part in parts if not any(name.startswith(part) for name in tensors)]
    if not missing:
        return
    if len(missing) == len(parts):
        if any(re.match(r"(layers?\.?\d\.|fc\.|conv1\.|_preconv\.)", name) for name in tensors):
            raise CheckpointError(
                f"{path} is a backbone trained on ImageNet, the file that YOLACT's training starts from, not a trained "
                "YOLACT. Give the checkpoint that training saved."
            )
        raise CheckpointError(f"{path} is not a YOLACT checkpoint: its tensors are named {examples(tensors)}.")
    old_names = "backbone.layers." in missing and any(name.startswith("backbone.layer1.") for name in tensors)
    reason = (
        "its backbone has only the names used before October 2018 (backbone.layer1...); load and save it with a later "
        "version of the original YOLACT"
        if old_names
        else f"it has no tensors named {', '.join(part + '*' for part in missing)}"
    )
    raise CheckpointError(f"{path} holds only a part of a YOLACT: {reason}.")


def _backbone(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[BackboneKind, tuple[int, ...], list[int]]:  # kind, blocks and output channels per stage
    if "backbone._preconv.0.weight" in tensors:
        kind: BackboneKind = "darknet"
        leader, last = 1, "conv2.0.weight"  # index 0 of a stage is its downsampling convolution
    elif "backbone.conv1.weight" in tensors:
        kind, leader, last = "resnet", 0, "conv3.weight"
    else:
        raise CheckpointError(f"{path} has neither a ResNet nor a DarkNet backbone, the two that are supported.")
    stages, channels = [], []
    num_stages = len({name.split(".")[2] for name in tensors if name.startswith("backbone.layers.")})
    for stage in range(num_stages):
        blocks = _numbered(tensors, rf"backbone\.layers\.{stage}\.(\d+)\.{re.escape(last)}")
        if not blocks:
            raise CheckpointError(
                f"{path}: stage {stage} of its {kind} backbone has no blocks that end in {last}; only the original's "
                "kinds of blocks (ResNet bottleneck, DarkNet) are supported."
            )
        numbers = [int(name.split(".")[3]) for name in blocks]
        if numbers != list(range(leader, leader + len(numbers))):
            raise CheckpointError(f"{path}: blocks are missing from stage {stage} of its backbone, found {numbers}.")
        stages.append(len(blocks))
        channels.append(convolution_shape(tensors, blocks[-1], path)[0])
    return kind, tuple(stages), channels


def _deformable_rule(
    tensors: Mapping[str, Tensor],
    kind: BackboneKind,
    stages: tuple[int, ...],
    path: Path,  # named in errors
) -> tuple[tuple[int, ...], int]:  # dcn_blocks and dcn_interval of a BackboneSpec; (), 1 for none
    """The rule of the original's configurations that gives these deformable blocks, with the smallest interval.

    Raises CheckpointError for deformable convolutions at other places, and for a choice of blocks that no rule gives.
    """
    names = [name for name in tensors if name.endswith("conv_offset_mask.weight")]
    if not names:
        return (), 1
    places = [_DEFORMABLE.fullmatch(name) for name in names]
    elsewhere = [name for name, place in zip(names, places, strict=True) if place is None or kind != "resnet"]
    if elsewhere:
        raise CheckpointError(
            f"{path} has a deformable convolution where none is supported, {elsewhere[0]}: only the 3x3 convolutions "
            "(conv2) of ResNet blocks can be deformable."
        )
    found = {(int(place[1]), int(place[2])) for place in places if place}
    layout = [tuple(sorted(block for at, block in found if at == stage)) for stage in range(len(stages))]
    for interval in range(1, max(stages) + 1):
        counts = [_count(layout[stage], blocks, interval) for stage, blocks in enumerate(stages)]
        known = tuple(count for count in counts if count is not None)
        if len(known) == len(stages):
            return known, interval
    raise CheckpointError(
        f"{path} has deformable blocks {[list(blocks) for blocks in layout]} in stages of {list(stages)} blocks, which no "
        "configuration of the original gives: it takes every n-th of the last blocks of a stage. The file mixes two models."
    )


def _count(layout: tuple[int, ...], blocks: int, interval: int) -> int | None:
    """How many last blocks of a stage may be deformable so that just `layout` is; None where no count gives that."""
    for count in range(blocks + 1):
        if BackboneSpec("resnet", (blocks,), (0,), (count,), interval).deformable_blocks(0) == layout:
            return count
    return None


def _downsample_source(tensors: Mapping[str, Tensor], conventions: Conventions | None, path: Path) -> DownsampleSource:
    usual: DownsampleSource = "output" if conventions is None else conventions.downsample_source
    if "fpn.downsample_layers.0.weight" not in tensors:
        return usual
    width, deepest = convolution_shape(tensors, "fpn.lat_layers.0.weight", path)[:2]
    channels = convolution_shape(tensors, "fpn.downsample_layers.0.weight", path)[1]
    if channels not in (width, deepest):
        raise CheckpointError(
            f"{path}: the first downsampled FPN level is made of {channels} channels; the FPN has {width} and the deepest "
            f"stage of its backbone {deepest}. The file mixes two models."
        )
    if width == deepest:
        return usual
    return "output" if channels == width else "backbone"


def _protonet(tensors: Mapping[str, Tensor], path: Path) -> tuple[tuple[int | None, int], ...]:
    layers: list[tuple[int | None, int]] = []
    expected_index = 0
    for name in _numbered(tensors, r"proto_net\.(\d+)\.weight"):
        index = int(name.split(".")[1])
        while expected_index < index:
            layers.append(_UPSAMPLING)
            expected_index += _INDICES_PER_LAYER
        channels, *_, kernel = convolution_shape(tensors, name, path)
        layers.append((channels, kernel))
        expected_index += _INDICES_PER_LAYER
    if not layers:
        raise CheckpointError(f"{path} has no prototype network (proto_net.*); only prototype masks are supported.")
    return tuple(layers)


def _mask_iou_layers(
    tensors: Mapping[str, Tensor],
    num_classes: int,
    path: Path,  # named in errors
) -> tuple[tuple[int, int], ...]:
    """(channels, kernel) of the layers of the mask-IoU network before the one that gives the classes; () for none.

    Raises CheckpointError when it is not whole or judges another number of classes.
    """
    numbers = sorted(int(match[1]) for match in map(_MASK_IOU.fullmatch, tensors) if match)
    if not numbers:
        return ()
    if numbers != list(range(0, _INDICES_PER_LAYER * len(numbers), _INDICES_PER_LAYER)):
        raise CheckpointError(f"{path}: layers are missing from its mask-IoU network, found {numbers}.")
    shapes = [convolution_shape(tensors, f"maskiou_net.maskiou_net.{number}.weight", path) for number in numbers]
    if len(shapes) < 2:
        raise CheckpointError(f"{path}: its mask-IoU network is no chain of convolutions, its weights are {shapes}.")
    if shapes[-1][0] != num_classes:
        raise CheckpointError(
            f"{path}: its mask-IoU network judges {shapes[-1][0]} classes, its prediction head has {num_classes}. "
            "The file mixes two models."
        )
    return tuple((shape[0], shape[-1]) for shape in shapes[:-1])


def _numbered(tensors: Mapping[str, Tensor], pattern: str) -> list[str]:
    """Names that match, in the order of the number in the pattern's group."""
    matches = [match for match in (re.fullmatch(pattern, name) for name in tensors) if match]
    return [match.string for match in sorted(matches, key=lambda match: int(match[1]))]


@dataclass(frozen=True)
class Difference:
    """Something of the tensors that contradicts a spec."""

    what: str
    found: str  # in the tensors
    expected: str  # by the spec

    def __str__(self) -> str:
        return f"{self.what}: found {self.found}, expected {self.expected}"


def differences(found: Architecture, spec: ModelSpec) -> tuple[Difference, ...]:
    """Where tensors contradict a spec, the likeliest cause of all others first; empty when they fit."""
    pairs = (
        ("backbone", found.backbone, backbone_name(spec.backbone.kind, spec.backbone.stages)),
        ("stages that feed the FPN", list(found.selected_layers), list(spec.backbone.selected_layers)),
        ("deformable blocks per stage", found.deformable_blocks, deformable_blocks(spec.backbone)),
        ("FPN width", found.fpn_channels, spec.fpn.channels),
        # Checkpoints of version 1.0 carry more of these layers than are used: too few is the only contradiction.
        ("downsampled FPN levels", min(found.num_downsample, spec.fpn.num_downsample), spec.fpn.num_downsample),
        ("source of the first downsampled level", found.downsample_source, spec.fpn.downsample_source),
        *_convention_pairs(found, spec),
        ("foreground classes", found.num_classes, spec.num_classes),
        ("prototypes", found.num_prototypes, spec.num_prototypes),
        ("prototype network layers", _lists(found.protonet_layers), _visible_protonet(spec)),
        ("priors per cell", found.per_cell, spec.priors.per_cell),
        ("shared head layers", _lists(found.head_layers), _lists(spec.head.extra_layers)),
        ("head kernel size", found.head_kernel, spec.head.kernel_size),
        ("mask-IoU network layers", _lists(found.mask_iou_layers), _lists(spec.mask_iou_layers)),
    )
    return tuple(Difference(what, str(seen), str(wanted)) for what, seen, wanted in pairs if seen != wanted)


def _convention_pairs(found: Architecture, spec: ModelSpec) -> tuple[tuple[str, object, object], ...]:
    if found.conventions is None:
        return ()
    of, fpn = f"(by the code of {found.trainer})", spec.fpn
    return (
        (f"ReLU on FPN outputs {of}", found.conventions.relu_pred_layers, fpn.relu_pred_layers),
        (
            f"activation of downsampled FPN levels {of}",
            found.conventions.downsample_activation,
            fpn.downsample_activation,
        ),
        (
            f"align_corners of the prototypes' upsampling {of}",
            found.conventions.align_corners,
            spec.protonet.align_corners,
        ),
    )


def _visible_protonet(spec: ModelSpec) -> list[list[int | None]]:
    # The factor of an upsampling leaves no trace in the tensors.
    return _lists(_UPSAMPLING if channels is None else (channels, kernel) for channels, kernel in spec.protonet.layers)


def _lists(layers: Iterable[tuple[int | None, int]]) -> list[list[int | None]]:
    return [list(layer) for layer in layers]


def backbone_name(kind: BackboneKind, stages: tuple[int, ...]) -> str:
    """ "ResNet-101" and so on, or the stages of one that has no name."""
    known = _KNOWN_BACKBONES.get((kind, stages))
    family = {"resnet": "ResNet", "darknet": "DarkNet"}[kind]
    return known or f"{family} with stages {list(stages)}"


def deformable_blocks(backbone: BackboneSpec) -> list[list[int]]:
    """Per stage, the numbers of its deformable blocks."""
    return [list(backbone.deformable_blocks(stage)) for stage in range(len(backbone.stages))]
