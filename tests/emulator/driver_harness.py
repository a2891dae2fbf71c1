"""What claims about the drivers share, in a process that has the stand-in for libcuda."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.emulator.emulator import Array
from yolact_deploy.cuda.drivers.interface import Driver
from yolact_deploy.cuda.drivers.opening import open_driver
from yolact_deploy.errors import DeviceError, YolactDeployError

POISON = 0xA5  # what the stand-in leaves where a copy has not arrived


@contextlib.contextmanager
def gpu() -> Iterator[Driver]:
    driver = open_driver()
    with driver.current():
        yield driver


def host_bytes(address: int, nbytes: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


def expect_refusal(act: Callable[[], object], pattern: str, kind: type[YolactDeployError] = DeviceError) -> None:
    with pytest.raises(kind, match=f"(?s){pattern}"):
        act()
