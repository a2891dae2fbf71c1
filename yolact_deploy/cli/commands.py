"""The commands under one name, `yolact-deploy`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from yolact_deploy import __version__
from yolact_deploy.cli import bench, build_engine, compare, detect, doctor, evaluate, export, inspect, quantize
from yolact_deploy.cli.console import CommandGroup, say, to_stdout
from yolact_deploy.errors import OutputFailure

_HELP_WIDTH = 100  # of lines on a terminal that is wider
_QUIET_DECODERS = {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # files they can't read, we name

app = typer.Typer(
    name="yolact-deploy",
    cls=CommandGroup,
    help="Deploy YOLACT: checkpoint to ONNX, ONNX to TensorRT plans, images to masks, with proof at every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help cuts option names and splits choices on a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _HELP_WIDTH},
)
app.command()(export.export)
app.command()(quantize.quantize)
app.command()(build_engine.build_engine)
app.command()(detect.detect)
app.command("eval")(evaluate.evaluate)
app.command()(bench.bench)
app.command()(compare.compare)
app.command()(inspect.inspect)
app.command()(doctor.doctor)


def main() -> None:
    """The program `yolact-deploy`."""
    for variable, quiet in _QUIET_DECODERS.items():
        os.environ.setdefault(variable, quiet)
    ended = SystemExit(0)
    try:
        with to_stdout():
            try:
                app()
            except SystemExit as exc:
                ended = exc
    except OutputFailure as exc:  # of --help and --version; for what commands print they answer themselves
        say(f"error: {exc}")
        ended = SystemExit(exc.exit_code)
    except BrokenPipeError:
        ended = SystemExit(1)
    raise ended


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
