"""The mask-IoU network as a part of the exported file, and what the Detector makes of it."""

from __future__ import annotations

import base64
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporters import export
from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model
from exporters.network.yolact import Yolact
from exporters.parity import check_parity
from tests import goldens
from tests.unit.exporters.plus_models import SMALL_PLUS, random_plus
from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY, SPEC_METADATA_KEY, DcnForm
from yolact_deploy.errors import SpecError
from yolact_deploy.file_detection import FileResult, detect_files
from yolact_deploy.reference.postprocess import MaskIouReference, rescore_masks
from yolact_deploy.runtime.detector import Detector


@pytest.fixture
def reference(plus_model: Yolact) -> MaskIouReference:
    tensors = [tensor.numpy() for tensor in plus_model.get_submodule("maskiou_net").state_dict().values()]
    return MaskIouReference(list(zip(tensors[::2], tensors[1::2], strict=True)))


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_the_part_in_the_metadata_runs_alone_and_equals_pytorch_and_numpy(
    plus_native: Path, plus_model: Yolact, reference: MaskIouReference
) -> None:
    content = base64.b64decode(_metadata(plus_native)[MASK_IOU_METADATA_KEY])
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    size = SMALL_PLUS.proto_size
    for count in (1, 5):
        masks = np.random.default_rng(count).random((count, size, size), np.float32)
        (found,) = session.run(["mask_iou"], {"masks": masks})
        assert found.shape == (count, SMALL_PLUS.num_classes)
        assert found.min() >= 0
        assert found.std() > 1e-2
        with torch.inference_mode():
            expected = plus_model.get_submodule("maskiou_net")(torch.from_numpy(masks)).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, reference(masks), rtol=0, atol=1e-5)


def test_the_detector_rescores_and_its_copies_do_too(plus_native: Path, reference: MaskIouReference) -> None:
    detector = Detector(plus_native, device="cpu")
    image = goldens.golden_image(0).copy()
    found = detector(image)
    assert len(found) > 1
    expected = rescore_masks(dataclasses.replace(found, mask_ious=None), reference)
    np.testing.assert_allclose(found.mask_scores, expected.mask_scores, rtol=0, atol=1e-5)
    assert not np.array_equal(found.mask_scores, found.scores)
    copy = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(copy(image).mask_scores, found.mask_scores)


def test_what_is_displayed_ranks_by_the_mask_score_and_is_above_the_threshold_in_it(
    plus_native: Path, tmp_path: Path
) -> None:
    import cv2

    file = tmp_path / "image.png"
    assert cv2.imwrite(str(file), goldens.golden_image(0))
    detector = Detector(plus_native, device="cpu")
    found = detector(file)
    threshold = float(np.median(found.mask_scores))
    shown: list[FileResult] = []
    detect_files(detector, [file], score_threshold=threshold, top_k=100, on_result=shown.append)
    scores = [entry["score"] for entry in shown[0].entries]
    assert scores == sorted(scores, reverse=True)
    both = found.mask_scores[(found.scores > np.float32(threshold)) & (found.mask_scores >= np.float32(threshold))]
    assert 0 < len(scores) <= len(both) < len(found)
    assert all("mask_score" not in entry for entry in shown[0].entries)


@pytest.mark.parametrize("form", get_args(DcnForm))
def test_parity_covers_the_mask_iou_network_in_both_forms(
    plus_model: Yolact, form: DcnForm, request: pytest.FixtureRequest
) -> None:
    exported = request.getfixturevalue(f"plus_{form}")
    images = [("image 0", goldens.golden_image(0).copy())]
    report = check_parity(plus_model, exported, SMALL_PLUS, images=images)
    assert report.passed
    assert report.images[0].detections > 1
    assert report.max_abs_error["mask_iou"] < 1e-5
    other = random_plus()
    other.get_parameter("maskiou_net.maskiou_net.4.bias").fill_(0.75)
    failures = check_parity(other, exported, SMALL_PLUS, images=images).failures()
    assert len(failures) == 1
    assert "mask_iou differs by up to 2.50e-01" in failures[0]


def _without(metadata: dict[str, str]) -> None:
    del metadata[MASK_IOU_METADATA_KEY]


def _damaged(metadata: dict[str, str]) -> None:
    metadata[MASK_IOU_METADATA_KEY] = metadata[MASK_IOU_METADATA_KEY][:401]


def _cut(metadata: dict[str, str]) -> None:
    metadata[MASK_IOU_METADATA_KEY] = metadata[MASK_IOU_METADATA_KEY][:400]


def _of_another(metadata: dict[str, str]) -> None:
    net = onnx.load_model_from_string(base64.b64decode(metadata[MASK_IOU_METADATA_KEY]))
    net.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 99
    net.graph.ClearField("value_info")
    metadata[MASK_IOU_METADATA_KEY] = base64.b64encode(net.SerializeToString()).decode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_without, "is a YOLACT\\+\\+ by its spec, but carries no mask-IoU network"),
        (_damaged, "mask-IoU network in .* is damaged"),
        (_cut, "can't open the mask-IoU network in"),
        (
            _of_another,
            "mask-IoU network in .* maps \\(99, 18\\) to \\(3,\\), its spec makes it \\(18, 18\\) to \\(3,\\)",
        ),
    ],
)
def test_a_file_whose_mask_iou_network_is_missing_or_wrong_is_refused(
    plus_native: Path, tmp_path: Path, edit: Callable[[dict[str, str]], None], message: str
) -> None:
    proto = onnx.load(str(plus_native))
    metadata = _metadata(plus_native)
    edit(metadata)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, str(tmp_path / "edited.onnx"))
    with pytest.raises(SpecError, match=message):
        Detector(tmp_path / "edited.onnx", device="cpu")


@pytest.mark.slow
def test_a_plus_checkpoint_on_disk_becomes_a_proven_onnx_of_the_form_asked_for(
    plus_model: Yolact, tmp_path: Path
) -> None:
    checkpoint, spec_file, output = tmp_path / "mine.pth", tmp_path / "mine.json", tmp_path / "mine.onnx"
    torch.save(plus_model.state_dict(), checkpoint)
    spec_file.write_text(SMALL_PLUS.to_json())
    result = export(checkpoint, output, spec=spec_file, max_batch=1, dcn="native")
    assert result.parity is not None
    assert result.parity.passed
    assert set(result.parity.max_abs_error) == {"loc", "conf", "mask_coeff", "proto", "mask_iou"}
    assert "DeformConv" in {node.op_type for node in onnx.load(str(output)).graph.node}
    assert _metadata(output)[SPEC_METADATA_KEY] == SMALL_PLUS.to_json()


def test_weights_load_into_the_mask_iou_network(plus_model: Yolact) -> None:
    loaded = LoadedCheckpoint(SMALL_PLUS, plus_model.state_dict(), (), Path("x"), "")
    rebuilt = build_model(loaded).get_submodule("maskiou_net")
    for name, tensor in plus_model.get_submodule("maskiou_net").state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], tensor)
