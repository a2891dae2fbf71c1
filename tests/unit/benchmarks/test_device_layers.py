"""Times per layer of a plan, as TensorRT's profiler tells them, and of onnxruntime on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks
from benchmarks import layers as layer_profiles
from benchmarks.layers import kernel_times, layer_times, modules_in
from benchmarks.subjects import describe
from tests.emulator.backend import EmulatedGpu
from tests.unit.runtime.conftest import Bench, MakeBench
from yolact_deploy import Detector
from yolact_deploy.artifacts.plan_file import Layer, Layers, layers_path, write_layers
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.runtime.onnxruntime.network import CPU_PROVIDER
from yolact_deploy.runtime.tensorrt.network import PlanNetwork

IMAGES = [np.zeros((40, 48, 3), np.uint8)] * 2
LAYERS = [
    ("Reformatting CopyNode for Input Tensor 0 to backbone.conv1/Conv", 0.1),
    ("backbone.conv1/Conv + backbone.relu/Relu", 0.4),
    ("backbone.layers.2.0.conv3/Conv + backbone.layers.2.0/Add + backbone.layers.2.0.relu/Relu_2", 0.5),
    ("fpn.lat_layers.0/Conv || fpn.lat_layers.1/Conv", 0.25),
    ("PWN(PWN(outputs/Tanh))", 0.125),
    ("{ForeignNode[proto_net.0/Conv...proto_net.10/Conv]}", 0.25),
    ("__myl_Fc_myl0_1", 0.375),
]


def _open(bench: Bench) -> Detector:
    def open_network(plan: Any, driver: Driver, threads: int | None, tf32: bool) -> PlanNetwork:
        return PlanNetwork(plan, driver, threads=threads, rtx_cache=bench.folder / "cache")

    gpu = dataclasses.replace(EmulatedGpu(bench.driver).backend, open_network=open_network)
    return Detector(bench.write(), device="cuda:0", batch_size=2, gpu=gpu)


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_layers_of_a_plan_stand_under_their_modules(rtx: bool, make_bench: MakeBench) -> None:
    bench = make_bench(rtx=rtx)
    bench.behaviour.layers = LAYERS
    with _open(bench) as detector:
        found = layer_times(detector, IMAGES, runs=3)
    assert found["profiler"] == "TensorRT"
    assert found["network_ms"] == 2.0
    assert [(row["module"], row["ms"], row["nodes"]) for row in found["modules"]] == [
        ("backbone (stem)", 0.5, 2),
        ("backbone.layers.2", 0.5, 1),
        ("fpn", 0.25, 1),
        ("outputs", 0.125, 1),
        ("proto_net", 0.25, 1),
        ("(added by the engine)", 0.375, 1),
    ]
    assert sum(row["share"] for row in found["modules"]) == 1
    assert not bench.driver.left_over
    assert bench.behaviour.engines_alive() == 0


def test_a_plan_is_profiled_at_the_batch_that_was_given(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.behaviour.layers = LAYERS
    with _open(bench) as detector:
        layer_times(detector, IMAGES, runs=1)
    size = detector.spec.input_size
    assert ("set_input_shape", "image", (2, 3, size, size)) in bench.behaviour.calls


def test_what_the_builder_stored_names_modules_better_than_the_names(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.behaviour.layers = [("__myl_Fc_myl0_1", 1.0), ("__myl_Fc_myl0_1", 0.5), ("another", 0.5)]
    detector = _open(bench)
    plan = detector.artifact
    layers = Layers("engine", (Layer("__myl_Fc_myl0_1", "gemm", ("fpn.lat_layers.0", "proto_net.0"), ()),))
    for digest, expected in (
        (detector.file.sha256, {"proto_net": 1.5, "(added by the engine)": 0.5}),  # a name twice: both its times
        ("of another", {"(added by the engine)": 2.0}),
    ):
        write_layers(layers_path(plan), layers, digest)
        found = layer_times(detector, IMAGES, runs=2)
        assert {row["module"]: row["ms"] for row in found["modules"]} == expected
    detector.close()


def test_a_profiler_that_is_told_nothing_is_an_error(make_bench: MakeBench) -> None:
    with (
        _open(make_bench()) as detector,
        pytest.raises(BenchmarkError, match=r"tiny\.engine: TensorRT 10\.3\.0.*told its profiler of no layer"),
    ):
        layer_times(detector, IMAGES)


def test_a_plan_says_its_precision_and_batches(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(make_bench()) as detector:
        monkeypatch.setattr("benchmarks.command.Detector", partial(Detector, gpu=detector.arguments["gpu"]))
        assert describe(detector)["precision"] == "fp32"
        assert detector.file.batch == (1, 4)
        with pytest.raises(BenchmarkError, match=r"was built for batches of 1 to 4, and 5 .*build-engine --batch"):
            benchmarks.bench(detector.artifact, batch=5, device="cuda:0")


@pytest.mark.parametrize(
    ("layer", "modules"),
    [
        ("fpn.lat_layers.0/Conv", ("fpn.lat_layers.0",)),
        ("/fpn/lat_layers.0/Conv", ("fpn.lat_layers.0",)),
        ("a.b/Conv + a.c/Relu + a.b/Add", ("a.b", "a.c")),
        ("{ForeignNode[a.0/Conv...b.1/Relu]}", ("a.0", "b.1")),
        ("__myl_Fc_myl0_1", ()),
    ],
)
def test_modules_are_read_from_tensorrts_names(layer: str, modules: tuple[str, ...]) -> None:
    assert modules_in(layer) == modules


def test_kernels_are_summed_per_node_and_run() -> None:
    def event(category: str, name: str, duration: int, operator: str = "Conv") -> dict[str, Any]:
        return {"cat": category, "name": name, "dur": duration, "args": {"op_name": operator}}

    run = [
        event("Kernel", "a copy of the input, before any node", 9, ""),
        event("Node", "fpn/Conv_fence_before", 7),
        event("Node", "fpn/Conv_kernel_time", 50),
        event("Kernel", "pad", 100),
        event("Kernel", "gemm", 200),
        event("Node", "proto_net.0/Conv_kernel_time", 60),
        event("Kernel", "gemm", 400),
    ]
    times = kernel_times(run * 3, runs=2)
    assert [(node.name, node.ms) for node in times] == [("fpn/Conv", 0.3), ("proto_net.0/Conv", 0.4)]


@pytest.mark.slow
def test_an_onnxruntime_that_does_not_count_kernels_says_who_does(
    emulated: Callable[..., EmulatedGpu], shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = emulated()
    monkeypatch.setattr(layer_profiles, "choose_providers", lambda ort, device, **_: [CPU_PROVIDER])
    with (
        gpu.open(shapes_onnx) as detector,
        pytest.raises(BenchmarkError, match=r"only how long it takes to launch it.*build-engine.*--device cpu"),
    ):
        layer_times(detector, IMAGES[:1], runs=1)
