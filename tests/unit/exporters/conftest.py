"""The bundled checkpoint, read, built and exported once per worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exporters.checkpoints.checkpoint import LoadedCheckpoint, build_model, load_checkpoint
from exporters.network.yolact import Yolact
from tests import goldens
from tests.unit.exporters.plus_models import random_plus

StateDict = dict[str, Tensor]


@pytest.fixture(scope="session", autouse=True)
def _share_the_cores() -> None:
    """Test processes that each take every core wait for each other most of the time."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


@pytest.fixture(scope="session")
def shapes() -> LoadedCheckpoint:
    return load_checkpoint(goldens.SHAPES_CHECKPOINT, spec_file=goldens.SHAPES_SPEC)


@pytest.fixture(scope="session")
def shapes_model(shapes: LoadedCheckpoint) -> Yolact:
    return build_model(shapes)


@pytest.fixture(scope="session")
def plus_model() -> Yolact:
    return random_plus()


@pytest.fixture
def save_like(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint with the names and shapes of a published configuration, edited."""

    def save(config: str, edit: Callable[[StateDict], object] | None = None, name: str = "best.pth") -> Path:
        # One stored number each: a tensor's file is as small as its storage.
        state: StateDict = {
            key: torch.full((1,), 0.5).expand(shape) if shape else torch.tensor(0)
            for key, shape in goldens.manifest_shapes(config).items()
        }
        if edit is not None:
            edit(state)
        path = tmp_path / name
        torch.save(state, path)
        return path

    return save
