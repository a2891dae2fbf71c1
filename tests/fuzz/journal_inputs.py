"""Journals of runs of `detect` that were broken off, and going on from them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.fuzz.mutation import bytes_mutation, change_json, json_bytes
from yolact_deploy.detection_run import FileSummary, Journal, Run

NAME = "found.json.journal"
IMAGES = {"a.png": b"a", "b.png": b"bb"}
_DETECTION = {
    **{"image_id": 1, "category_id": 3, "score": 0.5, "class_name": "disc"},
    **{"bbox": [0, 0, 2, 2], "segmentation": {"size": [4, 5], "counts": "0T3"}},
}
_IMAGE = {"file": "a.png", "image_id": 1, "detections": [_DETECTION]}


def journal_seeds(folder: Path) -> list[bytes]:
    """Of a run over two images of which one is done, and the other is not."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        for name, content in IMAGES.items():
            Path(name).write_bytes(content)
        run = _run()
        with Journal(Path(NAME)) as journal:
            run.journal = journal
            run.begin({"top_k": 15}, resume=False, overwrite=True)
            run.add(lambda: _IMAGE)
            run.finish(FileSummary("a.png", (4, 5), {"disc": 1}, None, None))
            run.add(lambda: _IMAGE)
        return [Path(NAME).read_bytes()]
    finally:
        os.chdir(here)


def journal_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Other bytes, or another value on one of the lines."""
    if rng.random() < 0.3:
        return bytes_mutation(rng, seeds)
    lines = rng.choice(seeds).splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json_bytes(rng, change_json(rng, json.loads(lines[place]))).replace(b"\n", b" ")
    return b"\n".join([*lines, b""])


def go_on(path: Path) -> None:
    """All that `detect --resume` does with the journal before it looks at the next image, and what it writes at the end."""
    run = _run()
    try:
        with Journal(path) as journal:
            run.journal = journal
            run.begin({"top_k": 15}, resume=True, overwrite=False)
            with run.kept():
                run.write()
    finally:
        for name in ("found.json", "found.partial.json"):
            path.with_name(name).unlink(missing_ok=True)


def _run() -> Run:
    detector: Any = SimpleNamespace(
        arguments={}, file=SimpleNamespace(sha256="ab" * 32), description="CPU", fallback=None, notes=()
    )
    files = [Path(name) for name in IMAGES]
    return Run(detector, files, None, [None] * len(files), Path("found.json"), lambda _: None, None)
