"""The peer to be faster than: PyTorch eager with the original's Detect and postprocess done in torch.

Written from the original's semantics (dbolya/yolact: layers/functions/detection.py, layers/output_utils.py): every
survivor competes in every class, IoU is taken over all [C, top_k, top_k] pairs, masks are multiplied, squashed, cropped
and upsampled as whole planes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peer_comparison import AFTER, NETWORK, WHOLE, Peer, Timer, Work, on_host_clock
from exporters.network.yolact import Yolact
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.optional import require_export
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.spec import ModelSpec, PostprocessSpec


@dataclass(frozen=True)
class TorchSide:
    """Where PyTorch works."""

    device: torch.device
    use: Callable[[], AbstractContextManager[Any]]  # makes its stream current
    clock: Callable[[Work], Timer]  # for what it does there


def torch_peers(
    detector: Detector, image: Image, checkpoint: Path | None, side: TorchSide, notes: list[str]
) -> list[Peer]:
    """The original's Detect on the Detector's own heads; with a `checkpoint` also the network, compiled or not, and all of it.

    What can't be had is added to `notes`. Raises CheckpointError, MissingDependencyError.
    """
    spec, image_hw = detector.spec, (image.shape[0], image.shape[1])
    pixels = detector.preprocess([image])
    heads = detector.run_network(pixels)
    loc, conf, mask_coeff, proto = (_on(side.device, head[0]) for head in heads)
    priors = _on(side.device, make_priors(spec))

    def at_side(run: Work) -> Work:
        def work() -> object:
            with torch.inference_mode(), side.use():
                return run()

        return work

    original = at_side(lambda: detect_and_assemble(loc, conf, mask_coeff, proto, priors, image_hw))
    peers = [Peer(AFTER, "original's Detect + postprocess in torch", side.clock(original))]
    if spec.postprocess != PostprocessSpec() or spec.mask_iou_layers:
        notes.append("the original's Detect runs with its default thresholds and without mask rescoring.")
    if checkpoint is None:
        notes.append("the network in PyTorch is timed with --checkpoint FILE, the .pth it was exported from.")
        return peers
    model = build_torch_model(checkpoint, spec).to(side.device)
    batch = _on(side.device, pixels)
    whole = at_side(lambda: [part.cpu() for part in end_to_end(model, image, priors)])
    peers += [
        Peer(NETWORK, "PyTorch eager", side.clock(at_side(lambda: model(batch)))),
        Peer(WHOLE, "PyTorch eager, original's Detect", on_host_clock(whole)),
    ]
    compiled = torch.compile(model)
    run_compiled = at_side(lambda: compiled(batch))
    try:
        run_compiled()
    except Exception as exc:  # a missing compiler, an operator it can't take: its errors share no base
        notes.append(f"no torch.compile peer: {str(exc).strip().partition(chr(10))[0][:200]}")
        return peers
    return [*peers, Peer(NETWORK, "torch.compile", side.clock(run_compiled))]


def build_torch_model(checkpoint: Path, spec: ModelSpec) -> Yolact:
    """The network in PyTorch. Raises CheckpointError, MissingDependencyError."""
    require_export("timing a checkpoint")
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        spec_file = Path(folder) / "spec.json"  # what the artifact was exported with, so that nobody is asked again
        spec_file.write_text(spec.to_json(), encoding="utf-8")
        return build_model(load_checkpoint(checkpoint, spec_file=spec_file))


def _on(device: torch.device, array: Any) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)  # a copy: the priors can't be written to


class TorchDetections(NamedTuple):
    """Detections of one image by the peer."""

    class_ids: Tensor  # int64 [n]
    scores: Tensor  # float32 [n]
    boxes_xyxy: Tensor  # int64 [n, 4], pixels
    masks: Tensor  # float32 [n, H, W], 0 or 1


def detect_and_assemble(
    loc: Tensor,  # [P, 4]
    conf: Tensor,  # [P, 1 + C], softmaxed
    mask_coeff: Tensor,  # [P, K]
    proto: Tensor,  # [Hp, Wp, K]
    priors: Tensor,  # [P, 4]
    image_hw: tuple[int, int],
) -> TorchDetections:
    """FastNMS with the default thresholds, then full-size masks; one image."""
    boxes, coefficients, class_ids, scores = fast_nms(loc, conf, mask_coeff, priors)
    return assemble(boxes, coefficients, class_ids, scores, proto, image_hw)


def end_to_end(model: Yolact, image: Image, priors: Tensor) -> TorchDetections:
    """One image uint8 [H, W, 3] BGR through the original's FastBaseTransform, the network, Detect and postprocess, on the
    device of `priors`."""
    pre, size, device = model.spec.preprocess, model.spec.input_size, priors.device
    pixels = torch.from_numpy(image).to(device).float().permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values[::-1], device=device) for values in (pre.mean_rgb, pre.std_rgb))
    pixels = ((pixels - mean[None, :, None, None]) / std[None, :, None, None])[:, [2, 1, 0]].contiguous()
    loc, conf, mask_coeff, proto = model(pixels)
    return detect_and_assemble(loc[0], conf[0], mask_coeff[0], proto[0], priors, (image.shape[0], image.shape[1]))


def fast_nms(loc: Tensor, conf: Tensor, mask_coeff: Tensor, priors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(boxes [n, 4] relative, coefficients [n, K], class_ids [n], scores [n])."""
    centres = priors[:, :2] + loc[:, :2] * 0.1 * priors[:, 2:]
    sizes = priors[:, 2:] * torch.exp(loc[:, 2:] * 0.2)
    boxes = torch.cat([centres - sizes / 2, sizes], 1)
    boxes[:, 2:] += boxes[:, :2]

    foreground = conf.t()[1:]
    confident = foreground.max(0).values > 0.05
    scores, boxes, coefficients = foreground[:, confident], boxes[confident], mask_coeff[confident]

    scores, order = scores.sort(1, descending=True)
    scores, order = scores[:, :200].contiguous(), order[:, :200].contiguous()
    num_classes, count = order.shape
    boxes = boxes[order.view(-1)].view(num_classes, count, 4)
    coefficients = coefficients[order.view(-1)].view(num_classes, count, -1)
    keep = _pairwise_iou(boxes).triu_(diagonal=1).max(dim=1).values <= 0.5
    class_ids = torch.arange(num_classes, device=conf.device)[:, None].expand_as(keep)[keep]
    scores, best = scores[keep].sort(0, descending=True)
    best = best[:100]
    return boxes[keep][best], coefficients[keep][best], class_ids[best], scores[:100]


def assemble(
    boxes: Tensor,  # [n, 4], relative
    coefficients: Tensor,  # [n, K]
    class_ids: Tensor,  # [n]
    scores: Tensor,  # [n]
    proto: Tensor,  # [Hp, Wp, K]
    image_hw: tuple[int, int],
) -> TorchDetections:
    """Masks of all detections at the size of the image, and integer boxes."""
    height, width = image_hw
    masks = _crop(torch.sigmoid(proto @ coefficients.t()), boxes).permute(2, 0, 1).contiguous()
    masks = F.interpolate(masks[None], (height, width), mode="bilinear", align_corners=False)[0].gt_(0.5)
    x1, x2 = _ordered(boxes[:, 0], boxes[:, 2], width, 0)
    y1, y2 = _ordered(boxes[:, 1], boxes[:, 3], height, 0)
    return TorchDetections(class_ids, scores, torch.stack([x1, y1, x2, y2], 1).long(), masks)


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """[C, n, 4] -> [C, n, n]."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    overlap = (high - low).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return intersection / (area[:, :, None] + area[:, None, :] - intersection)


def _crop(masks: Tensor, boxes: Tensor) -> Tensor:
    """[Hp, Wp, n] with everything outside of its box, widened by one cell, set to 0."""
    height, width, count = masks.shape
    x1, x2 = _ordered(boxes[:, 0], boxes[:, 2], width, 1)
    y1, y2 = _ordered(boxes[:, 1], boxes[:, 3], height, 1)
    columns = torch.arange(width, dtype=x1.dtype, device=x1.device).view(1, -1, 1).expand(height, width, count)
    rows = torch.arange(height, dtype=x1.dtype, device=x1.device).view(-1, 1, 1).expand(height, width, count)
    inside = (columns >= x1) * (columns < x2) * (rows >= y1) * (rows < y2)
    return masks * inside.float()


def _ordered(first: Tensor, second: Tensor, size: int, padding: int) -> tuple[Tensor, Tensor]:
    first, second = first * size, second * size
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    return (low - padding).clamp(min=0), (high + padding).clamp(max=size)
