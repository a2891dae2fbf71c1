"""Runs of `detect` that are broken off: what they leave, and how `--resume` goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.goldens import SHAPES
from yolact_deploy.cli import app
from yolact_deploy.detection_run import DetectReport, Journal
from yolact_deploy.errors import InputWarning, OptionError, OutputError, OutputFailure
from yolact_deploy.file_detection import FileResult, detect_files
from yolact_deploy.runtime.detector import Detector

PHOTOS = [SHAPES / "val" / f"val_public_000{i}.jpg" for i in range(6)]
_COMMAND = (sys.executable, "-c", "from yolact_deploy.cli import main; main()")


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


def _broken_by(error: BaseException, after: int) -> Any:
    def look(result: FileResult) -> None:
        if result.number == after:
            raise error

    return look


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _names(folder)}


def test_what_was_found_before_ctrl_c_is_written_and_never_under_the_name_of_the_whole(
    detector: Detector, tmp_path: Path
) -> None:
    told: list[DetectReport] = []
    with pytest.raises(KeyboardInterrupt):
        detect_files(
            detector,
            PHOTOS,
            coco="found.json",
            on_result=_broken_by(KeyboardInterrupt(), after=3),
            on_broken_off=told.append,
        )
    assert _names(tmp_path) == ["found.json.journal", "found.partial.json"]
    assert {entry["image_id"] for entry in json.loads(Path("found.partial.json").read_text())} == {1, 2, 3}
    assert told[0].broken_off is not None
    assert (told[0].broken_off.done, told[0].broken_off.of) == (3, 6)
    assert told[0].to_dict()["partial"] is True


@pytest.mark.parametrize("after", [2, 5])
def test_a_resumed_run_leaves_what_an_unbroken_one_does_byte_for_byte(
    detector: Detector, tmp_path: Path, after: int
) -> None:
    Path("bad.jpg").write_text("no image")
    files = [PHOTOS[0], Path("bad.jpg"), *PHOTOS[1:5]]
    unbroken: list[dict[str, Any]] = []
    whole = detect_files(
        detector,
        files,
        coco="whole.json",
        overlays="drawn",
        on_listed=unbroken.append,
    )
    drawn = _contents(tmp_path / "drawn")
    with pytest.raises(KeyboardInterrupt):
        detect_files(
            detector,
            files,
            coco="a.json",
            overlays="drawn",
            overwrite=True,
            on_result=_broken_by(KeyboardInterrupt(), after),
        )
    listed: list[dict[str, Any]] = []
    detected: list[int] = []
    report = detect_files(
        detector,
        files,
        coco="a.json",
        overlays="drawn",
        resume=True,
        on_listed=listed.append,
        on_result=lambda result: detected.append(result.number),
    )
    assert Path("a.json").read_bytes() == Path("whole.json").read_bytes()
    assert (report, listed) == (whole, unbroken)
    assert detected == list(range(after, 6))
    assert _contents(tmp_path / "drawn") == drawn
    assert _names(tmp_path) == sorted(["a.json", "bad.jpg", "whole.json", *(f"drawn/{name}" for name in drawn)])


@pytest.mark.parametrize("torn", [b"", b'{"image":{"fi', b"\0" * 100, b'{"image":{"detections":[]}}\n', b"[]\n", b"\n"])
def test_half_a_record_at_the_end_of_a_journal_is_cut_off(detector: Detector, torn: bytes) -> None:
    detect_files(detector, PHOTOS[:3], coco="whole.json")
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS[:3], coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=2))
    with Path("a.json.journal").open("ab") as journal:
        journal.write(torn)
    detect_files(detector, PHOTOS[:3], coco="a.json", resume=True)
    assert Path("a.json").read_bytes() == Path("whole.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score_threshold": 0.3}, "score_threshold was 0.15, and is 0.3 now"),
        ({"top_k": 3}, "top_k was 15, and is 3 now"),
        ({"classes": "circle"}, "classes was None"),
        ({"inputs": PHOTOS[:5]}, "images was '6 of SHA-256"),
        ({"inputs": PHOTOS[::-1]}, "images was '6 of SHA-256"),
        ({"overlays": "drawn"}, "overlays was"),
    ],
    ids=["threshold", "top_k", "classes", "fewer images", "another order", "overlays"],
)
def test_a_run_goes_on_only_as_it_began(detector: Detector, options: dict[str, Any], said: str) -> None:
    if "classes" in options:
        options = {"classes": detector.spec.class_names[0]}
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=1))
    before = Path("a.json.journal").read_bytes()
    with pytest.raises(OutputError, match=said):
        detect_files(detector, **{"inputs": PHOTOS, "coco": "a.json", "resume": True, **options})
    assert Path("a.json.journal").read_bytes() == before


def test_another_model_does_not_go_on_with_a_run(detector: Detector, shapes_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=1))
    journal = Path("a.json.journal").read_text().replace(detector.file.sha256, "0" * 64)
    Path("a.json.journal").write_text(journal)
    with pytest.raises(OutputError, match="is of another run: artifact was '0000"):
        detect_files(detector, PHOTOS, coco="a.json", resume=True)


def test_another_runtime_does_not_go_on_with_a_run(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" chooses may be installed in between, and finds a score that differs in its last digits."""
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=1))
    monkeypatch.setattr(Detector, "description", "OpenVINO 2026.4 on the CPU")
    with pytest.raises(OutputError, match=r"is of another run: runtime was 'onnxruntime"):
        detect_files(detector, PHOTOS, coco="a.json", resume=True)


def test_a_journal_is_replaced_only_when_asked_for(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=2))
    with pytest.raises(OutputError, match=r"broken off after 2 files\. Go on .*--resume.*--overwrite"):
        detect_files(detector, PHOTOS[:1], coco="a.json")
    detect_files(detector, PHOTOS[:1], coco="a.json", overwrite=True)
    assert _names(tmp_path) == ["a.json"]


def test_what_is_no_journal_is_left_alone(detector: Detector, tmp_path: Path) -> None:
    for content in ("my diary\n", "[1]\n", '{"journal": 99, "of": {}}\n'):
        Path("a.json.journal").write_text(content)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="no journal of a run"):
                detect_files(detector, PHOTOS[:1], coco="a.json", **options)  # type: ignore[arg-type]
        assert Path("a.json.journal").read_text() == content


def test_a_damaged_record_is_refused_in_words(detector: Detector) -> None:
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS[:3], coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=2))
    journal = Path("a.json.journal").read_text()
    for summary in (
        "[]",
        "{}",
        "7",
        '{"image_hw": 3}',
        '{"file": 1, "image_hw": [], "x": 2}',
        '{"image_hw": [1e999, 1]}',
    ):
        lines = journal.splitlines()
        lines[2] = f'{{"summary": {summary}, "finished": 0}}'
        Path("a.json.journal").write_text("\n".join(lines) + "\n")
        with pytest.raises(OutputError, match="is damaged"):
            detect_files(detector, PHOTOS[:3], coco="a.json", resume=True)
    for image in (
        "7",
        "[]",
        "{}",
        '{"detections": 7}',
        '{"detections": {"a": 1}}',
        '{"detections": [{"image_id": 1}]}',
    ):
        Path("a.json.journal").write_text(journal.replace(journal.splitlines()[1], f'{{"image": {image}}}'))
        with pytest.raises(OutputError, match="is damaged"):
            detect_files(detector, PHOTOS[:3], coco="a.json", resume=True)
    overlay = (
        '{"summary": {"file": "a", "image_hw": [1, 1], "counts": {}, "overlay": {}, "frames": null}, "finished": 0}'
    )
    Path("a.json.journal").write_text(journal.replace(journal.splitlines()[2], overlay))
    with pytest.raises(OutputError, match="is damaged"):
        detect_files(detector, PHOTOS[:3], coco="a.json", resume=True)


def test_two_runs_do_not_write_one_journal(detector: Detector) -> None:
    def meet(_: FileResult) -> None:
        with pytest.raises(OutputError, match="another run is writing it"):
            detect_files(detector, PHOTOS[:1], coco="a.json", overwrite=True)

    detect_files(detector, PHOTOS[:1], coco="a.json", on_result=meet)


def test_a_drawing_that_is_gone_is_missed(detector: Detector) -> None:
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS[:3], overlays="drawn", on_result=_broken_by(KeyboardInterrupt(), after=2))
    Path("drawn", PHOTOS[0].name).unlink()
    with pytest.raises(OutputError, match=r"1 overlays of the run .* are gone"):
        detect_files(detector, PHOTOS[:3], overlays="drawn", resume=True)


def test_nothing_is_left_of_a_run_that_was_through_with_no_file(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(KeyboardInterrupt(), after=0))
    assert _names(tmp_path) == []


def test_resuming_without_a_journal_begins_and_says_so(detector: Detector, tmp_path: Path) -> None:
    with pytest.warns(InputWarning, match=r"a\.json\.journal is not there to go on from"):
        detect_files(detector, PHOTOS[:1], coco="a.json", resume=True)
    assert _names(tmp_path) == ["a.json"]


def test_resuming_takes_a_place_and_is_no_beginning(detector: Detector) -> None:
    with pytest.raises(OptionError, match="lies beside the COCO file"):
        detect_files(detector, PHOTOS[:1], resume=True)
    with pytest.raises(OptionError, match="contradict"):
        detect_files(detector, PHOTOS[:1], coco="a.json", resume=True, overwrite=True)


def test_an_error_of_any_kind_loses_nothing_either(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        detect_files(detector, PHOTOS, coco="a.json", on_result=_broken_by(ZeroDivisionError(), after=2))
    assert len(json.loads(Path("a.partial.json").read_text())) > 0
    detect_files(detector, PHOTOS, coco="a.json", resume=True)
    assert _names(tmp_path) == ["a.json"]


_FULL = """
import resource, signal, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from yolact_deploy.cli import main
main()
"""


@pytest.mark.slow
def test_a_disk_that_is_full_half_way_keeps_what_was_found(shapes_onnx: Path, tmp_path: Path) -> None:
    files = [str(photo) for photo in PHOTOS]
    arguments = ["detect", str(shapes_onnx), *files, "--no-overlays", "--coco", "a.json", "--json", "--threads", "1"]
    whole = subprocess.run([*_COMMAND, *arguments], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    expected = Path("a.json").read_bytes()
    Path("a.json").unlink()
    limited = [sys.executable, "-c", _FULL, str(len(expected) // 2)]
    broken = subprocess.run([*limited, *arguments], capture_output=True, text=True)
    assert broken.returncode == 1
    assert "a.json.journal: File too large." in broken.stderr
    assert "Go on with the same command and --resume" in broken.stderr
    assert "Traceback" not in broken.stderr
    report = json.loads(broken.stdout)
    assert report["partial"] is True
    assert report["error"]["type"] == "OutputFailure"
    assert 0 < len(report["images"]) < 6
    assert "a.json" not in _names(tmp_path)
    resumed = subprocess.run([*_COMMAND, *arguments, "--resume"], capture_output=True, text=True)
    assert (resumed.returncode, resumed.stdout) == (0, whole.stdout)
    assert Path("a.json").read_bytes() == expected
    assert _names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_a_run_that_was_ended_from_outside_is_gone_on_with(
    shapes_onnx: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    files = [str(photo) for photo in PHOTOS * 30]
    arguments = ["detect", str(shapes_onnx), *files, "--no-overlays", "--coco", "a.json", "--json", "--threads", "1"]
    process = subprocess.Popen([*_COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    journal = Path("a.json.journal")
    while not journal.exists() or journal.read_bytes().count(b'"finished"') < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert not Path("a.json").exists()
    if sent is not signal.SIGKILL:
        report = json.loads(output)
        assert report["partial"] is True
        assert 2 <= len(report["images"]) < len(files)
        assert {entry["image_id"] for entry in json.loads(Path("a.partial.json").read_text())} <= {
            image["image_id"] for image in report["images"]
        }
        assert f"{len(report['images'])} of 180 files are done" in errors
    done = journal.read_bytes().count(b'"finished"')
    detected: list[int] = []

    def stop(result: FileResult) -> None:
        detected.append(result.number)
        if len(detected) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect_files(
            shapes_onnx,
            files,
            coco="a.json",
            threads=1,
            resume=True,
            on_listed=lambda _: None,
            on_result=stop,
        )
    assert detected == [done, done + 1, done + 2]


def test_json_alone_is_whole_and_partial_when_it_is_broken_off(
    shapes_onnx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = FileResult.to_dict

    def breaking(result: FileResult) -> dict[str, Any]:
        if result.number == 2:
            raise KeyboardInterrupt
        return original(result)

    monkeypatch.setattr(FileResult, "to_dict", breaking)
    result = CliRunner().invoke(app, ["detect", str(shapes_onnx), *map(str, PHOTOS), "--no-overlays", "--json"])
    assert result.exit_code == 130
    report = json.loads(result.stdout)
    assert (len(report["images"]), report["partial"], report["error"]["message"]) == (2, True, "interrupted")
    assert "--coco or overlays" in result.stderr
    assert _names(tmp_path) == []


def test_a_journal_takes_no_memory_of_what_it_holds(tmp_path: Path) -> None:
    content = {"detections": ["x" * 100] * 20}
    tracemalloc.start()
    try:
        with Journal(tmp_path / "j") as journal:
            journal.begin({})
            for _ in range(3000):
                journal.add(content)
                journal.finish({})
            assert sum("detections" in record for record in journal.records()) == 3000
        with Journal(tmp_path / "j") as journal:
            assert journal.finished == 3000
            assert sum(1 for _ in journal.go_on({})) == 6000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "j").stat().st_size > 6_000_000
    assert peak < 1_000_000


def test_a_journal_on_a_full_disk_is_a_failure_of_writing_and_keeps_what_it_had(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\n"
        "from yolact_deploy.detection_run import Journal\n"
        "from yolact_deploy.errors import OutputFailure\n"
        "with Journal(Path(sys.argv[1])) as journal:\n"
        "    journal.begin({})\n"
        "    try:\n"
        "        while True:\n"
        "            journal.finish({'x': 'y' * 100})\n"
        "    except OutputFailure as exc:\n"
        "        journal.take_back()\n"
        "        print(journal.finished, sum(1 for _ in journal.records()), exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j")], capture_output=True, text=True)
    assert done.stdout == f"8 8 can't write {tmp_path / 'j'}: File too large.\n", done.stderr
    with Journal(tmp_path / "j") as journal:
        assert journal.finished == 8
    assert (tmp_path / "j").read_bytes().endswith(b"}\n")


def test_a_video_for_which_there_is_no_room_is_no_overlay(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from yolact_deploy.reference.drawing import video_writer\n"
        "with video_writer(Path(sys.argv[1]), 10) as add:\n"
        "    for frame in np.random.default_rng(0).integers(0, 255, (40, 120, 160, 3), np.uint8):\n"
        "        add(frame)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "v.mp4")], capture_output=True, text=True)
    assert f"OutputFailure: can't write the video {tmp_path / 'v.mp4'}: it broke off." in done.stderr
    assert _names(tmp_path) == []


def test_a_folder_or_a_pipe_in_the_place_of_a_journal_is_named(detector: Detector, tmp_path: Path) -> None:
    Path("a.json.journal").mkdir()
    with pytest.raises(OutputError, match=r"a\.json\.journal"):
        detect_files(detector, PHOTOS[:1], coco="a.json")
    os.mkfifo("b.json.journal")
    with pytest.raises(OutputError, match="it is no file"):
        detect_files(detector, PHOTOS[:1], coco="b.json")


def test_a_full_disk_is_work_that_failed_and_not_wrong_usage() -> None:
    assert (OutputError.exit_code, OutputFailure.exit_code) == (2, 1)
