"""What the kernels are compiled for: one unit of source, and the definitions that fit it to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from yolact_deploy.errors import SpecError
from yolact_deploy.spec import INPUT, OUTPUTS, ModelSpec, NmsMode

SOURCES = (
    "common.cu",
    "preprocess.cu",
    "decode.cu",
    "nms.cu",
    "masks.cu",
    "rle.cu",
    "gate.cu",
)  # in the order of their use
COMPILE_FLAGS = ("--std=c++17", "--fmad=false")  # exact: no fused multiply-add that is not written
MAX_SORTED = 1024  # largest top_k and max_detections: what a block's shared memory sorts
MAX_CLASSES = 4095  # a warp holds a row of scores in registers


UNPACK_BYTES = 16  # of dense masks, that a thread writes at once, in every geometry

_FP16_FIELDS = dict(
    zip((INPUT, *OUTPUTS), ("input_fp16", "loc_fp16", "conf_fp16", "coeff_fp16", "proto_fp16"), strict=True)
)


@dataclass(frozen=True)
class Geometry:
    """Threads of a block, and what each of them makes: multiples of a warp's 32, of decode and of a mask a power of two, at most
    1024. Results are the same in every geometry."""

    preprocess_columns: int = 32  # threads beside each other, a column of pixels each
    preprocess_lines: int = 8  # threads below each other
    preprocess_rows: int = 4  # of pixels, that a thread makes
    decode_threads: int = 256
    nms_threads: int = 512
    select_threads: int = 1024
    mask_threads: int = 256  # a column of a tile's pixels each
    rle_threads: int = 256


@dataclass(frozen=True)
class Specialization:
    """Compile-time definitions. Raises SpecError for sizes that the kernels are not made for."""

    num_classes: int  # C, foreground
    num_coeff: int  # K
    top_k: int = 200
    max_detections: int = 100
    cross_class: bool = False
    conf_logits: bool = False
    clip_boxes: bool = False  # at the border, before they are compared
    pad: bool = False  # an image is the top left of a square: see `canvas_hw`
    loc_fp16: bool = False
    conf_fp16: bool = False
    coeff_fp16: bool = False
    proto_fp16: bool = False
    input_fp16: bool = False
    geometry: Geometry = field(default=Geometry(), repr=False)

    def __post_init__(self) -> None:
        for name, value in (("top_k", self.top_k), ("max_detections", self.max_detections)):
            if not 1 <= value <= MAX_SORTED:
                raise SpecError(
                    f"the GPU kernels take a postprocess.{name} of 1 to {MAX_SORTED}, found {value}; "
                    'lower it, or run the model with device="cpu".'
                )
        if not 1 <= self.num_classes <= MAX_CLASSES:
            raise SpecError(f"the GPU kernels take 1 to {MAX_CLASSES} classes, found {self.num_classes}.")
        if self.num_coeff < 1:
            raise SpecError(f"the GPU kernels need at least 1 mask coefficient, found {self.num_coeff}.")

    @property
    def lists(self) -> int:
        """L: lists of candidates that FastNMS treats apart, one per class or one in all."""
        return 1 if self.cross_class else self.num_classes

    @property
    def max_out(self) -> int:
        """M: most detections of an image."""
        return self.top_k if self.cross_class else self.max_detections

    @property
    def dtypes(self) -> dict[str, np.dtype[np.generic]]:
        """float16 or float32 of INPUT and of every one of OUTPUTS."""
        return {
            name: np.dtype(np.float16 if getattr(self, flag) else np.float32) for name, flag in _FP16_FIELDS.items()
        }

    def canvas_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """What boxes and prototypes are relative to: the image, or with `pad` the square that it is padded to."""
        side = max(image_hw)
        return (side, side) if self.pad else image_hw

    def definitions(self) -> dict[str, int]:
        """Name -> value of every preprocessor definition that the sources need."""
        fields = {name: value for name, value in vars(self).items() if name != "geometry"}
        sizes = {name.upper(): int(value) for name, value in {**fields, **vars(self.geometry)}.items()}
        return {**sizes, "UNPACK_BYTES": UNPACK_BYTES}


def specialize(
    spec: ModelSpec,
    *,
    nms: NmsMode | None = None,  # the spec's own
    fp16_tensors: Mapping[str, bool] | None = None,  # by I/O name (INPUT and OUTPUTS); those left out are float32
) -> Specialization:
    """The specialization of a model. Raises SpecError for one that the kernels are not made for ("traditional" NMS too)."""
    mode = nms or spec.postprocess.nms
    if mode == "traditional":
        raise SpecError(
            'the GPU kernels know "fast" and "cross_class" NMS, found "traditional"; '
            "choose one of them, or detect on the CPU."
        )
    fp16 = dict(fp16_tensors or {})
    unknown = sorted(set(fp16) - {*OUTPUTS, INPUT})
    if unknown:
        raise SpecError(f"no such I/O tensors: {', '.join(unknown)}; want {INPUT}, {', '.join(OUTPUTS)}.")
    half = {flag: fp16.get(name, False) for name, flag in _FP16_FIELDS.items()}
    return Specialization(
        num_classes=spec.num_classes,
        num_coeff=spec.num_prototypes,
        top_k=spec.postprocess.top_k,
        max_detections=spec.postprocess.max_detections,
        cross_class=mode == "cross_class",
        conf_logits=spec.conf_activation == "logits",
        clip_boxes=spec.postprocess.clip_boxes,
        pad=spec.preprocess.resize == "pad",
        loc_fp16=half["loc_fp16"],
        conf_fp16=half["conf_fp16"],
        coeff_fp16=half["coeff_fp16"],
        proto_fp16=half["proto_fp16"],
        input_fp16=half["input_fp16"],
    )


def kernel_source() -> str:
    """The one unit of CUDA source, without includes; #line directives name the files it came from."""
    folder = Path(__file__).parent / "kernels"
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text(encoding="utf-8")}' for name in SOURCES)


def compile_options(specialization: Specialization, architecture: str) -> list[str]:
    """NVRTC's options for an architecture such as "sm_90"."""
    definitions = [f"-D{name}={value}" for name, value in specialization.definitions().items()]
    return [f"--gpu-architecture={architecture}", *COMPILE_FLAGS, *definitions]
