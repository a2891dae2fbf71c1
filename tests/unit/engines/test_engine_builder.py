"""Real TensorRT-RTX plans of a small network: what is written, what is refused, what an interruption leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import onnx
import pytest

from engines import builder
from engines.builder import BuildResult, build
from exporters import inspect
from tests.unit.engines.tiny_network import WriteOnnx
from yolact_deploy.artifacts.names import MAX_BATCH_METADATA_KEY, SPEC_METADATA_KEY, WEIGHTS_SHA256_METADATA_KEY
from yolact_deploy.artifacts.plan_file import BatchRange, open_plan
from yolact_deploy.errors import (
    ArtifactError,
    BuildRequestError,
    EngineError,
    OptionError,
    OutputError,
    PlanMismatchError,
    SpecError,
)
from yolact_deploy.spec import ModelSpec

pytest.importorskip("tensorrt_rtx")


def test_plan_and_sidecar_belong_together(built: BuildResult) -> None:
    plan = built.plan.read_bytes()
    assert len(plan) > 100_000
    assert open_plan(built.plan).sidecar == built.sidecar
    assert built.sidecar.plan_bytes == len(plan)
    assert built.sidecar.plan_sha256 == hashlib.sha256(plan).hexdigest()


def test_sidecar_says_what_the_plan_was_built_from_and_for(built: BuildResult, tiny_spec: ModelSpec) -> None:
    sidecar = built.sidecar
    source = built.plan.with_name("tiny.onnx")
    assert sidecar.spec == tiny_spec
    assert (sidecar.runtime, sidecar.precision, sidecar.onnx_name) == ("tensorrt-rtx", "fp32", "tiny.onnx")
    assert sidecar.targets == ("sm86", "sm89")
    assert sidecar.batch == BatchRange(1, 2, 4)
    assert sidecar.onnx_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_plan_of_weights_that_were_changed_says_so(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path, metadata={WEIGHTS_SHA256_METADATA_KEY: "0" * 64})
    result = build(source, tmp_path / "t.engine", runtime="tensorrt-rtx", targets=("sm86",))
    told = [
        note for note in result.notes if note.startswith(f"the weights of {source} are not those that were exported")
    ]
    assert len(told) == 1
    assert told[0] in result.sidecar.notes


def test_io_tensors_are_the_networks_own(built: BuildResult) -> None:
    found = {tensor.name: (tensor.mode, tensor.dtype, tensor.shape) for tensor in built.sidecar.io_tensors}
    assert found == {
        "image": ("input", "float32", (-1, 3, 32, 32)),
        "loc": ("output", "float32", (-1, 80, 4)),
        "conf": ("output", "float32", (-1, 80, 3)),
        "mask_coeff": ("output", "float32", (-1, 80, 4)),
        "proto": ("output", "float32", (-1, 8, 8, 4)),
    }


def test_layers_are_kept_with_types_and_modules(built: BuildResult) -> None:
    layers = open_plan(built.plan).layers()
    assert layers is not None
    assert layers.source == "network"
    stem = next(layer for layer in layers.layers if layer.name == "backbone.stem/Conv")
    assert (stem.kind, stem.modules) == ("convolution", ("backbone.stem",))
    assert [(output.dtype, output.shape) for output in stem.outputs] == [("float32", (-1, 8, 8, 8))]


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("int8", "int8")])
def test_precision_of_the_graph_is_that_of_the_plan(
    precision: str, dtype: str, write_onnx: WriteOnnx, tmp_path: Path
) -> None:
    result = build(
        write_onnx(tmp_path, precision=precision), tmp_path / "t.engine", targets=("sm86",), precision=precision
    )
    assert result.sidecar.precision == precision
    layers = open_plan(result.plan).layers()
    assert layers is not None
    assert dtype in {output.dtype for layer in layers.layers for output in layer.outputs}


def test_without_targets_it_is_built_for_every_gpu_since_ampere(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    result = build(write_onnx(tmp_path), tmp_path / "t.engine", runtime="tensorrt-rtx")
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(result.sidecar.targets)
    assert "sm75" not in result.sidecar.targets
    assert any("no target given" in note for note in result.notes)
    assert result.sidecar.notes == result.notes


def test_timing_cache_is_left_alone_and_says_so(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    result = build(write_onnx(tmp_path), tmp_path / "t.engine", runtime="tensorrt-rtx", timing_cache=cache)
    assert not cache.exists()
    assert any("timing cache timing.cache was left alone" in note for note in result.notes)
    assert str(tmp_path) not in result.sidecar_path.read_text()


def test_rebuilding_replaces_all_three_files(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source, output = write_onnx(tmp_path), tmp_path / "t.engine"
    first = build(source, output, targets=("sm86",))
    second = build(source, output, targets=("sm89",), batch=(1, 1, 2))
    assert open_plan(output).sidecar == second.sidecar != first.sidecar
    assert open_plan(output).layers() is not None


def test_kill_before_the_plan_is_renamed_leaves_nothing_that_passes(
    write_onnx: WriteOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_onnx(tmp_path), tmp_path / "t.engine"
    build(source, output, targets=("sm86",))
    old_plan = output.read_bytes()
    real_replace = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target == output:
            raise SystemExit("killed")
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(SystemExit):
        build(source, output, targets=("sm89",))
    assert output.read_bytes() == old_plan
    with pytest.raises(PlanMismatchError):
        open_plan(output)


def test_progress_tells_every_phase_from_its_start_to_its_end(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), progress=lambda *call: calls.append(call))
    assert calls[0] == ("Parsing ONNX", 0, 1)
    assert calls[-1][0] == "Building engine"
    assert all(0 <= step <= total for _, step, total in calls)
    first, last = ({phase: step for phase, step, _ in order} for order in (reversed(calls), calls))
    totals = {phase: total for phase, _, total in calls}
    assert set(first.values()) == {0}
    assert last == totals


def test_nothing_is_printed(write_onnx: WriteOnnx, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), progress=lambda *_: None)
    assert capfd.readouterr() == ("", "")


def test_exception_in_progress_cancels_the_build_and_is_raised(
    write_onnx: WriteOnnx, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    phases = []

    def progress(phase: str, step: int, total: int) -> None:
        phases.append(phase)
        if phase == "Optimizing graph":
            raise ZeroDivisionError("from the callback")

    with pytest.raises(ZeroDivisionError, match="from the callback"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), progress=progress)
    assert phases[-1] == "Optimizing graph"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_cancels_the_build_and_leaves_no_file(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    phases = []

    def progress(phase: str, step: int, total: int) -> None:
        phases.append(phase)
        if phase == "Optimizing graph" and step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), progress=progress)
    assert phases[-1] == "Optimizing graph"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_cancels_the_build_and_goes_to_the_programs_handler(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    received = []

    def handler(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    def progress(phase: str, step: int, total: int) -> None:
        if phase == "Optimizing graph" and step == 1:
            signal.raise_signal(signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(EngineError, match="the build was stopped by SIGTERM"):
            build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), progress=progress)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert received == [signal.SIGTERM]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


# Sends itself a signal out of a callback of TensorRT, where the exception of a handler is printed and lost.
_SIGNALLED = """
import signal
from engines.messages import BuildControl
from yolact_deploy.cli import main

def report(self, phase, step, total):
    if phase == "Optimizing graph" and step == 1:
        signal.raise_signal(SENT)

BuildControl.report = report
main()
"""


@pytest.mark.parametrize(("sent", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_when_it_is_told_to_within_tensorrt(
    sent: signal.Signals, exit_code: int, write_onnx: WriteOnnx, tmp_path: Path
) -> None:
    source = write_onnx(tmp_path)
    options = ["--runtime", "tensorrt-rtx", "--target", "sm86"]
    command = ["build-engine", str(source), "-o", str(tmp_path / "t.engine"), *options]
    child = subprocess.run(
        [sys.executable, "-c", f"SENT = {int(sent)}{_SIGNALLED}", *command],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert child.returncode == exit_code, child.stderr
    assert "Traceback" not in child.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_interrupted_rebuild_keeps_the_old_plan(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source, output = write_onnx(tmp_path), tmp_path / "t.engine"
    before = build(source, output, targets=("sm86",))

    def progress(phase: str, step: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, output, targets=("sm86",), progress=progress)
    assert open_plan(output).sidecar == before.sidecar


@pytest.mark.parametrize("batch", [(0, 1, 2), (2, 1, 2), (1, 3, 2), (-1, -1, -1)])
def test_batch_out_of_order_is_refused(batch: tuple[int, int, int], write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(BuildRequestError, match=r"1 <= min <= opt <= max.*--batch MIN,OPT,MAX"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", batch=batch)


def test_fixed_batch_builds_only_for_that_batch(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path, batch=2)
    with pytest.raises(BuildRequestError, match=r"fixed batch of 2, but 1,1,1 was asked for.*--batch 2,2,2"):
        build(source, tmp_path / "t.engine", targets=("sm86",))
    result = build(source, tmp_path / "t.engine", targets=("sm86",), batch=(2, 2, 2))
    assert result.sidecar.io_tensors[0].shape == (2, 3, 32, 32)


def test_batch_above_what_was_exported_is_refused(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path, metadata={MAX_BATCH_METADATA_KEY: "4"})
    with pytest.raises(BuildRequestError, match=r"batches up to 4, but 1,8,16 was asked for.*--max-batch 16"):
        build(source, tmp_path / "t.engine", batch=(1, 8, 16))
    assert build(source, tmp_path / "t.engine", targets=("sm86",), batch=(1, 4, 4)).plan.exists()


@pytest.mark.parametrize(("found", "asked"), [("fp32", "fp16"), ("fp32", "int8"), ("fp16", "fp32"), ("int8", "fp16")])
def test_precision_that_the_graph_does_not_have_is_refused(
    found: str, asked: str, write_onnx: WriteOnnx, tmp_path: Path
) -> None:
    with pytest.raises(BuildRequestError, match=f"is {found}, not {asked}.*export --precision {asked}"):
        build(write_onnx(tmp_path, precision=found), tmp_path / "t.engine", precision=asked)


def test_tf32_is_asked_for_by_name_and_kept_in_the_sidecar(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    built = build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), precision="tf32")
    plan = open_plan(built.plan)
    assert (built.sidecar.precision, plan.describe()["precision"]) == ("tf32", "tf32")
    assert "--precision tf32" in plan.rebuild
    assert inspect(built.plan)["precision"] == "tf32"


@pytest.mark.parametrize("found", ["fp16", "int8"])
def test_tf32_of_another_graph_than_a_float32_one_is_refused(found: str, write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(BuildRequestError, match=f"is {found}, and tf32 is a way to compute float32"):
        build(write_onnx(tmp_path, precision=found), tmp_path / "t.engine", precision="tf32")


def test_unknown_precision_names_the_known_ones(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(BuildRequestError, match="'fp8'; choose fp32, fp16, int8, tf32"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", precision="fp8")


def test_target_that_rtx_does_not_have_names_the_valid_ones(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(BuildRequestError, match="no target sm90; it has sm75, sm80, sm86, sm89"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", runtime="tensorrt-rtx", targets=("9.0",))


def test_workspace_that_is_too_small_says_so(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)workspace limit.*allow more bytes"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), workspace_bytes=1 << 20)
    with pytest.raises(OptionError, match="workspace_bytes must be a whole number of at least 1, found 0"):
        build(write_onnx(tmp_path), tmp_path / "t.engine", workspace_bytes=0)


def test_unwritable_output_is_refused_before_the_build(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        build(write_onnx(tmp_path), tmp_path / "missing" / "t.engine", progress=_must_not_be_called)
    with pytest.raises(OutputError, match="is a folder"):
        build(write_onnx(tmp_path), tmp_path, progress=_must_not_be_called)


def test_the_onnx_is_not_overwritten_by_its_plan(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path)
    with pytest.raises(BuildRequestError, match="is the ONNX itself"):
        build(source, tmp_path / "." / "tiny.onnx")
    assert onnx.load(source).graph.node


def test_foreign_onnx_is_refused(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path)
    model = onnx.load(source)
    del model.metadata_props[:]
    onnx.save(model, source)
    with pytest.raises(SpecError, match=r"carries no YOLACT spec.*yolact-deploy export"):
        build(source, tmp_path / "t.engine")


def test_malformed_spec_in_the_onnx_is_named(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path, metadata={SPEC_METADATA_KEY: '{"name": "x"}'})
    with pytest.raises(SpecError, match=r"tiny.onnx carries a spec that can't be used: spec lacks the field"):
        build(source, tmp_path / "t.engine")


def test_spec_of_another_model_is_refused(write_onnx: WriteOnnx, tiny_spec: ModelSpec, tmp_path: Path) -> None:
    three = dataclasses.replace(tiny_spec, class_names=("disc", "bar", "star"), category_ids=(3, 9, 12))
    with pytest.raises(SpecError, match=r"conf is \[B, 80, 3\], its spec makes it \[B, 80, 4\]"):
        build(write_onnx(tmp_path, described=three), tmp_path / "t.engine")


def test_renamed_output_is_refused(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path)
    model = onnx.load(source)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "boxes"
    onnx.save(model, source)
    with pytest.raises(SpecError, match=r"it has no output loc \(it has image, boxes, conf, mask_coeff, proto\)"):
        build(source, tmp_path / "t.engine")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html></html>", b"\x08\x09"])
def test_file_that_is_no_onnx_is_named(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m.onnx is not an ONNX model, or is damaged"):
        build(source, tmp_path / "m.engine")


def test_truncated_onnx_is_named(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path)
    source.write_bytes(source.read_bytes()[:-500])
    with pytest.raises(ArtifactError, match="is not an ONNX model, or is damaged"):
        build(source, tmp_path / "t.engine")


def test_missing_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"can't read .*none.onnx: No such file"):
        build(tmp_path / "none.onnx", tmp_path / "t.engine")


def test_weights_in_another_file_are_refused(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    source = write_onnx(tmp_path)
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ArtifactError, match=r"keeps weights in a separate file \(tensor backbone.stem.weight\)"):
        build(source, tmp_path / "t.engine")


def test_failed_build_says_which_runtime(
    write_onnx: WriteOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build_errors", lambda *_: [])
    with pytest.raises(
        EngineError, match=r"TensorRT-RTX \d.* can't build a plan from .*tiny.onnx:\n  it gave no reason"
    ):
        build(write_onnx(tmp_path), tmp_path / "t.engine", targets=("sm86",), workspace_bytes=1)


def test_result_is_json_able_and_names_the_files(built: BuildResult) -> None:
    report = built.to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["sidecar"] == json.loads(built.sidecar_path.read_text())
    assert {Path(report[key]).name for key in ("plan", "sidecar_path", "layers_path")} == {
        "tiny.engine",
        "tiny.engine.json",
        "tiny.engine.layers.json",
    }


def _must_not_be_called(phase: str, step: int, total: int) -> None:
    raise AssertionError(f"the build began: {phase}")
