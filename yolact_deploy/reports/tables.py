"""Results as tables for the terminal; the same dictionaries are what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from yolact_deploy.file_detection import DetectReport

_MIB = 2**20
_SHOWN_MODULES = 12
_SHOWN_ITEMS = 6


def export_table(report: dict[str, Any]) -> Table:
    """What `export` made: the spec, parity and file."""
    table = _facts(f"exported {report['spec_name']}")
    _fact(table, "file", f"{report['output']} ({_size(report['size_bytes'])}, opset {report['opset']})")
    _fact(table, "batch", f"1 to {report['max_batch']}")
    parity = report["parity"]
    if parity is None:
        _fact(table, "parity", "not checked")
    else:
        detections = sum(image["detections"] for image in parity["images"])
        errors = ", ".join(f"{name} {error:.1e}" for name, error in parity["max_abs_error"].items())
        _fact(table, "parity", f"passed on {len(parity['images'])} images with {parity['runtime']}")
        _fact(table, "  max abs error", errors)
        _fact(table, "  detections", f"{detections} of {detections} found by both")
        _fact(table, "  lowest mask IoU", f"{min(image['min_mask_iou'] for image in parity['images']):.4f}")
    _fact(table, "seconds", ", ".join(f"{step} {seconds:.1f}" for step, seconds in report["seconds"].items()))
    return table


def end_to_end_table(report: dict[str, Any]) -> Table:
    """What `export --end-to-end` made."""
    table = _facts("end to end")
    _fact(table, "file", f"{report['output']} ({_size(report['size_bytes'])}, {_size(report['added_bytes'])} more)")
    _fact(table, "input", f"uint8 [B, H, W, 3], {report['channel_order'].upper()}")
    _fact(table, "NMS", f"{report['nms']}, up to {report['max_detections']} detections an image")
    parity = report["parity"]
    if parity is None:
        _fact(table, "parity", "not checked")
    else:
        detections = sum(image["detections"] for image in parity["images"])
        _fact(table, "parity", f"passed on {len(parity['images'])} images with {parity['runtime']}")
        _fact(table, "  detections", f"{detections} found by Detector as well")
        _fact(table, "  lowest mask IoU", f"{min(image['min_mask_iou'] for image in parity['images']):.4f}")
    return table


def build_table(report: dict[str, Any]) -> Table:
    """What `build-engine` made: runtime, targets, precision, batch."""
    sidecar = report["sidecar"]
    table = _facts(f"built a plan of {sidecar['spec']['name']}")
    _fact(table, "plan", f"{report['plan']} ({_size(sidecar['plan_bytes'])})")
    _fact(table, "sidecar", report["sidecar_path"])
    _fact(table, "runtime", f"{sidecar['runtime']} {sidecar['runtime_version']}")
    _fact(table, "targets", ", ".join(sidecar["targets"]) or "this machine's GPU")
    _fact(table, "precision", sidecar["precision"])
    _fact(table, "batch", "min {min}, opt {opt}, max {max}".format(**sidecar["batch"]))
    _fact(table, "seconds", f"{report['build_seconds']:.1f}")
    return table


def detect_table(report: DetectReport) -> Table:
    """What `detect` found, one row per image or video."""
    table = Table(title="detections", title_justify="left")
    for column in ("file", "size", "detections", "overlay"):
        table.add_column(column, overflow="fold")
    for summary in report.files:
        height, width = summary.image_hw
        found = ", ".join(f"{count} {name}" for name, count in summary.counts.items()) or "none"
        frames = "" if summary.frames is None else f", {summary.frames} frames"
        row = (summary.file, f"{width}x{height}{frames}", found, summary.overlay or "not drawn")
        table.add_row(*(escape(text) for text in row))
    return table


def eval_table(report: dict[str, Any]) -> Table:
    """AP of boxes and masks, in percent."""
    table = Table(title=f"COCO AP of {escape(report['artifact'])} on {report['images']} images", title_justify="left")
    table.add_column("")
    for name in report["bbox"]:
        table.add_column(name, justify="right")
    for kind, label in (("bbox", "box"), ("segm", "mask")):
        table.add_row(label, *(f"{100 * value:.2f}" if value >= 0 else "-" for value in report[kind].values()))
    return table


def inspect_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What is the same in every kind of artifact first, then spec, tensors and modules where they are known."""
    table = _facts(f"{report['kind']} {report['path']}")
    for key, value in report.items():
        if key not in ("kind", "path", "spec_error") and not isinstance(value, (dict, list)) and value is not None:
            _fact(table, key, _size(value) if key.endswith("bytes") else str(value))
    for key in ("targets", "batch", "mask_iou", "opsets", "metadata"):
        if report.get(key):
            _fact(table, key, _inline(report[key]))
    for note in report.get("notes", ()):
        _fact(table, "note", note)
    yield table
    if report.get("inferred"):
        yield _evidence_table("seen in the tensors", report["inferred"])
        yield _evidence_table("not in the tensors", report["not_in_tensors"])
    if report.get("spec"):
        yield _spec_table(report["spec"])
    if report.get("io_tensors"):
        yield _io_table(report["io_tensors"])
    modules = report.get("module_counts") or (report.get("layers") or {}).get("module_counts")
    if modules:
        table = _facts("layers per module")
        for name, count in list(modules.items())[:_SHOWN_MODULES]:
            _fact(table, name or "(none)", str(count))
        yield table


def doctor_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What this machine has and lacks, one table per part."""
    table = _facts(f"yolact-deploy {report['version']}")
    _fact(table, "python", f"{report['python']} ({report['executable']})")
    _fact(table, "platform", report["platform"])
    _fact(table, "GPUs", ", ".join(report["gpus"]) or "none visible")
    for name, version in report["packages"].items():
        _fact(table, name, version or "not installed")
    yield table
    yield from _cuda_tables(report)
    table = Table(title="what can be done here", title_justify="left")
    for column in ("ability", "", "why"):
        table.add_column(column, overflow="fold")
    for ability in report["abilities"]:
        mark = Text("yes", "green") if ability["available"] else Text("no", "yellow")
        table.add_row(ability["name"], mark, Text(ability["reason"]))
    yield table


def _cuda_tables(report: dict[str, Any]) -> Iterator[Table]:
    cuda = report["cuda"]
    table = _facts("CUDA")
    _fact(table, "driver", f"for CUDA {cuda['driver']}" if cuda["driver"] else "none")
    _fact(table, "package", cuda["package"] or "not installed")
    for gpu in cuda["gpus"]:
        memory = _size(gpu["memory_bytes"])
        _fact(table, gpu["device"], f"{gpu['name']}, {gpu['architecture']}, {gpu['multiprocessors']} SMs, {memory}")
    for nvrtc in cuda["nvrtc"] or ({"version": "not installed", "path": ""},):
        _fact(table, "NVRTC", f"{nvrtc['version']} {nvrtc['path']}")
    cache = cuda["kernel_cache"]
    kept = f"{cache['entries']} entries, {_size(cache['size_bytes'])}{'' if cache['writable'] else ', not writable'}"
    _fact(table, "kernel cache", f"{cache['path']} ({kept})")
    yield table
    if "warmed" in report:
        table = Table(title="kernels compiled", title_justify="left")
        for column in ("architecture", "classes", "NMS", "compiler", "seconds"):
            table.add_column(column)
        for entry in report["warmed"]:
            seconds = "in the cache already" if entry["was_cached"] else f"{entry['seconds']:.1f}"
            table.add_row(entry["architecture"], str(entry["classes"]), entry["nms"], entry["compiler"], seconds)
        yield table


def _spec_table(spec: dict[str, Any]) -> Table:
    table = _facts("spec")
    for key in ("name", "input_size", "conf_activation"):
        _fact(table, key, str(spec[key]))
    names = spec["class_names"]
    _fact(table, "classes", f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    for key in ("backbone", "fpn", "protonet", "head", "priors", "preprocess", "postprocess"):
        _fact(table, key, _inline(spec[key]))
    return table


def _evidence_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("field", style="dim", overflow="fold")
    for column in ("value", "from"):
        table.add_column(column, overflow="fold")
    for row in rows:
        value = "?" if row["value"] is None else _shortened(row["value"])
        shape = "" if row["shape"] is None else f" {row['shape']}"
        source = row["how"] if row["tensor"] is None else f"{row['tensor']}{shape}: {row['how']}"
        table.add_row(row["field"], Text(value), Text(source))
    return table


def _shortened(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_ITEMS:
        return f"{len(value)}: {', '.join(_inline(item) for item in value[:_SHOWN_ITEMS])}, ..."
    return _inline(value)


def _io_table(tensors: list[dict[str, Any]]) -> Table:
    table = Table(title="inputs and outputs", title_justify="left")
    for column in ("name", "mode", "dtype", "shape"):
        table.add_column(column)
    for tensor in tensors:
        sizes = ["any" if size == -1 else str(size) for size in tensor["shape"]]
        shape = " x ".join(["B" if sizes[:1] == ["any"] else sizes[0], *sizes[1:]] if sizes else [])
        table.add_row(*(Text(text) for text in (tensor["name"], tensor["mode"], tensor["dtype"], shape)))
    return table


def _facts(title: str) -> Table:
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _fact(table: Table, name: str, value: str) -> None:
    table.add_row(name, Text(value))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return "null" if value is None else str(value)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB" if size_bytes >= _MIB else f"{size_bytes} bytes"
