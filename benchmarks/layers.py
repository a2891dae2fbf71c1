"""Where the network's time goes, module by module, as the engine itself counts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.layer_profiles import LayerTime, onnx_layer_times, plan_layer_times
from yolact_deploy import Detector
from yolact_deploy.arrays import Image
from yolact_deploy.runtime.detector import PLAN_SUFFIXES
from yolact_deploy.runtime.preprocess import preprocess

_RUNS = 20
_UNNAMED = "(added by the engine)"
_BACKBONE = "backbone"  # told apart by stage, "backbone.layers.3"
_STAGE_PARTS = 3
_STEM = "backbone (stem)"


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
    if path.suffix.lower() in PLAN_SUFFIXES:
        profiler, times = "TensorRT", plan_layer_times(detector, len(images), runs)
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
