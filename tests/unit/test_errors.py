from __future__ import annotations

import copy
import importlib.metadata
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolact_deploy.errors import ArtifactError, MissingDependencyError, YolactDeployError, pip_install

Passage = Callable[[YolactDeployError], YolactDeployError]


def _kinds(kind: type[YolactDeployError]) -> Iterator[type[YolactDeployError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _raised(kind: type[YolactDeployError]) -> YolactDeployError:
    if kind is MissingDependencyError:
        return MissingDependencyError("onnxruntime", extra="cpu", purpose="running an ONNX model")
    return kind("what failed, and what to do")


@pytest.mark.parametrize("kind", list(_kinds(YolactDeployError)), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "passage",
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_every_error_survives_the_way_to_another_process(kind: type[YolactDeployError], passage: Passage) -> None:
    error = _raised(kind)
    arrived = passage(error)
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert arrived.exit_code == error.exit_code
    assert vars(arrived) == vars(error)


def test_what_is_missing_is_told_by_fields_after_the_way_too() -> None:
    arrived = pickle.loads(pickle.dumps(_raised(MissingDependencyError)))
    assert (arrived.package, arrived.extra) == ("onnxruntime", "cpu")


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, 'pip install "yolact-deploy[gpu]"'),
        ("broken {", 'pip install "yolact-deploy[gpu]"'),
        ({"url": "file://FOLDER", "dir_info": {"editable": True}}, 'pip install -e "FOLDER[gpu]"'),
        ({"url": "file://FOLDER", "dir_info": {}}, 'pip install "FOLDER[gpu]"'),
        ({"url": "file://FOLDER/a%20b.whl", "archive_info": {}}, 'pip install "FOLDER/a b.whl[gpu]"'),
        ({"url": "file://FOLDER/gone.whl", "archive_info": {}}, 'pip install "yolact-deploy[gpu]"'),
        (
            {"url": "https://example.org/y.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            'pip install "yolact-deploy[gpu] @ git+https://example.org/y.git"',
        ),
    ],
    ids=["index", "unreadable", "editable", "folder", "wheel", "wheel that is gone", "repository"],
)
def test_an_extra_is_brought_from_where_the_package_came(
    origin: object, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b.whl").touch()
    text = origin if isinstance(origin, str) or origin is None else json.dumps(origin)
    text = None if text is None else text.replace("FOLDER", str(tmp_path))
    monkeypatch.setattr("importlib.metadata.distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    assert pip_install("gpu") == expected.replace("FOLDER", str(tmp_path))


def test_a_source_tree_that_nobody_installed_is_installed_from_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert pip_install("cpu", "--upgrade") == f'pip install --upgrade -e "{Path(__file__).parents[2]}[cpu]"'


def test_a_message_has_no_control_characters_whatever_it_names() -> None:
    error = ArtifactError("can't read \x1b[2J\x00\u202e\udcff.onnx:\nexport it again.")
    assert str(error) == "can't read \\x1b[2J\\x00\\u202e\\udcff.onnx:\nexport it again."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("filler", ["a", "\x00", "甲"])
def test_a_message_is_never_long_and_keeps_what_to_do(filler: str) -> None:
    text = str(ArtifactError(f"the tensor {filler * 1_000_000} is missing. Export it again."))
    assert len(text) <= 4000
    assert text.startswith("the tensor ")
    assert text.endswith(" is missing. Export it again.")
