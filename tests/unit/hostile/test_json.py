"""JSON of every kind that is read: what a careless or hostile writer can put into it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import exporters
from tests.unit.hostile.json_readers import (
    ANNOTATIONS,
    BASELINE,
    KINDS,
    SIDECAR,
    SPEC,
    JsonReader,
    comparable,
    json_readers,
)
from yolact_deploy.errors import ArtifactError, SpecError
from yolact_deploy.reports.tables import inspect_tables
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import MAX_DEPTH, JsonError, parse_json


@pytest.fixture(params=KINDS)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> JsonReader:
    return json_readers(tmp_path)[request.param]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested 100000 deep"),
        (b'{"schema": ' * 100_000 + b"1" + b"}" * 100_000, "nested 100000 deep"),
        (b'{"schema": 1, "schema": 2}', "the key 'schema' is given twice"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "has 5001 digits"),
        (b'{"schema": NaN}', "NaN is no number"),
        (b'{"schema": -Infinity}', "-Infinity is no number"),
        (b'{"schema": 1e999}', "1e999 is no number of JSON's, or too large"),
        (b'{"schema": "\\ud800"}', "half a character"),
        (b'{"schema": "\xff"}', "not UTF-8"),
        (b"", "Expecting value"),
    ],
    ids=["lists", "objects", "twice", "digits", "nan", "infinity", "too large", "surrogate", "encoding", "empty"],
)
def test_what_no_reader_of_json_should_meet_is_refused(
    reader: JsonReader, tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / reader.file_name
    file.write_bytes(content)
    with pytest.raises(reader.error, match=reason):
        reader.read(file)


def test_a_byte_order_mark_changes_nothing(reader: JsonReader, tmp_path: Path) -> None:
    file = tmp_path / reader.file_name
    text = json.dumps(reader.valid, ensure_ascii=False)
    file.write_text(text, encoding="utf-8")
    plain = comparable(reader.read(file))
    file.write_text(text, encoding="utf-8-sig")
    assert comparable(reader.read(file)) == plain


def test_depth_counts_brackets_and_not_what_strings_hold() -> None:
    brackets = "[" * (MAX_DEPTH + 1)
    assert parse_json(json.dumps([brackets, f'\\"{brackets}'])) == [brackets, f'\\"{brackets}']
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(JsonError, match=f"nested {MAX_DEPTH + 1} deep, {MAX_DEPTH} are read"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\ud83d"', '"\\\\\\ud83d\\ude00"'])
def test_whole_characters_and_escaped_backslashes_are_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize("text", ['"\\ud83d"', '"\\ude00"', '"a\\ud83d\\ud83d\\ude00"', '"\\ud83d\\ude00\\ude00"'])
def test_halves_of_characters_are_refused(text: str) -> None:
    with pytest.raises(JsonError, match="half a character"):
        parse_json(text)


def test_the_spec_inside_an_onnx_is_read_as_strictly() -> None:
    with pytest.raises(SpecError, match="'name' is given twice"):
        ModelSpec.from_json(SPEC.to_json().replace('"name"', '"name": "other", "name"', 1))
    assert ModelSpec.from_json("\ufeff" + SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (SIDECAR.to_dict(), "the sidecar of a plan; inspect the plan beside it"),
        (BASELINE, "what `bench --json` printed"),
        (ANNOTATIONS, "COCO annotations"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "COCO results"),
        ({"images": [], "failed": [], "backend": "x", "fallback": None}, "what `detect --json` printed"),
        ({}, "JSON without any of the fields of a spec"),
        ([], "JSON without any of the fields of a spec"),
        ("text", "JSON without any of the fields of a spec"),
    ],
    ids=["sidecar", "bench", "annotations", "results", "detections", "empty", "list", "text"],
)
def test_inspect_says_what_a_json_is_that_is_no_artifact(content: object, what: str, tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"some.json is no artifact: it is {what}"):
        exporters.inspect(file)


def test_inspect_says_that_the_ranges_of_a_calibration_are_no_artifact(tmp_path: Path) -> None:
    (file := tmp_path / "ranges.json").write_text(json.dumps(json_readers(tmp_path)["calibration cache"].valid))
    with pytest.raises(ArtifactError, match="it is the ranges of a calibration"):
        exporters.inspect(file)


@pytest.mark.parametrize("name", ["a.json", "a.onnx", "a.pth", "a.engine", "a"])
def test_inspect_says_that_a_file_is_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ArtifactError, match=f"{name} is empty"):
        exporters.inspect(tmp_path / name)


def test_a_spec_is_one_table(tmp_path: Path) -> None:
    (file := tmp_path / "spec.json").write_text(SPEC.to_json())
    (table,) = inspect_tables(exporters.inspect(file))
    assert table.title == f"spec {file}"
    assert table.rows[0][1].plain == SPEC.name
