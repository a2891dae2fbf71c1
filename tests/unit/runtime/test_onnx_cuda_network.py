"""onnxruntime between device buffers. Its CUDA provider is played by its CPU provider, whose IO binding takes the same calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.emulator.driver import EmulatedDriver
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from tests.unit.runtime.conftest import allocate, images, memory, run
from tests.unit.runtime.plus_plan import PLUS_SPEC, REFERENCE, soft_masks, write_plus_onnx
from yolact_deploy.artifacts.names import OUTPUTS
from yolact_deploy.artifacts.onnx_file import open_onnx
from yolact_deploy.errors import ArtifactError, DeviceError, DeviceMemoryError, EngineError, SpecError
from yolact_deploy.runtime.onnxruntime.cuda import OnnxCudaContext, OnnxCudaNetwork, cuda_options
from yolact_deploy.runtime.onnxruntime.network import OnnxNetwork, choose_providers
from yolact_deploy.runtime.protocols import DeviceNetwork

CUDA = "CUDAExecutionProvider"
REAL_SESSION = onnxruntime.InferenceSession


@dataclass
class PlayedCuda:
    """onnxruntime as if it had a GPU: what was asked of it, and whether its CUDA provider starts."""

    starts: bool = True
    fails: Exception | None = None  # instead of opening a session on the GPU
    sessions: list[Any] = field(default_factory=list)


class _Binding:
    """Memory of the GPU is the host's."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.bound: list[tuple[str, str, int, Any, tuple[int, ...], int]] = []

    def bind_input(self, name: str, kind: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        self.bound.append((name, kind, index, dtype, shape, address))
        self.real.bind_input(name, "cpu", 0, dtype, shape, address)

    def bind_output(self, name: str, kind: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        self.bound.append((name, kind, index, dtype, shape, address))
        self.real.bind_output(name, "cpu", 0, dtype, shape, address)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PlayedCuda:
    played = PlayedCuda()

    class Session:
        def __init__(self, model: Any, options: Any, *, providers: list[Any], enable_fallback: int = 1) -> None:
            if played.fails is not None and providers[0] != "CPUExecutionProvider":
                assert not enable_fallback  # it would print, and go on with the CPU
                raise played.fails
            self.real = REAL_SESSION(model, options, providers=["CPUExecutionProvider"])
            self.options, self.providers = options, providers
            self.binding = _Binding(self.real.io_binding())
            self.run_options: list[Any] = []
            played.sessions.append(self)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def get_providers(self) -> list[str]:
            asked = [each if isinstance(each, str) else each[0] for each in self.providers]
            return asked if played.starts else ["CPUExecutionProvider"]

        def io_binding(self) -> Any:
            return self.binding

        def run_with_iobinding(self, binding: _Binding, run_options: Any) -> None:
            self.run_options.append(run_options)
            self.real.run_with_iobinding(binding.real, run_options)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return played


@pytest.fixture
def driver() -> EmulatedDriver:
    return EmulatedDriver()


@pytest.fixture(scope="module")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(make_model(TINY_SPEC), str(path))
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_bound_addresses_give_the_heads_of_the_plain_session(
    batch: int, tiny_onnx: Path, driver: EmulatedDriver
) -> None:
    expected = OnnxNetwork(tiny_onnx, device="cpu").run(images(TINY_SPEC, batch))
    session = REAL_SESSION(str(tiny_onnx), providers=["CPUExecutionProvider"])
    context = OnnxCudaContext(onnxruntime, session, open_onnx(tiny_onnx), ("cpu", 0))
    buffers = {name: np.full_like(value, np.nan) for name, value in expected._asdict().items()}
    buffers["image"] = images(TINY_SPEC, batch)
    for _ in range(2):
        context.enqueue({name: value.ctypes.data for name, value in buffers.items()}, batch)
        for name, value in expected._asdict().items():
            np.testing.assert_array_equal(buffers[name], value)
            buffers[name][:] = np.nan


def test_a_context_is_a_session_on_its_stream(cuda: PlayedCuda, tiny_onnx: Path) -> None:
    driver = EmulatedDriver(index=1)
    network: DeviceNetwork = OnnxCudaNetwork(tiny_onnx, driver, threads=2)
    opened = len(cuda.sessions)
    with driver.current():
        streams = [driver.create_stream() for _ in range(2)]
        for stream in streams:
            network.new_execution_context(stream)
    for stream, session in zip(streams, cuda.sessions[opened:], strict=True):
        assert session.providers == [(CUDA, cuda_options(1, stream)), "CPUExecutionProvider"]
        assert session.providers[0][1]["user_compute_stream"] == str(stream)
        assert session.providers[0][1]["device_id"] == "1"
        assert session.options.intra_op_num_threads == 2
        assert session.options.get_session_config_entry("session.disable_quant_qdq") == "1"


def test_a_context_binds_once_for_a_batch_and_its_addresses_and_waits_for_nothing(
    cuda: PlayedCuda, tiny_onnx: Path, driver: EmulatedDriver
) -> None:
    network = OnnxCudaNetwork(tiny_onnx, driver)
    plain = OnnxNetwork(tiny_onnx, device="cpu")
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        session = cuda.sessions[-1]
        addresses = allocate(driver, network, 2)
        for batch, seed in ((2, 0), (2, 1), (1, 2)):
            image = images(TINY_SPEC, batch, seed)
            found = run(driver, network, context, stream, image, addresses)
            for name, expected in plain.run(image)._asdict().items():
                np.testing.assert_array_equal(found[name], expected)
        assert [name for name, *_ in session.binding.bound] == ["image", *OUTPUTS] * 2
        size = TINY_SPEC.input_size
        assert session.binding.bound[-5] == ("image", "cuda", 0, np.float32, (1, 3, size, size), addresses["image"])
        for options in session.run_options:
            assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        assert not context.capturable


def test_the_run_option_is_one_that_onnxruntime_reads() -> None:
    library = Path(onnxruntime.__file__).parent / "capi"
    names = list(library.glob("onnxruntime_pybind11_state*"))
    assert any(b"disable_synchronize_execution_providers" in path.read_bytes() for path in names)


def test_half_precision_inputs_and_outputs_are_read_from_the_model(
    cuda: PlayedCuda, tmp_path: Path, driver: EmulatedDriver
) -> None:
    model = make_model(TINY_SPEC)
    half = onnx.TensorProto.FLOAT16
    for node in model.graph.node:
        if node.output[0] == "loc":
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", half))
    next(output for output in model.graph.output if output.name == "loc").type.tensor_type.elem_type = half
    onnx.save(model, str(tmp_path / "half.onnx"))
    network = OnnxCudaNetwork(tmp_path / "half.onnx", driver)
    assert [name for name, dtype in network.dtypes.items() if dtype == np.float16] == ["loc"]
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        found = run(driver, network, context, stream, images(TINY_SPEC, 1), allocate(driver, network, 1))
    assert found["loc"].dtype == np.float16
    assert np.isfinite(found["loc"]).all()


def test_a_fixed_batch_is_the_largest_and_another_is_an_error_that_quotes_onnxruntime(
    cuda: PlayedCuda, tmp_path: Path, driver: EmulatedDriver
) -> None:
    onnx.save(make_model(TINY_SPEC, batch=2), str(tmp_path / "two.onnx"))
    network = OnnxCudaNetwork(tmp_path / "two.onnx", driver)
    assert network.max_batch == 2
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = allocate(driver, network, 3)
        memory(driver, network, addresses, "image", 3)[:] = 0
        with pytest.raises(EngineError, match=r"onnxruntime failed to run .*two.onnx on a batch of 3: .*image"):
            context.enqueue(addresses, 3)
        run(driver, network, context, stream, images(TINY_SPEC, 2), addresses)


def test_any_batch_goes_where_it_is_dynamic(cuda: PlayedCuda, tiny_onnx: Path, driver: EmulatedDriver) -> None:
    assert OnnxCudaNetwork(tiny_onnx, driver).max_batch is None


def test_float32_is_rounded_to_tf32_only_where_that_was_asked_for(cuda: PlayedCuda, tiny_onnx: Path) -> None:
    for tf32 in (False, True):
        network = OnnxCudaNetwork(tiny_onnx, EmulatedDriver(), tf32=tf32)
        network.new_execution_context(5)
        ((_, options), _) = cuda.sessions[-1].providers
        assert options["use_tf32"] == str(int(tf32))
        assert ("TF32" in network.description) is tf32


def test_the_mask_iou_network_runs_on_the_same_gpu(cuda: PlayedCuda, tmp_path: Path) -> None:
    network = OnnxCudaNetwork(write_plus_onnx(tmp_path / "plus.onnx"), EmulatedDriver(index=1))
    assert network.spec == PLUS_SPEC
    assert cuda.sessions[-1].providers == [(CUDA, {"device_id": 1, "use_tf32": "0"}), "CPUExecutionProvider"]
    assert network.mask_iou is not None
    np.testing.assert_allclose(network.mask_iou(soft_masks(3)), REFERENCE(soft_masks(3)), rtol=0, atol=1e-5)


def test_cuda_libraries_are_loaded_once_and_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    played, loads = ModuleType("played"), []

    def preload_dlls() -> None:
        loads.append(1)
        print("Failed to load libcufft.so.12")

    vars(played).update(get_available_providers=lambda: [CUDA, "CPUExecutionProvider"], preload_dlls=preload_dlls)
    choose_providers(played, "cpu")
    assert loads == []
    for _ in range(2):
        assert choose_providers(played, "cuda:1") == [(CUDA, {"device_id": 1, "use_tf32": "0"}), "CPUExecutionProvider"]
    assert loads == [1]
    assert capsys.readouterr().out == ""


def test_without_the_cuda_provider_the_way_to_install_it_is_told(tiny_onnx: Path, driver: EmulatedDriver) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has it")
    with pytest.raises(DeviceError, match=r"(?s)takes onnxruntime's CUDA provider, which .*pip install .*\[gpu\]"):
        OnnxCudaNetwork(tiny_onnx, driver)


def test_a_provider_that_does_not_start_is_an_error_instead_of_a_slow_run(
    cuda: PlayedCuda, tiny_onnx: Path, driver: EmulatedDriver
) -> None:
    cuda.starts = False
    network = OnnxCudaNetwork(tiny_onnx, driver)
    with pytest.raises(DeviceError, match="CUDA provider did not start"):
        network.new_execution_context(7)


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), DeviceMemoryError),
        (
            Exception("[ONNXRuntimeError] : 6 : BFCArena::Extend Failed to allocate memory of size 9437184"),
            DeviceMemoryError,
        ),
        (RuntimeError("CUDNN failure 1: CUDNN_STATUS_NOT_INITIALIZED"), DeviceError),
    ],
)
def test_a_session_that_fails_on_the_gpu_is_an_error_that_tells_want_of_memory(
    cuda: PlayedCuda, tiny_onnx: Path, driver: EmulatedDriver, fails: Exception, error: type[DeviceError]
) -> None:
    network = OnnxCudaNetwork(tiny_onnx, driver)
    cuda.fails = fails
    with pytest.raises(DeviceError) as caught:
        network.new_execution_context(7)
    assert type(caught.value) is error
    assert str(fails) in str(caught.value)


def test_the_default_stream_and_a_closed_context_are_refused(
    cuda: PlayedCuda, tiny_onnx: Path, driver: EmulatedDriver
) -> None:
    network = OnnxCudaNetwork(tiny_onnx, driver)
    with pytest.raises(EngineError, match="default stream"):
        network.new_execution_context(0)
    context = network.new_execution_context(7)
    context.close()
    with driver.current(), pytest.raises(EngineError, match=r"tiny\.onnx was run after it was closed"):
        context.enqueue(allocate(driver, network, 1), 1)
    network.close()


def test_a_file_that_is_no_model_or_contradicts_its_spec_is_refused_before_a_gpu_is_touched(
    cuda: PlayedCuda, tmp_path: Path, driver: EmulatedDriver
) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"can't open .*no\.onnx"):
        OnnxCudaNetwork(tmp_path / "no.onnx", driver)
    onnx.save(make_model(TINY_SPEC, described=PLUS_SPEC), str(tmp_path / "bare.onnx"))
    with pytest.raises(SpecError, match="carries no mask-IoU network"):
        OnnxCudaNetwork(tmp_path / "bare.onnx", driver)
    assert all(session.providers == ["CPUExecutionProvider"] for session in cuda.sessions)
