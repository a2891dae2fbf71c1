"""Stream capture through cuda-bindings, on the handles of whichever package made the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class GraphCapture:
    def __init__(self, call: Callable[..., Any]) -> None:
        """`call(action, function, *arguments)` calls cuda.bindings.driver and raises what the driver refuses."""
        self._call = call

    def begin(self, stream: int) -> None:
        from cuda.bindings import driver as cuda

        # other threads may allocate and synchronize meanwhile: only this thread's work is held to what can be recorded
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("starting to record a CUDA graph", cuda.cuStreamBeginCapture, stream, mode)

    def end(self, stream: int) -> int:
        from cuda.bindings import driver as cuda

        graph = self._call("recording a CUDA graph", cuda.cuStreamEndCapture, stream)
        try:
            return int(self._call("making a CUDA graph", cuda.cuGraphInstantiate, graph, 0))
        finally:
            self._call("making a CUDA graph", cuda.cuGraphDestroy, graph)

    def launch(self, graph: int, stream: int) -> None:
        from cuda.bindings import driver as cuda

        self._call("launching a CUDA graph", cuda.cuGraphLaunch, graph, stream)

    def destroy(self, graph: int) -> None:
        from cuda.bindings import driver as cuda

        self._call("freeing a CUDA graph", cuda.cuGraphExecDestroy, graph)
