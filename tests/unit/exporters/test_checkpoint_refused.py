"""Files that are no usable checkpoint: each error is short and names the likely cause."""

from __future__ import annotations

import argparse
import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.checkpoints.checkpoint import LoadedCheckpoint, load_checkpoint
from exporters.checkpoints.weights_file import read_weights
from tests import goldens
from yolact_deploy.errors import CheckpointError

StateDict = dict[str, Tensor]
SaveLike = Callable[..., Path]
_SHORT = 700  # characters; the original's error has up to 26,000


def _refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **arguments)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < _SHORT + len(str(path))
    return message


def _refusal_of(content: Any, tmp_path: Path) -> str:
    path = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save(content, path)
    return _refusal(path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in _refusal(tmp_path / "nowhere.pth")


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in _refusal(tmp_path)


@pytest.mark.parametrize(
    "odd",
    [
        lambda weight: weight.to_sparse(),
        lambda weight: weight.reshape(8, -1).to_sparse_csr(),
        lambda weight: weight.to("meta"),
        lambda weight: torch.nested.nested_tensor([weight[0], weight[1, :1]]),
    ],
    ids=["sparse", "compressed", "without values", "nested"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
def test_weights_that_are_no_plain_tensors(odd: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    state = torch.load(goldens.SHAPES_CHECKPOINT, weights_only=True)
    name = "backbone.conv1.weight"
    message = _refusal_of({**state, name: odd(state[name])}, tmp_path)
    assert f"1 tensors that are sparse, nested or without values, the first is {name}" in message


def _zip_of_images() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("photo.jpg", b"x")
    return stream.getvalue()


def _onnx_model() -> bytes:
    graph = onnx.helper.make_graph([], "empty", [], [])
    content: bytes = onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()
    return content


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty (0 bytes)"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page (HTML)"),
        (b"<html>", "web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (_zip_of_images(), "zip archive of 1 files"),
        (_onnx_model(), "looks like an ONNX model"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":1}', "safetensors"),
        (b"hello world", "first bytes 68 65 6c 6c 6f 20 77 6f are neither"),
        (b"\x80\x02garbage", "damaged or cut short"),
        (b"PK\x03\x04garbage", "damaged or cut short"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_kind_of_file(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "yolact_base_54_800000.pth"
    path.write_bytes(content)
    assert cause in _refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9999])
def test_a_truncated_file(tmp_path: Path, shapes: LoadedCheckpoint, zipped: bool, kept: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(dict(shapes.state_dict), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "damaged or cut short" in _refusal(path, spec_file=goldens.SHAPES_SPEC)


class _RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "was_run"
    message = _refusal_of({"weights": torch.ones(1), "hook": _RunsCode(target)}, tmp_path)
    assert "holds more than tensors" in message
    assert "torch.save(model.state_dict(), path)" in message
    assert not target.exists()


@pytest.mark.parametrize("content", [nn.Conv2d(1, 1, 1), {"args": argparse.Namespace(lr=1)}])
def test_a_whole_model_or_its_arguments_need_code(tmp_path: Path, content: Any) -> None:
    assert "holds more than tensors" in _refusal_of(content, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_a_torchscript_program(tmp_path: Path) -> None:
    path = tmp_path / "script.pth"
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.ones(1)), path)  # type: ignore[no-untyped-call]
    assert "TorchScript" in _refusal(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
        ({"epoch": 1, "lr": 0.1}, "no tensors (its entries: 'epoch', 'lr')"),
        ({}, "no tensors"),
        ({"layer1.0.conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, "trained on ImageNet"),
        ({"layers.0.0.0.weight": torch.ones(1), "_preconv.0.weight": torch.ones(1)}, "trained on ImageNet"),
        ({"encoder.weight": torch.ones(1)}, "not a YOLACT checkpoint: its tensors are named encoder.weight"),
        ({"backbone.layers.0.0.conv1.weight": torch.ones(1)}, "only a part of a YOLACT"),
    ],
)
def test_content_that_is_no_yolact(tmp_path: Path, content: Any, cause: str) -> None:
    assert cause in _refusal_of(content, tmp_path)


def _drop(part: str) -> Callable[[StateDict], None]:
    def edit(state: StateDict) -> None:
        for name in [name for name in state if name.startswith(part)]:
            del state[name]

    return edit


def _replace(name: str, tensor: Tensor) -> Callable[[StateDict], None]:
    return lambda state: state.update({name: tensor})


def _mask_iou_of(classes: int) -> Callable[[StateDict], None]:
    return lambda state: state.update(
        {
            "maskiou_net.maskiou_net.0.weight": torch.ones(8, 1, 3, 3),
            "maskiou_net.maskiou_net.2.weight": torch.ones(classes, 8, 1, 1),
        }
    )


@pytest.mark.parametrize(
    ("edit", "cause"),
    [
        (
            _replace("backbone.layers.1.0.conv1.conv_offset_mask.weight", torch.ones(27, 1, 3, 3)),
            "deformable convolution where none is supported, backbone.layers.1.0.conv1.conv_offset_mask.weight",
        ),
        (
            _replace("backbone.layers.1.1.conv2.conv_offset_mask.weight", torch.ones(27, 1, 3, 3)),
            "deformable blocks [[], [1], [], []] in stages of [3, 4, 6, 3] blocks, which no configuration",
        ),
        (
            _replace("backbone.layers.3.2.conv2.conv_offset_mask.weight", torch.ones(27, 1, 3, 3)),
            "deformable blocks per stage: found [[], [], [], [2]], expected [[], [], [], []]",
        ),
        (_replace("maskiou_net.maskiou_net.2.weight", torch.ones(8, 1, 3, 3)), "layers are missing from its mask-IoU"),
        (_mask_iou_of(classes=7), "mask-IoU network judges 7 classes, its prediction head has 80"),
        (_mask_iou_of(classes=80), "mask-IoU network layers: found [[8, 3]], expected []"),
        (_replace("prediction_layers.1.bbox_layer.weight", torch.ones(1)), "prediction head per FPN level"),
        (_drop("backbone.layers.2.3."), "blocks are missing from stage 2"),
        (_drop("backbone.layers.0.0.bn1.weight"), "lacks 1 of the 354 tensors"),
        (_drop("fpn.lat_layers."), "the FPN takes []"),
        (_drop("proto_net."), "no tensors named proto_net.*"),
        (_drop("prediction_layers.0.conf_layer.weight"), "no convolution prediction_layers.0.conf_layer.weight"),
        (_drop("fpn.downsample_layers.1."), "downsampled FPN levels: found 1, expected 2"),
        (_replace("criterion.scale", torch.ones(1)), "has 1 tensors that yolact_resnet50 does not have"),
        (_replace("backbone.bn1.weight", torch.ones(65)), "backbone.bn1.weight, found [65], expected [64]"),
        (_replace("fpn.lat_layers.0.weight", torch.ones(256, 999, 1, 1)), "The file mixes two models"),
        (_replace("prediction_layers.0.mask_layer.weight", torch.ones(99, 256, 3, 3)), "one coefficient per prototype"),
        (_replace("fpn.lat_layers.1.bias", torch.full((256,), torch.nan)), "NaN or infinite weights in 1 tensors"),
        (_replace("proto_net.0.bias", torch.full((256,), torch.inf)), "first in proto_net.0.bias (256 of 256 values)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_yolact_that_is_not_whole_or_not_supported(
    save_like: SaveLike, edit: Callable[[StateDict], None], cause: str
) -> None:
    assert cause in _refusal(save_like("yolact_resnet50", edit, "yolact_resnet50_54_800000.pth"))


def test_backbone_under_its_names_of_2018_only(tmp_path: Path, shapes: LoadedCheckpoint) -> None:
    renamed = {name.replace("backbone.layers.0", "backbone.layer1"): t for name, t in shapes.state_dict.items()}
    kept = {name: t for name, t in renamed.items() if not name.startswith("backbone.layers.")}
    assert "October 2018" in _refusal_of(kept, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_any_damage_is_our_error_or_none(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "damaged.pth"
    part = {f"backbone.layers.{i}.weight": torch.ones(3) for i in range(30)}
    torch.save(part, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    causes = set()
    for _ in range(60):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), random.integers(1, 20)):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path)
        causes.add(str(caught.value).removeprefix(str(path))[:20])
    assert len(causes) > 1


def _flip_bytes_of_one_tensor(path: Path) -> str:
    """Change a few bytes within the largest entry's data, as a bad disk would; the entry's name."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, largest.header_offset + 26)
    middle = largest.header_offset + 30 + name_bytes + extra_bytes + largest.file_size // 2
    for place in range(middle, middle + 64, 4):
        content[place] ^= 0x11  # the lowest bits: every weight stays a plausible number
    path.write_bytes(content)
    return largest.filename


def test_flipped_bytes_in_one_tensor_are_named_by_the_files_own_checksums(
    tmp_path: Path, shapes: LoadedCheckpoint
) -> None:
    path = tmp_path / "flipped.pth"
    torch.save(shapes.state_dict, path)
    entry = _flip_bytes_of_one_tensor(path)
    with pytest.raises(CheckpointError, match=rf"is damaged: the bytes of 1 of its \d+ entries .*{re.escape(entry)}"):
        load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_flipped_exponent_that_no_checksum_covers_is_refused(
    tmp_path: Path, shapes: LoadedCheckpoint, zipped: bool
) -> None:
    name = "fpn.lat_layers.1.bias"
    flipped = shapes.state_dict[name].clone()
    flipped.view(torch.int32)[0] ^= 1 << 30
    path = tmp_path / "flipped.pth"
    torch.save({**shapes.state_dict, name: flipped}, path, _use_new_zipfile_serialization=zipped)
    said = _refusal(path, spec_file=goldens.SHAPES_SPEC)
    assert re.search(rf"holds weights above 1e\+10 in 1 tensors, first in {name} \(up to .*damaged", said)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path, shapes: LoadedCheckpoint) -> None:
    path = tmp_path / "yolact_resnet14_shapes_4_4909.pth"
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(shapes.state_dict, path)
    finally:
        torch.serialization.set_crc32_options(computed)
    weights, _ = read_weights(path)
    assert weights.keys() == shapes.state_dict.keys()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.complex64, torch.bool], ids=str)
def test_weights_that_are_no_floating_point_numbers(
    tmp_path: Path, shapes: LoadedCheckpoint, dtype: torch.dtype
) -> None:
    name = "proto_net.0.weight"
    path = tmp_path / "quantized.pth"
    torch.save({**shapes.state_dict, name: shapes.state_dict[name].to(dtype)}, path)
    with pytest.raises(CheckpointError, match=rf"holds 1 weights that are no floating point numbers.*{name}"):
        load_checkpoint(path, spec_file=goldens.SHAPES_SPEC)
