"""What `detect` is told to look at: patterns, folders of folders, annotation files; and what it is told to look for."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from tests.goldens import SHAPES
from yolact_deploy import detect_files, evaluate
from yolact_deploy.errors import AnnotationError, ImageError, InputWarning, OptionError, OutputError
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.reference.detections import find_classes
from yolact_deploy.reference.images import list_images
from yolact_deploy.runtime.detector import Detector

VAL = SHAPES / "val"
PHOTO = VAL / "val_public_0000.jpg"


@pytest.fixture(autouse=True)
def _in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def detector(shapes_onnx: Path) -> Detector:
    return Detector(shapes_onnx, device="cpu", threads=1)


@pytest.fixture
def tree() -> None:
    for name in ("a.jpg", "b.png", "in/c.jpg", "in/deep/d.jpg", "in/deep/clip.mp4", "other/e.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("in/link").symlink_to("..", target_is_directory=True)


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("given", "options", "found"),
    [
        (["*.jpg"], {}, "a.jpg"),
        (["?.*"], {}, "a.jpg b.png"),
        (["**/*.jpg"], {}, "a.jpg in/c.jpg in/deep/d.jpg other/e.jpg"),
        (["in/**/d.jpg", "a.jpg"], {}, "in/deep/d.jpg a.jpg"),
        (["[a-b].*"], {}, "a.jpg b.png"),
        (["."], {"recursive": True}, "a.jpg b.png in/c.jpg in/deep/d.jpg other/e.jpg"),
        (["."], {"recursive": True, "videos": True, "outside": "other"}, "a.jpg b.png in/c.jpg in/deep/clip.mp4 in/deep/d.jpg"),
        (["o*"], {"recursive": True}, "other/e.jpg"),
        (["in", "other"], {}, "in/c.jpg other/e.jpg"),
    ],
)  # fmt: skip
def test_patterns_and_folders_of_folders_are_listed_in_order(
    given: list[str], options: dict[str, Any], found: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # of the video that is no image
        assert " ".join(map(str, list_images(given, **options))) == found


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file() -> None:
    Path("[a].jpg").touch()
    Path("a.jpg").touch()
    assert list_images(["[a].jpg"]) == [Path("[a].jpg")]
    Path("[a].jpg").unlink()
    assert list_images(["[a].jpg"]) == [Path("a.jpg")]


@pytest.mark.usefixtures("tree")
def test_a_pattern_that_matches_no_image_is_named() -> None:
    with pytest.raises(ImageError, match=r"the pattern \*\.gif holds no images\."):
        list_images(["*.gif"])
    Path("note.txt").touch()
    with pytest.raises(ImageError, match=r"the pattern n\*\.txt holds no images, only 1 other file"):
        list_images(["n*.txt"])
    with pytest.warns(
        InputWarning, match=r"of the pattern \*, 1 file without an image left out: note.txt; and 2 folders"
    ):
        assert len(list_images(["*"])) == 2


def test_overlays_are_no_input_of_the_next_run(detector: Detector) -> None:
    Path("in").mkdir()
    shutil.copy(PHOTO, "in/a.jpg")
    for _ in range(2):
        report = detect_files(detector, ".", recursive=True, overlays="detections", overwrite=True)
        assert [summary.file for summary in report.files] == ["in/a.jpg"]


def test_a_single_path_is_no_list_of_letters(detector: Detector) -> None:
    assert len(detect_files(detector, str(PHOTO)).files) == len(detect_files(detector, PHOTO).files) == 1


def test_only_the_classes_that_are_asked_for_are_drawn_and_listed(detector: Detector) -> None:
    everything = detector(PHOTO, score_threshold=0.15)
    names = sorted(set(everything.class_names))
    assert len(names) > 1
    listed: list[dict[str, Any]] = []
    report = detect_files(detector, PHOTO, classes=names[0], coco="a.json", overlays="drawn", on_listed=listed.append)
    assert set(report.files[0].counts) == {names[0]}
    assert {entry["class_name"] for entry in listed[0]["detections"]} == {names[0]}
    wanted = detector.spec.category_ids[detector.spec.class_names.index(names[0])]
    assert {entry["category_id"] for entry in json.loads(Path("a.json").read_text())} == {wanted}
    detect_files(detector, PHOTO, classes=[wanted], coco="b.json", overlays="again")
    assert Path("b.json").read_bytes() == Path("a.json").read_bytes()
    assert Path("drawn", PHOTO.name).read_bytes() == Path("again", PHOTO.name).read_bytes()
    only = everything[[name == names[0] for name in everything.class_names]]
    only.save("expected.jpg", PHOTO)
    assert Path("drawn", PHOTO.name).read_bytes() == Path("expected.jpg").read_bytes()


def test_classes_are_chosen_before_the_best_are(detector: Detector) -> None:
    everything = detector(PHOTO, score_threshold=0.15)
    rare = everything.class_names[-1]
    assert rare != everything.class_names[0]
    assert set(detect_files(detector, PHOTO, classes=rare, top_k=1).files[0].counts) == {rare}


NAMES, IDS = ("person", "traffic light", "salt, pepper", "7", "Person"), (1, 10, 7, 90, 5)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("person", (0,)),
        ("traffic light,person", (0, 1)),
        (" person , 10 ", (0, 1)),
        ("salt, pepper", (2,)),
        (["salt, pepper", "person"], (0, 2)),
        ("7", (3,)),
        ([7], (2,)),
        ([90, "90", "7"], (3,)),
        ("Person", (4,)),
    ],
)
def test_classes_are_names_or_category_ids(wanted: Any, found: tuple[int, ...]) -> None:
    assert find_classes(wanted, NAMES, IDS) == found


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("persn", r"no class 'persn'\. Did you mean Person\?"),
        ("trafic light", "Did you mean traffic light"),
        ("zebra", r"It has person \(1\), traffic light \(10\)"),
        ("2", "no class 2"),
        ([0], "no class 0"),
        ([-1], "no class -1"),
        ([True], "no class True"),
        ([1.0], "no class 1.0"),
        ([None], "no class None"),
        ("", "no class ''"),
        (",", "no class ''"),
        ([], "names or category ids"),
        (7, "names or category ids"),
        ("9" * 5000, "no class '999"),
        ("\u0663", "no class"),
    ],
)
def test_classes_that_the_model_does_not_know_are_refused(wanted: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        find_classes(wanted, NAMES, IDS)
    assert len(str(caught.value)) < 300


@pytest.fixture
def annotated() -> Path:
    """Annotations of five images, listed backwards, in a folder that holds more."""
    content = json.loads((VAL / "instances.json").read_text())
    images = content["images"][:5][::-1]
    ids = {image["id"] for image in images}
    listed = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    Path("five.json").write_text(json.dumps({**content, "images": images, "annotations": listed}))
    return Path("five.json")


def test_results_with_the_ids_of_an_annotation_file_are_what_eval_evaluates(
    detector: Detector, annotated: Path
) -> None:
    detect_files(detector, VAL, image_ids=annotated, coco="a.json", score_threshold=0, top_k=100)
    coco = COCO(str(annotated))
    results = json.loads(Path("a.json").read_text())
    assert {entry["image_id"] for entry in results} == set(coco.getImgIds())
    expected = evaluate(detector, VAL, annotated)
    for kind in ("bbox", "segm"):
        assert coco_ap(coco, results, kind, sorted(coco.getImgIds())) == expected[kind]
        assert expected[kind]["AP50"] > 0.3


def test_a_list_of_images_needs_no_annotations(detector: Detector) -> None:
    images = [{"id": 70, "file_name": PHOTO.name, "width": 1, "height": 1}]
    Path("test.json").write_text(json.dumps({"images": images}))
    ids: list[int] = []
    detect_files(detector, [VAL], image_ids="test.json", on_result=lambda result: ids.append(result.image_id))
    assert ids == [70]


def test_image_ids_that_do_not_go_with_the_sources_are_refused(detector: Detector, annotated: Path) -> None:
    with pytest.raises(AnnotationError, match="lacks 5 of the 5 images"):
        detect_files(detector, ".", image_ids=annotated)
    for sources in ([VAL, VAL], PHOTO, [PHOTO]):
        with pytest.raises(OptionError, match="folder"):
            detect_files(detector, sources, image_ids=annotated)
    for content in ("[]", "{}", '{"images": [{"id": 1}]}', '{"images": []}', "no JSON"):
        Path("bad.json").write_text(content)
        with pytest.raises(AnnotationError, match=r"bad\.json"):
            detect_files(detector, VAL, image_ids="bad.json")
    evil = {"id": 1, "file_name": "/etc/passwd", "width": 1, "height": 1}
    Path("bad.json").write_text(json.dumps({"images": [evil]}))
    with pytest.raises(AnnotationError, match="leaves the folder"):
        detect_files(detector, VAL, image_ids="bad.json")


def test_overlays_that_are_there_are_replaced_only_when_asked_for(detector: Detector) -> None:
    Path("drawn").mkdir()
    Path("drawn/mine.txt").write_text("mine")
    detect_files(detector, PHOTO, overlays="drawn")
    Path("drawn", PHOTO.name).write_text("painted over")
    with pytest.raises(OutputError, match=r"is there already\. Give another folder .* or replace it \(--overwrite\)"):
        detect_files(detector, PHOTO, overlays="drawn")
    assert Path("drawn", PHOTO.name).read_text() == "painted over"
    assert sorted(path.name for path in Path("drawn").iterdir()) == sorted(["mine.txt", PHOTO.name])
    detect_files(detector, PHOTO, overlays="drawn", overwrite=True)
    assert Path("drawn", PHOTO.name).read_bytes()[:2] == b"\xff\xd8"


def test_a_pipe_is_no_video_to_wait_for(detector: Detector) -> None:
    os.mkfifo("clip.mp4")
    report = detect_files(detector, "clip.mp4")
    assert "it is no file, but a pipe" in report.failures["clip.mp4"]
