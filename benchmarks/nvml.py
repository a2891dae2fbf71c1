"""NVIDIA GPUs as their driver describes them (NVML, package nvidia-ml-py); without package, driver or GPU: none."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# nvmlClocksEventReason* bits of nvml.h that cost speed
_REASONS = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
_SM_CLOCK = 1  # NVML_CLOCK_SM
_GPU_TEMPERATURE = 0  # NVML_TEMPERATURE_GPU


@dataclass(frozen=True)
class GpuReading:
    name: str
    driver: str
    sm_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_bytes: int | None
    slowed_by: tuple[str, ...]
    other_processes: int | None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "slowed_by": list(self.slowed_by)}


def read_gpus() -> list[GpuReading]:
    """One reading per GPU; a value that a GPU does not tell is None."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # no package, or its NVMLError: no driver, no GPU, no permission
        return []
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [_read(nvml, handle, driver) for handle in handles]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def gpu_notes(before: Sequence[GpuReading], after: Sequence[GpuReading]) -> list[str]:
    """What slowed a GPU down at either end, and who else was on it."""
    notes = []
    for index, pair in enumerate(zip(before, after, strict=False)):
        slowed = sorted({reason for reading in pair for reason in reading.slowed_by})
        if slowed:
            notes.append(f"GPU {index} ({pair[1].name}) was slowed by {', '.join(slowed)}.")
        others = max(reading.other_processes or 0 for reading in pair)
        if others:
            notes.append(f"GPU {index} ({pair[1].name}) was shared with {others} other processes.")
    return notes


def _read(nvml: Any, handle: Any, driver: str) -> GpuReading:
    def ask(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    power_mw, memory = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetMemoryInfo")
    reasons, processes = ask("nvmlDeviceGetCurrentClocksThrottleReasons"), ask("nvmlDeviceGetComputeRunningProcesses")
    return GpuReading(
        name=_text(ask("nvmlDeviceGetName") or "unknown"),
        driver=driver,
        sm_clock_mhz=ask("nvmlDeviceGetClockInfo", _SM_CLOCK),
        temperature_c=ask("nvmlDeviceGetTemperature", _GPU_TEMPERATURE),
        power_w=None if power_mw is None else power_mw / 1000,
        memory_used_bytes=None if memory is None else memory.used,
        slowed_by=tuple(name for bit, name in _REASONS.items() if (reasons or 0) & bit),
        other_processes=None if processes is None else sum(process.pid != os.getpid() for process in processes),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
