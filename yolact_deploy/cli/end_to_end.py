"""What `export --end-to-end` and `build-engine --image-size` add to the commands that make artifacts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yolact_deploy.cli.options import ChannelOrder, IoPrecision, Nms
from yolact_deploy.errors import BuildRequestError, SpecError


def check_end_to_end_request(
    end_to_end: bool, nms: Nms | None, channel_order: ChannelOrder | None, io_precision: IoPrecision
) -> None:
    """Refuse before the export what would fail or have no effect after it."""
    idle = [option for option, value in (("--nms", nms), ("--channel-order", channel_order)) if value is not None]
    if idle and not end_to_end:
        raise SpecError(f"{', '.join(idle)} has no effect on the ordinary export. Add --end-to-end, or leave it out.")
    if end_to_end and io_precision is IoPrecision.fp16:
        raise SpecError("an end-to-end graph takes bytes and gives float32, so --io-precision fp16 can't be had.")
    if nms is Nms.traditional:
        from yolact_deploy.artifacts.contract import TRADITIONAL_IS_A_LOOP

        raise SpecError(TRADITIONAL_IS_A_LOOP)


def make_end_to_end(
    heads: Path,
    output: Path,
    nms: Nms | None,
    channel_order: ChannelOrder | None,
    parity: bool,
    parity_images: Path | None,
) -> dict[str, Any]:
    """The last step of `export --end-to-end`, as its report."""
    from exporters.end_to_end.export import export_end_to_end
    from yolact_deploy.reference.images import list_images, read_image

    paths = list_images([parity_images]) if parity_images else []
    result = export_end_to_end(
        heads,
        output,
        channel_order=channel_order.value if channel_order else "bgr",
        nms=nms.value if nms and nms is not Nms.traditional else None,
        images=[(str(path), read_image(path)) for path in paths],
        parity=parity,
    )
    return result.to_dict()


def image_range(text: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """MIN, OPT, MAX (height, width) of "32x32,640x480,1920x1080" or of one size."""
    matches = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip().lower()) for part in text.split(",")]
    sizes = [(int(match[2]), int(match[1])) for match in matches if match]
    if len(sizes) != len(matches) or len(sizes) not in (1, 3):
        raise BuildRequestError(
            f"--image-size takes WIDTHxHEIGHT, or three of them as MIN,OPT,MAX (32x32,640x480,1920x1080), found {text!r}."
        )
    return (sizes[0], sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])
