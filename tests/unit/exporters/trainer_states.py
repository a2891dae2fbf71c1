"""State dicts with the names and shapes of other trainers' published models; each tensor is one stored number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests import goldens

StateDict = dict[str, Tensor]
DEPTHS = {"r101": (3, 4, 23, 3), "r50": (3, 4, 6, 3)}


def empty(*shape: int) -> Tensor:
    return torch.zeros(()).expand(shape)


def _resnet(blocks: tuple[int, ...], stage: Callable[[int], str]) -> StateDict:
    state: StateDict = {"backbone.conv1.weight": empty(64, 3, 7, 7)}
    names = ["backbone.bn1"]
    channels = 64
    for index, count in enumerate(blocks):
        width = 64 * 2**index
        for block in range(count):
            prefix = f"backbone.{stage(index)}.{block}"
            convs = {"conv1": (width, channels, 1, 1), "conv2": (width, width, 3, 3), "conv3": (4 * width, width, 1, 1)}
            if block == 0:
                convs["downsample.0"] = (4 * width, channels, 1, 1)
            for name, shape in convs.items():
                state[f"{prefix}.{name}.weight"] = empty(*shape)
            names += [f"{prefix}.{name}" for name in ("bn1", "bn2", "bn3", *(["downsample.1"] if block == 0 else []))]
            channels = 4 * width
    for name in names:
        width = _width(state, name)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{kind}"] = empty(width)
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def _width(state: StateDict, norm: str) -> int:
    conv = norm.replace("downsample.1", "downsample.0") if "downsample" in norm else norm.replace("bn", "conv")
    return state[f"{conv}.weight"].shape[0]


def _add(state: StateDict, name: str, *shape: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = empty(*shape), empty(shape[0])


def mmdetection(depth: str = "r50", classes: int = 80, semantic: str = "segm_head") -> StateDict:
    """Names and shapes of configs/yolact/yolact_r50_1x8_coco.py, or with the 3.x place of the semantic branch."""
    state = _resnet(DEPTHS[depth], lambda index: f"layer{index + 1}")
    for number, channels in enumerate((512, 1024, 2048)):
        _add(state, f"neck.lateral_convs.{number}.conv", 256, channels, 1, 1)
    for number, channels in enumerate((256, 256, 256, 2048, 256)):
        _add(state, f"neck.fpn_convs.{number}.conv", 256, channels, 3, 3)
    _add(state, "bbox_head.head_convs.0.conv", 256, 256, 3, 3)
    for name, width in (("cls", classes + 1), ("reg", 4), ("coeff", 32)):
        _add(state, f"bbox_head.conv_{name}", 3 * width, 256, 3, 3)
    for number in (0, 2, 4, 8):
        _add(state, f"mask_head.protonet.{number}", 256, 256, 3, 3)
    _add(state, "mask_head.protonet.10", 32, 256, 1, 1)
    _add(state, f"{semantic}.segm_conv", classes, 256, 1, 1)
    return state


def yolact_minimal(depth: str = "r50", classes: int = 80) -> StateDict:
    """Names and shapes of modules/yolact.py (res50_coco, res101_coco) as its training saves them."""
    state = _resnet(DEPTHS[depth], lambda index: f"layers.{index}")
    for number, channels in enumerate((512, 1024, 2048)):
        _add(state, f"fpn.lat_layers.{number}", 256, channels, 1, 1)
        _add(state, f"fpn.pred_layers.{number}.0", 256, 256, 3, 3)
    for number in range(2):
        _add(state, f"fpn.downsample_layers.{number}.0", 256, 256, 3, 3)
    for name in ("proto1.0", "proto1.2", "proto1.4", "proto2.0"):
        _add(state, f"proto_net.{name}", 256, 256, 3, 3)
    _add(state, "proto_net.proto2.2", 32, 256, 1, 1)
    _add(state, "prediction_layers.upfeature.0", 256, 256, 3, 3)
    for name, width in (("bbox_layer", 4), ("conf_layer", classes + 1), ("coef_layer.0", 32)):
        _add(state, f"prediction_layers.{name}", 3 * width, 256, 3, 3)
    _add(state, "semantic_seg_conv", classes, 256, 1, 1)
    return state


def yolact_edge(config: str = "yolact_resnet50") -> StateDict:
    """The original's names and shapes with the FPN split in two, as yolact_edge/yolact.py has it."""
    renamed: StateDict = {}
    for name, shape in goldens.manifest_shapes(config).items():
        part = "fpn_phase_1." if name.startswith("fpn.lat_layers") else "fpn_phase_2."
        target = name.replace("fpn.", part) if name.startswith("fpn.") else name
        renamed[target] = empty(*shape)
    return renamed
