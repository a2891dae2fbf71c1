"""What is fuzzed: the files that others may have written, and everything of ours that reads them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.gate import (
    check_same_machine,
    check_same_work,
    judge_report,
    match_runs,
    present_artifact,
    read_baseline,
)
from engines.lint.linter import lint_onnx
from exporters.checkpoints.checkpoint import load_checkpoint
from exporters.checkpoints.configs import load_spec
from exporters.inspection import inspect
from exporters.onnx_edit import load_onnx, onnx_graph_digest, read_spec
from exporters.precision.calibration import CachedCalibration, read_cache, write_cache
from tests.fuzz import journal_inputs
from tests.fuzz.checkpoint_inputs import CHECKPOINT_SPEC, checkpoint_mutation, checkpoint_seeds
from tests.fuzz.image_inputs import image_mutation, image_seeds
from tests.fuzz.mutation import json_mutation, odd_text
from tests.fuzz.onnx_inputs import EXTERNAL_NAME, onnx_mutation, onnx_seeds
from tests.fuzz.target import Seeds, Target
from tests.unit.hostile.json_readers import ANNOTATIONS, BASELINE, CACHE_KEY, PLAN, SIDECAR, SPEC
from yolact_deploy.annotations import (
    category_mismatches,
    check_categories,
    image_paths,
    load_annotations,
    read_image_ids,
)
from yolact_deploy.artifacts.contract import check_expressible, expected_io
from yolact_deploy.artifacts.names import Form
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.artifacts.open import open_artifact
from yolact_deploy.artifacts.plan_file import (
    Layer,
    LayerOutput,
    Layers,
    layers_path,
    open_plan,
    sidecar_path,
    write_layers,
)
from yolact_deploy.evaluation import coco_ap
from yolact_deploy.reference.images import read_image
from yolact_deploy.spec import ModelSpec

MAX_PIXELS = 1_000_000  # small, so that what is allowed costs little: the limit itself is tried on every input


def use_spec(spec: ModelSpec) -> None:
    """What everything does with a spec that was accepted."""
    assert ModelSpec.from_json(spec.to_json()) == spec
    for form in get_args(Form):
        expected_io(spec, form)
    check_expressible(spec)


def _read_spec_text(path: Path) -> None:
    use_spec(ModelSpec.from_json(path.read_bytes().decode("utf-8", "surrogateescape")))


def _read_spec_file(path: Path) -> None:
    use_spec(load_spec(path, on_note=lambda _: None))


def _read_plan(path: Path) -> None:
    plan = path.with_suffix("")
    if not path.name.endswith(".layers.json"):
        use_spec(open_plan(plan).spec)
    inspect(plan)
    open_artifact(plan).describe()


def _read_layers(path: Path) -> None:
    inspect(path.with_name("m.engine"))


def _read_onnx(path: Path) -> None:
    for whole in (False, True):
        file = open_onnx(path, whole=whole)
        _ = file.describe(), file.batch, file.form, file.operators, file.modules, file.dtypes, len(file.content)
        _ = file.weights_notes
    use_spec(file.spec)
    _ = file.mask_iou
    file.check_io(file.form)


def _edit_onnx(path: Path) -> None:
    model = load_onnx(path)
    read_spec(model, path)
    onnx_graph_digest(model)


def _read_checkpoint(path: Path) -> None:
    load_checkpoint(path, spec_file=path.with_name("spec.json"))


def _read_image(path: Path) -> None:
    image = read_image(path, max_pixels=MAX_PIXELS)
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.size <= 3 * MAX_PIXELS


def _evaluate(path: Path) -> None:
    coco = load_annotations(path)
    check_categories(coco, SPEC.category_ids, path)
    category_mismatches(coco, SPEC)
    ids = sorted(coco.getImgIds())
    mask = {"size": [10, 10], "counts": "0T3"}
    found = [
        {"image_id": i, "category_id": SPEC.category_ids[0], "score": 0.5, "bbox": [0, 0, 10, 10], "segmentation": mask}
        for i in ids
        if (coco.imgs[i]["height"], coco.imgs[i]["width"]) == (10, 10)
    ]
    for kind in ("bbox", "segm"):
        coco_ap(coco, [dict(each) for each in found], kind, ids)


def _find_images(path: Path) -> None:
    image_paths(read_image_ids(path).values(), path.parent, path)


def _cache_seeds(folder: Path) -> list[bytes]:
    path = folder / "made.json"
    write_cache(path, CACHE_KEY, CachedCalibration({"a": 1.5}, {"a": 2.0, "b": float("inf")}, 4, ("x.jpg",)))
    return [path.read_bytes()]


def _layers_seeds(folder: Path) -> list[bytes]:
    path = layers_path(folder / "m.engine")
    layer = Layer("a", "Conv", ("m",), (LayerOutput("o", "float32", (-1, 2)),))
    write_layers(path, Layers("engine", (layer,)), SIDECAR.plan_sha256)
    return [path.read_bytes()]


_TIMES = {"p50": 10.0, "p90": 11.0, "mean": 10.0, "n": 30}
_RUN: dict[str, Any] = {
    **BASELINE["runs"][0],
    "sha256": "ab" * 32,
    "latency_ms": _TIMES,
    "latency_ci_ms": {"p50": [9.0, 11.0]},
    "cpu_ms": _TIMES,
}
_REPORT: dict[str, Any] = {
    **BASELINE,
    "yardstick_ms": _TIMES,
    "yardstick_samples_ms": [1.0] * 30,
    "runs": [{**_RUN, "samples_ms": {"latency": [10.0] * 30}}],
    "watch": {"other_processes_share": 0.0, "steal_share": 0.0},
}


def _read_baseline(path: Path) -> None:
    """All that `bench --baseline` does with the file."""
    baseline = read_baseline(path)
    report = json.loads(json.dumps(_REPORT))
    check_same_machine(baseline, report["environment"], allow_other=True)
    matched = match_runs(baseline, [Path("old/m.onnx")])
    _ = [present_artifact(run, path) for run in matched]
    check_same_work(baseline, report["options"])
    judge_report(report, baseline, matched, [None], 0.05)


def _by_name(read: Callable[[Path], object], suffix: str = "") -> Callable[[Path], object]:
    """A reader of inputs that hold a name: `read` is given that name, of something that is not there or is no file."""

    def reader(path: Path) -> object:
        name = path.read_bytes().decode("utf-8", "surrogateescape")
        return read(path.parent / f"{name}{suffix}")

    return reader


def _name_mutation(rng: random.Random, _: Sequence[bytes]) -> bytes:
    special = rng.choice(("/dev/null", "/dev/zero", "/proc/self", "a" * 300))
    name = rng.choice((odd_text(rng), odd_text(rng) + odd_text(rng), special))
    return name.encode("utf-8", "surrogatepass")


def _no_seeds(_: Path) -> list[bytes]:
    return []


def _json_seeds(*values: Any) -> Seeds:
    return lambda _: [json.dumps(value, ensure_ascii=False).encode() for value in values]


_SCALES = [[24], [48], [96], [192], [384]]
_EXTENDING = {"extends": "yolact_base", "name": "mine", "class_names": ["a", "b"], "priors": {"scales": _SCALES}}
_SCORING = b"onnx"  # lies beside the plan of a YOLACT++
_SCORING_NAME = "m.engine.mask_iou.onnx"
_PLUS_SIDECAR = {
    **SIDECAR.to_dict(),
    "mask_iou": {"name": _SCORING_NAME, "sha256": hashlib.sha256(_SCORING).hexdigest(), "num_bytes": len(_SCORING)},
}
_BY_NAME = (
    read_image,
    open_onnx,
    open_plan,
    lint_onnx,
    load_onnx,
    load_annotations,
    read_baseline,
    load_spec,
    load_checkpoint,
)

TARGETS: dict[str, Target] = {
    "spec text": Target(
        "spec.json", _json_seeds(SPEC.to_dict(), CHECKPOINT_SPEC.to_dict()), json_mutation, (_read_spec_text,), 12
    ),
    "spec file": Target(
        "spec.json", _json_seeds(SPEC.to_dict(), _EXTENDING), json_mutation, (_read_spec_file, inspect), 12
    ),
    "sidecar": Target(
        sidecar_path("m.engine").name,
        _json_seeds(SIDECAR.to_dict(), _PLUS_SIDECAR),
        json_mutation,
        (_read_plan,),
        10,
        {"m.engine": PLAN, _SCORING_NAME: _SCORING},
    ),
    "layers": Target(
        layers_path("m.engine").name,
        _layers_seeds,
        json_mutation,
        (_read_layers,),
        3,
        {"m.engine": PLAN, "m.engine.json": json.dumps(SIDECAR.to_dict()).encode()},
    ),
    "annotations": Target(
        "instances.json", _json_seeds(ANNOTATIONS), json_mutation, (_evaluate, _find_images), 12, {"a.png": b""}
    ),
    "baseline": Target("baseline.json", _json_seeds(BASELINE, _REPORT), json_mutation, (_read_baseline,), 8),
    "calibration cache": Target(
        "cache.json", _cache_seeds, json_mutation, (lambda path: read_cache(path, CACHE_KEY),), 5
    ),
    "journal": Target(
        journal_inputs.NAME,
        journal_inputs.journal_seeds,
        journal_inputs.journal_mutation,
        (journal_inputs.go_on,),
        5,
        journal_inputs.IMAGES,
    ),
    "onnx": Target(
        "m.onnx",
        lambda _: onnx_seeds(),
        onnx_mutation,
        (_read_onnx, inspect, lint_onnx, _edit_onnx),
        10,
        {EXTERNAL_NAME: bytes(5000)},
    ),
    "checkpoint": Target(
        "m.pth",
        lambda _: checkpoint_seeds(),
        checkpoint_mutation,
        (inspect, _read_checkpoint),
        5,
        {"spec.json": CHECKPOINT_SPEC.to_json().encode()},
    ),
    "image": Target("a.png", lambda _: image_seeds(), image_mutation, (_read_image,), 15),
    "name": Target(
        "name.txt",
        _no_seeds,
        _name_mutation,
        (
            *(_by_name(inspect, suffix) for suffix in ("", ".onnx", ".engine", ".json", ".pth")),
            *(_by_name(open_artifact, suffix) for suffix in ("", ".onnx", ".engine")),
            *(_by_name(read) for read in _BY_NAME),
        ),
        3,
        reads_elsewhere=True,
    ),
}
