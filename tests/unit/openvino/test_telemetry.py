"""What is imported for a user reports to nobody, and leaves nothing in a home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = """
import socket, sys
def refuse(*_): raise AssertionError("somebody is told")
socket.getaddrinfo = socket.socket.connect = refuse
from yolact_deploy.optional import require
require("onnxruntime", extra="cpu", purpose="a test")
require("openvino", extra="openvino", purpose="a test").Core()
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.needs("openvino")
def test_runtimes_are_imported_without_their_telemetry(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
