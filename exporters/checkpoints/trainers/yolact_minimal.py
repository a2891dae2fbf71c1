"""Yolact_minimal (feiyuhuahuo/Yolact_minimal), since it has names of its own.

Facts, from modules/yolact.py, config.py, utils/box_utils.py, utils/augmentations.py and utils/output_utils.py at commit
2b35fd8c of that repository:

- FPN with lat_layers and pred_layers shallowest first; every stride-2 convolution is followed by a ReLU. Levels double in
  size upwards (nn.Upsample(2)), which is the original's interpolation where sizes are multiples of 32; its code asserts it.
- Prototype network in two parts around an upsampling with align_corners=True.
- One prediction head, stored without a number; the coefficients' layer is called coef_layer.
- Anchors of 24 to 384 pixels at an input of 544, ratios 1, 0.5, 2 width to height, not made square.
- The image is padded with the mean colour to a square, in its top left, and then resized; so are boxes and masks read.

Earlier checkpoints have the original's names, and are read as the original's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from exporters.checkpoints.trainers.mapping import Conventions, Rule, Trainer, count, rename

NAME = "Yolact_minimal"
_INDICES_PER_ENTRY = 2  # of the original's proto_net: every entry is followed by its ReLU


def _convert(stored: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
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
        (r"semantic_seg_conv\.(weight|bias)", r"\g<0>"),
    )
    tensors, sources = rename(stored, rules, NAME, path)
    return tensors, sources, ()


TRAINER = Trainer(
    name=NAME,
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
    convert=_convert,
)
