"""`yolact-deploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from yolact_deploy.cli.console import print_json, print_table, reports_errors, say
from yolact_deploy.cli.options import DebugOption, JsonOption
from yolact_deploy.optional import require_export


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
    report = inspect_artifact(artifact)
    if json_output:
        print_json(report)
    else:
        for table in inspect_tables(report):
            print_table(table)
        if report.get("spec_error"):
            say(report["spec_error"])  # as text: it may hold a spec file to copy


def inspect_artifact(artifact: Path) -> dict[str, Any]:
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
