"""`Detector`: images in, detections out."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args, overload

import numpy as np

from yolact_deploy.arguments import check_choice, check_counts, check_flags, check_paths, check_shares, given
from yolact_deploy.arrays import FloatArray, Image, is_device_array
from yolact_deploy.artifacts.names import ChannelOrder, CpuPrecision, GpuPrecision, OnnxRuntimeChoice
from yolact_deploy.artifacts.open import Runnable, open_runnable
from yolact_deploy.artifacts.plan_file import PlanFile
from yolact_deploy.errors import EngineError, ImageError
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.images import (
    MAX_PIXELS,
    as_array,
    check_channel_order,
    check_max_pixels,
    is_pil_image,
    read_image,
)
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.runtime.opening import open_pipeline
from yolact_deploy.runtime.protocols import HeadTensors, Pipeline
from yolact_deploy.runtime.streaming import stream_detections
from yolact_deploy.spec import ModelSpec, NmsMode

if TYPE_CHECKING:
    from yolact_deploy.runtime.gpu.pipeline import GpuBackend

BATCH_DIMENSIONS = 4  # [B, H, W, 3]
_GPU_BATCH = 4  # images of a run where there are many: each takes buffers for its masks at full size


class CudaArray(Protocol):
    """An array on a GPU: numba, CuPy, pycuda, PyTorch."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]: ...


class DlpackArray(Protocol):
    """An array of any library that knows DLPack."""

    def __dlpack__(self, *, stream: int | None = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]: ...


class PilImage(Protocol):
    """A PIL image."""

    def convert(self, mode: str) -> Any:
        """Pillow's own."""
        ...


ImageInput = Image | str | os.PathLike[str] | CudaArray | DlpackArray | PilImage
ImageList = list[Image] | list[str] | list[Path] | list[ImageInput]


class Detector:
    """An exported YOLACT, ready to run.

    `artifact` is an exported .onnx, or a plan (.engine, .plan) with its sidecar; one that `open_artifact` has read is not
    read again. `device` is "cpu", "cuda:N", "openvino:NAME" for another device of OpenVINO's, or "auto": a GPU where all that
    the model needs there is installed, else the CPU, and `fallback` says why. `runtime` is what runs an .onnx on the CPU:
    "onnxruntime", "openvino", or "auto", the faster one that computes what the file says; `description` tells which, and why.
    `cpu_precision` "bf16" lets OpenVINO compute in bfloat16 what the file has in floating point, `gpu_precision` "tf32" an
    NVIDIA GPU since Ampere in TF32 what an .onnx has in float32. `threads` bounds the CPU
    threads of the network; `nms` overrides the spec's; `batch_size` is the most images in one run of the network; `cuda_graph`
    allows whole batches to be replayed as CUDA graphs; image files of more than `max_pixels` are refused; `gpu` stands in for
    the machine's own, as in tests. Not safe to share between threads; pickles as its arguments, so that every process opens
    the model itself. Memory of a GPU is given back by `close`, at the end of a `with` block, or with the last reference.

    Raises OptionError for arguments that make no sense; ArtifactError, SpecError, EngineError or MissingDependencyError when the
    artifact can't be used here; "auto" takes
    no CPU for a GPU whose memory is full (DeviceMemoryError).

    >>> detector = Detector("model.onnx", device="cpu")
    >>> detections = detector("image.jpg", score_threshold=0.3)
    >>> detections.boxes_xyxy.shape == (len(detections), 4)
    True
    >>> detections.masks.shape == (len(detections), 48, 64)
    True
    >>> len(detector(["image.jpg", np.zeros((32, 32, 3), np.uint8)]))
    2
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str] | Runnable,
        *,
        device: str = "auto",
        runtime: OnnxRuntimeChoice = "auto",
        cpu_precision: CpuPrecision = "f32",
        gpu_precision: GpuPrecision = "fp32",
        threads: int | None = None,
        nms: NmsMode | None = None,
        batch_size: int = 1,
        cuda_graph: bool = True,
        max_pixels: int = MAX_PIXELS,
        gpu: GpuBackend | None = None,
    ) -> None:
        if not isinstance(artifact, Runnable):
            check_paths(artifact=artifact)
        check_counts(batch_size=batch_size, **given(threads=threads))
        check_flags(cuda_graph=cuda_graph)
        check_choice("runtime", runtime, get_args(OnnxRuntimeChoice))
        check_choice("cpu_precision", cpu_precision, get_args(CpuPrecision))
        check_choice("gpu_precision", gpu_precision, get_args(GpuPrecision))
        if nms is not None:
            check_choice("nms", nms, get_args(NmsMode))
        check_max_pixels(max_pixels)
        self._max_pixels = max_pixels
        options: dict[str, Any] = {
            "device": device,
            "runtime": runtime,
            "cpu_precision": cpu_precision,
            "gpu_precision": gpu_precision,
            "threads": threads,
            "nms": nms,
            "cuda_graph": cuda_graph,
            "gpu": gpu,
        }
        self._arguments = {**options, "batch_size": batch_size, "max_pixels": max_pixels}
        file = open_runnable(artifact)
        self.artifact = file.path
        self._weights_notes = () if isinstance(file, PlanFile) else file.weights_notes
        self._opened = open_pipeline(file, **options)
        self._file = file.without_content() if isinstance(file, PlanFile) else file
        self._close = weakref.finalize(self, self._opened.close)
        self._batch_size = self._bounded(batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self.artifact), self._arguments)

    def __repr__(self) -> str:
        return f"<Detector: {self.spec.name} from {self.artifact}, {self.description}>"

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec that came with the artifact."""
        return self._opened.spec

    @property
    def file(self) -> Runnable:
        """The artifact as it was opened: its digest, precision and batches; a plan without its bytes."""
        return self._file

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        return self._opened.description

    @property
    def on_gpu(self) -> bool:
        """Whether all of the work is done on a GPU, and can be `timed` there."""
        return self._opened.on_gpu

    @property
    def gpu_index(self) -> int | None:
        """N of the "cuda:N" that the network runs on, whatever does the rest; None: the CPU."""
        return self._opened.gpu_index

    @property
    def fallback(self) -> str | None:
        """Why device "auto" took the CPU, in one line; None on a GPU, and where another device was asked for."""
        return self._opened.fallback

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What it was opened with beside the artifact: `Detector(d.artifact, **d.arguments)` is another one like it."""
        return dict(self._arguments)

    @property
    def in_flight(self) -> int:
        """How many batches `stream` has on their way at once."""
        return self._opened.in_flight

    @property
    def graph_stages(self) -> tuple[str, ...]:
        """Stages, as `timed` names them, that calls replay as CUDA graphs. An image size is recorded the second time it
        is seen; before that, and on the CPU, there are none."""
        return self._opened.graph_stages

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than one might think, in words: why no GPU is used, or no CUDA graphs; that the weights are not
        those that were exported, or are no numbers; that the network gave NaN or infinite values."""
        return (*self._weights_notes, *self._opened.notes)

    @overload
    def __call__(
        self,
        image: ImageInput,
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float = 0.0,
        masks: MaskForm = "bits",
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        image: ImageList,
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float = 0.0,
        masks: MaskForm = "bits",
    ) -> list[Detections]: ...

    def __call__(
        self,
        image: ImageInput | ImageList,
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float = 0.0,
        masks: MaskForm = "bits",
    ) -> Detections | list[Detections]:
        """Detections of an image (uint8 [H, W, 3], a path, or a PIL image), or of each image of a list or a batch [B, H, W, 3].

        `channel_order` is that of arrays; files know theirs. Scores are strictly above `score_threshold`. On a GPU, images
        may be there already, and `masks` is the form in which masks come to the host: "bits", "rle" (run lengths alone,
        the least where only `rle()` is wanted) or "dense" (bytes, the most). Raises ImageError for an image that can't be
        used, DeviceError for one on another device, EngineError for what fails while running, OptionError for an unknown form
        and for a threshold outside of 0 to 1.
        """
        _check_request(channel_order, score_threshold, masks)
        if _is_one_image(image):
            return self._detect([image], channel_order, score_threshold, masks)[0]
        if _is_array(image):
            image = _images_of(image)
        if not isinstance(image, Sequence):
            raise ImageError(
                f"an image must be a NumPy array or a path, or a list of them, found {type(image).__name__}"
                f"{' (what cv2.imread gives for a file it cannot read)' if image is None else ''}."
            )
        found: list[Detections] = []
        for start in range(0, len(image), self._batch_size):
            found += self._detect(image[start : start + self._batch_size], channel_order, score_threshold, masks)
        return found

    def stream(
        self,
        images: Iterable[ImageInput],
        *,
        prefetch: int = 2,
        batch_size: int | None = None,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float = 0.0,
        masks: MaskForm = "bits",
    ) -> Iterator[Detections]:
        """Detections of each image of an iterable, in order, for throughput.

        Up to `prefetch` images are asked for and read ahead of time, in a thread; with 0 there is no thread. A GPU works
        on one batch while the next is handed to it; `batch_size` is the Detector's own by default. An exception of `images`,
        or of an image that can't be used, is raised after the detections of all images before it. The Detector can be used
        as usual while the iterator is, and after it is closed half-way. Raises ImageError at once for a single image,
        OptionError for arguments that make no sense.

        >>> frames = (np.full((48, 64, 3), gray, np.uint8) for gray in range(3))
        >>> [found.image_hw for found in Detector("model.onnx").stream(frames)]
        [(48, 64), (48, 64), (48, 64)]
        """
        _check_request(channel_order, score_threshold, masks)
        check_counts(0, prefetch=prefetch)
        if _is_one_image(images):
            raise ImageError("stream() takes an iterable of images, found a single one: call the Detector with it.")
        if not isinstance(images, Iterable):
            raise ImageError(f"stream() takes an iterable of images, found {type(images).__name__}.")
        return stream_detections(
            self._pipeline,
            images,
            # through `self`, which has to live as long as the iterator: its end closes the pipeline
            lambda item: self._load(item, channel_order),
            batch_size=self._batch_size if batch_size is None else self._bounded(batch_size),
            prefetch=prefetch,
            score_threshold=score_threshold,
            masks=masks,
        )

    def timed(
        self, images: Sequence[ImageInput], *, score_threshold: float = 0.0, masks: MaskForm = "bits"
    ) -> tuple[list[Detections], dict[str, float]]:
        """Detections of one batch, and milliseconds on the GPU of "host_to_device", "preprocess", "network", "detect",
        "masks" and "device_to_host", between events and without CUDA graphs. Raises EngineError on the CPU."""
        _check_request("bgr", score_threshold, masks)
        loaded = [self._load(image, "bgr") for image in images]
        return self._pipeline.timed(loaded, score_threshold, masks)

    def close(self) -> None:
        """Give memory back; afterwards the Detector can't be used. Safe to call twice."""
        self._close()

    def preprocess(self, images: Sequence[Image]) -> FloatArray:
        """The network's input [B, 3, S, S] for checked BGR images, by the NumPy reference."""
        return self._pipeline.stages.preprocess(images)

    def run_network(self, batch: FloatArray) -> HeadTensors:
        """Head tensors of a preprocessed batch, on the host; `conf` always softmaxed."""
        return self._pipeline.stages.run_network(batch)

    def suppress(self, heads: HeadTensors) -> list[RawDetections]:
        """Decode, threshold and NMS by the spec's thresholds, by the NumPy reference."""
        return self._pipeline.stages.suppress(heads)

    def assemble(self, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float = 0.0) -> Detections:
        """Detections at an image's size, with the model's names, by the NumPy reference; masks are made when first asked
        for, and scored (by YOLACT++) here."""
        return self._pipeline.stages.assemble(raw, image_hw, score_threshold)

    @property
    def _pipeline(self) -> Pipeline:
        if not self._close.alive:
            raise EngineError(f"this Detector of {self.artifact} is closed. Open another one.")
        return self._opened

    def _bounded(self, batch_size: int) -> int:
        check_counts(batch_size=batch_size)
        limit = self._opened.max_batch
        return batch_size if limit is None else min(batch_size, limit)

    def _load(self, item: Any, channel_order: ChannelOrder) -> Any:
        if isinstance(item, (str, os.PathLike)):
            item, channel_order = read_image(item, max_pixels=self._max_pixels), "bgr"
        return self._pipeline.load(*as_array(item, channel_order))

    def _detect(
        self, inputs: Sequence[Any], channel_order: ChannelOrder, score_threshold: float, masks: MaskForm
    ) -> list[Detections]:
        pipeline = self._pipeline
        images = [self._load(item, channel_order) for item in inputs]
        return pipeline.submit(images, score_threshold, masks).result()


@contextlib.contextmanager
def detector_for_many(
    artifact: str | os.PathLike[str] | Detector,
    **options: Any,  # of Detector, but for its batch size
) -> Iterator[tuple[Detector, int | None]]:
    """A Detector for as long as the block lasts, and the `batch_size` of its `stream`; one that is given keeps its own.

    On the CPU a batch of several images takes more memory and no less time. Raises what Detector does.
    """
    if isinstance(artifact, Detector):
        yield artifact, None
        return
    with Detector(artifact, **options) as detector:
        yield detector, _GPU_BATCH if detector.on_gpu else 1


def _is_one_image(item: Any) -> bool:
    if _is_array(item):
        return getattr(item, "ndim", 3) != BATCH_DIMENSIONS
    return isinstance(item, (str, os.PathLike)) or is_pil_image(item)


def _images_of(batch: Any) -> list[Any]:
    """The images [H, W, 3] of a batch [B, H, W, 3]."""
    try:
        return list(batch)
    except TypeError as exc:
        raise ImageError(
            f"a batch of images must be iterable, found {type(batch).__name__}. Give a list of its images."
        ) from exc


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or is_device_array(item) or hasattr(item, "__dlpack_device__")


def _check_request(channel_order: str, score_threshold: float, masks: str) -> None:
    """Raise OptionError for a form of masks that is unknown and for a threshold that no score could be held against."""
    check_channel_order(channel_order)
    check_choice("masks", masks, get_args(MaskForm))
    check_shares(score_threshold=score_threshold)


def _rebuild(artifact: str, arguments: dict[str, Any]) -> Detector:
    return Detector(artifact, **arguments)
