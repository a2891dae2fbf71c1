"""What Python is given: every argument of every public function refuses what the command line refuses, before any work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks
import engines
import exporters
from tests.goldens import SHAPES, SHAPES_CHECKPOINT
from yolact_deploy import Detector, detect_files, diagnose, evaluate
from yolact_deploy.errors import BenchmarkError, OptionError, YolactDeployError
from yolact_deploy.reference.images import read_image

PHOTO = SHAPES / "val" / "val_public_0000.jpg"

COUNT = (0, -1, 1.5, True, "1", math.nan, [1])
SHARE = (-1, -1e-9, 1.0001, math.nan, math.inf, True, "0.5", [0.5])
NUMBER = (-1, math.nan, math.inf, True, "0.5")
FLAG: tuple[Any, ...] = ("no", 0, 1.0, [])
PATH = (5, True, "", b"bytes", ["a"], object())
SOURCES = (5, True, "", b"bytes", [5], [""], {"a": 1})
TEXT = (5, True, ["a"])
TEXTS = ("text", 5, [5], {"a"})
CALLABLE = (5, "print", [print])
WORD = ("nonsense", "", 5, True, ["a"])
DEVICE = (0, "0", "gpu", "cuda:x", "cuda:-1", "cpu:0", "", True, "cuda:1:2", "openvino:")
IMAGES = (5, 1.5, object())

Bad = dict[str, Iterable[Any]]

DETECTOR: Bad = {
    "artifact": PATH,
    "device": DEVICE,
    "runtime": WORD,
    "cpu_precision": WORD,
    "gpu_precision": WORD,
    "threads": COUNT,
    "nms": WORD,
    "batch_size": COUNT,
    "cuda_graph": FLAG,
    "max_pixels": COUNT,
}
CALL: Bad = {"image": (*IMAGES, None), "channel_order": WORD, "score_threshold": SHARE, "masks": WORD}
STREAM: Bad = {**CALL, "prefetch": COUNT[1:], "batch_size": COUNT}
DETECT_FILES: Bad = {
    **{
        name: DETECTOR[name]
        for name in ("artifact", "device", "runtime", "cpu_precision", "gpu_precision", "threads", "nms", "max_pixels")
    },
    "inputs": SOURCES,
    **dict.fromkeys(("overlays", "coco", "image_ids"), PATH),
    **dict.fromkeys(("recursive", "overwrite", "resume"), FLAG),
    "classes": (5, True, "nonsense", [], [None], [1.5]),
    "score_threshold": SHARE,
    "top_k": COUNT,
    **dict.fromkeys(("on_result", "on_failure", "on_file", "on_listed", "on_broken_off", "progress"), CALLABLE),
}
EVALUATE: Bad = {
    **{
        name: DETECTOR[name]
        for name in ("artifact", "device", "runtime", "cpu_precision", "gpu_precision", "threads", "nms", "max_pixels")
    },
    **dict.fromkeys(("images", "annotations"), PATH),
    "limit": COUNT,
    **dict.fromkeys(("progress", "on_doubt", "on_note"), CALLABLE),
}
EXPORT: Bad = {
    **dict.fromkeys(("checkpoint", "output", "spec", "calib_cache", "annotations", "images"), PATH),
    "config": TEXT,
    "max_batch": COUNT,
    "opset": (*COUNT, 16),
    **dict.fromkeys(("conf", "dcn", "precision", "calibrator", "io_precision", "nms", "channel_order"), WORD),
    **dict.fromkeys(("parity", "end_to_end"), FLAG),
    **dict.fromkeys(("parity_images", "calib"), SOURCES),
    "max_ap_drop": NUMBER,
    "progress": CALLABLE,
}
QUANTIZE: Bad = {
    **dict.fromkeys(("model", "output", "calib_cache", "annotations", "images"), PATH),
    **dict.fromkeys(("precision", "calibrator", "io_precision", "runtime", "cpu_precision"), WORD),
    "calib": SOURCES,
    "keep_fp16": TEXTS,
    "max_ap_drop": NUMBER,
    "limit": COUNT,
    **dict.fromkeys(("auto", "sensitivity"), FLAG),
    "progress": CALLABLE,
}
COMPARE: Bad = {
    **dict.fromkeys(("a", "b", "annotations", "spec", "html", "save_inputs", "save_outputs"), PATH),
    "layers": FLAG,
    "images": SOURCES,
    "config": TEXT,
    "score_threshold": SHARE,
    "device": DEVICE,
    **dict.fromkeys(("runtime", "runtime_b", "cpu_precision"), WORD),
    "max_pixels": COUNT,
    "progress": CALLABLE,
}
BUILD: Bad = {
    **dict.fromkeys(("model", "output", "timing_cache"), PATH),
    **dict.fromkeys(("precision", "runtime"), WORD),
    "targets": TEXTS,
    "batch": (*COUNT, (1, 2), (1, 2, "3"), (3, 2, 1), (0, 1, 2), 10**30),
    "image_size": (5, (0, 5), (5,), ((5, 5), (5, 5)), "32x32", (True, 5)),
    "workspace_bytes": COUNT,
    **dict.fromkeys(("lower", "on_note", "progress"), CALLABLE),
}
BENCH: Bad = {
    "artifacts": (*SOURCES, []),
    **dict.fromkeys(("images", "checkpoint", "baseline", "report"), PATH),
    **dict.fromkeys(("batch", "iterations", "streams", "threads", "max_pixels"), COUNT),
    "seconds": (0, *NUMBER),
    "warmup": COUNT[1:],
    "score_threshold": SHARE,
    **dict.fromkeys(("sweep", "layers", "peers", "allow_other_machine", "samples", "cuda_graph"), FLAG),
    **dict.fromkeys(("scenario", "runtime", "cpu_precision", "gpu_precision"), WORD),
    "max_regression": (1, -1, "lots", math.nan, None, "1e9%"),
    "device": DEVICE,
    "progress": CALLABLE,
}
DIAGNOSE: Bad = {"warm": FLAG, "targets": TEXTS, "progress": CALLABLE}

ELSEWHERE = {"gpu", "builders"}  # another backend, other builders: objects of ours

FUNCTIONS: dict[str, tuple[Callable[..., Any], Bad]] = {
    "Detector": (Detector, DETECTOR),
    "detect_files": (detect_files, DETECT_FILES),
    "evaluate": (evaluate, EVALUATE),
    "export": (exporters.export, EXPORT),
    "quantize": (exporters.quantize, QUANTIZE),
    "compare": (exporters.compare, COMPARE),
    "build": (engines.build, BUILD),
    "bench": (benchmarks.bench, BENCH),
    "diagnose": (diagnose, DIAGNOSE),
    "inspect": (exporters.inspect, {"artifact": PATH}),
    "lint_onnx": (engines.lint_onnx, {"source": PATH}),
    "read_image": (read_image, {"path": PATH, "max_pixels": COUNT}),
}
NOT_LISTED = {"diagnose": {"artifact"}}  # what `inspect` tells


@pytest.fixture
def good(shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Arguments that each function would begin its work with."""
    monkeypatch.chdir(tmp_path)
    val, model = SHAPES / "val", shapes_onnx
    return {
        "Detector": {"artifact": model},
        "detect_files": {"artifact": model, "inputs": PHOTO},
        "evaluate": {"artifact": model, "images": val, "annotations": val / "instances.json"},
        "export": {"checkpoint": SHAPES_CHECKPOINT, "output": "out.onnx", "config": "none"},
        "quantize": {"model": model, "output": "out.onnx"},
        "compare": {"a": model, "b": model, "images": PHOTO},
        "build": {"model": model, "output": "out.engine"},
        "bench": {"artifacts": model},
        "diagnose": {},
        "inspect": {},
        "lint_onnx": {},
        "read_image": {"path": PHOTO},
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_in_the_table(name: str) -> None:
    function, bad = FUNCTIONS[name]
    assert set(inspect.signature(function).parameters) - ELSEWHERE - NOT_LISTED.get(name, set()) == set(bad)


@pytest.mark.parametrize(("name", "argument"), [(name, key) for name, (_, bad) in FUNCTIONS.items() for key in bad])
def test_what_makes_no_sense_is_refused_before_any_work(
    name: str, argument: str, good: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    function, bad = FUNCTIONS[name]
    for value in bad[argument]:
        with pytest.raises(YolactDeployError) as caught:
            function(**{**good[name], argument: value})
        assert caught.value.exit_code in (1, 2)
        assert "Errno" not in str(caught.value)
        assert len(str(caught.value)) < 1000
    assert list(tmp_path.iterdir()) == []


def test_a_call_and_a_stream_refuse_what_makes_no_sense(shapes_onnx: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=1)
    for argument, values in CALL.items():
        for value in values:
            with pytest.raises(YolactDeployError):
                detector(**{"image": PHOTO, argument: value})
    for argument, values in STREAM.items():
        for value in values:
            options = {"images" if argument == "image" else argument: value}
            with pytest.raises(YolactDeployError):
                detector.stream(**{"images": [PHOTO], **options})
    assert set(inspect.signature(detector.stream).parameters) - {"images"} | {"image"} == set(STREAM)
    assert set(inspect.signature(detector.__call__).parameters) == set(CALL)


def test_numpy_numbers_are_numbers(shapes_onnx: Path, tmp_path: Path) -> None:
    detector = Detector(shapes_onnx, device="cpu", threads=int(np.int64(1)), batch_size=int(np.int32(2)))
    assert len(detector(PHOTO, score_threshold=float(np.float32(0.15))))
    report = detect_files(
        detector, PHOTO, top_k=np.int64(2), score_threshold=np.float32(0.25), coco=tmp_path / "a.json"
    )
    assert sum(report.files[0].counts.values()) == 2


def test_an_error_of_an_argument_is_a_value_error_and_one_of_ours(shapes_onnx: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1, found 0\.") as caught:
        Detector(shapes_onnx, batch_size=0)
    assert isinstance(caught.value, OptionError)
    assert caught.value.exit_code == 2
    with pytest.raises(BenchmarkError, match="was exported for batches up to"):
        benchmarks.bench(shapes_onnx, batch=10**9)
