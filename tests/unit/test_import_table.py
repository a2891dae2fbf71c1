"""The import table of CONTRIBUTING.md, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "yolact_deploy": {"yolact_deploy"},
    "exporters": {"exporters", "yolact_deploy"},
    "engines": {"engines", "yolact_deploy"},
    "benchmarks": {"benchmarks", "exporters", "yolact_deploy"},
}
HEAVY = {
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "cuda",
    "cv2",
    "supervision",
    "polygraphy",
}
MODULES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[package]
    is_cli = path.is_relative_to(ROOT / "yolact_deploy" / "cli")
    for name, inside_function in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        if name in MAY_IMPORT and name not in allowed:
            assert is_cli, f"{path} imports {name}"
            assert inside_function, f"{path} imports {name} outside of a command"


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.relative_to(ROOT).parts[0] in ("yolact_deploy", "engines")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    at_top = {
        name for name, inside_function in _imports(ast.parse(path.read_text(encoding="utf-8"))) if not inside_function
    }
    assert not at_top & HEAVY


def test_the_walk_sees_imports_in_functions_and_behind_type_checking() -> None:
    source = "import a.b\nif TYPE_CHECKING:\n    import types_only\ndef f():\n    from c.d import e\n"
    assert list(_imports(ast.parse(source))) == [("a", False), ("c", True)]


def _imports(node: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Top-level names of imported packages; those under `if TYPE_CHECKING` never run and do not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name.partition(".")[0], inside_function) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield (child.module or "").partition(".")[0], inside_function
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, inside_function or is_function)
