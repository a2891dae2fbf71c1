"""Where two artifacts part, module by module, on networks small enough to say what must come out."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from exporters.comparison.compare import compare
from exporters.comparison.layers import LayerComparison
from exporters.end_to_end.export import export_end_to_end
from tests import goldens
from tests.unit.compare.conftest import SPEC, WriteTiny, scaled
from tests.unit.engines.tiny_network import Graph
from yolact_deploy import Detector
from yolact_deploy.cli import app
from yolact_deploy.errors import ArtifactError, EngineError, MissingDependencyError, SpecError
from yolact_deploy.reference.images import read_image
from yolact_deploy.spec import FpnSpec

pytestmark = pytest.mark.needs("polygraphy")

CONVOLUTIONS = 10  # of the tiny network


def layers_of(a: Path, b: Path, pictures: list[Path], **options: object) -> LayerComparison:
    report = compare(a, b, pictures, layers=True, device="cpu", **options)  # type: ignore[arg-type]
    assert report.layers is not None
    return report.layers


def test_no_module_of_a_file_parts_from_itself(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    found = layers_of(model, model, pictures, runtime="onnxruntime")
    assert [module.operator for module in found.modules] == ["Conv"] * CONVOLUTIONS + [""] * 4
    assert [module.node for module in found.modules[-4:]] == ["loc", "conf", "mask_coeff", "proto"]
    assert {(module.max_abs_error, module.relative_l2) for module in found.modules} == {(0.0, 0.0)}
    assert (found.first_parted, found.first_convolution) == (None, None)
    assert found.images == tuple(map(str, pictures))


def test_the_module_with_another_weight_is_the_first_to_part_with_its_ranges(
    write_tiny: WriteTiny, pictures: list[Path]
) -> None:
    paths = write_tiny("a.onnx"), write_tiny("b.onnx", edit=scaled("protonet.0.weight", 0.5))
    found = layers_of(*paths, pictures, runtime="onnxruntime")
    modules = {module.module: module for module in found.modules}
    parted = modules["protonet.0"]
    assert found.first_parted == found.first_convolution == found.most_grown.node == parted.node == "protonet.0/Conv"
    assert parted.relative_l2 == pytest.approx(0.5)
    assert parted.input_relative_l2 == 0.0
    assert parted.range_b == pytest.approx(np.array(parted.range_a) / 2)
    assert modules["protonet.2"].input_relative_l2 == parted.relative_l2
    wrong = {name for name, module in modules.items() if module.max_abs_error > 0}
    assert wrong == {"protonet.0", "protonet.2", "proto"}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(paths[0]).graph.initializer}
    assert parted.max_abs_weight == pytest.approx(float(np.abs(weights["protonet.0.weight"]).max()))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_modules_of_a_lowered_graph_are_those_of_the_float_one(
    precision: str, write_tiny: WriteTiny, pictures: list[Path]
) -> None:
    found = layers_of(write_tiny("a.onnx"), write_tiny("b.onnx", precision=precision), pictures, runtime="onnxruntime")
    convolutions = [module for module in found.modules if module.operator == "Conv"]
    assert len(convolutions) == CONVOLUTIONS
    assert all(0 < module.relative_l2 < 1 for module in convolutions)
    assert found.notes == ()


@pytest.mark.needs("openvino")
def test_one_file_in_two_runtimes_agrees_in_every_module(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    report = compare(model, model, pictures, layers=True, device="cpu", runtime="onnxruntime", runtime_b="openvino")
    assert report.a.backend.startswith("onnxruntime")
    assert report.b.backend.startswith("OpenVINO")
    assert report.layers is not None
    assert all(module.relative_l2 < 1e-5 for module in report.layers.modules)
    assert report.layers.first_parted is None


def test_the_table_the_page_and_the_json_tell_the_same(
    write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path
) -> None:
    model, other = write_tiny("a.onnx"), write_tiny("b.onnx", edit=scaled("protonet.0.weight", 0.5))
    page = tmp_path / "page.html"
    options = [str(model), str(other), "--images", str(pictures[0].parent), "--layers", "--runtime", "onnxruntime"]
    shown = CliRunner().invoke(app, ["compare", *options, "--html", str(page)], env={"COLUMNS": "150"})
    told = CliRunner().invoke(app, ["compare", *options, "--json"])
    assert (shown.exit_code, told.exit_code) == (0, 0), shown.output + told.output
    found = json.loads(told.stdout)["layers"]
    assert found["first_parted"] == found["most_grown"] == "protonet.0/Conv"
    assert "protonet.0/Conv is the first to part" in shown.stdout
    html = page.read_text()
    assert html.count("<circle") == len(found["modules"])
    assert html.count('<circle class="first"') == 1
    for module in found["modules"]:
        assert module["node"] in shown.stdout
        assert f"{module['node']}</code>" in html
        assert f"{module['relative_l2']:.2e}" in shown.stdout


def test_polygraphy_reads_what_is_saved(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    model, other = write_tiny("a.onnx"), write_tiny("b.onnx", precision="int8")
    saved = tmp_path / "inputs.json", tmp_path / "outputs.json"
    layers_of(model, other, pictures, runtime="onnxruntime", save_inputs=saved[0], save_outputs=saved[1])
    detector = Detector(model, device="cpu", runtime="onnxruntime")
    batch = detector.preprocess([read_image(pictures[0])])
    (feed,) = load_json(str(saved[0]))
    np.testing.assert_array_equal(feed["image"], batch)
    outputs = RunResults.load(str(saved[1]))
    assert list(outputs.keys()) == ["A"]  # the truth: it would compare B with it as well
    (of_a,) = outputs["A"]
    np.testing.assert_allclose(of_a["proto"], detector.run_network(batch).proto, rtol=1e-5, atol=1e-6)
    assert {"protonet.0/Conv", "loc"} <= set(of_a)


def test_a_value_that_is_no_number_is_where_they_part(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    paths = write_tiny("a.onnx"), write_tiny("b.onnx", edit=scaled("fpn.downsample.weight", np.nan))
    report = compare(*paths, pictures[:1], layers=True, device="cpu", runtime="onnxruntime")
    assert report.layers is not None
    assert report.layers.first_parted == report.layers.most_grown.node == "fpn.downsample/Conv"
    json.dumps(report.to_dict(), allow_nan=False)


def test_polygraphy_that_is_missing_is_told_with_its_install(
    write_tiny: WriteTiny, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    model = write_tiny("a.onnx")
    with pytest.raises(MissingDependencyError, match=r"comparing layers needs polygraphy(.|\n)*\[compare\]"):
        layers_of(model, model, pictures)


def test_two_architectures_are_told_by_what_differs(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    wider = dataclasses.replace(SPEC, fpn=FpnSpec(channels=16, num_downsample=1))
    with pytest.raises(SpecError, match=r"by layers: fpn\.channels is 8 in the first and 16 in the second"):
        layers_of(write_tiny("a.onnx"), write_tiny("b.onnx", described=wider), pictures)


def test_graphs_without_a_common_module_are_refused(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    def renamed(graph: Graph) -> None:
        for number, node in enumerate(graph.nodes):
            node.name = f"node_{number}"

    with pytest.raises(SpecError, match=r"have no module in common"):
        layers_of(write_tiny("a.onnx"), write_tiny("b.onnx", edit=renamed), pictures)


@pytest.mark.needs("torch")
@pytest.mark.slow
def test_a_checkpoint_has_no_layers_to_look_at(shapes_onnx: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a checkpoint, .* Export it first: yolact-deploy export"):
        compare(
            goldens.SHAPES_CHECKPOINT,
            shapes_onnx,
            [goldens.SHAPES / "val" / "val_public_0000.jpg"],
            spec_file=goldens.SHAPES_SPEC,
            layers=True,
        )


def test_an_end_to_end_file_has_no_layers_to_look_at(write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    whole = model.with_name("whole.onnx")
    export_end_to_end(model, whole, parity=False)
    with pytest.raises(ArtifactError, match="is an end-to-end ONNX"):
        layers_of(model, whole, pictures)


def test_what_fails_in_a_runner_is_said_in_our_words_alone(
    write_tiny: WriteTiny, pictures: list[Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny("a.onnx")
    monkeypatch.setattr("exporters.comparison.layers._Graph.feed", lambda *_: {"image": np.zeros((1, 1), np.uint8)})
    with pytest.raises(EngineError, match="could not be run with its modules as outputs"):
        layers_of(model, model, pictures)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("option", ["--save-inputs", "--save-outputs", "--html"])
def test_no_input_is_overwritten(option: str, write_tiny: WriteTiny, pictures: list[Path]) -> None:
    model = write_tiny("a.onnx")
    content = model.read_bytes()
    arguments = ["compare", str(model), str(model), "--images", str(pictures[0]), "--layers", option, str(model)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 2
    assert "is the input itself" in json.loads(result.stdout)["error"]["message"]
    assert model.read_bytes() == content


def test_two_files_to_write_have_two_names(write_tiny: WriteTiny, pictures: list[Path], tmp_path: Path) -> None:
    model, target = write_tiny("a.onnx"), str(tmp_path / "x.json")
    targets = ["--save-inputs", target, "--save-outputs", target]
    result = CliRunner().invoke(
        app, ["compare", str(model), str(model), "--images", str(pictures[0]), "--layers", *targets]
    )
    assert result.exit_code == 2
    assert "are one file" in result.stderr
