"""Detection in NumPy around a network that may run anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from yolact_deploy.arrays import FloatArray, Image, is_device_array
from yolact_deploy.artifacts.names import ChannelOrder
from yolact_deploy.errors import DeviceError, EngineError
from yolact_deploy.reference.detections import Detections, RawDetections
from yolact_deploy.reference.images import check_image, preprocess, read_image
from yolact_deploy.reference.mask_sources import MaskForm
from yolact_deploy.reference.postprocess import assemble_masks, detect, make_priors, rescore_masks, softmax
from yolact_deploy.runtime.protocols import AsynchronousNetwork, HeadTensors, Network, Pending
from yolact_deploy.spec import ModelSpec, NmsMode


class HostPipeline:
    """The reference: what every other pipeline is compared with."""

    on_gpu = False
    graph_stages: tuple[str, ...] = ()

    def __init__(
        self,
        network: Network,
        *,
        nms: NmsMode | None = None,  # the spec's own
        suffix: str = "",  # of the description
        notes: tuple[str, ...] = (),
        fallback: str | None = None,
        gpu_index: int | None = None,  # of the GPU that the network is on
    ) -> None:
        self._network, self._suffix, self._notes = network, suffix, notes
        self._doubt: str | None = None  # of the network's numbers
        self.fallback, self.gpu_index = fallback, gpu_index
        self._postprocess = network.spec.postprocess
        if nms is not None:
            self._postprocess = dataclasses.replace(self._postprocess, nms=nms)

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return self._network.description + self._suffix

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes if self._doubt is None else (*self._notes, self._doubt)

    @property
    def max_batch(self) -> int | None:
        return self._network.max_batch

    @property
    def in_flight(self) -> int:
        return self._network.runs_at_once if isinstance(self._network, AsynchronousNetwork) else 1

    @property
    def stages(self) -> HostPipeline:
        return self

    def preprocess(self, images: Sequence[Image]) -> FloatArray:
        """The network's input [B, 3, S, S] for checked BGR images."""
        return preprocess(images, self.spec)

    def run_network(self, batch: FloatArray) -> HeadTensors:
        """Head tensors of a preprocessed batch; `conf` always softmaxed."""
        return self._checked(self._network.run(batch))

    def suppress(self, heads: HeadTensors) -> list[RawDetections]:
        """Decode, threshold and NMS by the spec's thresholds."""
        options = dataclasses.asdict(self._postprocess)
        return detect(*heads, make_priors(self.spec), input_size=self.spec.input_size, **options)

    def assemble(self, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float = 0.0) -> Detections:
        """Detections at an image's size, with the model's names; masks are made when first asked for, and scored (by
        YOLACT++) here."""
        detections = assemble_masks(raw, image_hw, score_threshold=score_threshold, resize=self.spec.preprocess.resize)
        if self._network.mask_iou is not None:
            detections = rescore_masks(detections, self._network.mask_iou)
            if self._doubt is None and detections.mask_ious is not None:
                self._doubt = non_finite_note({"the scores of masks": detections.mask_ious})
        return dataclasses.replace(detections, names=self.spec.class_names, category_ids=self.spec.category_ids)

    def load(self, item: Any, channel_order: ChannelOrder) -> Image:
        return load_from_host(item, channel_order, self.description)

    def submit(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> Pending:
        """Detections at once, or a network that has begun; their masks are the same in any form."""
        batch = self.preprocess(images)
        sizes = [(image.shape[0], image.shape[1]) for image in images]

        def found(heads: HeadTensors) -> list[Detections]:
            raws = self.suppress(self._checked(heads))
            return [self.assemble(raw, size, score_threshold) for raw, size in zip(raws, sizes, strict=True)]

        if isinstance(self._network, AsynchronousNetwork):
            return StartedBatch(self._network.start(batch), found)
        return FinishedBatch(found(self._network.run(batch)))

    def timed(
        self, images: Sequence[Image], score_threshold: float, masks: MaskForm
    ) -> tuple[list[Detections], dict[str, float]]:
        raise EngineError(
            f"stages are timed within a call only where all of them run on a GPU, and this Detector does not "
            f"({self.description}). Time preprocess, run_network, suppress and assemble one by one."
        )

    def close(self) -> None:
        close = getattr(self._network, "close", None)
        if close is not None:
            close()

    def _checked(self, heads: HeadTensors) -> HeadTensors:
        if self._doubt is None:
            self._doubt = non_finite_note(heads._asdict())
        return heads if self.spec.conf_activation == "softmax" else heads._replace(conf=softmax(heads.conf))


def non_finite_note(
    tensors: Mapping[str, FloatArray],  # of any shape, by name
) -> str | None:
    """What to say of a network that gives NaN or infinite values; None where it does not."""
    for name, values in tensors.items():
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(values.sum())  # a tenth of the time that looking at each takes
        if math.isfinite(total):
            continue
        if count := values.size - int(np.isfinite(values).sum()):
            return (
                f"the network gives NaN or infinite values (first seen in {name}, {count} of {values.size}): objects whose "
                "scores or boxes are such are not found. Its weights or its precision are broken; `yolact-deploy compare` with "
                "the file that it was made from tells which."
            )
    return None


def load_from_host(item: Any, channel_order: ChannelOrder, description: str) -> Image:
    """A path or an array as uint8 [H, W, 3] BGR. Raises ImageError, and DeviceError for an array on a GPU."""
    if isinstance(item, (str, os.PathLike)):
        return read_image(item)
    if is_device_array(item):
        raise DeviceError(
            f"the image ({type(item).__name__}) is on a GPU, but this Detector takes images of the host ({description}). "
            'Copy it to the host, or open the Detector with device="cuda:N".'
        )
    return check_image(item, "image", channel_order)


@dataclasses.dataclass(frozen=True)
class FinishedBatch:
    """Detections that are there already."""

    found: list[Detections]

    def result(self) -> list[Detections]:
        return self.found

    def discard(self) -> None:
        pass


class StartedBatch:
    """A network at work on a batch, and what is made of its heads."""

    def __init__(self, wait: Callable[[], HeadTensors], found: Callable[[HeadTensors], list[Detections]]) -> None:
        self._wait, self._found = wait, found

    def result(self) -> list[Detections]:
        """To be called once."""
        return self._found(self._wait())

    def discard(self) -> None:
        """The network can't be told to stop half-way, and its next batch would wait for it anyway."""
        with contextlib.suppress(EngineError):
            self._wait()
