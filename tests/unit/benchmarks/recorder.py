"""A stand-in for a Detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class NamedFile:
    """An artifact of which nothing but its path is known."""

    def __init__(self, path: str) -> None:
        self._path = path

    def describe(self) -> dict[str, Any]:
        return {"path": self._path, "sha256": None, "size_bytes": None, "precision": None}


class Recorder:
    """A Detector that writes down what is asked of it."""

    on_gpu = False
    gpu_index: int | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, log: list[tuple[str, str, int]], interrupt_at: int | None = None) -> None:
        self.artifact, self.description, self._log = Path(name), "recorder", log
        self.file = NamedFile(name)
        self._interrupt_at = interrupt_at
        self._calls = 0

    def _note(self, stage: str, count: int) -> None:
        self._log.append((self.artifact.name, stage, count))

    def preprocess(self, images: list[Any]) -> list[Any]:
        self._calls += 1
        if self._calls == self._interrupt_at:
            raise KeyboardInterrupt
        self._note("preprocess", int(images[0].mean()))
        return images

    def run_network(self, batch: list[Any]) -> list[Any]:
        self._note("network", len(batch))
        return batch

    def suppress(self, heads: list[Any]) -> list[Any]:
        return heads

    def assemble(self, raw: Any, image_hw: tuple[int, int], score_threshold: float) -> Any:
        self._note("masks", image_hw[0])
        return type("Found", (), {"masks": None})

    def __call__(self, images: list[Any], score_threshold: float) -> list[Any]:
        self._note("whole", len(images))
        return []
