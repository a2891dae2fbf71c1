"""Optional packages: imported where they are used, missing in words."""

from __future__ import annotations

import importlib
from types import ModuleType

from yolact_deploy.errors import MissingDependencyError


def require(module: str, *, extra: str, purpose: str, package: str | None = None) -> ModuleType:
    """Import `module`, or raise MissingDependencyError with the `pip install` that brings it.

    `package` is the name on PyPI where it differs from the module's. Only the absence of the package itself is
    translated: an ImportError from inside an installed package is a broken install, and is reported as such.
    """
    top_level = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and exc.name.partition(".")[0] != top_level:
            raise
        raise MissingDependencyError(package or top_level, extra=extra, purpose=purpose) from exc


def require_export(purpose: str) -> None:
    """Raise MissingDependencyError now unless all that `exporters` imports is here."""
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(module, extra="export", purpose=purpose)
