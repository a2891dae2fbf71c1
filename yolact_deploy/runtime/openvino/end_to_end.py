"""An end-to-end ONNX in OpenVINO."""

from __future__ import annotations

import os

from yolact_deploy.arrays import AnyArray, Image
from yolact_deploy.artifacts import contract
from yolact_deploy.artifacts.onnx_file import OnnxFile, open_onnx
from yolact_deploy.runtime.end_to_end import EndToEndModel
from yolact_deploy.runtime.openvino.library import Target, compile_network, read_network
from yolact_deploy.runtime.openvino.network import InferRequest, describe


class OpenvinoEndToEnd(EndToEndModel):
    """An end-to-end ONNX in OpenVINO, on the CPU or on another of its devices.

    Raises ArtifactError for a file that is no ONNX model or that OpenVINO can't run, SpecError for one that is not end-to-end
    or whose input and outputs contradict its spec, DeviceError for a device or an arithmetic that there is not,
    MissingDependencyError.
    """

    def __init__(self, source: str | os.PathLike[str] | OnnxFile, target: Target = Target()) -> None:  # noqa: B008
        super().__init__(open_onnx(source))
        compiled = compile_network(read_network(self._path, str(self._path)), target, str(self._path))
        self._names = [output.any_name for output in compiled.outputs]
        self._request = InferRequest(compiled)
        self.description = describe(target)

    def run(self, images: Image) -> dict[str, AnyArray]:
        what = f"{self._path} on {len(images)} images of {images.shape[2]}x{images.shape[1]}"
        self._request.start({contract.IMAGE: images}, {}, what)
        self._request.wait()
        return {name: self._request.output(name) for name in self._names}
