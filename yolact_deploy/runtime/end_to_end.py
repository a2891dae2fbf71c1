"""An end-to-end ONNX, whatever runs it: images in, finished detections out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from yolact_deploy.arrays import AnyArray, BoolArray, FloatArray, Image
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.names import CHANNEL_ORDER_METADATA_KEY, END_TO_END, ChannelOrder
from yolact_deploy.artifacts.onnx_file import OnnxFile, no_stages
from yolact_deploy.errors import SpecError
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.mask_sources import DenseMasks, MaskForm
from yolact_deploy.runtime.host import FinishedBatch, load_from_host, non_finite_note
from yolact_deploy.spec import ModelSpec, NmsMode

_NUMBERS = (contract.SCORES, contract.BOXES, contract.MASK_SCORES)  # of its outputs; the others can't be NaN


class EndToEndModel(ABC):
    """A file that a runtime has opened. Raises SpecError for one that is not end-to-end or whose input and outputs contradict
    its spec."""

    description: str  # of runtime and device, for people
    gpu_index: int | None = None

    def __init__(self, file: OnnxFile) -> None:
        file.check_io(END_TO_END)
        self._path, self._spec = file.path, file.spec
        self._is_rgb = file.metadata.get(CHANNEL_ORDER_METADATA_KEY) == "rgb"
        self.max_batch = file.fixed_batch
        self.doubt: str | None = None  # of the numbers that came out, once there is one

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec in the file."""
        return self._spec

    @abstractmethod
    def run(self, images: Image) -> dict[str, AnyArray]:
        """The outputs by name for images [B, H, W, 3] in the graph's order of channels. Raises EngineError."""

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give memory back; it runs no more."""

    def detect(
        self,
        images: Sequence[Image],  # each uint8 [H, W, 3] BGR
        score_threshold: float = 0.0,
    ) -> list[Detections]:
        """Detections of each image with box scores strictly above the threshold; images of one size run together.

        Raises EngineError when the runtime fails.
        """
        if len({image.shape for image in images}) > 1 or self.max_batch == 1:
            return [found for image in images for found in self._detect(image[None], score_threshold)]
        return self._detect(np.stack(images), score_threshold) if images else []

    def _detect(
        self,
        images: Image,  # [B, H, W, 3] BGR
        score_threshold: float,
    ) -> list[Detections]:
        outputs = self.run(np.ascontiguousarray(images[..., ::-1] if self._is_rgb else images))
        if self.doubt is None:
            self.doubt = non_finite_note({name: outputs[name] for name in _NUMBERS if name in outputs})
        return [read_outputs(outputs, row, self._spec, score_threshold) for row in range(len(images))]


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
    """A model as a Detector runs it. Raises SpecError for another `nms` than the graph's own."""

    max_batch: int | None = None
    in_flight = 1
    on_gpu = False
    graph_stages: tuple[str, ...] = ()

    def __init__(
        self,
        model: EndToEndModel,
        file: OnnxFile,
        *,
        nms: NmsMode | None = None,
        fallback: str | None = None,
        notes: tuple[str, ...] = (),
        suffix: str = "",  # of the description
    ) -> None:
        own = model.spec.postprocess.nms
        if nms not in (None, own):
            raise SpecError(
                f"{file.path} is an end-to-end ONNX, whose NMS is a part of it: {own!r}, not {nms!r}. "
                f"Export it again with that NMS, or take the ordinary export."
            )
        self._model, self._path, self._notes, self.fallback = model, file.path, notes, fallback
        self.description = f"{model.description}, end to end{suffix}"

    @property
    def spec(self) -> ModelSpec:
        return self._model.spec

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes if self._model.doubt is None else (*self._notes, self._model.doubt)

    @property
    def gpu_index(self) -> int | None:
        return self._model.gpu_index

    @property
    def stages(self) -> NoReturn:
        raise no_stages(self._path)

    def load(self, item: Any, channel_order: ChannelOrder) -> Image:
        return load_from_host(item, channel_order, self.description)

    def submit(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> FinishedBatch:
        return FinishedBatch(self._model.detect(images, score_threshold))

    def timed(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> NoReturn:
        raise no_stages(self._path)

    def close(self) -> None:
        self._model.close()
