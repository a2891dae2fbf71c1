"""Results as tables for the terminal; the same dictionaries are what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from yolact_deploy.text import counted, printable

MIB = 2**20
_SHOWN_MODULES = 12
_SHOWN_ITEMS = 6
_INDENT = _GAP = "  "  # before the first column, and between columns


@dataclass
class Table:
    r"""Rows of columns under a title, with remarks below. Whatever names of files and classes hold, a cell is one line of text.

    >>> table = Table("found", ("file", ">objects"))
    >>> table.add_row("a [red]:x:\n.jpg", "2")
    >>> for line in table.lines():
    ...     print(line)
    found
      file              objects
      a [red]:x:\n.jpg        2
    """

    title: str
    columns: tuple[str, ...]  # a leading ">" aligns one to the right
    headed: bool = True
    remarks: list[str] = field(default_factory=list)
    rows: list[tuple[Text, ...]] = field(default_factory=list, init=False)

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """One more row. What in it a terminal would act on is escaped, line ends too; there is no markup."""
        self.rows.append(tuple(_cell(cell, style) for cell in cells))

    def lines(self, width: int | None = None) -> Iterator[Text]:
        """The table as lines. With a `width` long cells are wrapped between words; without, each row is one line."""
        if self.title:
            yield from wrapped(Text(printable(self.title), "bold"), width)
        names = tuple(_cell(name.removeprefix(">"), "dim") for name in self.columns)
        rows = [names, *self.rows] if self.headed and any(self.columns) else self.rows
        widths = _column_widths(rows, width, keep_first=not self.headed)
        for row in rows:
            yield from self._row_lines(row, widths)
        for remark in self.remarks:
            yield from wrapped(Text(printable(remark)), width, _INDENT, _INDENT)

    def _row_lines(self, row: tuple[Text, ...], widths: list[int]) -> Iterator[Text]:
        parts = [list(wrapped(cell, width)) for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            line = Text(_INDENT)
            for name, cell, width in zip(self.columns, parts, widths, strict=True):
                part = cell[number] if number < len(cell) else Text()
                padding = " " * max(0, width - part.cell_len)
                line = line + (Text(padding) + part if name.startswith(">") else part + Text(padding)) + _GAP
            line.rstrip()
            yield line


def grid(title: str, *columns: str) -> Table:
    """A table with a headed column each; a leading ">" aligns one to the right."""
    return Table(title, columns)


def facts(title: str, rows: Mapping[str, str] = MappingProxyType({})) -> Table:
    """A table of names and values."""
    table = Table(title, ("", ""), headed=False)
    for name, value in rows.items():
        fact(table, name, value)
    return table


def fact(table: Table, name: str, value: str) -> None:
    """One more row of `facts`."""
    table.add_row(Text(name, "dim"), value)


def _cell(content: str | Text, style: str) -> Text:
    return (
        Text(printable(content), style) if isinstance(content, str) else Text(printable(content.plain), content.style)
    )


def wrapped(text: Text, width: int | None, first: str = "", rest: str = "") -> Iterator[Text]:
    """Lines of at most `width` columns of the terminal, broken between words alone: what is cut can't be copied or found. The
    first one begins with `first`, the others with `rest`."""
    line = first
    for number, word in enumerate(text.plain.split(" ")):
        longer = f"{line} {word}" if number else line + word
        if number and width is not None and cell_len(longer) > width:
            yield Text(line, text.style)
            longer = rest + word
        line = longer
    yield Text(line, text.style)


def _column_widths(rows: list[tuple[Text, ...]], width: int | None, *, keep_first: bool) -> list[int]:
    """As wide as the columns' content; where that is too much, the widest are narrowed first, down to their longest word."""
    columns = list(zip(*rows, strict=True))
    widths = [max(cell.cell_len for cell in column) for column in columns]
    if width is None:
        return widths
    longest = [max(cell_len(word) for cell in column for word in cell.plain.split(" ")) for column in columns]
    longest[:1] = widths[:1] if keep_first else longest[:1]
    room = width - len(_INDENT) - len(_GAP) * (len(columns) - 1)
    while sum(widths) > room:
        narrower = [number for number in range(len(widths)) if widths[number] > longest[number]]
        if not narrower:
            break
        widths[max(narrower, key=lambda number: widths[number])] -= 1
    return widths


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
        fact(table, "parity", f"passed on {counted(len(parity['images']), 'image')} with {parity['runtime']}")
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
        fact(table, "parity", f"passed on {counted(len(parity['images']), 'image')} with {parity['runtime']}")
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


def eval_table(report: dict[str, Any]) -> Table:
    """AP of boxes and masks, in percent."""
    title = f"COCO AP of {report['artifact']} on {counted(report['images'], 'image')}"
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
    for key in ("targets", "batch", "mask_iou", "opsets"):
        if report.get(key):
            fact(table, key, _inline(report[key]))
    metadata = {
        key: value
        for key, value in report.get("metadata", {}).items()
        if value != report.get(key.removeprefix("yolact_deploy."))  # what a row above says is not said again
    }
    if metadata:
        fact(table, "metadata", _inline(metadata))
    for note in report.get("notes", ()):
        fact(table, "note", note)
    if table.rows:
        yield table
    if report.get("inferred"):
        yield _evidence_table("seen in the tensors", report["inferred"])
        yield _evidence_table("not in the tensors", report["not_in_tensors"])
    if report.get("spec"):
        yield _spec_table("spec" if table.rows else f"spec {report['path']}", report["spec"])
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
        table.add_row(ability["name"], mark, ability["reason"])
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


def _spec_table(title: str, spec: dict[str, Any]) -> Table:
    table = facts(title)
    for key in ("name", "input_size", "conf_activation"):
        fact(table, key, str(spec[key]))
    names = spec["class_names"]
    fact(table, "classes", f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    for key in ("backbone", "fpn", "protonet", "head", "priors", "preprocess", "postprocess"):
        fact(table, key, _inline(spec[key]))
    return table


def _evidence_table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = grid(title, "field", "value", "from")
    for row in rows:
        value = "?" if row["value"] is None else _shortened(row["value"])
        shape = "" if row["shape"] is None else f" {row['shape']}"
        source = row["how"] if row["tensor"] is None else f"{row['tensor']}{shape}: {row['how']}"
        table.add_row(Text(row["field"], "dim"), value, source)
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
        table.add_row(tensor["name"], tensor["mode"], tensor["dtype"], shape)
    return table


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return "null" if value is None else str(value)
