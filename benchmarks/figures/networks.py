"""The networks of the figures: YOLACT-550 on ResNet50 with the recorded goldens' weights, which give 100 detections, and
PyTorch's YOLACT as the network of the GPU path, for machines that have neither TensorRT nor onnxruntime's CUDA provider.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures.scenes import network_input
from exporters.checkpoints.configs import published_spec
from exporters.network.yolact import Yolact
from yolact_deploy.arrays import FloatArray, Image
from yolact_deploy.artifacts.names import FLOAT32_OUTPUTS, INPUT, OUTPUTS, DcnChoice
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.reference.postprocess import MaskIouModel
from yolact_deploy.runtime.protocols import HeadTensors
from yolact_deploy.spec import ModelSpec

CONFIG = "yolact_resnet50"
PLUS_CONFIG = "yolact_plus_resnet50"
_GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
_WARMUP = 3


def golden_model(config: str = CONFIG) -> tuple[Yolact, Image]:
    """The network in eval mode and its image, uint8 [480, 640, 3] BGR. Raises YolactDeployError outside of a checkout."""
    model, image = _golden(config)
    return copy.deepcopy(model), image


@functools.cache
def _golden(config: str) -> tuple[Yolact, Image]:
    generator = _generator()
    entries = json.loads((_GOLDEN / "manifest" / f"{config}.json").read_text(encoding="utf-8"))["state_dict"]
    weights = generator.fill_({entry["name"]: tuple(entry["shape"]) for entry in entries}, config)
    model = Yolact(published_spec(config))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    image: Image = generator.image(0)
    return model.eval(), image


def golden_images() -> list[Image]:
    """The two images that the goldens were recorded with, uint8 [H, W, 3] BGR."""
    generator = _generator()
    return [generator.image(number) for number in range(2)]


def export_golden(target: Path, config: str = CONFIG, dcn: DcnChoice = "auto") -> None:
    """Write the ONNX of a configuration."""
    from exporters.onnx_export import export_onnx  # which wants more than a GPU machine has

    export_onnx(golden_model(config)[0], published_spec(config), target, dcn=dcn)


def recorded_heads() -> tuple[ModelSpec, HeadTensors]:
    """Heads of the recorded network and image, by PyTorch on the CPU. Raises YolactDeployError outside of a checkout."""
    model, image = golden_model()
    return model.spec, heads_on_cpu(model, image)


def heads_on_cpu(model: Yolact, image: Image) -> HeadTensors:
    """Heads of one image [H, W, 3] BGR, batch 1, float32."""
    with torch.inference_mode():
        outputs = model(torch.from_numpy(network_input(image, model.spec)))
    return HeadTensors(*(np.ascontiguousarray(output.numpy()) for output in outputs))


def _generator() -> Any:
    path = _GOLDEN / "golden_fill.py"
    spec = importlib.util.spec_from_file_location("golden_fill", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise YolactDeployError(f"{path} is missing: the project's own figures are measured from a checkout.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TorchDeviceNetwork:
    """A DeviceNetwork; with `half`, weights and activations are float16. The model is moved to the GPU."""

    def __init__(self, model: Yolact, driver: Driver, *, half: bool = False) -> None:
        self.device = torch.device("cuda", driver.device.index)
        self._half = half
        self._spec = model.spec
        moved: Any = model.eval().to(self.device, torch.float16 if half else torch.float32)
        self.model = moved.to(memory_format=torch.channels_last)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def description(self) -> str:
        return f"{self.engine} ({'float16' if self._half else 'float32'}, CUDA graph)"

    @property
    def engine(self) -> str:
        return f"PyTorch {torch.__version__}"

    @property
    def dtypes(self) -> Mapping[str, np.dtype[np.generic]]:
        narrow = np.dtype(np.float16 if self._half else np.float32)
        return {name: np.dtype(np.float32) if name in FLOAT32_OUTPUTS else narrow for name in (INPUT, *OUTPUTS)}

    @property
    def max_batch(self) -> int | None:
        return None

    @property
    def mask_iou(self) -> MaskIouModel | None:
        return None

    def new_execution_context(self, stream: int) -> TorchExecutionContext:
        return TorchExecutionContext(self, stream)

    def close(self) -> None:
        self.model = None
        torch.cuda.empty_cache()  # else its memory would count as used by what is opened next


class TorchExecutionContext:
    """Replays a CUDA graph of PyTorch's own for every batch and set of addresses."""

    capturable = False  # a graph's launch can't be part of another capture

    def __init__(self, network: TorchDeviceNetwork, stream: int) -> None:
        self._network = network
        self._stream: Any = torch.cuda.ExternalStream(stream, device=network.device)  # type: ignore[no-untyped-call]
        self._graphs: dict[tuple[int, ...], Any] = {}

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        key = (batch, *(addresses[name] for name in (INPUT, *OUTPUTS)))
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if key not in self._graphs:
                self._graphs[key] = self._capture(addresses, batch)
            self._graphs[key].replay()

    def close(self) -> None:
        self._graphs.clear()

    def _capture(self, addresses: Mapping[str, int], batch: int) -> Any:
        spec, dtypes = self._network.spec, self._network.dtypes
        shapes = spec.io_shapes()
        tensors = {
            name: torch.as_tensor(
                _DeviceArray(addresses[name], (batch, *shapes[name]), dtypes[name]), device=self._network.device
            )
            for name in (INPUT, *OUTPUTS)
        }

        def run() -> None:
            heads_into(self._network.model, *(tensors[name] for name in (INPUT, *OUTPUTS)))

        for _ in range(_WARMUP):
            run()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            run()
        return graph


def heads_into(model: Yolact, image: Tensor, loc: Tensor, conf: Tensor, mask_coeff: Tensor, proto: Tensor) -> None:
    """`model.forward` whose last operations write where the heads [B, ...] are wanted, so that none is copied there."""
    levels = model.pyramid(image)
    nearest = model.proto_net(levels[model.spec.protonet.src_level])
    torch.clamp(nearest, min=0, out=proto.permute(0, 3, 1, 2))
    head = model.prediction_layers[0]
    locs, confs, coeffs = zip(*(head(level) for level in levels), strict=True)
    torch.cat(locs, dim=1, out=loc)
    if model.spec.conf_activation == "softmax":
        torch.softmax(torch.cat(confs, dim=1), dim=-1, dtype=conf.dtype, out=conf)
    else:
        torch.cat(confs, dim=1, out=conf)
    torch.tanh(torch.cat(coeffs, dim=1), out=mask_coeff)


class _DeviceArray:
    """Memory that PyTorch is to see as a tensor (CUDA Array Interface, version 3)."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),
            "version": 3,
        }


class HostNetwork:
    """A DeviceNetwork of PyTorch on the CPU, which copies through the host: of an image that it has seen it gives the very heads
    again. For rehearsals, and for proofs that want equal heads on both sides."""

    max_batch: int | None = None
    mask_iou: MaskIouModel | None = None

    def __init__(self, model: Yolact, driver: Driver) -> None:
        self._model, self._driver = model, driver
        self.spec = model.spec
        self.engine = f"PyTorch {torch.__version__} on the CPU"
        self.description = f"{self.engine} between device buffers"
        self.dtypes: Mapping[str, np.dtype[np.generic]] = dict.fromkeys((INPUT, *OUTPUTS), np.dtype(np.float32))
        self._seen: dict[bytes, HeadTensors] = {}

    @property
    def runs(self) -> int:
        """Images that it has seen, equal ones once."""
        return len(self._seen)

    def heads(self, batch: FloatArray) -> HeadTensors:
        """Of preprocessed images [B, 3, S, S], one by one."""
        each = []
        for image in batch:
            key = hashlib.sha256(image.tobytes()).digest()
            if key not in self._seen:
                with torch.inference_mode():
                    outputs = self._model(torch.from_numpy(image[None]))
                self._seen[key] = HeadTensors(*(np.ascontiguousarray(output.numpy()) for output in outputs))
            each.append(self._seen[key])
        return HeadTensors(*(np.concatenate(parts) for parts in zip(*each, strict=True)))

    def new_execution_context(self, stream: int) -> HostExecutionContext:
        return HostExecutionContext(self, self._driver, stream)

    def close(self) -> None:
        pass


class HostExecutionContext:
    """Waits for the stream, runs, and copies the heads back."""

    capturable = False

    def __init__(self, network: HostNetwork, driver: Driver, stream: int) -> None:
        self._network, self._driver, self._stream = network, driver, stream

    def enqueue(self, addresses: Mapping[str, int], batch: int) -> None:
        size, driver, stream = self._network.spec.input_size, self._driver, self._stream
        image: FloatArray = np.empty((batch, 3, size, size), np.float32)
        driver.copy_to_host(image.ctypes.data, addresses[INPUT], image.nbytes, stream)
        driver.synchronize(stream)
        for name, head in zip(OUTPUTS, self._network.heads(image), strict=True):
            driver.copy_to_device(addresses[name], head.ctypes.data, head.nbytes, stream)
        driver.synchronize(stream)  # the heads are of ordinary memory

    def close(self) -> None:
        pass


if __name__ == "__main__":
    export_golden(Path(sys.argv[1]), *sys.argv[2:])  # type: ignore[arg-type]
