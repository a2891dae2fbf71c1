"""What `yolact-deploy bench` does: open, measure, judge, and the extras that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.gate import (
    ATTEMPTS,
    Judgement,
    check_same_machine,
    check_same_work,
    confirmed,
    judge_report,
    match_runs,
    parse_fraction,
    present_artifact,
    read_baseline,
)
from benchmarks.latency import bench
from benchmarks.machine import environment
from benchmarks.subjects import bench_images
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.errors import BenchmarkError, EngineError

Progress = Callable[[str, int, int], None]  # what is done, step, of how many


@dataclass(frozen=True)
class BenchRequest:
    artifacts: Sequence[Path]
    images: Path | None = None
    batch: int = 1
    iterations: int | None = None
    seconds: float | None = None
    warmup: int | None = None
    score_threshold: float = 0.0
    device: str = "auto"
    cuda_graph: bool = True
    threads: int | None = None
    sweep: bool = False
    layers: bool = False
    streams: int | None = None
    peers: bool = False
    checkpoint: Path | None = None
    scenario: str | None = None
    baseline: Path | None = None
    max_regression: str = "5%"
    allow_other_machine: bool = False


def measure(request: BenchRequest, progress: Progress) -> dict[str, Any]:
    """The report of `latency.bench`, with "gate", "sweep", "layers", "peers" and "scenarios", and "stream" in every run, where
    they were asked for.

    "interrupted" is true when Ctrl-C ended it early. Raises BenchmarkError for a baseline that can't be compared with,
    and what opening the artifacts and images raises.
    """
    allowed = parse_fraction(request.max_regression)
    baseline = None if request.baseline is None else read_baseline(request.baseline)
    notes: list[str] = []
    matched: list[dict[str, Any]] = []
    if baseline is not None:
        notes = check_same_machine(baseline, environment(), allow_other=request.allow_other_machine)
        matched = match_runs(baseline, list(request.artifacts))
    if request.checkpoint is not None and not request.peers:
        raise BenchmarkError("--checkpoint is the PyTorch peer's; give --peers with it.")
    images = bench_images(request.images)
    detectors = [_open(path, request) for path in request.artifacts]
    if baseline is None:
        report = _bench(detectors, images, request, progress)
    else:
        report = _gated(detectors, images, request, progress, baseline, matched, allowed)
    report["notes"] += notes
    if not report["interrupted"]:
        _extras(report, detectors, images, request, progress)
    return report


def regressed(report: dict[str, Any]) -> bool:
    return any(judgement["verdict"] == "regressed" for judgement in report.get("gate", {}).get("judgements", ()))


def _gated(
    detectors: list[Detector],
    images: list[Image],
    request: BenchRequest,
    progress: Progress,
    baseline: dict[str, Any],
    matched: list[dict[str, Any]],
    allowed: float,
) -> dict[str, Any]:
    partners: list[Detector] = []
    paired: list[int | None] = []
    for path, run in zip(request.artifacts, matched, strict=True):
        then = present_artifact(run, path)
        paired.append(None if then is None else len(detectors) + len(partners))
        if then is not None:
            partners.append(_open(then, request))

    def attempt() -> tuple[dict[str, Any], list[Judgement]]:
        report = _bench([*detectors, *partners], images, request, progress)
        check_same_work(baseline, report["options"])
        for run in report["runs"][len(detectors) :]:
            run["role"] = "baseline"
        return report, judge_report(report, baseline, matched, paired, allowed)

    report, judgements, attempts = confirmed(attempt)
    report["gate"] = {
        "baseline": str(request.baseline),
        "baseline_date": baseline["environment"].get("date"),
        "max_regression": allowed,
        "attempts": attempts,
        "max_attempts": ATTEMPTS,
        "judgements": [judgement.to_dict() for judgement in judgements],
    }
    return report


def _extras(
    report: dict[str, Any], detectors: list[Detector], images: list[Image], request: BenchRequest, progress: Progress
) -> None:
    report["interrupted"] = True  # until all are done
    with suppress(KeyboardInterrupt):
        if request.streams is not None:
            _streams(report, detectors, images, request, progress)
        if request.sweep:
            from benchmarks.sweep import sweep

            report["sweep"] = [
                sweep(detector, images, progress=lambda step, total: progress("sweep", step, total))
                for detector in detectors
            ]
        if request.layers:
            _layers(report, detectors, images, request)
        if request.peers:
            from benchmarks.peers import compare_peers

            report["peers"] = compare_peers(
                detectors[0],
                images[0],
                checkpoint=request.checkpoint,
                threads=request.threads,
                progress=lambda step, total: progress("peers", step, total),
            )
        if request.scenario is not None:
            from benchmarks.scenarios import run_scenario

            report["scenarios"] = [
                run_scenario(detector, images, request.scenario, seconds=request.seconds) for detector in detectors
            ]
        report["interrupted"] = False
    if report["interrupted"]:
        report["notes"].append("interrupted: not all that was asked for is here.")


def _streams(
    report: dict[str, Any], detectors: list[Detector], images: list[Image], request: BenchRequest, progress: Progress
) -> None:
    from benchmarks.scenarios import stream_throughput

    for run, detector in zip(report["runs"], detectors, strict=False):  # the baselines' come last
        run["stream"] = stream_throughput(
            detector,
            images,
            streams=request.streams or 1,
            batch=request.batch,
            iterations=request.iterations,
            seconds=request.seconds,
            score_threshold=request.score_threshold,
            progress=lambda share: progress("stream", round(100 * share), 100),
        )


def _layers(report: dict[str, Any], detectors: list[Detector], images: list[Image], request: BenchRequest) -> None:
    from benchmarks.layers import layer_times

    inputs = [image for image, _ in zip(cycle(images), range(request.batch), strict=False)]
    report["layers"] = []
    for detector in detectors:
        try:
            report["layers"].append(layer_times(detector, inputs, threads=request.threads))
        except (BenchmarkError, EngineError) as exc:
            report["notes"].append(f"no times per layer: {exc}")


def _bench(detectors: list[Detector], images: list[Image], request: BenchRequest, progress: Progress) -> dict[str, Any]:
    return bench(
        detectors,
        images,
        batch=request.batch,
        iterations=request.iterations,
        seconds=request.seconds,
        warmup=request.warmup,
        threads=request.threads,
        score_threshold=request.score_threshold,
        progress=lambda step, total: progress("bench", step, total),
    )


def _open(path: Path, request: BenchRequest) -> Detector:
    return Detector(
        path,
        device=request.device,
        threads=request.threads,
        batch_size=request.batch,
        cuda_graph=request.cuda_graph,
    )
