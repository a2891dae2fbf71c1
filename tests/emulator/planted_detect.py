"""Planted bugs of preprocessing, decoding, FastNMS and the choice of detections."""

from __future__ import annotations

from tests.emulator.planted import Mutant

MUTANTS: dict[str, Mutant] = {
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
        "(double)canvas.x / input_size",
        "(double)image_h / input_size",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "columns_scaled_by_the_image": Mutant(
        "(double)canvas.y / input_size",
        "(double)image_w / input_size",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "tap_beside_the_padding_repeated": Mutant(
        "resize_tap(top_y + row, canvas.x,",
        "resize_tap(top_y + row, image_h,",
        "a_padded_image_is_preprocessed_as_its_square",
    ),
    "padding_read_beyond_the_image": Mutant(
        "has_left = !PAD || column.first < image_w",
        "has_left = true",
        "a_padded_image_is_preprocessed_as_its_square",
        sanitized=True,
    ),
    "taps_of_the_first_tile_of_columns": Mutant(
        "resize_tap(left_x + i, canvas.y,",
        "resize_tap(i, canvas.y,",
        "preprocessing_is_opencvs_resize_then_ieee_arithmetic",
    ),
    "taps_of_the_first_tile_of_rows": Mutant(
        "resize_tap(top_y + row,", "resize_tap(row,", "preprocessing_is_opencvs_resize_then_ieee_arithmetic"
    ),
    "one_tap_of_rows_for_a_thread": Mutant(
        "Tap row = rows[tile_row];",
        "Tap row = rows[threadIdx.y * PREPROCESS_ROWS];",
        "preprocessing_is_opencvs_resize_then_ieee_arithmetic",
    ),
    "taps_of_one_round_of_threads": Mutant(
        "i < PREPROCESS_COLUMNS + TILE_ROWS; i += PREPROCESS_THREADS",
        "i < PREPROCESS_COLUMNS + 1; i += PREPROCESS_THREADS",
        "preprocessing_is_opencvs_resize_then_ieee_arithmetic",
    ),
    "taps_without_barrier": Mutant(
        "(double)canvas.x / input_size);\n  }\n  __syncthreads();",
        "(double)canvas.x / input_size);\n  }",
        "preprocessing_has_no_races",
    ),
    # decode
    "threshold_not_strict": Mutant(
        "is_foreground & (values[j] > conf_threshold)",
        "is_foreground & (values[j] >= conf_threshold)",
        "confidence_exactly_at_the_threshold_is_dropped",
    ),
    "background_counts": Mutant(
        "bool is_foreground = (j > 0) | (lane > 0);",
        "bool is_foreground = true;",
        "confidence_exactly_at_the_threshold_is_dropped",
    ),
    "nan_of_the_background_counts": Mutant(
        "nan |= is_foreground & is_nan(values[j]);",
        "nan |= is_nan(values[j]);",
        "a_row_with_nan_is_dropped_but_not_for_its_background",
    ),
    "nan_rows_kept": Mutant(
        "__any_sync(ALL_LANES, above) && !__any_sync(ALL_LANES, nan)",
        "__any_sync(ALL_LANES, above)",
        "a_row_with_nan_is_dropped_but_not_for_its_background",
    ),
    "rows_beyond_the_last_prior": Mutant(
        "is_confident(values[i], lane, conf_threshold) && prior < num_priors",
        "is_confident(values[i], lane, conf_threshold)",
        "candidates_are_all_confident_priors_in_order",
    ),
    "bits_of_the_first_warp_only": Mutant(
        "for (int i = 0; i < DECODE_WARPS; i++) word |= warp_bits[i];",
        "word = warp_bits[0];",
        "candidates_are_all_confident_priors_in_order",
    ),
    "boxes_of_the_warps_first_row": Mutant(
        "size_t at = image_first + first + lane;",
        "size_t at = image_first + first;",
        "candidates_are_all_confident_priors_in_order",
    ),
    "boxes_of_the_first_image": Mutant(
        "decode_box(loc + at * 4,",
        "decode_box(loc + (first + lane) * 4,",
        "candidates_are_all_confident_priors_in_order",
    ),
    "words_without_their_bits_barrier": Mutant(
        "kept << (warp * ROWS_PER_WARP);\n  __syncthreads();",
        "kept << (warp * ROWS_PER_WARP);",
        "no_two_threads_meet_without_a_barrier",
    ),
    "scores_before_the_softmax": Mutant("values[j] /= sum;", "(void)sum;", "softmax_is_the_references_to_the_last_bit"),
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
    "second_word_of_classes_missing": Mutant(
        "if (own >= 0 && own < NUM_CLASSES) scores[own * stride]",
        "if (own >= 0 && own < 31) scores[own * stride]",
        "the_best_of_many_lists",
    ),
    "background_scored": Mutant(
        "if (own >= 0 && own < NUM_CLASSES) scores[own * stride]",
        "if (own < NUM_CLASSES) scores[(long long)own * (long long)stride]",
        "the_best_of_many_lists",
    ),
    "background_is_a_best_class": Mutant(
        "own >= 0 && own < NUM_CLASSES && values[j] > best",
        "own < NUM_CLASSES && values[j] > best",
        "cross_class_takes_each_priors_best_class",
    ),
    "last_of_equal_classes": Mutant(
        "score == best && other < best_class",
        "score == best && other > best_class",
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
        "intersection / united <= threshold",
        "intersection / united < threshold",
        "iou_exactly_at_the_threshold_is_kept_and_nan_falls",
    ),
    "nan_iou_stays": Mutant(
        "!(intersection / united <= threshold)",
        "intersection / united > threshold",
        "iou_exactly_at_the_threshold_is_kept_and_nan_falls",
    ),
    "never_divided_for_want_of_a_margin": Mutant(
        "fabsf(beyond) > reach * united", "fabsf(beyond) >= 0.0f", "iou_within_rounding_of_the_threshold_is_divided"
    ),
    "clear_of_the_threshold_is_above_it": Mutant(
        "beyond > 0.0f : ", "true : ", "iou_exactly_at_the_threshold_is_kept_and_nan_falls"
    ),
    "clear_of_the_threshold_is_below_it": Mutant(
        "beyond > 0.0f : ", "false : ", "iou_exactly_at_the_threshold_is_kept_and_nan_falls"
    ),
    "united_area_below_zero": Mutant("(united > 0.0f)", "true", "iou_within_rounding_of_the_threshold_is_divided"),
    "only_the_first_32_suppress": Mutant(
        "start < j && !any; start += 32",
        "start < min(j, 32) && !any; start += 32",
        "every_higher_box_of_the_list_suppresses",
    ),
    "itself_included": Mutant(
        "i < j && overlap_too_much", "i <= j && overlap_too_much", "iou_exactly_at_the_threshold_is_kept_and_nan_falls"
    ),
    "negative_overlap": Mutant(
        "fmaxf(fminf(a.z, b.z) - fmaxf(a.x, b.x), 0.0f);\n  float height = fmaxf(fminf(a.w, b.w) - fmaxf(a.y, b.y), 0.0f);",
        "fminf(a.z, b.z) - fmaxf(a.x, b.x);\n  float height = fminf(a.w, b.w) - fmaxf(a.y, b.y);",
        "boxes_apart_on_both_axes_do_not_overlap",
    ),
    "two_zeros": Mutant("__float_as_uint(x + 0.0f)", "__float_as_uint(x)", "both_zeros_are_equal"),
    "ties_to_the_higher_index": Mutant(
        "return (sort_key)~score_key << 32 | index;",
        "return (sort_key)~score_key << 32 | ~index & 0xffffff;",
        "ties_go_to_the_lower_class_then_the_lower_prior",
    ),
    "candidates_of_one_round": Mutant(
        "start < num_words; start += NMS_THREADS",
        "start < min(num_words, NMS_THREADS); start += NMS_THREADS",
        "candidates_are_found_in_every_word",
    ),
    "candidates_that_are_none": Mutant(
        "bool is_kept = __shfl_sync(ALL_LANES, own, word) >> lane & 1;",
        "bool is_kept = prior < 32 * num_words;",
        "candidates_are_all_confident_priors_in_order",
    ),
    "words_beyond_the_last_prior": Mutant(
        "start + lane < num_words ? words[start + lane] : 0;",
        "words[start + lane];",
        "candidates_are_all_confident_priors_in_order",
        sanitized=True,
    ),
    "entries_in_registers_alone": Mutant(
        "start < ENTRIES; start += SELECT_THREADS)\n      f(",
        "start < 0; start += SELECT_THREADS)\n      f(",
        "more_entries_than_registers_hold",
    ),
    "every_warp_takes_the_same_places": Mutant(
        "place = __shfl_sync(ALL_LANES, place, 0) + __popc(", "place = __popc(", "the_best_of_many_lists"
    ),
    "keys_beyond_their_room": Mutant(
        "if (is_taken && place < size) keys[place] = key;",
        "if (is_taken) keys[place] = key;",
        "more_candidates_than_are_sorted_at_once",
        sanitized=True,
    ),
    "taken_not_counted_anew": Mutant(
        "if (threadIdx.x == 0) s.taken = 0;\n    __syncthreads();\n    take_keys",
        "__syncthreads();\n    take_keys",
        "more_candidates_than_are_sorted_at_once",
    ),
    "taken_read_too_early": Mutant(
        "keys, SORT_SIZE, s);\n  __syncthreads();", "keys, SORT_SIZE, s);", "no_two_threads_meet_without_a_barrier"
    ),
    "radix_counts_what_is_below_again": Mutant(
        "s.remaining = remaining - below;",
        "s.remaining = remaining;",
        "more_candidates_than_are_sorted_at_once",
    ),
    "radix_digit_not_masked": Mutant(
        "(key & decided) == prefix", "(key & decided) >= prefix", "more_candidates_than_are_sorted_at_once"
    ),
    "radix_decided_by_a_digit_that_holds_more": Mutant(
        "s.is_decided = s.histogram[digit] == remaining - below;",
        "s.is_decided = s.histogram[digit] >= remaining - below;",
        "more_candidates_than_are_sorted_at_once",
    ),
    "radix_without_the_rest_of_its_digit": Mutant(
        "return prefix | ((sort_key)1 << shift) - 1;", "return prefix;", "more_candidates_than_are_sorted_at_once"
    ),
    "prefix_without_barrier": Mutant(
        "all that begin so are wanted\n      }\n    }\n    __syncthreads();",
        "all that begin so are wanted\n      }\n    }",
        "selection_by_radix_has_no_races",
    ),
    "histogram_not_cleared": Mutant(
        "s.histogram[i] = 0;", "if (shift == 24) s.histogram[i] = 0;", "more_candidates_than_are_sorted_at_once"
    ),
    "histogram_without_barrier": Mutant(
        "s.histogram[i] = 0;\n    __syncthreads();", "s.histogram[i] = 0;", "selection_by_radix_has_no_races"
    ),
    "keys_of_warps_without_barrier": Mutant(
        "keys[t] = key;\n  }\n  __syncthreads();", "keys[t] = key;\n  }", "no_two_threads_meet_without_a_barrier"
    ),
    "equal_directions_in_a_warp": Mutant(
        "((t & stride) == 0) == ((t & length) == 0);", "(t & stride) == 0;", "the_best_of_many_lists"
    ),
    "steps_of_a_warp_only_once": Mutant(
        "sort_in_warps<THREADS>(keys, size, length, length);", "", "the_best_of_many_lists"
    ),
    "longest_stride_of_a_warp_left_out": Mutant("min(length / 2, 16)", "min(length / 2, 8)", "the_best_of_many_lists"),
    "strides_between_warps_left_out": Mutant(
        "stride >= 32; stride /= 2", "stride >= 64; stride /= 2", "the_best_of_many_lists"
    ),
    "fewer_keys_than_a_warp_has_lanes": Mutant(
        "max(power_of_two_from(taken), 32)", "power_of_two_from(taken)", "candidates_are_all_confident_priors_in_order"
    ),
    "sort_without_barrier": Mutant(
        "keys[j] = a;\n        }\n      }\n      __syncthreads();",
        "keys[j] = a;\n        }\n      }",
        "no_two_threads_meet_without_a_barrier",
    ),
    "falls_read_too_early": Mutant(
        "falls[j] = any;\n  }\n  __syncthreads();", "falls[j] = any;\n  }", "no_two_threads_meet_without_a_barrier"
    ),
    "pool_not_cleared": Mutant(
        "pool_keys[list * MAX_OUT + i] = 0;", "(void)i;", "candidates_are_all_confident_priors_in_order"
    ),
    "score_threshold_not_strict": Mutant(
        "return key > threshold ?", "return key >= threshold ?", "score_threshold_is_strict"
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
}
