"""An end-to-end ONNX in onnxruntime: images in, finished detections out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, FloatArray, Image
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.names import CHANNEL_ORDER_METADATA_KEY, END_TO_END, ChannelOrder
from yolact_deploy.artifacts.onnx_file import OnnxFile, no_stages, open_onnx
from yolact_deploy.errors import (
    DeviceError,
    DeviceMemoryError,
    EngineError,
    SpecError,
    one_line,
)
from yolact_deploy.optional import require
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_sources import DenseMasks, MaskForm
from yolact_deploy.runtime.host import FinishedBatch, load_from_host, non_finite_note
from yolact_deploy.runtime.onnxruntime.network import (
    check_device,
    choose_providers,
    describe,
    first_line,
    open_session,
    session_gpu,
)
from yolact_deploy.spec import ModelSpec, NmsMode

_NUMBERS = (contract.SCORES, contract.BOXES, contract.MASK_SCORES)  # of its outputs; the others can't be NaN


class EndToEndNetwork:
    """An end-to-end ONNX on the CPU or, with device "cuda" or "cuda:N", on onnxruntime's CUDA provider.

    Raises ArtifactError for a file that is no ONNX model, SpecError for one that is not end-to-end or whose input and
    outputs contradict its spec, DeviceError when there is no such device.
    """

    def __init__(
        self, source: str | os.PathLike[str] | OnnxFile, *, device: str = "auto", threads: int | None = None
    ) -> None:
        ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
        file = open_onnx(source)
        file.check_io(END_TO_END)
        self._path, self._spec = file.path, file.spec
        self._is_rgb = file.metadata.get(CHANNEL_ORDER_METADATA_KEY) == "rgb"
        self.max_batch = file.fixed_batch
        self._session = open_session(ort, self._path, choose_providers(ort, device), threads)
        check_device(self._session, device)
        self.description = f"{describe(ort, self._session)}, end to end"
        self.gpu_index = session_gpu(self._session)
        self.doubt: str | None = None  # of the numbers that came out, once there is one

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec in the file."""
        return self._spec

    def detect(
        self,
        images: Sequence[Image],  # each uint8 [H, W, 3] BGR
        score_threshold: float = 0.0,
    ) -> list[Detections]:
        """Detections of each image with box scores strictly above the threshold; images of one size run together.

        Raises EngineError when onnxruntime fails.
        """
        if len({image.shape for image in images}) > 1 or self.max_batch == 1:
            return [found for image in images for found in self._run(image[None], score_threshold)]
        return self._run(np.stack(images), score_threshold) if images else []

    def _run(
        self,
        images: Image,  # [B, H, W, 3] BGR
        score_threshold: float,
    ) -> list[Detections]:
        if self._is_rgb:
            images = images[..., ::-1]
        names = [output.name for output in self._session.get_outputs()]
        try:
            outputs = self._session.run(names, {contract.IMAGE: np.ascontiguousarray(images)})
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on {len(images)} images of {images.shape[2]}x{images.shape[1]}: "
                f"{first_line(exc)}."
            ) from exc
        by_name = dict(zip(names, outputs, strict=True))
        if self.doubt is None:
            self.doubt = non_finite_note({name: by_name[name] for name in _NUMBERS if name in by_name})
        return [read_outputs(by_name, row, self._spec, score_threshold) for row in range(len(images))]


def read_outputs(
    outputs: Mapping[str, AnyArray],  # as `yolact_deploy.artifacts.contract` has them
    row: int,  # of the batch
    spec: ModelSpec,
    score_threshold: float = 0.0,
) -> Detections:
    """One image's detections from what an end-to-end graph gave, in whichever runtime.

    `raw` has no prior indices (-1), coefficients or prototypes, and its relative boxes are those of whole pixels.
    """
    count = int(outputs[contract.NUM_DETECTIONS][row])
    scores: FloatArray = outputs[contract.SCORES][row, :count]
    kept = np.flatnonzero(scores > np.float32(score_threshold))  # the first ones, as scores descend
    boxes: FloatArray = outputs[contract.BOXES][row, kept]
    masks: BoolArray = outputs[contract.MASKS][row, kept].astype(bool, copy=False)
    height, width = masks.shape[1:]
    sides: FloatArray = np.array([width, height, width, height], np.float32)
    raw = RawDetections(
        prior_idx=np.full(len(kept), -1, np.int64),
        class_ids=outputs[contract.CLASS_IDS][row, kept].astype(np.int64),
        scores=scores[kept],
        boxes_xyxy=boxes / sides,
        mask_coeff=np.zeros((len(kept), 0), np.float32),
        proto=np.zeros((0, 0, 0), np.float32),
    )
    mask_ious: FloatArray | None = None
    if contract.MASK_SCORES in outputs:
        mask_ious = outputs[contract.MASK_SCORES][row, kept] / raw.scores
    return Detections(
        raw=raw,
        image_hw=(height, width),
        boxes_xyxy=boxes,
        names=spec.class_names,
        category_ids=spec.category_ids,
        mask_ious=mask_ious,
        mask_source=DenseMasks(masks),
    )


class EndToEndPipeline:
    """Raises what EndToEndNetwork does, and SpecError for another `nms` than the graph's own."""

    max_batch: int | None = None
    in_flight = 1
    on_gpu = False
    graph_stages: tuple[str, ...] = ()

    def __init__(
        self, file: OnnxFile, *, device: str, threads: int | None, nms: NmsMode | None, fallback: str | None = None
    ) -> None:
        self._path, self.fallback = file.path, fallback
        self._notes: tuple[str, ...] = ()
        try:
            self._network = EndToEndNetwork(file, device="cuda" if device == "auto" else device, threads=threads)
        except DeviceMemoryError:
            raise
        except DeviceError as exc:
            if device != "auto":
                raise
            self._network = EndToEndNetwork(file, device="cpu", threads=threads)
            self._notes, self.fallback = (f"No GPU is used: {exc}",), one_line(exc)
        own = self._network.spec.postprocess.nms
        if nms not in (None, own):
            raise SpecError(
                f"{file.path} is an end-to-end ONNX, whose NMS is a part of it: {own!r}, not {nms!r}. "
                f"Export it again with that NMS, or take the ordinary export."
            )

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return self._network.description

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes if self._network.doubt is None else (*self._notes, self._network.doubt)

    @property
    def gpu_index(self) -> int | None:
        return self._network.gpu_index

    @property
    def stages(self) -> NoReturn:
        raise no_stages(self._path)

    def load(self, item: Any, channel_order: ChannelOrder) -> Image:
        return load_from_host(item, channel_order, self.description)

    def submit(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> FinishedBatch:
        return FinishedBatch(self._network.detect(images, score_threshold))

    def timed(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> NoReturn:
        raise no_stages(self._path)

    def close(self) -> None:
        pass
