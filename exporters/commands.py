"""What `yolact-deploy export` and `quantize` do, as Python functions with the same options.

PyTorch and ONNX are imported when a function is called, and their absence is told in words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yolact_deploy.arguments as arguments
from yolact_deploy.arguments import given
from yolact_deploy.artifacts.names import (
    CHECKPOINT_SHA256_METADATA_KEY,
    Calibrator,
    ChannelOrder,
    CpuPrecision,
    DcnChoice,
    IoPrecision,
    LowPrecision,
    OnnxRuntimeChoice,
    Precision,
    Progress,
)
from yolact_deploy.errors import ExportError
from yolact_deploy.files import atomic_path, check_writable, refuse_overwriting, sha256_file
from yolact_deploy.optional import require_export
from yolact_deploy.reference.images import list_images, read_image
from yolact_deploy.spec import ConfActivation, NmsMode

if TYPE_CHECKING:
    from exporters.end_to_end.export import EndToEndResult
    from exporters.parity import ParityReport
    from exporters.precision.result import PrecisionResult

PathLike = str | os.PathLike[str]

_LEAST_OPSET = 17
_MAX_LISTED_FAILURES = 3


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote, and the proof."""

    output: Path
    spec_name: str
    opset: int
    max_batch: int
    size_bytes: int
    sha256: str  # of the ONNX file
    checkpoint_sha256: str
    notes: tuple[str, ...]  # where the spec came from, and what was forgiven in the checkpoint
    parity: ParityReport | None  # of the float32 ONNX; None where it was not asked for
    seconds: dict[str, float]  # per step of the float32 export
    lowered: PrecisionResult | None = None  # in FP16 or INT8
    end_to_end: EndToEndResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `export --json`; "lowered" and "end_to_end" are there where they were asked for."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content |= {"output": str(self.output), "notes": list(self.notes)}
        content["parity"] = None if self.parity is None else self.parity.to_dict()
        for name in ("lowered", "end_to_end"):
            part = content.pop(name)
            if part is not None:
                content[name] = part.to_dict()
        return content


def export(
    checkpoint: PathLike,
    output: PathLike,
    *,
    config: str | None = None,
    spec: PathLike | None = None,
    max_batch: int = 8,
    opset: int = 19,
    conf: ConfActivation = "softmax",
    dcn: DcnChoice = "auto",
    parity: bool = True,
    parity_images: PathLike | Sequence[PathLike] | None = None,
    precision: Precision = "fp32",
    calib: PathLike | Sequence[PathLike] | None = None,
    calibrator: Calibrator = "entropy",
    calib_cache: PathLike | None = None,
    max_ap_drop: float | None = None,
    annotations: PathLike | None = None,
    images: PathLike | None = None,
    io_precision: IoPrecision = "fp32",
    end_to_end: bool = False,
    nms: NmsMode | None = None,
    channel_order: ChannelOrder | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """A trained checkpoint as a self-describing ONNX that was proven to compute the same.

    What the checkpoint is comes from a `spec` file, a published `config`, the file's name or its tensors. The network takes
    batches of 1 to `max_batch` (fixed where that is 1); `conf` "logits" leaves the softmax to the runtime; `dcn` is the form
    of a YOLACT++'s deformable convolutions (see `export_onnx`). With `parity`, the ONNX is compared with PyTorch on
    `parity_images` (files and folders; None: built-in ones).

    With `precision` "fp16" or "int8" the float32 ONNX is then lowered as `quantize` does it, by `calib`, `calibrator`,
    `calib_cache`, `max_ap_drop`, `annotations`, `images` and `io_precision`. With `end_to_end` the graph goes from an image's
    bytes, in `channel_order` ("bgr" by default), to boxes and masks, with `nms` in place of the spec's.

    `output` appears only when every comparison passed. `progress` is told what is done, the step, and of how many.

    Raises OptionError, CheckpointError, SpecError, CalibrationError, ImageError, AnnotationError or OutputError for what
    was given, before any work where that can be; ExportError when PyTorch can't export, a comparison fails or a gate is not
    met; MissingDependencyError.

        result = exporters.export("yolact_base_54_800000.pth", "model.onnx", precision="fp16", calib="photos")
    """
    require_export("exporting a checkpoint")
    for name, value, choices in (
        ("precision", precision, Precision),
        ("conf", conf, ConfActivation),
        ("dcn", dcn, DcnChoice),
        ("calibrator", calibrator, Calibrator),
        ("io_precision", io_precision, IoPrecision),
        ("nms", nms, NmsMode),
        ("channel_order", channel_order, ChannelOrder),
    ):
        if value is not None and value not in get_args(choices):
            raise ExportError(f"{name} must be one of {', '.join(get_args(choices))}, found {value!r}.")
    arguments.check_paths(checkpoint=checkpoint, output=output, **given(spec=spec, calib_cache=calib_cache))
    arguments.check_paths(**given(annotations=annotations, images=images))
    arguments.check_sources(**given(parity_images=parity_images, calib=calib))
    arguments.check_texts(**given(config=config))
    arguments.check_counts(max_batch=max_batch)
    arguments.check_counts(_LEAST_OPSET, opset=opset)
    arguments.check_flags(parity=parity, end_to_end=end_to_end)
    arguments.check_numbers(**given(max_ap_drop=max_ap_drop))
    arguments.check_callables(progress=progress)
    checkpoint, output = Path(checkpoint), Path(output)
    check_writable(output)
    refuse_overwriting(output, checkpoint)
    if precision != "fp32" or any(x is not None for x in (calib, calib_cache, max_ap_drop, annotations)):
        from exporters.precision.calibration import check_before_export

        check_before_export(precision, opset, calib, calib_cache, max_ap_drop, annotations)
    if end_to_end or nms is not None or channel_order is not None:
        from exporters.end_to_end.export import check_request

        check_request(end_to_end, nms, channel_order, io_precision)
    shown = [] if parity_images is None else [(str(path), read_image(path)) for path in _listed(parity_images)]
    tell = progress or (lambda what, step, total: None)
    with tempfile.TemporaryDirectory() as folder:
        heads = Path(folder) / f"{output.stem}.heads.onnx" if end_to_end else output
        fp32 = heads if precision == "fp32" else Path(folder) / f"{output.stem}.fp32.onnx"
        result = _export_float32(
            checkpoint,
            fp32,
            spec=spec,
            config=config,
            opset=opset,
            max_batch=max_batch,
            conf=conf,
            dcn=dcn,
            parity=parity,
            images=shown,
            progress=tell,
        )
        if precision != "fp32":
            lowered = quantize(
                fp32,
                heads,
                precision=precision,
                calib=calib,
                calibrator=calibrator,
                calib_cache=calib_cache,
                io_precision=io_precision,
                max_ap_drop=max_ap_drop,
                annotations=annotations,
                images=images,
                progress=progress,
            )
            lowered = dataclasses.replace(lowered, output=output)
            result = dataclasses.replace(result, lowered=lowered, size_bytes=lowered.size_bytes, sha256=lowered.sha256)
        if end_to_end:
            from exporters.end_to_end.export import export_end_to_end

            tell("making it end to end", 0, 1)
            own = None if nms == "traditional" else nms  # which was refused above
            order: ChannelOrder = channel_order or "bgr"
            whole = export_end_to_end(heads, output, channel_order=order, nms=own, images=shown, parity=parity)
            result = dataclasses.replace(result, end_to_end=whole, size_bytes=whole.size_bytes, sha256=whole.sha256)
    return dataclasses.replace(result, output=output)


def quantize(
    model: PathLike,
    output: PathLike,
    *,
    precision: LowPrecision = "int8",
    calib: PathLike | Sequence[PathLike] | None = None,
    calibrator: Calibrator = "entropy",
    calib_cache: PathLike | None = None,
    keep_fp16: Sequence[str] = (),
    io_precision: IoPrecision = "fp32",
    max_ap_drop: float | None = None,
    annotations: PathLike | None = None,
    images: PathLike | None = None,
    limit: int | None = None,
    auto: bool = False,
    sensitivity: bool = False,
    runtime: OnnxRuntimeChoice = "auto",
    cpu_precision: CpuPrecision = "f32",
    progress: Progress | None = None,
) -> PrecisionResult:
    """A float32 ONNX of `export` in FP16, or with its convolutions in INT8, and what that costs.

    `calib` (files and folders of images like those the model will see, 128 or more) gives INT8 its ranges, chosen by
    `calibrator`, and shows which layers leave half's range; fp16 without any is checked on built-in pictures. Ranges are
    read from `calib_cache` (JSON) where they fit, else written there. `keep_fp16` are modules to keep out of INT8.

    With `annotations` (COCO, over the first `limit` images of the folder `images`) AP is measured, and more than
    `max_ap_drop` points lost are an error; without them, any `max_ap_drop` asks for agreement with the float32 detections
    on the images of `calib`. Both models run on the CPU, in the `runtime` of Detector; `cpu_precision` is that of the lowered
    one. `auto` keeps the fewest modules in FP16 that pass; `sensitivity` measures what each costs.

    `output` appears only when all is passed. `progress` is told what is done, the step, and of how many.

    Raises OptionError, ArtifactError, SpecError, CalibrationError, ImageError, AnnotationError or OutputError for what was
    given, ExportError for a failed conversion or a gate that is not met, MissingDependencyError.

        exporters.quantize("model.onnx", "model.int8.onnx", calib="photos", max_ap_drop=0.5,
                           annotations="instances.json", images="val")
    """
    require_export("changing a model's precision")
    paths = given(calib_cache=calib_cache, annotations=annotations, images=images)
    arguments.check_paths(model=model, output=output, **paths)
    arguments.check_sources(**given(calib=calib))
    arguments.check_choice("calibrator", calibrator, get_args(Calibrator))
    arguments.check_text_lists(keep_fp16=keep_fp16)
    arguments.check_numbers(**given(max_ap_drop=max_ap_drop))
    arguments.check_counts(**given(limit=limit))
    arguments.check_flags(auto=auto, sensitivity=sensitivity)
    arguments.check_callables(progress=progress)
    from exporters.precision.run import apply_precision

    return apply_precision(
        Path(model),
        Path(output),
        precision=precision,
        calibration_images=() if calib is None else _listed(calib),
        calibrator=calibrator,
        calibration_cache=None if calib_cache is None else Path(calib_cache),
        keep_fp16=keep_fp16,
        io_precision=io_precision,
        annotations=None if annotations is None else Path(annotations),
        annotated_images=None if images is None else Path(images),
        limit=limit,
        max_ap_drop=max_ap_drop,
        auto=auto,
        sensitivity=sensitivity,
        runtime=runtime,
        cpu_precision=cpu_precision,
        progress=progress,
    )


def _export_float32(
    checkpoint: Path,
    output: Path,
    *,
    spec: PathLike | None,
    config: str | None,
    opset: int,
    max_batch: int,
    conf: ConfActivation,
    dcn: DcnChoice,
    parity: bool,
    images: Sequence[tuple[str, Any]],  # name and uint8 [H, W, 3] BGR
    progress: Progress,
) -> ExportResult:
    """Read `checkpoint`, export it, compare the ONNX with it, write `output`."""
    from exporters.checkpoints.checkpoint import build_model, load_checkpoint
    from exporters.onnx_export import export_onnx
    from exporters.parity import check_parity

    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(name: str, description: str) -> Iterator[None]:
        progress(description, 0, 1)
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    with step("load", f"reading {checkpoint}"):
        loaded = load_checkpoint(checkpoint, spec_file=None if spec is None else Path(spec), config=config)
        loaded = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, conf_activation=conf))
        model = build_model(loaded)
    report = None
    with atomic_path(output) as temporary:
        with step("export", f"exporting {loaded.spec.name} to ONNX opset {opset}"):
            origin = {CHECKPOINT_SHA256_METADATA_KEY: loaded.sha256}
            export_onnx(model, loaded.spec, temporary, opset=opset, max_batch=max_batch, dcn=dcn, metadata=origin)
        if parity:
            with step("parity", f"comparing with PyTorch on {len(images) or 'the built-in'} images"):
                report = check_parity(model, temporary, loaded.spec, images=images, dynamic_batch=max_batch > 1)
            if not report.passed:
                listed = "; ".join(report.failures()[:_MAX_LISTED_FAILURES])
                raise ExportError(
                    f"{output} was not written: in {report.runtime} it does not compute what PyTorch does. {listed}. "
                    "Try another onnxruntime or PyTorch version, and report it."
                )
    return ExportResult(
        output=output,
        spec_name=loaded.spec.name,
        opset=opset,
        max_batch=max_batch,
        size_bytes=output.stat().st_size,
        sha256=sha256_file(output),
        checkpoint_sha256=loaded.sha256,
        notes=loaded.notes,
        parity=report,
        seconds=seconds,
    )


def _listed(given: PathLike | Sequence[PathLike]) -> list[Path]:
    return list_images([given] if isinstance(given, (str, os.PathLike)) else given)
