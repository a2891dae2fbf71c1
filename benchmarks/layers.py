"""Where the network's time goes, module by module, as the engine itself counts it."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy import Detector
from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.node_names import module_of
from yolact_deploy.optional import require

_RUNS = 20
_WARMUP = 5
_UNNAMED = "(added by the engine)"
_SUFFIX = "_kernel_time"  # of onnxruntime's profile
_BACKBONE = "backbone"  # told apart by stage, "backbone.layers.3"
_STAGE_PARTS = 3
_STEM = "backbone (stem)"


@dataclass(frozen=True)
class NodeTime:
    name: str
    operator: str
    ms: float  # median of the runs


def layer_times(
    detector: Detector,
    batch: FloatArray,  # [B, 3, S, S] preprocessed
    *,
    threads: int | None = None,
    runs: int = _RUNS,
) -> dict[str, Any]:
    """{"artifact", "runs", "network_ms", "modules": [{"module", "ms", "share", "nodes"}], "nodes": [{"node", "operator",
    "module", "ms"}]}; modules in the order of the network, medians of `runs`.

    A second session is opened for it with onnxruntime's profiler on, which slows every node a little. Fused operators
    stand under the last module they contain. Raises BenchmarkError for an artifact whose engine does not tell.
    """
    path = Path(detector.artifact)
    if path.suffix.lower() != ".onnx":
        raise BenchmarkError(
            f"{path}: times per layer are read from onnxruntime's profiler; give the ONNX it was built from."
        )
    times = _profile(path, batch, threads, runs)
    total = sum(node.ms for node in times)
    grouped: dict[str, list[NodeTime]] = defaultdict(list)
    for node in times:
        grouped[_group(node.name)].append(node)
    modules = [
        {
            "module": module,
            "ms": sum(n.ms for n in nodes),
            "share": sum(n.ms for n in nodes) / total,
            "nodes": len(nodes),
        }
        for module, nodes in sorted(grouped.items(), key=lambda item: _position(item[0]))
    ]
    return {
        "artifact": str(path),
        "runs": runs,
        "network_ms": total,
        "modules": modules,
        "nodes": [
            {"node": node.name, "operator": node.operator, "module": module_of(node.name), "ms": node.ms}
            for node in times
        ],
    }


def _profile(path: Path, batch: FloatArray, threads: int | None, runs: int) -> list[NodeTime]:
    ort = require("onnxruntime", extra="cpu", purpose="times per layer")
    from yolact_deploy.runtime.onnx_network import session_options

    options = session_options(ort, threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0]
        image = batch.astype("float16" if feed.type == "tensor(float16)" else "float32", copy=False)
        for _ in range(_WARMUP + runs):
            session.run(None, {feed.name: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _node_times(events, runs)


def _node_times(events: Iterable[dict[str, Any]], runs: int) -> list[NodeTime]:
    """Medians over the last `runs` runs, in the order of execution."""
    times: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            times[event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")].append(event["dur"])
    return [
        NodeTime(name, operator, statistics.median(durations[-runs:]) / 1e3)
        for (name, operator), durations in times.items()
    ]


def _position(module: str) -> int:
    """The engine may run the pyramid's first layers before the backbone's last."""
    return 0 if module.startswith(_BACKBONE) else 2 if module == _UNNAMED else 1


def _group(node_name: str) -> str:
    parts = module_of(node_name).split(".")
    if parts[0] == _BACKBONE:
        return ".".join(parts[:_STAGE_PARTS]) if len(parts) >= _STAGE_PARTS else _STEM
    return parts[0] or _UNNAMED
