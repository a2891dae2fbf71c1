"""An end-to-end ONNX as what runs images for a Detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from yolact_deploy.arrays import Image
from yolact_deploy.cuda.frames import MaskForm
from yolact_deploy.errors import SpecError
from yolact_deploy.runtime.end_to_end_network import EndToEndNetwork, no_stages
from yolact_deploy.runtime.host_pipeline import Finished, load_from_host
from yolact_deploy.runtime.images import ChannelOrder
from yolact_deploy.spec import ModelSpec, NmsMode


class EndToEndPipeline:
    """Raises what EndToEndNetwork does, and SpecError for another `nms` than the graph's own."""

    max_batch: int | None = None
    in_flight = 1
    on_gpu = False
    graph_stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, *, device: str, threads: int | None, nms: NmsMode | None) -> None:
        self._path = path
        self._network = EndToEndNetwork(path, device=device, threads=threads)
        own = self._network.spec.postprocess.nms
        if nms not in (None, own):
            raise SpecError(
                f"{path} is an end-to-end ONNX, whose NMS is a part of it: {own!r}, not {nms!r}. "
                f"Export it again with that NMS, or take the ordinary export."
            )

    @property
    def spec(self) -> ModelSpec:
        return self._network.spec

    @property
    def description(self) -> str:
        return self._network.description

    @property
    def stages(self) -> NoReturn:
        raise no_stages(self._path)

    def load(self, item: Any, channel_order: ChannelOrder) -> Image:
        return load_from_host(item, channel_order, self.description)

    def submit(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> Finished:
        return Finished(self._network.detect(images, score_threshold))

    def timed(self, images: Sequence[Image], score_threshold: float, masks: MaskForm) -> NoReturn:
        raise no_stages(self._path)

    def close(self) -> None:
        pass
