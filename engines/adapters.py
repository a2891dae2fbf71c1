"""TensorRT and TensorRT-RTX behind one face: which are here, what each can do, and the little in which they differ."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from engines.lint.rules import RTX_INT8
from engines.messages import LogRecord
from yolact_deploy.artifacts.names import PLAN_RUNTIMES, TENSORRT, TENSORRT_RTX, TF32, PlanPrecision, RuntimeName
from yolact_deploy.cuda.drivers.opening import visible_devices
from yolact_deploy.errors import BuildRequestError, EngineError, MissingDependencyError, OutputError, pip_install
from yolact_deploy.files import atomic_path
from yolact_deploy.optional import has_nvidia_driver

_OLDEST_TENSORRT = (10, 0)
_BAD_TENSORRT = {(10, 2, 0): "10.2.0 is known to build wrong plans; install another version"}
_NO_GPU = "no NVIDIA GPU and driver is visible, and it builds only on the GPU that will run the plan."
_OLDEST_PORTABLE_SM = 80  # Ampere: what TensorRT-RTX targets when it is not told
_OLDEST_TF32_SM = 80
CURRENT = "current"  # of targets: the GPU that is here
_TARGET = re.compile(r"(?:sm_?)?(\d+?)\.?(\d)")


@dataclass(frozen=True)
class RuntimeInfo:
    """One of the two builders, as found here; `reason` says why it is or is not usable."""

    name: RuntimeName
    version: str | None  # None where it can't be imported
    usable: bool
    reason: str
    installed: bool = True


@dataclass(frozen=True)
class Adapter(ABC):
    """A TensorRT module and the calls that differ between the two; everything else is the same API."""

    trt: Any
    version: str
    name: ClassVar[RuntimeName]
    builds_for_this_gpu: ClassVar[bool]  # so that the plan can be opened where it was built

    @property
    def title(self) -> str:
        """Its name for people."""
        return PLAN_RUNTIMES[self.name].title

    @property
    def label(self) -> str:
        """Its name and version, for people."""
        return f"{self.title} {self.version}"

    @abstractmethod
    def resolve_targets(self, requested: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
        """The architectures the plan will be for ("sm86"), and notes about that choice. Raises BuildRequestError."""

    @abstractmethod
    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """Tell the builder's configuration. Raises EngineError for one that it refuses."""
        ...

    def check_precision(self, precision: PlanPrecision, targets: Sequence[str]) -> list[str]:
        """Notes on a plan of that precision. Raises BuildRequestError for targets that can't compute in it."""
        if precision == TF32 and (old := [target for target in targets if _sm(target) < _OLDEST_TF32_SM]):
            raise BuildRequestError(
                f"tf32 takes a GPU since Ampere (sm{_OLDEST_TF32_SM}), and {', '.join(old)} is older: it computes float32 in "
                "float32. Leave the precision or that target out."
            )
        return []

    def set_tf32(self, config: Any, *, allowed: bool) -> None:
        """Whether the inputs of float32 layers may be rounded to the 10 bits of TF32, as they are by default (NVIDIA's support
        matrix, BuilderFlag.TF32)."""
        (config.set_flag if allowed else config.clear_flag)(self.trt.BuilderFlag.TF32)

    @abstractmethod
    def load_timing_cache(self, config: Any, path: Path, log: list[LogRecord]) -> list[str]:
        """Give the builder the cache in `path`, or a new one; notes say when what was there could not be used."""

    @abstractmethod
    def save_timing_cache(self, config: Any, path: Path) -> list[str]:
        """Keep what the build measured, for the next one; returns notes for the user on what could not be kept."""
        ...


@dataclass(frozen=True)
class TensorRt(Adapter):
    """Full TensorRT: builds for the GPU it runs on."""

    name = TENSORRT
    builds_for_this_gpu = True

    def resolve_targets(self, requested: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
        if requested:
            raise BuildRequestError(
                f"TensorRT builds for the GPU it runs on and takes no target, found {','.join(requested)}. "
                "Leave the target out, or choose the runtime tensorrt-rtx."
            )
        return tuple(gpu.target for gpu in visible_devices()[:1]), []

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        pass

    def load_timing_cache(self, config: Any, path: Path, log: list[LogRecord]) -> list[str]:
        notes = []
        data = b""
        if path.exists():
            try:
                data = path.read_bytes()
            except OSError as exc:
                notes.append(f"the timing cache {path.name} was ignored: it can't be read ({exc.strerror or exc}).")
        logged = len(log)
        cache = config.create_timing_cache(data)
        accepted = config.set_timing_cache(cache, False) if cache is not None else False
        if data and (not accepted or len(log) > logged):
            notes.append(
                f"the timing cache {path.name} was ignored: it is damaged, or of another TensorRT version or GPU."
            )
            del log[logged:]
        if not accepted:
            config.set_timing_cache(config.create_timing_cache(b""), False)
        return notes

    def save_timing_cache(self, config: Any, path: Path) -> list[str]:
        data = bytes(config.get_timing_cache().serialize())
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        except OutputError as exc:
            return [f"the timing cache was not kept: {exc}"]
        return []


@dataclass(frozen=True)
class TensorRtRtx(Adapter):
    """TensorRT-RTX: builds ahead of time for any of its architectures, on a machine without a GPU too."""

    name = TENSORRT_RTX
    builds_for_this_gpu = False

    @property
    def valid_targets(self) -> tuple[str, ...]:
        """Every architecture that it builds for, "sm75" and so on, oldest first."""
        names = [name for name in self.trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
        return tuple(name.lower() for name in sorted(names, key=lambda name: int(name[2:])))

    def resolve_targets(self, requested: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
        targets = parse_targets(requested)
        if targets == (CURRENT,):
            return self._current()
        if unknown := [target for target in targets if target not in self.valid_targets]:
            raise BuildRequestError(
                f"{self.label} has no target {', '.join(unknown)}; it has {', '.join(self.valid_targets)}. "
                "For other GPUs use TensorRT on a machine that has one."
            )
        notes = []
        here = [gpu for gpu in visible_devices() if gpu.target in self.valid_targets]
        if not targets and here and all(_sm(gpu.target) < _OLDEST_PORTABLE_SM for gpu in here):
            # Turing kernels slow the other targets of a plan down, so such a GPU gets a plan of its own.
            targets = tuple(dict.fromkeys(gpu.target for gpu in here))
            notes.append(f"no target given: built for this machine's {here[0].name} ({', '.join(targets)}).")
        elif not targets:
            targets = tuple(target for target in self.valid_targets if _sm(target) >= _OLDEST_PORTABLE_SM)
            notes.append(f"no target given: built for every GPU since Ampere that it knows ({', '.join(targets)}).")
        elif len(targets) > 1 and _sm(targets[0]) < _OLDEST_PORTABLE_SM:
            notes.append(f"{targets[0]} together with newer targets can make the plan slower on these; build it alone.")
        notes += [
            f"this machine's {gpu.name} ({gpu.target}) is not among the plan's targets: the plan will not run on it."
            for gpu in visible_devices()
            if gpu.target not in targets
        ]
        return targets, notes

    def _current(self) -> tuple[tuple[str, ...], list[str]]:
        """This machine's first GPU, named or not: without one TensorRT-RTX 1.7 would fail in the midst of the build."""
        gpus = visible_devices()
        if not gpus:
            raise BuildRequestError(
                "the target current is the GPU of this machine, and none is visible here. Name the GPUs that the plan is for, "
                "as in --target sm86,sm89, or leave the target out for every one since Ampere."
            )
        return (gpus[0].target,), [f"built for this machine's {gpus[0].name} ({gpus[0].target}) alone."]

    def check_precision(self, precision: PlanPrecision, targets: Sequence[str]) -> list[str]:
        return [*super().check_precision(precision, targets), *([RTX_INT8] if precision == "int8" else [])]

    def set_targets(self, config: Any, targets: Sequence[str]) -> None:
        """A GPU of this machine that TensorRT-RTX has no name for is its CURRENT."""
        known = self.valid_targets
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            name = target if target in known else CURRENT
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, name.upper()), index):
                raise EngineError(f"{self.label} refused the target {target}.")

    def load_timing_cache(self, config: Any, path: Path, log: list[LogRecord]) -> list[str]:
        return [f"the timing cache {path.name} was left alone: TensorRT-RTX times nothing while building and has none."]

    def save_timing_cache(self, config: Any, path: Path) -> list[str]:
        return []


_ADAPTERS: dict[RuntimeName, type[Adapter]] = {TENSORRT: TensorRt, TENSORRT_RTX: TensorRtRtx}


def available_runtimes() -> list[RuntimeInfo]:
    """Both builders, TensorRT first. Imports what is installed: only that tells whether its libraries are there."""
    return [_probe(name) for name in _ADAPTERS]


def choose_runtime(name: str = "auto") -> tuple[Adapter, str]:
    """The adapter for `name`, and why it was chosen. "auto" is TensorRT where it can build, else TensorRT-RTX.

    Raises BuildRequestError for an unknown name, MissingDependencyError for what is not installed, EngineError for what
    is installed but can't build here.
    """
    if name != "auto" and name not in _ADAPTERS:
        raise BuildRequestError(f"unknown runtime {name!r}; choose auto, {' or '.join(_ADAPTERS)}.")
    infos = [info for info in available_runtimes() if name in ("auto", info.name)]
    usable = next((info for info in infos if info.usable), None)
    if usable is None:
        raise _no_usable_runtime(infos)
    adapter = _ADAPTERS[usable.name](trt=import_module(PLAN_RUNTIMES[usable.name].module), version=usable.version or "")
    # That TensorRT is not installed where it could not build anyway is no news.
    passed_over = [info for info in infos[: infos.index(usable)] if info.installed or visible_devices()]
    reasons = [f"{PLAN_RUNTIMES[info.name].title} was passed over: {info.reason}" for info in passed_over]
    return adapter, " ".join([f"built with {adapter.label}.", *reasons])


def parse_targets(requested: Sequence[str]) -> tuple[str, ...]:
    """GPU architectures in any common spelling ("sm86", "86", "8.6", several in one with commas) as ("sm86", ...).

    Each once, oldest first; "current", this machine's GPU, alone. Raises BuildRequestError for what is no architecture.
    """
    targets = set()
    items = [part.strip() for text in requested for part in text.split(",")]
    if [item.lower() for item in items] == [CURRENT]:
        return (CURRENT,)
    for item in items:
        match = _TARGET.fullmatch(item.lower())
        if match is None:
            raise BuildRequestError(f"{item!r} is not a GPU architecture; write it as sm86, 86 or 8.6.")
        targets.add(f"sm{match[1]}{match[2]}")
    return tuple(sorted(targets, key=_sm))


def _sm(target: str) -> int:
    return int(target.removeprefix("sm"))


def _probe(name: RuntimeName) -> RuntimeInfo:
    module_name, extra = PLAN_RUNTIMES[name].module, PLAN_RUNTIMES[name].extra
    install = pip_install(extra)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name == module_name:
            reason = _NO_GPU if name == TENSORRT and not has_nvidia_driver() else f"not installed: {install}."
            return RuntimeInfo(name, None, False, reason, installed=False)
        return RuntimeInfo(name, None, False, f"installed without its part {exc.name}: {install}.")
    except (ImportError, OSError) as exc:
        return RuntimeInfo(name, None, False, f"installed, but its libraries can't be loaded: {exc}.")
    version = getattr(module, "__version__", None)
    if version is None or not hasattr(module, "Builder"):
        # PyPI's `tensorrt` is a stub that fetches its libraries when it is installed, and may be left without them.
        return RuntimeInfo(name, version, False, f"installed without its libraries: {install}.")
    if name == TENSORRT and (problem := _tensorrt_problem(version)):
        return RuntimeInfo(name, version, False, problem)
    if name == TENSORRT:
        return RuntimeInfo(name, version, True, f"builds for this machine's {visible_devices()[0].name}.")
    return RuntimeInfo(name, version, True, "builds ahead of time; needs no GPU.")


def _tensorrt_problem(version: str) -> str | None:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < _OLDEST_TENSORRT:
        return f"version {version} is too old: {'.'.join(map(str, _OLDEST_TENSORRT))} or newer is needed."
    if numbers in _BAD_TENSORRT:
        return f"{_BAD_TENSORRT[numbers]}."
    if not visible_devices():
        return _NO_GPU
    return None


def _no_usable_runtime(infos: list[RuntimeInfo]) -> Exception:
    if [info.reason for info in infos] == [_NO_GPU]:  # nothing to install would change that
        return EngineError(
            f"no plan can be built with {PLAN_RUNTIMES[infos[0].name].title} here: {_NO_GPU} "
            f"Build on the machine that has it, or with --runtime {TENSORRT_RTX}, which needs no GPU."
        )
    if not any(info.installed for info in infos):
        # TensorRT is of no use without a GPU; TensorRT-RTX builds anywhere.
        name: RuntimeName = infos[0].name if len(infos) == 1 or visible_devices() else TENSORRT_RTX
        return MissingDependencyError(name, extra=PLAN_RUNTIMES[name].extra, purpose="building a plan")
    found = "\n".join(f"  {info.name}: {info.reason}" for info in infos)
    return EngineError(f"no plan can be built here:\n{found}")
