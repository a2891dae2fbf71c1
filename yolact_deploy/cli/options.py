"""Options that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

# As the packages that take them define them, which are too heavy for `--help`.
Runtime = Literal["auto", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "int8"]
LowPrecision = Literal["fp16", "int8"]
IoPrecision = Literal["fp32", "fp16"]
Calibrator = Literal["max", "entropy", "percentile", "mse"]
Nms = Literal["fast", "cross_class", "traditional"]
ConfActivation = Literal["softmax", "logits"]
ChannelOrder = Literal["bgr", "rgb"]
Dcn = Literal["auto", "native", "gridsample"]
Scenario = Literal["single-stream", "offline", "server"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON; stdout then holds nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network. Default: all cores.")]
NmsOption = Annotated[Nms | None, typer.Option(help="Default: the model's own, FastNMS per class.")]
ArtifactArgument = Annotated[Path, typer.Argument(help="An exported .onnx, or a plan (.engine) with its sidecar.")]
ConfigOption = Annotated[str | None, typer.Option(help="A published configuration, such as yolact_base.")]
SpecOption = Annotated[Path | None, typer.Option(help='A spec file (JSON), whole or with "extends".')]

CalibOption = Annotated[Path | None, typer.Option(help="Folder of images like those the model will see, 128 or more.")]
CalibratorOption = Annotated[Calibrator, typer.Option(help="How ranges are chosen from what was seen.")]
CalibCacheOption = Annotated[Path | None, typer.Option(help="Ranges (JSON): reused if they fit, else written.")]
KeepFp16Option = Annotated[list[str] | None, typer.Option(help="A module to keep out of INT8; may be repeated.")]
IoPrecisionOption = Annotated[IoPrecision, typer.Option(help="Of the model's inputs and outputs.")]
MaxApDropOption = Annotated[float | None, typer.Option(min=0, help="Fail when more points (of 100) are lost.")]
AnnotationsOption = Annotated[Path | None, typer.Option(help="COCO annotations to measure AP with.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of the annotated images.")]
AutoOption = Annotated[bool, typer.Option("--auto", help="Keep the fewest modules in FP16 that pass the gate.")]
SensitivityOption = Annotated[bool, typer.Option("--sensitivity", help="Measure what each module costs in INT8.")]
MaxPixelsOption = Annotated[
    int, typer.Option(min=1, help="Images with more pixels are refused before they are decoded.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first images, by id.")]
