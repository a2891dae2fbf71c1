"""Which spec a checkpoint gets, and what is said when nothing tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporters.checkpoints.checkpoint import load_checkpoint
from exporters.checkpoints.configs import PUBLISHED
from exporters.checkpoints.inference import infer_architecture
from exporters.checkpoints.spec_choice import choose_spec
from exporters.network.yolact import Yolact
from tests import goldens
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.spec import BackboneSpec

SaveLike = Callable[..., Path]
StateDict = dict[str, Tensor]


def _state(config: str) -> StateDict:
    return {
        name: torch.zeros(1).expand(shape) if shape else torch.tensor(0)
        for name, shape in goldens.manifest_shapes(config).items()
    }


def _choose(state: StateDict, name: str = "best.pth", **arguments: Any) -> Any:
    return choose_spec(Path(name), infer_architecture(state, Path(name)), **arguments)


def _error(state: StateDict, name: str = "best.pth", **arguments: Any) -> str:
    with pytest.raises((CheckpointError, SpecError)) as caught:
        _choose(state, name, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("config", goldens.CONFIGS)
@pytest.mark.parametrize("name", ["{}_54_800000.pth", "{}_0_7_interrupt.pth", "{}.pth"])
def test_the_file_name_tells(config: str, name: str) -> None:
    choice = _choose(_state(config), name.format(config))
    assert choice.spec == PUBLISHED[config]
    assert choice.notes == (f"spec {config}: from the file name.",)


@pytest.mark.parametrize(
    "config",
    ["yolact_resnet50", "yolact_darknet53", "yolact_resnet50_pascal", "yolact_plus_base", "yolact_plus_resnet50"],
)
def test_tensors_that_fit_one_published_configuration_tell_and_it_is_noted(config: str) -> None:
    choice = _choose(_state(config))
    assert choice.spec == PUBLISHED[config]
    assert choice.notes == (f"spec {config}: from the tensors, which fit no other published configuration.",)


@pytest.mark.parametrize("config", ["yolact_base", "yolact_im400", "yolact_im700"])
def test_base_im400_and_im700_can_not_be_told_apart_and_the_user_is_asked(config: str) -> None:
    message = _error(_state(config))
    assert "yolact_base, yolact_im400 and yolact_im700" in message
    assert "--config" in message


def test_config_overrides_the_file_name() -> None:
    choice = _choose(_state("yolact_base"), "yolact_im400_54_800000.pth", config="yolact_im700")
    assert choice.spec == PUBLISHED["yolact_im700"]


def test_a_spec_file_overrides_the_file_name_and_its_notes_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"extends": "yolact_im400", "class_names": [f"thing {i}" for i in range(80)]}))
    choice = _choose(_state("yolact_base"), "yolact_base_54_800000.pth", spec_file=path)
    assert (choice.spec.name, choice.spec.input_size) == ("mine", 400)
    assert choice.notes == (
        f"spec mine: from the spec file {path}.",
        "category_ids not given with class_names: taken as 1..80.",
    )


def test_a_spec_file_and_a_config_together_are_refused(tmp_path: Path) -> None:
    assert "not both" in _error(_state("yolact_base"), spec_file=tmp_path / "x.json", config="yolact_base")


def test_an_unknown_configuration_is_refused_with_the_known_ones() -> None:
    message = _error(_state("yolact_base"), config="yolact_huge")
    assert "known are yolact_base" in message
    assert "yolact_plus_base" in message


def test_plus_tensors_and_a_plain_configuration_contradict_each_other() -> None:
    message = _error(_state("yolact_plus_resnet50"), config="yolact_resnet50")
    assert (
        "deformable blocks per stage: found [[], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2]], expected [[], [], [], []]"
        in message
    )
    assert "give --config yolact_plus_resnet50" in message
    message = _error(_state("yolact_base"), config="yolact_plus_base")
    assert "expected [[], [0, 3], [0, 3, 6, 9, 12, 15, 18, 21], [0]]" in message


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            {"backbone": {"dcn_interval": 1}},
            "found [[], [0, 3], [0, 3, 6, 9, 12, 15, 18, 21], [0]], expected [[], [0, 1,",
        ),
        (
            {"backbone": {"dcn_blocks": [0, 0, 23, 3]}},
            "found [[], [0, 3], [0, 3, 6, 9, 12, 15, 18, 21], [0]], expected [[], [],",
        ),
        (
            {"mask_iou_layers": []},
            "mask-IoU network layers: found [[8, 3], [16, 3], [32, 3], [64, 3], [128, 3]], expected []",
        ),
        ({"mask_iou_layers": [[8, 3], [16, 5]]}, "[128, 3]], expected [[8, 3], [16, 5]]"),
        ({"priors": {"scales": [[24], [48], [96], [192], [384]]}}, "priors per cell: found 9, expected 3"),
    ],
)
def test_a_spec_file_that_contradicts_a_plus_checkpoint_is_refused_with_both_values(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"extends": "yolact_plus_base", **change}))
    assert difference in _error(_state("yolact_plus_base"), spec_file=path)


@pytest.mark.parametrize("dcn", [((0, 4, 6, 3), 2), ((0, 1, 3, 0), 1), ((2, 0, 6, 1), 1), ((0, 4, 6, 3), 3)])
def test_a_starter_spec_reproduces_any_deformable_layout_and_the_mask_iou_network(
    tmp_path: Path, dcn: tuple[tuple[int, ...], int]
) -> None:
    spec = dataclasses.replace(
        PUBLISHED["yolact_plus_resnet50"],
        backbone=BackboneSpec("resnet", (3, 4, 6, 3), (1, 2, 3), *dcn),
        class_names=("a", "b"),
        category_ids=(1, 2),
        mask_iou_layers=((8, 3), (16, 5)),
    )
    with torch.device("meta"):
        state = Yolact(spec).state_dict()
    message = _error(state)
    layout = [list(spec.backbone.deformable_blocks(stage)) for stage in range(4)]
    assert f"{sum(map(len, layout))} deformable blocks, a mask-IoU network" in message
    starter = tmp_path / "starter.json"
    starter.write_text(message[message.index("{\n") :])
    chosen = _choose(state, spec_file=starter).spec
    assert [list(chosen.backbone.deformable_blocks(stage)) for stage in range(4)] == layout
    assert chosen.mask_iou_layers == ((8, 3), (16, 5))


def test_another_backbone_names_both_and_what_fits() -> None:
    message = _error(_state("yolact_resnet50"), "yolact_base_54_800000.pth")
    assert "backbone: found ResNet50, expected ResNet101" in message
    assert "give --config yolact_resnet50" in message


def _with_classes(state: StateDict, count: int) -> StateDict:
    conf = state["prediction_layers.0.conf_layer.weight"]
    state["prediction_layers.0.conf_layer.weight"] = torch.zeros(1).expand(3 * (count + 1), *conf.shape[1:])
    return state


@pytest.mark.parametrize(("name", "arguments"), [("yolact_base_9_1.pth", {}), ("a.pth", {"config": "yolact_base"})])
def test_another_class_count_names_both_and_shows_the_spec_to_write(name: str, arguments: dict[str, str]) -> None:
    message = _error(_with_classes(_state("yolact_base"), 5), name, **arguments)
    assert "foreground classes: found 5, expected 80" in message
    shown = json.loads(message[message.index("{\n") :])
    assert shown["extends"] == "yolact_base"
    assert len(shown["class_names"]) == 5
    assert "category_ids" not in shown  # a placeholder would be believed; without them 1, 2, 3, ... is taken, and said
    assert '"category_ids" if' in message


def test_many_classes_are_not_all_listed() -> None:
    message = _error(_with_classes(_state("yolact_base"), 600), "yolact_base_9_1.pth")
    assert '"class_names": ["class 1", "class 2", ... "class 600"]' in message


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"backbone": {"stages": [3, 4, 6, 3]}}, "backbone: found ResNet101, expected ResNet50"),
        ({"fpn": {"channels": 128}}, "FPN width: found 256, expected 128"),
        ({"class_names": ["a", "b"]}, "foreground classes: found 80, expected 2"),
        ({"priors": {"aspect_ratios": [[1, 0.5]] * 5}}, "priors per cell: found 3, expected 2"),
        (
            {"protonet": {"layers": [[256, 3], [256, 3], [256, 3], [None, -2], [256, 3], [64, 1]]}},
            "prototypes: found 32, expected 64",
        ),
        (
            {"protonet": {"layers": [[256, 3], [256, 3], [256, 3], [256, 3], [32, 1]]}},
            "prototype network layers: found [[256, 3], [256, 3], [256, 3], [None, -2], [256, 3], [32, 1]], expected",
        ),
        ({"head": {"extra_layers": []}}, "shared head layers: found [[256, 3]], expected []"),
        ({"backbone": {"selected_layers": [0, 1, 2]}}, "stages that feed the FPN: found [1, 2, 3], expected [0, 1, 2]"),
    ],
)
def test_a_spec_file_that_contradicts_the_tensors_is_refused_with_both_values(
    tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"extends": "yolact_base", **change}))
    message = _error(_state("yolact_base"), spec_file=path)
    assert difference in message
    assert "Correct the spec file" in message


def test_a_custom_model_without_spec_is_told_what_is_known_what_is_missing_and_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(goldens.SHAPES_CHECKPOINT)
    message = str(caught.value)
    assert (
        "ResNet with stages [1, 1, 1, 1], FPN width 64, 6 foreground classes, 32 prototypes, 3 priors per cell"
        in message
    )
    assert "Not in the tensors: input size, prior scales, class names, category ids" in message
    starter = tmp_path / "starter.json"
    starter.write_text(message[message.index("{\n") :])
    spec = load_checkpoint(goldens.SHAPES_CHECKPOINT, spec_file=starter).spec
    assert (spec.backbone.stages, spec.fpn.channels, spec.num_classes) == ((1, 1, 1, 1), 64, 6)


def test_a_starter_spec_for_nine_priors_per_cell_fits_them(tmp_path: Path) -> None:
    state = _state("yolact_resnet50")
    for layer, width in (("bbox", 4), ("conf", 81), ("mask", 32)):
        state[f"prediction_layers.0.{layer}_layer.weight"] = torch.zeros(1).expand(9 * width, 256, 3, 3)
    message = _error(state)
    starter = tmp_path / "starter.json"
    starter.write_text(message[message.index("{\n") :])
    assert _choose(state, spec_file=starter).spec.priors.per_cell == 9


def test_loading_a_published_checkpoint_gives_every_tensor_of_the_original_in_order(save_like: SaveLike) -> None:
    path = save_like("yolact_resnet50_pascal", lambda state: state.pop("backbone.bn1.num_batches_tracked"))
    loaded = load_checkpoint(path)
    assert loaded.spec == PUBLISHED["yolact_resnet50_pascal"]
    assert [(name, tuple(t.shape)) for name, t in loaded.state_dict.items()] == list(
        goldens.manifest_shapes("yolact_resnet50_pascal").items()
    )


def test_placeholders_and_priors_beyond_the_input_are_said(tmp_path: Path) -> None:
    fields = json.loads(goldens.SHAPES_SPEC.read_text())
    fields["class_names"] = [f"class {i}" for i in range(1, 7)]
    fields["priors"]["scales"] = [[24], [48], [96], [192], [384]]
    spec = tmp_path / "doubtful.json"
    spec.write_text(json.dumps(fields))
    notes = " ".join(load_checkpoint(goldens.SHAPES_CHECKPOINT, spec_file=spec).notes)
    assert "still placeholders" in notes
    assert "exceeds the input (256)" in notes
    assert "[11, 22, 44, 89, 178]" in notes


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_configurations_raise_no_doubt(name: str) -> None:
    assert choose_spec(Path("x.pth"), infer_architecture(_state(name), Path("x.pth")), config=name).notes == (
        f"spec {name}: from --config {name}.",
    )
