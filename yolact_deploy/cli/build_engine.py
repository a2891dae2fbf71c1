"""`yolact-deploy build-engine`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.artifacts.names import PlanPrecision, RuntimeChoice
from yolact_deploy.cli.console import (
    DebugOption,
    JsonOption,
    print_json,
    print_tables,
    progress_bar,
    reports_errors,
    say,
)


@reports_errors
def build_engine(
    model: Annotated[Path, typer.Argument(help="An ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write; its sidecar goes beside it.")],
    precision: Annotated[
        PlanPrecision | None,
        typer.Option(
            help="What the ONNX must have; of an fp32 one, fp16 is made first, and tf32 is less exact and faster."
        ),
    ] = None,
    runtime: Annotated[RuntimeChoice, typer.Option(help="auto: TensorRT with a GPU, else TensorRT-RTX.")] = "auto",
    target: Annotated[
        str | None, typer.Option(help="GPUs of an RTX plan, such as sm86,sm89; current: this machine's.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at a time: least,most often,most; or one number.")] = "1,1,1",
    image_size: Annotated[
        str | None,
        typer.Option(
            help="With an end-to-end ONNX: smallest,most frequent,largest image, each WIDTHxHEIGHT; or one size."
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None, typer.Option(min=1, help="Most memory of the GPU that a layer may use, in MiB.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="TensorRT: file to keep what it timed, so that the next build is faster.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan. RTX plans are built ahead of time, on any machine."""
    import engines
    import exporters
    from engines.adapters import parse_targets
    from yolact_deploy.reports.tables import build_table

    with progress_bar() as progress:
        result = engines.build(
            model,
            output,
            precision=precision,
            runtime=runtime,
            targets=parse_targets([target]) if target else (),
            batch=_batch_range(batch),
            image_size=_image_range(image_size) if image_size else None,
            workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
            timing_cache=timing_cache,
            lower=exporters.quantize,
            on_note=say,
            progress=progress,
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
        return
    for note in report["notes"]:
        say(f"note: {note}")
    print_tables([build_table(report)])


def _batch_range(text: str) -> tuple[int, int, int]:
    from yolact_deploy.errors import BuildRequestError

    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise BuildRequestError(f"--batch takes MIN,OPT,MAX or one number, found {text!r}.")
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def _image_range(text: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """MIN, OPT, MAX (height, width) of "32x32,640x480,1920x1080" or of one size."""
    from yolact_deploy.errors import BuildRequestError

    matches = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip().lower()) for part in text.split(",")]
    sizes = [(int(match[2]), int(match[1])) for match in matches if match]
    if len(sizes) != len(matches) or len(sizes) not in (1, 3):
        raise BuildRequestError(
            f"--image-size takes WIDTHxHEIGHT, or three of them as MIN,OPT,MAX (32x32,640x480,1920x1080), found {text!r}."
        )
    return (sizes[0], sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])
