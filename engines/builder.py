"""From a typed ONNX to a TensorRT or TensorRT-RTX plan with its sidecar."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Protocol

from engines.adapters import Adapter, choose_runtime
from engines.lint.linter import lint_onnx
from engines.messages import BuildControl, LogRecord, build_errors, build_log, parser_errors, progress_monitor
from engines.network import Hw, Shape, engine_layers, input_shapes, network_layers, network_tensors
from yolact_deploy import __version__
from yolact_deploy.arguments import check_callables, check_counts, check_paths, check_text_lists, check_texts, given
from yolact_deploy.artifacts.contract import IoTensor, check_io
from yolact_deploy.artifacts.names import (
    CHECKPOINT_SHA256_METADATA_KEY,
    INPUT,
    PLAN_PRECISIONS,
    SPEC_METADATA_KEY,
    TF32,
    PlanPrecision,
    Progress,
)
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.artifacts.plan_file import (
    BatchRange,
    CompanionFile,
    Layers,
    Sidecar,
    layers_path,
    mask_iou_path,
    sidecar_path,
    write_layers,
    write_sidecar,
)
from yolact_deploy.errors import BuildRequestError, EngineError, OutputError, SpecError
from yolact_deploy.files import atomic_path, check_writable
from yolact_deploy.spec import ModelSpec

_MAX_LISTED_FINDINGS = 10

# TensorRT has one logger per process, so two builds at once could not tell their messages apart.
_one_build_at_a_time = threading.Lock()


@dataclass(frozen=True)
class BuildResult:
    """The files of a built plan, and what was decided and said on the way."""

    plan: Path
    sidecar_path: Path
    layers_path: Path
    sidecar: Sidecar
    build_seconds: float
    notes: tuple[str, ...]  # what was decided for the user, and what was asked for but has no effect
    warnings: tuple[str, ...]  # TensorRT's own
    mask_iou_path: Path | None = None  # YOLACT++: the network that scores masks

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "plan": str(self.plan),
            "sidecar_path": str(self.sidecar_path),
            "layers_path": str(self.layers_path),
            "mask_iou_path": str(self.mask_iou_path) if self.mask_iou_path is not None else None,
            "build_seconds": self.build_seconds,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "sidecar": self.sidecar.to_dict(),
        }


@dataclass(frozen=True)
class _Built:
    plan: bytes
    io_tensors: tuple[IoTensor, ...]
    layers: Layers
    notes: list[str]
    warnings: list[str]


class LoweredModel(Protocol):
    """What `LowerPrecision` made: its ONNX is written."""

    @property
    def warnings(self) -> Sequence[str]:
        """What lowering the precision found worth a warning."""
        ...


class LowerPrecision(Protocol):
    """Writes a float32 ONNX in FP16, as `exporters.quantize` does."""

    def __call__(
        self, model: Path, output: Path, *, precision: Literal["fp16"], progress: Progress | None
    ) -> LoweredModel: ...


def build(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: str | None = None,
    runtime: str = "auto",
    targets: Sequence[str] = (),
    batch: int | tuple[int, int, int] = 1,
    image_size: Hw | tuple[Hw, Hw, Hw] | None = None,
    workspace_bytes: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    lower: LowerPrecision | None = None,
    on_note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> BuildResult:
    """Build a plan from an ONNX written by `yolact-deploy export`, and write it with its sidecar and its layers.

    `runtime` is auto, tensorrt or tensorrt-rtx; `targets` are GPU architectures ("sm86", "8.6"), for tensorrt-rtx only;
    `batch` is the optimization profile, MIN, OPT, MAX or all in one, and `image_size` that of (height, width) where the ONNX
    is an end-to-end one (None: 32x32 to 1280x1280, best at 640x480). An int8 graph is linted first: errors refuse it,
    warnings are notes of the result. `progress(phase, steps_done, steps)` is called for TensorRT's own, nested phases.

    Precision is a property of the ONNX: `precision` checks that it is the one meant. With `lower` (`exporters.quantize`),
    "fp16" of a float32 `model.onnx` is built from `model.fp16.onnx`, which is written beside it, or used where it stands
    already, of the same checkpoint and spec; `on_note` is told so. "tf32" lets a float32 graph multiply in TF32.

    The mask-IoU network that the ONNX of a YOLACT++ carries becomes a file beside the plan. All files are complete before
    the first is renamed into place: mask-IoU network, layers, sidecar, and the plan last. Ctrl-C, SIGTERM where the program
    handles it, or an exception in `progress` cancels the build and is raised from here; then nothing is written.

    Raises OptionError for arguments that make no sense, BuildRequestError for what can't be asked of this ONNX or runtime,
    ArtifactError for a file that is no ONNX, SpecError for one without a fitting spec, EngineError when TensorRT or the
    linter refuses the graph, OutputError, MissingDependencyError, and what `lower` raises.

        engines.build("model.onnx", "model.engine", runtime="tensorrt-rtx", targets=["sm86", "sm89"], batch=(1, 4, 8),
                      precision="fp16", lower=exporters.quantize)
    """
    check_paths(model=model, output=output, **given(timing_cache=timing_cache))
    check_texts(runtime=runtime)
    check_text_lists(targets=targets)
    check_counts(**given(workspace_bytes=workspace_bytes))
    check_callables(lower=lower, on_note=on_note, progress=progress)
    batch_range = _batch_range(batch)
    if precision is not None and precision not in PLAN_PRECISIONS:
        raise BuildRequestError(f"unknown precision {precision!r}; choose {', '.join(PLAN_PRECISIONS)}.")
    if Path(output).exists() and Path(model).exists() and Path(output).samefile(model):
        raise BuildRequestError(f"the output {output} is the ONNX itself. Give another name.")
    for written in (output, *([timing_cache] if timing_cache is not None else [])):
        check_writable(written)

    if precision == "fp16" and lower is not None:
        model = _fp16_form(Path(model), lower, on_note, progress)
    graph = open_onnx(model, whole=True)
    graph.require_one_file()
    spec = graph.spec
    check_io(graph.io_tensors, spec, graph.form, str(graph.path), unknown_fits=True)
    mask_iou = graph.mask_iou
    plan_precision = _plan_precision(graph, precision)
    _check_batch(graph, batch_range)
    _check_weights(graph)
    shapes, size_notes = input_shapes(graph, spec, batch_range, image_size)

    adapter, why = choose_runtime(runtime)
    resolved, notes = adapter.resolve_targets(targets)
    notes += [
        *adapter.check_precision(plan_precision, resolved),
        *graph.weights_notes,
        *size_notes,
        *_lint(adapter, graph),
    ]
    started = time.perf_counter()
    built = _build(
        adapter,
        graph,
        spec,
        targets=resolved,
        tf32=plan_precision == TF32,
        shapes=shapes,
        workspace_bytes=workspace_bytes,
        timing_cache=Path(timing_cache) if timing_cache is not None else None,
        control=BuildControl(progress),
    )
    build_seconds = time.perf_counter() - started
    notes = [*([why] if runtime == "auto" else []), *notes, *built.notes]
    sidecar = Sidecar(
        spec=spec,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        runtime=adapter.name,
        runtime_version=adapter.version,
        targets=resolved,
        precision=plan_precision,
        batch=batch_range,
        onnx_sha256=graph.sha256,
        onnx_name=graph.path.name,
        io_tensors=built.io_tensors,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        yolact_deploy_version=__version__,
        notes=tuple(notes),
        mask_iou=_companion(mask_iou_path(output).name, mask_iou),
    )
    _write(Path(output), built, sidecar, mask_iou)
    return BuildResult(
        plan=Path(output),
        sidecar_path=sidecar_path(output),
        layers_path=layers_path(output),
        sidecar=sidecar,
        build_seconds=build_seconds,
        notes=tuple(notes),
        warnings=tuple(built.warnings),
        mask_iou_path=mask_iou_path(output) if mask_iou is not None else None,
    )


def _fp16_form(
    model: Path, lower: LowerPrecision, on_note: Callable[[str], None] | None, progress: Progress | None
) -> Path:
    """`model`, or the FP16 ONNX beside it where it is float32. One that stands there is never replaced."""
    graph = open_onnx(model)
    if graph.precision != "fp32":
        return model
    typed = model.with_name(f"{model.stem}.fp16{model.suffix}")
    tell = on_note or (lambda _: None)
    if not typed.exists():
        lowered = lower(model, typed, precision="fp16", progress=progress)
        tell(f"note: {model} is float32; its FP16 form was written to {typed}.")
        for warning in lowered.warnings:
            tell(f"warning: {warning}")
        return typed
    found = open_onnx(typed)
    keys = (SPEC_METADATA_KEY, CHECKPOINT_SHA256_METADATA_KEY)
    same = all(found.metadata.get(key) == graph.metadata.get(key) for key in keys)
    if found.precision != "fp16" or not same:
        raise OutputError(f"{typed} is in the way: it is not the FP16 form of {model}. Move it, or build from it.")
    tell(f"note: {model} is float32; built from its FP16 form {typed}, which was there.")
    return typed


def _batch_range(batch: int | tuple[int, int, int]) -> BatchRange:
    numbers = batch if isinstance(batch, (list, tuple)) else (batch,) * 3
    if [type(number) for number in numbers] != [int] * 3:
        raise BuildRequestError(f"batch must be a whole number, or three of them (MIN, OPT, MAX), found {batch!r}.")
    try:
        return BatchRange(*numbers)
    except SpecError as exc:
        raise BuildRequestError(f"{exc} Give --batch MIN,OPT,MAX.") from exc


def _plan_precision(graph: OnnxFile, precision: str | None) -> PlanPrecision:
    if precision in (None, graph.precision):
        return graph.precision
    if precision != TF32:
        raise BuildRequestError(
            f"{graph.path} is {graph.precision}, not {precision}. Precision is decided in the ONNX: export it again with "
            f"`yolact-deploy export --precision {precision}`, or leave the precision out to build what it is."
        )
    if graph.precision != "fp32":
        raise BuildRequestError(
            f"{graph.path} is {graph.precision}, and tf32 is a way to compute float32. Build it from the fp32 ONNX."
        )
    return TF32


def _check_batch(graph: OnnxFile, batch: BatchRange) -> None:
    fixed, most = graph.fixed_batch, graph.batch[1]
    asked = f"{batch.min},{batch.opt},{batch.max}"
    if fixed is not None and (batch.min, batch.max) != (fixed, fixed):
        raise BuildRequestError(
            f"{graph.path} has a fixed batch of {fixed}, but {asked} was asked for. Build with --batch "
            f"{fixed},{fixed},{fixed}, or export with a dynamic batch."
        )
    if most is not None and batch.max > most:
        raise BuildRequestError(
            f"{graph.path} was exported for batches up to {most}, but {asked} was asked for. Ask for less, "
            f"or export again with --max-batch {batch.max}."
        )


def _check_weights(graph: OnnxFile) -> None:
    """Raise EngineError for weights that are no numbers; in a quantized graph the linter tells them from its scales."""
    if graph.precision != "int8" and graph.weights.non_finite:
        raise EngineError(
            f"{graph.path} holds {graph.weights.describe_non_finite()}, and no plan of it would compute anything. Export it "
            "again from a checkpoint whose weights are numbers; `yolact-deploy inspect --lint` names them all."
        )


def _lint(adapter: Adapter, graph: OnnxFile) -> list[str]:
    """The linter's warnings about a quantized graph. Raises EngineError for its errors: TensorRT tells less about them,
    computes something else without a word, or crashes."""
    if graph.precision != "int8":
        return []
    report = lint_onnx(graph)
    if report.passed:
        return [f"lint: {line}" for line in report.summary("warning")]
    lines = [
        f"  node {finding.node} ({finding.operator}): {finding.found} [{finding.rule}]\n    {finding.remedy}"
        for finding in report.errors[:_MAX_LISTED_FINDINGS]
    ]
    if len(report.errors) > _MAX_LISTED_FINDINGS:
        lines.append(f"  and {len(report.errors) - _MAX_LISTED_FINDINGS} more; see `yolact-deploy inspect --lint`.")
    raise EngineError("\n".join([f"{adapter.label} can't build a sound plan from {graph.path}:", *lines]))


def _build(
    adapter: Adapter,
    graph: OnnxFile,
    spec: ModelSpec,
    *,
    targets: Sequence[str],
    tf32: bool,
    shapes: tuple[Shape, Shape, Shape],  # of the input: MIN, OPT, MAX
    workspace_bytes: int | None,
    timing_cache: Path | None,
    control: BuildControl,
) -> _Built:
    trt = adapter.trt
    logger = build_log(trt)
    with _one_build_at_a_time, logger.collect() as log, control.interruptible():
        builder = _create_builder(adapter, logger, log)
        # Every TensorRT since 11 and every TensorRT-RTX types strongly anyway; 10 does so when told.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _parse(adapter, network, graph, logger, control)
        io_tensors = network_tensors(network)
        source = f"{graph.path}, as {adapter.title} reads it,"
        check_io(io_tensors, spec, graph.form, source, unknown_fits=True)

        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        adapter.set_targets(config, targets)
        adapter.set_tf32(config, allowed=tf32)
        if workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *shapes)
        config.add_optimization_profile(profile)
        notes = adapter.load_timing_cache(config, timing_cache, log) if timing_cache is not None else []
        monitor = progress_monitor(trt, control)  # named, as the config does not keep it alive
        config.progress_monitor = monitor

        serialized = builder.build_serialized_network(network, config)
        control.raise_if_stopped()
        if serialized is None:
            lines = build_errors(log, graph.operators) or ["  it gave no reason."]
            raise EngineError("\n".join([f"{adapter.label} can't build a plan from {graph.path}:", *lines]))
        plan = bytes(serialized)
        if timing_cache is not None:
            notes += adapter.save_timing_cache(config, timing_cache)
        warnings = list(dict.fromkeys(record.text for record in log if not record.is_error))
        layers = engine_layers(trt, logger, plan, graph.modules) if adapter.builds_for_this_gpu else None
        return _Built(plan, io_tensors, layers or network_layers(network, graph.modules), notes, warnings)


def _create_builder(adapter: Adapter, logger: Any, log: list[LogRecord]) -> Any:
    try:
        return adapter.trt.Builder(logger)
    except TypeError as exc:  # what its bindings make of a builder that could not be created
        lines = build_errors(log, {}) or [f"  {exc}"]
        raise EngineError("\n".join([f"{adapter.label} can't start:", *lines])) from exc


def _parse(adapter: Adapter, network: Any, graph: OnnxFile, logger: Any, control: BuildControl) -> None:
    control.report("Parsing ONNX", 0, 1)
    parser = adapter.trt.OnnxParser(network, logger)
    parsed = parser.parse(graph.content)
    control.raise_if_stopped()
    if not parsed:
        lines = parser_errors(parser) or ["  it gave no reason."]
        raise EngineError("\n".join([f"{adapter.label} can't read {graph.path}:", *lines]))
    control.report("Parsing ONNX", 1, 1)
    control.raise_if_stopped()


def _companion(name: str, content: bytes | None) -> CompanionFile | None:
    return None if content is None else CompanionFile(name, hashlib.sha256(content).hexdigest(), len(content))


def _write(output: Path, built: _Built, sidecar: Sidecar, mask_iou: bytes | None) -> None:
    """Contexts close last to first, so the plan is renamed last. A kill in between leaves the old plan beside the new
    sidecar: its digest disagrees and it is refused, or it is the same plan and the new sidecar is right about it.
    """
    with contextlib.ExitStack() as files:
        plan = files.enter_context(atomic_path(output))
        description = files.enter_context(atomic_path(sidecar_path(output)))
        layers = files.enter_context(atomic_path(layers_path(output)))
        if mask_iou is not None:
            files.enter_context(atomic_path(mask_iou_path(output))).write_bytes(mask_iou)
        plan.write_bytes(built.plan)
        write_sidecar(description, sidecar)
        write_layers(layers, built.layers, sidecar.plan_sha256)
