"""Frames of one layout: buffers, values and steps, worked out once and run many times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts.names import INPUT, OUTPUTS
from yolact_deploy.cuda import launches
from yolact_deploy.cuda.buffers import Buffers
from yolact_deploy.cuda.compile import Kernels
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.cuda.program import BatchLayout, MaskPlan, Model, Values, align, pixel_bytes, place
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.protocols import DeviceContext, Stage


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
    sizes_hw: AnyArray  # int32 [B, 2], of the images
    staged_sizes_hw: AnyArray  # where they cross from: a view of the block "staging" on the host
    staged_pixels: tuple[Image | None, ...]  # where those of every image of the host cross from
    results: dict[str, AnyArray]  # where they cross to: views of the block "results" on the host
    context: DeviceContext
    steps: tuple[Step, ...] = ()
    segments: tuple[Segment, ...] = ()
    runs: int = 0
    mask_bytes: list[int] | None = None  # of the masks that crossed last time; None: not known

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
        "input": buffers.address(INPUT),
        "image_hw": buffers.address("staging") + staging["image_hw"],
        "priors": priors,
    }
    sizes_hw = np.array([kind.image_hw for kind in layout.kinds], np.int32)
    staged = buffers.pinned_view("staging", staging_bytes)
    plan = FramePlan(
        layout,
        request,
        values,
        masks,
        sizes_hw,
        staged[: sizes_hw.nbytes].view(np.int32).reshape(sizes_hw.shape),
        tuple(_pixels(staged, staging.get(str(number)), kind.image_hw) for number, kind in enumerate(layout.kinds)),
        _views(buffers.pinned_view("results", result_bytes), results, placed),
        context,
    )
    addresses = {name: buffers.address(name) for name in (INPUT, *OUTPUTS)}
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
    plane_bytes = 3 * size * size * model.dtypes[INPUT].itemsize
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


def _pixels(block: Image, offset: int | None, image_hw: tuple[int, int]) -> Image | None:
    if offset is None:
        return None
    return block[offset : offset + pixel_bytes(image_hw)].reshape(*image_hw, 3)


def write_staging(
    plan: FramePlan,
    images: Sequence[Image | None],  # in the layout's order, None where it is on the device already
) -> None:
    """Sizes and pixels to where they cross from."""
    plan.staged_sizes_hw[...] = plan.sizes_hw
    for staged, image in zip(plan.staged_pixels, images, strict=True):
        if staged is not None and image is not None:
            staged[...] = image
