from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np
import pytest

from exporters.checkpoints.configs import PUBLISHED
from tests.goldens import SHAPES_SPEC, manifest
from yolact_deploy.errors import SpecError
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.spec import BackboneSpec, ModelSpec, PriorsSpec


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_spec_is_the_originals_configuration(name: str) -> None:
    spec, original = PUBLISHED[name], manifest(name)
    assert list(spec.class_names) == original["class_names"]
    assert list(spec.category_ids) == original["class_index_to_category_id"]
    assert spec.input_size == original["input"]["height"]
    assert list(spec.feature_sizes) == [level["h"] for level in original["priors"]["levels"]]
    shapes = {**spec.output_shapes(), "mask": spec.output_shapes()["mask_coeff"]}
    assert all(list(shapes[key]) == original["raw_outputs"][key][1:] for key in ("loc", "conf", "mask", "proto"))
    if original["input"]["normalize"]:
        assert list(spec.preprocess.mean_rgb) == original["input"]["mean_RGB"]
        assert list(spec.preprocess.std_rgb) == original["input"]["std_RGB"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_priors_are_the_originals_bit_for_bit(name: str) -> None:
    digest = hashlib.sha256(make_priors(PUBLISHED[name]).tobytes()).hexdigest()
    assert digest == manifest(name)["priors"]["sha256_float32_le"]


def test_priors_that_are_relative_to_cells_or_given_as_roots() -> None:
    spec = dataclasses.replace(
        PUBLISHED["yolact_resnet50_pascal"],
        priors=PriorsSpec(((1,),) * 5, ((4.0,),) * 5, use_square_anchors=False, use_pixel_scales=False),
    )
    np.testing.assert_allclose(make_priors(spec)[0, 2:], [2 / 69, 0.5 / 69], rtol=1e-7)
    rooted = dataclasses.replace(
        spec, priors=dataclasses.replace(spec.priors, preapply_sqrt=True, aspect_ratios=((2.0,),) * 5)
    )
    np.testing.assert_array_equal(make_priors(rooted), make_priors(spec))


@pytest.mark.parametrize("spec", [*PUBLISHED.values(), ModelSpec.from_file(SHAPES_SPEC)], ids=lambda spec: spec.name)
def test_json_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def _broken(path: str, value: Any) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(PUBLISHED["yolact_base"].to_json())
    *parents, last = path.split(".")
    place = result
    for parent in parents:
        place = place[parent]
    if value is _MISSING:
        del place[last]
    else:
        place[last] = value
    return result


_MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("input_size", "550", "spec.input_size must be int, found str '550'"),
        ("input_size", True, "spec.input_size must be int, found bool True"),
        ("input_size", 8, "input_size must be from 32 to 8192 pixels, found 8"),
        ("input_size", 10**9, "found 1000000000"),
        ("priors.scales", [[0], [48], [96], [192], [384]], "priors.scales must be positive numbers, found 0"),
        ("priors.aspect_ratios", [[-1], [1], [1], [1], [1]], "priors.aspect_ratios must be positive numbers, found -1"),
        ("preprocess.mean_rgb", [float("nan"), 1, 1], "mean_rgb must be finite"),
        ("preprocess.std_rgb", [float("nan"), 1, 1], "std_rgb must be positive"),
        ("postprocess.conf_threshold", float("nan"), "conf_threshold must be from 0 to 1, found nan"),
        ("postprocess.iou_threshold", 7, "iou_threshold must be from 0 to 1, found 7"),
        ("name", _MISSING, "spec lacks the field 'name'"),
        ("colour", 1, "spec has the unknown field 'colour'"),
        ("schema_version", 3, "schema version 3, this version of yolact-deploy reads 1 to 2"),
        ("backbone.kind", "vgg", "spec.backbone.kind must be one of 'resnet', 'darknet', found 'vgg'"),
        ("backbone.stages", [3, "4"], r"spec.backbone.stages\[1\] must be int"),
        ("backbone.stages", 3, "spec.backbone.stages must be a list"),
        ("backbone.selected_layers", [1, 2, 9], "must name stages"),
        ("class_names", [], "class_names is empty"),
        ("category_ids", [1, 2], "category_ids has 2 entries but there are 80"),
        ("category_ids", [1] * 80, "repeated ids"),
        ("priors.scales", [[24]], "priors.scales has 1 levels"),
        ("priors.aspect_ratios", [[1], [1], [1], [1], [1, 2]], "same number of priors per cell"),
        ("preprocess.std_rgb", [1, 1, 0], "std_rgb must be positive"),
        ("preprocess.mean_rgb", [1, 1], "must have 3 entries, found 2"),
        ("protonet.layers", [[32, 2]], "odd positive kernel"),
        ("protonet.layers", [[None, -2]], "must end in a convolution"),
        ("protonet.src_level", 5, "not one of the 5 FPN levels"),
        ("postprocess.top_k", 0, "must be at least 1"),
        ("fpn", None, "spec.fpn must be an object"),
        ("backbone.dcn_blocks", [0, 4], r"one count per stage, found \[0, 4\] for the 4 stages \[3, 4, 23, 3\]"),
        ("backbone.dcn_blocks", [0, 4, -1, 3], "one count per stage"),
        ("backbone.dcn_interval", 0, "dcn_interval must be at least 1, found 0"),
        ("mask_iou_layers", [[8, 0]], "positive width and kernel"),
        ("mask_iou_layers", [[8, 3]] * 7, "leave nothing of masks of 138 x 138"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ModelSpec.from_dict(_broken(path, value))


def test_only_resnet_blocks_can_be_deformable() -> None:
    with pytest.raises(SpecError, match=r"only ResNet blocks can be deformable; backbone\.kind is darknet"):
        BackboneSpec("darknet", (1, 2), (1,), dcn_blocks=(0, 2))


@pytest.mark.parametrize(
    ("count", "interval", "blocks"),
    [
        (0, 1, ()),
        (2, 1, (4, 5)),
        (6, 1, (0, 1, 2, 3, 4, 5)),
        (9, 1, (0, 1, 2, 3, 4, 5)),  # more than there are: all
        (6, 3, (0, 3)),
        (4, 3, (3,)),  # block 0 is not among the last 4, and block numbers count from the stage's first
        (1, 3, ()),
    ],
)
def test_which_blocks_of_a_stage_are_deformable(count: int, interval: int, blocks: tuple[int, ...]) -> None:
    backbone = BackboneSpec("resnet", (3, 6), (1,), dcn_blocks=(0, count), dcn_interval=interval)
    assert backbone.deformable_blocks(0) == ()
    assert backbone.deformable_blocks(1) == blocks


def test_text_that_is_no_json_object_is_refused(tmp_path: Any) -> None:
    with pytest.raises(SpecError, match="not valid JSON"):
        ModelSpec.from_json("{")
    with pytest.raises(SpecError, match="must be an object, found list"):
        ModelSpec.from_json("[]")
    with pytest.raises(SpecError, match="No such file"):
        ModelSpec.from_file(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SpecError, match="must hold a JSON object, found list"):
        ModelSpec.from_file(tmp_path / "list.json")
