from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from exporters.checkpoints.configs import published_spec
from tests.emulator.expectations import opencv_resize
from tests.goldens import SHAPES_SPEC, golden_image
from yolact_deploy.cuda.launches import (
    ARGUMENTS,
    mask_buffers,
    mask_launch,
    mask_tile,
    result_buffers,
    scratch_buffers,
)
from yolact_deploy.cuda.specialization import Specialization, compile_options, kernel_source, specialize
from yolact_deploy.errors import DeviceError, SpecError
from yolact_deploy.reference.images import preprocess
from yolact_deploy.reference.mask_sources import unpack_mask_words
from yolact_deploy.spec import ModelSpec

COCO = Specialization(num_classes=80, num_coeff=32)
TINY = (
    64  # images of fewer pixels are resized by OpenCV without fused multiply-adds at some of their columns, which only
)
SHORT_COLOUR = (123.5, 116.25, 0.5)  # a colour of few bits does not show, as no sum of it is rounded there
C_KINDS = {"int": "int32", "unsigned": "uint32", "long long": "int64", "float": "float32"}


def test_arguments_are_those_of_the_kernels_in_their_order() -> None:
    source = re.sub(r"//.*", "", kernel_source())
    declared = {}
    for name, parameters in re.findall(r'extern "C" __global__ void __launch_bounds__\(\w+\) (\w+)\(([^)]*)\)', source):
        kinds = []
        for parameter in parameters.split(","):
            c_type, parameter_name = re.fullmatch(r"\s*(?:const )?(.*?)\s*(\w+)\s*", parameter, re.DOTALL).groups()  # type: ignore[union-attr]
            kinds.append((parameter_name, "pointer" if "*" in c_type else C_KINDS[c_type]))
        declared[name] = tuple(kinds)
    assert declared == ARGUMENTS


def test_every_definition_that_the_sources_name_is_given() -> None:
    given = set(COCO.definitions())
    listed = re.findall(r"^//   ((?:[A-Z0-9_]+, )*[A-Z0-9_]+)  ", kernel_source(), re.MULTILINE)
    assert {name for names in listed for name in names.split(", ")} == given
    assert "-DNUM_CLASSES=80" in compile_options(COCO, "sm_90")
    assert "#include" not in kernel_source()


def test_the_specialization_of_a_model_is_its_spec() -> None:
    spec = ModelSpec.from_file(SHAPES_SPEC)
    found = specialize(spec, nms="cross_class", fp16_tensors={"image": True, "conf": True})
    assert found == Specialization(
        spec.num_classes, spec.num_prototypes, cross_class=True, conf_fp16=True, input_fp16=True
    )
    assert (found.lists, found.max_out) == (1, 200)
    assert specialize(dataclasses.replace(spec, conf_activation="logits")).conf_logits
    assert (found.pad, found.clip_boxes) == (False, False)
    assert specialize(published_spec("yolact_minimal_res50_coco")).pad
    assert specialize(published_spec("mmdet_yolact_r50")).clip_boxes


def test_a_padded_image_is_the_top_left_of_a_square() -> None:
    padded = dataclasses.replace(COCO, pad=True)
    assert [padded.canvas_hw(hw) for hw in ((30, 40), (40, 30), (1, 1))] == [(40, 40), (40, 40), (1, 1)]
    assert COCO.canvas_hw((30, 40)) == (30, 40)


@pytest.mark.parametrize(
    "sizes",
    [{"top_k": 2000}, {"max_detections": 0}, {"num_classes": 0}, {"num_classes": 5000}, {"num_coeff": 0}],
)
def test_sizes_that_do_not_fit_a_block_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=str(next(iter(sizes.values())))):
        dataclasses.replace(COCO, **sizes)


def test_traditional_nms_and_unknown_tensors_are_refused() -> None:
    spec = ModelSpec.from_file(SHAPES_SPEC)
    with pytest.raises(SpecError, match="traditional"):
        specialize(spec, nms="traditional")
    with pytest.raises(SpecError, match="masks"):
        specialize(spec, fp16_tensors={"masks": True})


def test_buffers_of_a_batch_are_as_large_as_said() -> None:
    scratch, result = scratch_buffers(COCO, 19248, 2), result_buffers(COCO, 2)
    assert scratch["candidate_scores"].shape == (2, 80, 19248)
    assert scratch["kept_words"].nbytes == 2 * 602 * 4
    assert result["coeff"].shape == (2, 100, 32)
    assert mask_buffers(COCO, (1080, 1920), 1, 100_000)["mask_words"].nbytes == 100 * 1080 * 240
    cross = dataclasses.replace(COCO, cross_class=True)
    assert scratch_buffers(cross, 19248, 1)["candidate_scores"].shape == (1, 1, 19248)
    assert result_buffers(cross, 1)["scores"].shape == (1, 200)


def test_bits_are_little_endian_in_whole_words() -> None:
    words = np.zeros((2, 2), np.uint32)
    words[1, 1] = 0b101  # pixels 32 and 34 of the second row
    assert np.argwhere(unpack_mask_words(words, 40)).tolist() == [[1, 32], [1, 34]]


@pytest.mark.parametrize(
    "image_hw",
    [
        (1, 1),
        (3, 10),
        (8, 32),
        (11, 32),
        (18, 32),
        (30, 40),
        (480, 640),
        (550, 550),
        (1080, 1920),
        (4000, 5000),
        (2, 4000),
    ],
)
@pytest.mark.parametrize("proto_hw", [(138, 138), (175, 175), (272, 272), (16, 16), (1, 700)])
@pytest.mark.parametrize("pad", [False, True], ids=["stretch", "pad"])
def test_tiles_fit_in_shared_memory(image_hw: tuple[int, int], proto_hw: tuple[int, int], pad: bool) -> None:
    specialization = dataclasses.replace(COCO, pad=pad)
    launch = mask_launch(specialization, proto_hw, image_hw, images=3, blocks=100)
    static_bytes = 4 * (specialization.max_out + 1) + 96  # where the tiles of each detection begin, and a tile
    assert launch.shared_bytes + static_bytes <= 48 * 1024
    assert launch.grid == (34, 3, 1)
    tile = mask_tile(specialization, proto_hw, image_hw)
    assert tile["tile_rows"] >= 1
    assert tile["tile_warps"] in (1, 2, 4, 8)


def test_masks_of_more_words_than_32_bits_count_are_refused() -> None:
    assert mask_buffers(COCO, (36_000, 36_000), 1, 1)["mask_words"].nbytes < 4 << 32
    with pytest.raises(DeviceError, match=r"100 masks of 38000x38000 .* device=\"cpu\""):
        mask_buffers(COCO, (38_000, 38_000), 1, 1)


@pytest.mark.parametrize(
    "pad_rgb", [None, (123.68, 116.78, 103.94), SHORT_COLOUR], ids=["stretch", "pad", "pad with a short colour"]
)
def test_the_kernels_resize_is_that_of_the_runtime(pad_rgb: tuple[float, float, float] | None) -> None:
    """On x86-64, where OpenCV's wheels compute with IPP; elsewhere the last bits of OpenCV are its platform's."""
    cv2 = pytest.importorskip("cv2")
    if not cv2.ipp.useIPP():
        pytest.skip("this OpenCV does not compute with IPP")
    spec = ModelSpec.from_file(SHAPES_SPEC)
    if pad_rgb is not None:
        padded = dataclasses.replace(spec.preprocess, resize="pad", pad_rgb=pad_rgb)
        spec = dataclasses.replace(spec, preprocess=padded)
    mean, std = np.array(spec.preprocess.mean_rgb, np.float32), np.array(spec.preprocess.std_rgb, np.float32)
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
    for image in (
        golden_image(0),
        golden_image(1),
        noise[:, :701],
        noise[:3, :5],
        noise[:1, :1],
        noise[: 2 * spec.input_size, : 2 * spec.input_size],
    ):
        if pad_rgb not in (None, SHORT_COLOUR) and max(image.shape[:2]) < TINY:
            continue
        pixels = image[..., ::-1]
        if pad_rgb is not None:
            side = max(image.shape[:2])
            pixels = np.full((side, side, 3), pad_rgb, np.float32)
            pixels[: image.shape[0], : image.shape[1]] = image[..., ::-1]
        resized = opencv_resize(pixels, spec.input_size)
        expected = ((resized - mean) / std).transpose(2, 0, 1)
        np.testing.assert_array_equal(preprocess([image], spec)[0], expected)
