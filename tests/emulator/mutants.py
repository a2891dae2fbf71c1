"""Planted kernel bugs: each is one change of the source, and must be found by the check beside it.

python -m tests.emulator.mutants NAME    one of them: exit code 0 when its check finds it
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import traceback
from dataclasses import dataclass

from tests.emulator.checks import CHECKS
from tests.emulator.emulator import Build, Emulator, EmulatorError, compiled
from tests.emulator.sanitized import SANITIZER_EXIT_CODE
from yolact_deploy.cuda.specialization import Specialization, kernel_source

_MUTANT_SECONDS = 200  # of processor time, beyond what the emulator allows a kernel


@dataclass(frozen=True)
class Mutant:
    before: str  # text that is in the source once
    after: str
    found_by: str  # name in CHECKS
    sanitized: bool = (
        False  # the check finds it under AddressSanitizer; needs the environment of tests.emulator.sanitized
    )


MUTANTS: dict[str, Mutant] = {
    # decode
    "threshold_not_strict": Mutant(
        "score > conf_threshold", "score >= conf_threshold", "confidence_exactly_at_the_threshold_is_dropped"
    ),
    "background_counts": Mutant(
        "if (column == 0 || column >= NUM_COLUMNS)",
        "if (column >= NUM_COLUMNS)",
        "confidence_exactly_at_the_threshold_is_dropped",
    ),
    "nan_rows_kept": Mutant(
        "__any_sync(ALL_LANES, above) && !__any_sync(ALL_LANES, nan)",
        "__any_sync(ALL_LANES, above)",
        "a_row_with_nan_is_dropped_but_not_for_its_background",
    ),
    "rows_beyond_the_last_prior": Mutant(
        "if (kept && first + start + i < num_priors)", "if (kept)", "candidates_are_all_confident_priors_in_order"
    ),
    "one_word_too_few_before": Mutant(
        "for (int i = threadIdx.x; i < blockIdx.x; i += DECODE_THREADS)",
        "for (int i = threadIdx.x; i + 1 < blockIdx.x; i += DECODE_THREADS)",
        "candidates_are_all_confident_priors_in_order",
    ),
    "first_warp_sum_only": Mutant(
        "for (int i = 0; i < DECODE_WARPS; i++) base += warp_sums[i];",
        "base = warp_sums[0];",
        "more_than_a_block_of_words_is_summed",
    ),
    "centre_fused": Mutant(
        "prior[0] + widen(loc[0]) * 0.1f * prior[2]",
        "fmaf(widen(loc[0]) * 0.1f, prior[2], prior[0])",
        "boxes_are_the_references_to_the_last_bit",
    ),
    "far_corner_from_the_centre": Mutant(
        "w + x1, h + y1", "cx + w / 2.0f, h + y1", "boxes_are_the_references_to_the_last_bit"
    ),
    "exp_of_float_steps": Mutant(
        "p = fma(p, r, 1.0);\n  return",
        "p = (float)fma(p, r, 1.0);\n  return",
        "boxes_are_the_references_to_the_last_bit",
    ),
    "exp_without_the_way_by_double": Mutant(
        "if (y + (rest - error) == y + (rest + error)) return", "return", "softmax_is_the_references_to_the_last_bit"
    ),
    "exp_without_the_low_part_of_its_argument": Mutant(
        "(-second - back) - second_low;", "0.0f;", "softmax_is_the_references_to_the_last_bit"
    ),
    "exp_flushes_subnormals": Mutant("x > -104.0f", "x > -87.0f", "boxes_are_the_references_to_the_last_bit"),
    "softmax_sum_of_one_row_order": Mutant(
        "sum += __shfl_xor_sync(ALL_LANES, sum, 1);\n      sum += __shfl_xor_sync(ALL_LANES, sum, 2);\n"
        "      sum += __shfl_xor_sync(ALL_LANES, sum, 4);",
        "sum += __shfl_xor_sync(ALL_LANES, sum, 4);\n      sum += __shfl_xor_sync(ALL_LANES, sum, 2);\n"
        "      sum += __shfl_xor_sync(ALL_LANES, sum, 1);",
        "softmax_is_the_references_to_the_last_bit",
    ),
    "softmax_halves_not_in_eights": Mutant(
        "N / 2 - N / 2 % 8", "N / 2 - N / 2 % 8 + 8", "softmax_of_many_classes_adds_in_numpys_order"
    ),
    "transposed_too_early": Mutant(
        "tile[n][lane] = SCORE(n, first + lane);\n    __syncthreads();",
        "tile[n][lane] = SCORE(n, first + lane);",
        "no_two_threads_meet_without_a_barrier",
    ),
    "next_tile_too_early": Mutant(
        "+ base + lane] = tile[lane][c];\n    __syncthreads();",
        "+ base + lane] = tile[lane][c];",
        "two_tiles_of_classes_have_no_races",
    ),
    "row_of_without_barrier": Mutant(
        "priors + prior * 4);\n  }\n  __syncthreads();",
        "priors + prior * 4);\n  }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "second_tile_of_classes_missing": Mutant(
        "first < NUM_CLASSES; first += 32", "first < 32; first += 32", "the_best_of_many_lists"
    ),
    "last_of_equal_classes": Mutant(
        "score == best && class_id < best_class",
        "score == best && class_id > best_class",
        "cross_class_takes_each_priors_best_class",
    ),
    "nan_clipped_away": Mutant(
        "x <= 0.0f ? 0.0f : x;",
        "x > 0.0f ? x : 0.0f;",
        "boxes_are_clipped_before_they_are_compared",
    ),
    "clipped_at_zero_only": Mutant(
        "return x > 1.0f ? 1.0f : x <= 0.0f",
        "return x <= 0.0f",
        "boxes_are_clipped_before_they_are_compared",
    ),
    "clipped_at_one_only": Mutant(
        "x <= 0.0f ? 0.0f : x;",
        "x;",
        "boxes_are_clipped_before_they_are_compared",
    ),
    "clipped_corner_missing": Mutant(
        "clip_to_unit(w + x1), clip_to_unit(h + y1)",
        "clip_to_unit(w + x1), h + y1",
        "boxes_are_clipped_before_they_are_compared",
    ),
    "clipped_before_the_far_corner": Mutant(
        "  float x1 = cx - w / 2.0f, y1 = cy - h / 2.0f;\n#if CLIP_BOXES",
        "  float x1 = clip_to_unit(cx - w / 2.0f), y1 = clip_to_unit(cy - h / 2.0f);\n#if CLIP_BOXES",
        "boxes_are_clipped_before_they_are_compared",
    ),
    "half_as_integer": Mutant(
        "float widen(half_bits h) { return half_to_float(h); }",
        "float widen(half_bits h) { return (float)h; }",
        "half_precision_heads_are_widened_exactly",
    ),
    "conf_read_beyond_its_end": Mutant(
        "int prior = min(first + start + i, num_priors - 1);",
        "int prior = first + start + i;",
        "candidates_are_all_confident_priors_in_order",
        sanitized=True,
    ),
    # FastNMS
    "iou_at_the_threshold_falls": Mutant(
        "areas[j], areas[i]) <= iou_threshold",
        "areas[j], areas[i]) < iou_threshold",
        "iou_exactly_at_the_threshold_is_kept_and_nan_falls",
    ),
    "nan_iou_stays": Mutant(
        "!(box_iou(boxes[j], boxes[i], areas[j], areas[i]) <= iou_threshold)",
        "box_iou(boxes[j], boxes[i], areas[j], areas[i]) > iou_threshold",
        "iou_exactly_at_the_threshold_is_kept_and_nan_falls",
    ),
    "only_the_first_32_suppress": Mutant(
        "start < j && !any; start += 32",
        "start < min(j, 32) && !any; start += 32",
        "every_higher_box_of_the_list_suppresses",
    ),
    "itself_included": Mutant(
        "i < j && !(box_iou", "i <= j && !(box_iou", "iou_exactly_at_the_threshold_is_kept_and_nan_falls"
    ),
    "negative_overlap": Mutant(
        "fmaxf(fminf(a.z, b.z) - fmaxf(a.x, b.x), 0.0f);\n  float height = fmaxf(fminf(a.w, b.w) - fmaxf(a.y, b.y), 0.0f);",
        "fminf(a.z, b.z) - fmaxf(a.x, b.x);\n  float height = fminf(a.w, b.w) - fmaxf(a.y, b.y);",
        "boxes_apart_on_both_axes_do_not_overlap",
    ),
    "two_zeros": Mutant("__float_as_uint(x + 0.0f)", "__float_as_uint(x)", "both_zeros_are_equal"),
    "ties_to_the_higher_index": Mutant(
        "(sort_key)~key << 32 | (unsigned)i",
        "(sort_key)~key << 32 | ~(unsigned)i & 0xffffff",
        "ties_go_to_the_lower_class_then_the_lower_prior",
    ),
    "last_equals_taken": Mutant(
        "if (rank < equals) keys[WANTED - equals + rank]",
        "if (rank >= 1 && rank <= equals) keys[WANTED - equals + rank - 1]",
        "more_candidates_than_are_sorted_at_once",
    ),
    "radix_counts_what_is_above_again": Mutant(
        "s.remaining = remaining - above;",
        "s.remaining = remaining;",
        "more_candidates_than_are_sorted_at_once",
    ),
    "radix_digit_not_masked": Mutant(
        "(key & decided) == prefix", "(key & decided) >= prefix", "more_candidates_than_are_sorted_at_once"
    ),
    "histogram_not_cleared": Mutant(
        "s.histogram[i] = 0;", "if (shift == 24) s.histogram[i] = 0;", "more_candidates_than_are_sorted_at_once"
    ),
    "histogram_without_barrier": Mutant(
        "s.histogram[i] = 0;\n    __syncthreads();", "s.histogram[i] = 0;", "selection_by_radix_has_no_races"
    ),
    "prefix_without_barrier": Mutant(
        "s.remaining = remaining - above;\n      }\n    }\n    __syncthreads();",
        "s.remaining = remaining - above;\n      }\n    }",
        "selection_by_radix_has_no_races",
    ),
    "sort_without_barrier": Mutant(
        "keys[j] = a;\n        }\n      }\n      __syncthreads();",
        "keys[j] = a;\n        }\n      }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "totals_overwritten_too_early": Mutant(
        "equal_seen += total >> 16;\n    __syncthreads();",
        "equal_seen += total >> 16;",
        "selection_by_radix_has_no_races",
    ),
    "falls_read_too_early": Mutant(
        "falls[j] = any;\n  }\n  __syncthreads();", "falls[j] = any;\n  }", "no_two_threads_meet_without_a_barrier"
    ),
    "pool_not_cleared": Mutant(
        "pool_keys[list * MAX_OUT + i] = 0;", "(void)i;", "candidates_are_all_confident_priors_in_order"
    ),
    "score_threshold_not_strict": Mutant(
        "key > lowest_wanted ? key", "key >= lowest_wanted ? key", "score_threshold_is_strict"
    ),
    "boxes_rounded": Mutant("truncf(x.x)", "rintf(x.x)", "integer_boxes_are_ordered_clamped_and_truncated"),
    "boxes_clamped_on_both_sides": Mutant(
        "float low = fmaxf(fminf(first, second) - padding, 0.0f);",
        "float low = fminf(fmaxf(fminf(first, second) - padding, 0.0f), (float)size);",
        "integer_boxes_are_ordered_clamped_and_truncated",
    ),
    "corners_not_swapped": Mutant(
        "fmaxf(fminf(first, second) - padding, 0.0f)",
        "fmaxf(first - padding, 0.0f)",
        "integer_boxes_are_ordered_clamped_and_truncated",
    ),
    "padded_boxes_of_the_image": Mutant(
        "ordered_limits(box.x, box.z, canvas.y, 0.0f)",
        "ordered_limits(box.x, box.z, width, 0.0f)",
        "integer_boxes_of_a_padded_image_end_at_its_border",
    ),
    "padded_boxes_not_cut_on_the_right": Mutant(
        "if (x.y > (float)width) x.y = (float)width;",
        "",
        "integer_boxes_of_a_padded_image_end_at_its_border",
    ),
    "padded_boxes_not_cut_at_the_bottom": Mutant(
        "if (y.y > (float)height) y.y = (float)height;",
        "",
        "integer_boxes_of_a_padded_image_end_at_its_border",
    ),
    "nan_cut_at_the_border": Mutant(
        "if (y.y > (float)height) y.y = (float)height;",
        "y.y = fminf(y.y, (float)height);",
        "integer_boxes_of_a_padded_image_end_at_its_border",
    ),
    "square_of_the_shorter_side": Mutant(
        "int side = max(image_h, image_w);",
        "int side = min(image_h, image_w);",
        "integer_boxes_of_a_padded_image_end_at_its_border",
    ),
    # masks
    "mask_at_one_half": Mutant(
        "(stretch(upper, lower, own) > 0.5f) == is_first_above",
        "(stretch(upper, lower, own) >= 0.5f) == is_first_above",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "equal_rows_at_one_half": Mutant(
        "(unsigned)(stretch(upper, lower, __shfl_sync(ALL_LANES, weight, row)) > 0.5f) << row",
        "(unsigned)(stretch(upper, lower, __shfl_sync(ALL_LANES, weight, row)) >= 0.5f) << row",
        "a_soft_mask_of_exactly_one_half_is_background",
    ),
    "settled_too_near_one_half": Mutant(
        "const float margin = 1e-6f;",
        "const float margin = -1e-6f;",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "rows_that_are_not_monotone_are_bisected": Mutant(
        "if (!__all_sync(ALL_LANES, is_settled | (fabsf(lower - upper) * scale > margin))) {",
        "if (false) {",
        "rows_within_rounding_of_one_half_are_looked_at_one_by_one",
    ),
    "rows_that_hardly_differ_are_bisected": Mutant(
        "fabsf(lower - upper) * scale > margin",
        "fabsf(lower - upper) * 1e9f > margin",
        "rows_within_rounding_of_one_half_are_looked_at_one_by_one",
    ),
    "no_margin_of_rounding": Mutant(
        "const float margin = 1e-6f;",
        "const float margin = 0.0f;",
        "rows_within_rounding_of_one_half_are_looked_at_one_by_one",
    ),
    "spare_warps_make_rows": Mutant(
        "tiling.rows = tile_warps / tiling.words",
        "tiling.rows = MASK_WARPS / tiling.words",
        "images_smaller_than_their_prototypes_have_the_references_masks",
        sanitized=True,
    ),
    "settled_by_one_row": Mutant(
        "(upper > 0.5f + margin) & (lower > 0.5f + margin)",
        "(upper > 0.5f + margin)",
        "masks_are_the_references_at_any_size",
    ),
    "settled_for_one_lane": Mutant(
        "if (__all_sync(ALL_LANES, is_settled)) return",
        "if (__any_sync(ALL_LANES, is_settled)) return",
        "masks_are_the_references_at_any_size",
    ),
    "nan_is_settled": Mutant(
        "(upper < 0.5f - margin) & (lower < 0.5f - margin)",
        "(upper < 0.5f - margin) | (lower < 0.5f - margin)",
        "masks_are_the_references_at_any_size",
    ),
    "change_one_row_early": Mutant(
        "bit_range(begin, change + 1);", "bit_range(begin, change);", "masks_are_the_references_at_any_size"
    ),
    "change_beyond_the_interval": Mutant(
        "(row < end) & ((stretch", "(row < 32) & ((stretch", "masks_are_the_references_at_any_size"
    ),
    "search_of_half_the_rows": Mutant(
        "power_of_two_from(end - begin) / 2; step",
        "power_of_two_from(end - begin) / 4; step",
        "masks_are_the_references_at_any_size",
    ),
    "change_to_above_only": Mutant(
        "is_first_above ? like_first :", "true ? like_first :", "masks_are_the_references_at_any_size"
    ),
    "bits_not_transposed": Mutant(
        "transpose_bits(is_inside ? above : 0u)", "(is_inside ? above : 0u)", "masks_are_the_references_at_any_size"
    ),
    "row_of_cells_before_the_last": Mutant(
        "first == second ? lower :", "second >= 0 ? lower :", "masks_are_the_references_at_any_size"
    ),
    "change_of_cells_missed": Mutant(
        "lane < chunk && (lane == 0 || row.first != row_above)",
        "lane == 0",
        "masks_are_the_references_at_any_size",
    ),
    "bands_of_one_warp": Mutant(
        "warp / tile.pitch * tile_rows;",
        "0;",
        "masks_are_the_references_at_any_size",
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
    "words_without_barrier": Mutant(
        "band, tile_rows, words);\n    __syncthreads();",
        "band, tile_rows, words);",
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
    "padding_bits_set": Mutant(
        "bool is_inside = x < tile.right;", "bool is_inside = true;", "masks_are_the_references_at_any_size"
    ),
    "row_of_zeros_for_the_last": Mutant(
        "second = min(first + 1, last_row);", "second = first + 1;", "masks_are_the_references_at_any_size"
    ),
    "rows_stretched_as_columns": Mutant(
        "min(lane, chunk - 1), proto_hw.x, canvas.x)",
        "min(lane, chunk - 1), proto_hw.x, canvas.y)",
        "interpolation_is_fused_and_horizontal_first",
    ),
    "columns_stretched_as_rows": Mutant(
        "stretch_source(min(x, tile.right - 1), proto_hw.y, canvas.y)",
        "stretch_source(min(x, tile.right - 1), proto_hw.y, canvas.x)",
        "interpolation_is_fused_and_horizontal_first",
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
        "bottom == image_h && x > window.left && mask.at(image_h - 1, x - 1)",
        "false",
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
        "if (before && window.top > 0) {\n    at_change(position);",
        "if (before && window.top > 0) {",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
    ),
    "column_before_ends_at_the_first_row": Mutant(
        "at_change(position);\n    before = false;",
        "at_change(position);",
        "run_lengths_are_of_every_row_and_column_a_mask_reaches",
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
    # preprocess
    "channels_not_flipped": Mutant("is_rgb ? c : 2 - c", "c", "preprocessing_is_opencvs_resize_then_ieee_arithmetic"),
    "weight_from_float_coordinates": Mutant(
        "double source = (i + 0.5) * scale - 0.5;",
        "float source = (i + 0.5f) * (float)scale - 0.5f;",
        "preprocessing_is_opencvs_resize_then_ieee_arithmetic",
    ),
    "resize_not_fused": Mutant(
        "return fmaf(b - a, weight, a);",
        "return (b - a) * weight + a;",
        "preprocessing_is_opencvs_resize_then_ieee_arithmetic",
    ),
    "reciprocal_instead_of_division": Mutant(
        "- mean[c]) / std[c]", "- mean[c]) * (1.0f / std[c])", "preprocessing_is_opencvs_resize_then_ieee_arithmetic"
    ),
    "pitch_of_the_width": Mutant(
        "row.second * row_pitch", "row.second * 3 * image_w", "preprocessing_is_opencvs_resize_then_ieee_arithmetic"
    ),
    "padding_colour_flipped": Mutant(
        "has_bottom && has_right ? (float)bottom[right] : pad[c]",
        "has_bottom && has_right ? (float)bottom[right] : pad[from]",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "padding_on_the_right_only": Mutant(
        "has_bottom = !PAD || row.second < image_h",
        "has_bottom = has_top",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "padding_below_only": Mutant(
        "has_right = !PAD || column.second < image_w",
        "has_right = has_left",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "rows_scaled_by_the_image": Mutant(
        "double scale_y = (double)canvas.x / input_size;",
        "double scale_y = (double)image_h / input_size;",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "columns_scaled_by_the_image": Mutant(
        "(double)canvas.y / input_size",
        "(double)image_w / input_size",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "tap_beside_the_padding_repeated": Mutant(
        "resize_tap(y, canvas.x, scale_y)",
        "resize_tap(y, image_h, scale_y)",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "padding_read_beyond_the_image": Mutant(
        "has_left = !PAD || column.first < image_w",
        "has_left = true",
        "a_padded_image_is_preprocessed_as_its_square",
        sanitized=True,
    ),
}


def finds(name: str) -> str | None:
    """What the mutant's check says of it; None when it says nothing. Raises ValueError for a mutant that no longer applies."""
    mutant = MUTANTS[name]
    source = kernel_source()
    if source.count(mutant.before) != 1:
        raise ValueError(f"{name}: its text is {source.count(mutant.before)} times in the kernels, want once.")
    mutated = source.replace(mutant.before, mutant.after)

    @functools.cache
    def build(specialization: Specialization, build: Build = "plain") -> Emulator:
        kind: Build = "asan" if mutant.sanitized else "quick" if build == "plain" else build
        return Emulator(compiled(mutated, specialization, kind), kind)

    try:
        CHECKS[mutant.found_by](build)
    except (AssertionError, EmulatorError) as problem:
        if "g++" in str(problem):
            raise
        return str(problem).strip() or type(problem).__name__
    return None


def in_own_process(name: str) -> str:
    """ "found", "survived" or what went wrong. A mutant may write where it likes, so it runs in a fork."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (_MUTANT_SECONDS, _MUTANT_SECONDS))  # for loops under a sanitizer
            os._exit(0 if finds(name) is not None else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0:
        return "found"
    by_sanitizer = MUTANTS[name].sanitized and os.WEXITSTATUS(status) == SANITIZER_EXIT_CODE
    return "found" if by_sanitizer else "survived" if os.WEXITSTATUS(status) == 1 else "does not run"


if __name__ == "__main__":
    outcomes = {name: in_own_process(name) for name in sys.argv[1:]}
    print("\n".join(f"{name}: {outcome} ({MUTANTS[name].found_by})" for name, outcome in outcomes.items()))
    sys.exit(set(outcomes.values()) != {"found"})
