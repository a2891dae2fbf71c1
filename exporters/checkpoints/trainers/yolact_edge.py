"""YolactEdge (haotian-liu/yolact_edge), its model of single images.

Facts, from yolact_edge/yolact.py, backbone.py, mod_dcn_v2.py and data/config.py of that repository:

- The original's network and names, except for the FPN, which is split: fpn_phase_1.lat_layers (the sums), and
  fpn_phase_2.pred_layers and downsample_layers (the outputs). Anchors, normalisation and suppression are the original's.
- Video models add flow_net, flow_net_pre_convs and spa, which carry features from a key frame to the next ones. Key frames
  and single images (`extras["backbone"] == "full"`) pass through neither; so does its own evaluation of images.
- Deformable convolutions have mmcv's name for the layer of offsets and masks, conv_offset, in the original's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from exporters.checkpoints.trainers.mapping import Conventions, Rule, Trainer, first_match, rename

NAME = "YolactEdge"
_VIDEO = r"(flow_net|flow_net_pre_convs|spa|partial_backbone)\..+"


def _convert(stored: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    rules: tuple[Rule, ...] = (
        (_VIDEO, lambda _: None),
        (r"fpn_phase_1\.(lat_layers\.\d+\.(?:weight|bias))", r"fpn.\1"),
        (r"fpn_phase_2\.((?:pred|downsample)_layers\.\d+\.(?:weight|bias))", r"fpn.\1"),
        (r"(backbone\..+)\.conv_offset\.(weight|bias)", r"\1.conv_offset_mask.\2"),
        (r"(backbone|fpn|proto_net|prediction_layers|semantic_seg_conv)\..+", r"\g<0>"),
    )
    tensors, sources = rename(stored, rules, NAME, path)
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


TRAINER = Trainer(
    name=NAME,
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
    convert=_convert,
)
