"""Fixtures that several folders of tests share."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
from filelock import FileLock

from tests.goldens import SHAPES_CHECKPOINT, SHAPES_SPEC

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_configure() -> None:
    """A shell starts jobs in the background with Ctrl-C ignored, which the commands under test would inherit."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault(
        "NUMBA_DISABLE_JIT", "1"
    )  # compiling takes seconds; one test does it, in a process of its own


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where PyTorch is not installed, folders whose fixtures are made with it are left out."""
    fixtures = collection_path / "conftest.py"
    needs_torch = fixtures.is_file() and re.search(r"^import torch$", fixtures.read_text(), re.MULTILINE)
    return True if needs_torch and find_spec("torch") is None else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """And test files that import what the extra `export` brings are skipped: the runtime and its own tests do without."""
    report = yield
    missing = (
        re.search(r"No module named '(torch|onnx_ir|onnxscript)'", str(report.longrepr)) if report.failed else None
    )
    if missing:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {missing[1]}")
    return report


def pytest_collection_finish() -> None:
    """What PyTorch's import leaves is most of the heap: the many collections of tests pass it over, half a second each."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for module in marker.args:
            pytest.importorskip(module)


@pytest.fixture(autouse=True)
def _a_console_of_its_own() -> None:
    """The command line keeps its consoles, which ask for the kind of the terminal when they are made; a test may change that."""
    commands = sys.modules.get("yolact_deploy.cli.console")
    if commands is not None:
        commands.console.cache_clear()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A file that takes long to make, made once per run: worker processes share it. Tests leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    folder.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        target, partial = folder / name, folder / f"partial-{name}"
        with FileLock(f"{target}.lock"):
            if not target.exists():
                make(partial)
                partial.rename(target)
        return target

    return once


@pytest.fixture(scope="session")
def shapes_onnx(made_once: MakeOnce) -> Path:
    """The bundled checkpoint as ONNX."""
    pytest.importorskip("torch")
    from exporters import export

    return made_once("shapes.onnx", lambda target: export(SHAPES_CHECKPOINT, target, spec=SHAPES_SPEC, parity=False))


@pytest.fixture(scope="session")
def plus_gridsample(made_once: MakeOnce) -> Path:
    """A small YOLACT++ with random weights as ONNX, its deformable convolutions in the form of the default."""
    return _plus(made_once, "gridsample")


@pytest.fixture(scope="session")
def plus_native(made_once: MakeOnce) -> Path:
    """The same with ONNX's own DeformConv."""
    return _plus(made_once, "native")


def _plus(made_once: MakeOnce, form: Literal["gridsample", "native"]) -> Path:
    pytest.importorskip("torch")
    from exporters.onnx_export import export_onnx
    from tests.unit.exporters.plus_models import SMALL_PLUS, random_plus

    dcn: Literal["auto", "native"] = "auto" if form == "gridsample" else "native"
    return made_once(f"plus-{form}.onnx", lambda target: export_onnx(random_plus(), SMALL_PLUS, target, dcn=dcn))
