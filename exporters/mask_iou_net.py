"""YOLACT++'s mask-IoU network in PyTorch: how well a mask fits, as seen by each class (dbolya/yolact, FastMaskIoUNet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        return torch.amax(self.maskiou_net(masks[:, None]), dim=(2, 3))
