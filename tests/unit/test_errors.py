from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest

from yolact_deploy.errors import MissingDependencyError, YolactDeployError

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
