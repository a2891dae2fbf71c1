"""Tensors of shapes that no YOLACT has, under every name: a CheckpointError, or no matter, but never anything else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters.checkpoints.checkpoint import load_checkpoint, to_original_names
from exporters.checkpoints.inference import infer_architecture
from tests.goldens import manifest_shapes
from tests.unit.exporters import trainer_states
from tests.unit.exporters.trainer_states import empty
from yolact_deploy.errors import CheckpointError

PATH = Path("m.pth")
STATES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "original": lambda: {name: empty(*shape) for name, shape in manifest_shapes("yolact_plus_resnet50").items()},
    "mmdetection": trainer_states.mmdetection,
    "YolactEdge": trainer_states.yolact_edge,
    "Yolact_minimal": trainer_states.yolact_minimal,
}
SHAPES = ((), (7,), (0, 1, 1, 1), (10**9, 1, 1, 1))


def _understand(state: dict[str, Tensor]) -> None:
    weights = to_original_names(state, PATH)
    infer_architecture(weights.tensors, PATH, trainer=weights.trainer, conventions=weights.conventions)


def _telling(state: dict[str, Tensor]) -> list[str]:
    """A name of each kind that is looked at: the first and the last of a list of layers."""
    weights = [name for name in state if name.endswith("weight") and ("backbone" not in name or "conv3" in name)]
    kinds = {re.sub(r"\d+", "", name): name for name in weights}
    firsts = {re.sub(r"\d+", "", name): name for name in reversed(weights)}
    biases = [name for name in state if re.search(r"(conf_layer|conv_cls)\.bias", name)]
    return list(dict.fromkeys([*kinds.values(), *firsts.values(), *biases]))


@pytest.mark.parametrize("trainer", STATES)
def test_a_tensor_of_another_shape_or_none_is_our_error_or_no_matter(trainer: str) -> None:
    state = STATES[trainer]()
    _understand(state)
    refused = 0
    for name in _telling(state):
        for tensor in (*(empty(*shape) for shape in SHAPES), None):
            changed = {key: value for key, value in state.items() if key != name}
            if tensor is not None:
                changed[name] = tensor
            try:
                _understand(changed)
            except CheckpointError:
                refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "prediction_layers.0.bbox_layer.weight",
            (0, 256, 3, 3),
            r"has the shape \[0, 256, 3, 3\], which no convolution",
        ),
        ("prediction_layers.0.bbox_layer.weight", (2, 256, 3, 3), "its prediction head gives 2 box"),
        ("prediction_layers.0.upfeature.0.weight", (), "has no convolution prediction_layers.0.upfeature.0.weight"),
        ("proto_net.0.weight", (256, 256, 10**6, 1), "which no convolution of a YOLACT has"),
        ("maskiou_net.maskiou_net.0.weight", (8, 1, 0, 3), "which no convolution of a YOLACT has"),
    ],
)
def test_what_is_wrong_with_a_shape_is_said(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        _understand({**STATES["original"](), name: empty(*shape)})


@pytest.mark.parametrize("number", ["99999", "1" * 30, "1" * 5000])
@pytest.mark.parametrize("name", ["proto_net.{}.weight", "fpn.lat_layers.{}.weight", "neck.fpn_convs.{}.conv.weight"])
def test_layers_are_not_numbered_without_end(tmp_path: Path, name: str, number: str) -> None:
    path = tmp_path / "m.pth"
    torch.save({**trainer_states.yolact_minimal(), name.format(number): torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="no network numbers a layer as"):
        load_checkpoint(path)


def test_a_small_file_that_says_it_holds_terabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "yolact_resnet50_1_1.pth"
    torch.save({**STATES["original"](), "backbone.bn1.weight": empty(10**12)}, path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"its tensors hold 10\d* numbers, and at most"):
        load_checkpoint(path)


def test_complex_counters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "yolact_plus_resnet50_1_1.pth"
    torch.save({**STATES["original"](), "backbone.bn1.num_batches_tracked": torch.tensor(1 + 2j)}, path)
    with pytest.raises(CheckpointError, match="num_batches_tracked in complex64"):
        load_checkpoint(path)
