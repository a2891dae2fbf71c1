"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from tests.goldens import SHAPES_CHECKPOINT, SHAPES_SPEC


def pytest_configure() -> None:
    """A shell starts jobs in the background with Ctrl-C ignored, which the commands under test would inherit."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where PyTorch is not installed, folders whose fixtures are made with it are left out."""
    fixtures = collection_path / "conftest.py"
    needs_torch = fixtures.is_file() and re.search(r"^import torch$", fixtures.read_text(), re.MULTILINE)
    return True if needs_torch and find_spec("torch") is None else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """And test files that import it are skipped: the runtime and its own tests do without."""
    report = yield
    if report.failed and "No module named 'torch'" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "Skipped: needs PyTorch")
    return report


@pytest.fixture(scope="session")
def shapes_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled checkpoint as ONNX, exported once per run: worker processes share it."""
    pytest.importorskip("torch")
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    model = folder / "shapes.onnx"
    with FileLock(folder / "shapes.onnx.lock"):
        if not model.exists():
            from exporters import export

            export(SHAPES_CHECKPOINT, model, spec=SHAPES_SPEC, parity=False)
    return model
