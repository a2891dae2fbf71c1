"""Planted bugs of masks and run lengths."""

from __future__ import annotations

from tests.emulator.planted import Mutant

MUTANTS: dict[str, Mutant] = {
    # masks
    "mask_at_one_half": Mutant(
        "row_weight[min(row, end - 1)]) > 0.5f",
        "row_weight[min(row, end - 1)]) >= 0.5f",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "cells_at_one_half_are_above": Mutant(
        "(a > 0.5f + margin) & (b > 0.5f + margin)",
        "(a >= 0.5f) & (b >= 0.5f)",
        "a_soft_mask_of_exactly_one_half_is_background",
    ),
    "above_from_below_one_half": Mutant(
        "const float margin = 1e-6f;", "const float margin = -1e-6f;", "a_soft_mask_of_exactly_one_half_is_background"
    ),
    "above_in_one_row_of_cells": Mutant(
        "(a > 0.5f + margin) & (b > 0.5f + margin)", "(a > 0.5f + margin)", "masks_are_the_references_at_any_size"
    ),
    "below_in_one_row_of_cells": Mutant(
        "(a < 0.5f - margin) & (b < 0.5f - margin)", "(b < 0.5f - margin)", "masks_are_the_references_at_any_size"
    ),
    "nan_is_above": Mutant(
        "(a > 0.5f + margin) & (b > 0.5f + margin)",
        "!(a <= 0.5f + margin) & !(b <= 0.5f + margin)",
        "non_finite_prototypes_give_background",
    ),
    "last_cell_of_a_word_left_out": Mutant(
        "last = __shfl_sync(ALL_LANES, far, 31)",
        "last = __shfl_sync(ALL_LANES, near, 31)",
        "masks_are_the_references_at_any_size",
    ),
    "first_cell_of_a_word_left_out": Mutant(
        "first = __shfl_sync(ALL_LANES, near, 0)",
        "first = __shfl_sync(ALL_LANES, far, 0)",
        "masks_are_the_references_at_any_size",
    ),
    "side_of_the_upper_row_of_cells_alone": Mutant(
        "int side = side_of_one_half(upper, lower, first, last);",
        "int side = side_of_one_half(upper, upper, first, last);",
        "masks_are_the_references_at_any_size",
    ),
    "words_above_one_half_are_not_written": Mutant(
        "unsigned bits = side > 0 ? every_bit : 0u;", "unsigned bits = 0u;", "masks_are_the_references_at_any_size"
    ),
    "bits_beyond_the_image_in_words_of_one_side": Mutant(
        "unsigned bits = side > 0 ? every_bit : 0u;",
        "unsigned bits = side > 0 ? ALL_LANES : 0u;",
        "masks_are_the_references_at_any_size",
    ),
    "padding_bits_set": Mutant(
        "bool is_inside = left + lane < right;", "bool is_inside = true;", "masks_are_the_references_at_any_size"
    ),
    "intervals_of_the_first_round_alone": Mutant(
        "start += 32 * step", "start += 1 << 20", "images_smaller_than_their_prototypes_have_the_references_masks"
    ),
    "mixed_interval_of_the_lane_not_the_warp": Mutant(
        "int r = start + (__ffs((int)mixed) - 1) * step,",
        "int r = start + __ffs((int)mixed) - 1,",
        "masks_are_the_references_at_any_size",
    ),
    "warps_of_one_word_make_the_same_rows": Mutant(
        "for (int start = warp / tile.pitch; start",
        "for (int start = 0; start",
        "no_two_threads_meet_without_a_barrier",
    ),
    "rows_beyond_the_interval": Mutant(
        "if (lane < 4 && row + lane < end) words", "if (lane < 4) words", "no_two_threads_meet_without_a_barrier"
    ),
    "rows_of_four_in_the_wrong_order": Mutant(
        "(lane == 0 ? four[0] : four[2])", "(lane == 0 ? four[2] : four[0])", "masks_are_the_references_at_any_size"
    ),
    "row_of_zeros_for_the_last": Mutant(
        "soft + min(r + 1, tile.cells_h - 1)", "soft + (r + 1)", "masks_are_the_references_at_any_size"
    ),
    "rows_of_cells_without_rows_of_pixels": Mutant(
        "for (int r = above + 1; r <= first; r++) row_begin[r] = row;",
        "row_begin[first] = row;",
        "images_smaller_than_their_prototypes_have_the_references_masks",
    ),
    "rows_stretched_as_columns": Mutant(
        "stretch_source(tile.top + row, proto_hw.x, canvas.x)",
        "stretch_source(tile.top + row, proto_hw.x, canvas.y)",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "columns_stretched_as_rows": Mutant(
        "stretch_source(min(left + lane, right - 1), proto_hw.y, canvas.y)",
        "stretch_source(min(left + lane, right - 1), proto_hw.y, canvas.x)",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "words_without_barrier": Mutant(
        "canvas, words);\n    __syncthreads();", "canvas, words);", "no_two_threads_meet_without_a_barrier"
    ),
    "spare_warps_make_rows": Mutant(
        "tiling.rows = tile_warps / tiling.words",
        "tiling.rows = MASK_WARPS / tiling.words",
        "images_smaller_than_their_prototypes_have_the_references_masks",
        sanitized=True,
    ),
    "last_tile_missing": Mutant(
        "tiling.down = (window.rows + tiling.rows - 1) / tiling.rows;",
        "tiling.down = max(1, window.rows / tiling.rows);",
        "masks_are_the_references_at_any_size",
    ),
    "tile_of_the_detection_before": Mutant(
        "first_tile[n + step] <= item", "first_tile[n + step] < item", "masks_are_the_references_at_any_size"
    ),
    "only_one_tile_of_a_block": Mutant(
        "item < first_tile[MAX_OUT]; item += gridDim.x",
        "item < first_tile[MAX_OUT]; item += 1 << 30",
        "masks_are_the_references_at_any_size",
    ),
    "windows_of_one_size": Mutant(
        "(MAX_OUT + 1) + n] + first_row", "(MAX_OUT + 1) + 1] * n + first_row", "masks_are_the_references_at_any_size"
    ),
    "lerp_not_fused": Mutant(
        "return fmaf(first, 1.0f - weight, second * weight);",
        "return first * (1.0f - weight) + second * weight;",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "other_product_fused": Mutant(
        "return fmaf(first, 1.0f - weight, second * weight);",
        "return fmaf(second, weight, first * (1.0f - weight));",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "source_not_fused": Mutant(
        "fmaf(scale, (float)i + 0.5f, -0.5f)",
        "(scale * ((float)i + 0.5f) - 0.5f)",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "corners_aligned": Mutant(
        "fmaf(scale, (float)i + 0.5f, -0.5f)", "(scale * (float)i)", "masks_are_the_references_at_any_size"
    ),
    "no_padding_of_the_crop": Mutant(
        "ordered_limits(first, second, size, 1.0f)",
        "ordered_limits(first, second, size, 0.0f)",
        "masks_are_the_references_at_any_size",
    ),
    "crop_includes_its_end": Mutant(
        "(x < window.y) & (y", "(x <= window.y) & (y", "masks_are_the_references_at_any_size"
    ),
    "floor_instead_of_ceil": Mutant(
        "(int)ceilf(fmaxf(limits.y, 0.0f))",
        "(int)floorf(fmaxf(limits.y, 0.0f))",
        "masks_are_the_references_at_any_size",
    ),
    "nan_corner_ignored": Mutant(
        "if (is_nan(first) || is_nan(second)) return make_float2(first + second, first + second);",
        "",
        "an_infinite_size_gives_a_nan_corner_and_no_mask",
    ),
    "soft_without_barrier": Mutant(
        "tile.inside, x, y);\n    }\n    __syncthreads();",
        "tile.inside, x, y);\n    }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "coefficients_without_barrier": Mutant(
        "coeff[(size_t)tile.detection * NUM_COEFF + k];\n    }\n    __syncthreads();",
        "coeff[(size_t)tile.detection * NUM_COEFF + k];\n    }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "next_tile_in_the_place_of_the_last": Mutant(
        "    __syncthreads();  // before the next tile takes its place\n",
        "",
        "no_two_threads_meet_without_a_barrier",
    ),
    "tile_read_before_it_is_there": Mutant(
        "image_w), tile_rows, tile_warps, crop);\n      __syncwarp();",
        "image_w), tile_rows, tile_warps, crop);",
        "no_two_threads_meet_without_a_barrier",
    ),
    "tiles_counted_without_barrier": Mutant(
        "MAX_OUT, first_tile);\n  }\n  __syncthreads();",
        "MAX_OUT, first_tile);\n  }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "windows_summed_without_barrier": Mutant(
        "words[i] = (unsigned)window.rows * window.words;\n  }\n  __syncthreads();",
        "words[i] = (unsigned)window.rows * window.words;\n  }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "first_cell_of_the_image_not_the_square": Mutant(
        "stretch_source(tile.left, proto_hw.y, canvas.y)",
        "stretch_source(tile.left, proto_hw.y, image_hw.y)",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "last_cell_of_the_image_not_the_square": Mutant(
        "stretch_source(tile.right - 1, proto_hw.y, canvas.y).first",
        "stretch_source(tile.right - 1, proto_hw.y, image_hw.y).first",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "top_cell_of_the_image_not_the_square": Mutant(
        "stretch_source(tile.top, proto_hw.x, canvas.x)",
        "stretch_source(tile.top, proto_hw.x, image_hw.x)",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "bottom_cell_of_the_image_not_the_square": Mutant(
        "stretch_source(bottom - 1, proto_hw.x, canvas.x)",
        "stretch_source(bottom - 1, proto_hw.x, image_hw.x)",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "dense_without_its_window": Mutant(
        "row < window.rows && word >= 0", "true && word >= 0", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "dense_columns_of_the_image": Mutant(
        "word = (x - window.left) >> 5;", "word = x >> 5;", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "dense_window_of_the_first_mask": Mutant(
        "if (++n < detections) {", "if (++n < 0) {", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "mask_written_beyond_its_row": Mutant("if (w < tile.words) out[", "out[", "masks_are_the_references_at_any_size"),
    # run lengths
    "columns_start_with_background": Mutant(
        "if (bottom == image_h) {\n    above",
        "if (false) {\n    above",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
    ),
    "columns_start_with_the_word_before_left_out": Mutant(
        "if (w > 0) above |= mask.word(image_h - 1, w - 1) >> 31;",
        "",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "columns_start_with_the_row_beside": Mutant(
        "mask.word(image_h - 1, w) << 1;",
        "mask.word(image_h - 1, w);",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
    ),
    "rows_for_columns": Mutant(
        "transpose_bits(differs)", "differs", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "transposed_without_the_last_step": Mutant(
        "step > 0; step /= 2) {\n    unsigned other",
        "step > 1; step /= 2) {\n    unsigned other",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
    ),
    "row_above_of_the_first_32": Mutant(
        "    above = __shfl_sync(ALL_LANES, row, 31);\n", "", "run_lengths_are_of_every_row_and_column_a_mask_reaches"
    ),
    "rows_below_the_window": Mutant(
        "y < bottom ? row ^ (lane == 0 ? above : higher) : 0;",
        "row ^ (lane == 0 ? above : higher);",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "first_change_for_the_last": Mutant(
        "last = position + 31 - __clz((int)found);",
        "last = position + __ffs((int)found) - 1;",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
    ),
    "last_position_of_the_warp_only": Mutant(
        "exclusive_last = max(exclusive_last, warp_lasts[w]);", "", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "runs_written_beyond": Mutant(
        "if (at < capacity) image_runs[at] = position - last;",
        "image_runs[at] = position - last;",
        "runs_beyond_the_buffer_are_counted_but_not_written",
    ),
    "one_run_too_few": Mutant(
        "= sum_before + 1;", "= sum_before;", "dense_masks_and_run_lengths_are_those_of_the_bits"
    ),
    "first_row_from_the_cell_too_late": Mutant(
        "(int)(first_cell * scale) - 1, 0)",
        "(int)(first_cell * scale) + 1, 0)",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "last_row_from_the_cell_too_early": Mutant(
        "(int)ceilf(end_cell * scale) + 1)",
        "(int)ceilf(end_cell * scale) - 2)",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "window_without_its_margin": Mutant(
        "(int)ceilf(end_cell * scale) + 1)",
        "(int)ceilf(end_cell * scale))",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "rows_before_the_first": Mutant(
        "max((int)(first_cell * scale) - 1, 0)",
        "(int)(first_cell * scale) - 1",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "window_without_the_crop_being_off": Mutant(
        "reached = crop ? cells[at] :",
        "reached = true ? cells[at] :",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "window_beyond_the_image": Mutant(
        "bottom = min(rows.y, image_h);", "bottom = rows.y;", "masks_are_the_references_at_any_size"
    ),
    "window_of_no_cells": Mutant(
        "cells.x >= cells.y || cells.z >= cells.w ||",
        "",
        "boxes_that_are_nan_infinite_or_outside_have_the_references_masks",
    ),
    "last_word_left_out": Mutant(
        "x < window.left + 32 * window.words;",
        "x < window.left + 32 * window.words - 32;",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "change_from_the_column_before_left_out": Mutant(
        "at_changes(column, above >> lane & 1);",
        "",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "column_before_ends_at_the_first_row": Mutant(
        "above >> lane & 1);\n    above = 0;",
        "above >> lane & 1);",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "runs_of_columns_beyond_the_image": Mutant(
        "found = is_inside ? found : 0; found", "; found", "run_lengths_are_of_every_row_and_column_a_mask_reaches"
    ),
    "lanes_beyond_the_image_leave_the_warp": Mutant(
        "unsigned changes = 0, last = 0;",
        "if (x >= image_w) return;\n  unsigned changes = 0, last = 0;",
        "dense_masks_and_run_lengths_are_those_of_the_bits",
    ),
    "last_run_only_where_the_mask_is": Mutant(
        "if (!mask.can_change(x) && !ends) return;",
        "if (!mask.can_change(x)) return;",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "run_lengths_of_the_batchs_first_image": Mutant(
        "image = first_image + local_image, n = blockIdx.y;",
        "image = local_image, n = blockIdx.y;",
        "images_of_a_batch_can_have_their_own_sizes",
    ),
    "rows_in_reach_of_the_image_not_the_square": Mutant(
        "pixels_over(cells.z, cells.w, proto_h, canvas.x)",
        "pixels_over(cells.z, cells.w, proto_h, image_h)",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "columns_in_reach_of_the_image_not_the_square": Mutant(
        "pixels_over(cells.x, cells.y, proto_w, canvas.y)",
        "pixels_over(cells.x, cells.y, proto_w, image_w)",
        "masks_of_a_padded_image_are_those_of_its_square_cut_at_its_border",
    ),
    "windows_read_beyond_the_last_detection": Mutant(
        "if (++n < detections) {", "if (++n < MAX_OUT) {", "nothing_is_read_that_nobody_wrote"
    ),
    "runs_counted_beyond_the_last_detection": Mutant(
        "if (threadIdx.x == 0) run_count[mask_index] = 0;", "", "nothing_is_read_that_nobody_wrote"
    ),
}
