"""What may be missing on a machine: optional packages, imported where they are used and missing in words; a GPU's driver."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

from yolact_deploy.errors import MissingDependencyError

NVIDIA_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def require(module: str, *, extra: str, purpose: str, package: str | None = None) -> ModuleType:
    """Import `module`, or raise MissingDependencyError with the `pip install` that brings it.

    `package` is the name on PyPI where it differs from the module's. Only the absence of the package itself is
    translated: an ImportError from inside an installed package is a broken install, and is reported as such. What would tell
    its maker of its use (onnxruntime 1.31, OpenVINO) is imported so that it does not.
    """
    top_level = module.partition(".")[0]
    try:
        with _telling_nobody(top_level):
            return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.partition(".")[0] != top_level:
            raise
        raise MissingDependencyError(package or top_level, extra=extra, purpose=purpose) from exc


@contextlib.contextmanager
def _telling_nobody(package: str) -> Iterator[None]:
    """Keep a package from reporting to its maker, and from leaving the files for it in the user's home, which both begin when
    it is imported: onnxruntime has an environment variable for it, OpenVINO does without where its telemetry package is not
    there. One that the user's own program has imported already is as that left it."""
    if package == "onnxruntime":
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if package != "openvino" or package in sys.modules:
        yield
        return
    reporter = "openvino_telemetry"
    found = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # what the import system takes for a missing module
    try:
        yield
    finally:
        del sys.modules[reporter]
        if found is not None:
            sys.modules[reporter] = found


def installed_version(package: str) -> str | None:
    """Of a package by its name on PyPI; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_export(purpose: str) -> None:
    """Raise MissingDependencyError now unless all that `exporters` imports is here."""
    for module in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        require(module, extra="export", purpose=purpose)


@functools.cache
def has_nvidia_driver() -> bool:
    """Whether the driver's library is here. Without it there is no GPU to use, and nothing to install that would change that;
    knowing so takes none of the modules that use one."""
    import ctypes

    try:
        ctypes.CDLL(NVIDIA_DRIVER)
    except OSError:
        return False
    return True
