"""Results as tables for the terminal; the same dictionaries are what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from yolact_deploy.file_detection import DetectReport

MIB = 2**20
_SHOWN_MODULES = 12
_SHOWN_ITEMS = 6


def grid(title: str, *columns: str) -> Table:
    """A table with a headed column each; a leading ">" aligns one to the right."""
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return table


def facts(title: str, rows: Mapping[str, str] = MappingProxyType({})) -> Table:
    """A table of names and values, as text."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        fact(table, name, value)
    return table


def fact(table: Table, name: str, value: str) -> None:
    """One more row of `facts`."""
    table.add_row(name, Text(value))


def size_text(size_bytes: int) -> str:
    """Bytes for people."""
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes >= MIB else f"{size_bytes} bytes"


def export_table(report: dict[str, Any]) -> Table:
    """What `export` made: the spec, parity and file."""
    table = facts(f"exported {report['spec_name']}")
    fact(table, "file", f"{report['output']} ({size_text(report['size_bytes'])}, opset {report['opset']})")
    fact(table, "batch", f"1 to {report['max_batch']}")
    parity = report["parity"]
    if parity is None:
        fact(table, "parity", "not checked")
    else:
        detections = sum(image["detections"] for image in parity["images"])
        errors = ", ".join(f"{name} {error:.1e}" for name, error in parity["max_abs_error"].items())
        fact(table, "parity", f"passed on {len(parity['images'])} images with {parity['runtime']}")
        fact(table, "  max abs error", errors)
        fact(table, "  detections", f"{detections} of {detections} found by both")
        fact(table, "  lowest mask IoU", f"{min(image['min_mask_iou'] for image in parity['images']):.4f}")
    fact(table, "seconds", ", ".join(f"{step} {seconds:.1f}" for step, seconds in report["seconds"].items()))
    return table


def end_to_end_table(report: dict[str, Any]) -> Table:
    """What `export --end-to-end` made."""
    table = facts("end to end")
    fact(
        table,
        "file",
        f"{report['output']} ({size_text(report['size_bytes'])}, {size_text(report['added_bytes'])} more)",
    )
    fact(table, "input", f"uint8 [B, H, W, 3], {report['channel_order'].upper()}")
    fact(table, "NMS", f"{report['nms']}, up to {report['max_detections']} detections an image")
    parity = report["parity"]
    if parity is None:
        fact(table, "parity", "not checked")
    else:
        detections = sum(image["detections"] for image in parity["images"])
        fact(table, "parity", f"passed on {len(parity['images'])} images with {parity['runtime']}")
        fact(table, "  detections", f"{detections} found by Detector as well")
        fact(table, "  lowest mask IoU", f"{min(image['min_mask_iou'] for image in parity['images']):.4f}")
    return table


def build_table(report: dict[str, Any]) -> Table:
    """What `build-engine` made: runtime, targets, precision, batch."""
    sidecar = report["sidecar"]
    table = facts(f"built a plan of {sidecar['spec']['name']}")
    fact(table, "plan", f"{report['plan']} ({size_text(sidecar['plan_bytes'])})")
    fact(table, "sidecar", report["sidecar_path"])
    fact(table, "runtime", f"{sidecar['runtime']} {sidecar['runtime_version']}")
    fact(table, "targets", ", ".join(sidecar["targets"]) or "this machine's GPU")
    fact(table, "precision", sidecar["precision"])
    fact(table, "batch", "min {min}, opt {opt}, max {max}".format(**sidecar["batch"]))
    fact(table, "seconds", f"{report['build_seconds']:.1f}")
    return table


def detect_table(report: DetectReport) -> Table:
    """What `detect` found, one row per image or video."""
    table = grid("detections", "file", "size", "detections", "overlay")
    for summary in report.files:
        height, width = summary.image_hw
        found = ", ".join(f"{count} {name}" for name, count in summary.counts.items()) or "none"
        frames = "" if summary.frames is None else f", {summary.frames} frames"
        row = (summary.file, f"{width}x{height}{frames}", found, summary.overlay or "not drawn")
        table.add_row(*(escape(text) for text in row))
    return table


def eval_table(report: dict[str, Any]) -> Table:
    """AP of boxes and masks, in percent."""
    title = f"COCO AP of {report['artifact']} on {report['images']} images"
    table = grid(title, "", *(f">{name}" for name in report["bbox"]))
    for kind, label in (("bbox", "box"), ("segm", "mask")):
        table.add_row(label, *(f"{100 * value:.2f}" if value >= 0 else "-" for value in report[kind].values()))
    return table


def inspect_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What is the same in every kind of artifact first, then spec, tensors and modules where they are known."""
    table = facts(f"{report['kind']} {report['path']}")
    for key, value in report.items():
        if key not in ("kind", "path", "spec_error") and not isinstance(value, (dict, list)) and value is not None:
            fact(table, key, size_text(value) if key.endswith("bytes") else str(value))
    for key in ("targets", "batch", "mask_iou", "opsets", "metadata"):
        if report.get(key):
            fact(table, key, _inline(report[key]))
    for note in report.get("notes", ()):
        fact(table, "note", note)
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
        table = facts("layers per module")
        for name, count in list(modules.items())[:_SHOWN_MODULES]:
            fact(table, name or "(none)", str(count))
        yield table


def doctor_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What this machine has and lacks, one table per part."""
    table = facts(f"yolact-deploy {report['version']}")
    fact(table, "python", f"{report['python']} ({report['executable']})")
    fact(table, "platform", report["platform"])
    fact(table, "GPUs", ", ".join(report["gpus"]) or "none visible")
    for name, version in report["packages"].items():
        fact(table, name, version or "not installed")
    yield table
    yield from _cuda_tables(report)
    table = grid("what can be done here", "ability", "", "why")
    for ability in report["abilities"]:
        mark = Text("yes", "green") if ability["available"] else Text("no", "yellow")
        table.add_row(ability["name"], mark, Text(ability["reason"]))
    yield table


def _cuda_tables(report: dict[str, Any]) -> Iterator[Table]:
    cuda = report["cuda"]
    table = facts("CUDA")
    fact(table, "driver", f"for CUDA {cuda['driver']}" if cuda["driver"] else "none")
    fact(table, "package", cuda["package"] or "not installed")
    for gpu in cuda["gpus"]:
        memory = size_text(gpu["memory_bytes"])
        fact(table, gpu["device"], f"{gpu['name']}, {gpu['architecture']}, {gpu['multiprocessors']} SMs, {memory}")
    for nvrtc in cuda["nvrtc"] or ({"version": "not installed", "path": ""},):
        fact(table, "NVRTC", f"{nvrtc['version']} {nvrtc['path']}")
    cache = cuda["kernel_cache"]
    kept = (
        f"{cache['entries']} entries, {size_text(cache['size_bytes'])}{'' if cache['writable'] else ', not writable'}"
    )
    fact(table, "kernel cache", f"{cache['path']} ({kept})")
    yield table
    if "warmed" in report:
        table = grid("kernels compiled", "architecture", "classes", "NMS", "compiler", "seconds")
        for entry in report["warmed"]:
            seconds = "in the cache already" if entry["was_cached"] else f"{entry['seconds']:.1f}"
            table.add_row(entry["architecture"], str(entry["classes"]), entry["nms"], entry["compiler"], seconds)
        yield table


def _spec_table(spec: dict[str, Any]) -> Table:
    table = facts("spec")
    for key in ("name", "input_size", "conf_activation"):
        fact(table, key, str(spec[key]))
    names = spec["class_names"]
    fact(table, "classes", f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    for key in ("backbone", "fpn", "protonet", "head", "priors", "preprocess", "postprocess"):
        fact(table, key, _inline(spec[key]))
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
    table = grid("inputs and outputs", "name", "mode", "dtype", "shape")
    for tensor in tensors:
        sizes = ["any" if size == -1 else str(size) for size in tensor["shape"]]
        shape = " x ".join(["B" if sizes[:1] == ["any"] else sizes[0], *sizes[1:]] if sizes else [])
        table.add_row(*(Text(text) for text in (tensor["name"], tensor["mode"], tensor["dtype"], shape)))
    return table


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return "null" if value is None else str(value)
