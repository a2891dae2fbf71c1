"""Small models of other trainers, written from the facts in `exporters.trainers`: their names, forward and detection.

None of it calls the project, so that what a mapped checkpoint computes here can be compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CLASSES, PROTOTYPES, PER_CELL = 16, 5, 8, 3
STAGE_CHANNELS = (256, 512, 1024, 2048)


class Found(NamedTuple):
    """Of one image, best first."""

    boxes: Tensor  # [n, 4], pixels of the image
    scores: Tensor  # [n]
    labels: Tensor  # [n], 0 = first foreground class
    masks: Tensor  # bool [n, H, W]


class Heads(NamedTuple):
    """Of one image, by the trainer's own order of priors and classes."""

    boxes: Tensor  # [P, 4], deltas
    classes: Tensor  # [P, 1 + C], logits
    coefficients: Tensor  # [P, K], after tanh
    prototypes: Tensor  # [h, w, K], after ReLU


class Bottleneck(nn.Module):
    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        shortcut = nn.Conv2d(channels_in, 4 * width, 1, stride, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(inner)) + self.downsample(x))


class ResNet(nn.Module):
    """One block per stage: layer1.0, layer2.0, ... as torchvision names them, or layers.0.0, layers.1.0, ..."""

    def __init__(self, *, torchvision_names: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = (64, *STAGE_CHANNELS)
        stages = [nn.Sequential(Bottleneck(inputs[i], 64 * 2**i, 1 if i == 0 else 2)) for i in range(4)]
        self.torchvision_names = torchvision_names
        if torchvision_names:
            for number, stage in enumerate(stages, start=1):
                self.add_module(f"layer{number}", stage)
        else:
            self.layers = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        outputs = []
        for number in range(4):
            x = self.get_submodule(f"layer{number + 1}" if self.torchvision_names else f"layers.{number}")(x)
            outputs.append(x)
        return outputs


class Named(nn.Module):
    """A module of named modules, for the names alone."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2)


def _rows(x: Tensor, width: int) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, width)


class Mmdetection(nn.Module):
    """Version 2 has the semantic branch beside the mask head, version 3 in it."""

    def __init__(self, version: int = 2) -> None:
        super().__init__()
        self.backbone = ResNet(torchvision_names=True)
        extra = [_conv(2048, WIDTH, stride=2), _conv(WIDTH, WIDTH, stride=2)]
        self.neck = Named(
            lateral_convs=nn.ModuleList(Named(conv=_conv(channels, WIDTH, 1)) for channels in STAGE_CHANNELS[1:]),
            fpn_convs=nn.ModuleList(Named(conv=conv) for conv in [*(_conv(WIDTH, WIDTH) for _ in range(3)), *extra]),
        )
        self.bbox_head = Named(
            head_convs=nn.ModuleList([Named(conv=_conv(WIDTH, WIDTH))]),
            conv_cls=_conv(WIDTH, PER_CELL * (CLASSES + 1)),
            conv_reg=_conv(WIDTH, PER_CELL * 4),
            conv_coeff=_conv(WIDTH, PER_CELL * PROTOTYPES),
        )
        convs: list[nn.Module] = [nn.ReLU() for _ in range(12)]
        convs[0], convs[2], convs[4], convs[8] = (_conv(WIDTH, WIDTH) for _ in range(4))
        convs[6], convs[10] = nn.Upsample(scale_factor=2, mode="bilinear"), _conv(WIDTH, PROTOTYPES, 1)
        self.mask_head = Named(protonet=nn.Sequential(*convs))
        segm = Named(segm_conv=_conv(WIDTH, CLASSES, 1))
        self.segm_head = segm if version == 2 else None
        if version == 3:
            self.mask_head.add_module("segm_branch", segm)

    def heads(self, image: Tensor) -> Heads:
        stages = self.backbone(image)
        neck: Any = self.neck
        lateral, output = ([module.conv for module in modules] for modules in (neck.lateral_convs, neck.fpn_convs))
        sums = [conv(stage) for conv, stage in zip(lateral, stages[1:], strict=True)]
        for i in (2, 1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=sums[i - 1].shape[-2:], mode="bilinear")
        levels = [conv(x) for conv, x in zip(output, sums, strict=False)]
        levels.append(output[3](stages[-1]))
        levels.append(output[4](levels[-1]))
        head: Any = self.bbox_head
        shared = [F.relu(head.head_convs[0].conv(level)) for level in levels]
        return Heads(
            torch.cat([_rows(head.conv_reg(x), 4) for x in shared]),
            torch.cat([_rows(head.conv_cls(x), CLASSES + 1) for x in shared]),
            torch.cat([_rows(head.conv_coeff(x).tanh(), PROTOTYPES) for x in shared]),
            self.mask_head.get_submodule("protonet")(levels[0])[0].permute(1, 2, 0),
        )

    def detect(self, image: Tensor, image_hw: tuple[int, int], base_sizes: tuple[int, ...]) -> Found:
        heads, size = self.heads(image), image.shape[-1]
        anchors = torch.cat(list(_mmdetection_anchors(size, base_sizes)))
        boxes = _delta_to_boxes(anchors, heads.boxes).clamp(0, size)
        scores = heads.classes.softmax(1)[:, :-1]
        scale = torch.tensor([image_hw[1] / size, image_hw[0] / size] * 2)
        kept, labels, best = fast_nms(boxes * scale, scores)
        above = best > 0.05
        kept, labels, best = kept[above], labels[above], best[above]
        masks = crop_masks(heads.prototypes, heads.coefficients[kept], boxes[kept] / size)
        stretched = F.interpolate(masks[None], image_hw, mode="bilinear", align_corners=False)[0] > 0.5
        return Found((boxes * scale)[kept], best, labels, stretched)


def _mmdetection_anchors(size: int, base_sizes: tuple[int, ...]) -> Iterator[Tensor]:
    side = -(-size // 8)
    for base in base_sizes:
        stride = size / side
        ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        widths, heights = base * 3 / ratios, base * 3 * ratios
        centre = 0.5 * stride
        cell = torch.stack([-widths / 2, -heights / 2, widths / 2, heights / 2], 1) + centre
        shift = torch.arange(side) * stride
        y, x = torch.meshgrid(shift, shift, indexing="ij")
        yield (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + cell).reshape(-1, 4)
        side = -(-side // 2)


def _delta_to_boxes(anchors: Tensor, deltas: Tensor) -> Tensor:
    deltas = deltas * torch.tensor([0.1, 0.1, 0.2, 0.2])
    sizes = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, 2:] + anchors[:, :2]) / 2 + sizes * deltas[:, :2]
    sizes = sizes * deltas[:, 2:].clamp(-4.135, 4.135).exp()
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


class YolactMinimal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(torchvision_names=False)
        relu = nn.ReLU()
        self.fpn = Named(
            lat_layers=nn.ModuleList(_conv(channels, WIDTH, 1) for channels in STAGE_CHANNELS[1:]),
            pred_layers=nn.ModuleList(nn.Sequential(_conv(WIDTH, WIDTH), relu) for _ in range(3)),
            downsample_layers=nn.ModuleList(nn.Sequential(_conv(WIDTH, WIDTH, stride=2), relu) for _ in range(2)),
        )
        three = [layer for _ in range(3) for layer in (_conv(WIDTH, WIDTH), relu)]
        last = [_conv(WIDTH, WIDTH), relu, _conv(WIDTH, PROTOTYPES, 1), relu]
        self.proto_net = Named(proto1=nn.Sequential(*three), proto2=nn.Sequential(*last))
        self.prediction_layers = Named(
            upfeature=nn.Sequential(_conv(WIDTH, WIDTH), relu),
            bbox_layer=_conv(WIDTH, PER_CELL * 4),
            conf_layer=_conv(WIDTH, PER_CELL * (CLASSES + 1)),
            coef_layer=nn.Sequential(_conv(WIDTH, PER_CELL * PROTOTYPES), nn.Tanh()),
        )

    def heads(self, image: Tensor) -> Heads:
        fpn: Any = self.fpn
        c3, c4, c5 = (lateral(stage) for lateral, stage in zip(fpn.lat_layers, self.backbone(image)[1:], strict=True))
        p4 = c4 + F.interpolate(c5, scale_factor=2, mode="bilinear")
        p3 = c3 + F.interpolate(p4, scale_factor=2, mode="bilinear")
        levels = [layer(x) for layer, x in zip(fpn.pred_layers, (p3, p4, c5), strict=True)]
        for layer in fpn.downsample_layers:
            levels.append(layer(levels[-1]))
        head: Any = self.prediction_layers
        net: Any = self.proto_net
        larger = F.interpolate(net.proto1(levels[0]), scale_factor=2, mode="bilinear", align_corners=True)
        shared = [head.upfeature(level) for level in levels]
        return Heads(
            torch.cat([_rows(head.bbox_layer(x), 4) for x in shared]),
            torch.cat([_rows(head.conf_layer(x), CLASSES + 1) for x in shared]),
            torch.cat([_rows(head.coef_layer(x), PROTOTYPES) for x in shared]),
            net.proto2(larger)[0].permute(1, 2, 0),
        )

    def detect(self, image: Tensor, image_hw: tuple[int, int], scales: tuple[int, ...]) -> Found:
        """`image` was padded to a square; so boxes and masks are scaled to that square, and masks cut."""
        heads, size, square = self.heads(image), image.shape[-1], max(image_hw)
        boxes = decode(heads.boxes, ratio_anchors(size, scales))
        kept, labels, best = fast_nms(boxes, heads.classes.softmax(1)[:, 1:])
        masks = crop_masks(heads.prototypes, heads.coefficients[kept], boxes[kept])
        stretched = F.interpolate(masks[None], (square, square), mode="bilinear", align_corners=False)[0] > 0.5
        return Found(boxes[kept] * square, best, labels, stretched[:, : image_hw[0], : image_hw[1]])


class YolactEdge(nn.Module):
    """`video` adds the networks that only frames between key frames pass through."""

    def __init__(self, *, video: bool = False) -> None:
        super().__init__()
        self.backbone = ResNet(torchvision_names=False)
        relu = nn.ReLU()
        convs: list[nn.Module] = [relu for _ in range(11)]
        convs[0], convs[2], convs[4], convs[8] = (_conv(WIDTH, WIDTH) for _ in range(4))
        convs[6], convs[10] = nn.Upsample(scale_factor=2, mode="bilinear"), _conv(WIDTH, PROTOTYPES, 1)
        self.proto_net = nn.Sequential(*convs)
        self.fpn_phase_1 = Named(lat_layers=nn.ModuleList(_conv(c, WIDTH, 1) for c in reversed(STAGE_CHANNELS[1:])))
        self.fpn_phase_2 = Named(
            pred_layers=nn.ModuleList(_conv(WIDTH, WIDTH) for _ in range(3)),
            downsample_layers=nn.ModuleList(_conv(WIDTH, WIDTH, stride=2) for _ in range(2)),
        )
        if video:
            self.spa = Named(refine_convs=nn.ModuleList(nn.Sequential(_conv(2 * WIDTH, WIDTH)) for _ in range(2)))
            self.flow_net_pre_convs = Named(convs=nn.Sequential(nn.Sequential(_conv(WIDTH, 4))))
            self.flow_net = Named(conv1=nn.Sequential(_conv(8, 4)), pred1=Named(scale=_conv(4, WIDTH, 1)))
        head = Named(
            upfeature=nn.Sequential(_conv(WIDTH, WIDTH), relu),
            bbox_layer=_conv(WIDTH, PER_CELL * 4),
            conf_layer=_conv(WIDTH, PER_CELL * (CLASSES + 1)),
            mask_layer=_conv(WIDTH, PER_CELL * PROTOTYPES),
        )
        self.prediction_layers = nn.ModuleList([head])
        self.semantic_seg_conv = _conv(WIDTH, CLASSES, 1)

    def heads(self, image: Tensor) -> Heads:
        laterals: Any = self.fpn_phase_1.get_submodule("lat_layers")
        second: Any = self.fpn_phase_2
        sums: list[Tensor] = []
        for conv, stage in zip(laterals, reversed(self.backbone(image)[1:]), strict=True):
            x = conv(stage)
            sums.append(x + F.interpolate(sums[-1], size=x.shape[-2:], mode="bilinear") if sums else x)
        levels = [F.relu(conv(x)) for conv, x in zip(second.pred_layers, sums, strict=True)][::-1]
        for conv in second.downsample_layers:
            levels.append(conv(levels[-1]))
        head: Any = self.prediction_layers[0]
        shared = [head.upfeature(level) for level in levels]
        return Heads(
            torch.cat([_rows(head.bbox_layer(x), 4) for x in shared]),
            torch.cat([_rows(head.conf_layer(x), CLASSES + 1) for x in shared]),
            torch.cat([_rows(head.mask_layer(x).tanh(), PROTOTYPES) for x in shared]),
            F.relu(self.proto_net(levels[0]))[0].permute(1, 2, 0),
        )

    def detect(self, image: Tensor, image_hw: tuple[int, int], scales: tuple[int, ...]) -> Found:
        heads, size = self.heads(image), image.shape[-1]
        boxes = decode(heads.boxes, ratio_anchors(size, scales, square=True))
        kept, labels, best = fast_nms(boxes, heads.classes.softmax(1)[:, 1:])
        masks = crop_masks(heads.prototypes, heads.coefficients[kept], boxes[kept])
        stretched = F.interpolate(masks[None], image_hw, mode="bilinear", align_corners=False)[0] > 0.5
        return Found(boxes[kept] * torch.tensor([image_hw[1], image_hw[0]] * 2), best, labels, stretched)


def ratio_anchors(size: int, scales: tuple[int, ...], *, square: bool = False) -> Tensor:
    """[P, 4], cx cy w h relative to the input."""
    side, rows = -(-size // 8), []
    for scale in scales:
        for y in range(side):
            for x in range(side):
                for ratio in (1, 0.5, 2):
                    width, height = scale * ratio**0.5 / size, scale / ratio**0.5 / size
                    rows.append([(x + 0.5) / side, (y + 0.5) / side, width, width if square else height])
        side = -(-side // 2)
    return torch.tensor(rows)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    centres = anchors[:, :2] + deltas[:, :2] * 0.1 * anchors[:, 2:]
    sizes = anchors[:, 2:] * torch.exp(deltas[:, 2:] * 0.2)
    return torch.cat([centres - sizes / 2, centres + sizes / 2], 1)


def fast_nms(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, labels and scores of at most 100 boxes, of those with a score above 0.05."""
    rows = (scores.max(1).values > 0.05).nonzero()[:, 0]
    found = []
    for label in range(scores.shape[1]):
        best, order = scores[rows, label].sort(descending=True)
        kept, best = rows[order][:200], best[:200]
        corners = boxes[kept]
        lower = torch.maximum(corners[:, None, :2], corners[None, :, :2])
        upper = torch.minimum(corners[:, None, 2:], corners[None, :, 2:])
        shared = (upper - lower).clamp(min=0).prod(-1)
        area = (corners[:, 2:] - corners[:, :2]).prod(1)
        iou = (shared / (area[:, None] + area - shared)).triu(1)
        stays = iou.max(0).values <= 0.5
        found.append((kept[stays], torch.full((int(stays.sum()),), label), best[stays]))
    kept, labels, best = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = best.sort(descending=True).indices[:100]
    return kept[order], labels[order], best[order]


def crop_masks(prototypes: Tensor, coefficients: Tensor, boxes: Tensor) -> Tensor:
    """[n, h, w], 0 outside of the boxes (relative) and a margin of one cell."""
    masks = (prototypes @ coefficients.T).sigmoid().permute(2, 0, 1)
    height, width = masks.shape[1:]
    x, y = torch.arange(width), torch.arange(height)
    left, right = (boxes[:, 0] * width - 1).clamp(min=0), (boxes[:, 2] * width + 1).clamp(max=width)
    top, bottom = (boxes[:, 1] * height - 1).clamp(min=0), (boxes[:, 3] * height + 1).clamp(max=height)
    inside_x = (x >= left[:, None]) & (x < right[:, None])
    inside_y = (y >= top[:, None]) & (y < bottom[:, None])
    return masks * (inside_y[:, :, None] & inside_x[:, None, :])


def randomise(model: nn.Module, seed: int) -> None:
    """Weights under which scores, boxes and masks differ from place to place; the same for the same seed."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2, generator=random)
        elif tensor.ndim == 4:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=random)
            if any(part in name for part in ("conv3", "conv_cls", "conv_reg", "conf_layer", "bbox_layer")):
                tensor.mul_(0.3)  # or residual sums grow, and scores and boxes are at their limits
        elif tensor.is_floating_point():
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=random)
