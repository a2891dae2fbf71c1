from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from exporters.checkpoints.checkpoint import LoadedCheckpoint
from exporters.network.yolact import Yolact
from exporters.onnx_export import export_onnx
from yolact_deploy import __version__
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import ExportError, OutputError
from yolact_deploy.spec import BackboneSpec, FpnSpec, HeadSpec, ModelSpec, PriorsSpec, ProtonetSpec

SMALL_SPEC = ModelSpec(
    name="small",
    input_size=65,  # odd, so that levels are not whole multiples of each other
    backbone=BackboneSpec("darknet", (1, 1, 1), (1, 2)),
    class_names=("a", "b"),
    category_ids=(1, 2),
    priors=PriorsSpec(((8,),) * 3, ((1.0, 0.5),) * 3),
    fpn=FpnSpec(channels=8, num_downsample=1),
    protonet=ProtonetSpec(((8, 3), (None, -2), (4, 1))),
    head=HeadSpec(extra_layers=((8, 3),)),
)


@pytest.fixture(scope="module")
def small_model() -> Yolact:
    torch.manual_seed(0)
    return Yolact(SMALL_SPEC).eval()


@pytest.fixture(scope="module")
def model(shapes_onnx: Path) -> onnx.ModelProto:
    return onnx.load(str(shapes_onnx))


def _run(path: Path, image: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {"image": image})
    return outputs


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_inputs_and_outputs_have_their_names_and_only_the_batch_is_dynamic(
    model: onnx.ModelProto, shapes: LoadedCheckpoint
) -> None:
    assert [(value.name, _dims(value)) for value in model.graph.input] == [("image", ["batch", 3, 256, 256])]
    assert [(value.name, _dims(value)) for value in model.graph.output] == [
        (name, ["batch", *shape]) for name, shape in shapes.spec.output_shapes().items()
    ]
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT}


def test_the_file_says_what_it_is(model: onnx.ModelProto, shapes: LoadedCheckpoint, shapes_onnx: Path) -> None:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert ModelSpec.from_json(metadata.pop("yolact_deploy.spec")) == shapes.spec
    assert metadata == {
        "yolact_deploy.precision": "fp32",
        "yolact_deploy.version": __version__,
        "yolact_deploy.max_batch": "8",
        "yolact_deploy.checkpoint_sha256": shapes.sha256,
        "yolact_deploy.weights_sha256": open_onnx(shapes_onnx).weights.sha256,
    }
    assert (model.producer_name, model.producer_version) == ("yolact-deploy", __version__)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 19)]


def test_no_path_of_this_machine_is_in_the_file(shapes_onnx: Path) -> None:
    content = shapes_onnx.read_bytes()
    checkout, home = Path(__file__).parents[3], Path.home()
    personal = [str(home)] if home != Path(home.anchor) else []  # the home of some containers is "/"
    for leak in (str(checkout), *personal, sys.prefix, "site-packages", '.py", line', "stack_trace"):
        assert os.fsencode(leak) not in content, leak


def test_nodes_and_their_tensors_are_named_after_modules(model: onnx.ModelProto, shapes_model: Yolact) -> None:
    modules = {name for name, _ in shapes_model.named_modules() if name} | {"outputs"}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} <= modules
    for expected in (
        "backbone.conv1/Conv",
        "backbone.layers.2.0.conv3/Conv",
        "backbone.layers.2.0.downsample.0/Conv",
        "fpn.lat_layers.0/Conv",
        "fpn/Resize_1",
        "proto_net.6/Resize",
        "prediction_layers.0.conf_layer/Conv_4",
    ):
        assert expected in names
    outputs = {value.name for value in model.graph.output}
    assert all(node.output[0] == node.name or node.output[0] in outputs for node in model.graph.node)


def test_the_shared_head_is_stored_once_and_used_at_every_level(model: onnx.ModelProto, shapes_model: Yolact) -> None:
    head = {name for name in shapes_model.state_dict() if name.startswith("prediction_layers.0.")}
    stored = Counter(tensor.name for tensor in model.graph.initializer if tensor.name.startswith("prediction_layers"))
    used = Counter(name for node in model.graph.node for name in node.input)
    assert {name for name in stored if not name.endswith(":constant")} == head
    assert all(used[name] == 5 for name in head)


def test_batch_norms_are_folded_and_nothing_is_stored_that_is_not_used(
    model: onnx.ModelProto, shapes_onnx: Path, shapes_model: Yolact
) -> None:
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    parameters = [p for name, p in shapes_model.named_parameters() if not name.startswith("semantic_seg_conv")]
    assert shapes_onnx.stat().st_size < 1.01 * 4 * sum(p.numel() for p in parameters)


def test_every_tensor_of_the_graph_has_a_known_shape(model: onnx.ModelProto) -> None:
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    assert {name for node in model.graph.node for name in node.output} <= known


@pytest.mark.slow
def test_any_batch_up_to_the_limit_gives_the_results_of_its_images(shapes_onnx: Path, shapes_model: Yolact) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, 256, 256)).astype(np.float32)
    with torch.inference_mode():
        expected = shapes_model(torch.from_numpy(images))
    for output, reference in zip(_run(shapes_onnx, images), expected, strict=True):
        np.testing.assert_allclose(output, reference.numpy(), rtol=0, atol=1e-4)
    for output, together in zip(_run(shapes_onnx, images[:1]), _run(shapes_onnx, images), strict=True):
        np.testing.assert_allclose(output[0], together[0], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 20])
def test_other_opsets_with_odd_level_sizes_and_logits(small_model: Yolact, tmp_path: Path, opset: int) -> None:
    spec = dataclasses.replace(SMALL_SPEC, conf_activation="logits")
    logits_model = Yolact(spec).eval()
    logits_model.load_state_dict(small_model.state_dict())
    target = tmp_path / "small.onnx"
    export_onnx(logits_model, spec, target, opset=opset)
    proto = onnx.load(str(target))
    assert proto.opset_import[0].version == opset
    assert "Softmax" not in {node.op_type for node in proto.graph.node}
    images = np.random.default_rng(0).normal(size=(2, 3, 65, 65)).astype(np.float32)
    with torch.inference_mode():
        expected = logits_model(torch.from_numpy(images))
    for output, reference in zip(_run(target, images), expected, strict=True):
        np.testing.assert_allclose(output, reference.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_max_batch_1_fixes_the_batch_and_the_same_export_gives_the_same_bytes(
    small_model: Yolact, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_onnx(small_model, SMALL_SPEC, tmp_path / name, max_batch=1)
    proto = onnx.load(str(tmp_path / "a.onnx"))
    assert _dims(proto.graph.input[0]) == [1, 3, 65, 65]
    assert all(_dims(output)[0] == 1 for output in proto.graph.output)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"), [({"opset": 11}, "opset 11; choose from 18, 19, 20"), ({"max_batch": 0}, "at least 1")]
)
def test_wrong_arguments_are_named(
    small_model: Yolact, tmp_path: Path, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(small_model, SMALL_SPEC, tmp_path / "x.onnx", **arguments)  # type: ignore[arg-type]


class _NotExportable(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum().item() > 0 else -image


def test_a_failed_export_is_our_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="could not export small"):
        export_onnx(_NotExportable(), SMALL_SPEC, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_of_its_spec_is_caught(small_model: Yolact, tmp_path: Path) -> None:
    other = dataclasses.replace(SMALL_SPEC, class_names=("a", "b", "c"), category_ids=(1, 2, 3))
    with pytest.raises(ExportError, match=r"not what its spec says: conf is \[.*\], its spec makes it"):
        export_onnx(small_model, other, tmp_path / "x.onnx", max_batch=1)


def test_an_output_folder_that_does_not_exist_is_named(small_model: Yolact, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        export_onnx(small_model, SMALL_SPEC, tmp_path / "nowhere" / "x.onnx", max_batch=1)
