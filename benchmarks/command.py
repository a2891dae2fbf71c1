"""`yolact-deploy bench` as a Python function: open, measure, judge, and what else was asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

from benchmarks.gate import (
    ATTEMPTS,
    Judgement,
    check_same_machine,
    check_same_work,
    judge_report,
    match_runs,
    measure_until_confirmed,
    parse_fraction,
    present_artifact,
    read_baseline,
)
from benchmarks.latency import time_detectors, without_samples
from benchmarks.machine import environment
from benchmarks.subjects import bench_images
from yolact_deploy import Detector
from yolact_deploy.arguments import check_callables, check_flags, check_paths, check_sources, check_texts, given
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import (
    CpuPrecision,
    GpuPrecision,
    OnnxRuntimeChoice,
    Progress,
    Scenario,
    StepProgress,
    is_plan,
)
from yolact_deploy.errors import BenchmarkError, EngineError
from yolact_deploy.files import check_writable
from yolact_deploy.reference.images import MAX_PIXELS, check_max_pixels

PathLike = str | os.PathLike[str]


def bench(
    artifacts: PathLike | Sequence[PathLike],
    *,
    images: PathLike | None = None,
    batch: int = 1,
    iterations: int | None = None,
    seconds: float | None = None,
    warmup: int | None = None,
    score_threshold: float = 0.0,
    streams: int | None = None,
    sweep: bool = False,
    layers: bool = False,
    peers: bool = False,
    checkpoint: PathLike | None = None,
    scenario: Scenario | None = None,
    baseline: PathLike | None = None,
    max_regression: float | str = "5%",
    allow_other_machine: bool = False,
    samples: bool = False,
    report: PathLike | None = None,
    device: str = "auto",
    runtime: OnnxRuntimeChoice = "auto",
    cpu_precision: CpuPrecision = "f32",
    gpu_precision: GpuPrecision = "fp32",
    threads: int | None = None,
    cuda_graph: bool = True,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the latency of exported ONNX files or plans, end to end and per stage; `yolact-deploy bench` is this function.

    `artifacts` (one, or several that take turns) are opened on `device` with `runtime`, `cpu_precision`, `gpu_precision`,
    `threads` and `cuda_graph`, as a Detector is.
    One iteration takes `batch` images, uint8 BGR in host memory, to detections above `score_threshold` with full-size masks
    in host memory. Images are read from the file or folder `images`, none of more than `max_pixels`, and rotate; None makes
    up one of 480x640. Untimed iterations come first (`warmup`; None: until times settle), then `iterations` (None: 50, or as
    many as fit in `seconds`).

    More is measured where it is asked for: `streams`, images per second through so many Detectors at once; `sweep`, how cost
    grows with batch, detections and image size; `layers`, the network module by module; `peers`, PyTorch (with the
    `checkpoint` of the first artifact) and the bare engine in turns with ours; `scenario`, MLPerf's LoadGen.

    `baseline`, the JSON of an earlier bench, is judged against: `regressed` says whether an artifact got slower than
    `max_regression` (0.05, or "5%") allows. A baseline of another machine is refused unless `allow_other_machine`.

    Returns the JSON of `yolact-deploy bench --json`, schema 1 (docs/benchmarking.md): times in milliseconds per batch, shares
    from 0 to 1, every single time only with `samples`. With `report`, a page (.html) is written as well. `progress` is
    told what is being done, the step, and of how many. Ctrl-C ends it early, with "interrupted" set.

    Raises OptionError and BenchmarkError for options that make no sense, and for a baseline that can't be compared with,
    ArtifactError, SpecError, EngineError or ImageError for what can't be opened, CheckpointError for a checkpoint that does
    not fit, OutputError for a report that can't be written, MissingDependencyError for a package that is not installed.

    >>> from benchmarks import bench
    >>> run = bench("model.onnx", iterations=3, warmup=1, device="cpu")["runs"][0]
    >>> run["latency_ms"]["n"], list(run["stages_ms"])
    (3, ['preprocess', 'network', 'detect', 'masks'])
    """
    check_paths(**given(images=images, checkpoint=checkpoint, baseline=baseline, report=report))
    check_sources(artifacts=artifacts)
    check_flags(sweep=sweep, layers=layers, peers=peers, samples=samples, cuda_graph=cuda_graph)
    check_flags(allow_other_machine=allow_other_machine)
    check_texts(device=device)
    check_callables(progress=progress)
    check_max_pixels(max_pixels)
    options = _Options(
        artifacts=_paths(artifacts),
        images=None if images is None else Path(images),
        batch=batch,
        iterations=iterations,
        seconds=seconds,
        warmup=warmup,
        score_threshold=score_threshold,
        streams=streams,
        sweep=sweep,
        layers=layers,
        peers=peers,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        scenario=scenario,
        baseline=None if baseline is None else Path(baseline),
        max_regression=parse_fraction(max_regression),
        allow_other_machine=allow_other_machine,
        device=device,
        runtime=runtime,
        cpu_precision=cpu_precision,
        gpu_precision=gpu_precision,
        threads=threads,
        cuda_graph=cuda_graph,
        max_pixels=max_pixels,
    )
    if report is not None:
        check_writable(Path(report))
    found = _measure(options, progress or _no_progress)
    if report is not None:
        from benchmarks.report_html import write_report

        write_report(found, report)
    return found if samples else without_samples(found)


def regressed(report: dict[str, Any]) -> bool:
    """Whether an artifact of a report of `bench` is slower than its baseline, beyond what was allowed."""
    return any(judgement["verdict"] == "regressed" for judgement in report.get("gate", {}).get("judgements", ()))


@dataclass(frozen=True)
class _Options:
    """Raises BenchmarkError for values that make no sense."""

    artifacts: list[Path]
    images: Path | None
    batch: int
    iterations: int | None
    seconds: float | None
    warmup: int | None
    score_threshold: float
    streams: int | None
    sweep: bool
    layers: bool
    peers: bool
    checkpoint: Path | None
    scenario: Scenario | None
    baseline: Path | None
    max_regression: float
    allow_other_machine: bool
    device: str
    runtime: OnnxRuntimeChoice
    cpu_precision: CpuPrecision
    gpu_precision: GpuPrecision
    threads: int | None
    cuda_graph: bool
    max_pixels: int

    def __post_init__(self) -> None:
        if not self.artifacts:
            raise BenchmarkError("there is nothing to measure: give an exported .onnx file or a plan.")
        for name, least in (("batch", 1), ("iterations", 1), ("warmup", 0), ("streams", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= least):
                raise BenchmarkError(f"{name} must be a whole number of {least} or more, found {value!r}.")
        if self.seconds is not None and not (_is_number(self.seconds) and self.seconds > 0):
            raise BenchmarkError(f"seconds must be a number above 0, found {self.seconds!r}.")
        if not (_is_number(self.score_threshold) and 0 <= self.score_threshold <= 1):
            raise BenchmarkError(f"score_threshold must be a number from 0 to 1, found {self.score_threshold!r}.")
        if self.scenario is not None and self.scenario not in get_args(Scenario):
            raise BenchmarkError(f"scenario must be one of {', '.join(get_args(Scenario))}, found {self.scenario!r}.")
        if self.checkpoint is not None and not self.peers:
            raise BenchmarkError("--checkpoint is the PyTorch peer's; give --peers with it.")

    def open(self, artifact: Path, stack: ExitStack) -> Detector:
        """Closed with `stack`. Raises BenchmarkError for an artifact that was not made for the batch."""
        detector = stack.enter_context(
            Detector(
                artifact,
                device=self.device,
                runtime=self.runtime,
                cpu_precision=self.cpu_precision,
                gpu_precision=self.gpu_precision,
                threads=self.threads,
                batch_size=self.batch,
                cuda_graph=self.cuda_graph,
            )
        )
        least, most = detector.file.batch
        if not least <= self.batch <= (most or self.batch):
            made = (
                f"built for batches of {least} to {most}" if is_plan(artifact) else f"exported for batches up to {most}"
            )
            again = (
                "`yolact-deploy build-engine --batch`" if is_plan(artifact) else "`yolact-deploy export --max-batch`"
            )
            raise BenchmarkError(f"{artifact} was {made}, and {self.batch} was asked for. Make it again with {again}.")
        return detector


def _measure(options: _Options, progress: Progress) -> dict[str, Any]:
    baseline = None if options.baseline is None else read_baseline(options.baseline)
    notes: list[str] = []
    matched: list[dict[str, Any]] = []
    if baseline is not None:
        notes = check_same_machine(baseline, environment(), allow_other=options.allow_other_machine)
        matched = match_runs(baseline, options.artifacts)
    images = bench_images(options.images, options.max_pixels)
    with ExitStack() as stack:
        detectors = [options.open(path, stack) for path in options.artifacts]
        if baseline is None:
            report = _latency(detectors, images, options, progress)
        else:
            report = _gated(stack, detectors, images, options, progress, baseline, matched)
        report["notes"] += notes
        if not report["interrupted"]:
            _extras(report, detectors, images, options, progress)
    report["notes"] = sorted(dict.fromkeys(report["notes"]), key=len)  # the shortest are read
    return report


def _latency(detectors: list[Detector], images: list[Image], options: _Options, progress: Progress) -> dict[str, Any]:
    return time_detectors(
        detectors,
        images,
        batch=options.batch,
        iterations=options.iterations,
        seconds=options.seconds,
        warmup=options.warmup,
        threads=options.threads,
        score_threshold=options.score_threshold,
        progress=lambda step, total: progress("bench", step, total),
    )


def _gated(
    stack: ExitStack,  # closes what is opened for it
    detectors: list[Detector],
    images: list[Image],
    options: _Options,
    progress: Progress,
    baseline: dict[str, Any],
    matched: list[dict[str, Any]],
) -> dict[str, Any]:
    """With "gate". The artifacts that the baseline measured run along where they are still there."""
    partners: list[Detector] = []
    paired: list[int | None] = []
    for path, run in zip(options.artifacts, matched, strict=True):
        then = present_artifact(run, path)
        paired.append(None if then is None else len(detectors) + len(partners))
        if then is not None:
            partners.append(options.open(then, stack))

    def attempt() -> tuple[dict[str, Any], list[Judgement]]:
        report = _latency([*detectors, *partners], images, options, progress)
        check_same_work(baseline, report["options"])
        for run in report["runs"][len(detectors) :]:
            run["role"] = "baseline"
        return report, judge_report(report, baseline, matched, paired, options.max_regression)

    report, judgements, attempts = measure_until_confirmed(attempt)
    report["gate"] = {
        "baseline": str(options.baseline),
        "baseline_date": baseline["environment"].get("date"),
        "max_regression": options.max_regression,
        "attempts": attempts,
        "max_attempts": ATTEMPTS,
        "judgements": [judgement.to_dict() for judgement in judgements],
    }
    return report


def _extras(
    report: dict[str, Any], detectors: list[Detector], images: list[Image], options: _Options, progress: Progress
) -> None:
    """What was asked for beside the latency, in the order in which it is shown."""

    def steps(what: str) -> StepProgress:
        return lambda step, total: progress(what, step, total)

    report["interrupted"] = True  # until all are done
    with suppress(KeyboardInterrupt):
        if options.streams is not None:
            _streams(report, detectors, images, options, options.streams, progress)
        if options.sweep:
            from benchmarks.sweep import sweep

            report["sweep"] = [sweep(detector, images, progress=steps("sweep")) for detector in detectors]
        if options.layers:
            _layers(report, detectors, images, options)
        if options.peers:
            from benchmarks.peers import compare_peers

            report["peers"] = compare_peers(
                detectors[0],
                images[0],
                alone=report["runs"][0],
                checkpoint=options.checkpoint,
                threads=options.threads,
                progress=steps("peers"),
            )
        if options.scenario is not None:
            from benchmarks.scenarios import run_scenario

            report["scenarios"] = [
                run_scenario(detector, images, options.scenario, seconds=options.seconds) for detector in detectors
            ]
        report["interrupted"] = False
    if report["interrupted"]:
        report["notes"].append("interrupted: not all that was asked for is here.")


def _streams(
    report: dict[str, Any],
    detectors: list[Detector],
    images: list[Image],
    options: _Options,
    streams: int,
    progress: Progress,
) -> None:
    from benchmarks.scenarios import stream_throughput

    for run, detector in zip(report["runs"], detectors, strict=False):  # the baselines' come last
        run["stream"] = stream_throughput(
            detector,
            images,
            streams=streams,
            batch=options.batch,
            iterations=options.iterations,
            seconds=options.seconds,
            score_threshold=options.score_threshold,
            progress=lambda share: progress("stream", round(100 * share), 100),
        )


def _layers(report: dict[str, Any], detectors: list[Detector], images: list[Image], options: _Options) -> None:
    from benchmarks.layers import layer_times

    inputs = [image for image, _ in zip(cycle(images), range(options.batch), strict=False)]
    report["layers"] = []
    for detector in detectors:
        try:
            report["layers"].append(layer_times(detector, inputs, threads=options.threads))
        except (BenchmarkError, EngineError) as exc:
            report["notes"].append(f"no times per layer: {exc}")


def _paths(artifacts: PathLike | Sequence[PathLike]) -> list[Path]:
    return [Path(artifacts)] if isinstance(artifacts, (str, os.PathLike)) else [Path(path) for path in artifacts]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _no_progress(_what: str, _step: int, _total: int) -> None:
    """Is told of progress."""
