"""The PyTorch YOLACT of a `ModelSpec`, with the original's parameter names in their order (dbolya/yolact, yolact.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.backbones import build_backbone
from exporters.mask_iou_net import MaskIouNet
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import FpnSpec, HeadSpec, ModelSpec, ProtonetSpec


class Heads(NamedTuple):
    """What the network computes for a batch; the order is that of the ONNX outputs."""

    loc: Tensor  # [B, P, 4]
    conf: Tensor  # [B, P, 1 + C], softmaxed unless the spec says logits
    mask_coeff: Tensor  # [B, P, K], after tanh
    proto: Tensor  # [B, Hp, Wp, K], after ReLU


class Yolact(nn.Module):
    """YOLACT and YOLACT++ for inference. Raises SpecError for ReLU on downsampled FPN levels.

    `maskiou_net` is not part of `forward`: it judges the masks of detections, which are made from what `forward` gives.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.backbone)
        self.proto_net = _protonet(spec.fpn.channels, spec.protonet)
        self.maskiou_net = MaskIouNet(spec.mask_iou_layers, spec.num_classes) if spec.mask_iou_layers else None
        self.fpn = Fpn([self.backbone.channels[i] for i in spec.backbone.selected_layers], spec.fpn)
        # One entry, used for every level: the original shares it and stores it once.
        self.prediction_layers = nn.ModuleList(
            [PredictionHead(spec.fpn.channels, spec.head, spec.priors.per_cell, spec.num_classes, spec.num_prototypes)]
        )
        # A training loss of the original. Kept so that checkpoints load whole; never run.
        self.semantic_seg_conv = nn.Conv2d(spec.fpn.channels, spec.num_classes, 1)

    def forward(
        self,
        image: Tensor,  # float32 [B, 3, S, S], preprocessed as the spec says
    ) -> Heads:
        levels = self.pyramid(image)
        proto = F.relu(self.proto_net(levels[self.spec.protonet.src_level])).permute(0, 2, 3, 1).contiguous()
        head = self.prediction_layers[0]
        per_level = [head(level) for level in levels]
        loc, conf, mask_coeff = (torch.cat(parts, dim=1) for parts in zip(*per_level, strict=True))
        if self.spec.conf_activation == "softmax":
            conf = F.softmax(conf, dim=-1)
        return Heads(loc, conf, torch.tanh(mask_coeff), proto)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """FPN levels [B, channels, S', S'], shallowest (P3) first."""
        stages = self.backbone(image)
        levels: list[Tensor] = self.fpn([stages[i] for i in self.spec.backbone.selected_layers])
        return levels


class Fpn(nn.Module):
    """Feature pyramid; `lat_layers` and `pred_layers` are stored deepest level first, as in the original."""

    def __init__(self, channels_in: Sequence[int], spec: FpnSpec) -> None:
        super().__init__()
        if spec.relu_downsample_layers:
            raise SpecError(
                "fpn.relu_downsample_layers is true, which no published configuration uses and no recorded result of "
                'the original covers. Set it to false; "downsample_activation": "relu" is what Yolact_minimal does.'
            )
        self.relu_pred_layers = spec.relu_pred_layers
        self.relu_downsampled = spec.downsample_activation == "relu"
        self.downsamples_backbone = spec.downsample_source == "backbone"
        width = spec.channels
        self.lat_layers = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in reversed(channels_in))
        self.pred_layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels_in)
        sources = [channels_in[-1] if self.downsamples_backbone else width] + [width] * spec.num_downsample
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(channels, width, 3, stride=2, padding=1) for channels in sources[: spec.num_downsample]
        )

    def forward(
        self,
        features: list[Tensor],  # per selected stage [B, channels, S', S'], shallowest first
    ) -> list[Tensor]:
        merged: list[Tensor] = []  # deepest first
        for lateral_conv, feature in zip(self.lat_layers, reversed(features), strict=True):
            lateral = lateral_conv(feature)
            if merged:
                height, width = lateral.shape[-2:]
                upsampled = F.interpolate(merged[-1], size=(height, width), mode="bilinear", align_corners=False)
                lateral = upsampled + lateral
            merged.append(lateral)
        levels = [conv(x) for conv, x in zip(self.pred_layers, merged, strict=True)]
        if self.relu_pred_layers:
            levels = [F.relu(x) for x in levels]
        levels.reverse()
        x = features[-1] if self.downsamples_backbone else levels[-1]
        for conv in self.downsample_layers:
            x = F.relu(conv(x)) if self.relu_downsampled else conv(x)
            levels.append(x)
        return levels


class PredictionHead(nn.Module):
    """Box, class and mask-coefficient convolutions behind shared ones; priors of a cell are next to each other."""

    def __init__(self, channels: int, spec: HeadSpec, per_cell: int, num_classes: int, num_prototypes: int) -> None:
        super().__init__()
        self.upfeature: nn.Sequential | None = None
        if spec.extra_layers:
            shared: list[nn.Module] = []
            for width, kernel in spec.extra_layers:
                shared += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
                channels = width
            self.upfeature = nn.Sequential(*shared)
        self.bbox_layer, self.conf_layer, self.mask_layer = (
            nn.Conv2d(channels, per_cell * width, spec.kernel_size, padding=spec.kernel_size // 2)
            for width in (4, 1 + num_classes, num_prototypes)
        )
        self.widths = (4, 1 + num_classes, num_prototypes)

    def forward(
        self,
        level: Tensor,  # [B, channels, h, w]
    ) -> tuple[Tensor, Tensor, Tensor]:  # [B, h * w * per_cell, 4 | 1 + C | K], coefficients before tanh
        x = level if self.upfeature is None else self.upfeature(level)
        loc, conf, mask_coeff = (
            _rows(layer(x), width)
            for layer, width in zip((self.bbox_layer, self.conf_layer, self.mask_layer), self.widths, strict=True)
        )
        return loc, conf, mask_coeff


class _Upsample(nn.Module):
    """Bilinear upsampling by a whole factor; a module, because it takes an index in `proto_net`."""

    def __init__(self, factor: int, align_corners: bool) -> None:
        super().__init__()
        self.factor, self.align_corners = factor, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=self.align_corners)


def _protonet(channels: int, spec: ProtonetSpec) -> nn.Sequential:
    """A ReLU follows every entry but the last, the upsampling too, so that the indices are the original's."""
    modules: list[nn.Module] = []
    for width, kernel in spec.layers:
        if width is None:
            modules.append(_Upsample(-kernel, spec.align_corners))
        else:
            modules.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2))
            channels = width
        modules.append(nn.ReLU())
    return nn.Sequential(*modules[:-1])


def _rows(
    x: Tensor,  # [B, per_cell * width, h, w]
    width: int,
) -> Tensor:  # [B, h * w * per_cell, width]
    channels, height, columns = x.shape[1:]
    # The batch is -1 and the rows are counted here: the exported Reshape then holds constants, whatever the batch.
    return x.permute(0, 2, 3, 1).reshape(-1, height * columns * channels // width, width)
