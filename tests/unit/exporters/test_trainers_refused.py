"""Checkpoints of other trainers that can't be used, and specs that are another trainer's: the first reason is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporters.checkpoints.checkpoint import to_original_names
from exporters.checkpoints.configs import OTHER_TRAINERS
from exporters.checkpoints.inference import infer_architecture
from exporters.checkpoints.spec_choice import choose_spec
from exporters.checkpoints.trainers.others import background_first
from exporters.network.yolact import Yolact
from tests import goldens
from tests.unit.exporters.trainer_states import StateDict, empty, mmdetection, yolact_edge, yolact_minimal
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.spec import ModelSpec

PATH = Path("epoch_55.pth")
MAKERS: dict[str, Callable[[], StateDict]] = {
    "mmdet_yolact_r50": mmdetection,
    "mmdet_yolact_r101": lambda: mmdetection("r101", semantic="mask_head.segm_branch"),
    "yolact_minimal_res50_coco": yolact_minimal,
    "yolact_minimal_res101_coco": lambda: yolact_minimal("r101"),
    "yolact_edge_resnet50": yolact_edge,
    "yolact_edge": lambda: yolact_edge("yolact_base"),
}


def _choose(state: StateDict, **arguments: Any) -> tuple[ModelSpec, StateDict]:
    weights = to_original_names(state, PATH)
    found = infer_architecture(weights.tensors, PATH, trainer=weights.trainer, conventions=weights.conventions)
    return choose_spec(PATH, found, **arguments).spec, weights.tensors


def _error(state: StateDict, **arguments: Any) -> str:
    with pytest.raises((CheckpointError, SpecError)) as caught:
        _choose(state, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("config", MAKERS)
def test_a_published_checkpoint_of_another_trainer_is_known_and_fits_our_model_tensor_by_tensor(config: str) -> None:
    spec, tensors = _choose(MAKERS[config]())
    assert spec in [spec for specs in OTHER_TRAINERS.values() for spec in specs.values()]
    assert spec.name == config
    with torch.device("meta"):
        wanted = Yolact(spec).state_dict()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {n: tuple(t.shape) for n, t in wanted.items()}


def test_the_background_moves_from_the_last_to_the_first_place_of_every_prior() -> None:
    rows = torch.tensor([[1], [2], [0], [11], [12], [10]])  # two priors of two classes and the background
    assert background_first(rows, 2).flatten().tolist() == [0, 1, 2, 10, 11, 12]


def _with(state: StateDict, **tensors: Tensor) -> StateDict:
    return {**state, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


def _without(state: StateDict, prefix: str) -> StateDict:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("state", "reasons"),
    [
        (lambda: _without(mmdetection(), "bbox_head.conv_coeff"), ["has no mask coefficients", "bbox_head.conv_coeff"]),
        (lambda: _without(mmdetection(), "neck."), ["has no FPN (neck.lateral_convs.N.conv.weight*)"]),
        (lambda: _without(mmdetection(), "mask_head."), ["has no prototype network"]),
        (
            lambda: _with(mmdetection(), roi_head__bbox_head__fc_cls__weight=empty(81, 1024)),
            ["two-stage detector", "roi_head.bbox_head.fc_cls.weight"],
        ),
        (
            lambda: _with(mmdetection(), neck__fpn_convs__0__bn__weight=empty(256)),
            ["normalisation layers", "neck.fpn_convs.0.bn.weight"],
        ),
        (
            lambda: _with(mmdetection(), neck__fpn_convs__3__conv__weight=empty(256, 256, 3, 3)),
            ["made of 256 channels", "last stage has 2048", "on_input"],
        ),
        (
            lambda: _with(mmdetection(), bbox_head__conv_cls__weight=empty(240, 256, 3, 3)),
            ["use_sigmoid=True", "240 = 3 x 80"],
        ),
        (lambda: {**mmdetection(), **yolact_minimal()}, ["mmdetection", "Yolact_minimal", "mixes two models"]),
        (
            lambda: _with(mmdetection(), prediction_layers__0__conf_layer__weight=empty(243, 256, 3, 3)),
            ["1 tensors that a YOLACT of mmdetection", "prediction_layers.0.conf_layer.weight"],
        ),
        (
            lambda: _with(yolact_minimal(), backbone__patch_embed__proj__weight=empty(96, 3, 4, 4)),
            ["Swin or pyramid transformer", "backbone.patch_embed.proj.weight"],
        ),
        (lambda: _without(yolact_minimal(), "proto_net.proto2"), ["has no second part of the prototype network"]),
        (
            lambda: _with(yolact_minimal(), fpn__pred_layers__0__weight=empty(256, 256, 3, 3)),
            ["fpn.pred_layers.0.weight", "does not have"],
        ),
        (
            lambda: _with(yolact_edge(), backbone__layers__1__0__conv__0__0__weight=empty(32, 1, 3, 3)),
            ["MobileNetV2", "backbone.layers.1.0.conv.0.0.weight"],
        ),
        (lambda: _without(yolact_edge(), "fpn_phase_2"), ["has no FPN outputs (fpn_phase_2.pred_layers.*)"]),
        (
            lambda: _with(yolact_edge(), fpn__lat_layers__0__weight=empty(256, 2048, 1, 1)),
            ["fpn_phase_1.lat_layers.0.weight and fpn.lat_layers.0.weight", "same tensor"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_halves_mixtures_and_other_models_are_refused_with_the_reason(
    state: Callable[[], StateDict], reasons: list[str]
) -> None:
    message = _error(state())
    assert str(PATH) in message
    for reason in reasons:
        assert reason in message


def test_an_unknown_trainer_is_refused_with_names_of_its_own() -> None:
    message = _error({"model.0.conv.weight": empty(3, 3), "model.24.anchors": empty(3, 2)})
    assert "is not a YOLACT checkpoint: its tensors are named model.0.conv.weight, model.24.anchors" in message


@pytest.mark.parametrize(
    ("state", "config", "difference", "advice"),
    [
        (
            mmdetection,
            "yolact_resnet50",
            "source of the first downsampled level: found backbone, expected output; "
            "ReLU on FPN outputs (by the code of mmdetection): found False, expected True",
            "give --config mmdet_yolact_r50",
        ),
        (
            yolact_minimal,
            "yolact_resnet50",
            "activation of downsampled FPN levels (by the code of Yolact_minimal): found relu, expected none",
            "give --config yolact_minimal_res50_coco",
        ),
        (
            lambda: mmdetection("r101"),
            "mmdet_yolact_r50",
            "backbone: found ResNet101, expected ResNet50",
            "give --config mmdet_yolact_r101",
        ),
    ],
)
def test_a_configuration_of_another_trainer_contradicts_with_both_values(
    state: Callable[[], StateDict], config: str, difference: str, advice: str
) -> None:
    message = _error(state(), config=config)
    assert difference in message
    assert advice in message


@pytest.mark.parametrize(
    ("state", "base"), [(mmdetection, "mmdet_yolact_r50"), (yolact_minimal, "yolact_minimal_res50_coco")]
)
def test_own_classes_of_another_trainer_get_a_spec_file_to_start_from(
    state: Callable[..., StateDict], base: str, tmp_path: Path
) -> None:
    message = _error(state(classes=2))
    starter = tmp_path / "starter.json"
    starter.write_text(message[message.index("{\n") :])
    assert json.loads(starter.read_text())["extends"] == base
    spec, _ = _choose(state(classes=2), spec_file=starter)
    trainers = {spec.name: spec for specs in OTHER_TRAINERS.values() for spec in specs.values()}
    assert (spec.priors, spec.preprocess, spec.fpn) == (
        trainers[base].priors,
        trainers[base].preprocess,
        trainers[base].fpn,
    )


def test_a_spec_file_that_extends_the_originals_is_told_what_to_extend(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"extends": "yolact_resnet50"}))
    message = _error(mmdetection(), spec_file=path)
    assert "found backbone, expected output" in message
    assert "Configurations of mmdetection that it can extend: mmdet_yolact_r101, mmdet_yolact_r50." in message


def test_a_spec_that_stretches_where_the_trainer_pads_is_doubted(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"extends": "yolact_minimal_res50_coco", "preprocess": {"resize": "stretch", "pad_rgb": None}})
    )
    weights = to_original_names(yolact_minimal(), PATH)
    found = infer_architecture(weights.tensors, PATH, trainer=weights.trainer, conventions=weights.conventions)
    notes = " ".join(choose_spec(PATH, found, spec_file=path).notes)
    assert 'preprocess.resize is "stretch" in the spec; the configurations of Yolact_minimal have "pad"' in notes


def test_a_configuration_of_another_trainer_for_the_originals_names_is_doubted() -> None:
    found = infer_architecture({n: empty(*s) for n, s in goldens.manifest_shapes("yolact_resnet50").items()}, PATH)
    notes = " ".join(choose_spec(PATH, found, config="yolact_minimal_res50_coco").notes)
    assert 'fpn.downsample_activation is "relu" in the spec; the configurations of YOLACT have "none"' in notes
    assert "protonet.align_corners is true in the spec" in notes


def test_deformable_layers_of_yolact_edge_get_the_originals_names() -> None:
    state = {
        name.replace("conv_offset_mask", "conv_offset"): tensor
        for name, tensor in yolact_edge("yolact_plus_resnet50").items()
        if not name.startswith("maskiou_net.")
    }
    tensors = to_original_names(state, PATH).tensors
    assert set(tensors) == {n for n in goldens.manifest_shapes("yolact_plus_resnet50") if "maskiou" not in n}


def test_padding_and_its_colour_belong_together() -> None:
    fields = OTHER_TRAINERS["Yolact_minimal"]["yolact_minimal_res50_coco"].to_dict()
    fields["preprocess"]["pad_rgb"] = None
    with pytest.raises(SpecError, match="padding needs a colour"):
        ModelSpec.from_dict(fields)
    fields["preprocess"] |= {"resize": "stretch", "pad_rgb": [0, 0, 0]}
    with pytest.raises(SpecError, match="stretching has none"):
        ModelSpec.from_dict(fields)
