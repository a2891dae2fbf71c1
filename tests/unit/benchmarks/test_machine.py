from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.machine import Watch, environment, gpu_notes, machine_notes, peak_memory, read_gpus, watch_notes

QUIET: dict[str, Any] = {
    "other_processes_share": 0.0,
    "steal_share": 0.0,
    "cpu_mhz": [3000.0, 3000.0],
    "thermal_throttles": 0,
    "governor": "performance",
    "gpu_notes": [],
}


class NvmlError(Exception):
    pass


def _fake_nvml(reasons: int = 0, **broken: Any) -> Any:
    """NVML of one GPU; functions named in `broken` raise, as those that a GPU does not have do."""

    def missing(*_: Any) -> Any:
        raise NvmlError

    functions: dict[str, Any] = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: "NVIDIA T",
        "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1500}[kind],
        "nvmlDeviceGetTemperature": lambda _, kind: {0: 60}[kind],
        "nvmlDeviceGetPowerUsage": lambda _: 250_000,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=1 << 30),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: reasons,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=-1)],
    }
    return SimpleNamespace(**{**functions, **dict.fromkeys(broken, missing)})


def test_a_gpu_is_read_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _fake_nvml(reasons=0x04 | 0x20 | 0x01))
    (gpu,) = read_gpus()
    assert (gpu.name, gpu.driver, gpu.sm_clock_mhz, gpu.temperature_c) == ("NVIDIA T", "580.1", 1500, 60)
    assert (gpu.power_w, gpu.memory_used_bytes, gpu.other_processes) == (250.0, 1 << 30, 1)
    assert gpu.slowed_by == ("power cap", "heat")  # being idle slows nothing down
    assert gpu_notes([gpu], [gpu]) == [
        "GPU 0 (NVIDIA T) was slowed by heat, power cap.",
        "GPU 0 (NVIDIA T) was shared with 1 other processes.",
    ]
    assert environment()["gpus"] == ["NVIDIA T"]


def test_without_nvml_the_driver_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(
        "yolact_deploy.cuda.drivers.opening.visible_devices", lambda: (SimpleNamespace(name="NVIDIA T"),)
    )
    monkeypatch.setattr("benchmarks.machine.has_nvidia_driver", lambda: True)
    assert environment()["gpus"] == ["NVIDIA T"]
    monkeypatch.setattr("benchmarks.machine.has_nvidia_driver", lambda: False)
    assert environment()["gpus"] == []


def test_what_a_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _fake_nvml(nvmlDeviceGetPowerUsage=1, nvmlDeviceGetClockInfo=1))
    (gpu,) = read_gpus()
    assert (gpu.power_w, gpu.sm_clock_mhz, gpu.temperature_c) == (None, None, 60)


@pytest.mark.parametrize("module", [None, _fake_nvml(nvmlInit=1), _fake_nvml(nvmlDeviceGetCount=1)])
def test_without_package_driver_or_gpu_there_is_none(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert read_gpus() == []


def test_a_quiet_machine_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.machine.usable_cores", lambda: 8)
    assert machine_notes(threads=8) == []
    assert watch_notes(QUIET) == []
    unknown = {**QUIET, "steal_share": None, "cpu_mhz": [None, None], "thermal_throttles": None, "governor": None}
    assert watch_notes(unknown) == []


@pytest.mark.parametrize(
    ("watched", "note"),
    [
        ({"other_processes_share": 0.2}, "other processes took 20% of the cores"),
        ({"steal_share": 0.05}, "the hypervisor took 5%"),
        ({"cpu_mhz": [3000.0, 2500.0]}, "from 3000 to 2500 MHz"),
        ({"thermal_throttles": 3}, "throttled 3 times"),
        ({"governor": "powersave"}, "governor is powersave"),
        ({"gpu_notes": ["GPU 0 is hot."]}, "GPU 0 is hot."),
    ],
)
def test_what_spoils_figures_is_said(watched: dict[str, Any], note: str) -> None:
    (found,) = watch_notes({**QUIET, **watched})
    assert note in found


def test_few_cores_and_many_threads_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.machine.usable_cores", lambda: 2)
    assert [note.partition(":")[0] for note in machine_notes(threads=4)] == ["2 cores", "4 threads on 2 cores"]


def test_what_another_process_takes_of_the_cores_is_seen() -> None:
    watch = Watch()
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    found = watch.report()
    taken = found["other_processes_share"] * found["seconds"] * psutil.cpu_count()
    assert taken > 0.25  # seconds of CPU time, which the system counts in hundredths
    assert found["steal_share"] is None or found["steal_share"] >= 0


def test_the_peak_of_memory_is_that_of_the_work() -> None:
    def fill() -> None:
        np.ones(64 << 20, np.uint8).sum()

    idle, busy = peak_memory(lambda: None), peak_memory(fill)
    if idle["method"] == "while running":
        assert busy["host_bytes"] - idle["host_bytes"] > 48 << 20
        assert peak_memory(lambda: None)["host_bytes"] < busy["host_bytes"] - (32 << 20)  # and is forgotten again
    else:
        assert busy["host_bytes"] >= idle["host_bytes"]
