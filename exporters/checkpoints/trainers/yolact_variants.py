"""Two trainers whose networks are the original's under other names.

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
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from exporters.checkpoints.trainers.mapping import Conventions, Rule, Trainer, count, first_match, rename

EDGE = "YolactEdge"
_VIDEO = r"(flow_net|flow_net_pre_convs|spa|partial_backbone)\..+"
MINIMAL = "Yolact_minimal"
_INDICES_PER_ENTRY = 2  # of the original's proto_net: every entry is followed by its ReLU


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
    tensors, sources = rename(stored, rules, EDGE, path)
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
    name=EDGE,
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
    tensors, sources = rename(stored, rules, MINIMAL, path)
    return tensors, sources, ()


YOLACT_MINIMAL = Trainer(
    name=MINIMAL,
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
