"""Where the network's time goes, module by module, as the engine itself counts it."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.subjects import in_openvino
from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import INPUT, TF32, is_plan, module_of
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.optional import require
from yolact_deploy.reference.images import preprocess
from yolact_deploy.runtime.onnxruntime.network import CPU_PROVIDER, choose_providers, session_options
from yolact_deploy.runtime.openvino.library import Target, compile_network, read_network

_RUNS = 20
_UNNAMED = "(added by the engine)"
_BACKBONE = "backbone"  # told apart by stage, "backbone.layers.3"
_STAGE_PARTS = 3
_STEM = "backbone (stem)"
WARMUP = 5
_SUFFIX = "_kernel_time"  # of a node in onnxruntime's profile
_LAYOUTS = re.compile(r"_[a-h]{2,6}_[a-h]{2,6}_")  # from one to the other
_ENDS = re.compile(r"\.{3}")  # between the first and the last node of a "ForeignNode"
_NODE = re.compile(r"/?[\w.-]+(?:/[\w.-]+)+")  # "fpn.lat_layers.0/Conv", "/fpn/lat_layers.0/Conv"


@dataclass(frozen=True)
class LayerTime:
    """A layer of the engine, and the modules that are fused in it."""

    name: str
    operator: str  # "" where the engine does not say
    modules: tuple[str, ...]  # of the ONNX nodes in it, in its order; several once they are fused
    ms: float  # median of the runs


def layer_times(
    detector: Detector,
    images: Sequence[Image],  # a batch
    *,
    threads: int | None = None,
    runs: int = _RUNS,
) -> dict[str, Any]:
    """{"artifact", "profiler", "runs", "network_ms", "modules": [{"module", "ms", "share", "nodes"}], "nodes": [{"node",
    "operator", "module", "ms"}]}; modules in the order of the network, medians of `runs`.

    The model is opened a second time with the engine's profiler on, which slows every layer a little. Fused layers stand
    under the last module they contain. Raises BenchmarkError where the engine does not tell.
    """
    path = Path(detector.artifact)
    if is_plan(path):
        profiler, times = "TensorRT", plan_layer_times(detector, len(images), runs)
    elif in_openvino(detector):
        profiler, times = "OpenVINO", openvino_layer_times(detector, preprocess(images, detector.spec), threads, runs)
    else:
        profiler = "onnxruntime"
        times = onnx_layer_times(detector, preprocess(images, detector.spec), threads, runs)
    total = sum(layer.ms for layer in times)
    grouped: dict[str, list[LayerTime]] = defaultdict(list)
    for layer in times:
        grouped[_group(_module(layer))].append(layer)
    modules = [
        {
            "module": module,
            "ms": sum(layer.ms for layer in layers),
            "share": sum(layer.ms for layer in layers) / total if total else 0.0,
            "nodes": len(layers),
        }
        for module, layers in sorted(grouped.items(), key=lambda item: _position(item[0]))
    ]
    return {
        "artifact": str(path),
        "profiler": profiler,
        "runs": runs,
        "network_ms": total,
        "modules": modules,
        "nodes": [
            {"node": layer.name, "operator": layer.operator, "module": _module(layer), "ms": layer.ms}
            for layer in times
        ],
    }


def _module(layer: LayerTime) -> str:
    return layer.modules[-1] if layer.modules else ""


def _position(module: str) -> int:
    """The engine may run the pyramid's first layers before the backbone's last."""
    return 0 if module.startswith(_BACKBONE) else 2 if module == _UNNAMED else 1


def _group(module: str) -> str:
    parts = module.split(".")
    if parts[0] == _BACKBONE:
        return ".".join(parts[:_STAGE_PARTS]) if len(parts) >= _STAGE_PARTS else _STEM
    return parts[0] or _UNNAMED


def onnx_layer_times(detector: Detector, batch: FloatArray, threads: int | None, runs: int) -> list[LayerTime]:
    """Of a batch [B, 3, S, S], in a session of its own, on the CPU or on the Detector's GPU.

    Raises BenchmarkError where onnxruntime does not count on the GPU.
    """
    ort = require("onnxruntime", extra="cpu", purpose="times per layer")
    path = Path(detector.artifact)
    gpu = detector.gpu_index
    tf32 = detector.arguments["gpu_precision"] == TF32
    options = session_options(ort, threads)
    options.enable_profiling = True
    providers = [CPU_PROVIDER] if gpu is None else choose_providers(ort, f"cuda:{gpu}", tf32=tf32)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=providers)
        feed = {INPUT: batch.astype(open_onnx(path).dtypes[INPUT], copy=False)}
        for _ in range(WARMUP + runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    if gpu is None:
        return node_times(events, runs)
    if not any(event.get("cat") == "Kernel" for event in events):
        raise BenchmarkError(
            f"{path}: this onnxruntime ({ort.__version__}) counts per node only how long it takes to launch it on the GPU, not "
            "how long it runs: that takes one built with --enable_cuda_profiling. A plan of TensorRT tells (yolact-deploy "
            "build-engine), and the CPU does (--device cpu)."
        )
    return kernel_times(events, runs)


def openvino_layer_times(detector: Detector, batch: FloatArray, threads: int | None, runs: int) -> list[LayerTime]:
    """Of a batch [B, 3, S, S], in a second copy of the network, in the Detector's precision. Layers are named by the last ONNX
    node that was fused in them, copies between memory layouts by the node that they are made for."""
    file = open_onnx(detector.artifact)
    target = Target(precision=detector.arguments["cpu_precision"], threads=threads)
    name = str(file.path)
    request = compile_network(
        read_network(file.path, name), target, name, batch=len(batch), is_profiled=True
    ).create_infer_request()
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(WARMUP + runs):
        request.infer({INPUT: batch.astype(file.dtypes[INPUT], copy=False)})
        for layer in request.get_profiling_info():
            if layer.real_time:  # none where it was fused in another
                measured[layer.node_name, layer.node_type].append(1e3 * layer.real_time.total_seconds())
    return [
        LayerTime(name, operator, (module_of(_onnx_node(name)),), statistics.median(times[-runs:]))
        for (name, operator), times in measured.items()
    ]


def _onnx_node(layer: str) -> str:
    """The ONNX node of OpenVINO's "fpn.lat_layers.0/Conv/WithoutBiases", or "image_abcd_acdb_backbone.conv1/Conv"."""
    return _LAYOUTS.split(layer)[-1].removesuffix("/WithoutBiases")


def node_times(events: Iterable[dict[str, Any]], runs: int) -> list[LayerTime]:
    """Of nodes on the CPU: medians over the last `runs` runs, in the order of execution."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if _is_node(event):
            times[_node_of(event)].append(event["dur"])
    return _medians(times, runs)


def kernel_times(events: Iterable[dict[str, Any]], runs: int) -> list[LayerTime]:
    """Of nodes on a GPU: the sum of the kernels that follow each in the profile and name its operator (onnxruntime #8406 and
    #9567), as `node_times`."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    operator = ""  # of the node last seen
    running: list[float] = []  # its times
    for event in events:
        if _is_node(event):
            _, operator = node = _node_of(event)
            running = times[node]
            running.append(0.0)
        elif event.get("cat") == "Kernel" and running and event["args"].get("op_name") == operator:
            running[-1] += event["dur"]
    return _medians(times, runs)


def plan_layer_times(detector: Detector, batch: int, runs: int) -> list[LayerTime]:
    """By TensorRT's profiler, in a second copy of the plan; layers are mapped to modules by what the builder stored beside the
    plan, else by the ONNX nodes in their names. Raises BenchmarkError where TensorRT does not run it."""
    from benchmarks.device import bare_network, open_driver, open_network
    from yolact_deploy.runtime.tensorrt.network import PlanNetwork

    driver = open_driver(detector)
    network = open_network(detector, driver)
    if not isinstance(network, PlanNetwork):
        raise BenchmarkError(
            f"{detector.artifact}: times per layer are read from TensorRT, which does not run it here."
        )
    measured: list[dict[str, float]] = [{}]  # of each run

    def report(name: str, ms: float) -> None:
        measured[-1][name] = measured[-1].get(name, 0.0) + ms

    def new_execution_context(stream: int) -> Any:
        context = network.new_execution_context(stream)
        context.profile(report)
        return context

    with bare_network(driver, network, batch, new_execution_context) as bare:
        for _ in range(WARMUP + runs):
            measured.append({})
            bare.enqueue()
            driver.synchronize(bare.stream)
    if not measured[-1]:
        raise BenchmarkError(f"{detector.artifact}: {network.description} told its profiler of no layer.")
    layers = network.file.layers()
    stored = {} if layers is None else {layer.name: layer.modules for layer in layers.layers}
    return [
        LayerTime(
            name,
            "",
            stored.get(name) or modules_in(name),
            statistics.median([run.get(name, 0.0) for run in measured[-runs:]]),
        )
        for name in measured[-1]
    ]


def modules_in(layer_name: str) -> tuple[str, ...]:
    """Modules of the ONNX nodes that TensorRT names a layer by: "a/Conv + a/Relu", "PWN(a/Tanh)", "Reformatting CopyNode for
    Input Tensor 0 to a/Conv", "{ForeignNode[a/Conv...b/Relu]}"."""
    nodes = _NODE.findall(_ENDS.sub(" ", layer_name))
    return tuple(dict.fromkeys(module_of(node) for node in nodes))


def _is_node(event: dict[str, Any]) -> bool:
    return event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)


def _node_of(event: dict[str, Any]) -> tuple[str, str]:
    return event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")


def _medians(times: dict[tuple[str, str], list[float]], runs: int) -> list[LayerTime]:
    return [
        LayerTime(name, operator, (module_of(name),), statistics.median(durations[-runs:]) / 1e3)
        for (name, operator), durations in times.items()
    ]
