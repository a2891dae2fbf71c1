from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.goldens import SHAPES, SHAPES_CHECKPOINT, SHAPES_SPEC
from yolact_deploy.cli import app
from yolact_deploy.cli.console import console
from yolact_deploy.errors import DeviceError
from yolact_deploy.reference.images import read_image
from yolact_deploy.runtime.onnxruntime.network import choose_providers

PHOTO, OTHER_PHOTO = (SHAPES / "val" / f"val_public_000{number}.jpg" for number in (0, 1))


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_detect_draws_overlays_and_writes_coco(shapes_onnx: Path, tmp_path: Path) -> None:
    result = run("detect", shapes_onnx, PHOTO, "--coco", "found.json", "-o", "drawn")
    assert result.exit_code == 0, result.stderr
    drawn, photo = read_image(tmp_path / "drawn" / PHOTO.name), read_image(PHOTO)
    assert drawn.shape == photo.shape
    assert np.count_nonzero(drawn != photo) > 1000
    entries = json.loads((tmp_path / "found.json").read_text())
    assert 0 < len(entries) <= 15
    assert min(entry["score"] for entry in entries) > 0.15
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "segmentation", "score"}


def test_detect_prints_a_line_for_each_file_and_one_for_all(shapes_onnx: Path, tmp_path: Path) -> None:
    name = f"{'a long name ' * 8}[red]:x:.jpg"
    shutil.copy(PHOTO, name)
    (tmp_path / "grey.png").write_bytes(cv2.imencode(".png", np.full((30, 40, 3), 114, np.uint8))[1].tobytes())
    found = "2 circle, 1 star, 1 ring, 1 cross"
    result = run("detect", shapes_onnx, PHOTO, name, "grey.png", "-o", "drawn")
    first, second, third, total = result.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(PHOTO))}: {found}; 320x400, [\d.]+ ms", first)
    assert re.fullmatch(rf"{re.escape(name)}: {found}; 320x400, [\d.]+ ms", second)
    assert re.fullmatch(r"grey.png: nothing; 40x30, [\d.]+ ms", third)
    assert re.fullmatch(r"3 images, 10 objects in [\d.]+ s: [\d.]+ images/s; drawn into drawn", total)


def test_detect_tells_of_each_file_when_it_is_done(shapes_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    result = run("detect", shapes_onnx, PHOTO, "bad.jpg", "--no-overlays", "--top-k", 1)
    assert re.search(r": 1 circle; 320x400, [\d.]+ ms\n1 image, 1 object in .* images/s\n$", result.stdout)
    assert "1 of 2 files failed; the others are done" in result.stderr


def test_detect_goes_on_to_its_end_where_nobody_reads_its_lines(shapes_onnx: Path, tmp_path: Path) -> None:
    arguments = [str(argument) for argument in ("detect", shapes_onnx, PHOTO, OTHER_PHOTO, "-o", "drawn")]
    process = subprocess.Popen([*_COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert b"Traceback" not in process.communicate()[1]
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 2


def test_detect_json_is_all_there_is_on_stdout(shapes_onnx: Path) -> None:
    result = run("detect", shapes_onnx, PHOTO, "--no-overlays", "--json", "--top-k", 2)
    report = json.loads(result.stdout)
    assert [image["file"] for image in report["images"]] == [str(PHOTO)]
    assert len(report["images"][0]["detections"]) == 2
    assert report["failed"] == []


@pytest.mark.parametrize("command", ["detect", "eval"])
def test_a_fallback_to_the_cpu_is_a_line_on_stderr_and_a_field(
    command: str, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(ort: Any, device: str) -> Any:
        if device == "cpu":
            return choose_providers(ort, device)
        raise DeviceError("the driver\n  is out of date.")

    monkeypatch.setattr("yolact_deploy.runtime.opening.has_nvidia_driver", lambda: True)
    monkeypatch.setattr("yolact_deploy.runtime.onnxruntime.network.choose_providers", refuse)
    rest: dict[str, tuple[object, ...]] = {
        "detect": (PHOTO, "--no-overlays"),
        "eval": ("--images", SHAPES / "val", "--annotations", SHAPES / "val/instances.json", "--limit", 1),
    }
    result = run(command, shapes_onnx, *rest[command], "--json")
    assert json.loads(result.stdout)["fallback"] == "the driver is out of date."
    assert "onnxruntime" in json.loads(result.stdout)["backend"]
    assert result.stderr == "note: No GPU is used: the driver is out of date.\n"
    result = run(command, shapes_onnx, *rest[command], "--json", "--device", "cpu")
    assert json.loads(result.stdout)["fallback"] is None
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["detect", "bench"])
def test_without_a_driver_nobody_is_told_how_to_use_a_gpu(
    command: str, shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolact_deploy.runtime.opening.has_nvidia_driver", lambda: False)
    rest: dict[str, tuple[object, ...]] = {
        "detect": (PHOTO, "--no-overlays"),
        "bench": ("--iterations", 1, "--warmup", 0),
    }
    result = run(command, shapes_onnx, *rest[command])
    assert result.exit_code == 0, result.stderr
    assert "pip" not in result.stderr
    assert "CUDA" not in result.stderr


def test_one_bad_file_does_not_stop_the_others(shapes_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(PHOTO, "in/a.jpg")
    (tmp_path / "in/b.jpg").write_text("no image")
    shutil.copy(PHOTO, "in/c.jpg")
    result = run("detect", shapes_onnx, "in", "-o", "out")
    assert result.exit_code == 1
    assert "in/b.jpg" in result.stderr
    assert "1 of 3 files failed" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jpg", "c.jpg"]


def test_files_of_the_same_name_get_overlays_of_their_own(shapes_onnx: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(PHOTO, f"{folder}/x.jpg")
    assert run("detect", shapes_onnx, "a", "b", "-o", "out").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x-2.jpg", "x.jpg"]


def _write_video(path: Path, frames: int) -> None:
    codec = cv2.VideoWriter.fourcc(*{".avi": "MJPG", ".mp4": "mp4v"}[path.suffix])
    writer = cv2.VideoWriter(str(path), codec, 10, (160, 120))
    for _ in range(frames):
        writer.write(cv2.resize(read_image(PHOTO), (160, 120)))
    writer.release()


def test_detect_goes_through_videos(shapes_onnx: Path, tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.avi", frames=3)
    result = run("detect", shapes_onnx, "clip.avi", "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert [image["frame"] for image in json.loads(result.stdout)["images"]] == [1, 2, 3]
    capture = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("clip.mp4", 0, "no decoder knows it, or it is damaged"),
        ("clip.mp4", 0.5, "no decoder knows it, or it is damaged"),  # the index is at its end
        ("clip.avi", 0.5, "of its 20 frames could be decoded"),
    ],
)
def test_a_video_that_cannot_be_read_is_named_and_leaves_nothing(
    name: str, kept: float, message: str, shapes_onnx: Path, tmp_path: Path
) -> None:
    _write_video(tmp_path / name, frames=20)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    result = run("detect", shapes_onnx, name, "-o", "out")
    assert result.exit_code == 2
    assert name in result.stderr
    assert message in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_without_frames_is_named(shapes_onnx: Path, tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.avi", frames=0)
    result = run("detect", shapes_onnx, "clip.avi", "--no-overlays")
    assert result.exit_code == 2
    assert "clip.avi: no frame could be decoded" in result.stderr


def test_a_video_is_one_line(shapes_onnx: Path, tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.avi", frames=3)
    result = run("detect", shapes_onnx, "clip.avi", "--no-overlays")
    line, total = result.stdout.splitlines()
    assert re.fullmatch(r"clip.avi: .+; 160x120, 3 frames, [\d.]+ ms each", line)
    assert total.startswith("3 images, ")


def test_image_ids_are_the_files_numbers_only_where_every_file_has_its_own(shapes_onnx: Path, tmp_path: Path) -> None:
    def ids(*files: str) -> list[int]:
        report = json.loads(run("detect", shapes_onnx, *files, "--no-overlays", "--json").stdout)
        return [image["image_id"] for image in report["images"]]

    for name in ("2.jpg", "0039.jpg", "x.jpg"):
        shutil.copy(PHOTO, name)
    _write_video(tmp_path / "clip.avi", frames=2)
    assert ids("0039.jpg", "2.jpg") == [39, 2]
    assert ids("x.jpg", "2.jpg") == [1, 2]
    assert ids("2.jpg", "clip.avi", "0039.jpg") == [1, 2, 3, 4]


def test_eval_prints_the_figures_of_design(shapes_onnx: Path) -> None:
    arguments = ("eval", shapes_onnx, "--images", SHAPES / "val", "--annotations", SHAPES / "val/instances.json")
    result = run(*arguments, "--limit", 5, "--json")
    report = json.loads(result.stdout)
    assert set(report) == {"bbox", "segm", "images", "artifact", "backend", "fallback", "notes"}
    assert report["images"] == 5
    assert 0.3 < report["bbox"]["AP50"] <= 1
    assert {"AP", "AP50", "AP75"} <= set(report["segm"])


def test_bench_prints_the_schema_of_design(shapes_onnx: Path) -> None:
    result = run("bench", shapes_onnx, "--iterations", 3, "--warmup", 1, "--batch", 2, "--threads", 1, "--json")
    report = json.loads(result.stdout)
    assert report["schema"] == 1
    assert set(report["runs"][0]) >= {"artifact", "batch", "latency_ms", "stages_ms", "throughput_fps"}
    assert set(report["runs"][0]["stages_ms"]) == {"preprocess", "network", "detect", "masks"}
    assert set(report["runs"][0]["latency_ms"]) == {"p50", "p90", "p95", "p99", "mean", "max", "n"}
    assert (report["runs"][0]["batch"], report["runs"][0]["latency_ms"]["n"]) == (2, 3)


@pytest.mark.parametrize("command", ["eval", "bench", "inspect", "doctor"])
def test_tables_fit_a_narrow_terminal(shapes_onnx: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal has it
    console.cache_clear()
    arguments: dict[str, tuple[object, ...]] = {
        "eval": (shapes_onnx, "--images", SHAPES / "val", "--annotations", SHAPES / "val/instances.json", "--limit", 2),
        "bench": (shapes_onnx, "--iterations", 1, "--warmup", 0),
        "inspect": (shapes_onnx,),
        "doctor": (),
    }
    result = run(command, *arguments[command])
    assert result.exit_code == 0, result.stderr
    lines = re.sub("\x1b\\[[0-9;]*m", "", result.stdout).splitlines()
    console.cache_clear()
    assert [line for line in lines if len(line) > 80 and max(map(len, line.split())) < 40] == []  # but for long paths
    assert "…" not in result.stdout


@pytest.mark.needs("torch")
def test_export_build_inspect(tmp_path: Path) -> None:
    result = run("export", SHAPES_CHECKPOINT, "--spec", SHAPES_SPEC, "-o", "m.onnx", "--parity-images", PHOTO, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parity"]["passed"] is True
    assert json.loads(run("inspect", "m.onnx", "--json").stdout)["spec"]["name"] == "yolact_resnet14_shapes"

    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx to build a plan")
    result = run("build-engine", "m.onnx", "-o", "m.engine", "--runtime", "tensorrt-rtx", "--target", "sm86", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["sidecar"]["targets"] == ["sm86"]
    assert json.loads(run("inspect", "m.engine", "--json").stdout)["kind"] == "plan"
    with (tmp_path / "m.engine").open("r+b") as plan:
        plan.seek(5000)
        plan.write(b"tampered")
    for command in (("inspect", "m.engine"), ("detect", "m.engine", PHOTO), ("bench", "m.engine")):
        result = run(*command)
        assert result.exit_code == 2
        assert "SHA-256" in result.stderr


@pytest.mark.needs("torch")
def test_inspect_reads_checkpoints_and_spec_files() -> None:
    assert json.loads(run("inspect", SHAPES_CHECKPOINT, "--json").stdout)["architecture"]["num_classes"] == 6
    assert json.loads(run("inspect", SHAPES_SPEC, "--json").stdout)["spec"]["input_size"] == 256
    assert "stages" in run("inspect", SHAPES_CHECKPOINT).stdout


BAD = {
    "a missing artifact": (("detect", "none.onnx", PHOTO), 2, "none.onnx does not exist"),
    "a missing image": (("detect", "MODEL", "none.jpg"), 2, "none.jpg does not exist"),
    "an artifact of no known kind": (("bench", "a.txt"), 2, "neither .onnx nor"),
    "an empty folder": (("detect", "MODEL", "."), 2, "holds no images"),
    "no annotations": (("eval", "MODEL", "--images", ".", "--annotations", "none.json"), 2, "can't read the annotations"),
    "annotations that are no JSON": (("eval", "MODEL", "--images", ".", "--annotations", "a.txt"), 2, "not valid JSON"),
    "annotations of another kind": (("eval", "MODEL", "--images", ".", "--annotations", "list.json"), 2, "no COCO instance"),
    "annotations of other images": (
        ("eval", "MODEL", "--images", ".", "--annotations", SHAPES / "val/instances.json"), 2, "lacks 200 of the 200 images",
    ),
    "an output below a file": (("detect", "MODEL", PHOTO, "-o", "a.txt/x"), 2, "can't write overlays"),
    "a COCO file in no folder": (("detect", "MODEL", PHOTO, "--coco", "no/x.json"), 2, "the folder no does not exist"),
    "an export into no folder": (("export", SHAPES_CHECKPOINT, "--spec", SHAPES_SPEC, "-o", "no/x.onnx"), 2, "no does not exist"),
    "an export onto a folder": (("export", SHAPES_CHECKPOINT, "--spec", SHAPES_SPEC, "-o", "."), 2, "is a folder"),
    "an unknown configuration": (("export", SHAPES_CHECKPOINT, "--config", "yolact_best", "-o", "x.onnx"), 2, "yolact_best"),
    "no spec": (("export", SHAPES_CHECKPOINT, "-o", "x.onnx"), 2, '"extends"'),
    "a rubbish batch": (("build-engine", "MODEL", "-o", "x.engine", "--batch", "two"), 2, "MIN,OPT,MAX"),
    "a batch in disorder": (("build-engine", "MODEL", "-o", "x.engine", "--batch", "3,2,1"), 2, "3,2,1"),
    "an unknown target": (("build-engine", "MODEL", "-o", "x.engine", "--target", "sm1"), 2, "sm1"),
    "nothing to inspect": (("inspect", "none.onnx"), 2, "does not exist"),
    "an unknown device": (("detect", "MODEL", PHOTO, "--device", "tpu"), 2, "device must be"),
    "overlays into a file": (("detect", "MODEL", PHOTO, "-o", "a.txt"), 2, "it is a file"),
    "overlays over the inputs": (("detect", "MODEL", PHOTO, "-o", PHOTO.parent), 2, "would replace the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_its_exit_code_and_leaves_nothing(name: str, shapes_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "list.json").write_text("[1]")
    before = sorted(tmp_path.rglob("*"))
    arguments, exit_code, message = BAD[name]
    filled = [shapes_onnx if argument == "MODEL" else argument for argument in arguments]
    result = run(*filled)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_as_json_and_with_their_traceback() -> None:
    result = run("inspect", "none.onnx", "--json")
    assert json.loads(result.stdout)["error"]["type"] == "ArtifactError"
    result = run("build-engine", "none.onnx", "-o", "x.engine", "--batch", "two", "--json")
    assert json.loads(result.stdout)["error"]["type"] == "BuildRequestError"
    result = subprocess.run([*_COMMAND, "inspect", "none.onnx", "--debug"], capture_output=True, text=True)
    assert "Traceback" in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detect", "m.onnx", "a.jpg", "--no-such", "--json"), "--no-such"),
        (("detect", "--json"), "artifact"),
        (("bench", "m.onnx", "--batch", "0", "--json"), "--batch"),
        (("quantize", "--json", "m.onnx", "-o", "x.onnx", "--precision", "fp64"), "fp64"),
        (("--json", "inspect", "m.onnx"), "--json"),
        (("inspct", "m.onnx", "--json"), "inspct"),
    ],
    ids=["unknown option", "no argument", "out of range", "no choice", "before the command", "unknown command"],
)
def test_wrong_usage_is_json_where_json_is_asked_for(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"
    assert message in json.loads(result.stdout)["error"]["message"].lower()
    assert message in result.stderr.lower()


def test_wrong_usage_is_words_alone_where_no_json_is_asked_for() -> None:
    result = run("detect", "--no-such")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--no-such" in result.stderr


def test_the_program_alone_prints_its_help_in_lines() -> None:
    result = run()
    assert result.output.splitlines()[0].endswith("[OPTIONS] COMMAND [ARGS]...")
    assert "\\n" not in result.output


def test_wrong_usage_cannot_act_on_the_terminal() -> None:
    for arguments in (("detect", "--\x1b[31mred"), ("\x1b[31mred",)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert r"\x1b[31mred" in result.stderr
        assert "\x1b" not in result.stderr


def test_json_holds_file_names_of_any_bytes(shapes_onnx: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.jpg")
    (tmp_path / name).write_text("no image")
    result = subprocess.run([*_COMMAND, "detect", shapes_onnx, name, "--no-overlays", "--json"], capture_output=True)
    assert json.loads(result.stdout)["failed"][0]["file"] == name


def test_a_reader_that_has_seen_enough_is_no_bug() -> None:
    process = subprocess.Popen([*_COMMAND, "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_a_bug_is_reported_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("yolact_deploy.diagnosis.examine", broken)
    result = run("doctor")
    assert result.exit_code == 1
    assert "ZeroDivisionError: boom" in result.stderr
    assert "bug" in result.stderr


_COMMAND = (sys.executable, "-c", "from yolact_deploy.cli import main; main()")


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_export_leaves_no_partial_output(tmp_path: Path, sent: signal.Signals) -> None:
    command = (*_COMMAND, "export", str(SHAPES_CHECKPOINT), "--spec", str(SHAPES_SPEC), "-o", "m.onnx")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".m.*")):  # the temporary file beside the target: the work has begun
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / "m.onnx").exists()
    if sent is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []
        assert b"Traceback" not in errors
