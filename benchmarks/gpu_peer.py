"""The original's Detect and postprocess in torch on a GPU, and the bare network there: what the kernels are measured against."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu_timer import GraphTimer
from benchmarks.torch_peer import detect_and_assemble
from exporters.yolact import Yolact
from yolact_deploy.arrays import Image
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.runtime.network import HeadTensors
from yolact_deploy.runtime.preprocess import preprocess


def heads_of(model: Yolact, image: Image, device: str) -> HeadTensors:
    """Heads of one image, on the host."""
    with torch.inference_mode():
        outputs = model.to(device)(torch.from_numpy(preprocess([image], model.spec)).to(device))
    return HeadTensors(*(output.float().cpu().numpy() for output in outputs))


def measure_torch(
    driver: Driver, heads: HeadTensors, priors: Any, image_hw: tuple[int, int], *, repeats: int = 10
) -> dict[str, float]:
    """{"detect_and_masks_us", "peak_bytes"} of the original's way, from device tensors to masks on the device."""
    device = f"cuda:{driver.device.index}"
    loc, conf, mask_coeff, proto = (torch.from_numpy(head[0]).to(device) for head in heads)
    on_device = torch.from_numpy(priors.copy()).to(device)
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def work(_: int) -> None:
        detect_and_assemble(loc, conf, mask_coeff, proto, on_device, image_hw)

    with torch.inference_mode(), torch.cuda.stream(stream), driver.current():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timer = GraphTimer(driver, stream.cuda_stream, repeats, capture=False)  # its shapes depend on the data
        us = timer.each([work])
    return {"detect_and_masks_us": us, "peak_bytes": float(torch.cuda.max_memory_allocated(device) - before)}
