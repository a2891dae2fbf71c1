from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporters.inspection import inspect_checkpoint
from tests import goldens
from yolact_deploy.errors import CheckpointError


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


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError):
        inspect_checkpoint(tmp_path / "page.pth")
