"""Every reason for which a plan can't run here, in words: what, which file, what was found, what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from engines import build
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from tests.unit.runtime.conftest import Bench, MakeBench, allocate
from tests.unit.runtime.fake_tensorrt import make_plan
from yolact_deploy import Detector
from yolact_deploy.artifacts.contract import IoTensor
from yolact_deploy.artifacts.plan_file import BatchRange
from yolact_deploy.errors import (
    DeviceMemoryError,
    EngineError,
    MissingDependencyError,
    OptionError,
    PlanMismatchError,
)
from yolact_deploy.runtime.tensorrt.network import PlanNetwork

LOC = (TINY_SPEC.num_priors, 4)


def _refusal(bench: Bench, plan: bytes | None = None, **changes: Any) -> str:
    with pytest.raises(PlanMismatchError) as caught:
        bench.open(plan, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "options", [{"runtime": "openvino"}, {"device": "openvino:GPU"}, {"cpu_precision": "bf16"}], ids=str
)
def test_a_plan_is_refused_what_is_for_onnx_files(bench: Bench, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"tiny.engine is a tensorrt plan.* is for ONNX files.*tiny.onnx"):
        Detector(bench.write(), **options)


def test_a_plan_for_other_gpus_names_both(bench: Bench) -> None:
    bench.driver.device = replace(bench.driver.device, name="NVIDIA H100", compute_capability=(9, 0))
    message = _refusal(bench, targets=("sm86", "sm89"))
    assert "tiny.engine was built for sm86, sm89; this GPU is NVIDIA H100 (sm90)." in message
    assert "Build it on this machine with `yolact-deploy build-engine tiny.onnx" in message
    assert not bench.behaviour.calls


def test_a_plan_of_tensorrt_rtx_for_other_gpus_says_which_target_to_ask_for(rtx_bench: Bench) -> None:
    message = _refusal(rtx_bench, targets=("sm120",))
    assert "this GPU is emulated GPU (sm90). Build it again with --target sm90" in message


def test_a_plan_that_names_no_gpus_is_tried(bench: Bench) -> None:
    assert bench.open(targets=()).max_batch == 4


@pytest.mark.parametrize(
    ("rtx", "built", "installed", "title"),
    [(False, "10.3.0", "11.4.0.106", "TensorRT"), (True, "1.4.0.76", "1.7.1.116", "TensorRT-RTX")],
)
def test_a_plan_of_another_release_names_both_and_how_to_get_it(
    rtx: bool, built: str, installed: str, title: str, make_bench: MakeBench
) -> None:
    message = _refusal(make_bench(rtx=rtx, version=installed), runtime_version=built)
    assert f"was built by {title} {built}, but {title} {installed} is installed here" in message
    assert f'pip install "{"tensorrt-rtx" if rtx else "tensorrt"}=={built}"' in message


def test_builds_of_one_release_are_one(make_bench: MakeBench) -> None:
    assert make_bench(version="10.13.3.9").open(runtime_version="10.13.3").max_batch == 4


@pytest.mark.parametrize(("rtx", "module", "extra"), [(False, "tensorrt", "gpu"), (True, "tensorrt_rtx", "rtx")])
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    rtx: bool, module: str, extra: str, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rtx=rtx)
    path = bench.write()
    monkeypatch.setitem(sys.modules, module, None)  # importing it is a ModuleNotFoundError
    with pytest.raises(
        MissingDependencyError, match=rf"(?s)running the plan .*tiny.engine needs {bench.runtime}.*\[{extra}\]"
    ):
        PlanNetwork(path, bench.driver)


def test_a_runtime_without_its_libraries_is_to_be_installed_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bench.write()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(EngineError, match=r"(?s)without its libraries, so .*tiny.engine can't run.*--force-reinstall"):
        PlanNetwork(path, bench.driver)


def test_a_runtime_whose_libraries_do_not_load_is_quoted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.write()
    monkeypatch.delitem(sys.modules, "tensorrt")

    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            raise ImportError(f"libnvinfer.so.10: cannot open shared object file ({name})")

    monkeypatch.setattr("sys.meta_path", [Finder()])
    with pytest.raises(
        EngineError, match=r"can't be loaded, so .*tiny.engine can't run: libnvinfer.so.10: cannot open"
    ):
        PlanNetwork(path, bench.driver)


def test_an_end_to_end_plan_is_told_from_one_of_heads(bench: Bench) -> None:
    outputs = (IoTensor("num_detections", "output", "int32", (-1,)),)
    with pytest.raises(EngineError, match=r"tiny.engine is an end-to-end plan.*Run the ONNX .*\(tiny.onnx\)"):
        bench.open(io_tensors=outputs)


def test_a_plan_that_does_not_deserialize_quotes_tensorrt(bench: Bench) -> None:
    bench.behaviour.refuses.add("deserialize_cuda_engine")
    bench.behaviour.says["deserialize_cuda_engine"] = [
        ("WARNING", "a warning"),
        ("ERROR", "Serialization assertion\n  stdVersionRead == serializationVersion failed"),
        ("ERROR", "Serialization assertion\n  stdVersionRead == serializationVersion failed"),
    ]
    with pytest.raises(EngineError) as caught:
        bench.open()
    assert re.fullmatch(
        r"TensorRT 10.3.0 can't open .*tiny.engine:\n"
        r"  Serialization assertion stdVersionRead == serializationVersion failed\n"
        r"Build it again here with `yolact-deploy build-engine tiny.onnx -o .*tiny.engine --runtime tensorrt`.",
        str(caught.value),
    )


def test_a_runtime_that_cannot_start_quotes_tensorrt(bench: Bench) -> None:
    bench.behaviour.raises["Runtime"] = TypeError("factory function returned nullptr")
    with pytest.raises(EngineError, match="factory function returned nullptr"):
        bench.open()
    bench.behaviour.says["Runtime"] = [("INTERNAL_ERROR", "CUDA initialization failure with error: 35")]
    with pytest.raises(EngineError, match="CUDA initialization failure with error: 35"):
        bench.open()


@pytest.mark.parametrize(
    ("tensors", "dtypes", "difference"),
    [
        (
            {"loc": ("OUTPUT", (-1, LOC[0] + 8, 4))},
            {},
            f"loc is [B, {LOC[0] + 8}, 4], its spec makes it [B, {LOC[0]}, 4]",
        ),
        ({"image": ("INPUT", (-1, 3, 64, 64))}, {}, "image is [B, 3, 64, 64], its spec makes it [B, 3, 32, 32]"),
        ({"proto": None}, {}, "it has no output proto (it has image, loc, conf, mask_coeff), its spec has one"),
        ({"conf": ("INPUT", (-1, LOC[0], 3))}, {}, "conf is an input, its spec makes it an output"),
        ({"priors": ("OUTPUT", LOC)}, {}, "it has the output priors, its spec has image, loc, conf, mask_coeff, proto"),
        ({}, {"conf": "INT32"}, "conf is int32, it must be float32 or float16"),
        ({}, {"image": "HALF"}, "image is float16, its sidecar says float32"),
    ],
)
def test_inputs_and_outputs_that_contradict_the_spec_or_the_sidecar_are_named(
    tensors: dict[str, Any], dtypes: dict[str, str], difference: str, bench: Bench
) -> None:
    message = _refusal(bench, make_plan(TINY_SPEC, tensors=tensors, dtypes=dtypes))
    assert f"tiny.engine contradicts its own sidecar: {difference}. Build it again" in message


def test_a_profile_that_contradicts_the_sidecar_is_named(bench: Bench) -> None:
    message = _refusal(bench, make_plan(TINY_SPEC, batch=(1, 8, 8)))
    assert "its profile is for batches of 1,8,8, its sidecar says 1,2,4" in message


def test_of_several_contradictions_the_first_is_told(bench: Bench) -> None:
    tensors: dict[str, Any] = {"loc": ("OUTPUT", (-1, 1, 4)), "proto": None}
    assert "loc is" in _refusal(bench, make_plan(TINY_SPEC, tensors=tensors))


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (9, r"takes batches of 2 to 4 \(and is best at 3\), found 9. Give at most 4 images .*--batch 2,3,9\."),
        (1, r"takes batches of 2 to 4 \(and is best at 3\), found 1. Give at least 2 images .*--batch 1,3,4\."),
        (0, r"found 0"),
    ],
)
def test_a_batch_outside_of_the_profile_says_the_profile_and_what_to_do(batch: int, what: str, bench: Bench) -> None:
    network = bench.open(make_plan(TINY_SPEC, batch=(2, 3, 4)), batch=BatchRange(2, 3, 4))
    driver = bench.driver
    with driver.current():
        context = network.new_execution_context(driver.create_stream())
        addresses = allocate(driver, network, 4)
        context.enqueue(addresses, 2)
        with pytest.raises(EngineError, match=what):
            context.enqueue(addresses, batch)
        context.enqueue(addresses, 2)
    assert bench.behaviour.count("execute_async_v3") == 2


@pytest.mark.parametrize("function", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_tensorrt_refuses_is_quoted_and_the_next_run_tells_it_everything_again(
    function: str, bench: Bench
) -> None:
    network, driver, behaviour = bench.open(), bench.driver, bench.behaviour
    with driver.current():
        context = network.new_execution_context(driver.create_stream())
        addresses = allocate(driver, network, 1)
        behaviour.refuses.add(function)
        behaviour.says[function] = [("ERROR", f"{function} is not to my taste")]
        with pytest.raises(
            EngineError, match=rf"TensorRT 10.3.0 can't .*tiny.engine:\n  {function} is not to my taste"
        ):
            context.enqueue(addresses, 1)
        assert not context.capturable
        behaviour.refuses.clear()
        behaviour.calls.clear()
        context.enqueue(addresses, 1)
        assert behaviour.count("set_input_shape") == 1
        assert behaviour.count("set_tensor_address") == 5
        behaviour.raises["execute_async_v3"] = RuntimeError("from C++")
        with pytest.raises(EngineError, match=r"can't run a batch of 1 with .*\n  from C"):
            context.enqueue(addresses, 1)


def test_a_refusal_without_a_reason_says_so(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    bench.behaviour.refuses.add("execute_async_v3")
    with driver.current():
        context = network.new_execution_context(driver.create_stream())
        with pytest.raises(EngineError, match="it gave no reason"):
            context.enqueue(allocate(driver, network, 1), 1)


def test_no_memory_for_activations_says_how_much_was_asked_for_and_for_what(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    bench.behaviour.activation_bytes = driver.device.memory_bytes + 1
    with driver.current(), pytest.raises(DeviceMemoryError) as caught:
        network.new_execution_context(driver.create_stream())
    assert f"the activations of {bench.folder / 'tiny.engine'} (batches up to 4)" in str(caught.value)
    assert f"{driver.device.memory_bytes + 1} bytes" in str(caught.value)


@pytest.mark.parametrize("raised", [False, True], ids=["logged", "raised"])
def test_no_memory_for_what_tensorrt_allocates_says_what_is_free(raised: bool, bench: Bench) -> None:
    network, driver, behaviour = bench.open(), bench.driver, bench.behaviour
    says = "Error Code 2: OutOfMemory (Requested size was 8388608 bytes.)"
    if raised:
        behaviour.raises["create_execution_context"] = RuntimeError(says)
    else:
        behaviour.refuses.add("create_execution_context")
        behaviour.says["create_execution_context"] = [("ERROR", says)]
    total = driver.device.memory_bytes >> 20
    with driver.current():
        context = network.new_execution_context(driver.create_stream())
        addresses = allocate(driver, network, 1)
        with pytest.raises(DeviceMemoryError) as caught:
            context.enqueue(addresses, 1)
        behaviour.raises.clear()
        behaviour.refuses.clear()
        context.enqueue(addresses, 1)
    assert f"no memory for an execution context of {bench.folder / 'tiny.engine'}" in str(caught.value)
    assert re.search(rf"of the GPU's {total} MiB, \d+ are free", str(caught.value))
    assert "Requested size was 8388608 bytes" in str(caught.value)


def test_a_context_that_cannot_be_made_is_quoted(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    bench.behaviour.refuses.add("create_execution_context")
    bench.behaviour.says["create_execution_context"] = [("ERROR", "no")]
    with driver.current():
        context = network.new_execution_context(driver.create_stream())
        with pytest.raises(EngineError, match=r"can't make an execution context of .*tiny.engine:\n  no"):
            context.enqueue(allocate(driver, network, 1), 1)


def test_the_default_stream_is_refused(bench: Bench) -> None:
    with pytest.raises(EngineError, match="default stream"):
        bench.open().new_execution_context(0)


def test_a_plan_without_its_sidecar_or_with_anothers_is_not_opened(bench: Bench) -> None:
    path = bench.write()
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(PlanMismatchError, match="is not the plan its sidecar was written for"):
        PlanNetwork(path, bench.driver)
    path.with_name("tiny.engine.json").unlink()
    with pytest.raises(PlanMismatchError, match="has no sidecar"):
        PlanNetwork(path, bench.driver)
    assert not bench.behaviour.calls


def test_the_process_stays_usable_after_a_refusal(bench: Bench) -> None:
    bench.behaviour.refuses.add("deserialize_cuda_engine")
    with pytest.raises(EngineError):
        bench.open()
    bench.behaviour.refuses.clear()
    assert bench.open().spec == TINY_SPEC


def test_the_real_tensorrt_rtx_without_a_driver_is_quoted(tmp_path: Path) -> None:
    """In a process of its own: its library keeps the first logger it is given."""
    pytest.importorskip("tensorrt_rtx")
    onnx.save(make_model(TINY_SPEC), tmp_path / "tiny.onnx")
    build(tmp_path / "tiny.onnx", tmp_path / "tiny.engine", runtime="tensorrt-rtx", targets=("sm86",))
    code = f"""
import dataclasses
from tests.emulator.driver import EmulatedDriver
from yolact_deploy.errors import EngineError
from yolact_deploy.runtime.tensorrt.network import PlanNetwork

driver = EmulatedDriver()
driver.device = dataclasses.replace(driver.device, compute_capability=(8, 6))
try:
    print(PlanNetwork({str(tmp_path / "tiny.engine")!r}, driver).description)
except EngineError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    if re.match(r"TensorRT-RTX \S+ on emulated GPU", done.stdout):
        pytest.skip("there is a driver here: the plan opens")
    assert done.stderr == ""
    title, *reasons, remedy = done.stdout.strip().splitlines()
    assert re.fullmatch(r"TensorRT-RTX 1\.\S+ can't open .*tiny.engine:", title)
    assert "CUDA driver version is insufficient" in " ".join(reasons)
    assert remedy.startswith("Build it again here with")
