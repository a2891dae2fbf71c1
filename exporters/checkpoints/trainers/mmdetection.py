"""YOLACT of mmdetection, 2.x and 3.x (open-mmlab/mmdetection, configs/yolact).

Facts, from mmdet/models/dense_heads/yolact_head.py, mmdet/models/necks/fpn.py, mmdet/core/anchor/anchor_generator.py and
configs/yolact/yolact_r50_1x8_coco.py (2.x), yolact_r50_1xb8-55e_coco.py (3.x):

- ResNet with torchvision's names; neck FPN with lateral_convs and fpn_convs shallowest first, outputs without ReLU, and
  `add_extra_convs="on_input"`: the first extra level is made of the backbone's last stage, without ReLU.
- Class scores with the background last (CrossEntropyLoss without sigmoid); the original has it first.
- Anchors of ratios 0.5, 1, 2 height to width and 3 times 8, 16, 32, 64, 128 pixels; their order in a cell is that order.
- The semantic branch is segm_head.segm_conv in 2.x and mask_head.segm_branch.segm_conv in 3.x; it only trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from exporters.checkpoints.trainers.mapping import Conventions, Rule, Trainer, convolution_shape, count, rename
from yolact_deploy.errors import CheckpointError

NAME = "mmdetection"
_HEAD = {"reg": "bbox_layer", "cls": "conf_layer", "coeff": "mask_layer"}
_CONV = "prediction_layers.0.conf_layer"
_RELU_AFTER_EACH = 2  # indices that a convolution and its ReLU take


def _convert(stored: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    laterals = count(r"neck\.lateral_convs\.\d+\.conv\.weight", stored)

    def pyramid(match: re.Match[str]) -> str:
        number = int(match[1])
        if number < laterals:
            return f"fpn.pred_layers.{laterals - 1 - number}.{match[2]}"
        return f"fpn.downsample_layers.{number - laterals}.{match[2]}"

    rules: tuple[Rule, ...] = (
        (r"backbone\.((conv1|bn1)\..+)", r"backbone.\1"),
        (r"backbone\.layer(\d+)\.(.+)", lambda m: f"backbone.layers.{int(m[1]) - 1}.{m[2]}"),
        (
            r"neck\.lateral_convs\.(\d+)\.conv\.(weight|bias)",
            lambda m: f"fpn.lat_layers.{laterals - 1 - int(m[1])}.{m[2]}",
        ),
        (r"neck\.fpn_convs\.(\d+)\.conv\.(weight|bias)", pyramid),
        (
            r"bbox_head\.head_convs\.(\d+)\.conv\.(weight|bias)",
            lambda m: f"prediction_layers.0.upfeature.{_RELU_AFTER_EACH * int(m[1])}.{m[2]}",
        ),
        (
            r"bbox_head\.conv_(reg|cls|coeff)\.(weight|bias)",
            lambda m: f"prediction_layers.0.{_HEAD[m[1]]}.{m[2]}",
        ),
        (r"mask_head\.protonet\.(\d+)\.(weight|bias)", r"proto_net.\1.\2"),
        (r"(?:segm_head|mask_head\.segm_branch)\.segm_conv\.(weight|bias)", r"semantic_seg_conv.\1"),
    )
    tensors, sources = rename(stored, rules, NAME, path)
    _check_extra_levels(tensors, path)
    per_cell = convolution_shape(tensors, "prediction_layers.0.bbox_layer.weight", path)[0] // 4
    _check_softmax(tensors, per_cell, path)
    for kind in ("weight", "bias"):
        tensors[f"{_CONV}.{kind}"] = background_first(tensors[f"{_CONV}.{kind}"], per_cell)
    return tensors, sources, ("the background class was moved from the last to the first place.",)


def background_first(
    rows: Tensor,  # [per_cell * (C + 1), ...], background last in every group of C + 1
    per_cell: int,
) -> Tensor:
    """The same rows with the background first in every group."""
    groups = rows.reshape(per_cell, -1, *rows.shape[1:])
    return torch.cat([groups[:, -1:], groups[:, :-1]], dim=1).reshape(rows.shape)


def _check_extra_levels(tensors: Mapping[str, Tensor], path: Path) -> None:
    deepest = convolution_shape(tensors, "fpn.lat_layers.0.weight", path)[1]
    name = "fpn.downsample_layers.0.weight"
    first = convolution_shape(tensors, name, path)[1] if name in tensors else deepest
    if first != deepest:
        raise CheckpointError(
            f"{path}: the first extra level of its neck is made of {first} channels, the backbone's last stage has "
            f"{deepest}. It was trained with add_extra_convs other than on_input, and no tensor shows which; only on_input, "
            "which mmdetection's YOLACT configurations have, is supported."
        )


def _check_softmax(tensors: Mapping[str, Tensor], per_cell: int, path: Path) -> None:
    rows = convolution_shape(tensors, f"{_CONV}.weight", path)[0]
    if not per_cell or rows % per_cell:
        raise CheckpointError(
            f"{path}: bbox_head.conv_cls gives {rows} channels, which is no multiple of the {per_cell} anchors per cell "
            "that bbox_head.conv_reg has."
        )
    semantic = tensors.get("semantic_seg_conv.weight")
    if semantic is not None and semantic.ndim and rows == per_cell * semantic.shape[0]:
        raise CheckpointError(
            f"{path} scores {semantic.shape[0]} classes without a background (bbox_head.conv_cls has {rows} = {per_cell} x "
            f"{semantic.shape[0]} channels): it was trained with use_sigmoid=True, and only softmax scores are supported."
        )
    bias = tensors.get(f"{_CONV}.bias")
    if bias is None or bias.shape != (rows,):
        raise CheckpointError(
            f"{path} holds only a part of a YOLACT: bbox_head.conv_cls has no bias for its {rows} channels."
        )


TRAINER = Trainer(
    name=NAME,
    signature=r"(bbox_head|mask_head|segm_head|neck|roi_head|rpn_head)\.",
    required=(
        ("ResNet", r"backbone\.layer1\.0\.conv3\.weight"),
        ("FPN", r"neck\.lateral_convs\.\d+\.conv\.weight"),
        ("FPN outputs", r"neck\.fpn_convs\.\d+\.conv\.weight"),
        ("box convolution", r"bbox_head\.conv_reg\.weight"),
        ("class convolution", r"bbox_head\.conv_cls\.weight"),
        ("mask coefficients", r"bbox_head\.conv_coeff\.weight"),
        ("prototype network", r"mask_head\.protonet\."),
    ),
    refused=(
        (r"(roi_head|rpn_head)\.", "it is a two-stage detector, not a YOLACT"),
        (
            r"backbone\.(stages|patch_embed)\.",
            "its backbone is no ResNet, and only ResNets of bottlenecks are supported",
        ),
        (r"backbone\.stem\.", "its ResNet has a deep stem (ResNetV1d), which is not supported"),
        (r"backbone\..*\.conv_offset\.", "mmdetection's deformable backbones are not supported"),
        (r"neck\..*\.(bn|gn)\.", "its FPN has normalisation layers (norm_cfg), which no YOLACT configuration has"),
        (r"bbox_head\.head_convs\.\d+\.(bn|gn)\.", "its head has normalisation layers (norm_cfg)"),
    ),
    conventions=Conventions(relu_pred_layers=False, downsample_source="backbone"),
    convert=_convert,
)
