"""What inputs and outputs an artifact must have, and what is said of those that are otherwise."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.engines.tiny_network import TINY_SPEC
from yolact_deploy.artifacts.contract import IoTensor, check_io, expected_io, form_of, io_problem
from yolact_deploy.artifacts.names import END_TO_END, INPUT, OUTPUTS, Form
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import ModelSpec

PLUS_SPEC = dataclasses.replace(TINY_SPEC, mask_iou_layers=((4, 3),))


def _tensors(spec: ModelSpec = TINY_SPEC, form: Form = "heads") -> dict[str, IoTensor]:
    return {
        name: IoTensor(name, wanted.mode, wanted.dtypes[0], wanted.shape)
        for name, wanted in expected_io(spec, form).items()
    }


def _problem(name: str, change: IoTensor | None, form: Form = "heads", *, unknown_fits: bool = False) -> str | None:
    tensors = _tensors(form=form)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change
    return io_problem(tensors.values(), TINY_SPEC, form, unknown_fits=unknown_fits)


def test_an_ordinary_export_has_the_image_and_the_heads_with_the_batch_left_open() -> None:
    expected = expected_io(TINY_SPEC)
    assert list(expected) == [INPUT, *OUTPUTS]
    assert expected["loc"].shape == (-1, TINY_SPEC.num_priors, 4)
    assert [tensor.mode for tensor in expected.values()] == ["input"] + ["output"] * 4


@pytest.mark.parametrize(("spec", "outputs"), [(TINY_SPEC, 5), (PLUS_SPEC, 6)], ids=["YOLACT", "YOLACT++"])
def test_only_a_yolact_plus_has_scores_of_masks_end_to_end(spec: ModelSpec, outputs: int) -> None:
    tensors = _tensors(spec, END_TO_END)
    assert len(tensors) == 1 + outputs
    assert ("mask_scores" in tensors) == bool(spec.mask_iou_layers)
    assert io_problem(tensors.values(), spec, END_TO_END) is None


@pytest.mark.parametrize("form", ["heads", END_TO_END])
def test_what_a_spec_asks_for_fits_it_in_its_own_form_alone(form: Form) -> None:
    tensors = _tensors(form=form).values()
    assert form_of(tensors) == form
    assert io_problem(tensors, TINY_SPEC, form) is None
    assert io_problem(tensors, TINY_SPEC, "heads" if form == END_TO_END else END_TO_END)


def test_a_fixed_batch_fits_and_half_heads_do() -> None:
    loc = (1, TINY_SPEC.num_priors, 4)
    assert _problem("loc", IoTensor("loc", "output", "float16", loc)) is None


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("proto", None, "it has no output proto (it has image, loc, conf, mask_coeff), its spec has one"),
        ("loc", IoTensor("loc", "input", "float32", (-1, 80, 4)), "loc is an input, its spec makes it an output"),
        ("loc", IoTensor("loc", "output", "float32", (-1, 9, 4)), "loc is [B, 9, 4], its spec makes it [B, 80, 4]"),
        ("loc", IoTensor("loc", "output", "float32", (-1, 80)), "loc is [B, 80], its spec makes it [B, 80, 4]"),
        ("loc", IoTensor("loc", "output", "float32", (-1, -1, 4)), "loc is [B, any, 4], its spec makes it [B, 80, 4]"),
        ("loc", IoTensor("loc", "output", "float64", (-1, 80, 4)), "loc is float64, it must be float32 or float16"),
        (
            "priors",
            IoTensor("priors", "output", "float32", (80, 4)),
            "it has the output priors, its spec has image, loc, conf, mask_coeff, proto",
        ),
    ],
)
def test_what_is_otherwise_is_named(name: str, change: IoTensor | None, problem: str) -> None:
    assert _problem(name, change) == problem


def test_a_size_that_is_not_told_passes_only_where_that_is_allowed() -> None:
    unknown = IoTensor("loc", "output", "float32", (-1, -1, 4))
    assert _problem("loc", unknown, unknown_fits=True) is None
    assert _problem("loc", unknown) is not None


def test_images_of_another_type_than_bytes_are_refused_end_to_end() -> None:
    assert _problem(INPUT, IoTensor(INPUT, "input", "float32", (-1, -1, -1, 3)), END_TO_END) == (
        "image is float32, it must be uint8"
    )


def test_the_error_names_the_file_and_how_to_export_its_form_again() -> None:
    with pytest.raises(
        SpecError, match=r"of a\.onnx contradict its own spec: it has no input image .*`yolact-deploy export`"
    ):
        check_io([], TINY_SPEC, "heads", "a.onnx")
    with pytest.raises(SpecError, match="export --end-to-end"):
        check_io([], TINY_SPEC, END_TO_END, "a.onnx")
