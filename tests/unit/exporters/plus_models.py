"""A YOLACT++ small enough to export in seconds, with weights under which its deformable convolutions matter."""

from __future__ import annotations

import torch

from exporters.network.yolact import Yolact
from yolact_deploy.spec import BackboneSpec, FpnSpec, HeadSpec, ModelSpec, PostprocessSpec, PriorsSpec, ProtonetSpec

SMALL_PLUS = ModelSpec(
    name="small_plus",
    input_size=65,  # odd, so that levels are not whole multiples of each other
    backbone=BackboneSpec("resnet", (1, 2, 1), (1, 2), dcn_blocks=(0, 2, 1)),
    class_names=("a", "b", "c"),
    category_ids=(1, 2, 3),
    priors=PriorsSpec(((8, 10, 12),) * 3, ((1.0, 0.5, 2.0),) * 3, use_square_anchors=False),
    fpn=FpnSpec(channels=16, num_downsample=1),
    protonet=ProtonetSpec(((16, 3), (None, -2), (8, 1))),
    head=HeadSpec(extra_layers=((16, 3),)),
    # A prior counts from this score on: random heads give few below it, and none that are sure.
    postprocess=PostprocessSpec(conf_threshold=0.2, max_detections=20),
    mask_iou_layers=((8, 3), (16, 3)),
)


def random_plus() -> Yolact:
    """Offsets of several pixels, other statistics than the identity in every batch norm, outputs of order 1."""
    torch.manual_seed(0)
    model = Yolact(SMALL_PLUS).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        if "conv_offset_mask" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    model.get_parameter("maskiou_net.maskiou_net.4.bias").fill_(0.5)  # so that its last ReLU lets something through
    return model
