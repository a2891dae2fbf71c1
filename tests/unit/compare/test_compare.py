"""`compare` on networks small enough to say what must come out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from exporters.comparison.compare import compare
from tests.unit.compare.conftest import SPEC, WriteTiny, added, scaled
from tests.unit.engines.tiny_network import Graph
from yolact_deploy import Detector
from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.plan_file import BatchRange, Sidecar, sidecar_path, write_sidecar
from yolact_deploy.cli import app
from yolact_deploy.errors import AnnotationError, ArtifactError, EngineError, ImageError, PlanMismatchError, SpecError
from yolact_deploy.reference.images import read_image
from yolact_deploy.spec import ModelSpec


def test_a_file_equals_itself(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    report = compare(model, model, pictures)
    assert [output.max_abs_error for output in report.outputs] == [0.0] * 4
    assert [output.relative_l2 for output in report.outputs] == [0.0] * 4
    assert all(output.cosine == pytest.approx(1) for output in report.outputs)
    assert report.agreement.matched == report.agreement.detections_a > 0
    assert report.agreement.quality == 1.0
    assert "A and B are the same file." in report.notes


def test_errors_of_tensors_are_those_of_the_definitions(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    paths = write_tiny("a.onnx"), write_tiny("b.onnx", edit=added("loc", 0.25))
    report = compare(*paths, pictures)
    a, b = (
        np.concatenate([detector.run_network(detector.preprocess([read_image(p)])).loc.ravel() for p in pictures])
        for detector in map(Detector, paths)
    )
    loc, *others = report.outputs
    assert (loc.name, loc.shape) == ("loc", SPEC.output_shapes()["loc"])
    assert loc.max_abs_error == pytest.approx(0.25, rel=1e-5)
    assert loc.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-5)
    assert loc.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)
    assert [output.max_abs_error for output in others] == [0.0] * 3


def test_only_masks_differ_when_only_the_prototypes_do(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    report = compare(write_tiny("a.onnx"), write_tiny("b.onnx", edit=scaled("protonet.2.weight", -1.0)), pictures)
    assert [output.name for output in report.outputs if output.max_abs_error > 0] == ["proto"]
    found = report.agreement
    assert (found.only_a, found.only_b, found.max_score_difference) == (0, 0, 0.0)
    assert found.quality == found.mean_mask_iou
    assert found.quality < 0.9


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["loc", "conf", "mask_coeff", "proto"])
def test_a_tensor_with_values_that_are_no_numbers_is_not_comparable(
    name: str, value: float, write_tiny: WriteTiny, pictures: list[Path]
) -> None:
    report = compare(write_tiny("a.onnx"), write_tiny("b.onnx", edit=added(name, value)), pictures[:1])
    broken = next(output for output in report.outputs if output.name == name)
    assert (broken.non_finite_a, broken.non_finite_b) == (0, int(np.prod(broken.shape)))
    assert np.isnan([broken.max_abs_error, broken.relative_l2, broken.cosine]).all()
    assert not report.passed
    assert report.verdict == f"not comparable: B gave NaN or infinite values in {name}."
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [output["comparable"] for output in found["outputs"]] == [output is not broken for output in report.outputs]
    assert (found["passed"], found["verdict"]) == (False, report.verdict)


@pytest.mark.needs("torch")
def test_networks_that_give_nothing_but_nan_are_not_the_same(
    write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path
) -> None:
    model = write_tiny("a.onnx", edit=scaled("backbone.stem.weight", np.nan))
    page = tmp_path / "page.html"
    options = ("--images", str(pictures[0].parent), "--html", str(page), "--device", "cpu")
    shown = CliRunner().invoke(app, ["compare", str(model), str(model), *options], env={"COLUMNS": "150"})
    told = CliRunner().invoke(app, ["compare", str(model), str(model), *options, "--json"])
    verdict = "not comparable: A and B gave NaN or infinite values in loc, conf, mask_coeff, proto."
    for result in (shown, told):
        assert result.exit_code == 1
        assert f"error: {verdict}" in result.stderr.replace("\n", " ")
    assert "not comparable" in shown.stdout
    assert verdict in page.read_text()
    assert page.read_text().count(">not comparable<") == 4
    report = json.loads(told.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["outputs"][0]["cosine"] is None
    assert any(note.startswith(f"A: {model} holds NaN or infinite values in") for note in report["notes"])


def test_the_worst_images_are_kept_in_order(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    paths = write_tiny("a.onnx"), write_tiny("b.onnx", edit=scaled("head.conf.0.weight", 0.8))
    seen: list[tuple[int, int]] = []
    report = compare(*paths, pictures, examples=5, progress=lambda done, total: seen.append((done, total)))
    qualities = [example.comparison.agreement.quality for example in report.examples]
    assert len(qualities) == len(pictures)
    assert qualities == sorted(qualities)
    assert [example.comparison for example in report.examples] == report.worst_first
    assert seen == [(0, 2), (1, 2), (2, 2)]
    (kept,) = compare(*paths, pictures, examples=1).examples
    assert kept.comparison == report.examples[0].comparison
    assert compare(*paths, pictures, examples=0).examples == ()


def test_detections_below_the_score_threshold_do_not_count(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    assert compare(model, model, pictures, score_threshold=0.999).agreement.detections_a == 0


def test_precision_is_read_from_the_graph(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    report = compare(write_tiny("a.onnx", precision="fp16"), write_tiny("b.onnx", precision="int8"), pictures[:1])
    assert (report.a.precision, report.b.precision) == ("fp16", "int8")
    assert report.b.sha256 == hashlib.sha256(Path(report.b.path).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dataclasses.replace(SPEC, input_size=64), "the input size is 32 in the first and 64 in the second"),
        (
            dataclasses.replace(SPEC, class_names=("disc", "bar", "star"), category_ids=(3, 9, 10)),
            "the number of classes is 2 in the first and 3 in the second",
        ),
        (
            dataclasses.replace(SPEC, class_names=("disc", "rod")),
            "the name of class 1 is 'bar' in the first and 'rod' in the second",
        ),
        (
            dataclasses.replace(SPEC, category_ids=(3, 4)),
            r"the category id of class 1 \(bar\) is 9 in the first and 4 in the second",
        ),
        (
            dataclasses.replace(SPEC, protonet=dataclasses.replace(SPEC.protonet, layers=((8, 3), (6, 1)))),
            r"the shape of the output mask_coeff is \[80, 4\] in the first and \[80, 6\] in the second",
        ),
    ],
    ids=["input size", "class count", "class name", "category id", "prototypes"],
)
def test_the_first_contradiction_is_named(
    other: ModelSpec, message: str, write_tiny: WriteTiny, pictures: list[Path]
) -> None:
    with pytest.raises(SpecError, match=message):
        compare(write_tiny("a.onnx"), write_tiny("b.onnx", spec=other), pictures)


def test_other_rules_are_noted(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    other = dataclasses.replace(SPEC, postprocess=dataclasses.replace(SPEC.postprocess, iou_threshold=0.3))
    report = compare(write_tiny("a.onnx"), write_tiny("b.onnx", spec=other), pictures[:1])
    assert report.notes == ("postprocess.iou_threshold differs: A has 0.5, B has 0.3; each is run by its own.",)


def test_logits_are_compared_as_scores(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    spec = dataclasses.replace(SPEC, conf_activation="logits")

    def skip_softmax(graph: Graph) -> None:
        graph.node("outputs.conf/Identity").input[0] = "outputs/Concat_"

    logits = write_tiny("b.onnx", spec=spec, edit=skip_softmax)
    conf = compare(write_tiny("a.onnx"), logits, pictures).outputs[1]
    assert conf.max_abs_error < 1e-6


def test_images_that_cannot_be_read_are_skipped_and_named(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    bad = pictures[0].with_name("bad.jpg")
    bad.write_bytes(b"")
    report = compare(model, model, [pictures[0].parent])
    assert [Path(image.image).name for image in report.images] == sorted(path.name for path in pictures)
    ((skipped, reason),) = report.skipped
    assert Path(skipped) == bad
    assert "empty" in reason
    with pytest.raises(ImageError, match=r"none of the 1 images can be read.*bad\.jpg"):
        compare(model, model, [bad])


def test_a_plan_names_what_to_compare_instead(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    plan = tmp_path / "model.engine"
    plan.write_bytes(b"plan")
    sidecar = Sidecar(
        spec=SPEC,
        plan_sha256=hashlib.sha256(b"plan").hexdigest(),
        plan_bytes=4,
        runtime="tensorrt-rtx",
        runtime_version="1.7",
        targets=("sm86",),
        precision="int8",
        batch=BatchRange(1, 1, 1),
        onnx_sha256="ab" * 32,
        onnx_name="model_int8.onnx",
        io_tensors=(IoTensor("image", "input", "float32", (-1, 3, 32, 32)),),
        created="2025-01-31T12:00:00+00:00",
        yolact_deploy_version="0.1.0",
    )
    with pytest.raises(PlanMismatchError):
        compare(write_tiny("a.onnx"), plan, pictures)
    write_sidecar(sidecar_path(plan), sidecar)
    with pytest.raises(EngineError, match=r"(?s)model\.engine.*model_int8\.onnx.*that ONNX is as good") as refused:
        compare(write_tiny("a.onnx"), plan, pictures)
    assert refused.value.exit_code == 2  # as detect's, of the same plan


def test_what_is_no_artifact(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    model = write_tiny("a.onnx")
    with pytest.raises(ArtifactError, match=r"gone\.onnx does not exist"):
        compare(model, tmp_path / "gone.onnx", pictures)
    with pytest.raises(ArtifactError, match="is a folder"):
        compare(tmp_path, model, pictures)
    with pytest.raises(ArtifactError, match="is no artifact to compare"):
        compare(model, pictures[0], pictures)


def test_annotations_of_other_images(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    model = write_tiny("a.onnx")
    annotations = tmp_path / "instances.json"
    described = {
        "images": [{"id": 1, "file_name": "other.png", "width": 32, "height": 32}],
        "annotations": [],
        "categories": [{"id": 3, "name": "disc"}],
    }
    annotations.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(AnnotationError, match=r"names none of the 2 images; it begins with other\.png"):
        compare(model, model, pictures, annotations=annotations)


def test_an_annotated_file_name_may_have_folders(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    model = write_tiny("a.onnx")
    annotations = tmp_path / "instances.json"
    box = {"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 1, 60, 60], "area": 3600, "iscrowd": 0}
    box["segmentation"] = [[1, 1, 61, 1, 61, 61, 1, 61]]
    described = {
        "images": [{"id": 5, "file_name": f"pictures/{pictures[0].name}", "width": 160, "height": 120}],
        "annotations": [box],
        "categories": [{"id": 3, "name": "disc"}],
    }
    annotations.write_text(json.dumps(described), encoding="utf-8")
    report = compare(model, model, pictures, annotations=annotations)
    assert report.ap is not None
    assert report.ap.images == 1
    assert report.ap.a == report.ap.b
    assert report.ap.difference["bbox"]["AP"] == 0.0
    assert report.ap.difference["bbox"]["AP_large"] is None


def test_two_onnx_files_are_compared_without_torch(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    code = (
        "import sys\nfrom exporters.comparison.compare import compare\n"
        "compare(sys.argv[1], sys.argv[1], sys.argv[2:])\nassert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, str(model), *map(str, pictures)]
    child = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
