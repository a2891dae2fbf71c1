"""A plan's life: opened once, contexts that run side by side, shapes and addresses told once, graphs recorded."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.unit.engines.tiny_network import TINY_SPEC
from tests.unit.runtime.conftest import Bench, allocate, images, memory, run
from tests.unit.runtime.fake_tensorrt import fake_heads, make_plan
from yolact_deploy.artifacts.plan_file import BatchRange
from yolact_deploy.errors import EngineError
from yolact_deploy.files import CACHE_VARIABLE
from yolact_deploy.runtime.protocols import DeviceNetwork
from yolact_deploy.runtime.tensorrt.network import PlanNetwork


def test_a_plan_says_what_it_is(bench: Bench) -> None:
    network: DeviceNetwork = bench.open()
    assert network.spec == TINY_SPEC
    assert network.description == "TensorRT 10.3.0 on emulated GPU"
    assert network.max_batch == 4
    assert network.mask_iou is None
    assert set(network.dtypes) == {"image", "loc", "conf", "mask_coeff", "proto"}


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_outputs_are_those_of_the_input_in_device_memory(rtx: bool, bench: Bench, rtx_bench: Bench) -> None:
    bench = rtx_bench if rtx else bench
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        for batch in (1, 4, 2):
            addresses = allocate(driver, network, batch)
            image = images(TINY_SPEC, batch, seed=batch)
            found = run(driver, network, context, stream, image, addresses)
            for name, expected in fake_heads(image, TINY_SPEC).items():
                np.testing.assert_array_equal(found[name], expected)
        context.close()
    network.close()


def test_a_run_is_enqueued_and_not_waited_for(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = allocate(driver, network, 1)
        memory(driver, network, addresses, "image", 1)[:] = 0
        before = memory(driver, network, addresses, "loc", 1).tobytes()
        context.enqueue(addresses, 1)
        assert memory(driver, network, addresses, "loc", 1).tobytes() == before
        driver.synchronize(stream)
        assert memory(driver, network, addresses, "loc", 1).tobytes() != before


def test_half_precision_inputs_and_outputs_are_read_from_the_engine(bench: Bench) -> None:
    dtypes = dict.fromkeys(("image", "conf", "proto"), "HALF")
    network, driver = bench.open(make_plan(TINY_SPEC, dtypes=dtypes), io_tensors=()), bench.driver
    assert {name for name, dtype in network.dtypes.items() if dtype == np.float16} == set(dtypes)
    assert {name for name, dtype in network.dtypes.items() if dtype == np.float32} == {"loc", "mask_coeff"}
    with driver.current():
        stream = driver.create_stream()
        image = images(TINY_SPEC, 2).astype(np.float16)
        found = run(driver, network, network.new_execution_context(stream), stream, image, allocate(driver, network, 2))
    for name, expected in fake_heads(image, TINY_SPEC).items():
        np.testing.assert_array_equal(found[name], expected.astype(network.dtypes[name]))


def test_two_contexts_share_the_engine_and_keep_apart_their_batches_and_addresses(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        streams = [driver.create_stream() for _ in range(2)]
        contexts = [network.new_execution_context(stream) for stream in streams]
        batches = (1, 3)
        addresses = [allocate(driver, network, batch) for batch in batches]
        inputs = [images(TINY_SPEC, batch, seed=batch) for batch in batches]
        for image, where in zip(inputs, addresses, strict=True):
            memory(driver, network, where, "image", len(image))[:] = image
        for context, where, batch in zip(contexts, addresses, batches, strict=True):
            context.enqueue(where, batch)
        for stream in reversed(streams):
            driver.synchronize(stream)
        for image, where in zip(inputs, addresses, strict=True):
            for name, expected in fake_heads(image, TINY_SPEC).items():
                np.testing.assert_array_equal(memory(driver, network, where, name, len(image)), expected)
    assert bench.behaviour.count("deserialize_cuda_engine") == 1
    assert bench.behaviour.count("create_execution_context") == 2


def test_a_frame_like_one_before_costs_tensorrt_one_call(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        seen = [(allocate(driver, network, batch), batch) for batch in (2, 2, 1)]
        for addresses, batch in seen:
            context.enqueue(addresses, batch)
        told = len(bench.behaviour.calls)
        for addresses, batch in (seen[2], seen[1], seen[1]):  # the other batch size, then back: contexts remember both
            context.enqueue(addresses, batch)
        assert [call[0] for call in bench.behaviour.calls[told:]] == ["execute_async_v3"] * 3


def test_a_caller_may_change_its_addresses_in_place(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = allocate(driver, network, 1)
        context.enqueue(addresses, 1)
        addresses["loc"] = allocate(driver, network, 1)["loc"]
        context.enqueue(addresses, 1)
    assert ("set_tensor_address", "loc", addresses["loc"]) in bench.behaviour.calls


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_a_run_after_the_first_can_be_recorded_and_replayed(rtx: bool, bench: Bench, rtx_bench: Bench) -> None:
    bench = rtx_bench if rtx else bench
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = allocate(driver, network, 1)
        before = context.capturable
        run(driver, network, context, stream, images(TINY_SPEC, 1), addresses)
        assert (before, context.capturable) == (False, True)
        told = len(bench.behaviour.calls)
        driver.begin_capture(stream)
        context.enqueue(addresses, 1)
        graph = driver.end_capture(stream)
        assert [call[0] for call in bench.behaviour.calls[told:]] == ["execute_async_v3"]
        image = images(TINY_SPEC, 1, seed=5)
        memory(driver, network, addresses, "image", 1)[:] = image
        driver.launch_cuda_graph(graph, stream)
        driver.synchronize(stream)
        found = memory(driver, network, addresses, "conf", 1)
        np.testing.assert_array_equal(found, fake_heads(image, TINY_SPEC)["conf"])


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_batches_in_turns_are_recorded_and_replayed_side_by_side(rtx: bool, bench: Bench, rtx_bench: Bench) -> None:
    bench = rtx_bench if rtx else bench
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = {batch: allocate(driver, network, batch) for batch in (1, 3)}
        for batch, where in addresses.items():
            context.enqueue(where, batch)
        graphs = {}
        for batch, where in addresses.items():
            driver.begin_capture(stream)
            context.enqueue(where, batch)
            graphs[batch] = driver.end_capture(stream)
        for batch in (3, 1, 3):
            image = images(TINY_SPEC, batch, seed=batch)
            memory(driver, network, addresses[batch], "image", batch)[:] = image
            driver.launch_cuda_graph(graphs[batch], stream)
            driver.synchronize(stream)
            found = memory(driver, network, addresses[batch], "proto", batch)
            np.testing.assert_array_equal(found, fake_heads(image, TINY_SPEC)["proto"])


def test_activations_are_allocated_once_for_a_context_and_freed_with_it(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        addresses = allocate(driver, network, 4)
        before = driver.device_bytes
        contexts = [network.new_execution_context(stream) for _ in range(2)]
        for context in contexts:
            for batch in (1, 2, 4):
                context.enqueue(addresses, batch)
        driver.synchronize(stream)
        assert driver.device_bytes == before + 2 * bench.behaviour.activation_bytes
        for context in (*contexts, contexts[0]):
            context.close()
        assert driver.device_bytes == before


def test_a_plan_without_activations_needs_none(bench: Bench) -> None:
    bench.behaviour.activation_bytes = 0
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        run(driver, network, context, stream, images(TINY_SPEC, 1), allocate(driver, network, 1))
        context.close()


def test_rtx_plans_that_allocate_while_they_run_are_not_recorded(rtx_bench: Bench) -> None:
    network, driver = rtx_bench.open(), rtx_bench.driver
    rtx_bench.behaviour.is_capturable = False
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        context.enqueue(allocate(driver, network, 1), 1)
        assert not context.capturable


def test_rtx_compiles_kernels_within_the_first_run_and_leaves_graphs_to_us(rtx_bench: Bench) -> None:
    network, driver = rtx_bench.open(), rtx_bench.driver
    with driver.current():
        network.new_execution_context(driver.create_stream()).enqueue(allocate(driver, network, 1), 1)
    (config,) = rtx_bench.behaviour.configs
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.cuda_graph_strategy.name == "DISABLED"


def test_rtx_kernels_are_kept_for_the_next_process(rtx_bench: Bench) -> None:
    driver = rtx_bench.driver
    with driver.current():
        stream = driver.create_stream()
        network = rtx_bench.open()
        for batch in (1, 3):
            network.new_execution_context(stream).enqueue(allocate(driver, network, batch), batch)
        (cache,) = (rtx_bench.folder / "cache" / "tensorrt-rtx").iterdir()
        assert "sm_90-1.7.1.116" in cache.name
        assert cache.read_bytes() == b"[1, 3]"
        rtx_bench.behaviour.compiled.clear()
        rtx_bench.open().new_execution_context(stream).enqueue(allocate(driver, network, 2), 2)
        assert rtx_bench.behaviour.compiled == {1, 2, 3}
        assert cache.read_bytes() == b"[1, 2, 3]"


def test_rtx_kernels_of_another_driver_are_replaced(rtx_bench: Bench) -> None:
    driver = rtx_bench.driver
    with driver.current():
        stream = driver.create_stream()
        network = rtx_bench.open()
        network.new_execution_context(stream).enqueue(allocate(driver, network, 2), 2)
        (cache,) = (rtx_bench.folder / "cache" / "tensorrt-rtx").iterdir()
        cache.write_bytes(b"stale")
        rtx_bench.behaviour.accepts_cache = False
        again = rtx_bench.open()
        again.new_execution_context(stream).enqueue(allocate(driver, again, 2), 2)
    assert cache.read_bytes() == b"[2]"


def test_a_cache_folder_that_cannot_be_written_is_a_warning_and_no_more(
    rtx_bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (rtx_bench.folder / "cache").write_text("a file where the folder should be")
    network, driver = rtx_bench.open(), rtx_bench.driver
    with driver.current(), caplog.at_level(logging.WARNING):
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        run(driver, network, context, stream, images(TINY_SPEC, 1), allocate(driver, network, 1))
    assert "were not kept and will be compiled again" in caplog.text


def test_warnings_go_to_pythons_logging_and_nothing_is_printed(
    bench: Bench, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.behaviour.says["create_execution_context"] = [("WARNING", "lazy loading is off"), ("INFO", "all is well")]
    network, driver = bench.open(), bench.driver
    with caplog.at_level(logging.DEBUG), driver.current():
        network.new_execution_context(driver.create_stream()).enqueue(allocate(driver, network, 1), 1)
    assert [record.message for record in caplog.records] == ["lazy loading is off"]
    assert capfd.readouterr() == ("", "")


def test_networks_and_contexts_close_in_order_and_say_so_afterwards(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        addresses = allocate(driver, network, 1)
        context.close()
        with pytest.raises(EngineError, match=r"tiny\.engine was run after it was closed"):
            context.enqueue(addresses, 1)
    network.close()
    with pytest.raises(EngineError, match=r"tiny\.engine was closed"):
        network.new_execution_context(stream)


def test_closing_frees_the_engine_even_where_closed_contexts_are_still_held(bench: Bench) -> None:
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context = network.new_execution_context(stream)
        context.enqueue(allocate(driver, network, 1), 1)
        driver.synchronize(stream)
        assert bench.behaviour.engines_alive() == 1
        context.close()
    network.close()
    assert bench.behaviour.engines_alive() == 0


def test_the_profile_of_the_engine_is_the_range_of_batches(bench: Bench) -> None:
    network = bench.open(make_plan(TINY_SPEC, batch=(2, 3, 8)), batch=BatchRange(2, 3, 8))
    assert network.batch == BatchRange(2, 3, 8)
    assert network.max_batch == 8


def test_the_usual_folder_for_rtx_kernels_is_the_users(
    rtx_bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "chosen"))
    driver = rtx_bench.driver
    network = PlanNetwork(rtx_bench.write(), driver)
    with driver.current():
        network.new_execution_context(driver.create_stream()).enqueue(allocate(driver, network, 1), 1)
    assert list((tmp_path / "chosen" / "tensorrt-rtx").iterdir())


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_a_profiled_run_reports_its_layers_when_it_returns(rtx: bool, bench: Bench, rtx_bench: Bench) -> None:
    bench = rtx_bench if rtx else bench
    bench.behaviour.layers = [("a/Conv", 0.5), ("b/Conv", 0.25)]
    network, driver = bench.open(), bench.driver
    with driver.current():
        stream = driver.create_stream()
        context, other = network.new_execution_context(stream), network.new_execution_context(stream)
        told: list[tuple[str, float]] = []
        context.profile(lambda name, ms: told.append((name, ms)))
        for batch in (1, 2):
            context.enqueue(allocate(driver, network, batch), batch)
            assert told == bench.behaviour.layers * batch
        other.enqueue(allocate(driver, network, 1), 1)
    assert len(told) == 4  # contexts that were not asked to are not profiled
