"""Weights, images and recorded results of the original implementation (tests/golden), for all tests that need them."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parent / "golden"
SHAPES = Path(__file__).parents[1] / "examples" / "shapes"
SHAPES_CHECKPOINT = SHAPES / "yolact_resnet14_shapes_4_4909.pth"
SHAPES_SPEC = SHAPES / "spec.json"
SHAPES_VAL = SHAPES / "val"
SHAPES_IMAGES = SHAPES / "val.npz"  # some of them decoded, in the kit of a GPU machine alone
CONFIGS = (
    "yolact_base",
    "yolact_im400",
    "yolact_im700",
    "yolact_resnet50",
    "yolact_darknet53",
    "yolact_resnet50_pascal",
    "yolact_plus_base",
    "yolact_plus_resnet50",
)

Array = npt.NDArray[Any]


@functools.cache
def golden_fill() -> ModuleType:
    """The generator of the golden nets' weights and images, loaded from its file as it is data, not a package."""
    return _load(GOLDEN / "golden_fill.py")


@functools.cache
def postgen() -> ModuleType:
    """The generator of the inputs of the 40 post-processing cases."""
    return _load(GOLDEN / "post" / "postgen.py")


@functools.cache
def manifest(config: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDEN / "manifest" / f"{config}.json").read_text(encoding="utf-8"))
    return value


def manifest_shapes(config: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every entry of the original's state_dict, in its order."""
    return {entry["name"]: tuple(entry["shape"]) for entry in manifest(config)["state_dict"]}


def mask_iou_shapes(config: str) -> dict[str, tuple[int, ...]]:
    """The entries of YOLACT++'s mask-IoU network alone."""
    return {name: shape for name, shape in manifest_shapes(config).items() if name.startswith("maskiou_net.")}


def golden_weights(config: str) -> dict[str, Array]:
    """The weights the goldens of `config` were recorded with. 0.3 to 1 s each: share them within a test."""
    weights: dict[str, Array] = golden_fill().fill_(manifest_shapes(config), config)
    return weights


@functools.cache
def golden_image(index: int) -> npt.NDArray[np.uint8]:
    """uint8 BGR [H, W, 3]; 0 is 480x640, 1 is 333x500."""
    image: npt.NDArray[np.uint8] = golden_fill().image(index)
    image.flags.writeable = False
    return image


def golden_net(config: str) -> dict[str, Array]:
    """What the original computed for image 0 (tests/golden/nets)."""
    with np.load(GOLDEN / "nets" / f"{config}_img0_480x640.npz") as archive:
        return dict(archive)


def golden_dump(config: str) -> dict[str, list[dict[str, Any]]]:
    """The original's COCO results for image 0, whose id there is 100: {"bbox": [...], "mask": [...]}."""
    with gzip.open(GOLDEN / "nets" / f"coco_{config}.json.gz", "rt", encoding="utf-8") as stream:
        dump: dict[str, list[dict[str, Any]]] = json.load(stream)
    return dump


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"can't load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def f32(values: Any) -> npt.NDArray[np.float32]:
    """A literal as float32."""
    return np.array(values, np.float32)
