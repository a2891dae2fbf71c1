"""Deformable convolution (DCNv2, Zhu et al. 2019): as the checkpoint has it, and in the two forms that ONNX can carry.

Tap k = (i, j) of output (r, c) reads the input at (r * stride - padding + i + dy, c * stride - padding + j + dx),
interpolated bilinearly with zeros outside, and times a mask in 0..1; offsets and masks come from a convolution of the
input. Semantics and parameter names are those of DCNv2 as the original YOLACT calls it (dcn_v2.py, backbone.py).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from yolact_deploy.artifacts.names import DcnForm

Module = TypeVar("Module", bound=nn.Module)

NATIVE_OPSET = 19  # the first with DeformConv


class DeformConv2d(nn.Module):
    """The convolution itself, in plain tensor operations: exact and differentiable, but 9 times its input in memory."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        taps = kernel * kernel
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, kernel))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(channels_out))
        # Per tap (dy, dx), then one mask per tap before its sigmoid.
        self.conv_offset_mask = nn.Conv2d(channels_in, 3 * taps, kernel, stride=stride, padding=padding)

    def forward(
        self,
        x: Tensor,  # [B, channels_in, H, W]
    ) -> Tensor:  # [B, channels_out, h, w]
        """[B, C, H, W] to [B, out, h, w], with offsets and weights of the samples computed from x."""
        taps = self.kernel * self.kernel
        geometry = self.conv_offset_mask(x)
        batch, _, height, width = geometry.shape
        shifts = geometry[:, : 2 * taps].reshape(batch, taps, 2, height, width)
        tap = torch.arange(taps, device=x.device)
        rows = torch.arange(height, device=x.device) * self.stride - self.padding
        columns = torch.arange(width, device=x.device) * self.stride - self.padding
        y = shifts[:, :, 0] + ((tap // self.kernel)[:, None] + rows)[:, :, None]
        x_ = shifts[:, :, 1] + ((tap % self.kernel)[:, None] + columns)[:, None, :]
        sampled = sample_bilinear(x, y, x_) * torch.sigmoid(geometry[:, None, 2 * taps :])
        product = self.weight.flatten(1) @ sampled.reshape(batch, -1, height * width)
        return product.reshape(batch, -1, height, width) + self.bias[:, None, None]


def sample_bilinear(
    image: Tensor,  # [B, C, H, W]
    y: Tensor,  # [B, ...], rows
    x: Tensor,  # [B, ...], columns
) -> Tensor:  # [B, C, ...]
    """Values of `image` between its pixels; a corner that lies outside counts as 0."""
    batch, channels, height, width = image.shape
    pixels = image.flatten(2)
    top, left = torch.floor(y), torch.floor(x)
    below, right = y - top, x - left  # in 0..1
    total = torch.zeros(batch, channels, *y.shape[1:], dtype=image.dtype, device=image.device)
    for row, row_weight in ((top, 1 - below), (top + 1, below)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            corner = pixels.gather(2, index.reshape(batch, 1, -1).expand(-1, channels, -1))
            total += corner.reshape(total.shape) * (row_weight * column_weight * inside)[:, None]
    return total


def exportable(model: Module, form: DcnForm, input_size: int) -> Module:
    """A copy of `model` that shares its tensors, in which every deformable convolution is one that exports to `form`.

    `input_size` is the side of the images it will get. A batch norm behind such a convolution (`bn2` of `conv2`) is
    folded into its weights, which the exporter does for plain convolutions only. The model itself where there are none.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, DeformConv2d)}
    if not modules:
        return model
    sizes = _input_sizes(model, modules, input_size)
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
    for name, module in modules.items():
        path, _, attribute = name.rpartition(".")
        parent = twin.get_submodule(path)
        norm = getattr(parent, attribute.replace("conv", "bn"), None)
        weight, bias = module.weight, module.bias
        if isinstance(norm, nn.BatchNorm2d):
            weight, bias = _folded(module, norm)
            setattr(parent, attribute.replace("conv", "bn"), nn.Identity())
        if form == "native":
            setattr(parent, attribute, _NativeForm(module, weight, bias))
        else:
            setattr(parent, attribute, _GridSampleForm(module, weight, bias, sizes[name]))
    return twin.eval()


def _folded(conv: DeformConv2d, norm: nn.BatchNorm2d) -> tuple[nn.Parameter, nn.Parameter]:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics can't be folded.")
    return fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def _input_sizes(
    model: nn.Module, modules: Iterable[str], input_size: int
) -> dict[str, tuple[int, int]]:  # module -> height and width of what it gets
    sizes: dict[str, tuple[int, int]] = {}

    def record(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = (inputs[0].shape[-2], inputs[0].shape[-1])

    on_meta = {id(t): torch.empty_like(t, device="meta") for t in chain(model.parameters(), model.buffers())}
    shapes_only = copy.deepcopy(model, on_meta).eval()
    for name in modules:
        shapes_only.get_submodule(name).register_forward_pre_hook(functools.partial(record, name))
    shapes_only(torch.zeros(1, 3, input_size, input_size, device="meta"))
    return sizes


class _NativeForm(nn.Module):
    """One ONNX DeformConv. It can't be run in PyTorch, only exported."""

    def __init__(self, source: DeformConv2d, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = source.kernel, source.stride, source.padding
        self.weight, self.bias, self.conv_offset_mask = weight, bias, source.conv_offset_mask

    def forward(self, x: Tensor) -> Tensor:
        taps = self.kernel * self.kernel
        geometry = self.conv_offset_mask(x)
        mask = torch.sigmoid(geometry[:, 2 * taps :])
        result: Tensor = torch.onnx.ops.symbolic(
            "DeformConv",
            (x, self.weight, geometry[:, : 2 * taps], self.bias, mask),
            {
                "kernel_shape": [self.kernel] * 2,
                "strides": [self.stride] * 2,
                "pads": [self.padding] * 4,
                "dilations": [1, 1],
                "group": 1,
                "offset_group": 1,
            },
            dtype=x.dtype,
            shape=(x.shape[0], self.weight.shape[0], *geometry.shape[2:]),
            version=NATIVE_OPSET,
        )
        return result


class _GridSampleForm(nn.Module):
    """One GridSample makes a picture in which each output pixel is its kernel x kernel samples; a plain convolution whose
    stride is its kernel then reads it with the very weights of the checkpoint.

    So the 9-fold samples are written once, multiplied by the masks once and read once, and only what is small (offsets
    and masks, 27 channels) is rearranged. GridSample's zero padding is DCNv2's rule: a sample at -1 or less, or at the
    size or more, has weight 0 on every pixel that exists.
    """

    def __init__(
        self, source: DeformConv2d, weight: nn.Parameter, bias: nn.Parameter, size_hw: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kernel = source.kernel
        self.weight, self.bias, self.conv_offset_mask = weight, bias, source.conv_offset_mask
        taps = self.kernel * self.kernel
        # GridSample wants (x, y); a pixel shuffle wants the taps of one quantity side by side.
        order = [*range(1, 2 * taps, 2), *range(0, 2 * taps, 2), *range(2 * taps, 3 * taps)]
        rows, columns = (_tap_positions(size, source) for size in size_hw)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        per_pixel = torch.tensor([2 / size_hw[1], 2 / size_hw[0]])
        self.order: Tensor
        self.grid: Tensor
        self.per_pixel: Tensor
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("grid", grid.contiguous(), persistent=False)  # [k * h, k * w, 2], where offsets are 0
        self.register_buffer("per_pixel", per_pixel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        geometry = self.conv_offset_mask(x).index_select(1, self.order)
        spread = F.pixel_shuffle(geometry, self.kernel)  # [B, 3, k * h, k * w]: dx, dy, mask
        grid = spread[:, :2].permute(0, 2, 3, 1) * self.per_pixel + self.grid
        samples = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return F.conv2d(samples * torch.sigmoid(spread[:, 2:]), self.weight, self.bias, stride=self.kernel)


def _tap_positions(size: int, conv: DeformConv2d) -> Tensor:
    """[k * outputs]: where the taps along one axis lie without offsets, -1 and 1 being the outer edges of the pixels."""
    outputs = (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
    pixels = torch.arange(outputs)[:, None] * conv.stride - conv.padding + torch.arange(conv.kernel)
    return ((2 * pixels.flatten().double() + 1) / size - 1).float()
