"""What things are called in and around our files: tensors, metadata, suffixes, precisions, the TensorRTs that run plans, and
what may be chosen when they are made and run.

These strings are the file format: an artifact made today is read by them tomorrow. The command line takes its choices from here,
so this module loads nothing that `--help` could do without.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from yolact_deploy.spec import INPUT as INPUT
from yolact_deploy.spec import OUTPUTS as OUTPUTS

FLOAT32_OUTPUTS = frozenset({"loc", "conf"})  # in every precision: boxes and scores can't spare the digits

ONNX_SUFFIX = ".onnx"
PLAN_SUFFIXES = (".engine", ".plan")
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt")  # the usual ones: what is neither ONNX nor plan is tried as a checkpoint

# In an ONNX's metadata_props.
SPEC_METADATA_KEY = "yolact_deploy.spec"  # ModelSpec.to_json()
PRECISION_METADATA_KEY = "yolact_deploy.precision"  # one of PRECISIONS, as the file says of itself
CHECKPOINT_SHA256_METADATA_KEY = "yolact_deploy.checkpoint_sha256"
WEIGHTS_SHA256_METADATA_KEY = "yolact_deploy.weights_sha256"  # of the initializers, see `onnx_bytes`
VERSION_METADATA_KEY = "yolact_deploy.version"  # of this project, when it wrote the file
MAX_BATCH_METADATA_KEY = "yolact_deploy.max_batch"  # largest batch the file was exported for
MASK_IOU_METADATA_KEY = "yolact_deploy.mask_iou"  # YOLACT++: the mask-IoU network, itself an ONNX file, in base64
FORM_METADATA_KEY = "yolact_deploy.form"  # END_TO_END; without it, the ordinary export
CHANNEL_ORDER_METADATA_KEY = "yolact_deploy.channel_order"  # end to end: "bgr" or "rgb", of the input's last axis

Form = Literal["heads", "end-to-end"]  # what the outputs are: head tensors, or finished detections
END_TO_END: Final = "end-to-end"

# Of the mask-IoU network: soft masks in, their IoU by class out.
MASK_IOU_INPUT, MASK_IOU_OUTPUT = "masks", "mask_iou"

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PlanPrecision = Literal[Precision, "tf32"]  # tf32: of a float32 graph, whose layers multiply numbers rounded to 10 bits
PLAN_PRECISIONS: tuple[PlanPrecision, ...] = get_args(PlanPrecision)
TF32: Final = "tf32"
LowPrecision = Literal["fp16", "int8"]  # what a float32 file is lowered to
IoPrecision = Literal["fp32", "fp16"]  # of a lowered file's inputs and outputs
Calibrator = Literal["max", "entropy", "percentile", "mse"]  # how INT8 ranges are chosen from what was seen
DcnForm = Literal["native", "gridsample"]  # how deformable convolutions are written
DcnChoice = Literal["auto", DcnForm]
ChannelOrder = Literal["bgr", "rgb"]  # of images that are given

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]  # of what runs a plan; also the package's name on PyPI
RuntimeChoice = Literal["auto", RuntimeName]
TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"

OnnxRuntimeName = Literal["onnxruntime", "openvino"]  # of what runs an ONNX; also the package's name on PyPI
OnnxRuntimeChoice = Literal["auto", OnnxRuntimeName]
CpuPrecision = Literal["f32", "bf16"]  # what a CPU computes the layers in that a file has in floating point
GpuPrecision = Literal["fp32", "tf32"]  # what onnxruntime computes the float32 layers of a file in on an NVIDIA GPU

Scenario = Literal["single-stream", "offline", "server"]  # of MLPerf, which `bench` runs

Progress = Callable[[str, int, int], None]  # told what is done, the step, and of how many
StepProgress = Callable[[int, int], None]  # where there is but one thing to do


class PlanRuntime(NamedTuple):
    """A library that runs plans."""

    title: str  # for people
    module: str  # that is imported
    extra: str  # of this project, which brings it


PLAN_RUNTIMES: Mapping[RuntimeName, PlanRuntime] = {
    TENSORRT: PlanRuntime("TensorRT", "tensorrt", "gpu"),
    TENSORRT_RTX: PlanRuntime("TensorRT-RTX", "tensorrt_rtx", "rtx"),
}


# TensorRT's names of its types -> NumPy's
_TENSORRT_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
    "INT64": "int64", "BOOL": "bool",
}  # fmt: skip


def tensorrt_dtype(dtype: Any) -> str:
    """NumPy's name of a TensorRT data type, or TensorRT's own in lower case where NumPy has none."""
    name: str = dtype.name
    return _TENSORRT_DTYPES.get(name, name.lower())


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """By its name: `model.onnx`, `MODEL.ONNX`."""
    return Path(path).suffix.lower() == ONNX_SUFFIX


def is_plan(path: str | os.PathLike[str]) -> bool:
    """By its name: `model.engine`, `model.plan`."""
    return Path(path).suffix.lower() in PLAN_SUFFIXES


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """By its name: `model.pth`, `model.pt`, `model.ckpt`."""
    return Path(path).suffix.lower() in CHECKPOINT_SUFFIXES


def module_of(node_name: str) -> str:
    """The module that an ONNX node comes from, which the exporter writes before its operator; "" where the name has none.

    Paths with slashes, as PyTorch's older exporter writes them, become dotted ones.

    >>> module_of("fpn.lat_layers.0/Conv"), module_of("/fpn/lat_layers.0/Conv")
    ('fpn.lat_layers.0', 'fpn.lat_layers.0')
    """
    return node_name.strip("/").rpartition("/")[0].replace("/", ".")
