"""Sweep, peers and scenarios on the bundled model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import peer_comparison
from benchmarks.machine import Watch
from benchmarks.peer_comparison import interleaved
from benchmarks.peers import compare_peers
from benchmarks.rounds import time_stages
from benchmarks.scenarios import read_summary, run_scenario
from benchmarks.subjects import bench_images, describe, synthetic_heads
from benchmarks.sweep import sweep
from tests.goldens import SHAPES, SHAPES_CHECKPOINT
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import Scenario
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.cli import app
from yolact_deploy.errors import BenchmarkError, MissingDependencyError
from yolact_deploy.reference.postprocess import detect, make_priors

# the network in onnxruntime, and in OpenVINO where that is installed
_SESSIONS = ["network"] * (1 + (importlib.util.find_spec("openvino") is not None))

pytestmark = pytest.mark.slow

PHOTO = SHAPES / "val" / "val_public_0000.jpg"


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    return bench_images(PHOTO)


def test_an_artifact_is_described(detector: Detector, shapes_onnx: Path) -> None:
    found = describe(detector)
    assert (found["precision"], found["size_bytes"]) == ("fp32", shapes_onnx.stat().st_size)
    assert detector.file.batch == (1, 8)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_as_many_objects_are_found_as_were_planted(detector: Detector, images: list[Image], count: int) -> None:
    heads = detector.run_network(detector.preprocess(images))
    priors = make_priors(detector.spec)
    found = detect(*synthetic_heads(heads, priors, count), priors, max_detections=count)[0]
    assert len(found) == count
    assert found.scores.min() > 0.4
    assert len(set(found.prior_idx.tolist())) == count


def test_a_sweep_has_a_point_per_batch_and_per_amount_of_work(
    detector: Detector, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MIN", 1), ("SECONDS", 0.0), ("WARMUP", 0)):
        monkeypatch.setattr(f"benchmarks.rounds._REPEAT_{name}", value)
    monkeypatch.setattr(OnnxFile, "batch", (1, 2))
    steps: list[tuple[int, int]] = []
    found = sweep(detector, images, progress=lambda *step: steps.append(step))
    assert [point["batch"] for point in found["batch"]] == [1, 2]
    assert [(*point["image_hw"], point["detections"]) for point in found["work"]] == [
        (*size, count) for size in ((550, 550), (720, 1280), (1080, 1920)) for count in (1, 10, 100)
    ]
    assert "exported for batches up to 2" in found["notes"][0]
    assert steps[-1] == (11, 11)


def test_peers_do_the_same_work_and_are_compared(
    detector: Detector, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_comparison, "SETTLE_SECONDS", 0.0)

    def no_compiler(_model: Any) -> Any:
        def run(_pixels: Any) -> Any:
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)  # it takes half a minute, and a C++ compiler
    found = compare_peers(detector, images[0], checkpoint=SHAPES_CHECKPOINT, threads=1, iterations=1)
    rows = [(row["what"], row["peer"]) for row in found["rows"]]
    in_openvino = [
        row for row in rows if row[1].startswith("OpenVINO model (")
    ]  # in what it computes depends on the CPU
    assert len(in_openvino) == len(_SESSIONS) - 1
    assert [row for row in rows if row not in in_openvino] == [
        ("network", "onnxruntime session"),
        ("network", "PyTorch eager"),
        ("detect + masks", "original's Detect + postprocess in torch"),
        ("end to end", "PyTorch eager, original's Detect"),
    ]
    for row in found["rows"]:
        assert row["ratio"] == row["peer_ms"]["p50"] / row["ours_ms"]["p50"]
    assert any("no torch.compile peer: no compiler here" in note for note in found["notes"])


def test_without_a_checkpoint_or_torch_the_other_peers_remain(
    detector: Detector, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_comparison, "SETTLE_SECONDS", 0.0)
    found = compare_peers(detector, images[0], iterations=1)
    assert [row["what"] for row in found["rows"]] == [*_SESSIONS, "detect + masks"]
    assert any("--checkpoint" in note for note in found["notes"])
    monkeypatch.setitem(sys.modules, "torch", None)
    found = compare_peers(detector, images[0], iterations=1)
    assert [row["what"] for row in found["rows"]] == [*_SESSIONS]
    assert any(note.startswith("no PyTorch peer") for note in found["notes"])


def test_peers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_comparison, "SETTLE_SECONDS", 0.0)
    log: list[str] = []
    times = interleaved({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, iterations=2, warmup=1)
    assert log == ["a", "b"] * 3
    assert {name: found["n"] for name, found in times.items()} == {"a": 2, "b": 2}


TIMES_MS = [10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6, 10.7, 10.8, 10.9]


def _compared(
    monkeypatch: pytest.MonkeyPatch,
    peer_ms: list[float],
    *,
    others_share: float = 0.0,
    alone_ms: float = 10.0,
) -> dict[str, Any]:
    """Ours at 10 to 11 ms beside a peer of these times, while others take a share of the machine."""

    def replay(times_ms: list[float]) -> peer_comparison.Timer:
        times = iter(times_ms)
        return lambda: round(1e6 * next(times))

    watched = Watch().report()
    quiet = {**watched, "steal_share": 0.0, "other_processes_share": others_share}
    monkeypatch.setattr(Watch, "report", lambda self: quiet)
    monkeypatch.setattr(peer_comparison, "SETTLE_SECONDS", 0.0)
    ours, peer = (
        {peer_comparison.NETWORK: replay(TIMES_MS)},
        peer_comparison.Peer(peer_comparison.NETWORK, "peer", replay(peer_ms)),
    )
    who = peer_comparison.PeerComparison(ours, [peer], {peer_comparison.NETWORK: "host"}, [])
    return peer_comparison.compare(who, len(TIMES_MS), 0, {peer_comparison.NETWORK: alone_ms})


@pytest.mark.parametrize(
    ("times_as_long", "verdict"),
    [(2.0, "faster"), (0.5, "slower"), (1.01, "inconclusive")],
)
def test_a_ratio_has_an_interval_and_its_verdict(
    times_as_long: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _compared(monkeypatch, [times_as_long * ms for ms in TIMES_MS])
    (row,) = found["rows"]
    low, high = row["ratio_ci"]
    assert low <= row["ratio"] <= high
    assert row["ratio"] == pytest.approx(times_as_long)
    assert row["verdict"] == verdict
    assert not [note for note in found["notes"] if note.startswith("inconclusive")]


@pytest.mark.parametrize(
    ("disturbed", "reason"),
    [
        ({"others_share": 0.4}, "others took 40% of the cores while the peers were timed"),
        ({"alone_ms": 5.0}, r"ours took 10\.50 ms \(network\) beside the peers and 5\.00 ms without them"),
        ({"alone_ms": 20.0}, r"ours took 10\.50 ms \(network\) beside the peers and 20\.00 ms without them"),
    ],
    ids=str,
)
def test_peers_timed_on_a_disturbed_machine_prove_nothing(
    disturbed: dict[str, float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _compared(monkeypatch, [10 * ms for ms in TIMES_MS], **disturbed)
    assert [row["verdict"] for row in found["rows"]] == ["inconclusive"]
    assert any(re.search(reason, note) for note in found["notes"])
    assert len([note for note in found["notes"] if "% of the cores" in note]) == ("others_share" in disturbed)


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed")
@pytest.mark.parametrize("scenario", get_args(Scenario))
def test_loadgen_asks_and_gets_its_answers(detector: Detector, images: list[Image], scenario: Scenario) -> None:
    found = run_scenario(detector, [*images, *images], scenario, seconds=0.3)
    assert found["figures"]["Mean latency (ms)"] > 0
    assert found["scenario"] == scenario


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed")
def test_a_detector_that_fails_under_load_is_an_error(images: list[Image]) -> None:
    class Failing:
        artifact = "m.onnx"
        calls = 0

        def __call__(self, images: Any) -> Any:
            self.calls += 1
            if self.calls > 10:
                raise BenchmarkError("it broke")
            found = type("Found", (), {"masks": np.zeros((0, 4, 4), bool)})
            return found if isinstance(images, np.ndarray) else [found] * len(images)

        def stream(self, images: Any) -> Any:
            return (self([image])[0] for image in images)

    scenarios: tuple[Scenario, ...] = ("single-stream", "offline")
    for scenario in scenarios:
        failing: Any = Failing()
        with pytest.raises(BenchmarkError, match="it broke"):
            run_scenario(failing, images, scenario, seconds=0.1)


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed")
@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_only_loadgens_offline_scenario_streams(images: list[Image], scenario: Scenario) -> None:
    streamed: list[Image] = []

    class Found:
        masks = np.zeros((1, 1, 1), bool)

    class Instant:
        artifact = "instant"

        def __call__(self, image: Image) -> Found:
            time.sleep(1e-3)
            return Found()

        def stream(self, images: Iterable[Image]) -> Iterator[Found]:
            for image in images:
                streamed.append(image)
                yield Found()

    detector: Any = Instant()
    assert run_scenario(detector, images, scenario, seconds=0.1)["figures"]
    assert bool(streamed) is (scenario == "offline")


def test_without_loadgen_the_extra_is_named(
    detector: Detector, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingDependencyError, match=r"mlcommons-loadgen(.|\n)*pip install .*\[bench\]"):
        run_scenario(detector, images, "offline")


def test_loadgens_summary_is_read_in_milliseconds() -> None:
    text = (
        "SUT name : PySUT\nScenario : SingleStream\n90.0th percentile latency (ns) : 14495124\nResult is : VALID\n"
        "Samples per second: 76.1\nsamples_per_query : 1\ntarget_latency (ns): 0\n"
    )
    assert read_summary(text) == {"90.0th percentile latency (ms)": 14.495124, "Samples per second": 76.1}


def test_an_interrupted_command_prints_what_it_has(shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(*arguments: Any) -> list[int]:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return time_stages(*arguments)

    monkeypatch.setattr("benchmarks.rounds.time_stages", interrupted)
    arguments = ["bench", str(shapes_onnx), "--iterations", "9", "--warmup", "0", "--threads", "1", "--json", "--sweep"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert report["interrupted"] is True
    assert report["runs"][0]["latency_ms"]["n"] == 2
    assert "sweep" not in report
    assert "interrupted" in result.stderr
