"""Lint and comparison results as tables for the terminal; the same dictionaries are what `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from yolact_deploy.reports.tables import MIB, Table, facts, grid
from yolact_deploy.text import counted

_SHOWN_NODES = 3  # of those that break one rule
_SHOWN_IMAGES = 8
_SHOWN_DIGITS = 16
_STYLES = {"error": "red", "warning": "yellow"}
_AP_KINDS = (("bbox", "box"), ("segm", "mask"))
_SHOWN_OPERATORS = ("Conv", "DeformConv", "")  # "": an output of the network


def lint_table(report: dict[str, Any]) -> Table:
    """One row for each rule that was broken: `LintReport.to_dict()`."""
    columns = ("rule", ">nodes", "where", "found, and what to do") if report["findings"] else ()
    table = grid(f"Q/DQ lint of {report['path']}", *columns)
    if not report["findings"]:
        table.remarks.append("Nothing that TensorRT would refuse or be slowed down by.")
    table.remarks.append(
        f"{report['errors']} errors, {report['warnings']} warnings; "
        f"{report['int8_convolutions']} of {report['convolutions']} convolutions in INT8"
    )
    table.remarks.extend(report["notes"])
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        by_rule.setdefault(finding["rule"], []).append(finding)
    for rule, findings in by_rule.items():
        modules = list(dict.fromkeys(finding["module"] or finding["node"] for finding in findings))
        more = [f"and {len(modules) - _SHOWN_NODES} more"] if len(modules) > _SHOWN_NODES else []
        table.add_row(
            Text(rule, _STYLES[findings[0]["severity"]]),
            str(len(findings)),
            ", ".join([*modules[:_SHOWN_NODES], *more]),
            f"{findings[0]['found']}. {findings[0]['remedy']}",
        )
    return table


def precision_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What was written, the gate, the modules: `PrecisionResult.to_dict()`."""
    megabytes = (report["size_bytes"] / MIB, report["fp32_size_bytes"] / MIB)
    rows = {
        "precision": f"{report['precision']}, inputs and outputs {report['io_precision']}",
        "size": f"{megabytes[0]:.1f} MiB, {report['size_ratio']:.1%} of the {megabytes[1]:.1f} MiB in float32",
        "convolutions": f"{report['int8_convs']} of {report['convs']} in INT8",
        "kept in float32": ", ".join(f"{kept['node']} ({kept['reason']})" for kept in report["kept_float32"]),
        "kept in FP16": ", ".join(report["keep_fp16"]),
        "seconds": ", ".join(f"{step} {seconds:.1f}" for step, seconds in report["seconds"].items()),
    }
    if report["calibration"] is not None:
        found = report["calibration"]
        distinct = "" if found["distinct_images"] is None else f" ({found['distinct_images']} distinct)"
        rows["calibration"] = (
            f"{found['calibrator']}, {counted(found['images'], 'image')}{distinct}, cache {found['cache']}"
        )
    rows["accuracy"] = (report["accuracy"] or "").removeprefix("accuracy ")
    yield facts(f"wrote {report['output']}", {name: value for name, value in rows.items() if value})
    if report["gate"] is not None:
        yield gate_table(report["gate"])
    yield _modules(report["modules"])


def compare_tables(report: dict[str, Any]) -> Iterator[Table]:
    """What was compared, tensors, detections, AP, the worst images: `CompareReport.to_dict()`."""
    yield facts(
        f"compared on {counted(report['num_images'], 'image')}",
        {side.upper(): report[side]["path"] for side in ("a", "b")},
    )
    yield _sides(report)
    yield _outputs(report)
    if report["layers"] is not None:
        yield _layers(report["layers"])
    yield _agreement(report)
    if report["ap"] is not None:
        yield _average_precision(report["ap"])
    yield _worst(report)
    if report["skipped"] or report["notes"]:
        table = grid("notes")
        table.remarks.extend((*report["notes"], *(f"skipped: {entry['reason']}" for entry in report["skipped"])))
        yield table


def gate_table(gate: dict[str, Any]) -> Table:
    """What float32 reaches and what each precision loses, as AP or as agreement: the `gate` of `PrecisionResult.to_dict()`."""
    passed = "passed" if gate["passed"] else "not passed"
    limit = gate["fp16"]["limit"]
    title = f"gate of {limit}: {passed}{'' if gate['enforced'] else ' (measured only)'}"
    verdicts = {label: gate[label] for label in ("fp16", "int8") if gate[label] is not None}
    if gate["reference"] is None:
        table = grid(title, "", ">agreement", ">matched", ">missing", ">extra", ">mask IoU")
        for label, verdict in verdicts.items():
            found = verdict["agreement"]
            counts = (str(found[key]) for key in ("matched", "missing", "extra"))
            table.add_row(label, f"{found['score']:.2f}", *counts, f"{found['mask_iou']:.4f}")
        return table
    table = grid(title, "", ">box AP", ">mask AP", ">drop")
    table.add_row("fp32", f"{gate['reference']['box_ap']:.2f}", f"{gate['reference']['mask_ap']:.2f}", "")
    for label, verdict in verdicts.items():
        accuracy = verdict["accuracy"]
        table.add_row(label, f"{accuracy['box_ap']:.2f}", f"{accuracy['mask_ap']:.2f}", _points(verdict["drop"]))
    return table


def _modules(modules: list[dict[str, Any]]) -> Table:
    measured = any(module["sensitivity"] for module in modules)
    columns = ["module", "precision", ">INT8 convs", ">SQNR dB"]
    table = grid("modules", *columns, *([">alone: output dB", ">alone: AP drop"] if measured else []))
    for module in modules:
        cost = module["sensitivity"] or {}
        alone = (_decibel(cost.get("output_sqnr_db")), _points(cost.get("ap_drop"))) if measured else ()
        convs = f"{module['int8_convs']} of {module['convs']}"
        table.add_row(module["module"], module["precision"], convs, _decibel(module["sqnr_db"]), *alone)
    return table


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _points(value: float | None) -> str:
    """With its sign, but a loss or gain that rounds to nothing has none."""
    return "-" if value is None else f"{value:+.2f}" if round(value, 2) else "0.00"


def _sides(report: dict[str, Any]) -> Table:
    table = grid("", "", "A", "B")
    for label, describe in (
        ("precision", lambda side: side["precision"]),
        ("size", lambda side: f"{side['size_bytes'] / MIB:.1f} MiB"),
        ("model", lambda side: side["model"]),
        ("ran in", lambda side: side["backend"]),
        (f"SHA-256 (first {_SHOWN_DIGITS})", lambda side: side["sha256"][:_SHOWN_DIGITS]),
    ):
        table.add_row(label, *(Text(describe(report[side])) for side in ("a", "b")))
    return table


def _outputs(report: dict[str, Any]) -> Table:
    table = grid("head tensors", "output", ">max abs error", ">relative L2", ">cosine", ">NaN/inf A, B")
    for output in report["outputs"]:
        errors: list[str | Text] = [Text("not comparable", "red"), "-", "-"]
        if output["comparable"]:
            errors = [*(_small(output[name]) for name in ("max_abs_error", "relative_l2")), f"{output['cosine']:.7f}"]
        broken = Text(f"{output['non_finite_a']}, {output['non_finite_b']}", "" if output["comparable"] else "red")
        table.add_row(output["name"], *errors, broken)
    return table


def _layers(layers: dict[str, Any]) -> Table:
    """Convolutions, the outputs, and what parted first or most; the JSON has every module."""
    limit, marked = layers["parts_at"], (layers["first_parted"], layers["most_grown"])
    title = f"modules on {counted(len(layers['images']), 'image')}"
    table = grid(title, "module", ">relative L2", ">of its inputs", ">max abs error", ">range in A", ">range in B")
    for module in layers["modules"]:
        if module["operator"] in _SHOWN_OPERATORS or module["node"] in marked:
            name = Text(module["node"], "bold" if module["node"] in marked else "")
            errors = (_small(module[key]) for key in ("relative_l2", "input_relative_l2", "max_abs_error"))
            table.add_row(name, *errors, *(_range(module[key]) for key in ("range_a", "range_b")))
    parted = layers["first_parted"]
    if parted is None:
        table.remarks.append(f"None parts: relative L2 stays below {limit:g}.")
    else:
        table.remarks.append(f"{parted} is the first to part (relative L2 of {limit:g} or more).{_convolution(layers)}")
    table.remarks.append(f"{layers['most_grown']} adds most to the error of what goes in.")
    table.remarks.extend(layers["notes"])
    return table


def _convolution(layers: dict[str, Any]) -> str:
    found = [module for module in layers["modules"] if module["node"] == layers["first_convolution"]]
    if not found:
        return ""
    weights = found[0]["max_abs_weight"]
    return (
        f" Its convolution{'' if found[0]['node'] == layers['first_parted'] else ', ' + found[0]['node'] + ','} gives "
        f"{_range(found[0]['range_a'])} in A and {_range(found[0]['range_b'])} in B"
        + ("." if weights is None else f"; its weights are up to {weights:.3g} in A.")
    )


def _range(limits: list[float | None]) -> str:
    return " to ".join("-" if limit is None else f"{limit:.3g}" for limit in limits)


def _agreement(report: dict[str, Any]) -> Table:
    found = report["agreement"]
    title = f"detections above {report['score_threshold']:g}"
    table = grid(title, ">matched", ">only A", ">only B", ">mean mask IoU", ">lowest", ">agreement")
    table.add_row(
        *(str(found[key]) for key in ("matched", "only_a", "only_b")),
        *(_ratio(found[key]) for key in ("mean_mask_iou", "min_mask_iou", "quality")),
    )
    return table


def _average_precision(ap: dict[str, Any]) -> Table:
    names = list(ap["a"]["bbox"])
    table = grid(f"COCO AP on {counted(ap['images'], 'image')}", "", *(f">{name}" for name in names))
    for kind, label in _AP_KINDS:
        for side in ("a", "b"):
            values = (ap[side][kind][name] for name in names)
            table.add_row(f"{label} {side.upper()}", *(f"{100 * v:.2f}" if v >= 0 else "-" for v in values))
        differences = (ap["difference"][kind][name] for name in names)
        cells = ("-" if v is None else f"{100 * v:+.2f}" for v in differences)
        table.add_row(f"{label} B - A", *cells, style="bold")
    return table


def _worst(report: dict[str, Any]) -> Table:
    table = grid("where they differ most", "image", ">agreement", ">matched", ">only A", ">only B", ">lowest mask IoU")
    for image in sorted(report["images"], key=lambda entry: float(entry["quality"]))[:_SHOWN_IMAGES]:
        table.add_row(
            Path(image["image"]).name,
            _ratio(image["quality"]),
            *(str(image[key]) for key in ("matched", "only_a", "only_b")),
            _ratio(image["min_mask_iou"]),
        )
    return table


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
