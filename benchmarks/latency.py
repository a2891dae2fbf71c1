"""Latency of Detectors, end to end and per stage, as the JSON of `yolact-deploy bench`."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from benchmarks.machine import Watch, environment, machine_notes, usable_cores, watch_notes
from benchmarks.rounds import Limit, Samples, Yardstick, harness_overhead_ns, run_rounds, warm_up
from benchmarks.statistics import CONFIDENCE, confidence_intervals, percentiles, variation
from benchmarks.subjects import common, conditions, describe
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import StepProgress
from yolact_deploy.errors import pip_install
from yolact_deploy.optional import has_nvidia_driver

SCHEMA = 1
DEFAULT_ITERATIONS = 50
MAX_VARIATION = 0.025
MAX_OVERHEAD = 0.01  # of the shortest stage
MAX_UNACCOUNTED = 0.03  # of the end-to-end median, between it and the stages' sum
_NS_PER_MS = 1e6


def time_detectors(
    detectors: Sequence[Detector],
    images: Sequence[Image],  # each [H, W, 3] BGR
    *,
    batch: int = 1,
    iterations: int | None = None,
    seconds: float | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    score_threshold: float = 0.0,
    progress: StepProgress | None = None,
) -> dict[str, Any]:
    """Time detectors side by side; the result is the JSON of `yolact-deploy bench` (schema 1), raw samples included.

    One iteration takes `batch` images in host memory to detections with full-size masks in host memory. Detectors take
    turns at every iteration, so that a change in the machine's speed meets all of them; images rotate, so that no cache
    is measured. Times are of the host's monotonic clock, in milliseconds per batch; the stages of a Detector on a GPU are of
    the device's clock (`device_rounds`). It ends after `iterations` (50, unless
    `seconds` are given) or `seconds`; `warmup` iterations come first, or, when None, as many as it takes to be stable.
    `threads` only says what the detectors were opened with. Ctrl-C ends it early: "interrupted" is then true.
    """
    if iterations is None and seconds is None:
        iterations = DEFAULT_ITERATIONS
    runs = [_samples(detector) for detector in detectors]
    source = cycle(images)
    yardstick = Yardstick(threads or usable_cores())
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        warmed = warm_up(runs, source, batch, score_threshold, warmup)
        yardstick.measure()
        yardstick.times_ns.clear()
        watch = Watch()
        limit = Limit(iterations, seconds)
        complete = run_rounds(runs, source, batch, score_threshold, limit, yardstick, progress)
        watched = watch.report()
        inputs = [next(source) for _ in range(batch)]
        memory = [run.peak_memory(inputs, score_threshold) for run in runs]
    finally:
        yardstick.close()
        if collecting:
            gc.enable()
    overhead_ms = harness_overhead_ns() / _NS_PER_MS
    summaries = [
        {**_summary(run, batch, overhead_ms), "peak_memory": peak} for run, peak in zip(runs, memory, strict=True)
    ]
    report = {
        "schema": SCHEMA,
        "environment": environment(),
        "options": {
            "batch": batch,
            "iterations": iterations,
            "seconds": seconds,
            "warmup": warmed["iterations"],
            "warmup_stable": warmed["stable"],
            "score_threshold": score_threshold,
            "threads": threads or usable_cores(),
            "images": len(images),
            "image_sizes_hw": sorted({image.shape[:2] for image in images}),
            **{key: common(summaries, key) for key in ("precision", "clock", "transfers", "cuda_graph", "wait")},
        },
        "interrupted": not complete,
        "harness_overhead_ms": overhead_ms,
        "yardstick_ms": percentiles(yardstick.times_ns),
        "yardstick_samples_ms": _ms(yardstick.times_ns),
        "watch": watched,
        "runs": summaries,
    }
    report["notes"] = [*machine_notes(threads), *watch_notes(watched), *_notes(report, detectors)]
    return report


def without_samples(report: dict[str, Any]) -> dict[str, Any]:
    """The report less its raw samples."""
    runs = [{key: value for key, value in run.items() if key != "samples_ms"} for run in report["runs"]]
    return {**{key: value for key, value in report.items() if key != "yardstick_samples_ms"}, "runs": runs}


def _samples(detector: Detector) -> Samples:
    if not detector.on_gpu:
        return Samples(detector)
    from benchmarks.device import DeviceSamples

    return DeviceSamples(detector)


def _summary(run: Samples, batch: int, overhead_ms: float) -> dict[str, Any]:
    latency = percentiles(run.total_ns)
    stages = {stage: percentiles(times) for stage, times in run.stages_ns.items()}
    more: dict[str, Any] = {f"{name}_ms": percentiles(times) for name, times in run.extra_ns().items()}
    if run.detector.on_gpu:
        more["harness_overhead_ms"] = overhead_ms = run.overhead_ms()
    shortest = min(times["p50"] for times in stages.values())
    return {
        **describe(run.detector),
        **conditions(run.detector),
        "batch": batch,
        "latency_ms": latency,
        "stages_ms": stages,
        "throughput_fps": batch * 1000 / latency["mean"],
        "confidence": CONFIDENCE,
        "latency_ci_ms": confidence_intervals(run.total_ns),
        "stages_ci_ms": {stage: confidence_intervals(times) for stage, times in run.stages_ns.items()},
        "variation": variation(run.total_ns),
        "cpu_ms": percentiles(run.cpu_ns),
        "whole_call_ms": percentiles(run.whole_ns) if run.whole_ns else None,
        **more,
        "stages_share": sum(times["p50"] for times in stages.values()) / percentiles(run.staged_ns)["p50"],
        "overhead_share": overhead_ms / shortest if shortest else None,
        "samples_ms": {
            "latency": _ms(run.total_ns),
            **{stage: _ms(times) for stage, times in run.stages_ns.items()},
            "cpu": _ms(run.cpu_ns),
            "whole_call": _ms(run.whole_ns),
            **{name: _ms(times) for name, times in run.extra_ns().items()},
        },
    }


def _notes(report: dict[str, Any], detectors: Sequence[Detector]) -> list[str]:
    notes = []
    if report["interrupted"]:
        notes.append("interrupted: the figures are of what was measured until then.")
    if report["options"]["warmup_stable"] is False:
        notes.append(f"times were still changing after {report['options']['warmup']} warm-up iterations.")
    if len(report["runs"]) > 1:
        notes.append(f"peak memory is of one process that holds all {len(report['runs'])} artifacts.")
    found = [_run_notes(run, detector) for run, detector in zip(report["runs"], detectors, strict=True)]
    notes += merge_notes({run["artifact"]: of_run for run, of_run in zip(report["runs"], found, strict=True)})
    on_gpu = any(detector.on_gpu for detector in detectors)
    if not on_gpu and has_nvidia_driver():
        notes.append("no GPU was used: device times, transfers and device memory are not measured.")
    elif on_gpu and not report["watch"]["gpus"]:
        notes.append(f"no clocks, power or temperature of the GPU: they are read with {pip_install('bench')}.")
    return notes


def merge_notes(found: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Notes of all artifacts, each text once, from texts and values of theirs by artifact.

    A value takes the place of the "{}" in its text. Artifacts are named where there are several and a note is not of all, or has
    values.

    >>> merge_notes({"a.onnx": [("slow.", ""), ("took {}.", "1 s")], "b.onnx": [("slow.", ""), ("took {}.", "2 s")]})
    ['slow.', 'took 1 s (a.onnx), 2 s (b.onnx).']
    """
    values: dict[str, dict[str, str]] = {}
    for artifact, notes in found.items():
        for text, value in notes:
            values.setdefault(text, {})[artifact] = value
    said = []
    for text, by_artifact in values.items():
        if len(found) == 1:
            said.append(text.replace("{}", "".join(by_artifact.values())))
        elif any(by_artifact.values()):
            said.append(text.replace("{}", ", ".join(f"{value} ({name})" for name, value in by_artifact.items())))
        else:
            said.append(text if len(by_artifact) == len(found) else f"{', '.join(by_artifact)}: {text}")
    return said


def _run_notes(run: dict[str, Any], detector: Detector) -> list[tuple[str, str]]:
    """For `merge_notes`."""
    notes = [(" ".join(note.split()), "") for note in detector.notes]
    if run["variation"] > MAX_VARIATION:
        advice = f"(more than {100 * MAX_VARIATION:g}%); trust the medians and their intervals, not single times."
        notes.append((f"times vary by {{}} {advice}", f"{100 * run['variation']:.1f}%"))
    if run["overhead_share"] is not None and run["overhead_share"] > MAX_OVERHEAD:
        notes.append(("timing takes {} of the shortest stage.", f"{100 * run['overhead_share']:.1f}%"))
    if abs(run["stages_share"] - 1) > MAX_UNACCOUNTED:
        notes.append(
            ("the medians of the stages add up to {} of the whole's median.", f"{100 * run['stages_share']:.1f}%")
        )
    if detector.on_gpu and run["cuda_graph"]:
        staged, latency = run["staged_ms"]["p50"], run["latency_ms"]["p50"]
        notes.append(
            (
                "CUDA graphs have no stages: the stages are parts of a call without them, whose p50 beside that with them is {}.",
                f"{staged:.2f} and {latency:.2f} ms",
            )
        )
    if detector.on_gpu and run["peak_memory"]["device_bytes"] is None:
        notes.append((f"device memory is {run['peak_memory']['device_method']}", ""))
    return notes


def _ms(times_ns: Sequence[int]) -> list[float]:
    return [time / _NS_PER_MS for time in times_ns]
