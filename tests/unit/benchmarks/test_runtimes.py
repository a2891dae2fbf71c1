"""The table of runtimes: every tick and every cross comes from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.figures.runtime_processes import ONNXRUNTIME, RefusalError, Runtime, open_worker
from benchmarks.figures.runtimes import FORMS, Subject, measure_runtime
from benchmarks.figures.runtimes_page import MEASURED, PAGE, tables, with_tables
from tests.unit.engines.tiny_network import TINY_SPEC, make_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtimes") / "tiny.onnx"
    onnx.save(make_model(TINY_SPEC), str(path))
    return path


def test_the_page_holds_what_was_measured() -> None:
    report = json.loads(MEASURED.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page, report), "run `python -m benchmarks.figures.runtimes_page`"
    assert {*report["forms"]} <= {form.name for form in FORMS}


@pytest.mark.parametrize(
    "name", ["onnxruntime", pytest.param("openvino", marks=[pytest.mark.needs("openvino"), pytest.mark.slow])]
)
def test_a_runtime_is_measured_against_the_detector(name: str, tiny: Path) -> None:
    command = [*(ONNXRUNTIME.command or ())[:-1], name]
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = measure_runtime(Subject(tiny, 1), Runtime(name, name, command), [image], has_ap=False, turns=1)
    assert found["status"] == "ok"
    assert found["max_error"] < 1e-4
    assert found["found"] == found["objects"]
    assert found["differ"] <= found["pixels"] / 1000
    assert found["time_ratio"] > 0


def test_a_refusal_is_told_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with (
        pytest.raises(RefusalError, match=r"^\S.*(protobuf|INVALID).*$"),
        open_worker(ONNXRUNTIME, tmp_path / "bad.onnx", ["loc"], (1, 3, 32, 32), 1),
    ):
        pass


def _report(**runtimes: dict[str, Any]) -> dict[str, Any]:
    return {
        "environment": {"cpu": "some CPU", "date": "2026-01-02T03:04:05"},
        "threads": 2,
        "runtimes": {name: {"title": name.upper(), "why_not": ""} for name in ("a", "b", "c", "d")}
        | {"e": {"title": "E", "why_not": "no node on this machine"}},
        "forms": {"f": {"title": "form F", "images": 1, "runtimes": runtimes}},
    }


def test_a_cross_has_its_reason_and_what_gives_other_detections_is_wrong() -> None:
    counts = {"version": "1", "objects": 10, "pixels": 500, "differ": 3}
    text = tables(
        _report(
            a={"status": "ok", **counts, "found": 10, "max_error": 2e-6, "time_ratio": 1.25},
            b={"status": "fails", "reason": "no such operator."},
            c={"status": "wrong", **counts, "found": 4, "max_error": None},
            d={"status": "ok", "version": "2", "plan_bytes": 9},
        )
    )
    assert "| form F | yes | no | differs | yes | not tried |" in text
    assert "| A | 1 | 2e-06 | 10 of 10 | 3 of 500 | 1.25 |" in text
    assert "| C | 1 | no number | 4 of 10 | 3 of 500 |  |" in text
    assert "B; form F: `no such operator`" in text
    assert "C; form F: `it runs, but finds 4 of 10 objects again`" in text
    assert "E: no node on this machine." in text
