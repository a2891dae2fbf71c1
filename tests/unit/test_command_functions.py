"""What the command line does, Python does by one function with the same options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import benchmarks
import engines
import exporters
from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC
from yolact_deploy import detect_files, diagnose, evaluate
from yolact_deploy.cli import app
from yolact_deploy.errors import BuildRequestError, CalibrationError, ExportError, ImageError, OutputError, SpecError

PHOTO = SHAPES / "val" / "val_public_0000.jpg"
TALK = {"json_output", "debug"}
GROUP: Any = typer.main.get_command(app)

# command -> its function, the options that it takes in another way, and what it takes for them or beside them
FUNCTIONS: dict[str, tuple[Callable[..., Any], set[str], set[str]]] = {
    "export": (exporters.export, set(), set()),
    "quantize": (exporters.quantize, {"keep_fp16"}, {"keep_fp16"}),
    "build-engine": (
        engines.build,
        {"batch", "target", "workspace_mib"},
        {"batch", "targets", "workspace_bytes", "lower"},
    ),
    "detect": (detect_files, {"images", "output", "overlays"}, {"inputs", "overlays"}),
    "eval": (evaluate, set(), set()),
    "bench": (benchmarks.bench, {"report_file"}, {"report"}),
    "compare": (exporters.compare, set(), set()),
    "inspect": (exporters.inspect, {"lint"}, set()),  # engines.lint_onnx
    "doctor": (diagnose, {"artifact", "target"}, {"artifact", "targets", "builders"}),
}
CALLBACKS = {"progress", "on_note", "on_doubt", "on_result", "on_failure", "on_file", "on_listed", "on_broken_off"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_options_of_its_command_and_their_defaults(name: str) -> None:
    function, other_options, other_parameters = FUNCTIONS[name]
    options = {each.name: each for each in GROUP.commands[name].params if each.name not in TALK | other_options}
    parameters = inspect.signature(function).parameters
    taken = {key: each.default for key, each in parameters.items() if key not in CALLBACKS | other_parameters}
    assert set(taken) == set(options)
    for key, option in options.items():
        assert option.required if taken[key] is inspect.Parameter.empty else taken[key] == option.default, key


def test_every_command_has_its_function() -> None:
    assert set(FUNCTIONS) == set(GROUP.commands)


def test_every_function_is_documented_with_what_it_raises() -> None:
    for function, *_ in FUNCTIONS.values():
        assert function.__doc__
        assert "Raises " in function.__doc__


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_a_whole_export_is_one_call(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    told: list[str] = []
    result = exporters.export(
        str(SHAPES_CHECKPOINT),
        str(output),
        spec=str(SHAPES_SPEC),
        parity=False,
        precision="fp16",
        calib=[PHOTO],
        end_to_end=True,
        nms="cross_class",
        channel_order="rgb",
        progress=lambda what, *_: told.append(what.split()[0]),
    )
    assert list(tmp_path.iterdir()) == [output]
    assert result.lowered is not None
    assert result.end_to_end is not None
    assert (result.output, result.size_bytes) == (output, output.stat().st_size)
    described = result.to_dict()
    assert [described[part]["output"] for part in ("lowered", "end_to_end")] == [str(output)] * 2
    assert described["end_to_end"]["nms"] == "cross_class"
    assert told[0] == "reading"
    assert "making" in told


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp64"}, ExportError, "precision must be one of fp32, fp16, int8, found 'fp64'"),
        ({"conf": "sigmoid"}, ExportError, "conf must be one of"),
        ({"dcn": "onnx"}, ExportError, "dcn must be one of"),
        ({"io_precision": "int8"}, ExportError, "io_precision must be one of"),
        ({"end_to_end": True, "channel_order": "gbr"}, ExportError, "channel_order must be one of"),
        ({"precision": "int8"}, CalibrationError, "a folder of them with --calib"),
        ({"calib": PHOTO}, CalibrationError, "--calib has no effect on fp32"),
        ({"nms": "fast"}, SpecError, "--nms has no effect"),
        ({"parity_images": "nowhere.jpg"}, ImageError, "does not exist"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_checkpoint_is_read(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        exporters.export(tmp_path / "none.pth", tmp_path / "model.onnx", **options)


@pytest.mark.slow
def test_quantize_and_compare_take_paths_of_any_kind(shapes_onnx: Path, tmp_path: Path) -> None:
    half, page = tmp_path / "half.onnx", tmp_path / "page.html"
    assert exporters.quantize(str(shapes_onnx), half, precision="fp16", calib=str(PHOTO)).precision == "fp16"
    report = exporters.compare(shapes_onnx, str(half), str(PHOTO), html=page, device="cpu")
    assert (report.a.path, report.b.path) == (str(shapes_onnx), str(half))
    assert PHOTO.name in page.read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="no does not exist"):
        exporters.compare(shapes_onnx, half, [PHOTO], html=tmp_path / "no" / "page.html")


@pytest.mark.slow
def test_a_plan_in_fp16_is_one_call_where_python_says_what_lowers(shapes_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    model, told = tmp_path / "m.onnx", list[str]()
    model.write_bytes(shapes_onnx.read_bytes())
    options: dict[str, Any] = {"precision": "fp16", "runtime": "tensorrt-rtx", "targets": ["sm86"], "batch": 2}
    with pytest.raises(BuildRequestError, match="is fp32, not fp16"):
        engines.build(model, tmp_path / "m.engine", **options)
    for said in ("was written to", "which was there"):
        result = engines.build(model, tmp_path / "m.engine", lower=exporters.quantize, on_note=told.append, **options)
        assert (result.sidecar.precision, result.sidecar.batch.max) == ("fp16", 2)
        assert said in told.pop(0)
        told.clear()
    assert exporters.inspect(tmp_path / "m.engine")["precision"] == "fp16"
    assert exporters.inspect(tmp_path / "m.fp16.onnx")["precision"] == "fp16"
    assert engines.lint_onnx(tmp_path / "m.fp16.onnx").passed
