"""What a steady frame asks of the driver: a promise, and so counted; and that its benchmark runs."""

from __future__ import annotations

import pytest

from benchmarks.figures.host_overhead import measure


@pytest.mark.slow
@pytest.mark.parametrize("detections", [0, 100])
def test_a_steady_frame_is_one_graph_one_copy_of_its_masks_and_one_wait(detections: int) -> None:
    measured = measure("yolact_base", (48, 64), detections, repeats=3)
    asked = {name: count for name, count in measured["driver_calls"].items() if name != "current"}  # asks nothing of it
    copies = {"copy_to_host": 1} if detections else {}
    assert asked == {"launch_cuda_graph": 1, "synchronize": 1, **copies}
    assert measured["masks_bytes"] == detections * 24 * 4
    assert measured["frame_us"] > 0
