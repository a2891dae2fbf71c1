from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.emulator.driver import EmulatedDriver
from tests.unit.engines.tiny_network import TINY_SPEC
from tests.unit.runtime.fake_tensorrt import Behaviour, make_plan, make_tensorrt
from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.plan_file import BatchRange, Sidecar, sidecar_path, write_sidecar
from yolact_deploy.runtime.protocols import DeviceNetwork, ExecutionContext
from yolact_deploy.runtime.tensorrt.network import PlanNetwork
from yolact_deploy.spec import ModelSpec

VERSIONS = {"tensorrt": "10.3.0", "tensorrt-rtx": "1.7.1.116"}


def write_plan(path: Path, plan: bytes, **changes: Any) -> Path:
    """A plan and the sidecar that goes with it; `changes` are other fields of the sidecar."""
    path.write_bytes(plan)
    runtime = changes.get("runtime", "tensorrt")
    sidecar = Sidecar(
        spec=TINY_SPEC,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        runtime=runtime,
        runtime_version=VERSIONS[runtime],
        targets=("sm86", "sm90"),
        precision="fp32",
        batch=BatchRange(1, 2, 4),
        onnx_sha256="ab" * 32,
        onnx_name="tiny.onnx",
        io_tensors=(IoTensor("image", "input", "float32", (-1, 3, TINY_SPEC.input_size, TINY_SPEC.input_size)),),
        created="2025-01-31T12:00:00+00:00",
        yolact_deploy_version="0.1.0",
    )
    write_sidecar(sidecar_path(path), replace(sidecar, **changes))
    return path


@dataclass
class Bench:
    """A plan on disk, a GPU, and a TensorRT to run it with."""

    driver: EmulatedDriver
    trt: ModuleType
    behaviour: Behaviour
    folder: Path
    runtime: str

    def write(self, plan: bytes | None = None, **changes: Any) -> Path:
        content = make_plan(TINY_SPEC) if plan is None else plan
        return write_plan(self.folder / "tiny.engine", content, **{"runtime": self.runtime, **changes})

    def open(self, plan: bytes | None = None, **changes: Any) -> PlanNetwork:
        return PlanNetwork(self.write(plan, **changes), self.driver, rtx_cache=self.folder / "cache")


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    def make(*, rtx: bool = False, version: str | None = None) -> Bench:
        driver = EmulatedDriver()
        runtime = "tensorrt-rtx" if rtx else "tensorrt"
        module, behaviour = make_tensorrt(driver, version=version or VERSIONS[runtime], rtx=rtx)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Bench(driver, module, behaviour, tmp_path, runtime)

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    return make_bench()


@pytest.fixture
def rtx_bench(make_bench: MakeBench) -> Bench:
    return make_bench(rtx=True)


def allocate(driver: EmulatedDriver, network: DeviceNetwork, batch: int) -> dict[str, int]:
    """Device memory for the input and outputs of a batch."""
    addresses = {}
    for name, shape in io_shapes(network.spec).items():
        nbytes = batch * int(np.prod(shape)) * network.dtypes[name].itemsize
        addresses[name] = driver.allocate(nbytes, name)
    return addresses


def io_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {"image": (3, spec.input_size, spec.input_size), **spec.output_shapes()}


def images(spec: ModelSpec, batch: int, seed: int = 0) -> AnyArray:
    size = spec.input_size
    return np.random.default_rng(seed).normal(size=(batch, 3, size, size)).astype(np.float32)


def memory(
    driver: EmulatedDriver, network: DeviceNetwork, addresses: Mapping[str, int], name: str, batch: int
) -> AnyArray:
    """The device memory of one tensor."""
    dtype = network.dtypes[name]
    shape = (batch, *io_shapes(network.spec)[name])
    return driver.view(addresses[name], int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


def run(
    driver: EmulatedDriver,
    network: DeviceNetwork,
    context: ExecutionContext,
    stream: int,
    image: AnyArray,
    addresses: Mapping[str, int],
) -> dict[str, AnyArray]:
    """The outputs of a batch, once it is done."""
    batch = len(image)
    memory(driver, network, addresses, "image", batch)[:] = image
    context.enqueue(addresses, batch)
    driver.synchronize(stream)
    return {name: memory(driver, network, addresses, name, batch).copy() for name in network.spec.output_shapes()}
