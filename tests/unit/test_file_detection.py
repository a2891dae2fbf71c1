"""Detections of many files: what is made, kept, written and left out."""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest

from tests.goldens import SHAPES
from yolact_deploy.errors import ImageError
from yolact_deploy.file_detection import FileResult, detect_files
from yolact_deploy.files import JsonArray
from yolact_deploy.reference import run_lengths
from yolact_deploy.reference.images import read_image
from yolact_deploy.reference.masks import MaskRegion, PrototypeMasks
from yolact_deploy.runtime.detector import Detector

PHOTOS = [SHAPES / "val" / f"val_public_000{i}.jpg" for i in range(3)]


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


@pytest.fixture
def assembled(monkeypatch: pytest.MonkeyPatch) -> list[MaskRegion]:
    """Every mask that was made out of prototypes."""
    made: list[MaskRegion] = []
    regions = PrototypeMasks.regions

    def watched(source: PrototypeMasks) -> Iterator[MaskRegion]:
        for region in regions(source):
            made.append(region)
            yield region

    monkeypatch.setattr(PrototypeMasks, "regions", watched)
    return made


def _write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(frames):
        writer.write(cv2.resize(read_image(PHOTOS[0]), (96, 64)))
    writer.release()


def test_a_mask_that_is_drawn_and_listed_is_assembled_once(
    detector: Detector, assembled: list[MaskRegion], tmp_path: Path
) -> None:
    report = detect_files(detector, PHOTOS[:2], overlays=tmp_path / "drawn", coco=tmp_path / "found.json", top_k=100)
    listed = len(json.loads((tmp_path / "found.json").read_text()))
    assert listed == sum(sum(summary.counts.values()) for summary in report.files) > 5
    assert len(assembled) == listed


def test_what_is_drawn_and_listed_is_the_same_as_drawn_or_listed_alone(detector: Detector, tmp_path: Path) -> None:
    both, drawn = tmp_path / "both", tmp_path / "drawn"
    detect_files(detector, PHOTOS[:1], overlays=both, coco=tmp_path / "both.json")
    detect_files(detector, PHOTOS[:1], overlays=drawn)
    detect_files(detector, PHOTOS[:1], coco=tmp_path / "listed.json")
    assert (both / PHOTOS[0].name).read_bytes() == (drawn / PHOTOS[0].name).read_bytes()
    assert (tmp_path / "both.json").read_text() == (tmp_path / "listed.json").read_text()


def test_masks_and_run_lengths_that_nobody_asks_for_are_not_made(
    detector: Detector, assembled: list[MaskRegion], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("run lengths were made")

    monkeypatch.setattr(run_lengths, "encode_runs", refuse)
    assert detect_files(detector, PHOTOS[:1]).files[0].counts
    assert assembled == []
    detect_files(detector, PHOTOS[:1], overlays=tmp_path)
    assert assembled


def test_nothing_is_kept_of_a_frame_when_its_turn_is_over(detector: Detector, tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.avi", frames=12)
    seen: list[weakref.ref[FileResult]] = []
    alive: list[int] = []

    def look(result: FileResult) -> None:
        seen.append(weakref.ref(result))
        alive.append(sum(each() is not None for each in seen))

    report = detect_files(detector, [tmp_path / "clip.avi"], coco=tmp_path / "found.json", on_result=look)
    assert report.files[0].frames == len(seen) == 12
    assert max(alive) <= 2


def test_results_come_in_the_order_of_the_files_and_bad_ones_between_them(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    _write_video(tmp_path / "clip.avi", frames=2)
    (tmp_path / "empty.avi").write_bytes(b"")
    told: list[Any] = []
    report = detect_files(
        detector,
        [
            tmp_path / "bad.jpg",
            PHOTOS[0],
            tmp_path / "empty.avi",
            tmp_path / "clip.avi",
            tmp_path / "bad.jpg",
            PHOTOS[1],
        ],
        on_result=lambda result: told.append((result.number, result.image_id, result.frame)),
        on_failure=lambda number, _: told.append(number),
    )
    assert told == [0, (1, 2, None), 2, (3, 4, 1), (3, 5, 2), 4, (5, 7, None)]
    assert [Path(summary.file).name for summary in report.files] == [PHOTOS[0].name, "clip.avi", PHOTOS[1].name]
    assert [Path(file).name for file in report.failures] == ["bad.jpg", "empty.avi"]


def test_a_video_that_breaks_off_leaves_nothing_of_its_frames(detector: Detector, tmp_path: Path) -> None:
    _write_video(tmp_path / "clip.avi", frames=20)
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(whole[: len(whole) // 2])
    handed_on: list[FileResult] = []
    report = detect_files(
        detector,
        [PHOTOS[0], tmp_path / "clip.avi", PHOTOS[1]],
        overlays=tmp_path / "drawn",
        coco=tmp_path / "found.json",
        on_result=handed_on.append,
    )
    assert any(result.number == 1 for result in handed_on)
    assert list(report.failures) == [str(tmp_path / "clip.avi")]
    assert {entry["image_id"] for entry in json.loads((tmp_path / "found.json").read_text())} == {1, 3}
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [PHOTOS[0].name, PHOTOS[1].name]


def test_a_file_and_its_detector_are_one_to_the_caller(shapes_onnx: Path, detector: Detector) -> None:
    by_path = detect_files(shapes_onnx, PHOTOS[:1], device="cpu", threads=1)
    assert by_path.files == detect_files(detector, PHOTOS[:1]).files
    assert by_path.fallback is None
    assert len(detector(PHOTOS[0]))  # a Detector that was given is left open


def test_an_input_that_is_not_there_is_refused_before_anything_is_done(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg does not exist"):
        detect_files(detector, [PHOTOS[0], tmp_path / "none.jpg"], overlays=tmp_path / "drawn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [0, 2])
def test_an_array_written_entry_by_entry_is_what_json_writes_at_once(depth: int) -> None:
    entries: list[Any] = [{"a": [1, 2]}, "text\nof two lines", {}]
    for count in range(4):
        stream = io.StringIO()
        array = JsonArray(stream.write, depth=depth)
        for entry in entries[:count]:
            array.add(entry)
        array.close()
        whole: Any = entries[:count]
        for _ in range(depth):
            whole = {"x": whole}
        text = json.dumps(whole, indent=2)
        assert stream.getvalue() in text
        assert json.loads(stream.getvalue()) == entries[:count]


def test_the_shapes_of_windows_do_not_matter_to_what_is_kept(detector: Detector) -> None:
    found = detector(PHOTOS[0])
    kept = found.assembled()
    np.testing.assert_array_equal(kept.masks, found.masks)
    assert kept.rle() == found.rle()
    assert kept.assembled() is kept
