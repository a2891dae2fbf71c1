"""From a checkpoint on disk to an ONNX file that was proven equal to it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.checkpoints.checkpoint import build_model, load_checkpoint
from exporters.onnx_export import DEFAULT_MAX_BATCH, DEFAULT_OPSET, DcnChoice, export_onnx
from exporters.parity import ParityReport, check_parity
from yolact_deploy.artifacts.names import CHECKPOINT_SHA256_METADATA_KEY
from yolact_deploy.errors import ExportError
from yolact_deploy.files import atomic_path, check_writable, refuse_overwriting, sha256_file
from yolact_deploy.optional import require
from yolact_deploy.reference.images import read_image
from yolact_deploy.spec import ConfActivation

_MAX_LISTED_FAILURES = 3


@dataclass(frozen=True)
class ExportResult:
    output: Path
    spec_name: str
    opset: int
    max_batch: int
    size_bytes: int
    sha256: str  # of the ONNX file
    checkpoint_sha256: str
    notes: tuple[str, ...]  # where the spec came from, and what was forgiven in the checkpoint
    parity: ParityReport | None  # None where it was not asked for
    seconds: dict[str, float]  # per step

    def to_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in (field.name for field in dataclasses.fields(self))}
        parity = None if self.parity is None else self.parity.to_dict()
        return {**fields, "output": str(self.output), "notes": list(self.notes), "parity": parity}


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    spec_file: Path | None = None,
    config: str | None = None,
    opset: int = DEFAULT_OPSET,
    max_batch: int = DEFAULT_MAX_BATCH,
    conf: ConfActivation = "softmax",
    dcn: DcnChoice = "auto",
    parity_images: Sequence[Path] | None = None,
    parity: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> ExportResult:
    """Read `checkpoint`, export it, compare the ONNX with it on `parity_images` (or built-in ones), write `output`.

    `dcn` is the form of a YOLACT++'s deformable convolutions, see `export_onnx`; other models have none.

    `output` appears only when the comparison passed. `on_step` is told what begins. Raises OutputError, ImageError,
    CheckpointError, SpecError, ExportError, MissingDependencyError.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    check_writable(output)
    if parity:
        require("onnxruntime", extra="export", purpose="the comparison of the ONNX with PyTorch")
    refuse_overwriting(output, checkpoint)
    images = [(str(path), read_image(path)) for path in parity_images or ()]
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(name: str, description: str) -> Iterator[None]:
        if on_step is not None:
            on_step(description)
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    with step("load", f"reading {checkpoint}"):
        loaded = load_checkpoint(checkpoint, spec_file=spec_file, config=config)
        loaded = dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, conf_activation=conf))
        model = build_model(loaded)
    report: ParityReport | None = None
    with atomic_path(output) as temporary:
        with step("export", f"exporting {loaded.spec.name} to ONNX opset {opset}"):
            origin = {CHECKPOINT_SHA256_METADATA_KEY: loaded.sha256}
            export_onnx(model, loaded.spec, temporary, opset=opset, max_batch=max_batch, dcn=dcn, metadata=origin)
        if parity:
            with step("parity", f"comparing with PyTorch on {len(images) or 'the built-in'} images"):
                report = check_parity(model, temporary, loaded.spec, images=images, dynamic_batch=max_batch > 1)
            _require_passed(report, output)
    return ExportResult(
        output=output,
        spec_name=loaded.spec.name,
        opset=opset,
        max_batch=max_batch,
        size_bytes=output.stat().st_size,
        sha256=sha256_file(output),
        checkpoint_sha256=loaded.sha256,
        notes=loaded.notes,
        parity=report,
        seconds=seconds,
    )


def _require_passed(report: ParityReport, output: Path) -> None:
    if not report.passed:
        listed = "; ".join(report.failures()[:_MAX_LISTED_FAILURES])
        raise ExportError(
            f"{output} was not written: in {report.runtime} it does not compute what PyTorch does. {listed}. "
            "Try another onnxruntime or PyTorch version, and report it."
        )
