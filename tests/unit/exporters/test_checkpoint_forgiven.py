"""Checkpoints as people have them: each must load to the very same weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model, load_checkpoint
from tests import goldens

StateDict = dict[str, Tensor]


def _load(path: Path) -> LoadedCheckpoint:
    return load_checkpoint(path, spec_file=goldens.SHAPES_SPEC)


def _assert_same(loaded: LoadedCheckpoint, original: LoadedCheckpoint) -> None:
    assert list(loaded.state_dict) == list(original.state_dict)
    for name, tensor in original.state_dict.items():
        assert loaded.state_dict[name].dtype == tensor.dtype, name
        assert torch.equal(loaded.state_dict[name], tensor), name


def _without(state: StateDict, part: str) -> StateDict:
    return {name: tensor for name, tensor in state.items() if part not in name}


def _prefixed(state: StateDict, prefix: str) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("edit", "note"),
    [
        (lambda s: _prefixed(s, "module."), 'removed the prefix "module."'),
        (lambda s: _prefixed(s, "module._orig_mod."), 'removed the prefix "_orig_mod."'),
        (lambda s: {"state_dict": s, "epoch": 4}, 'entry "state_dict"'),
        (lambda s: {"model": s, "optimizer": {"lr": 0.1}}, 'entry "model"'),
        (lambda s: {"model_state_dict": s}, 'entry "model_state_dict"'),
        (lambda s: {"net": {"weights": _prefixed(s, "module.")}}, 'entry "weights"'),
        (lambda s: {**s, "epoch": 4}, "ignored 1 entries that are no tensors (epoch)"),
        (lambda s: {**s, "backbone.layer1.0.conv1.weight": torch.ones(3)}, "ignored 1 duplicates under old names"),
        (
            lambda s: {**s, "fpn.downsample_layers.2.weight": torch.ones(64, 64, 3, 3)},
            "ignored 1 entries of FPN levels",
        ),
        (lambda s: _without(s, "num_batches_tracked"), "no num_batches_tracked"),
        (lambda s: {name: t.double() if t.is_floating_point() else t for name, t in s.items()}, "from float64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forgiven_and_noted(
    tmp_path: Path, shapes: LoadedCheckpoint, edit: Callable[[StateDict], Any], note: str
) -> None:
    # The counters are zero, so that those that are missing can be compared with those that are filled in.
    state = {k: torch.zeros_like(t) if "num_batches" in k else t for k, t in shapes.state_dict.items()}
    torch.save(state, tmp_path / "original.pth")
    torch.save(edit(state), tmp_path / "edited.pth")
    edited = _load(tmp_path / "edited.pth")
    _assert_same(edited, _load(tmp_path / "original.pth"))
    assert any(note in line for line in edited.notes), edited.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(tmp_path: Path, shapes: LoadedCheckpoint, dtype: torch.dtype) -> None:
    path = tmp_path / "half.pth"
    torch.save({k: t.to(dtype) if t.is_floating_point() else t for k, t in shapes.state_dict.items()}, path)
    loaded = _load(path)
    for name, tensor in shapes.state_dict.items():
        expected = tensor.to(dtype).float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded.state_dict[name], expected), name
    assert any("to float32" in note for note in loaded.notes)


def test_missing_semantic_segmentation_weights_are_noted_and_change_no_output(
    tmp_path: Path, shapes: LoadedCheckpoint
) -> None:
    path = tmp_path / "no_semantic.pth"
    torch.save(_without(dict(shapes.state_dict), "semantic_seg_conv"), path)
    loaded = _load(path)
    assert any("semantic_seg_conv" in note for note in loaded.notes)
    image = torch.ones(1, 3, 256, 256)
    for ours, original in zip(build_model(loaded)(image), build_model(shapes)(image), strict=True):
        assert torch.equal(ours, original)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: torch.ones(t.shape[0] + 1, *t.shape[1:]),
        lambda t: torch.tensor(1.0),
        lambda t: torch.full_like(t, torch.nan),
        lambda t: t.to(torch.int8),
        lambda t: t.to_sparse(),
    ],
    ids=["another shape", "a number", "NaN", "int8", "sparse"],
)
def test_what_a_training_loss_holds_is_no_reason_to_refuse_a_network(
    tmp_path: Path, shapes: LoadedCheckpoint, edit: Callable[[Tensor], Tensor]
) -> None:
    state = dict(shapes.state_dict)
    for name in ("semantic_seg_conv.weight", "semantic_seg_conv.bias"):
        state[name] = edit(state[name])
    state["semantic_seg_conv.2.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "loss.pth")
    loaded = _load(tmp_path / "loss.pth")
    (note,) = (note for note in loaded.notes if "semantic_seg_conv" in note)
    assert note.startswith("ignored semantic_seg_conv.")
    assert list(loaded.state_dict) == list(shapes.state_dict)
    for name, tensor in shapes.state_dict.items():
        assert torch.equal(loaded.state_dict[name], tensor) != name.startswith("semantic_seg_conv"), name


def test_a_file_in_the_format_before_torch_1_6_loads(tmp_path: Path, shapes: LoadedCheckpoint) -> None:
    path = tmp_path / "legacy.pth"
    torch.save(dict(shapes.state_dict), path, _use_new_zipfile_serialization=False)
    _assert_same(_load(path), shapes)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_saved_on_a_gpu_loads_without_one(
    tmp_path: Path, shapes: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    path = tmp_path / "cuda.pth"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(dict(shapes.state_dict), path, _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in path.read_bytes()
    _assert_same(_load(path), shapes)


def test_the_file_name_is_of_no_consequence_when_the_spec_is_given(tmp_path: Path, shapes: LoadedCheckpoint) -> None:
    path = tmp_path / "yolact_base_54_800000.pth"
    shutil.copy(goldens.SHAPES_CHECKPOINT, path)
    loaded = _load(path)
    assert loaded.spec == shapes.spec
    assert loaded.sha256 == shapes.sha256
    assert loaded.notes == (f"spec yolact_resnet14_shapes: from the spec file {goldens.SHAPES_SPEC}.",)
