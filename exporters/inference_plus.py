"""What a checkpoint's tensors tell about the two things that YOLACT++ adds: deformable blocks and the mask-IoU network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from yolact_deploy.errors import CheckpointError
from yolact_deploy.spec import BackboneKind, BackboneSpec

_DEFORMABLE = re.compile(r"backbone\.layers\.(\d+)\.(\d+)\.conv2\.conv_offset_mask\.weight")
_MASK_IOU = re.compile(r"maskiou_net\.maskiou_net\.(\d+)\.weight")
_INDICES_PER_LAYER = 2  # of the mask-IoU network: every convolution is followed by its ReLU


def infer_deformable_blocks(
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


def infer_mask_iou(
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
    shapes = [tuple(tensors[f"maskiou_net.maskiou_net.{number}.weight"].shape) for number in numbers]
    if any(len(shape) != 4 for shape in shapes) or len(shapes) < 2:
        raise CheckpointError(f"{path}: its mask-IoU network is no chain of convolutions, its weights are {shapes}.")
    if shapes[-1][0] != num_classes:
        raise CheckpointError(
            f"{path}: its mask-IoU network judges {shapes[-1][0]} classes, its prediction head has {num_classes}. "
            "The file mixes two models."
        )
    return tuple((shape[0], shape[-1]) for shape in shapes[:-1])


def _count(layout: tuple[int, ...], blocks: int, interval: int) -> int | None:
    """How many last blocks of a stage may be deformable so that just `layout` is; None where no count gives that."""
    for count in range(blocks + 1):
        if BackboneSpec("resnet", (blocks,), (0,), (count,), interval).deformable_blocks(0) == layout:
            return count
    return None
