from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporters.checkpoints.configs import load_spec, published_spec
from tests import goldens
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import ModelSpec


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_whole_spec_is_read_as_it_is() -> None:
    assert load_spec(goldens.SHAPES_SPEC) == ModelSpec.from_file(goldens.SHAPES_SPEC)


def test_an_extension_changes_only_what_it_names(tmp_path: Path) -> None:
    extension = {
        "extends": "yolact_base",
        "input_size": 400,
        "postprocess": {"top_k": 50},
        "priors": {"scales": [[9]] * 5},
    }
    spec = load_spec(_write(tmp_path / "mine.json", extension))
    base = published_spec("yolact_base")
    expected = base.to_dict()
    expected |= {"name": "mine", "input_size": 400}
    expected["postprocess"]["top_k"] = 50
    expected["priors"]["scales"] = [[9]] * 5
    assert spec == ModelSpec.from_dict(expected)


def test_new_class_names_without_ids_are_numbered_and_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    path = _write(tmp_path / "fruit.json", {"extends": "yolact_resnet50", "class_names": ["apple", "pear", "fig"]})
    spec = load_spec(path, on_note=notes.append)
    assert spec.class_names == ("apple", "pear", "fig")
    assert spec.category_ids == (1, 2, 3)
    assert notes == ["category_ids not given with class_names: taken as 1..3."]


def test_given_category_ids_are_kept_without_a_note(tmp_path: Path) -> None:
    notes: list[str] = []
    extension = {"extends": "yolact_resnet50", "name": "x", "class_names": ["a", "b"], "category_ids": [7, 3]}
    spec = load_spec(_write(tmp_path / "fruit.json", extension), on_note=notes.append)
    assert (spec.name, spec.category_ids, notes) == ("x", (7, 3), [])


def test_another_input_size_with_inherited_prior_scales_is_noted(tmp_path: Path) -> None:
    notes: list[str] = []
    load_spec(_write(tmp_path / "s.json", {"extends": "yolact_base", "input_size": 640}), on_note=notes.append)
    assert len(notes) == 1
    assert "prior scales are still those of yolact_base at 550" in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"extends": "yolact_huge"}', "no published configuration is named 'yolact_huge'"),
        ('{"extends": 7}', '"extends" must be the name'),
        ('{"extends": "yolact_base", "input_sise": 400}', "unknown field 'input_sise'"),
        ('{"extends": "yolact_base", "class_names": "cat"}', "class_names must be a list"),
        ('{"extends": "yolact_base", "class_names": ["cat"], "category_ids": [1, 2]}', "category_ids has 2 entries"),
        ('{"input_size": 400}', "lacks the field"),
    ],
)
def test_a_wrong_spec_file_is_refused_with_its_name_and_the_field(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert message in str(caught.value)
    assert "wrong.json" in str(caught.value)


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.json"):
        load_spec(tmp_path / "nowhere.json")
