"""Frames of one layout: buffers, values and steps, worked out once and run many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

import numpy as np

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.cuda import launches
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.cuda.frames import BatchLayout, MaskForm, MaskPlan, Model, Values, align, pixel_bytes, place
from yolact_deploy.cuda.kernels import Kernels
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.runtime.network import OUTPUT_NAMES, DeviceContext

Stage: TypeAlias = Literal["host_to_device", "preprocess", "network", "detect", "masks", "device_to_host"]
STAGES: tuple[Stage, ...] = ("host_to_device", "preprocess", "network", "detect", "masks", "device_to_host")


@dataclass(frozen=True)
class Request:
    """What is asked of a frame. Everything here is part of what is captured."""

    score_threshold: float = 0.0
    masks: MaskForm = "bits"


@dataclass(frozen=True)
class Step:
    stage: Stage
    enqueue: Callable[[], None]


@dataclass
class Segment:
    """Steps that go together into a graph, or each by itself where they can't."""

    steps: tuple[Step, ...]
    capturable: bool
    graph: int | None = None


@dataclass
class FramePlan:
    layout: BatchLayout
    request: Request
    values: Values
    masks: MaskPlan
    staging: dict[str, int]  # where the sizes and every image of the host are in the block "staging"
    staging_bytes: int
    results: dict[str, AnyArray]  # where they cross to: views of the block "results" on the host
    context: DeviceContext
    steps: tuple[Step, ...] = ()
    segments: tuple[Segment, ...] = ()
    runs: int = 0

    def split(self) -> None:
        """Steps to segments. What the network says of itself holds once it has run."""
        together = groupby(self.steps, lambda step: step.stage != "network" or self.context.capturable)
        self.segments = tuple(Segment(tuple(steps), capturable) for capturable, steps in together)


def plan_frames(
    layout: BatchLayout,
    request: Request,
    model: Model,
    *,
    driver: Driver,
    kernels: Kernels,
    context: DeviceContext,
    buffers: Buffers,  # grow as needed
    priors: int,
    stream: int,
) -> FramePlan:
    """Raises DeviceMemoryError."""
    batch = layout.batch
    staging, staging_bytes = layout.staging()
    results = model.results(batch, request.masks)
    placed, result_bytes = place(results)
    masks = MaskPlan(model, layout, request.masks, buffers.device_bytes("runs"))
    scratch = launches.scratch_buffers(model.specialization, model.spec.num_priors, batch)
    sizes = {
        "staging": staging_bytes,
        **model.network_buffers(batch),
        **{name: buffer.nbytes for name, buffer in scratch.items()},
        "results": result_bytes,
        **masks.nbytes,
    }
    buffers.reserve(sizes, {"staging": staging_bytes, "results": result_bytes})
    values: Values = {
        **model.scalars(request.score_threshold),
        **{name: buffers.address(name) for name in sizes},
        **{name: buffers.address("results") + offset for name, offset in placed.items()},
        "input": buffers.address("image"),
        "image_hw": buffers.address("staging") + staging["image_hw"],
        "priors": priors,
    }
    plan = FramePlan(
        layout,
        request,
        values,
        masks,
        staging,
        staging_bytes,
        _views(buffers.pinned_view("results", result_bytes), results, placed),
        context,
    )
    addresses = {name: buffers.address(name) for name in ("image", *OUTPUT_NAMES)}
    detect = launches.detect_launches(model.specialization, model.spec.num_priors, batch)
    make_masks = list(masks.launches(values, int(values.get("run_start", 0))))
    host_staging, host_results = buffers.pinned_address("staging"), buffers.pinned_address("results")

    def copy_in() -> None:
        driver.copy_to_device(int(values["staging"]), host_staging, staging_bytes, stream)

    def preprocess() -> None:
        for group in layout.uploads:
            kernels.launch(
                launches.preprocess_launch(model.spec.input_size, group.count),
                {
                    **values,
                    **preprocess_values(model, values, group.first, group.image_hw, group.is_rgb),
                    "images": values["staging"] + staging[str(group.first)],
                    "row_pitch": 3 * group.image_hw[1],
                    "image_pitch": align(pixel_bytes(group.image_hw)),
                },
                stream,
            )

    def find() -> None:
        for launch in detect:
            kernels.launch(launch, values, stream)

    def assemble() -> None:
        for launch, own in make_masks:
            kernels.launch(launch, own, stream)

    def copy_out() -> None:
        driver.copy_to_host(host_results, int(values["results"]), result_bytes, stream)

    plan.steps = (
        Step("host_to_device", copy_in),
        Step("preprocess", preprocess),
        Step("network", lambda: context.enqueue(addresses, batch)),
        Step("detect", find),
        Step("masks", assemble),
        Step("device_to_host", copy_out),
    )
    return plan


def preprocess_values(
    model: Model, values: Mapping[str, int | float], image: int, image_hw: tuple[int, int], is_rgb: bool
) -> Values:
    """Of a launch that starts with a given image of the batch; where its pixels are is for the caller to say."""
    size = model.spec.input_size
    plane_bytes = 3 * size * size * model.dtypes["image"].itemsize
    return {
        "input": values["input"] + image * plane_bytes,
        "image_h": image_hw[0],
        "image_w": image_hw[1],
        "is_rgb": int(is_rgb),
    }


def _views(block: Image, buffers: Mapping[str, Buffer], offsets: Mapping[str, int]) -> dict[str, AnyArray]:
    return {
        name: block[offsets[name] : offsets[name] + buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)
        for name, buffer in buffers.items()
    }


def write_staging(
    plan: FramePlan,
    images: Sequence[Image | None],  # in the layout's order, None where it is on the device already
    buffers: Buffers,
) -> None:
    """Sizes and pixels to where they cross from."""
    block = buffers.pinned_view("staging", plan.staging_bytes)
    sizes = np.array([kind.image_hw for kind in plan.layout.kinds], np.int32)
    block[: sizes.nbytes] = sizes.reshape(-1).view(np.uint8)
    for number, image in enumerate(images):
        if image is not None:
            offset = plan.staging[str(number)]
            block[offset : offset + image.size].reshape(image.shape)[...] = image
