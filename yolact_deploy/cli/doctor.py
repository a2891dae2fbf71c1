"""`yolact-deploy doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from yolact_deploy.cli.console import DebugOption, JsonOption, print_json, print_tables, progress_bar, reports_errors


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
    import engines
    import exporters
    from engines.adapters import parse_targets
    from yolact_deploy.diagnosis import diagnose
    from yolact_deploy.errors import BuildRequestError
    from yolact_deploy.reports.tables import doctor_tables

    if not warm and (artifact is not None or target):
        raise BuildRequestError("an artifact and --target tell what to compile: add --warm.")
    with progress_bar() as progress:
        report = diagnose(
            engines.available_runtimes(),
            warm=warm,
            artifact=None if artifact is None else exporters.inspect(artifact),
            targets=parse_targets(target or ()),
            progress=lambda done, total: progress("compile", done, total),
        )
    if json_output:
        print_json(report)
    else:
        print_tables(doctor_tables(report))
