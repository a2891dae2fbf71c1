from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import exporters.onnx_export
import exporters.parity
from exporters import export
from exporters.parity import ParityReport, TensorParity
from tests import goldens
from yolact_deploy.errors import CheckpointError, ExportError, ImageError, OutputError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec import ModelSpec

PHOTO = goldens.SHAPES / "val" / "val_public_0000.jpg"


@pytest.mark.slow
def test_a_checkpoint_becomes_a_proven_onnx(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []
    target = tmp_path / "model.onnx"
    result = export(
        goldens.SHAPES_CHECKPOINT,
        target,
        spec=goldens.SHAPES_SPEC,
        conf="logits",
        max_batch=4,
        parity_images=[PHOTO],
        progress=lambda step, *_: steps.append(step),
    )
    assert [step.split()[0] for step in steps] == ["reading", "exporting", "comparing"]
    assert list(tmp_path.iterdir()) == [target]
    assert (result.sha256, result.size_bytes) == (sha256_file(target), target.stat().st_size)
    assert result.parity is not None
    assert result.parity.passed
    assert set(result.seconds) == {"load", "export", "parity"}
    described = json.loads(json.dumps(result.to_dict()))
    assert described["output"] == str(target)
    assert described["parity"]["passed"] is True
    assert described["parity"]["images"][0]["image"] == str(PHOTO)
    metadata = {entry.key: entry.value for entry in onnx.load(str(target)).metadata_props}
    assert ModelSpec.from_json(metadata["yolact_deploy.spec"]).conf_activation == "logits"
    assert metadata["yolact_deploy.checkpoint_sha256"] == sha256_file(goldens.SHAPES_CHECKPOINT)
    assert metadata["yolact_deploy.max_batch"] == "4"
    assert capfd.readouterr().out == ""


def test_a_failed_comparison_fails_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_export(model: object, spec: ModelSpec, target: Path, **_: object) -> None:
        target.write_bytes(b"not what was asked for")

    failed = ParityReport((), (TensorParity("loc", 1.0, 1e-4, 0.5),), "onnxruntime")
    monkeypatch.setattr(exporters.onnx_export, "export_onnx", wrong_export)
    monkeypatch.setattr(exporters.parity, "check_parity", lambda *_, **__: failed)
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(ExportError, match="loc differs by up to"):
        export(goldens.SHAPES_CHECKPOINT, target, spec=goldens.SHAPES_SPEC)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_text() == "old"


def test_an_interrupted_export_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: object, spec: ModelSpec, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporters.onnx_export, "export_onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(goldens.SHAPES_CHECKPOINT, tmp_path / "model.onnx", spec=goldens.SHAPES_SPEC)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_refused_at_once_is_refused_before_any_work(tmp_path: Path) -> None:
    def no_work(*step: object) -> None:
        raise AssertionError(step)

    def refused(checkpoint: Path, output: Path, images: list[Path] | None = None) -> None:
        export(checkpoint, output, parity_images=images, progress=no_work)

    with pytest.raises(OutputError, match="nowhere"):
        refused(goldens.SHAPES_CHECKPOINT, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        refused(goldens.SHAPES_CHECKPOINT, tmp_path)
    with pytest.raises(OutputError, match="the input itself"):
        refused(goldens.SHAPES_CHECKPOINT, goldens.SHAPES_CHECKPOINT)
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        refused(goldens.SHAPES_CHECKPOINT, tmp_path / "model.onnx", [tmp_path / "photo.jpg"])


def test_a_bad_checkpoint_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        export(tmp_path / "none.pth", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
