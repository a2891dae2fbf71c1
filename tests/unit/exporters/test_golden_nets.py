"""The eight published configurations against what the original computed, in PyTorch and through ONNX.

One test per configuration: making the weights and exporting them is what takes the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model
from exporters.checkpoints.configs import published_spec
from exporters.network.yolact import Yolact
from exporters.onnx_export import export_onnx
from tests import goldens
from yolact_deploy.artifacts.names import DcnForm
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.postprocess import assemble_masks, detect, make_priors, rescore_masks
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec, NmsMode

Array = npt.NDArray[Any]

HEAD_TOLERANCE = 1e-4  # absolute, the project's bar
# Activations inside reach 40, so their float32 steps are larger than those of the heads.
ACTIVATION_TOLERANCE = 1e-5  # of the largest value
# Boxes come from exp() of `loc`, and are relative to the image.
BOX_TOLERANCE = 1e-4
# Coordinates this near to a whole pixel may be truncated to either side of it.
PIXEL_MARGIN = 1e-2
COCO_DUMPS = ("yolact_resnet50", "yolact_resnet50_pascal", "yolact_plus_resnet50")
GOLDEN_NAMES: dict[NmsMode, str] = {"fast": "det_fast", "cross_class": "det_cross", "traditional": "det_trad"}


@pytest.mark.slow
@pytest.mark.parametrize("config", goldens.CONFIGS)
def test_network_and_detections_equal_the_originals(config: str, tmp_path: Path) -> None:
    spec, golden = published_spec(config), goldens.golden_net(config)
    model = _golden_model(config, spec, golden)
    image = _network_input(spec, golden)
    _assert_subsample_equals(image.numpy(), golden, "input", 1e-5)

    stages, levels = _record_features(model)
    with torch.inference_mode():
        in_torch = HeadTensors(*(tensor.numpy() for tensor in model(image)))
    for first, name, features in ((2, "C", stages), (3, "P", levels)):
        for number, feature in enumerate(features, start=first):
            largest = float(golden[f"{name}{number}.stats"][2])
            _assert_subsample_equals(feature.numpy(), golden, f"{name}{number}", ACTIVATION_TOLERANCE * largest)
    _assert_heads_equal(in_torch, golden)

    for form in get_args(DcnForm) if any(spec.backbone.dcn_blocks) else (None,):
        target = tmp_path / "net.onnx"
        export_onnx(model, spec, target, dcn=form or "auto")
        network = OnnxNetwork(target, device="cpu", threads=torch.get_num_threads())
        in_onnx = network.run(image.numpy())
        _assert_heads_equal(in_onnx, golden)
        for nms in get_args(NmsMode):
            found = _assert_detections_equal(in_onnx, spec, nms, golden)
            if network.mask_iou is not None:
                found = rescore_masks(found, network.mask_iou)
                _assert_mask_scores_equal(found, golden, GOLDEN_NAMES[nms])
            if nms == "fast" and config in COCO_DUMPS:
                _assert_dump_equal(found, spec, config, golden)


def _golden_model(config: str, spec: ModelSpec, golden: dict[str, Array]) -> Yolact:
    weights = goldens.golden_weights(config)
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.astype(np.float32).tobytes())
    assert digest.hexdigest() == str(golden["weights_sha256"])
    state = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
    return build_model(LoadedCheckpoint(spec, state, (), Path(config), ""))


def _network_input(spec: ModelSpec, golden: dict[str, Array]) -> Tensor:
    """As the original's FastBaseTransform: resized in float by PyTorch, before normalisation."""
    assert hashlib.sha256(goldens.golden_image(0).tobytes()).hexdigest() == str(golden["image_sha256"])
    bgr = torch.from_numpy(goldens.golden_image(0).astype(np.float32)).permute(2, 0, 1)[None]
    size = (spec.input_size, spec.input_size)
    rgb = F.interpolate(bgr, size, mode="bilinear", align_corners=False).flip(1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.preprocess.mean_rgb, spec.preprocess.std_rgb))
    return (rgb - mean) / std


def _record_features(model: Yolact) -> tuple[list[Tensor], list[Tensor]]:
    stages: list[Tensor] = []
    levels: list[Tensor] = []
    model.backbone.register_forward_hook(lambda _module, _inputs, output: stages.extend(output))
    model.fpn.register_forward_hook(lambda _module, _inputs, output: levels.extend(output))
    return stages, levels


def _assert_subsample_equals(array: Array, golden: dict[str, Array], name: str, tolerance: float) -> None:
    assert array.shape == tuple(golden[f"{name}.shape"])
    subsample = array.reshape(-1)[:: int(golden[f"{name}.stride"])]
    np.testing.assert_allclose(subsample, golden[f"{name}.sub"], rtol=0, atol=tolerance, err_msg=name)


def _assert_heads_equal(heads: HeadTensors, golden: dict[str, Array]) -> None:
    rows = golden["rows_idx"]
    for array, name in zip(heads, ("loc", "conf", "mask", "proto"), strict=True):
        _assert_subsample_equals(array, golden, name, HEAD_TOLERANCE)
        if name != "proto":
            np.testing.assert_allclose(array[0, rows], golden[f"rows_{name}"], rtol=0, atol=HEAD_TOLERANCE)


def _in_golden_order(raw: RawDetections, golden: dict[str, Array], name: str) -> Array:
    """Rows of `raw` as the original has them; only scores that are equal within the tolerance may have changed places."""
    keys = zip(golden[f"{name}.class"].tolist(), golden[f"{name}.prior_idx"].tolist(), strict=True)
    place = {key: row for row, key in enumerate(keys)}
    found = [place[key] for key in zip(raw.class_ids.tolist(), raw.prior_idx.tolist(), strict=True)]
    assert sorted(found) == list(range(len(place)))
    scores = golden[f"{name}.score"]
    np.testing.assert_allclose(scores[found], scores, rtol=0, atol=2 * HEAD_TOLERANCE)
    return np.argsort(found)


def _assert_detections_equal(heads: HeadTensors, spec: ModelSpec, nms: NmsMode, golden: dict[str, Array]) -> Detections:
    name = GOLDEN_NAMES[nms]
    rules = dataclasses.asdict(dataclasses.replace(spec.postprocess, nms=nms))
    (raw,) = detect(*heads, make_priors(spec), **rules, input_size=spec.input_size)
    raw = raw.take(_in_golden_order(raw, golden, name))
    np.testing.assert_array_equal(raw.prior_idx, golden[f"{name}.prior_idx"])
    np.testing.assert_array_equal(raw.class_ids, golden[f"{name}.class"])
    np.testing.assert_allclose(raw.scores, golden[f"{name}.score"], rtol=0, atol=HEAD_TOLERANCE)
    np.testing.assert_allclose(raw.boxes_xyxy, golden[f"{name}.box"], rtol=BOX_TOLERANCE, atol=BOX_TOLERANCE)

    height, width = (int(size) for size in golden["hw"])
    found = assemble_masks(raw, (height, width))
    exact = golden[f"{name}.box"] * np.array([width, height, width, height])
    near_whole_pixel = np.abs(exact - np.round(exact)) < PIXEL_MARGIN
    off = np.abs(found.boxes_xyxy - golden[f"{name}.post.box"])
    assert off[~near_whole_pixel].max(initial=0) == 0
    assert off.max(initial=0) <= 1

    # Pixels whose soft value is within 1e-3 of 0.5 in the original may fall on either side.
    undecided = golden[f"{name}.post.mask_border_1e-3"]
    areas = found.masks.sum(axis=(1, 2))
    assert (np.abs(areas - golden[f"{name}.post.mask_area"]) <= undecided).all()
    if f"{name}.post.masks_packed" in golden:
        packed = np.packbits(found.masks.reshape(len(raw), -1), axis=1)
        different = np.unpackbits(packed ^ golden[f"{name}.post.masks_packed"], axis=1).sum(axis=1)
        assert (different <= undecided).all()
    return found


def _assert_mask_scores_equal(rescored: Detections, golden: dict[str, Array], name: str) -> None:
    np.testing.assert_allclose(rescored.scores, golden[f"{name}.post.box_score"], rtol=0, atol=HEAD_TOLERANCE)
    recorded = golden[f"{name}.post.mask_score"]
    np.testing.assert_allclose(rescored.mask_scores, recorded, rtol=0, atol=HEAD_TOLERANCE)
    if f"{name}.post.display_score" in golden:
        displayed = np.sort(golden[f"{name}.post.display_score"])[::-1]
        np.testing.assert_allclose(rescored.by_mask_score().scores, displayed, rtol=0, atol=HEAD_TOLERANCE)


def _assert_dump_equal(found: Detections, spec: ModelSpec, config: str, golden: dict[str, Array]) -> None:
    """As the files the original writes for COCO's evaluation: boxes and masks in two lists, each with its own score."""
    dump = goldens.golden_dump(config)
    image_id = dump["bbox"][0]["image_id"]
    entries = dataclasses.replace(found, category_ids=spec.category_ids).to_coco(image_id)
    assert len(entries) == len(dump["bbox"]) == len(dump["mask"]) == len(found)
    for entry, box, mask in zip(entries, dump["bbox"], dump["mask"], strict=True):
        assert {entry["image_id"], box["image_id"], mask["image_id"]} == {image_id}
        assert entry["category_id"] == box["category_id"] == mask["category_id"]
        assert entry["bbox"] == box["bbox"]
        assert abs(entry["score"] - box["score"]) < HEAD_TOLERANCE
        assert abs(entry.get("mask_score", entry["score"]) - mask["score"]) < HEAD_TOLERANCE
    ours, theirs = (coco_mask.decode([entry["segmentation"] for entry in part]) for part in (entries, dump["mask"]))
    assert (np.count_nonzero(ours != theirs, axis=(0, 1)) <= golden["det_fast.post.mask_border_1e-3"]).all()
