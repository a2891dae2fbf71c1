"""The command line. Each command is a thin layer over a function that can be called from Python as well."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from yolact_deploy import __version__
from yolact_deploy.console import print_json, print_table, progress_bar, reports_errors, say
from yolact_deploy.optional import require_export

app = typer.Typer(
    name="yolact-deploy",
    help="Deploy YOLACT: checkpoint to ONNX, ONNX to TensorRT plans, images to masks, with proof at every step.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Runtime(str, Enum):
    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Nms(str, Enum):
    fast = "fast"
    cross_class = "cross_class"
    traditional = "traditional"


class ConfActivation(str, Enum):
    softmax = "softmax"
    logits = "logits"


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON; stdout then holds nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network. Default: all cores.")]
NmsOption = Annotated[Nms | None, typer.Option(help="Default: the model's own, FastNMS per class.")]
ArtifactArgument = Annotated[Path, typer.Argument(help="An exported .onnx (plans are built, not yet executed).")]


def main() -> None:
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
@reports_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A trained YOLACT checkpoint (.pth).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    config: Annotated[str | None, typer.Option(help="A published configuration, such as yolact_base.")] = None,
    spec: Annotated[Path | None, typer.Option(help='A spec file (JSON), whole or with "extends".')] = None,
    precision: Annotated[Precision, typer.Option(help="Only fp32 in this version.")] = Precision.fp32,
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch the model may be given.")] = 8,
    opset: Annotated[int, typer.Option(min=17, help="ONNX opset.")] = 19,
    conf: Annotated[ConfActivation, typer.Option(help="logits leaves the softmax to the runtime.")] = (
        ConfActivation.softmax
    ),
    parity: Annotated[bool, typer.Option(help="Compare the ONNX with PyTorch before it is kept.")] = True,
    parity_images: Annotated[Path | None, typer.Option(help="Image or folder for that. Default: built-in.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Turn a trained checkpoint into a self-describing ONNX, and prove that it computes the same."""
    require_export()
    from exporters.pipeline import export_checkpoint
    from yolact_deploy.errors import ExportError
    from yolact_deploy.reports import export_table
    from yolact_deploy.runtime.images import list_images

    if precision is not Precision.fp32:
        raise ExportError(f"--precision {precision.value} is not available in this version, which exports fp32.")
    with progress_bar() as progress:
        result = export_checkpoint(
            checkpoint,
            output,
            spec_file=spec,
            config=config,
            opset=opset,
            max_batch=max_batch,
            conf=conf.value,
            parity=parity,
            parity_images=list_images([parity_images]) if parity_images else None,
            on_step=lambda step: progress(step, 0, 1),
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
    else:
        for note in report["notes"]:
            say(f"note: {note}")
        print_table(export_table(report))


@app.command()
@reports_errors
def build_engine(
    model: Annotated[Path, typer.Argument(help="An ONNX exported by `yolact-deploy export`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write; its sidecar goes beside it.")],
    precision: Annotated[Precision | None, typer.Option(help="Fail unless the ONNX has this precision.")] = None,
    runtime: Annotated[Runtime, typer.Option(help="auto: TensorRT with a GPU, else TensorRT-RTX.")] = Runtime.auto,
    target: Annotated[str | None, typer.Option(help="GPUs of an RTX plan, such as sm86,sm89.")] = None,
    batch: Annotated[str, typer.Option(help="Optimization profile MIN,OPT,MAX, or one number.")] = "1,1,1",
    workspace_mib: Annotated[int | None, typer.Option(min=1, help="Limit of the builder's workspace.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Read if present, written afterwards.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Build a TensorRT or TensorRT-RTX plan. RTX plans are built ahead of time, on any machine."""
    from engines.builder import build_engine as build
    from yolact_deploy.reports import build_table

    with progress_bar() as progress:
        result = build(
            model,
            output,
            runtime=runtime.value,
            targets=[name.strip() for name in target.split(",")] if target else (),
            batch=_batch_range(batch),
            precision=precision.value if precision else None,
            workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
            timing_cache=timing_cache,
            progress=progress,
        )
    report = result.to_dict()
    if json_output:
        print_json(report)
    else:
        for note in report["notes"]:
            say(f"note: {note}")
        print_table(build_table(report))


@app.command()
@reports_errors
def detect(
    artifact: ArtifactArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, video files or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the overlays.")] = Path("detections"),
    overlays: Annotated[bool, typer.Option(help="Draw the detections.")] = True,
    coco: Annotated[Path | None, typer.Option(help="Write the detections as a COCO results file.")] = None,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Scores must be above it.")] = 0.15,
    top_k: Annotated[int, typer.Option(min=1, help="The best so many per image.")] = 15,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Detect in images, folders and videos; draw overlays, write COCO JSON."""
    from yolact_deploy.detect_files import DetectOptions, detect_files
    from yolact_deploy.files import check_writable, write_json
    from yolact_deploy.overlays import check_can_draw
    from yolact_deploy.reports import detect_table
    from yolact_deploy.runtime.detector import Detector
    from yolact_deploy.runtime.images import list_images

    files = list_images(images, videos=True)
    if overlays:
        check_can_draw()
    if coco is not None:
        check_writable(coco)
    detector = Detector(artifact, device=device, threads=threads, nms=nms.value if nms else None)
    options = DetectOptions(score_threshold, top_k, output if overlays else None)
    with progress_bar() as progress:
        report = detect_files(detector, files, options, lambda step, total: progress("detect", step, total))
    if coco is not None:
        write_json(coco, report.to_coco())
    if json_output:
        print_json(report.to_dict())
    elif report.results:
        print_table(detect_table(report))
    for error in report.failures.values():
        say(f"error: {error}")
    if report.failures and len(files) > 1:
        say(f"{len(report.failures)} of {len(files)} files failed{'; the others are done' if report.results else ''}.")
    if report.failures:
        raise typer.Exit(1 if report.results else 2)


@app.command("eval")
@reports_errors
def evaluate_ap(
    artifact: ArtifactArgument,
    images: Annotated[Path, typer.Option(help="Folder of the annotated images.")],
    annotations: Annotated[Path, typer.Option(help="COCO instance annotations (JSON).")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, by id.")] = None,
    nms: NmsOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure COCO box and mask AP."""
    from yolact_deploy.evaluation import evaluate
    from yolact_deploy.reports import eval_table
    from yolact_deploy.runtime.detector import Detector

    detector = Detector(artifact, device=device, threads=threads, nms=nms.value if nms else None)
    with progress_bar() as progress:
        report = evaluate(
            detector, images, annotations, limit=limit, progress=lambda step, total: progress("eval", step, total)
        )
    if json_output:
        print_json(report)
    else:
        print_table(eval_table(report))


@app.command()
@reports_errors
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported .onnx files, timed in turns.")],
    images: Annotated[Path | None, typer.Option(help="Image or folder to rotate. Default: one made up.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per iteration.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Timed iterations.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Iterations before them.")] = 5,
    score_threshold: Annotated[float, typer.Option(min=0, max=1, help="Masks are made above it.")] = 0.0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure latency, end to end and per stage."""
    from benchmarks.inputs import bench_images
    from benchmarks.latency import bench as run_bench
    from yolact_deploy.reports import bench_tables
    from yolact_deploy.runtime.detector import Detector

    inputs = bench_images(images)
    detectors = [Detector(path, device=device, threads=threads, batch_size=batch) for path in artifacts]
    with progress_bar() as progress:
        report = run_bench(
            detectors,
            inputs,
            batch=batch,
            iterations=iterations,
            warmup=warmup,
            score_threshold=score_threshold,
            progress=lambda step, total: progress("bench", step, total),
        )
    if json_output:
        print_json(report)
    else:
        for table in bench_tables(report):
            print_table(table)


@app.command()
@reports_errors
def inspect(
    artifact: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX, a plan or a spec file.")],
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Tell what an artifact is: spec, inputs and outputs, precision, targets."""
    from yolact_deploy.reports import inspect_tables

    report = _inspect(artifact)
    if json_output:
        print_json(report)
    else:
        for table in inspect_tables(report):
            print_table(table)


@app.command()
@reports_errors
def doctor(json_output: JsonOption = False, debug: DebugOption = False) -> None:
    """Tell what is installed, what can run here, and what to install."""
    from engines.adapters import available_runtimes
    from yolact_deploy.doctor import examine
    from yolact_deploy.reports import doctor_tables

    report = examine(available_runtimes())
    if json_output:
        print_json(report)
    else:
        for table in doctor_tables(report):
            print_table(table)


def _batch_range(text: str) -> tuple[int, int, int]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"--batch takes MIN,OPT,MAX or one number, found {text!r}.")
    numbers = [int(part) for part in parts]
    return (numbers[0], numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])


def _inspect(artifact: Path) -> dict[str, Any]:
    from yolact_deploy.errors import ArtifactError

    if not artifact.is_file():
        raise ArtifactError(
            f"{artifact} {'is a folder' if artifact.is_dir() else 'does not exist'}; nothing to inspect."
        )
    suffix = artifact.suffix.lower()
    if suffix == ".onnx":
        from engines.inspection import inspect_onnx

        return inspect_onnx(artifact)
    if suffix in (".engine", ".plan"):
        from engines.inspection import inspect_plan

        return inspect_plan(artifact)
    if suffix == ".json":
        from exporters.spec_files import load_spec

        return {"kind": "spec", "path": str(artifact), "spec": load_spec(artifact).to_dict()}
    require_export()
    from exporters.inspection import inspect_checkpoint

    return inspect_checkpoint(artifact)
