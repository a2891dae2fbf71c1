"""Commands that tell what there is: compare, inspect, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yolact_deploy.cli.console import print_json, print_table, progress_bar, reports_errors, say
from yolact_deploy.cli.options import (
    AnnotationsOption,
    ConfigOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    SpecOption,
)
from yolact_deploy.optional import require_export

if TYPE_CHECKING:
    from yolact_deploy.cuda.drivers.interface import GpuDevice


@reports_errors
def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint or an ONNX of any precision; the reference.")],
    b: Annotated[Path, typer.Argument(help="What is compared with it.")],
    images: Annotated[Path, typer.Option(help="Image or folder.")],
    annotations: AnnotationsOption = None,
    config: ConfigOption = None,
    spec: SpecOption = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Detections count above it.")] = 0.15,
    html: Annotated[Path | None, typer.Option(help="Write a page with the worst images side by side.")] = None,
    device: DeviceOption = "auto",
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare two artifacts on real images: tensors, detections, masks, AP."""
    require_export("comparing artifacts")
    from exporters.comparison.compare import DEFAULT_EXAMPLES
    from exporters.comparison.compare import compare as run_compare
    from exporters.comparison.page import write_html
    from yolact_deploy.files import check_writable
    from yolact_deploy.reports.precision import compare_tables

    if html is not None:
        check_writable(html)
    with progress_bar() as progress:
        report = run_compare(
            a,
            b,
            [images],
            annotations=annotations,
            spec_file=spec,
            config=config,
            score_threshold=score_threshold,
            examples=0 if html is None else DEFAULT_EXAMPLES,
            device=device,
            progress=lambda step, total: progress("compare", step, total),
        )
    if html is not None:
        write_html(report, html)
    if json_output:
        print_json(report.to_dict())
    else:
        for table in compare_tables(report.to_dict()):
            print_table(table)
    if report.skipped:
        raise typer.Exit(1)


@reports_errors
def inspect(
    artifact: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX, a plan or a spec file.")],
    lint: Annotated[bool, typer.Option("--lint", help="Check the Q/DQ of an ONNX for what TensorRT wants.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what an artifact is: spec, inputs and outputs, precision, targets."""
    from yolact_deploy.reports.tables import inspect_tables

    if lint:
        _lint(artifact, json_output)
        return
    report = _inspect(artifact)
    if json_output:
        print_json(report)
    else:
        for table in inspect_tables(report):
            print_table(table)
        if report.get("spec_error"):
            say(report["spec_error"])  # as text: it may hold a spec file to copy


@reports_errors
def doctor(
    artifact: Annotated[Path | None, typer.Argument(help="With --warm: the model whose kernels to compile.")] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Compile the GPU kernels into the cache now.")] = False,
    target: Annotated[
        list[str] | None, typer.Option(help="With --warm: architectures instead of the GPUs here, as sm86,sm89.")
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what is installed, what can run here, and what to install."""
    from engines.adapters import available_runtimes
    from yolact_deploy.cli.doctor import examine
    from yolact_deploy.cuda.drivers.opening import visible_devices
    from yolact_deploy.errors import BuildRequestError
    from yolact_deploy.reports.tables import doctor_tables

    if not warm and (artifact is not None or target):
        raise BuildRequestError("an artifact and --target tell what to compile: add --warm.")
    gpus = visible_devices()
    warmed = _warm(artifact, target, gpus) if warm else None
    report = examine(available_runtimes(), gpus)
    if warmed is not None:
        report["warmed"] = warmed
    if json_output:
        print_json(report)
    else:
        for table in doctor_tables(report):
            print_table(table)


def _warm(artifact: Path | None, target: Sequence[str] | None, gpus: Sequence[GpuDevice]) -> list[dict[str, Any]]:
    from engines.adapters import parse_targets
    from yolact_deploy.cli.doctor import warm_kernels

    with progress_bar() as progress:
        warmed = warm_kernels(
            None if artifact is None else _inspect(artifact),
            parse_targets(target or ()),
            gpus,
            progress=lambda step, total: progress("compile", step, total),
        )
    return [
        {
            "architecture": entry.architecture,
            "classes": entry.specialization.num_classes,
            "nms": "cross_class" if entry.specialization.cross_class else "fast",
            "compiler": entry.compiler,
            "was_cached": entry.was_cached,
            "seconds": entry.seconds,
        }
        for entry in warmed
    ]


def _inspect(artifact: Path) -> dict[str, Any]:
    from yolact_deploy.artifacts.names import is_onnx, is_plan
    from yolact_deploy.errors import ArtifactError

    if not artifact.is_file():
        raise ArtifactError(
            f"{artifact} {'is a folder' if artifact.is_dir() else 'does not exist'}; nothing to inspect."
        )
    if is_onnx(artifact):
        from engines.inspection import inspect_onnx

        return inspect_onnx(artifact)
    if is_plan(artifact):
        from engines.inspection import inspect_plan

        return inspect_plan(artifact)
    if artifact.suffix.lower() == ".json":
        from exporters.checkpoints.configs import load_spec

        return {"kind": "spec", "path": str(artifact), "spec": load_spec(artifact).to_dict()}
    require_export("reading a checkpoint")
    from exporters.checkpoints.evidence import inspect_checkpoint

    return inspect_checkpoint(artifact)


def _lint(artifact: Path, json_output: bool) -> None:
    from engines.lint.linter import lint_onnx
    from yolact_deploy.reports.precision import lint_table

    report = lint_onnx(artifact)
    if json_output:
        print_json(report.to_dict())
    else:
        print_table(lint_table(report.to_dict()))
    if not report.passed:
        raise typer.Exit(1)
