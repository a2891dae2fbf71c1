"""Checkpoints of other trainers compute here what they compute there: scores, boxes and masks of the same image."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model, load_checkpoint
from exporters.checkpoints.configs import OTHER_TRAINERS, published_spec
from exporters.matching import detect_heads
from exporters.onnx_export import export_onnx
from tests.unit.exporters import trainer_models as theirs
from yolact_deploy import Detector
from yolact_deploy.reference.detections import Detections
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.postprocess import assemble_masks, detect, make_priors
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import BackboneSpec, HeadSpec, ModelSpec, PriorsSpec

Saved = Callable[[str], tuple[nn.Module, LoadedCheckpoint]]
BASE_SIZES = (2, 4, 8, 16, 32)  # of mmdetection, times 3
SCALES = (6, 12, 24, 48, 96)
IMAGE_HW = (90, 130)


def _small(config: str, input_size: int) -> ModelSpec:
    base = published_spec(config)
    width = theirs.WIDTH
    layers = ((width, 3),) * 3 + ((None, -2), (width, 3), (theirs.PROTOTYPES, 1))
    return dataclasses.replace(
        base,
        name="small",
        input_size=input_size,
        backbone=BackboneSpec("resnet", (1, 1, 1, 1), (1, 2, 3)),
        class_names=tuple("abcde"),
        category_ids=(1, 2, 3, 4, 5),
        fpn=dataclasses.replace(base.fpn, channels=width),
        protonet=dataclasses.replace(base.protonet, layers=layers),
        head=HeadSpec(extra_layers=((width, 3),)),
        priors=dataclasses.replace(base.priors, scales=tuple((scale,) for scale in SCALES)),
    )


MMDETECTION = _small("mmdet_yolact_r50", 130)
YOLACT_MINIMAL = _small("yolact_minimal_res50_coco", 128)
YOLACT_EDGE = _small("yolact_edge_resnet50", 130)
_MAKERS: dict[str, tuple[ModelSpec, Callable[[], nn.Module]]] = {
    "mmdetection 2": (MMDETECTION, lambda: theirs.Mmdetection(2)),
    "mmdetection 3": (MMDETECTION, lambda: theirs.Mmdetection(3)),
    "Yolact_minimal": (YOLACT_MINIMAL, theirs.YolactMinimal),
    "YolactEdge": (YOLACT_EDGE, theirs.YolactEdge),
    "YolactEdge video": (YOLACT_EDGE, lambda: theirs.YolactEdge(video=True)),
}


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (9, 13, 3)).repeat(10, 0).repeat(10, 1)
    picture: npt.NDArray[np.uint8] = np.clip(blocks + random.integers(-20, 20, (*IMAGE_HW, 3)), 0, 255).astype(np.uint8)
    return picture


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The trainer's model and its checkpoint, read."""

    @functools.cache
    def save(name: str) -> tuple[nn.Module, LoadedCheckpoint]:
        spec, make = _MAKERS[name]
        model, folder = make().eval().requires_grad_(False), tmp_path_factory.mktemp("trainer")
        theirs.randomise(model, seed=11)
        torch.save({"meta": {"epoch": 4}, "state_dict": model.state_dict()}, folder / "epoch_4.pth")
        (folder / "small.json").write_text(spec.to_json())
        return model, load_checkpoint(folder / "epoch_4.pth", spec_file=folder / "small.json")

    return save


def _ours(loaded: LoadedCheckpoint, batch: npt.NDArray[np.float32], score_threshold: float = 0.0) -> Detections:
    spec = loaded.spec
    with torch.inference_mode():
        heads = HeadTensors(*(tensor.numpy() for tensor in build_model(loaded)(torch.from_numpy(batch))))
    raw = detect_heads(heads, spec)
    return assemble_masks(raw, IMAGE_HW, score_threshold=score_threshold, resize=spec.preprocess.resize)


@pytest.mark.parametrize("name", _MAKERS)
def test_the_mapped_heads_are_the_trainers(name: str, saved: Saved, image: npt.NDArray[np.uint8]) -> None:
    model, loaded = saved(name)
    batch = torch.from_numpy(preprocess([image], loaded.spec))
    heads: theirs.Heads = model.heads(batch)  # type: ignore[operator]
    loc, conf, mask_coeff, proto = (tensor[0] for tensor in build_model(loaded)(batch))
    classes = heads.classes.softmax(1)
    if name.startswith("mmdetection"):
        classes = classes.roll(1, dims=1)  # background last
    for ours, expected in (
        (loc, heads.boxes),
        (conf, classes),
        (mask_coeff, heads.coefficients),
        (proto, heads.prototypes),
    ):
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)  # two orders of float32 sums


@pytest.mark.parametrize("name", _MAKERS)
def test_the_detections_are_the_trainers(name: str, saved: Saved, image: npt.NDArray[np.uint8]) -> None:
    model, loaded = saved(name)
    batch = preprocess([image], loaded.spec)
    of_mmdetection = name.startswith("mmdetection")
    sizes = BASE_SIZES if of_mmdetection else SCALES
    expected: theirs.Found = model.detect(torch.from_numpy(batch), IMAGE_HW, sizes)  # type: ignore[operator]
    # mmdetection drops what suppression leaves at 0.05 and below; the original fills up with it
    found = _ours(loaded, batch, score_threshold=0.05 if of_mmdetection else 0.0)
    assert len(found) == len(expected.scores) > 20
    assert len(set(found.class_ids.tolist())) > 1
    np.testing.assert_array_equal(found.class_ids, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    height, width = found.canvas_hw or IMAGE_HW
    np.testing.assert_allclose(found.boxes_relative * [width, height, width, height], expected.boxes, atol=0.02)
    assert 0 < found.masks.mean() < 1
    assert (found.masks != expected.masks.numpy()).mean() < 1e-4  # soft values at 0.5


def test_a_padded_image_has_its_pixels_in_the_top_left_and_the_mean_elsewhere() -> None:
    image = np.zeros((30, 60, 3), np.uint8)
    image[:] = (10, 20, 30)
    planes = preprocess([image], YOLACT_MINIMAL)[0]
    mean, std = np.array(YOLACT_MINIMAL.preprocess.mean_rgb), np.array(YOLACT_MINIMAL.preprocess.std_rgb)
    np.testing.assert_allclose(planes[:, :62].mean((1, 2)), (np.array([30, 20, 10]) - mean) / std, rtol=1e-5)
    np.testing.assert_allclose(planes[:, 66:], 0, atol=1e-6)
    tall = preprocess([image.transpose(1, 0, 2)], YOLACT_MINIMAL)[0]
    np.testing.assert_array_equal(tall, planes.transpose(0, 2, 1))


def test_a_square_image_is_not_padded(image: npt.NDArray[np.uint8]) -> None:
    square = image[:90, :90]
    stretched = dataclasses.replace(YOLACT_MINIMAL, preprocess=published_spec("yolact_base").preprocess)
    np.testing.assert_array_equal(preprocess([square], YOLACT_MINIMAL), preprocess([square], stretched))


def test_boxes_and_masks_of_a_padded_image_end_at_its_border(saved: Saved, image: npt.NDArray[np.uint8]) -> None:
    _, loaded = saved("Yolact_minimal")
    found = _ours(loaded, preprocess([image], loaded.spec))
    beyond = found.boxes_relative[:, 3] * 130 > 90
    assert beyond.any()
    assert (found.boxes_xyxy[beyond, 3] == 90).all()
    assert found.masks.shape[1:] == IMAGE_HW
    assert found.canvas_hw == (130, 130)
    from pycocotools import mask as coco

    for mask, rle in zip(found.masks, found.rle(), strict=True):
        np.testing.assert_array_equal(coco.decode(rle), mask)


@pytest.mark.slow
def test_a_mapped_model_exports_and_computes_the_same(
    saved: Saved, tmp_path: Path, image: npt.NDArray[np.uint8]
) -> None:
    import onnxruntime

    _, loaded = saved("Yolact_minimal")  # of the mapped ones the only one with an operator that others do not have
    export_onnx(build_model(loaded), loaded.spec, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    batch = preprocess([image], loaded.spec)
    with torch.inference_mode():
        expected: list[Tensor] = list(build_model(loaded)(torch.from_numpy(batch)))
    for found, wanted in zip(session.run(None, {"image": batch}), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-4)
    by_detector = Detector(tmp_path / "model.onnx", device="cpu")(image)
    by_hand = _ours(loaded, batch)
    assert by_detector.canvas_hw == by_hand.canvas_hw == (130, 130)
    np.testing.assert_allclose(by_detector.boxes_relative[:20], by_hand.boxes_relative[:20], atol=1e-4)
    assert (by_detector.masks[:20] != by_hand.masks[:20]).mean() < 1e-4  # soft values at 0.5
    stored = session.get_modelmeta().custom_metadata_map["yolact_deploy.spec"]
    assert ModelSpec.from_json(stored) == loaded.spec


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mmdetection 2", ["trainer mmdetection: recognised by neck.lateral_convs.0.conv.weight", "background"]),
        ("Yolact_minimal", ["trainer Yolact_minimal: recognised by fpn.pred_layers.0.0.weight"]),
        ("YolactEdge video", ["trainer YolactEdge: recognised by fpn_phase_1", "(flow_net, flow_net_pre_convs, spa)"]),
    ],
)
def test_notes_say_whose_checkpoint_it_is_and_what_was_done(name: str, fields: list[str], saved: Saved) -> None:
    notes = " ".join(saved(name)[1].notes)
    for field in fields:
        assert field in notes


@pytest.mark.parametrize("trainer", OTHER_TRAINERS)
def test_specs_of_other_trainers_round_trip_and_have_priors_inside_the_field_of_view(trainer: str) -> None:
    for spec in OTHER_TRAINERS[trainer].values():
        assert ModelSpec.from_json(spec.to_json()) == spec
        priors = make_priors(spec)
        assert priors.shape == (spec.num_priors, 4)
        assert ((priors[:, :2] > 0) & (priors[:, :2] < 1)).all()


def test_priors_of_mmdetection_are_its_anchors() -> None:
    spec = MMDETECTION
    anchors = torch.cat(list(theirs._mmdetection_anchors(spec.input_size, BASE_SIZES))) / spec.input_size
    priors = make_priors(spec)
    corners = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(corners, anchors.numpy(), atol=1e-6)


def test_boxes_are_cut_at_the_border_before_suppression_only_when_the_spec_says_so() -> None:
    # Whole, one is a third of the other; inside the image, they are the same box.
    priors = np.array([[0.0, 0.5, 0.4, 0.2], [-0.4, 0.5, 1.2, 0.2]], np.float32)
    conf = np.array([[[0.1, 0.9], [0.2, 0.8]]], np.float32)
    loc, coefficients, proto = (
        np.zeros((1, 2, 4), np.float32),
        np.zeros((1, 2, 1), np.float32),
        np.zeros((1, 2, 2, 1), np.float32),
    )
    assert len(detect(loc, conf, coefficients, proto, priors)[0]) == 2
    clipped = detect(loc, conf, coefficients, proto, priors, clip_boxes=True)[0]
    np.testing.assert_allclose(clipped.boxes_xyxy, [[0, 0.4, 0.2, 0.6]], atol=1e-6)


def test_a_spec_of_version_1_is_stretched_and_written_as_version_1_again() -> None:
    text = published_spec("yolact_base").to_json()
    assert '"schema_version": 1' in text
    assert "pad_rgb" not in text
    assert ModelSpec.from_json(text).preprocess.resize == "stretch"
    assert '"schema_version": 2' in YOLACT_MINIMAL.to_json()


def test_prior_ratios_of_a_cell_keep_their_order() -> None:
    assert MMDETECTION.priors.aspect_ratios[0] == (2.0, 1.0, 0.5)  # width to height; mmdetection counts the inverse
    assert PriorsSpec(((1,),), ((1,),)).use_square_anchors
