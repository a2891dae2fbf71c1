"""Modules with the API of `tensorrt` and `tensorrt_rtx` whose engines compute on the host, in a driver's streams.

Every public attribute of their classes is one that the real packages have (test_runtime_contract.py holds them to that), so
what runs here calls nothing that is not there. A plan is JSON: its tensors and its profile.
"""

from __future__ import annotations

import enum
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from tests.emulator.driver import EmulatedDriver
from yolact_deploy.arrays import AnyArray
from yolact_deploy.artifacts.names import OUTPUTS
from yolact_deploy.spec import ModelSpec

Shape = tuple[int, ...]
NUMPY_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32}


@dataclass
class Behaviour:
    """What a test makes of the module, and what was done with it."""

    refuses: set[str] = field(default_factory=set)  # functions that return None or False
    raises: dict[str, Exception] = field(default_factory=dict)  # by function
    says: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # severity and message, by function
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    activation_bytes: int = 4096
    is_capturable: bool = True
    accepts_cache: bool = True
    compiled: set[int] = field(default_factory=set)  # batches whose kernels are in a runtime cache
    configs: list[Any] = field(default_factory=list)
    layers: list[tuple[str, float]] = field(default_factory=list)  # milliseconds that a profiler is told

    engines: list[weakref.ref[Any]] = field(default_factory=list)

    def engines_alive(self) -> int:
        return sum(engine() is not None for engine in self.engines)

    def count(self, function: str) -> int:
        return sum(call[0] == function for call in self.calls)


def fake_heads(
    image: AnyArray,  # [B, 3, S, S]
    spec: ModelSpec,
) -> dict[str, AnyArray]:
    """float32 outputs that differ between images and between outputs."""
    sums = image.astype(np.float32).reshape(len(image), -1).mean(axis=1)
    return {
        name: np.broadcast_to((sums + number).reshape(-1, *[1] * len(shape)), (len(image), *shape)).astype(np.float32)
        for number, (name, shape) in enumerate(spec.output_shapes().items())
    }


def make_plan(
    spec: ModelSpec,
    *,
    batch: tuple[int, int, int] = (1, 2, 4),
    dtypes: Mapping[str, str] | None = None,  # TensorRT's names; the others are FLOAT
    tensors: Mapping[str, tuple[str, Shape] | None]
    | None = None,  # mode and shape in place of the spec's; None: left out
) -> bytes:
    size = spec.input_size
    described: dict[str, tuple[str, Shape] | None] = {"image": ("INPUT", (-1, 3, size, size))}
    described |= {name: ("OUTPUT", (-1, *shape)) for name, shape in spec.output_shapes().items()}
    described |= dict(tensors or {})
    listed = [
        (name, entry[0], (dtypes or {}).get(name, "FLOAT"), entry[1])
        for name, entry in described.items()
        if entry is not None
    ]
    profile = [(images, 3, size, size) for images in batch]
    return json.dumps({"tensors": listed, "profile": profile, "spec": spec.to_dict()}).encode()


def make_tensorrt(
    driver: EmulatedDriver, *, version: str = "10.3.0", rtx: bool = False
) -> tuple[ModuleType, Behaviour]:
    """A module to put into `sys.modules`, and the strings to pull."""
    behaviour = Behaviour()

    class DataType(enum.Enum):
        FLOAT = 0
        HALF = 1
        INT32 = 3

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        ON_PROFILE_CHANGE = 1
        USER_MANAGED = 2

    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    def call(logger: Any, function: str, *arguments: Any) -> bool:
        """Note a call and say what is to be said; whether it is to succeed."""
        behaviour.calls.append((function, *arguments))
        logger.log(Severity.VERBOSE, f"{function} was called")
        for severity, message in behaviour.says.get(function, ()):
            logger.log(Severity[severity], message)
        if function in behaviour.raises:
            raise behaviour.raises[function]
        return function not in behaviour.refuses

    class IProfiler:
        def report_layer_time(self, layer_name: str, ms: float) -> None:
            raise NotImplementedError

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger
            call(logger, "Runtime")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            assert driver._is_current
            if not call(self._logger, "deserialize_cuda_engine"):
                return None
            return ICudaEngine(self, json.loads(serialized_engine))

    class ICudaEngine:
        def __init__(self, runtime: Any, plan: dict[str, Any]) -> None:
            self._runtime = runtime
            self._tensors = {name: (mode, dtype, tuple(shape)) for name, mode, dtype, shape in plan["tensors"]}
            self._profile = [tuple(shape) for shape in plan["profile"]]
            self._spec = ModelSpec.from_dict(plan["spec"])
            behaviour.engines.append(weakref.ref(self))

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        def get_tensor_name(self, index: int) -> str:
            return str(list(self._tensors)[index])

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode[self._tensors[name][0]]

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[self._tensors[name][1]]

        def get_tensor_shape(self, name: str) -> Shape:
            return self._tensors[name][2]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
            assert profile_index == 0
            assert self._tensors[name][0] == "INPUT"
            return self._profile

        @property
        def device_memory_size_v2(self) -> int:
            return behaviour.activation_bytes

        def create_execution_context(self, strategy: Any) -> Any:
            """`strategy` of TensorRT, or the runtime configuration of TensorRT-RTX."""
            assert driver._is_current
            assert (strategy._strategy if rtx else strategy) is ExecutionContextAllocationStrategy.USER_MANAGED
            if not call(self._runtime._logger, "create_execution_context"):
                return None
            return IExecutionContext(self)

    class IExecutionContext:
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._logger = engine._runtime._logger
            self._memory: int | None = None
            self._batch: int | None = None
            self._has_run = False
            self._addresses: dict[str, int] = {}
            self._profiler: Any = None

        @property
        def profiler(self) -> Any:
            return self._profiler

        @profiler.setter
        def profiler(self, value: Any) -> None:
            assert isinstance(value, IProfiler)
            self._profiler = value

        def set_device_memory(self, memory: int, size: int) -> None:
            assert memory % 256 == 0
            assert size >= behaviour.activation_bytes
            self._memory = memory

        def set_input_shape(self, name: str, shape: Shape) -> bool:
            low, _, high = self._engine._profile
            assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            if not call(self._logger, "set_input_shape", name, shape):
                return False
            self._batch = shape[0]
            self._has_run = False
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert name in self._engine._tensors
            if not call(self._logger, "set_tensor_address", name, memory):
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert driver._is_current
            assert stream_handle
            if not call(self._logger, "execute_async_v3", stream_handle):
                return False
            assert self._batch is not None
            # The first run after a change of shape can't be recorded.
            assert self._has_run or driver._streams[stream_handle].capture is None
            self._has_run = True
            assert set(self._addresses) == set(self._engine._tensors)
            behaviour.compiled.add(self._batch)
            batch, addresses, engine, activations = self._batch, dict(self._addresses), self._engine, self._memory

            def compute() -> None:
                if activations is not None:
                    driver.view(activations, behaviour.activation_bytes)[:] = batch
                _compute(driver, engine._spec, engine._tensors, batch, addresses)

            driver.call(stream_handle, compute)
            if self._profiler is not None:  # its bindings wait for the run then
                driver.synchronize(stream_handle)
                for name, ms in behaviour.layers:
                    self._profiler.report_layer_time(name, ms)
            return True

    module = ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    ILogger.Severity = Severity  # type: ignore[attr-defined]
    for cls in (
        DataType,
        TensorIOMode,
        ExecutionContextAllocationStrategy,
        ILogger,
        IProfiler,
        Runtime,
        ICudaEngine,
        IExecutionContext,
    ):
        setattr(module, cls.__name__, cls)
    module.__version__ = version  # type: ignore[attr-defined]
    if rtx:
        _add_rtx(module, behaviour)
    return module, behaviour


def _add_rtx(module: ModuleType, behaviour: Behaviour) -> None:
    class CudaGraphStrategy(enum.Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY = 0
        EAGER = 1
        NONE = 2

    class IRuntimeCache:
        def serialize(self) -> bytes:
            return json.dumps(sorted(behaviour.compiled)).encode()

        def deserialize(self, blob: bytes) -> bool:
            if behaviour.accepts_cache:
                behaviour.compiled.update(json.loads(blob))
            return behaviour.accepts_cache

    class IRuntimeConfig:
        def __init__(self) -> None:
            self._cache: Any = None
            self._strategy: Any = None
            self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
            behaviour.configs.append(self)

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self._strategy = strategy

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            self._cache = cache
            return True

    def create_runtime_config(engine: Any) -> IRuntimeConfig:
        return IRuntimeConfig()

    def is_stream_capturable(context: Any, stream: int) -> bool:
        return behaviour.is_capturable

    for cls in (CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, IRuntimeCache, IRuntimeConfig):
        setattr(module, cls.__name__, cls)
    module.ICudaEngine.create_runtime_config = create_runtime_config
    module.IExecutionContext.is_stream_capturable = is_stream_capturable


def _compute(
    driver: EmulatedDriver, spec: ModelSpec, tensors: dict[str, Any], batch: int, addresses: dict[str, int]
) -> None:
    shapes = {"image": (3, spec.input_size, spec.input_size), **spec.output_shapes()}

    def view(name: str) -> AnyArray:
        dtype = np.dtype(NUMPY_DTYPES[tensors[name][1]])
        shape = (batch, *shapes[name])
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return driver.view(addresses[name], nbytes).view(dtype).reshape(shape)

    heads = fake_heads(view("image"), spec)
    for name in OUTPUTS:
        view(name)[:] = heads[name]
