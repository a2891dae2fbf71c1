"""An end-to-end ONNX in onnxruntime."""

from __future__ import annotations

import os

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.errors import EngineError
from yolact_deploy.optional import require
from yolact_deploy.runtime.end_to_end import EndToEndModel
from yolact_deploy.runtime.onnxruntime.network import (
    check_device,
    choose_providers,
    describe,
    first_line,
    open_session,
    session_gpu,
)


class EndToEndNetwork(EndToEndModel):
    """An end-to-end ONNX on the CPU or, with device "cuda" or "cuda:N", on onnxruntime's CUDA provider.

    Raises ArtifactError for a file that is no ONNX model, SpecError for one that is not end-to-end or whose input and
    outputs contradict its spec, DeviceError when there is no such device.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | OnnxFile,
        *,
        device: str = "auto",
        threads: int | None = None,
        tf32: bool = False,
    ) -> None:
        ort = require("onnxruntime", extra="cpu", purpose="running an ONNX model")
        super().__init__(open_onnx(source))
        self._session = open_session(ort, self._path, choose_providers(ort, device, tf32=tf32), threads)
        check_device(self._session, device)
        self.description = describe(ort, self._session, tf32=tf32)
        self.gpu_index = session_gpu(self._session)

    def run(self, images: Image) -> dict[str, AnyArray]:
        names = [output.name for output in self._session.get_outputs()]
        try:
            outputs = self._session.run(names, {contract.IMAGE: images})
        except Exception as exc:  # onnxruntime's exception classes share no public base
            raise EngineError(
                f"onnxruntime failed to run {self._path} on {len(images)} images of {images.shape[2]}x{images.shape[1]}: "
                f"{first_line(exc)}."
            ) from exc
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        """Give the session's memory back, while there is still a GPU to give it back to."""
        self._session = None
