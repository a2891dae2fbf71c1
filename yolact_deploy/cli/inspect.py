"""`yolact-deploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.console import DebugOption, JsonOption, print_json, print_tables, reports_errors, say


@reports_errors
def inspect(
    artifact: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX, a plan or a spec file.")],
    lint: Annotated[bool, typer.Option("--lint", help="Check the Q/DQ of an ONNX for what TensorRT wants.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what an artifact is: spec, inputs and outputs, precision, targets."""
    if lint:
        _lint(artifact, json_output)
        return
    import exporters
    from yolact_deploy.reports.tables import inspect_tables

    report = exporters.inspect(artifact)
    if json_output:
        print_json(report)
        return
    print_tables(inspect_tables(report))
    if report.get("spec_error"):
        say(report["spec_error"])  # as text: it may hold a spec file to copy


def _lint(artifact: Path, json_output: bool) -> None:
    import engines
    from yolact_deploy.reports.precision import lint_table

    report = engines.lint_onnx(artifact)
    if json_output:
        print_json(report.to_dict())
    else:
        print_tables([lint_table(report.to_dict())])
    if not report.passed:
        raise typer.Exit(1)
