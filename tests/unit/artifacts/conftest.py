from __future__ import annotations

from tests.unit.runtime.conftest import bench as bench
from tests.unit.runtime.conftest import make_bench as make_bench
