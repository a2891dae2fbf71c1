from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from exporters.checkpoints.checkpoint import read_checkpoint
from exporters.inspection import inspect_checkpoint, seen_in_tensors
from tests import goldens
from tests.unit.exporters.trainer_states import mmdetection
from yolact_deploy.errors import CheckpointError
from yolact_deploy.reports.tables import inspect_tables


def test_a_custom_checkpoint_shows_its_architecture_and_says_what_to_give() -> None:
    report = inspect_checkpoint(goldens.SHAPES_CHECKPOINT)
    assert report["architecture"]["stages"] == [1, 1, 1, 1]
    assert (report["architecture"]["fpn_channels"], report["architecture"]["num_classes"]) == (64, 6)
    assert report["num_tensors"] == 138
    assert report["spec"] is None
    assert '"extends"' in report["spec_error"]


def test_a_published_checkpoint_is_known_by_its_tensors(tmp_path: Path) -> None:
    weights = {name: torch.zeros(shape) for name, shape in goldens.manifest_shapes("yolact_resnet50_pascal").items()}
    torch.save(weights, tmp_path / "best.pth")
    report = inspect_checkpoint(tmp_path / "best.pth")
    assert report["spec"]["name"] == "yolact_resnet50_pascal"
    assert report["spec_error"] is None


def test_every_inferred_value_names_the_tensor_it_was_seen_in() -> None:
    report = inspect_checkpoint(goldens.SHAPES_CHECKPOINT)
    seen = {row["field"]: row for row in report["inferred"]}
    expected = {
        "trainer": ("YOLACT", None),
        "backbone": ("ResNet with stages [1, 1, 1, 1]", "backbone.layers.3.0.conv3.weight"),
        "blocks per stage": ([1, 1, 1, 1], "backbone.layers.3.0.conv3.weight"),
        "stages into the FPN": ([1, 2, 3], "fpn.lat_layers.0.weight"),
        "FPN width": (64, "fpn.lat_layers.0.weight"),
        "downsampled FPN levels": (2, "fpn.downsample_layers.1.weight"),
        "prototypes": (32, "proto_net.10.weight"),
        "shared head layers": ([[64, 3]], "prediction_layers.0.upfeature.0.weight"),
        "priors per cell": (3, "prediction_layers.0.bbox_layer.weight"),
        "foreground classes": (6, "prediction_layers.0.conf_layer.weight"),
        "deformable blocks per stage": ("none", None),
        "mask-IoU network": ("none", None),
    }
    assert {field: (seen[field]["value"], seen[field]["tensor"]) for field in expected} == expected
    assert seen["foreground classes"]["shape"] == [21, 64, 3, 3]
    assert {row["value"] for row in report["not_in_tensors"]} == {None}
    assert report["not_in_tensors"][0]["field"] == "input size"


def test_a_plus_checkpoint_shows_its_deformable_blocks_and_its_mask_iou_network(tmp_path: Path) -> None:
    shapes = goldens.manifest_shapes("yolact_plus_resnet50")
    weights = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "best.pth")
    report = inspect_checkpoint(tmp_path / "best.pth")
    seen = {row["field"]: row for row in report["inferred"]}
    assert seen["deformable blocks per stage"]["value"] == [[], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2]]
    assert seen["deformable blocks per stage"]["tensor"] == "backbone.layers.3.2.conv2.conv_offset_mask.weight"
    assert seen["mask-IoU network"]["value"] == [[8, 3], [16, 3], [32, 3], [64, 3], [128, 3]]
    others = {row["field"]: row for row in report["not_in_tensors"]}
    assert others["input size"]["value"] == 550
    assert others["input size"]["how"] == "yolact_plus_resnet50 (the only published configuration that fits)"


def test_a_checkpoint_of_another_trainer_is_shown_under_its_own_names(tmp_path: Path) -> None:
    torch.save({"state_dict": mmdetection()}, tmp_path / "epoch_55.pth")
    report = inspect_checkpoint(tmp_path / "epoch_55.pth")
    assert (report["trainer"], report["spec"]["name"]) == ("mmdetection", "mmdet_yolact_r50")
    seen = {row["field"]: row for row in report["inferred"]}
    assert seen["backbone"]["tensor"] == "backbone.layer4.2.conv3.weight"
    assert seen["foreground classes"]["tensor"] == "bbox_head.conv_cls.weight"
    assert seen["first of them is made of"]["value"] == "the backbone's last stage"
    assert seen["ReLU on FPN outputs"] == {
        "field": "ReLU on FPN outputs",
        "value": False,
        "tensor": None,
        "shape": None,
        "how": "the code of mmdetection; no tensor shows it",
    }
    titles = [str(table.title) for table in inspect_tables(report)]
    assert titles[1:3] == ["seen in the tensors", "not in the tensors"]


def test_whose_checkpoint_it_is_does_not_hang_on_the_wording_of_a_note(tmp_path: Path) -> None:
    torch.save(mmdetection(), tmp_path / "epoch_55.pth")
    content = read_checkpoint(tmp_path / "epoch_55.pth")
    unsaid = dataclasses.replace(content, notes=(), weights=dataclasses.replace(content.weights, notes=()))
    for told in (content, unsaid):
        trainer = seen_in_tensors(told)[0]
        assert (trainer.field, trainer.value) == ("trainer", "mmdetection")
        assert trainer.how == "recognised by neck.lateral_convs.0.conv.weight"


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tmp_path / "page.pth")
