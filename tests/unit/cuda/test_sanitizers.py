from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.sanitized import environment

# a process each: its sanitized builds take seconds, its checks little
GROUPS = {
    "small": (
        "candidates_are_all_confident_priors_in_order",
        "more_candidates_than_are_sorted_at_once",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
        "runs_beyond_the_buffer_are_counted_but_not_written",
        "boxes_that_are_nan_infinite_or_outside_have_the_references_masks",
    ),
    "wide": ("the_best_of_many_lists", "masks_are_the_references_at_any_size", "non_finite_prototypes_give_background"),
    "half": ("half_precision_heads_are_widened_exactly", "preprocessing_is_opencvs_resize_then_ieee_arithmetic"),
    "padded": (
        "a_padded_image_is_preprocessed_as_its_square",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "logits and cross-class": (
        "softmax_is_the_references_to_the_last_bit",
        "cross_class_takes_each_priors_best_class",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_no_access_outside_of_a_buffer_and_no_undefined_behaviour(group: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulator.sanitized", *GROUPS[group]],
        cwd=Path(__file__).parents[3],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("clean") == len(GROUPS[group])
