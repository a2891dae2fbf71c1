"""The worked examples in docstrings run, and give what they say.

Each module's examples run in a folder of their own that holds what they name: `model.onnx`, a tiny network with random
weights; `spec.json`, its spec; `image.jpg`; and `annotations.json`, which has one object in that image. Examples of PyTorch
are skipped where it is not installed.
"""

from __future__ import annotations

import doctest
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from yolact_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[2]
PACKAGES = ("yolact_deploy", "exporters", "engines", "benchmarks")
WITH_EXAMPLES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
# What a user would have to have seen here, so that it does not disappear unnoticed.
SHOWN = {"yolact_deploy/runtime/detector.py", "yolact_deploy/reference/postprocess.py", "yolact_deploy/spec.py"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import cv2

    onnx = pytest.importorskip("onnx")
    from tests.unit.engines.tiny_network import TINY_SPEC, make_model

    onnx.save(make_model(TINY_SPEC), str(tmp_path / "model.onnx"))
    (tmp_path / "spec.json").write_text(TINY_SPEC.to_json(indent=2), encoding="utf-8")
    image = np.zeros((48, 64, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "image.jpg"), image)
    (tmp_path / "annotations.json").write_text(json.dumps(_one_object(TINY_SPEC)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_give_what_they_say(path: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if re.search(r"^(import|from) torch", path.read_text(encoding="utf-8"), re.MULTILINE):
        pytest.importorskip("torch")
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert not result.failed, capsys.readouterr().out
    assert result.attempted


def test_the_public_face_is_shown_by_example() -> None:
    assert not SHOWN - {str(path.relative_to(ROOT)) for path in WITH_EXAMPLES}


def _one_object(spec: ModelSpec) -> dict[str, object]:
    corners = [8, 8, 24, 8, 24, 24, 8, 24]
    return {
        "images": [{"id": 1, "file_name": "image.jpg", "width": 64, "height": 48}],
        "categories": [{"id": i, "name": n} for i, n in zip(spec.category_ids, spec.class_names, strict=True)],
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [8, 8, 16, 16], "area": 256, "segmentation": [corners]}
        ],
    }
