"""Networks that give no numbers: said once, wherever they are run, and never in silence."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from benchmarks import bench
from tests.unit.engines.tiny_network import TINY_SPEC, Graph, make_model
from tests.unit.runtime.plus_plan import PLUS_SPEC, mask_iou_onnx
from yolact_deploy import Detector, evaluate
from yolact_deploy.arrays import Image
from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY
from yolact_deploy.cli import app
from yolact_deploy.runtime.host import non_finite_note

_PICTURE: Image = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
_NOTE = "the network gives NaN or infinite values (first seen in "


def _divided(output: str) -> Callable[[Graph], None]:
    """An edit that divides an output by zero: infinity and NaN of weights that are all numbers."""

    def edit(graph: Graph) -> None:
        zero = graph.constant("nothing", np.zeros(1, np.float32))
        graph.insert_before(f"outputs.{output}/Identity", lambda x: graph.add("Div", [x, zero], "divided"))

    return edit


def _write(folder: Path, output: str | None) -> Path:
    path = folder / "model.onnx"
    onnx.save(make_model(TINY_SPEC, edit=None if output is None else _divided(output)), str(path))
    return path


@pytest.mark.parametrize("output", ["loc", "conf", "mask_coeff", "proto"])
def test_a_detector_says_once_that_its_network_gives_no_numbers(output: str, tmp_path: Path) -> None:
    said = []
    with Detector(_write(tmp_path, output), device="cpu") as detector:
        for batch in ([], [_PICTURE], [_PICTURE, _PICTURE]):
            detector(batch)
            said.append(detector.notes)
    before, (note,), after = said
    assert before == ()
    assert after == (note,)
    assert note.startswith(f"{_NOTE}{output}, ")


def test_nothing_is_said_of_a_network_that_gives_numbers(tmp_path: Path) -> None:
    with Detector(_write(tmp_path, None), device="cpu") as detector:
        detector(_PICTURE)
        assert detector.notes == ()


def test_numbers_whose_sum_is_none_are_numbers() -> None:
    most = np.finfo(np.float32).max
    assert non_finite_note({"loc": np.array([most, most], np.float32), "conf": np.zeros(0, np.float32)}) is None
    found = non_finite_note({"loc": np.array([np.inf, -np.inf, 1], np.float32)})
    assert found is not None
    assert "loc, 2 of 3" in found


def test_weights_that_are_no_numbers_are_told_as_soon_as_a_file_is_opened(tmp_path: Path) -> None:
    def edit(graph: Graph) -> None:
        graph.constant("protonet.0.bias", np.full(8, np.nan, np.float32))

    path = tmp_path / "model.onnx"
    onnx.save(make_model(TINY_SPEC, edit=edit), str(path))
    with Detector(path, device="cpu") as detector:
        (note,) = detector.notes
    assert note.startswith(
        f"{path} holds NaN or infinite values in 1 of its weights, in protonet.0.bias (8 of 8 values)"
    )


def test_a_network_that_judges_masks_by_no_numbers_is_told(tmp_path: Path) -> None:
    def write(weight: float) -> Path:
        judge = onnx.load_model_from_string(mask_iou_onnx())
        bias = next(tensor for tensor in judge.graph.initializer if tensor.name == "b1")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(bias.dims, weight, np.float32), bias.name))
        metadata = {MASK_IOU_METADATA_KEY: base64.b64encode(judge.SerializeToString()).decode()}
        path = tmp_path / "plus.onnx"
        onnx.save(make_model(PLUS_SPEC, metadata=metadata), str(path))
        return path

    with Detector(write(np.inf), device="cpu") as detector:
        detector(_PICTURE)
        weights, output = detector.notes
    assert "NaN or infinite values in 1 of its weights, in mask_iou/b1 (2 of 2 values)" in weights
    assert output.startswith(f"{_NOTE}the scores of masks, ")
    with Detector(write(0.5), device="cpu") as detector:
        detector(_PICTURE)
        assert not detector.notes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two pictures, of which one is annotated."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(folder / name), _PICTURE)
    return folder


@pytest.fixture
def annotation_file(photos: Path) -> Path:
    box = [4, 4, 20, 20]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "disc"}, {"id": 9, "name": "bar"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": box, "area": 400, "iscrowd": 0,
             "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}
        ],
    }  # fmt: skip
    path = photos.parent / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_detect_and_eval_say_it_on_stderr_and_in_json(photos: Path, annotation_file: Path, tmp_path: Path) -> None:
    model = str(_write(tmp_path, "conf"))
    commands = (
        ["detect", model, str(photos), "--no-overlays", "--device", "cpu", "--json"],
        ["eval", model, "--images", str(photos), "--annotations", str(annotation_file), "--device", "cpu", "--json"],
    )
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert result.stderr.count(_NOTE) == 1
        notes = json.loads(result.stdout)["notes"]
        assert [note for note in notes if note.startswith(_NOTE)]
    assert [note for note in evaluate(model, photos, annotation_file, device="cpu")["notes"] if note.startswith(_NOTE)]


def test_bench_notes_it(tmp_path: Path) -> None:
    report = bench(_write(tmp_path, "conf"), iterations=2, warmup=1, device="cpu")
    assert sum(_NOTE in note for note in report["notes"]) == 1


@pytest.mark.needs("torch")
def test_an_end_to_end_file_says_what_of_it_comes_out(tmp_path: Path) -> None:
    from exporters.end_to_end.export import export_end_to_end

    export_end_to_end(_write(tmp_path, "loc"), tmp_path / "whole.onnx", parity=False)
    with Detector(tmp_path / "whole.onnx", device="cpu") as detector:
        for _ in range(2):
            assert len(detector(_PICTURE))
        (note,) = detector.notes
    assert note.startswith(f"{_NOTE}boxes_xyxy, ")
