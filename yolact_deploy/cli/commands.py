"""The commands under one name, `yolact-deploy`: this is the list of them."""

from __future__ import annotations

import functools

import typer

from yolact_deploy.cli import bench, build_engine, compare, detect, doctor, evaluate, export, inspect, quantize
from yolact_deploy.cli.console import CommandGroup, print_version, run

_HELP_WIDTH = 100  # of lines on a terminal that is wider

app = typer.Typer(
    name="yolact-deploy",
    cls=CommandGroup,
    callback=print_version,
    invoke_without_command=True,
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

main = functools.partial(run, app)  # the program `yolact-deploy`
