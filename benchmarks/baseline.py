"""An earlier report to compare with: read, and refused where a comparison would mean nothing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from benchmarks.latency import SCHEMA
from yolact_deploy.errors import BenchmarkError
from yolact_deploy.files import sha256_file

_MACHINE = ("cpu", "cores", "gpus")
_OPTIONS = ("batch", "threads", "score_threshold", "image_sizes_hw")


def read_baseline(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of `bench --json`. Raises BenchmarkError when it is not, or of another schema."""
    path = Path(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BenchmarkError(f"can't read the baseline {path}: {exc.strerror or exc}.") from exc
    except ValueError as exc:
        raise BenchmarkError(f"the baseline {path} is not JSON ({exc}). {_how_to_make(path)}") from exc
    if not isinstance(report, dict) or "schema" not in report:
        raise BenchmarkError(f"the baseline {path} is no report of `yolact-deploy bench --json`. {_how_to_make(path)}")
    if report["schema"] != SCHEMA:
        raise BenchmarkError(
            f"the baseline {path} has schema {report['schema']!r}, this version writes and reads {SCHEMA}. "
            f"{_how_to_make(path)}"
        )
    try:
        _ = [(run["artifact"], run["latency_ms"]["p50"], run["batch"]) for run in report["runs"]]
        _ = [report[part][key] for part, keys in (("environment", ("cpu", "cores")), ("options", ())) for key in keys]
    except (KeyError, TypeError) as exc:
        raise BenchmarkError(
            f"the baseline {path} is damaged: it lacks {exc}, or has it in another form. {_how_to_make(path)}"
        ) from exc
    return report


def check_same_machine(baseline: dict[str, Any], environment: dict[str, Any], *, allow_other: bool) -> list[str]:
    """Notes on what differs. Raises BenchmarkError where the machine does, unless `allow_other`."""
    differing = _differences(baseline["environment"], environment, _MACHINE)
    if differing and not allow_other:
        raise BenchmarkError(
            f"the baseline was measured on another machine: {'; '.join(differing)}. Measure a baseline here, or compare "
            "all the same with --allow-other-machine."
        )
    notes = [f"another machine than the baseline's: {difference}." for difference in differing]
    packages = _differences(baseline["environment"].get("packages", {}), environment["packages"])
    return notes + [f"another version than the baseline's: {difference}." for difference in packages]


def check_same_work(baseline: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise BenchmarkError where the two reports measured different work."""
    differing = _differences(json.loads(json.dumps(baseline["options"])), json.loads(json.dumps(options)), _OPTIONS)
    if differing:
        raise BenchmarkError(
            f"the baseline measured other work: {'; '.join(differing)}. Use the same options and images as then."
        )


def match_runs(baseline: dict[str, Any], artifacts: list[Path]) -> list[dict[str, Any]]:
    """The baseline's run for each artifact: by file name, or the only one there is. Raises BenchmarkError without one."""
    runs = baseline["runs"]
    if len(runs) == len(artifacts) == 1:
        return list(runs)
    by_name = {Path(run["artifact"]).name: run for run in runs}
    missing = [str(path) for path in artifacts if path.name not in by_name]
    if missing:
        raise BenchmarkError(f"the baseline has no run of {', '.join(missing)}; it has {', '.join(by_name)}.")
    return [by_name[path.name] for path in artifacts]


def present_artifact(run: dict[str, Any], current: Path) -> Path | None:
    """The file that a baseline's run measured, if it is still there unchanged and is not the current one's content."""
    path = Path(run["artifact"])
    digest = run.get("sha256")
    if digest is None or not path.is_file() or sha256_file(path) != digest or sha256_file(current) == digest:
        return None
    return path


def parse_fraction(text: str) -> float:
    """ "5%" or "0.05" to 0.05. Raises BenchmarkError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise BenchmarkError(f'a regression is given as a share such as "5%" or "0.05", below 1, found {text!r}.')
    return value


def _differences(then: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...] | None = None) -> list[str]:
    keys = keys if keys is not None else tuple(sorted({*then, *now}))
    return [
        f"{key} was {_shown(then[key])}, is {_shown(now[key])}"
        for key in keys
        if key in then and key in now and then[key] != now[key]
    ]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _how_to_make(path: Path) -> str:
    return f"Make one with `yolact-deploy bench MODEL.onnx --samples --json > {path}`."
