"""The network of the benchmarks: YOLACT-550 on ResNet50 with the recorded goldens' weights, which give 100 detections."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch

from exporters.configs import published_spec
from exporters.onnx_export import export_onnx
from exporters.yolact import Yolact
from yolact_deploy.arrays import Image
from yolact_deploy.errors import YolactDeployError

CONFIG = "yolact_resnet50"
_GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def golden_model() -> tuple[Yolact, Image]:
    """The network in eval mode and its image, uint8 [480, 640, 3] BGR. Raises YolactDeployError outside of a checkout."""
    generator = _generator()
    entries = json.loads((_GOLDEN / "manifest" / f"{CONFIG}.json").read_text(encoding="utf-8"))["state_dict"]
    weights = generator.fill_({entry["name"]: tuple(entry["shape"]) for entry in entries}, CONFIG)
    model = Yolact(published_spec(CONFIG))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    image: Image = generator.image(0)
    return model.eval(), image


def export_golden(model: Yolact, target: Path) -> None:
    export_onnx(model, published_spec(CONFIG), target)


def _generator() -> Any:
    path = _GOLDEN / "golden_fill.py"
    spec = importlib.util.spec_from_file_location("golden_fill", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise YolactDeployError(f"{path} is missing: the project's own figures are measured from a checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    export_golden(golden_model()[0], Path(sys.argv[1]))
