"""`yolact-deploy build-engine`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.console import Progress, print_json, print_table, progress_bar, reports_errors, say
from yolact_deploy.cli.options import DebugOption, JsonOption, Precision, Runtime


@reports_errors
def build_engine(
    model: Annotated[Path, typer.Argument(help="An ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write; its sidecar goes beside it.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Fail unless the ONNX has it; fp16 is made of fp32.")
    ] = None,
    runtime: Annotated[Runtime, typer.Option(help="auto: TensorRT with a GPU, else TensorRT-RTX.")] = "auto",
    target: Annotated[str | None, typer.Option(help="GPUs of an RTX plan, such as sm86,sm89.")] = None,
    batch: Annotated[str, typer.Option(help="Optimization profile MIN,OPT,MAX, or one number.")] = "1,1,1",
    image_size: Annotated[
        str | None, typer.Option(help="Of an end-to-end ONNX: WIDTHxHEIGHT, as MIN,OPT,MAX or one size.")
    ] = None,
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Limit of the builder's workspace.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Read if present, written afterwards.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan. RTX plans are built ahead of time, on any machine."""
    from engines.adapters import parse_targets
    from engines.builder import build_engine as build
    from yolact_deploy.files import check_writable
    from yolact_deploy.reports.tables import build_table

    batch_range, targets = _batch_range(batch), parse_targets([target]) if target else ()
    images = _image_range(image_size) if image_size else None
    check_writable(output)
    with progress_bar() as progress:
        typed = _typed_model(model, precision, progress)
        result = build(
            typed,
            output,
            runtime=runtime,
            targets=targets,
            batch=batch_range,
            images=images,
            precision=precision,
            workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
            timing_cache=timing_cache,
            progress=progress,
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
    else:
        for note in report["notes"]:
            say(f"note: {note}")
        print_table(build_table(report))


def _typed_model(model: Path, precision: Precision | None, progress: Progress) -> Path:
    """`model`, or the FP16 ONNX made of it beside it when that is asked for and it is float32.

    A file that stands there already is used if it is of the same checkpoint and spec, and never replaced.
    """
    if precision != "fp16":
        return model
    from yolact_deploy.artifacts.names import CHECKPOINT_SHA256_METADATA_KEY, SPEC_METADATA_KEY
    from yolact_deploy.artifacts.onnx_file import open_onnx
    from yolact_deploy.errors import OutputError

    graph = open_onnx(model)
    if graph.precision != "fp32":
        return model
    typed = model.with_name(f"{model.stem}.fp16.onnx")
    if typed.exists():
        found = open_onnx(typed)
        keys = (SPEC_METADATA_KEY, CHECKPOINT_SHA256_METADATA_KEY)
        same = all(found.metadata.get(key) == graph.metadata.get(key) for key in keys)
        if found.precision != "fp16" or not same:
            raise OutputError(f"{typed} is in the way: it is not the FP16 form of {model}. Move it, or build from it.")
        say(f"note: {model} is float32; built from its FP16 form {typed}, which was there.")
        return typed
    import exporters

    result = exporters.quantize(model, typed, precision="fp16", progress=progress)
    say(f"note: {model} is float32; its FP16 form was written to {typed}.")
    for warning in result.warnings:
        say(f"warning: {warning}")
    return typed


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
