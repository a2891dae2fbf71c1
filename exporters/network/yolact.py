"""The PyTorch YOLACT of a `ModelSpec`, its backbones, and YOLACT++'s mask-IoU network, which says how well a mask fits as seen
by each class; with the parameter names of the original in their order (dbolya/yolact, yolact.py with FastMaskIoUNet, and
backbone.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters.network.deformable import DeformConv2d
from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import SpecError
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import BackboneSpec, FpnSpec, HeadSpec, ModelSpec, ProtonetSpec

_RESNET_STEM_CHANNELS = 64
_BOTTLENECK_EXPANSION = 4
_DARKNET_STEM_CHANNELS = 32
_LEAKY_SLOPE = 0.1


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
        """Heads of normalised RGB images float32 [B, 3, S, S]."""
        levels = self.pyramid(image)
        proto = F.relu(self.proto_net(levels[self.spec.protonet.src_level])).permute(0, 2, 3, 1).contiguous()
        head = self.prediction_layers[0]
        per_level = [head(level) for level in levels]
        loc, conf, mask_coeff = (torch.cat(parts, dim=1) for parts in zip(*per_level, strict=True))
        if self.spec.conf_activation == "softmax":
            conf = F.softmax(conf, dim=-1)
        return Heads(loc, conf, torch.tanh(mask_coeff), proto)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Images [B, 3, S, S] to FPN levels [B, channels, S', S'], shallowest (P3) first."""
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
        """Stages' outputs [B, C, H, W], shallowest first, to FPN levels [B, width, H, W], shallowest first."""
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
        """loc, conf and mask_coeff [B, H * W * A, ...] of an FPN level [B, width, H, W]; A priors a cell."""
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


class MaskIouNet(nn.Module):
    """Stride-2 convolutions without padding, a 1x1 to the classes, each with ReLU; the maximum over what is left."""

    def __init__(self, layers: tuple[tuple[int, int], ...], num_classes: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 1
        for width, kernel in layers:
            modules += [nn.Conv2d(channels, width, kernel, stride=2), nn.ReLU()]
            channels = width
        modules += [nn.Conv2d(channels, num_classes, 1), nn.ReLU()]
        self.maskiou_net = nn.Sequential(*modules)

    def forward(
        self,
        masks: Tensor,  # float32 [n, Hp, Wp], soft masks at the size of the prototypes
    ) -> Tensor:  # float32 [n, C], not clamped
        """IoUs [n, C] of soft masks [n, Hp, Wp], for every class."""
        return torch.amax(self.maskiou_net(masks[:, None]), dim=(2, 3))


def build_backbone(spec: BackboneSpec) -> ResNetBackbone | DarkNetBackbone:
    """The backbone of a spec; calling it gives the output of every stage."""
    return ResNetBackbone(spec) if spec.kind == "resnet" else DarkNetBackbone(spec.stages)


class ResNetBackbone(nn.Module):
    """ResNet of bottleneck blocks, without its classifier."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.channels: list[int] = []  # of each stage's output
        channels_in = _RESNET_STEM_CHANNELS
        for index, num_blocks in enumerate(spec.stages):
            width = _RESNET_STEM_CHANNELS * 2**index
            blocks = []
            for block in range(num_blocks):
                stride = 2 if block == 0 and index > 0 else 1
                blocks.append(_Bottleneck(channels_in, width, stride, block in spec.deformable_blocks(index)))
                channels_in = width * _BOTTLENECK_EXPANSION
            self.layers.append(nn.Sequential(*blocks))
            self.channels.append(channels_in)
        # After the stages, as the original's state_dict has them last.
        self.conv1 = nn.Conv2d(3, _RESNET_STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_RESNET_STEM_CHANNELS)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(
        self,
        image: Tensor,  # [B, 3, S, S]
    ) -> list[Tensor]:  # per stage [B, channels, S', S']
        """Outputs [B, C, H, W] of every stage for images [B, 3, S, S]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return _stage_outputs(self.layers, x)


class _Bottleneck(nn.Module):
    def __init__(self, channels_in: int, width: int, stride: int, deformable: bool) -> None:
        super().__init__()
        channels_out = width * _BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = (
            DeformConv2d(width, width, 3, stride=stride, padding=1)
            if deformable
            else nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        summed: Tensor = self.relu(self.bn3(self.conv3(out)) + residual)
        return summed


class DarkNetBackbone(nn.Module):
    """DarkNet as in YOLOv3: each stage halves the size, then adds residual blocks."""

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.channels: list[int] = []  # of each stage's output
        channels = _DARKNET_STEM_CHANNELS
        for num_blocks in stages:
            downsampling = _conv_bn_leaky(channels, channels * 2, 3, stride=2)
            self.layers.append(nn.Sequential(downsampling, *(_DarkNetBlock(channels * 2) for _ in range(num_blocks))))
            channels *= 2
            self.channels.append(channels)
        self._preconv = _conv_bn_leaky(3, _DARKNET_STEM_CHANNELS, 3)

    def forward(
        self,
        image: Tensor,  # [B, 3, S, S]
    ) -> list[Tensor]:  # per stage [B, channels, S', S']
        """Outputs [B, C, H, W] of every stage for images [B, 3, S, S]."""
        return _stage_outputs(self.layers, self._preconv(image))


class _DarkNetBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_leaky(channels, channels // 2, 1)
        self.conv2 = _conv_bn_leaky(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.conv2(self.conv1(x)) + x
        return summed


def _conv_bn_leaky(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.LeakyReLU(_LEAKY_SLOPE),
    )


def _stage_outputs(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs


class TorchNetwork:
    """A model on the CPU as the runtime's `Network`, beside which exports are held."""

    max_batch: int | None = None

    def __init__(
        self,
        model: nn.Module,  # the YOLACT of `spec`
        spec: ModelSpec,
    ) -> None:
        self._model, self.spec = model, spec
        self.description = f"PyTorch {torch.__version__} (CPU)"
        self.mask_iou: MaskIouModel | None = self._score_masks if spec.mask_iou_layers else None

    def run(self, image: FloatArray) -> HeadTensors:
        """Heads of a preprocessed batch [B, 3, S, S]."""
        with torch.inference_mode():
            return HeadTensors(*(tensor.numpy() for tensor in self._model(torch.from_numpy(image))))

    def _score_masks(self, masks: FloatArray) -> FloatArray:
        with torch.inference_mode():
            mask_iou: FloatArray = self._model.get_submodule("maskiou_net")(torch.from_numpy(masks)).numpy()
        return mask_iou
