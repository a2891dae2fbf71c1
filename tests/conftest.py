"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from tests.goldens import SHAPES_CHECKPOINT, SHAPES_SPEC


def pytest_configure() -> None:
    """A shell starts jobs in the background with Ctrl-C ignored, which the commands under test would inherit."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shapes_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint as ONNX, exported once per run: worker processes share it."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    model = folder / "shapes.onnx"
    with FileLock(folder / "shapes.onnx.lock"):
        if not model.exists():
            from exporters.pipeline import export_checkpoint

            export_checkpoint(SHAPES_CHECKPOINT, model, spec_file=SHAPES_SPEC, parity=False)
    return model
