"""The other trainers whose checkpoints are read, and what is known of their networks.

YolactEdge (haotian-liu/yolact_edge), its model of single images. Facts, from yolact_edge/yolact.py, backbone.py,
mod_dcn_v2.py and data/config.py of that repository:

- The original's network and names, except for the FPN, which is split: fpn_phase_1.lat_layers (the sums), and
  fpn_phase_2.pred_layers and downsample_layers (the outputs). Anchors, normalisation and suppression are the original's.
- Video models add flow_net, flow_net_pre_convs and spa, which carry features from a key frame to the next ones. Key frames
  and single images (`extras["backbone"] == "full"`) pass through neither; so does its own evaluation of images.
- Deformable convolutions have mmcv's name for the layer of offsets and masks, conv_offset, in the original's order.

Yolact_minimal (feiyuhuahuo/Yolact_minimal), since it has names of its own. Facts, from modules/yolact.py, config.py,
utils/box_utils.py, utils/augmentations.py and utils/output_utils.py at commit 2b35fd8c of that repository:

- FPN with lat_layers and pred_layers shallowest first; every stride-2 convolution is followed by a ReLU. Levels double in
  size upwards (nn.Upsample(2)), which is the original's interpolation where sizes are multiples of 32; its code asserts it.
- Prototype network in two parts around an upsampling with align_corners=True.
- One prediction head, stored without a number; the coefficients' layer is called coef_layer.
- Anchors of 24 to 384 pixels at an input of 544, ratios 1, 0.5, 2 width to height, not made square.
- The image is padded with the mean colour to a square, in its top left, and then resized; so are boxes and masks read.

Earlier checkpoints of Yolact_minimal have the original's names, and are read as the original's.

YOLACT of mmdetection, 2.x and 3.x (open-mmlab/mmdetection, configs/yolact).

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

from exporters.checkpoints.trainers.mapping import (
    Conventions,
    Rule,
    Trainer,
    convolution_shape,
    count,
    first_match,
    rename,
)
from yolact_deploy.errors import CheckpointError

_EDGE = "YolactEdge"
_VIDEO = r"(flow_net|flow_net_pre_convs|spa|partial_backbone)\..+"
_MINIMAL = "Yolact_minimal"
_INDICES_PER_ENTRY = 2  # of the original's proto_net: every entry is followed by its ReLU
_MMDETECTION = "mmdetection"
_HEAD = {"reg": "bbox_layer", "cls": "conf_layer", "coeff": "mask_layer"}
_CONV = "prediction_layers.0.conf_layer"
_RELU_AFTER_EACH = 2  # indices that a convolution and its ReLU take


def _convert_edge(
    stored: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    rules: tuple[Rule, ...] = (
        (_VIDEO, lambda _: None),
        (r"fpn_phase_1\.(lat_layers\.\d+\.(?:weight|bias))", r"fpn.\1"),
        (r"fpn_phase_2\.((?:pred|downsample)_layers\.\d+\.(?:weight|bias))", r"fpn.\1"),
        (r"(backbone\..+)\.conv_offset\.(weight|bias)", r"\1.conv_offset_mask.\2"),
        (r"(backbone|fpn|proto_net|prediction_layers|semantic_seg_conv)\..+", r"\g<0>"),
    )
    tensors, sources = rename(stored, rules, _EDGE, path)
    video = [name for name in stored if first_match(_VIDEO, {name: stored[name]}) is not None]
    if not video:
        return tensors, sources, ()
    parts = ", ".join(sorted({name.split(".")[0] for name in video}))
    return (
        tensors,
        sources,
        (
            f"ignored {len(video)} tensors that carry features between video frames ({parts}): single images do not use them.",
        ),
    )


YOLACT_EDGE = Trainer(
    name=_EDGE,
    signature=r"fpn_phase_[12]\.",
    required=(
        ("backbone", r"backbone\.layers\."),
        ("FPN sums", r"fpn_phase_1\.lat_layers\."),
        ("FPN outputs", r"fpn_phase_2\.pred_layers\."),
        ("prediction head", r"prediction_layers\.0\."),
        ("prototype network", r"proto_net\.\d+\.weight"),
    ),
    refused=(
        (
            r"backbone\.layers\.\d+\.\d+\.conv\.\d+\.",
            "its backbone is a MobileNetV2 (yolact_edge_mobilenetv2), which is not built here; only ResNets and DarkNets are "
            "supported",
        ),
    ),
    conventions=Conventions(),
    convert=_convert_edge,
)


def _convert_minimal(
    stored: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    laterals = count(r"fpn\.lat_layers\.\d+\.weight", stored)
    # the entries before the upsampling, and the upsampling itself
    second = _INDICES_PER_ENTRY * (count(r"proto_net\.proto1\.\d+\.weight", stored) + 1)
    rules: tuple[Rule, ...] = (
        (r"backbone\.(conv1|bn1|layers\.\d+)\..+", r"\g<0>"),
        (r"fpn\.lat_layers\.(\d+)\.(weight|bias)", lambda m: f"fpn.lat_layers.{laterals - 1 - int(m[1])}.{m[2]}"),
        (r"fpn\.pred_layers\.(\d+)\.0\.(weight|bias)", lambda m: f"fpn.pred_layers.{laterals - 1 - int(m[1])}.{m[2]}"),
        (r"fpn\.downsample_layers\.(\d+)\.0\.(weight|bias)", r"fpn.downsample_layers.\1.\2"),
        (r"proto_net\.proto1\.(\d+)\.(weight|bias)", r"proto_net.\1.\2"),
        (r"proto_net\.proto2\.(\d+)\.(weight|bias)", lambda m: f"proto_net.{second + int(m[1])}.{m[2]}"),
        (r"prediction_layers\.(upfeature\.\d+|bbox_layer|conf_layer)\.(weight|bias)", r"prediction_layers.0.\1.\2"),
        (r"prediction_layers\.coef_layer\.0\.(weight|bias)", r"prediction_layers.0.mask_layer.\1"),
        (r"semantic_seg_conv\..+", r"\g<0>"),
    )
    tensors, sources = rename(stored, rules, _MINIMAL, path)
    return tensors, sources, ()


YOLACT_MINIMAL = Trainer(
    name=_MINIMAL,
    signature=(
        r"proto_net\.proto[12]\.|prediction_layers\.(upfeature|bbox_layer|conf_layer|coef_layer)\."
        r"|fpn\.(pred|downsample)_layers\.\d+\.0\."
    ),
    required=(
        ("ResNet", r"backbone\.layers\.0\.0\.conv3\.weight"),
        ("FPN", r"fpn\.lat_layers\.\d+\.weight"),
        ("FPN outputs", r"fpn\.pred_layers\.\d+\.0\.weight"),
        ("box convolution", r"prediction_layers\.bbox_layer\.weight"),
        ("class convolution", r"prediction_layers\.conf_layer\.weight"),
        ("mask coefficients", r"prediction_layers\.coef_layer\.0\.weight"),
        ("first part of the prototype network", r"proto_net\.proto1\."),
        ("second part of the prototype network", r"proto_net\.proto2\."),
    ),
    refused=(
        (
            r"backbone\.(patch_embed|layers\.\d+\.blocks)",
            "its backbone is a Swin or pyramid transformer, whose attention is not built here; only ResNets are supported",
        ),
    ),
    conventions=Conventions(downsample_activation="relu", align_corners=True),
    convert=_convert_minimal,
)


def _convert_mmdetection(
    stored: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
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
    tensors, sources = rename(stored, rules, _MMDETECTION, path)
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


MMDETECTION = Trainer(
    name=_MMDETECTION,
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
    convert=_convert_mmdetection,
)
