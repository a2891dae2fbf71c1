"""Claims about masks and their run lengths."""

from __future__ import annotations

import numpy as np

from tests.emulator.expectations import (
    PADDED,
    SMALL,
    WIDE,
    Build,
    coco_runs,
    expect_detections,
    expect_masks,
    expect_reference,
    heads,
)
from tests.emulator.pipeline import Pipeline, garbage
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.masks import PrototypeMasks, prototype_masks
from yolact_deploy.reference.postprocess import detect


def masks_are_the_references_at_any_size(build: Build) -> None:
    sizes = [(1, 1), (45, 61), (130, 300), (5, 7), (64, 128), (3, 520), (200, 3)]
    for seed, (image_hw, proto_hw) in enumerate(
        zip(sizes, [(9, 7), (16, 16), (12, 40), (33, 35), (1, 1), (7, 60), (50, 2)], strict=True)
    ):
        inputs = heads(seed, WIDE, priors=12, batch=2, proto_hw=proto_hw, spread=1.2)
        pipeline = Pipeline(build(WIDE), WIDE, schedule=seed % 3)
        raws = expect_reference(pipeline, inputs, image_hw=image_hw, score_threshold=0.9)
        expect_masks(pipeline, raws, image_hw)
        expect_masks(pipeline, raws, image_hw, crop=False)


def soft_masks_are_the_references_at_the_size_of_the_prototypes(build: Build) -> None:
    inputs = heads(25, WIDE, priors=12, batch=2, proto_hw=(19, 23), spread=1.2)
    pipeline = Pipeline(build(WIDE), WIDE)
    raws = expect_reference(pipeline, inputs, score_threshold=0.9)
    for crop in (True, False):
        for found, raw in zip(pipeline.soft_masks(crop=crop), raws, strict=True):
            expected = prototype_masks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, crop=crop)
            np.testing.assert_array_equal(found[: len(raw)], expected)
            assert not found[len(raw) :].any()


def a_soft_mask_of_exactly_one_half_is_background(build: Build) -> None:
    inputs = heads(12, SMALL, priors=5, spread=1.0)
    inputs["proto"][...] = 0
    pipeline = Pipeline(build(SMALL), SMALL)
    raws = expect_reference(pipeline, inputs)
    assert len(raws[0]) > 0
    assert not expect_masks(pipeline, raws, (31, 17), crop=False)[0].any()


def interpolation_is_fused_and_horizontal_first(build: Build) -> None:
    """Neighbours of opposite logits: half way between them a soft mask is within a rounding or two of 0.5."""
    spec = Specialization(num_classes=1, num_coeff=1)
    for seed in range(2):
        inputs = heads(13, spec, priors=3, proto_hw=(40, 40), rate=1.0)
        inputs["conf"][..., 1] = 0.5
        inputs["mask_coeff"][...] = 1
        logits = np.random.default_rng(seed).uniform(-3, 3, (40, 1)) * (-1.0) ** np.arange(40)
        inputs["proto"][0, :, :, 0] = logits.T if seed else logits
        pipeline = Pipeline(build(spec), spec)
        for image_hw in ((60, 60), (60, 140), (140, 60), (220, 220)):
            expect_masks(pipeline, expect_reference(pipeline, inputs, image_hw=image_hw), image_hw, crop=False)


def rows_within_rounding_of_one_half_are_looked_at_one_by_one(build: Build) -> None:
    """Pairs of rows of cells a few units of rounding from one half: what is interpolated between them neither rises nor falls
    steadily."""
    spec = Specialization(num_classes=1, num_coeff=1)
    inputs = heads(13, spec, priors=3, proto_hw=(6, 33 * 32), rate=1.0)
    inputs["conf"][..., 1] = 0.5
    inputs["mask_coeff"][...] = 1
    upper, lower = np.meshgrid(np.arange(-16, 17), np.arange(-16, 17))
    differ = upper != lower  # a lane with equal rows would send its whole warp row by row
    inputs["proto"][0, ::2, :, 0] = upper[differ] * 2.0**-23
    inputs["proto"][0, 1::2, :, 0] = lower[differ] * 2.0**-23
    pipeline = Pipeline(build(spec), spec)
    for image_hw in ((75, 1056), (343, 1056)):
        expect_masks(pipeline, expect_reference(pipeline, inputs, image_hw=image_hw), image_hw, crop=False)


def images_smaller_than_their_prototypes_have_the_references_masks(build: Build) -> None:
    """Tiles of few pixels reach many cells, more than shared memory has room for."""
    inputs = heads(14, SMALL, priors=12, proto_hw=(175, 175), spread=1.2)
    pipeline = Pipeline(build(SMALL), SMALL)
    for image_hw in ((8, 32), (3, 10), (18, 32), (1, 1)):
        raws = expect_reference(pipeline, inputs, image_hw=image_hw)
        for crop in (True, False):
            expect_masks(pipeline, raws, image_hw, crop=crop)
    inputs = heads(14, SMALL, priors=3, proto_hw=(100, 9), spread=1.2)  # more rows of cells than a warp has lanes
    pipeline = Pipeline(build(SMALL), SMALL)
    raws = expect_reference(pipeline, inputs, image_hw=(40, 200))
    expect_masks(pipeline, raws, (40, 200), crop=False)


def boxes_that_are_nan_infinite_or_outside_have_the_references_masks(build: Build) -> None:
    inputs = heads(14, SMALL, priors=7, spread=1.0, rate=1.0)
    inputs["conf"][0, :, 1:] = (np.arange(7, dtype=np.float32)[::-1, None] + 1) / 10
    inputs["proto"][...] = 50
    inputs["mask_coeff"][...] = 1
    inputs["loc"][...] = 0
    inputs["priors"][:] = [
        [1.5, 0.5, 0.2, 0.2],
        [-2, 0.5, 0.5, 0.5],
        [0.3, 0.3, 0.1, 0.1],
        [0.7, 0.7, -0.2, 0.1],
        [0.2, 1.13, 0.1, 0.2],
        [0, 0, np.inf, np.inf],
        [np.nan, 0.5, 0.5, 0.5],
    ]
    spec = Specialization(num_classes=3, num_coeff=4, top_k=20, max_detections=20)
    pipeline = Pipeline(build(spec), spec)
    for image_hw in ((20, 20), (37, 41)):
        raws = expect_reference(pipeline, inputs, image_hw=image_hw)
        expect_masks(pipeline, raws, image_hw)


def an_infinite_size_gives_a_nan_corner_and_no_mask(build: Build) -> None:
    inputs = heads(14, SMALL, priors=1, rate=1.0)
    inputs["priors"][:] = [0.5, 0.5, np.inf, np.inf]
    inputs["loc"][...] = -1
    inputs["proto"][...] = 50
    pipeline = Pipeline(build(SMALL), SMALL)
    raws = expect_reference(pipeline, inputs, score_threshold=0.0)
    assert np.isnan(raws[0].boxes_xyxy[0]).tolist() == [False, False, True, True]
    expect_masks(pipeline, raws, (20, 20))


def non_finite_prototypes_give_background(build: Build) -> None:
    inputs = heads(15, WIDE, priors=10, rate=1.0)
    inputs["proto"][0, 3, 3, 0] = np.nan
    inputs["proto"][0, 5, 2, 1] = np.inf
    inputs["mask_coeff"][0, :, 1] = 1
    pipeline = Pipeline(build(WIDE), WIDE)
    with np.errstate(invalid="ignore"):
        expect_masks(pipeline, expect_reference(pipeline, inputs), (45, 61))
        inputs["proto"][...], inputs["mask_coeff"][...] = 1, 1  # all above one half
        inputs["proto"][0, 4, 3, 0] = np.nan
        expect_masks(pipeline, expect_reference(pipeline, inputs), (45, 61), crop=False)


def dense_masks_and_run_lengths_are_those_of_the_bits(build: Build) -> None:
    for image_hw in ((45, 61), (7, 300), (1, 1), (33, 64)):
        inputs = heads(16, SMALL, priors=30, batch=2, spread=1.0)
        inputs["mask_coeff"][0, :20] = 1  # masks that touch all borders
        pipeline = Pipeline(build(SMALL), SMALL)
        raws = expect_reference(pipeline, inputs, image_hw=image_hw)
        for crop in (True, False):
            masks = expect_masks(pipeline, raws, image_hw, crop=crop)
            dense, runs = pipeline.dense(), pipeline.runs()
            for i, raw in enumerate(raws):
                n = len(raw)
                np.testing.assert_array_equal(dense[i][:n], masks[i])
                assert runs[i] == [coco_runs(mask) for mask in masks[i]]


def run_lengths_are_of_every_row_and_column_a_mask_reaches(build: Build) -> None:
    """Masks that fill their boxes, which begin and end anywhere: also at the borders, and in one cell."""
    spec = Specialization(num_classes=1, num_coeff=1, top_k=40, max_detections=40)
    inputs = heads(28, spec, priors=40, proto_hw=(8, 9), rate=1.0)
    rng = np.random.default_rng(28)
    inputs["proto"][...], inputs["mask_coeff"][...], inputs["loc"][...] = 50, 1, 0
    inputs["conf"][0, :, 1] = np.linspace(0.9, 0.3, 40)
    inputs["priors"][:] = rng.integers(0, 19, (40, 4)) / [18, 16, 36, 32]
    inputs["priors"][:4] = [[0.5, 0.9, 0.2, 0.1], [0.5, 0.1, 0.2, 0.1], [0.9, 0.5, 0.1, 0.2], [0.1, 0.9, 0.1, 0.1]]
    pipeline = Pipeline(build(spec), spec)
    for image_hw in ((45, 300), (300, 45), (5, 4), (1, 1)):
        raws = expect_reference(pipeline, inputs, image_hw=image_hw)
        for crop in (True, False):
            masks = expect_masks(pipeline, raws, image_hw, crop=crop)
            assert pipeline.runs()[0] == [coco_runs(mask) for mask in masks[0]]


def masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border(build: Build) -> None:
    sizes = [(45, 61), (130, 300), (300, 130), (3, 520), (200, 3), (1, 1), (1, 40), (40, 1), (64, 64)]
    protos = [(9, 7), (16, 16), (12, 40), (33, 35), (50, 2), (7, 60), (9, 9), (5, 6), (8, 8)]
    for seed, (image_hw, proto_hw) in enumerate(zip(sizes, protos, strict=True)):
        inputs = heads(seed, PADDED, priors=12, batch=2, proto_hw=proto_hw, spread=1.2)
        inputs["mask_coeff"][0, :6] = 1  # boxes that are filled, also where they leave the image
        pipeline = Pipeline(build(PADDED), PADDED, schedule=seed % 3)
        raws = expect_reference(pipeline, inputs, image_hw=image_hw)
        for crop in (True, False):
            masks = expect_masks(pipeline, raws, image_hw, crop=crop)
            dense, runs = pipeline.dense(), pipeline.runs()
            for i, raw in enumerate(raws):
                n = len(raw)
                np.testing.assert_array_equal(dense[i][:n], masks[i])
                assert runs[i] == [coco_runs(mask) for mask in masks[i]]


def runs_beyond_the_buffer_are_counted_but_not_written(build: Build) -> None:
    inputs = heads(17, SMALL, priors=30, spread=1.0)
    pipeline = Pipeline(build(SMALL), SMALL)
    raws = expect_reference(pipeline, inputs)
    expect_masks(pipeline, raws, (45, 61))
    whole = pipeline.runs()[0]
    total = sum(map(len, whole))
    capacity = total - 3
    space = garbage({"runs": Buffer((total + 9,), np.dtype(np.uint32))})["runs"]
    beyond = space[capacity:].copy()
    pipeline.write_runs(space[:capacity])
    assert int(pipeline.arrays["run_start"][0, -1]) == total
    np.testing.assert_array_equal(space[:capacity], np.concatenate(whole)[:capacity])
    np.testing.assert_array_equal(space[capacity:], beyond)


def images_of_a_batch_can_have_their_own_sizes(build: Build) -> None:
    inputs = heads(18, SMALL, priors=30, batch=3, spread=1.0)
    hws = [(20, 30), (45, 61), (11, 9)]
    pipeline = Pipeline(build(SMALL), SMALL)
    found = pipeline.detect(**inputs, image_hws=hws)
    raws = detect(**inputs, top_k=SMALL.top_k, max_detections=SMALL.max_detections)
    every_mask = pipeline.masks_of(hws)
    dense, runs = pipeline.dense(), pipeline.runs()
    for i, (hw, raw) in enumerate(zip(hws, raws, strict=True)):
        expect_detections(found[i], raw, hw)
        masks = every_mask[i]
        np.testing.assert_array_equal(
            masks, PrototypeMasks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, hw, crop=True).dense()
        )
        np.testing.assert_array_equal(dense[i][: len(raw)], masks)
        assert runs[i] == [coco_runs(mask) for mask in masks]
