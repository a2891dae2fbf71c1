"""`bench` of a Detector on a GPU, over the emulated one, whose clock counts pieces of work as milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.device import TIMED_STAGES, DeviceSamples, empty_stage_ms
from benchmarks.device_sweep import SyntheticHeadsNetwork
from benchmarks.latency import time_detectors
from benchmarks.subjects import conditions, synthetic_scores
from benchmarks.sweep import sweep
from tests.emulator.backend import EmulatedGpu
from tests.emulator.cpu_network import CpuNetwork
from tests.emulator.driver import EmulatedDriver
from tests.emulator.expectations import SMALL
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.onnx_file import OnnxFile
from yolact_deploy.cli import app
from yolact_deploy.reference.postprocess import make_priors, softmax
from yolact_deploy.runtime.protocols import DEVICE_STAGES

pytestmark = pytest.mark.slow

Emulate = Callable[..., EmulatedGpu]
ALL_STAGES = list(DEVICE_STAGES)


def _photo(image_hw: tuple[int, int] = (60, 80)) -> Image:
    return np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("in_stream", "cuda_graph", "graph_stages"),
    [
        (True, True, ALL_STAGES),
        (False, True, [stage for stage in ALL_STAGES if stage != "network"]),
        (True, False, []),
    ],
    ids=["whole frames", "all but the network", "no graphs"],
)
def test_the_report_says_what_was_on(
    emulated: Emulate, shapes_onnx: Path, in_stream: bool, cuda_graph: bool, graph_stages: list[str]
) -> None:
    gpu = emulated(in_stream=in_stream)
    with gpu.open(shapes_onnx, cuda_graph=cuda_graph) as detector:
        report = time_detectors([detector], [_photo()], iterations=2, warmup=1)
    (run,) = report["runs"]
    assert run["graph_stages"] == graph_stages
    assert report["options"]["cuda_graph"] is bool(graph_stages)
    assert report["options"]["clock"] == "host; stages: device (CUDA events)"
    assert report["options"]["transfers"].startswith("counted")
    assert report["options"]["precision"] == "fp32"
    assert "spins" in report["options"]["wait"]
    assert any("CUDA graphs have no stages" in note for note in report["notes"]) is bool(graph_stages)


def test_whole_calls_are_of_the_host_and_stages_of_the_device(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx) as detector:
        run = time_detectors([detector], [_photo()], iterations=3, warmup=1)["runs"][0]
    assert tuple(run["stages_ms"]) == TIMED_STAGES
    device = {stage: run["stages_ms"][stage]["p50"] for stage in ALL_STAGES}
    assert device == {
        "host_to_device": 1, "preprocess": 1, "network": 1, "detect": 3, "masks": 1, "device_to_host": 2,
    }  # fmt: skip
    assert run["device_ms"]["p50"] == sum(device.values())
    samples = run["samples_ms"]
    for i in range(3):
        assert sum(samples[stage][i] for stage in TIMED_STAGES) == pytest.approx(samples["staged"][i])
        assert samples["call"][i] < samples["latency"][i]  # the masks are unpacked after the call
    assert run["latency_ms"]["n"] == run["staged_ms"]["n"] == 3
    assert run["harness_overhead_ms"] == 0  # nothing between two events is no work


def test_the_latency_ends_with_masks_as_a_user_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr("benchmarks.device.perf_counter_ns", lambda: clock[0])

    class Found:
        @property
        def masks(self) -> None:
            clock[0] += 10

    class Calls:
        def __call__(self, images: Any, *, score_threshold: float) -> Any:
            clock[0] += 1
            return [Found() for _ in images]

        def timed(self, images: Any, *, score_threshold: float) -> Any:
            clock[0] += 100
            return [Found() for _ in images], {"network": 40e-6}

    nothing: Any = None
    samples = DeviceSamples(nothing, Calls())
    samples.time([_photo(), _photo()], 0.3)
    assert (samples.call_ns, samples.total_ns, samples.staged_ns) == ([1], [21], [120])
    assert (samples.stages_ns["network"], samples.stages_ns["host"]) == ([40], [80])


def test_device_memory_is_that_of_a_detector_like_it(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx) as detector:
        run = time_detectors([detector], [_photo()], iterations=1, warmup=2)["runs"][0]
        assert run["peak_memory"]["device_bytes"] == gpu.driver.device_bytes > 0
        assert "not the CUDA context" in run["peak_memory"]["device_method"]


def test_without_room_for_a_second_detector_device_memory_is_unmeasured(emulated: Emulate, shapes_onnx: Path) -> None:
    probe = emulated(in_stream=True)
    with probe.open(shapes_onnx) as detector:
        detector(_photo())
        needed = probe.driver.device_bytes
    gpu = emulated(EmulatedDriver(memory_bytes=int(1.2 * needed)), in_stream=True)
    with gpu.open(shapes_onnx) as detector:
        report = time_detectors([detector], [_photo()], iterations=1, warmup=0)
    assert report["runs"][0]["peak_memory"]["device_bytes"] is None
    assert any("device memory is unmeasured: no memory for" in note for note in report["notes"])


def test_why_something_is_not_used_is_noted(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    gpu.driver.fail_capture = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    with gpu.open(shapes_onnx) as detector:
        report = time_detectors([detector], [_photo()], iterations=1, warmup=2)
    assert any("CAPTURE_INVALIDATED" in note for note in report["notes"])
    assert report["options"]["cuda_graph"] is False


def test_a_gpu_and_a_cpu_side_by_side_have_options_of_their_own(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector
) -> None:
    gpu = emulated()
    with gpu.open(shapes_onnx) as detector:
        report = time_detectors([on_cpu, detector], [_photo()], iterations=1, warmup=1)
    assert report["options"]["clock"] == ["host", "host; stages: device (CUDA events)"]
    assert report["options"]["precision"] == "fp32"
    assert set(report["runs"][0]["stages_ms"]) == {"preprocess", "network", "detect", "masks"}
    assert "device_bytes" not in report["runs"][0]["peak_memory"]


def test_a_network_on_a_gpu_whose_rest_is_on_the_cpu_says_so(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated()
    with gpu.open(shapes_onnx, nms="traditional") as detector:
        report = time_detectors([detector], [_photo()], iterations=1, warmup=0)
    assert report["options"]["clock"] == "host"
    assert report["options"]["transfers"].startswith("counted, within the network")
    assert any("only the network is on the GPU" in note for note in report["notes"])


def test_where_a_network_runs_is_known_whatever_its_description_says(
    emulated: Emulate, shapes_onnx: Path, on_cpu: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated()
    monkeypatch.setattr(Detector, "description", "any words")
    with (
        gpu.open(shapes_onnx, nms="traditional") as halfway,
        gpu.open(shapes_onnx) as whole,
    ):
        assert [detector.gpu_index for detector in (on_cpu, halfway, whole)] == [None, 0, 0]
        transfers = [conditions(detector)["transfers"].partition(":")[0] for detector in (on_cpu, halfway, whole)]
    assert transfers == ["none", "counted, within the network", "counted"]


def test_a_detector_says_how_it_was_opened_and_what_it_replays(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx, threads=2, cuda_graph=True) as detector:
        assert detector.arguments["device"] == "cuda:0"
        assert (detector.arguments["threads"], detector.in_flight) == (2, 2)
        seen = []
        for _ in range(2):
            detector(_photo())
            seen.append(detector.graph_stages)
    assert seen == [(), tuple(ALL_STAGES)]


def test_an_empty_stage_takes_the_time_between_two_events(emulated: Emulate) -> None:
    driver = emulated().driver
    kernels = driver.load_kernels(SMALL)
    assert empty_stage_ms(driver, kernels) == 0
    with driver.current():
        kernels.close()
    assert not driver.left_over


@pytest.mark.parametrize("in_stream", [True, False])
def test_a_sweep_finds_on_the_gpu_what_was_planted(
    emulated: Emulate, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch, in_stream: bool
) -> None:
    gpu = emulated(in_stream=in_stream)
    for name, value in (("MIN", 1), ("SECONDS", 0.0), ("WARMUP", 0)):
        monkeypatch.setattr(f"benchmarks.rounds._REPEAT_{name}", value)
    monkeypatch.setattr(OnnxFile, "batch", (1, 2))
    monkeypatch.setattr("benchmarks.sweep.IMAGE_SIZES_HW", ((60, 80),))
    with gpu.open(shapes_onnx) as detector:
        found = sweep(detector, [_photo()])
    assert [point["batch"] for point in found["batch"]] == [1, 2]
    assert tuple(found["batch"][0]["stages_ms"]) == TIMED_STAGES
    assert [(*point["image_hw"], point["detections"]) for point in found["work"]] == [
        (60, 80, count) for count in (1, 10, 100)
    ]
    for point in found["work"]:
        assert tuple(point["stages_ms"]) == tuple(stage for stage in TIMED_STAGES if stage != "network")
        assert point["latency_ms"]["n"] == 1
    assert 2 in gpu.networks[1].batches
    assert set(gpu.networks[2].batches) == {1}  # the network runs beneath what is planted


def test_a_sweep_without_room_says_so(emulated: Emulate, shapes_onnx: Path) -> None:
    gpu = emulated(in_stream=True)
    with gpu.open(shapes_onnx) as detector:
        detector(_photo())
        object.__setattr__(gpu.driver.device, "memory_bytes", gpu.driver.device_bytes)
        found = sweep(detector, [_photo()])
    assert (found["batch"], found["work"]) == ([], [])
    assert all("no memory for" in note for note in found["notes"])
    assert found["notes"]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("activation", ["softmax", "logits"])
def test_planted_heads_reach_the_kernels_in_the_networks_form(shapes_onnx: Path, half: bool, activation: str) -> None:
    driver = EmulatedDriver()
    network = SyntheticHeadsNetwork(CpuNetwork(shapes_onnx, driver, half=half), driver)
    object.__setattr__(network.spec, "conf_activation", activation)
    loc, conf = synthetic_scores(make_priors(network.spec), len(network.spec.class_names), 10)
    network.set_heads(loc, conf)
    address, nbytes = network.sources["conf"]
    stored = driver.view(address, nbytes).view(np.float16 if half else np.float32).reshape(conf.shape)
    probabilities = stored if activation == "softmax" else softmax(stored.astype(np.float32))
    np.testing.assert_allclose(probabilities, conf, atol=1e-3)  # half precision holds three digits
    network.close()
    assert not driver.left_over


def test_the_command_measures_a_gpu(
    emulated: Emulate, shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.command.Detector", partial(Detector, gpu=emulated(in_stream=True).backend))
    page, photo = tmp_path / "report.html", tmp_path / "photo.png"
    cv2.imwrite(str(photo), _photo())
    arguments = ["bench", str(shapes_onnx), "--device", "cuda:0", "--images", str(photo), "--streams", "1"]
    done = CliRunner().invoke(app, [*arguments, "--iterations", "2", "--warmup", "0", "--json", "--report", str(page)])
    assert done.exit_code == 0, done.output
    run = json.loads(done.stdout)["runs"][0]
    assert run["stream"]["in_flight"] == 2
    assert run["stream"]["images"] >= 2
    assert "device_to_host" in page.read_text(encoding="utf-8")
