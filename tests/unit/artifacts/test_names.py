from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolact_deploy.artifacts import names
from yolact_deploy.spec import SCHEMA_VERSION

ROOT = Path(__file__).parents[3]
PACKAGES = ("yolact_deploy", "exporters", "engines", "benchmarks")
SAID_ONCE = {
    *(value for name, value in vars(names).items() if name.endswith("_METADATA_KEY")),
    names.ONNX_SUFFIX,
    *names.PLAN_SUFFIXES,
    *names.CHECKPOINT_SUFFIXES,
    names.PLAN_RUNTIMES[names.TENSORRT_RTX].module,
    names.PLAN_RUNTIMES[names.TENSORRT_RTX].title,
}


def test_the_file_format_is_what_it_was() -> None:
    assert (names.INPUT, *names.OUTPUTS) == ("image", "loc", "conf", "mask_coeff", "proto")
    assert {value.removeprefix("yolact_deploy.") for value in SAID_ONCE if value.startswith("yolact_deploy.")} == {
        "spec", "precision", "checkpoint_sha256", "version", "max_batch", "mask_iou", "form", "channel_order",
        "weights_sha256",
    }  # fmt: skip
    assert SCHEMA_VERSION == 2


@pytest.mark.parametrize("name", ["m.onnx", "M.ONNX", "a.b.onnx"])
def test_an_onnx_is_known_by_its_name(name: str) -> None:
    assert (names.is_onnx(name), names.is_plan(name), names.is_checkpoint(name)) == (True, False, False)


def test_the_names_of_files_metadata_and_runtimes_are_said_in_one_module() -> None:
    said = [
        (str(path.relative_to(ROOT)), text)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != Path(names.__file__)
        for text in _strings(ast.parse(path.read_text(encoding="utf-8")))
        if text in SAID_ONCE and (package, text) != ("yolact_deploy", "yolact_deploy.spec")  # a module, too
    ]
    assert not said


def _strings(node: ast.AST) -> Iterator[str]:
    """Whole string literals, of code; parts of f-strings are prose."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif not isinstance(child, ast.JoinedStr):
            yield from _strings(child)
