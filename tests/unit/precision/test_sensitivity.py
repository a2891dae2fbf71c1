from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.precision.fp16 import to_half
from exporters.precision.gate import Verdict
from exporters.precision.quantize import quantize
from exporters.precision.sensitivity import choose_modules, measure_sensitivity, module_groups, module_sqnr_db, sqnr_db
from tests.unit.precision.conftest import CALIBRATION_IMAGES
from yolact_deploy.spec import ModelSpec

GROUPS = (
    "backbone.conv1",
    "backbone.layers.0",
    "backbone.layers.1",
    "backbone.layers.2",
    "backbone.layers.3",
    "fpn",
    "proto_net",
    "prediction_layers.0.upfeature",
    "prediction_layers.0.bbox_layer",
    "prediction_layers.0.conf_layer",
    "prediction_layers.0.mask_layer",
)


def test_modules_are_stem_stages_pyramid_protonet_and_head_branches(shapes: onnx.ModelProto) -> None:
    assert module_groups(shapes) == GROUPS


def _noisy(model: onnx.ModelProto, weight: str, relative: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + relative), weight))
    return copy


def test_sqnr_of_a_known_error(shapes: onnx.ModelProto, shapes_spec: ModelSpec) -> None:
    # The convolution's output is 1% too large, but for its bias: 40 dB where the bias is 0.
    unbiased = _noisy(shapes, "fpn.lat_layers.0.bias", -1)
    name = "fpn.lat_layers.0/Conv"
    one_percent, equal = sqnr_db(
        unbiased,
        [_noisy(unbiased, "fpn.lat_layers.0.weight", 0.01), unbiased],
        shapes_spec,
        CALIBRATION_IMAGES[:2],
        [name],
    )
    assert one_percent[name] == pytest.approx(40, abs=0.05)
    assert equal[name] == 200


@pytest.mark.slow
def test_the_module_with_the_planted_error_is_found(
    shapes: onnx.ModelProto, shapes_spec: ModelSpec, ranges: Mapping[str, float]
) -> None:
    """A range cut to a hundredth saturates nearly everything that the protonet's third convolution reads."""
    broken = {**ranges, "proto_net.3/Relu": ranges["proto_net.3/Relu"] / 100}
    asked: list[tuple[str, ...]] = []

    def measure_ap(kept: tuple[str, ...]) -> float:
        asked.append(kept)
        return 0.25

    found = measure_sensitivity(shapes, shapes_spec, broken, CALIBRATION_IMAGES[:1], measure_ap=measure_ap)
    assert sorted(module.module for module in found) == sorted(GROUPS)
    assert {frozenset(GROUPS) - set(kept) for kept in asked} == {frozenset({group}) for group in GROUPS}
    ratios = [module.output_sqnr_db for module in found]
    assert ratios == sorted(ratios)
    worst, *others = found
    assert (worst.module, worst.convs, worst.ap_drop) == ("proto_net", 5, 0.25)
    assert worst.output_sqnr_db < 10 < others[0].output_sqnr_db
    # Without it the error is gone; without any other it is still there.
    assert worst.others_output_sqnr_db is not None
    assert worst.others_output_sqnr_db > 15
    assert all(module.others_output_sqnr_db < 10 for module in others if module.others_output_sqnr_db is not None)


@pytest.mark.slow
def test_sqnr_of_fp16_is_far_above_that_of_int8(
    shapes: onnx.ModelProto, shapes_int8: onnx.ModelProto, shapes_spec: ModelSpec
) -> None:
    half = module_sqnr_db(shapes, to_half(shapes), shapes_spec, CALIBRATION_IMAGES[:1])
    int8 = module_sqnr_db(shapes, shapes_int8, shapes_spec, CALIBRATION_IMAGES[:1])
    assert set(half) == set(int8) == set(GROUPS)
    for group in GROUPS:
        assert half[group] > 50
        assert 15 < int8[group] < half[group] - 15


def test_a_module_kept_in_fp16_has_no_error_of_its_own(
    shapes: onnx.ModelProto, shapes_spec: ModelSpec, ranges: Mapping[str, float]
) -> None:
    kept = quantize(shapes, ranges, keep_fp16=["backbone"])
    ratios = module_sqnr_db(shapes, kept, shapes_spec, CALIBRATION_IMAGES[:1])
    assert all(ratios[group] > 120 for group in GROUPS if group.startswith("backbone"))
    assert ratios["fpn"] < 50


def _judge(
    costs: Mapping[str, float], allowed: float
) -> tuple[Callable[[tuple[str, ...]], Verdict], list[tuple[str, ...]]]:
    """Drops add up over the modules that are not kept."""
    asked: list[tuple[str, ...]] = []

    def judge(kept: tuple[str, ...]) -> Verdict:
        asked.append(kept)
        drop = sum(cost for module, cost in costs.items() if module not in kept)
        return Verdict(drop <= allowed, drop, allowed, None, None)

    return judge, asked


def test_nothing_is_kept_and_nothing_ranked_when_all_of_int8_passes() -> None:
    judge, asked = _judge({"a": 0.1, "b": 0.1}, 0.2)
    choice = choose_modules(lambda: pytest.fail("ranked"), judge)
    assert (choice.keep_fp16, choice.verdict.passed, asked) == ((), True, [()])


def test_the_most_sensitive_modules_are_kept_until_the_gate_is_passed() -> None:
    judge, asked = _judge({"a": 0.3, "b": 0.2, "c": 0.1}, 0.15)
    choice = choose_modules(lambda: ["a", "b", "c"], judge)
    assert choice.keep_fp16 == ("a", "b")
    assert asked == [(), ("a",), ("a", "b"), ("b",)]


def test_a_module_that_turns_out_to_matter_little_is_given_back() -> None:
    judge, _ = _judge({"a": 0.01, "b": 0.4, "c": 0.1}, 0.15)  # ranked first by error, but AP hardly notices
    choice = choose_modules(lambda: ["a", "b", "c"], judge)
    assert choice.keep_fp16 == ("b",)
    assert choice.verdict.drop == pytest.approx(0.11)


def test_modules_the_user_keeps_are_never_given_back() -> None:
    judge, asked = _judge({"a": 0.0, "b": 0.4, "c": 0.0, "d": 0.0}, 0.1)
    choice = choose_modules(lambda: ["a", "b", "c", "d"], judge, kept=("c",))
    assert choice.keep_fp16 == ("c", "b")
    assert all("c" in kept for kept in asked)


def test_one_module_stays_in_int8_and_the_gate_missed() -> None:
    judge, _ = _judge({"a": 1, "b": 1, "c": 1}, 0.5)
    choice = choose_modules(lambda: ["a", "b", "c"], judge)
    assert (choice.keep_fp16, choice.verdict.passed) == (("a", "b"), False)
