"""`Detector`: images in, detections out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.detections import Detections, RawDetections
from yolact_deploy.errors import ArtifactError, EngineError, ImageError
from yolact_deploy.mask_iou import rescore_masks
from yolact_deploy.postprocess import assemble_masks, detect, softmax
from yolact_deploy.runtime.images import ChannelOrder, check_image, read_image
from yolact_deploy.runtime.network import HeadTensors, Network
from yolact_deploy.runtime.preprocess import preprocess
from yolact_deploy.spec import ModelSpec, NmsMode

ImageInput = Image | str | os.PathLike[str]
ImageList = list[Image] | list[str] | list[Path] | list[ImageInput]
PLAN_SUFFIXES = (".engine", ".plan")
_WEIGHTS = (".pth", ".pt", ".ckpt")


class Detector:
    """An exported YOLACT, ready to run.

    `artifact` is an exported .onnx. `device` is "auto" (a GPU where onnxruntime can use one, else the CPU), "cpu" or
    "cuda:N"; `threads` bounds the CPU threads of the network; `nms` overrides the spec's; `batch_size` is the most images
    in one run of the network. Not safe to share between threads; pickles as its arguments, so that every process opens
    the model itself.

    Raises ArtifactError, SpecError or EngineError when the artifact can't be used here.
    """

    def __init__(
        self,
        artifact: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        nms: NmsMode | None = None,
        batch_size: int = 1,
    ) -> None:
        self._arguments = {"device": device, "threads": threads, "nms": nms, "batch_size": batch_size}
        self.artifact = Path(artifact)
        self._network = _open_network(self.artifact, device, threads)
        self._postprocess = self._network.spec.postprocess
        if nms is not None:
            self._postprocess = dataclasses.replace(self._postprocess, nms=nms)
        self._batch_size = max(1, batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (str(self.artifact), self._arguments)

    def __repr__(self) -> str:
        return f"<Detector: {self.spec.name} from {self.artifact}, {self.description}>"

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        """Backend, version and device, for people."""
        return self._network.description

    @overload
    def __call__(
        self, image: ImageInput, *, channel_order: ChannelOrder = "bgr", score_threshold: float = 0.0
    ) -> Detections: ...

    @overload
    def __call__(
        self, image: ImageList, *, channel_order: ChannelOrder = "bgr", score_threshold: float = 0.0
    ) -> list[Detections]: ...

    def __call__(
        self,
        image: ImageInput | ImageList,
        *,
        channel_order: ChannelOrder = "bgr",
        score_threshold: float = 0.0,
    ) -> Detections | list[Detections]:
        """Detections of an image (uint8 [H, W, 3], or a path), or of each image of a list.

        `channel_order` is that of arrays; files know theirs. Scores are strictly above `score_threshold`. Raises ImageError
        for an image that can't be used.
        """
        if isinstance(image, (np.ndarray, str, os.PathLike)):
            return self._detect([image], channel_order, score_threshold)[0]
        if not isinstance(image, Sequence):
            raise ImageError(
                f"an image must be a NumPy array or a path, or a list of them, found {type(image).__name__}"
                f"{' (what cv2.imread gives for a file it cannot read)' if image is None else ''}."
            )
        found: list[Detections] = []
        for start in range(0, len(image), self._batch_size):
            found += self._detect(image[start : start + self._batch_size], channel_order, score_threshold)
        return found

    def preprocess(self, images: Sequence[Image]) -> FloatArray:
        """The network's input [B, 3, S, S] for checked BGR images."""
        return preprocess(images, self.spec)

    def run_network(self, batch: FloatArray) -> HeadTensors:
        """Head tensors of a preprocessed batch; `conf` always softmaxed."""
        heads = self._network.run(batch)
        return heads if self.spec.conf_activation == "softmax" else heads._replace(conf=softmax(heads.conf))

    def suppress(self, heads: HeadTensors) -> list[RawDetections]:
        """Decode, threshold and NMS by the spec's thresholds."""
        options = dataclasses.asdict(self._postprocess)
        return detect(*heads, self.spec.make_priors(), input_size=self.spec.input_size, **options)

    def assemble(self, raw: RawDetections, image_hw: tuple[int, int], score_threshold: float = 0.0) -> Detections:
        """Detections at an image's size, with the model's names; masks are made when first asked for, and scored (by
        YOLACT++) here."""
        detections = assemble_masks(raw, image_hw, score_threshold=score_threshold)
        if self._network.mask_iou is not None:
            detections = rescore_masks(detections, self._network.mask_iou)
        return dataclasses.replace(detections, names=self.spec.class_names, category_ids=self.spec.category_ids)

    def _detect(
        self, inputs: Sequence[ImageInput], channel_order: ChannelOrder, score_threshold: float
    ) -> list[Detections]:
        images = [_load(item, channel_order) for item in inputs]
        raws = self.suppress(self.run_network(self.preprocess(images)))
        return [
            self.assemble(raw, (image.shape[0], image.shape[1]), score_threshold)
            for raw, image in zip(raws, images, strict=True)
        ]


def _open_network(artifact: Path, device: str, threads: int | None) -> Network:
    suffix = artifact.suffix.lower()
    if suffix == ".onnx":
        from yolact_deploy.runtime.onnx_network import OnnxNetwork

        return OnnxNetwork(artifact, device=device, threads=threads)
    if suffix in PLAN_SUFFIXES:
        from yolact_deploy.sidecar import verify_plan

        sidecar = verify_plan(artifact)
        raise EngineError(
            f"{artifact} is a sound {sidecar.runtime} plan, but this version of yolact-deploy does not execute plans yet. "
            f"Run the ONNX it was built from ({sidecar.onnx_name})."
        )
    hint = f" Export it first: yolact-deploy export {artifact} -o {artifact.stem}.onnx" if suffix in _WEIGHTS else ""
    raise ArtifactError(f"{artifact} is neither .onnx nor {' or '.join(PLAN_SUFFIXES)}: it can't be run.{hint}")


def _load(item: ImageInput, channel_order: ChannelOrder) -> Image:
    return read_image(item) if isinstance(item, (str, os.PathLike)) else check_image(item, "image", channel_order)


def _rebuild(artifact: str, arguments: dict[str, Any]) -> Detector:
    return Detector(artifact, **arguments)
