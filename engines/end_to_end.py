"""The input sizes that a plan is optimized for: of an end-to-end ONNX, those of images too."""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.artifacts.names import END_TO_END
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.artifacts.plan_file import BatchRange
from yolact_deploy.errors import BuildRequestError
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
    graph: OnnxFile, spec: ModelSpec, batch: BatchRange, images: tuple[Hw, Hw, Hw] | None
) -> tuple[tuple[Shape, Shape, Shape], list[str]]:
    """MIN, OPT and MAX shape of the input `image`, and notes on what was decided for the user.

    Raises BuildRequestError for image sizes that can't be, or where the graph takes no images but the network's input.
    """
    batches = (batch.min, batch.opt, batch.max)
    if graph.form != END_TO_END:
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
