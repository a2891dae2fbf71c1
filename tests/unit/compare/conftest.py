"""Tiny networks that can be run, and pictures for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import goldens
from tests.unit.engines.tiny_network import TINY_SPEC, Graph, make_model
from yolact_deploy.spec import ModelSpec, PostprocessSpec

# The tiny network's scores are near 1/3 everywhere, so that the highest are few only above this.
SPEC = dataclasses.replace(TINY_SPEC, postprocess=PostprocessSpec(conf_threshold=0.2, max_detections=10))

WriteTiny = Callable[..., Path]


@pytest.fixture
def write_tiny(tmp_path: Path) -> WriteTiny:
    """Write the tiny network under a name; the options are those of `make_model`."""

    def write(name: str, spec: ModelSpec = SPEC, **options: Any) -> Path:
        path = tmp_path / name
        onnx.save(make_model(spec, **options), path)
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    paths = []
    for index in range(2):
        paths.append(folder / f"golden_{index}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(goldens.golden_image(index), None, fx=0.25, fy=0.25))
    return paths


def scaled(name: str, factor: float) -> Callable[[Graph], None]:
    """An edit that multiplies a weight."""

    def edit(graph: Graph) -> None:
        graph.constant(name, numpy_helper.to_array(graph.initializers[name]) * np.float32(factor))

    return edit


def added(output: str, value: float) -> Callable[[Graph], None]:
    """An edit that adds a number to an output."""

    def edit(graph: Graph) -> None:
        constant = graph.constant("added.value", np.array(value, np.float32))
        graph.insert_before(f"outputs.{output}/Identity", lambda x: graph.add("Add", [x, constant], "added"))

    return edit
