"""Public functions, classes and methods say what they are, the shapes of their arrays, and the errors they raise.

ruff holds that functions and classes have a docstring (D101, D103). Here are the rules that it does not know:

- a method has one too, or implements a protocol or overrides a class that says it once for all;
- an error raised in a function's own body is named in its docstring, or the base's;
- an array comes with its shape, beside the parameter or in the docstring.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("yolact_deploy", "exporters", "engines", "benchmarks")
ARRAYS = {"FloatArray", "IntArray", "BoolArray", "AnyArray", "NDArray", "Tensor"}  # an Image is [H, W, 3] by its name
SHAPE = re.compile(r"\[[A-Za-z0-9_][^\]\n\"']*\]|any shape|one shape|broadcast")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class PublicFunction:
    where: str
    node: Function
    source: str
    documented_by: list[str] = field(default_factory=list)  # docstrings: its own, and those of what it implements


@dataclass
class PublicClass:
    node: ast.ClassDef
    path: Path

    @property
    def methods(self) -> dict[str, Function]:
        return {node.name: node for node in self.node.body if isinstance(node, Function)}

    @property
    def calls(self) -> set[str]:
        """Its methods; what is a property here may be an attribute of a class that implements it."""
        return {n for n, node in self.methods.items() if "property" not in map(ast.unparse, node.decorator_list)}

    @property
    def bases(self) -> set[str]:
        return {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in self.node.bases}


def test_public_methods_have_a_docstring_or_implement_one() -> None:
    undocumented = [function.where for function in _functions() if not function.documented_by]
    assert not undocumented, "\n".join(undocumented)


def test_errors_raised_are_named_in_the_docstring() -> None:
    silent = [
        f"{function.where}: {error}"
        for function in _functions()
        if "reports_errors" not in map(ast.unparse, function.node.decorator_list)  # a command: raises nothing
        for error in sorted(_raised(function.node))
        if not any(error in docstring for docstring in function.documented_by)
    ]
    assert not silent, "\n".join(silent)


def test_arrays_come_with_their_shapes() -> None:
    shapeless = []
    for function in _functions():
        arrays = [
            argument.arg
            for argument in ast.walk(function.node.args)
            if isinstance(argument, ast.arg) and argument.annotation and ARRAYS & _names(argument.annotation)
        ]
        text = function.source + " ".join(function.documented_by)
        if arrays and not SHAPE.search(text):
            shapeless.append(f"{function.where}: {', '.join(arrays)}")
    assert not shapeless, "\n".join(shapeless)


@cache
def _functions() -> list[PublicFunction]:
    """Public functions, and public methods of public classes."""
    found = []
    classes = list(_classes())
    protocols = [each for each in classes if "Protocol" in each.bases and each.calls]
    named = {each.node.name: each for each in classes}
    for path, tree, text in _modules():
        for node in tree.body:
            if isinstance(node, Function) and not node.name.startswith("_"):
                found.append(_public(path, node, text, []))
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                own = PublicClass(node, path)
                above = list(_above(own, named))
                above += [each for each in protocols if each.calls <= own.methods.keys() and each.node is not node]
                for name, method in own.methods.items():
                    if not name.startswith("_") and not _is_overload(method):
                        found.append(_public(path, method, text, above, f"{node.name}."))
    return found


def _names(annotation: ast.expr) -> set[str]:
    """Of the types in a union; what is inside of a dictionary of tensors has shapes of its own."""
    if isinstance(annotation, ast.BinOp):
        return _names(annotation.left) | _names(annotation.right)
    return {annotation.id} if isinstance(annotation, ast.Name) else set()


def _above(own: PublicClass, named: dict[str, PublicClass]) -> Iterator[PublicClass]:
    for base in sorted(own.bases & named.keys()):
        yield named[base]
        yield from _above(named[base], named)


def _public(path: Path, node: Function, text: str, above: list[PublicClass], prefix: str = "") -> PublicFunction:
    docstrings = [ast.get_docstring(each.methods[node.name]) for each in above if node.name in each.methods]
    end = node.body[0].lineno
    return PublicFunction(
        where=f"{path.relative_to(ROOT)}:{node.lineno} {prefix}{node.name}",
        node=node,
        source="\n".join(line.partition("#")[2] for line in text.splitlines()[node.lineno - 1 : end]),
        documented_by=[docstring for docstring in (ast.get_docstring(node), *docstrings) if docstring],
    )


def _is_overload(node: Function) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def _classes() -> Iterator[PublicClass]:
    for path, tree, _ in _modules():
        yield from (PublicClass(node, path) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


@cache
def _modules() -> list[tuple[Path, ast.Module, str]]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return [(path, ast.parse(text), text) for path, text in zip(paths, texts, strict=True)]


def _raised(function: Function) -> set[str]:
    """Names of the exceptions of `raise Name(...)` in the function itself, not in functions inside of it."""
    names = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if name[:1].isupper():  # else a function that makes the error, named where that says it
                names.add("OSError" if _is_os_error(name) else name)
        todo += ast.iter_child_nodes(node)
    return names


def _is_os_error(name: str) -> bool:
    error = getattr(builtins, name, None)
    return isinstance(error, type) and issubclass(error, OSError)
