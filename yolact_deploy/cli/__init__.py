"""The command line. Each command is a thin layer over a function that can be called from Python as well.

This package alone may import `exporters`, `engines` and `benchmarks`, and does so inside its commands.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from yolact_deploy import __version__
from yolact_deploy.cli import look, make, run
from yolact_deploy.cli.console import Commands

_QUIET_DECODERS = {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # files they can't read, we name

app = typer.Typer(
    name="yolact-deploy",
    cls=Commands,
    help="Deploy YOLACT: checkpoint to ONNX, ONNX to TensorRT plans, images to masks, with proof at every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(make.export)
app.command()(make.quantize)
app.command()(make.build_engine)
app.command()(run.detect)
app.command("eval")(run.evaluate_ap)
app.command()(run.bench)
app.command()(look.compare)
app.command()(look.inspect)
app.command()(look.doctor)


def main() -> None:
    for variable, quiet in _QUIET_DECODERS.items():
        os.environ.setdefault(variable, quiet)
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
