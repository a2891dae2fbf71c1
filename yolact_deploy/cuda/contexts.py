"""Whether what a driver made still is: all of it goes with the primary context, when another library resets that.

An address or a handle of a context that is gone may be another's in the one that follows, so that nothing may be freed then.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from yolact_deploy.cuda import libcuda
from yolact_deploy.cuda.driver_errors import CONTEXT_LOST, INVALID_CONTEXT


@dataclass(eq=False)
class ContextState:
    lost: bool = False

    def hear(self, code: int) -> None:
        """What the driver gave; an invalid context is a lost one unless none was current, which is a mistake of ours."""
        if code in CONTEXT_LOST and (code != INVALID_CONTEXT or libcuda.current_context() != 0):
            self.lost = True


_states: dict[int, weakref.WeakSet[ContextState]] = {}  # of the drivers that are open, by device


def join_context(index: int) -> ContextState:
    """To be called before the primary context is retained: if it is not there any more, then earlier drivers have lost it."""
    states = _states.setdefault(index, weakref.WeakSet())
    if not libcuda.is_primary_context_active(index):
        for state in states:
            state.lost = True
        states.clear()
    state = ContextState()
    states.add(state)
    return state
