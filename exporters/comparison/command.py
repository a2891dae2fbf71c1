"""What `yolact-deploy compare` does, as a Python function with the same options.

PyTorch and ONNX are imported when it is called, and their absence is told in words.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yolact_deploy.arguments as arguments
from yolact_deploy.arguments import given
from yolact_deploy.artifacts.names import CpuPrecision, OnnxRuntimeChoice, StepProgress
from yolact_deploy.errors import OptionError
from yolact_deploy.files import check_writable, refuse_overwriting
from yolact_deploy.optional import require_export
from yolact_deploy.reference.images import MAX_PIXELS, check_max_pixels, list_images

if TYPE_CHECKING:
    from exporters.comparison.report import CompareReport

PathLike = str | os.PathLike[str]


def compare(
    a: PathLike,
    b: PathLike,
    images: PathLike | Sequence[PathLike],
    *,
    annotations: PathLike | None = None,
    config: str | None = None,
    spec: PathLike | None = None,
    score_threshold: float = 0.15,
    html: PathLike | None = None,
    device: str = "auto",
    runtime: OnnxRuntimeChoice = "auto",
    runtime_b: OnnxRuntimeChoice | None = None,
    cpu_precision: CpuPrecision = "f32",
    max_pixels: int = MAX_PIXELS,
    layers: bool = False,
    save_inputs: PathLike | None = None,
    save_outputs: PathLike | None = None,
    progress: StepProgress | None = None,
) -> CompareReport:
    """Two artifacts on the same images (files and folders): their tensors, their detections, their masks, their AP.

    Each is a checkpoint, an exported ONNX of any precision, or a plan where plans can be run; `a` is the reference. `spec`
    and `config` say what a checkpoint is. Detections above `score_threshold` are matched; with COCO `annotations` there is
    the AP of both on the images that they name. `html` is a page to write, with the worst images side by side. `device`,
    `runtime` and `cpu_precision` are Detector's; `runtime_b` is that of `b`, where it is another. Images that can't be read, or
    have more than `max_pixels`, are skipped and named. `progress(done, total)` counts images.

    With `layers` the outputs of the modules are compared too, on the first images: where the two part, and how the error
    grows. `save_inputs` and `save_outputs` are JSON files of Polygraphy's to write then, of the first image: what was put
    into `a`, and what each of its modules gave.

    Raises OptionError for arguments that make no sense, SpecError naming the first contradiction between the two,
    ImageError when no image can be read, AnnotationError, OutputError, MissingDependencyError, and what opening an artifact
    raises.

        report = exporters.compare("model.onnx", "model.int8.onnx", "photos", html="difference.html")
    """
    require_export("comparing artifacts")
    saved = given(save_inputs=save_inputs, save_outputs=save_outputs)
    arguments.check_paths(a=a, b=b, **given(annotations=annotations, spec=spec, html=html), **saved)
    arguments.check_flags(layers=layers)
    arguments.check_choice("runtime", runtime, get_args(OnnxRuntimeChoice))
    if runtime_b is not None:
        arguments.check_choice("runtime_b", runtime_b, get_args(OnnxRuntimeChoice))
    if saved and not layers:
        raise OptionError(f"{next(iter(saved))} is for the outputs of layers: give layers=True (--layers) as well.")
    arguments.check_sources(images=images)
    arguments.check_texts(device=device, **given(config=config))
    arguments.check_shares(score_threshold=score_threshold)
    check_max_pixels(max_pixels)
    arguments.check_callables(progress=progress)
    from exporters.comparison import compare as comparison
    from exporters.comparison.page import write_html

    targets = given(html=html, **saved)
    if len({Path(target).resolve() for target in targets.values()}) < len(targets):
        raise OptionError(f"{' and '.join(targets)} are one file. Give each a name of its own.")
    for target in targets.values():
        for source in (a, b, *given(annotations=annotations, spec=spec).values()):
            refuse_overwriting(target, source)
        check_writable(target)
    report = comparison.compare(
        a,
        b,
        list_images([images] if isinstance(images, (str, os.PathLike)) else images),
        annotations=annotations,
        spec_file=None if spec is None else Path(spec),
        config=config,
        score_threshold=score_threshold,
        examples=0 if html is None else comparison.DEFAULT_EXAMPLES,
        device=device,
        runtime=runtime,
        runtime_b=runtime_b,
        cpu_precision=cpu_precision,
        max_pixels=max_pixels,
        layers=layers,
        save_inputs=None if save_inputs is None else Path(save_inputs),
        save_outputs=None if save_outputs is None else Path(save_outputs),
        progress=progress,
    )
    if html is not None:
        write_html(report, html)
    return report
