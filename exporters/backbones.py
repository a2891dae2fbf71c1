"""The backbones of YOLACT, with the parameter names and their order of the original (dbolya/yolact, backbone.py)."""

from __future__ import annotations

from torch import Tensor, nn

from exporters.deformable import DeformConv2d
from yolact_deploy.spec import BackboneSpec

_RESNET_STEM_CHANNELS = 64
_BOTTLENECK_EXPANSION = 4
_DARKNET_STEM_CHANNELS = 32
_LEAKY_SLOPE = 0.1


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
