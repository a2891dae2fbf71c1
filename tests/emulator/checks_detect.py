"""Claims about decoding, FastNMS and the choice of detections."""

from __future__ import annotations

import numpy as np

from tests.emulator.emulator import REVERSE
from tests.emulator.expectations import (
    CLIPPED,
    CROSS,
    HALF,
    LOGITS,
    MANY_LOGITS,
    PADDED,
    SMALL,
    WIDE,
    Build,
    detect_literal,
    expect_masks,
    expect_reference,
    heads,
    reference_softmax,
)
from tests.emulator.pipeline import Pipeline
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.reference.postprocess import decode, detect


def confidence_exactly_at_the_threshold_is_dropped(build: Build) -> None:
    at = np.float32(0.05)
    conf = np.zeros((1, 4, 4), np.float32)
    conf[0, :, 1] = [at, np.nextafter(at, np.float32(1)), np.nextafter(at, np.float32(0)), at]
    conf[0, :, 0] = 1  # the background does not count
    inputs = heads(0, SMALL, priors=4) | {"conf": conf}
    assert [len(raw) for raw in expect_reference(Pipeline(build(SMALL), SMALL), inputs)] == [3]


def a_row_with_nan_is_dropped_but_not_for_its_background(build: Build) -> None:
    conf = np.full((1, 40, 4), 0.5, np.float32)
    conf[0, 3, 2] = conf[0, 8, 1] = conf[0, 39, 3] = np.nan
    conf[0, 5] = [np.nan, 0.75, 0.75, 0.75]
    conf[0, 6, 1] = np.inf
    inputs = heads(1, SMALL, priors=40, spread=40.0) | {"conf": conf}
    expect_reference(Pipeline(build(SMALL), SMALL), inputs)


def candidates_are_all_confident_priors_in_order(build: Build) -> None:
    for priors in (1, 31, 32, 33, 70, 150):
        for seed in range(3):
            expect_reference(Pipeline(build(SMALL), SMALL), heads(seed, SMALL, priors=priors, batch=2, rate=0.3))
    inputs = heads(9, SMALL, priors=70)
    inputs["conf"][..., 1:] = 0
    assert [len(raw) for raw in expect_reference(Pipeline(build(SMALL), SMALL), inputs)] == [0]


def candidates_are_found_in_every_word(build: Build) -> None:
    """A warp of fast_nms looks at 32 words at a time: 520 words are more than a round of its 16 warps."""
    inputs = heads(24, SMALL, priors=520 * 32, rate=0.0)
    inputs["conf"][0, ::3300, 1:] = np.linspace(0.3, 0.9, 18).reshape(6, 3).astype(np.float32)
    expect_reference(Pipeline(build(SMALL), SMALL), inputs)


def boxes_are_the_references_to_the_last_bit(build: Build) -> None:
    spec = Specialization(num_classes=1, num_coeff=1, top_k=1024, max_detections=1024)
    rng = np.random.default_rng(2)
    inputs = heads(2, spec, priors=900, rate=1.0, spread=400.0)
    inputs["loc"] = (rng.standard_normal((1, 900, 4)) * rng.choice([1, 30, 500], (1, 900, 1))).astype(np.float32)
    inputs["loc"][0, :6] = [
        [np.nan] * 4,
        [np.inf] * 4,
        [-np.inf] * 4,
        [0, 0, 600, 0],
        [0, 0, -600, -515],
        [0, 0, -480, -519],
    ]
    inputs["priors"] = rng.random((900, 4)).astype(np.float32) * np.array([400, 400, 0.3, 0.3], np.float32)
    inputs["loc"][0, 6:200] = rng.uniform(
        [0, 0, -450, -530], [0, 0, -436, -430], (194, 4)
    )  # exp below the normal numbers
    inputs["priors"][6:200] = [0, 0, 1, 1]
    inputs["conf"][..., 1] = (0.1 + 0.8 * rng.permutation(900) / 900).astype(np.float32)
    pipeline = Pipeline(build(spec), spec)
    expect_reference(pipeline, inputs)
    every_box = pipeline.arrays["candidate_boxes"][0]  # also of those that fell
    np.testing.assert_array_equal(every_box, decode(inputs["loc"][0], inputs["priors"]))


def softmax_is_the_references_to_the_last_bit(build: Build) -> None:
    pipeline = Pipeline(build(LOGITS), LOGITS)
    inputs = heads(3, LOGITS, priors=500)
    inputs["conf"][0, 5, 7] = np.inf
    inputs["conf"][0, 6, 7] = np.nan
    inputs["conf"][0, 7, :] = -np.inf
    inputs["conf"][0, 8, 7] = -np.inf
    inputs["conf"][0, 9] = np.linspace(-104, 1, 81)
    expect_reference(pipeline, inputs)
    kept = np.flatnonzero(np.unpackbits(pipeline.arrays["kept_words"].view(np.uint8), bitorder="little"))
    scores = pipeline.arrays["candidate_scores"][0][:, kept]  # of every candidate, also beyond the best
    np.testing.assert_array_equal(scores.T, reference_softmax(inputs["conf"])[0, kept, 1:])


def softmax_of_many_classes_adds_in_numpys_order(build: Build) -> None:
    expect_reference(Pipeline(build(MANY_LOGITS), MANY_LOGITS), heads(4, MANY_LOGITS, priors=40))


def half_precision_heads_are_widened_exactly(build: Build) -> None:
    inputs = heads(5, HALF, priors=90)
    inputs["conf"] = np.random.default_rng(5).random(inputs["conf"].shape)
    for name in ("loc", "conf", "mask_coeff", "proto"):
        inputs[name] = inputs[name].astype(np.float16)
    inputs["conf"][0, :3, 1] = [6e-8, 65504, 0.05]  # subnormal, largest, and not 0.05f
    pipeline = Pipeline(build(HALF), HALF)
    expect_masks(pipeline, expect_reference(pipeline, inputs), (45, 61))


def iou_exactly_at_the_threshold_is_kept_and_nan_falls(build: Build) -> None:
    boxes = [(0.5, 0.5, 1, 1), (0.25, 0.5, 0.5, 1), (0.2, 0.5, 0.4, 1), (3, 3, 0, 0), (3, 3, 0, 0)]  # cx cy w h
    scores = [0.9, 0.8, 0.3, 0.7, 0.6]
    found = detect_literal(build, SMALL, boxes, scores)
    assert found.prior_idx.tolist() == [0, 1, 3]  # 2 overlaps 1 by 0.8; 3 and 4 are 0/0


def iou_within_rounding_of_the_threshold_is_divided(build: Build) -> None:
    """Pairs of boxes whose IoU is about the ratio of their widths, some units of rounding from the threshold, and one pair whose
    united area is less than zero."""
    spec = Specialization(num_classes=1, num_coeff=1, top_k=1024, max_detections=1024)
    places = [(0.0, 1600.0, -2.0, 1.0), (0.0, 1600.0, 1.0, 1.0)]
    for n, width in enumerate(np.random.default_rng(31).uniform(1, 2, 400)):
        places += [(0.0, 4.0 * n, width, 1.0), (0.0, 4.0 * n, 0.3 * width + (n % 9 - 4) * 2.0**-26, 1.0)]
    inputs = heads(0, spec, priors=len(places))
    inputs["loc"][...], inputs["priors"][:] = 0, places
    inputs["conf"][0] = np.linspace(0.9, 0.1, len(places))[:, None]
    found = Pipeline(build(spec), spec).detect(**inputs, image_hws=[(50, 50)], iou_threshold=0.3)[0]
    raw = detect(**inputs, top_k=1024, max_detections=1024, iou_threshold=0.3)[0]
    np.testing.assert_array_equal(found.prior_idx, raw.prior_idx)
    assert 0 < len(places) - len(raw) < 400


def boxes_apart_on_both_axes_do_not_overlap(build: Build) -> None:
    boxes = [(0.5, 0.5, 0.5, 0.5), (1.5, 1.5, 0.5, 0.5)]
    assert detect_literal(build, SMALL, boxes, [0.9, 0.8]).prior_idx.tolist() == [0, 1]


def a_suppressed_box_still_suppresses(build: Build) -> None:
    boxes = [(0.5, 0.5, 1, 1), (0.75, 0.5, 1, 1), (1.0, 0.5, 1, 1)]  # IoU of neighbours 0.6, of the outer ones 1/3
    assert detect_literal(build, SMALL, boxes, [0.9, 0.8, 0.7]).prior_idx.tolist() == [0]


def ties_go_to_the_lower_class_then_the_lower_prior(build: Build) -> None:
    for schedule in (0, REVERSE, 5):
        inputs = heads(6, SMALL, priors=90, levels=2, spread=60.0)
        expect_reference(Pipeline(build(SMALL), SMALL, schedule), inputs)


def both_zeros_are_equal(build: Build) -> None:
    spec = Specialization(num_classes=3, num_coeff=4, top_k=20, max_detections=20)
    inputs = heads(6, spec, priors=5, spread=60.0)
    inputs["conf"][0, :, 1:] = [0.5, 0, 0]
    inputs["conf"][0, ::2, 2] = -0.0
    expect_reference(Pipeline(build(spec), spec), inputs)


def every_higher_box_of_the_list_suppresses(build: Build) -> None:
    places = [(2.0 * i, 0.5, 1.0, 1.0) for i in range(200)]
    for lower, higher in ((60, 40), (150, 3), (199, 198), (100, 68), (64, 31)):
        places[lower] = places[higher]
    spec = Specialization(num_classes=3, num_coeff=4, max_detections=500)
    found = detect_literal(build, spec, places, [0.9 - i / 512 for i in range(200)])
    assert sorted({*range(200)} - {*found.prior_idx.tolist()}) == [60, 64, 100, 150, 199]


def more_candidates_than_are_sorted_at_once(build: Build) -> None:
    for levels in (3, 300, 100_000):
        inputs = heads(7, SMALL, priors=1300, levels=levels, spread=60.0, rate=0.8)
        expect_reference(Pipeline(build(SMALL), SMALL), inputs)
    spec = Specialization(num_classes=2, num_coeff=4)
    inputs = heads(7, spec, priors=1300, levels=50, rate=0.9)
    expect_reference(Pipeline(build(spec), spec), inputs)
    every = Specialization(num_classes=3, num_coeff=4, top_k=6, max_detections=18)  # what is taken is also found
    inputs = heads(7, every, priors=1300, levels=100_000, spread=60.0, rate=0.8)
    expect_reference(Pipeline(build(every), every), inputs)


def the_best_of_many_lists(build: Build) -> None:
    for levels in (4, 2000):
        inputs = heads(8, WIDE, priors=80, levels=levels, spread=90.0, rate=1.0, batch=2)
        expect_reference(Pipeline(build(WIDE), WIDE), inputs)


def more_entries_than_registers_hold(build: Build) -> None:
    """A thread of select_detections keeps 8 keys: the lists of 300 classes have more than its 1024 threads."""
    spec = Specialization(num_classes=300, num_coeff=1)
    expect_reference(Pipeline(build(spec), spec), heads(30, spec, priors=12, spread=90.0, rate=1.0))


def cross_class_takes_each_priors_best_class(build: Build) -> None:
    for seed in range(3):
        expect_reference(Pipeline(build(CROSS), CROSS), heads(seed, CROSS, priors=90, levels=6, batch=2, spread=5.0))


def score_threshold_is_strict(build: Build) -> None:
    inputs = heads(10, SMALL, priors=50, levels=8, spread=30.0)
    inputs["conf"] *= np.float32(0.9)
    for threshold in (0.0, float(np.float32(0.9) * np.float32(0.875)), 0.3, 2.0):
        expect_reference(Pipeline(build(SMALL), SMALL), inputs, score_threshold=threshold)
    scored = Pipeline(build(SMALL), SMALL).detect(**inputs, image_hws=[(9, 9)])
    level = float(scored[0].scores[0])
    assert (scored[0].scores == np.float32(level)).any()
    expect_reference(Pipeline(build(SMALL), SMALL), inputs, score_threshold=level)


def integer_boxes_are_ordered_clamped_and_truncated(build: Build) -> None:
    inputs = heads(11, SMALL, priors=60, spread=3.0, levels=1000)
    inputs["priors"] -= np.array([1, 1, 0.25, 0.25], np.float32)  # negative sizes and places
    raws = expect_reference(Pipeline(build(SMALL), SMALL), inputs, image_hw=(37, 100))
    assert len(raws[0]) == 5


def boxes_are_clipped_before_they_are_compared(build: Build) -> None:
    # whole, the second is a third of the first, or so; inside of the image they are the same box
    places = [(0.0, 0.5, 0.4, 0.2), (-0.4, 0.5, 1.2, 0.2), (0.5, 1.0, 0.2, 0.4), (0.5, 1.4, 0.2, 1.2)]
    assert detect_literal(build, SMALL, places, [0.9, 0.8, 0.7, 0.6]).prior_idx.tolist() == [0, 1, 2, 3]
    assert detect_literal(build, CLIPPED, places, [0.9, 0.8, 0.7, 0.6]).prior_idx.tolist() == [0, 2]
    inputs = heads(26, CLIPPED, priors=200, rate=1.0, spread=1.5)
    inputs["priors"][:, :2] -= np.float32(0.25)
    inputs["loc"][0, :4] = [[np.nan] * 4, [np.inf] * 4, [-np.inf] * 4, [0, 0, 600, 600]]
    inputs["loc"][0, 4], inputs["priors"][4] = 0, [0.5, 0.5, 1, 1]  # exactly the image
    pipeline = Pipeline(build(CLIPPED), CLIPPED)
    expect_reference(pipeline, inputs)
    boxes = decode(inputs["loc"][0], inputs["priors"])
    np.testing.assert_array_equal(pipeline.arrays["candidate_boxes"][0], np.clip(boxes, 0, 1))


def integer_boxes_of_a_padded_image_end_at_its_border(build: Build) -> None:
    inputs = heads(27, PADDED, priors=60, spread=3.0, levels=1000)
    inputs["priors"] -= np.array([1, 1, 0.25, 0.25], np.float32)
    for image_hw in ((37, 100), (100, 37), (1, 1), (1, 9), (50, 50)):
        expect_reference(Pipeline(build(PADDED), PADDED), inputs, image_hw=image_hw)
    inputs = heads(14, PADDED, priors=1, rate=1.0)
    inputs["priors"][:] = [0.5, 0.5, np.inf, np.inf]
    inputs["loc"][...] = -1
    raws = expect_reference(Pipeline(build(PADDED), PADDED), inputs, image_hw=(10, 20))
    assert np.isnan(raws[0].boxes_xyxy[0]).tolist() == [False, False, True, True]
