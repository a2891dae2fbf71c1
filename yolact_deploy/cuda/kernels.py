"""The kernels of one specialization, loaded on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from yolact_deploy.cuda.compiler import compiled_kernels
from yolact_deploy.cuda.driver import Driver
from yolact_deploy.cuda.launches import ARGUMENTS, Launch
from yolact_deploy.cuda.specialization import Specialization
from yolact_deploy.errors import EngineError


class Kernels:
    """Launches by name. Methods are called with the driver's context current; `close` unloads what is loaded."""

    def __init__(
        self,
        driver: Driver,
        specialization: Specialization,
        image: bytes,  # a cubin
    ) -> None:
        self.specialization = specialization
        self._driver = driver
        self._module: int | None = driver.load_module(image)
        self._functions: dict[str, int] = {}

    def launch(
        self,
        launch: Launch,
        values: Mapping[str, int | float],  # by the names of ARGUMENTS[launch.kernel]: device addresses and scalars
        stream: int,
    ) -> None:
        """Enqueue a kernel. Raises EngineError for a value that is missing or after `close`, DeviceError by the driver."""
        names = ARGUMENTS[launch.kernel]
        missing = [name for name, _ in names if name not in values]
        if missing:
            raise EngineError(f"the kernel {launch.kernel} was launched without {', '.join(missing)}.")
        arguments = [(kind, values[name]) for name, kind in names]
        self._driver.launch(self._function(launch.kernel), launch, arguments, stream)

    def close(self) -> None:
        """Unload; nothing may be launched after, nor be running. Safe to call twice."""
        module, self._module = self._module, None
        self._functions.clear()
        if module is not None:
            self._driver.unload_module(module)

    def _function(self, kernel: str) -> int:
        if self._module is None:
            raise EngineError(f"the kernel {kernel} was launched after the kernels were closed.")
        if kernel not in self._functions:
            self._functions[kernel] = self._driver.get_function(self._module, kernel)
        return self._functions[kernel]


def load_kernels(
    driver: Driver,
    specialization: Specialization,
    notice: Callable[[str], None] | None = None,  # told in words of a cache that can't be used
) -> Kernels:
    """The kernels for the driver's GPU: from the cache, else compiled by NVRTC at this first use and kept there.

    Raises EngineError where they do not compile, DeviceError where NVRTC and the GPU or its driver do not go together,
    MissingDependencyError without NVRTC.
    """
    image = compiled_kernels(
        specialization, driver.device.architecture, driver_version=driver.device.driver_version, notice=notice
    )
    with driver.current():
        return Kernels(driver, specialization, image)
