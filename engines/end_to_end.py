"""What is different in building a plan from an end-to-end ONNX: its inputs and outputs, and images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.onnx_graph import OnnxGraph, check_io
from yolact_deploy.artifacts.end_to_end import io_problem, is_end_to_end
from yolact_deploy.artifacts.sidecar import BatchRange, IoTensor
from yolact_deploy.errors import BuildRequestError, SpecError
from yolact_deploy.spec import ModelSpec

Hw = tuple[int, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ImageRange:
    """Image sizes (height, width) of the optimization profile. Raises BuildRequestError."""

    min_hw: Hw = (32, 32)
    opt_hw: Hw = (480, 640)
    max_hw: Hw = (1280, 1280)

    def __post_init__(self) -> None:
        for axis in (0, 1):
            if not 1 <= self.min_hw[axis] <= self.opt_hw[axis] <= self.max_hw[axis]:
                raise BuildRequestError(
                    f"image sizes must satisfy 1 <= min <= opt <= max in width and in height, found {self}. "
                    "Give --image-size MIN,OPT,MAX as WIDTHxHEIGHT."
                )

    def __str__(self) -> str:
        return ",".join(f"{width}x{height}" for height, width in (self.min_hw, self.opt_hw, self.max_hw))


def input_shapes(
    graph: OnnxGraph, spec: ModelSpec, batch: BatchRange, images: tuple[Hw, Hw, Hw] | None
) -> tuple[tuple[Shape, Shape, Shape], list[str]]:
    """MIN, OPT and MAX shape of the input `image`, and notes on what was decided for the user.

    Raises BuildRequestError for image sizes that can't be, or where the graph takes no images but the network's input.
    """
    batches = (batch.min, batch.opt, batch.max)
    if not is_end_to_end(graph.metadata):
        if images is not None:
            raise BuildRequestError(
                f"{graph.path} takes preprocessed images of {spec.input_size}x{spec.input_size}, so there are no image sizes "
                "to choose. Leave --image-size out, or export with --end-to-end."
            )
        small, middle, large = ((count, 3, spec.input_size, spec.input_size) for count in batches)
        return (small, middle, large), []
    sizes = ImageRange() if images is None else ImageRange(*images)
    notes = (
        [] if images is not None else [f"no image sizes given: built for {sizes} (min, opt, max of width x height)."]
    )
    hws = (sizes.min_hw, sizes.opt_hw, sizes.max_hw)
    small, middle, large = ((count, *hw, 3) for count, hw in zip(batches, hws, strict=True))
    return (small, middle, large), notes


def check_graph_io(graph: OnnxGraph, tensors: Sequence[IoTensor], spec: ModelSpec, source: str) -> None:
    """Raise SpecError unless the tensors are those that the spec and the form of the graph describe."""
    if not is_end_to_end(graph.metadata):
        check_io(tensors, spec, source)
    elif problem := io_problem({tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}, spec):
        raise SpecError(
            f"{source}: the inputs and outputs contradict its own spec: {problem}. Export it again with "
            "`yolact-deploy export --end-to-end`."
        )
