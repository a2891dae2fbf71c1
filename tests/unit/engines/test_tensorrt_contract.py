"""What the builder asks of TensorRT, held against the real API of the oldest and newest TensorRT served.

A build runs over TensorRT-RTX through `Recorded`, which notes every attribute that is touched. Each must exist in TensorRT
too: in the names recorded from its bindings of three versions (tensorrt_api.json), and in the installed bindings, which
import without TensorRT's libraries when these are replaced by stubs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines import build, builder
from engines.adapters import Adapter, TensorRt, TensorRtRtx
from tests.unit.engines.tensorrt_bindings import installed_tensorrt_api
from tests.unit.engines.tiny_network import Graph, WriteOnnx
from yolact_deploy.errors import EngineError

Touched = set[tuple[str, str]]  # (class, attribute); the class is "" for the module's own names

_RECORDED_API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
# Reached only with a GPU, where a finished plan can be opened for its fused layers.
_NEEDS_GPU: Touched = {
    ("", "Runtime"),
    ("Runtime", "deserialize_cuda_engine"),
    ("ICudaEngine", "create_engine_inspector"),
    ("EngineInspector", "get_engine_information"),
    ("", "LayerInformationFormat"),
    ("LayerInformationFormat", "JSON"),
}
_RTX_ONLY: Touched = {
    ("", "ComputeCapability"),
    ("ComputeCapability", "SM86"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}


class Recorded:
    """A stand-in for a TensorRT object that passes everything on and notes what was touched, on which class."""

    def __init__(self, target: Any, touched: Touched) -> None:
        vars(self).update(_target=target, _touched=touched)

    def __getattr__(self, name: str) -> Any:
        self._touched.add((_owner(self._target, name), name))
        return _wrap(getattr(self._target, name), self._touched)

    def __setattr__(self, name: str, value: Any) -> None:
        self._touched.add((_owner(self._target, name), name))
        setattr(self._target, name, _unwrap(value))

    def __call__(self, *args: Any) -> Any:
        return _wrap(self._target(*map(_unwrap, args)), self._touched)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._target,)

    def __int__(self) -> int:
        return int(self._target)

    def __bytes__(self) -> bytes:
        return bytes(self._target)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)


def _owner(target: Any, name: str) -> str:
    """The class that defines `name`: ILayer for a convolution layer's name."""
    if isinstance(target, type(sys)):
        return ""
    cls = target if isinstance(target, type) else type(target)
    return next((base.__name__ for base in cls.__mro__ if name in vars(base)), cls.__name__)


def _wrap(value: Any, touched: Touched) -> Any:
    of_tensorrt = (value if isinstance(value, type) else type(value)).__module__.startswith("tensorrt")
    return Recorded(value, touched) if of_tensorrt or callable(value) else value


def _unwrap(value: Any) -> Any:
    return value._target if isinstance(value, Recorded) else value


@pytest.fixture(scope="module")
def tensorrt_touched(write_onnx: WriteOnnx, tmp_path_factory: pytest.TempPathFactory) -> Touched:
    """What builds with the TensorRT adapter touch: a good one with every option, a failing parse, a failing build."""
    return _touched_by(TensorRt, write_onnx, tmp_path_factory)


def _touched_by(kind: type[Adapter], write_onnx: WriteOnnx, factory: pytest.TempPathFactory) -> Touched:
    trt = pytest.importorskip("tensorrt_rtx")
    touched: Touched = set()
    adapter = kind(trt=Recorded(trt, touched), version="0")
    folder = factory.mktemp("recorded")
    output, cache = folder / "t.engine", folder / "timing.cache"
    targets = ("sm86",) if kind is TensorRtRtx else ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "choose_runtime", lambda _: (adapter, ""))
        if kind is TensorRt:
            patch.setattr(TensorRt, "builds_for_this_gpu", False)
        source = write_onnx(folder)
        for _ in range(2):  # the second finds the first one's timing cache
            build(source, output, targets=targets, timing_cache=cache, workspace_bytes=1 << 30, progress=_ignore)
        with pytest.raises(EngineError):
            build(source, output, targets=targets, workspace_bytes=1)

        def insert(graph: Graph) -> None:
            graph.insert_before("outputs.conf/Identity", lambda x: graph.add("Frobnicate", [x], "outputs"))

        with pytest.raises(EngineError):
            build(write_onnx(folder, edit=insert), output, targets=targets)
    return touched


def _ignore(phase: str, step: int, total: int) -> None:
    pass


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("version", sorted(_RECORDED_API))
def test_builder_touches_only_what_every_tensorrt_has(version: str, tensorrt_touched: Touched) -> None:
    _assert_in(tensorrt_touched | _NEEDS_GPU, _RECORDED_API[version])


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_builder_touches_only_what_the_installed_tensorrt_bindings_have(
    tensorrt_touched: Touched, tmp_path: Path
) -> None:
    _assert_in(tensorrt_touched | _NEEDS_GPU, installed_tensorrt_api(tmp_path))


def test_recording_sees_what_only_tensorrt_rtx_has(
    write_onnx: WriteOnnx, tmp_path_factory: pytest.TempPathFactory
) -> None:
    touched = _touched_by(TensorRtRtx, write_onnx, tmp_path_factory)
    newest = _RECORDED_API["11.4.0.106"]
    assert {entry for entry in touched if not _has(newest, *entry)} - {
        ("ComputeCapability", "__members__")
    } == _RTX_ONLY


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_recording_is_not_empty(tensorrt_touched: Touched) -> None:
    assert {
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "TF32"),
        ("IBuilderConfig", "clear_flag"),
        ("IBuilderConfig", "progress_monitor"),
        ("IBuilderConfig", "set_timing_cache"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("OnnxParser", "get_error"),
        ("ParserError", "node_operator"),
        ("ILayer", "metadata"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    } <= tensorrt_touched


def _assert_in(touched: Touched, api: dict[str, list[str]]) -> None:
    missing = sorted(f"{cls}.{name}" for cls, name in touched if not _has(api, cls, name))
    assert not missing, f"not in this TensorRT: {', '.join(missing)}"


def _has(api: dict[str, list[str]], cls: str, name: str) -> bool:
    if cls == "":
        return name in api
    # What Python gives every class (an enum member's `name` and `value` are listed with it).
    return name in api.get(cls, ()) or (cls in api and hasattr(object, name))
