"""The machine that figures belong to, and what it did besides while they were taken."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

from yolact_deploy.optional import has_nvidia_driver, installed_version
from yolact_deploy.text import counted

_PACKAGES = (
    "yolact-deploy", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "pycuda",
    "cuda-bindings", "nvidia-cuda-nvrtc", "torch",
)  # fmt: skip
_FEW_CORES = 4
_CLOCK_DRIFT = 0.05
_STEAL_SHARE = 0.01
BUSY_SHARE = 0.05  # of all cores, taken by others: from here on the clock alone proves nothing
TOO_BUSY_SHARE = 0.15  # and from here on nothing does but pairs
_CPU = Path("/sys/devices/system/cpu")
_KIB = 1024
_RESET_PEAK = "5"  # clear_refs, proc(5)
# nvmlClocksEventReason* bits of nvml.h that cost speed
_REASONS = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
_SM_CLOCK = 1  # NVML_CLOCK_SM
_GPU_TEMPERATURE = 0  # NVML_TEMPERATURE_GPU


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := installed_version(name))},
        "gpus": _gpu_names(),
    }


def cpu_model() -> str:
    """The processor's name; the architecture where the system does not tell."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Watch:
    """Reads the system's counters when made and at `report`; what can't be read here is None."""

    def __init__(self) -> None:
        import psutil  # only here: a machine without it still says what it is

        self._mhz = _mhz()
        self._throttles = _throttle_count()
        self._gpus = read_gpus()
        self._all, self._own = psutil.cpu_times(), psutil.Process().cpu_times()
        self._started = perf_counter()

    def report(self) -> dict[str, Any]:
        """Shares are of all cores, from 0 to 1, since the watch was made."""
        import psutil

        seconds = perf_counter() - self._started
        others, steal = self._shares(seconds)
        throttles = _throttle_count()
        gpus = read_gpus()
        return {
            "seconds": seconds,
            "load_average": list(psutil.getloadavg()),
            "other_processes_share": others,
            "steal_share": steal,
            "cpu_mhz": [self._mhz, _mhz()],
            "governor": _governor(),
            "thermal_throttles": None if throttles is None or self._throttles is None else throttles - self._throttles,
            "gpus": [{"before": a.to_dict(), "after": b.to_dict()} for a, b in zip(self._gpus, gpus, strict=False)],
            "gpu_notes": gpu_notes(self._gpus, gpus),
        }

    def _shares(self, seconds: float) -> tuple[float, float | None]:
        """Of other processes and of the hypervisor; the system's counters have those fields that it keeps."""
        import psutil

        before, after = self._all._asdict(), psutil.cpu_times()._asdict()
        spent = {name: after[name] - before[name] for name in after}
        own = psutil.Process().cpu_times()
        own_seconds = own.user + own.system - self._own.user - self._own.system
        busy = sum(spent.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        whole = seconds * (psutil.cpu_count() or 1)
        return max(0.0, (busy - own_seconds) / whole), spent["steal"] / whole if "steal" in spent else None


def machine_notes(threads: int | None) -> list[str]:
    """What spoils figures on this machine whatever else it does, in words."""
    cores = usable_cores()
    notes = []
    if cores < _FEW_CORES:
        notes.append(f"{counted(cores, 'core')}: whatever else runs is felt at once.")
    if threads is not None and threads > cores:
        notes.append(f"{counted(threads, 'thread')} on {counted(cores, 'core')}: they wait for one another.")
    return notes


def watch_notes(watched: dict[str, Any]) -> list[str]:
    """What spoils figures taken while `watched` (of `Watch.report`), in words."""
    notes = []
    if watched["other_processes_share"] > BUSY_SHARE:
        share = 100 * watched["other_processes_share"]
        notes.append(f"other processes took {share:.0f}% of the cores: expect slow and scattered times.")
    if (share := watched["steal_share"]) is not None and share > _STEAL_SHARE:
        notes.append(f"the hypervisor took {100 * share:.0f}% of the cores for other machines.")
    before, after = watched["cpu_mhz"]
    if before and after and abs(after / before - 1) > _CLOCK_DRIFT:
        notes.append(f"the CPU's clock went from {before:.0f} to {after:.0f} MHz.")
    if watched["thermal_throttles"]:
        notes.append(f"the CPU throttled {watched['thermal_throttles']} times because of heat.")
    if watched["governor"] not in (None, "performance"):
        notes.append(f"the CPU's frequency governor is {watched['governor']}, not performance.")
    return [*notes, *watched["gpu_notes"]]


def disturbed_share(watched: dict[str, Any]) -> float:
    """Of all cores, taken by other processes and by the hypervisor."""
    share: float = watched["other_processes_share"] + (watched["steal_share"] or 0.0)
    return share


def peak_memory(work: Callable[[], object]) -> dict[str, Any]:
    """{"host_bytes", "method"}: the most memory resident while `work` ran, all else in the process included.

    Where the kernel's high-water mark can't be reset (not Linux, or not allowed), it is the peak since the process began.
    """
    reset = _reset_peak()
    work()
    resident = _peak_bytes()
    if resident is None:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"host_bytes": peak * (1 if sys.platform == "darwin" else _KIB), "method": "since start"}
    return {"host_bytes": resident, "method": "while running" if reset else "since start"}


@dataclass(frozen=True)
class GpuReading:
    """What a GPU says of itself right now; None for what it does not tell."""

    name: str
    driver: str
    sm_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    memory_used_bytes: int | None
    slowed_by: tuple[str, ...]
    other_processes: int | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
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


def _gpu_names() -> list[str]:
    """By NVML, else by the driver; without one, nothing that uses GPUs is imported."""
    if readings := read_gpus():
        return [gpu.name for gpu in readings]
    if not has_nvidia_driver():
        return []
    from yolact_deploy.cuda.drivers.opening import visible_devices

    return [gpu.name for gpu in visible_devices()]


def _read(nvml: Any, handle: Any, driver: str) -> GpuReading:
    def query(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    power_mw, memory = query("nvmlDeviceGetPowerUsage"), query("nvmlDeviceGetMemoryInfo")
    reasons, processes = (
        query("nvmlDeviceGetCurrentClocksThrottleReasons"),
        query("nvmlDeviceGetComputeRunningProcesses"),
    )
    return GpuReading(
        name=_text(query("nvmlDeviceGetName") or "unknown"),
        driver=driver,
        sm_clock_mhz=query("nvmlDeviceGetClockInfo", _SM_CLOCK),
        temperature_c=query("nvmlDeviceGetTemperature", _GPU_TEMPERATURE),
        power_w=None if power_mw is None else power_mw / 1000,
        memory_used_bytes=None if memory is None else memory.used,
        slowed_by=tuple(name for bit, name in _REASONS.items() if (reasons or 0) & bit),
        other_processes=None if processes is None else sum(process.pid != os.getpid() for process in processes),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _mhz() -> float | None:
    """The mean of the cores' clocks."""
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError):  # a system that psutil can't ask
        return None
    return None if frequency is None or not frequency.current else float(frequency.current)


def _governor() -> str | None:
    lines = _lines(_CPU / "cpu0/cpufreq/scaling_governor")
    return lines[0].strip() if lines else None


def _throttle_count() -> int | None:
    counts = [_lines(path) for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
    return sum(int(lines[0]) for lines in counts if lines) if counts else None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _peak_bytes() -> int | None:
    peaks = (line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return next((int(line.split()[1]) * _KIB for line in peaks), None)


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
