"""Claims about the kernels that hold for the kernels as they are and fall for the planted bugs of `mutants`.

Each check takes a `Build`, which compiles the kernels under test, and compares them with the NumPy reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from tests.emulator import checks_detect, checks_masks
from tests.emulator.emulator import REVERSE, Array
from tests.emulator.expectations import (
    CROSS,
    HALF,
    LOGITS,
    PADDED,
    SMALL,
    Build,
    coco_runs,
    expect_masks,
    expect_reference,
    heads,
    opencv_resize,
)
from tests.emulator.pipeline import At, Pipeline, aligned, garbage, run
from tests.emulator.unwritten import mark_written
from yolact_deploy.cuda.launches import Buffer
from yolact_deploy.cuda.program import BatchLayout, BatchProgram, ImageKind, ModelConstants, pack
from yolact_deploy.cuda.specialization import Geometry, Specialization


def preprocessing_is_opencvs_resize_then_ieee_arithmetic(build: Build) -> None:
    _expect_preprocessed(build, [(False, SMALL), (True, SMALL), (False, HALF)])


def a_padded_image_is_preprocessed_as_its_square(build: Build) -> None:
    _expect_preprocessed(build, [(False, PADDED), (True, PADDED)])


def _expect_preprocessed(build: Build, variants: Sequence[tuple[bool, Specialization]]) -> None:
    rng = np.random.default_rng(19)
    mean, std = np.array([123.68, 116.78, 103.94], np.float32), np.array([58.40, 57.12, 57.38], np.float32)
    colour = np.array([123.675, 116.28, 0.5], np.float32)
    colours = {
        f"{name}_{c}": float(value)
        for name, rgb in (("mean", mean), ("std", std), ("pad", colour))
        for c, value in zip("rgb", rgb, strict=True)
    }
    cases = [
        ((48, 64), 70),
        ((90, 110), 41),
        ((1, 1), 33),
        ((2, 300), 35),
        ((64, 64), 32),
        ((37, 37), 37),
        ((101, 53), 64),
    ]
    for (height, width), size in cases:
        for is_rgb, spec in variants:
            images = rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
            found = _preprocessed(build, spec, images, size, colours, is_rgb=is_rgb)
            canvas = np.full((3, *spec.canvas_hw((height, width)), 3), colour, np.float32)
            canvas[:, :height, :width] = images if is_rgb else images[..., ::-1]
            resized = np.stack([opencv_resize(image, size) for image in canvas])
            expected = ((resized - mean) / std).transpose(0, 3, 1, 2).astype(found.dtype)
            np.testing.assert_array_equal(found, expected)


def _preprocessed(
    build: Build, spec: Specialization, images: Array, size: int, colours: Mapping[str, float], *, is_rgb: bool
) -> Array:
    """Images of one size as the network's input: the last is on the device already, its rows further apart."""
    count, height, width = images.shape[:3]
    kinds = [ImageKind((height, width), is_rgb, on_device=number == count - 1) for number in range(count)]
    program = BatchProgram(ModelConstants(spec, size, 1, (1, 1), colours), BatchLayout(tuple(kinds)))
    block = pack(program.staging)
    staging = garbage({"staging": Buffer((block.nbytes,), np.dtype(np.uint8))})["staging"]
    _, *pixels = block.views(staging).values()
    for target, image in zip(pixels, images, strict=False):
        target[...] = image
        mark_written(target)
    pitched = np.zeros((height, width * 3 + 5), np.uint8)
    pitched[:, : width * 3] = images[-1].reshape(height, width * 3)
    output = garbage(program.model.network_buffers(count))["image"]
    address, on_device = cast(int, At(staging)), cast(int, At(aligned(pitched)))
    at = {"image": cast(int, At(output)), **block.at(address)}
    run(build(spec), program.preprocess(at))
    run(build(spec), [program.preprocess_on_device(at, count - 1, on_device, pitched.shape[1])])
    return output


def preprocessing_has_no_races(build: Build) -> None:
    images = np.random.default_rng(31).integers(0, 256, (2, 5, 9, 3), dtype=np.uint8)
    colours = {f"{name}_{c}": value for name, value in (("mean", 100.0), ("std", 50.0), ("pad", 0.0)) for c in "rgb"}
    _preprocessed(lambda spec: build(spec, "races"), SMALL, images, 40, colours, is_rgb=True)


def blocks_of_other_sizes_give_the_same(build: Build) -> None:
    """The geometry is said once: where Python launches other blocks, the kernels are compiled for them."""
    images = np.random.default_rng(29).integers(0, 256, (2, 31, 45, 3), dtype=np.uint8)
    colours = {f"{name}_{c}": value for name, value in (("mean", 100.0), ("std", 50.0), ("pad", 0.0)) for c in "rgb"}
    inputs = heads(29, SMALL, priors=150, batch=2, spread=60.0, rate=0.9)
    expected: list[Any] = []
    for geometry in (Geometry(), Geometry(16, 4, 3, 128, 64, 256, 128, 64)):
        spec = dataclasses.replace(SMALL, geometry=geometry)
        pipeline = Pipeline(build(spec), spec)
        masks = expect_masks(pipeline, expect_reference(pipeline, inputs, image_hw=(90, 300)), (90, 300))
        found = [_preprocessed(build, spec, images, 37, colours, is_rgb=True), *pipeline.dense(), pipeline.soft_masks()]
        assert pipeline.runs() == [[coco_runs(mask) for mask in image] for image in masks]
        for one, other in zip(found, expected, strict=bool(expected)):
            np.testing.assert_array_equal(one, other)
        expected = found


def no_two_threads_meet_without_a_barrier(build: Build) -> None:
    for spec in (SMALL, CROSS):
        for schedule in (0, REVERSE, 3):
            inputs = heads(20, spec, priors=70, spread=2.0, batch=2, proto_hw=(6, 5))
            pipeline = Pipeline(build(spec, "races"), spec, schedule)
            expect_masks(pipeline, expect_reference(pipeline, inputs, image_hw=(20, 33)), (20, 33))
            pipeline.dense()
            pipeline.runs()


def nothing_is_read_that_nobody_wrote(build: Build) -> None:
    """Where few of the candidates, detections and masks that there is room for are there."""
    for spec, size, rate in ((SMALL, (5, 7), 0.02), (CROSS, (9, 40), 0.04)):
        inputs = heads(37, spec, priors=90, batch=2, spread=3.0, proto_hw=(6, 5), rate=rate)
        pipeline = Pipeline(build(spec, "races"), spec)
        raws = expect_reference(pipeline, inputs, image_hw=size)
        assert all(0 < len(raw) < spec.max_out for raw in raws)
        expect_masks(pipeline, raws, size)
        for make in (pipeline.dense, pipeline.runs, pipeline.soft_masks):
            make()


def selection_by_radix_has_no_races(build: Build) -> None:
    inputs = heads(21, SMALL, priors=600, spread=60.0, levels=30, rate=0.95)
    expect_reference(Pipeline(build(SMALL, "races"), SMALL, REVERSE), inputs)


def softmax_has_no_races(build: Build) -> None:
    expect_reference(Pipeline(build(LOGITS, "races"), LOGITS, 3), heads(22, LOGITS, priors=40))


CHECKS: dict[str, Callable[[Build], None]] = {
    check.__name__: check
    for check in (
        checks_detect.confidence_exactly_at_the_threshold_is_dropped,
        checks_detect.a_row_with_nan_is_dropped_but_not_for_its_background,
        checks_detect.candidates_are_all_confident_priors_in_order,
        checks_detect.candidates_are_found_in_every_word,
        checks_detect.boxes_are_the_references_to_the_last_bit,
        checks_detect.softmax_is_the_references_to_the_last_bit,
        checks_detect.softmax_of_many_classes_adds_in_numpys_order,
        checks_detect.half_precision_heads_are_widened_exactly,
        checks_detect.iou_exactly_at_the_threshold_is_kept_and_nan_falls,
        checks_detect.iou_within_rounding_of_the_threshold_is_divided,
        checks_detect.boxes_apart_on_both_axes_do_not_overlap,
        checks_detect.a_suppressed_box_still_suppresses,
        checks_detect.ties_go_to_the_lower_class_then_the_lower_prior,
        checks_detect.both_zeros_are_equal,
        checks_detect.every_higher_box_of_the_list_suppresses,
        checks_detect.more_candidates_than_are_sorted_at_once,
        checks_detect.the_best_of_many_lists,
        checks_detect.more_entries_than_registers_hold,
        checks_detect.cross_class_takes_each_priors_best_class,
        checks_detect.score_threshold_is_strict,
        checks_detect.integer_boxes_are_ordered_clamped_and_truncated,
        checks_detect.boxes_are_clipped_before_they_are_compared,
        checks_detect.integer_boxes_of_a_padded_image_end_at_its_border,
        checks_masks.masks_are_the_references_at_any_size,
        checks_masks.soft_masks_are_the_references_at_the_size_of_the_prototypes,
        checks_masks.a_soft_mask_of_exactly_one_half_is_background,
        checks_masks.interpolation_is_fused_and_horizontal_first,
        checks_masks.rows_within_rounding_of_one_half_are_looked_at_one_by_one,
        checks_masks.images_smaller_than_their_prototypes_have_the_references_masks,
        checks_masks.boxes_that_are_nan_infinite_or_outside_have_the_references_masks,
        checks_masks.an_infinite_size_gives_a_nan_corner_and_no_mask,
        checks_masks.non_finite_prototypes_give_background,
        checks_masks.dense_masks_and_run_lengths_are_those_of_the_bits,
        checks_masks.run_lengths_are_of_every_row_and_column_a_mask_reaches,
        checks_masks.masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border,
        checks_masks.runs_beyond_the_buffer_are_counted_but_not_written,
        checks_masks.images_of_a_batch_can_have_their_own_sizes,
        preprocessing_is_opencvs_resize_then_ieee_arithmetic,
        a_padded_image_is_preprocessed_as_its_square,
        preprocessing_has_no_races,
        blocks_of_other_sizes_give_the_same,
        no_two_threads_meet_without_a_barrier,
        nothing_is_read_that_nobody_wrote,
        selection_by_radix_has_no_races,
        softmax_has_no_races,
    )
}
