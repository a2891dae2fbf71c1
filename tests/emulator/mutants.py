"""Planted kernel bugs: each is one change of the source, and must be found by the check beside it.

python -m tests.emulator.mutants NAME    one of them: exit code 0 when its check finds it
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import traceback

from tests.emulator import planted_detect, planted_masks
from tests.emulator.checks import CHECKS
from tests.emulator.emulator import Build, Emulator, EmulatorError, compiled
from tests.emulator.planted import Mutant
from tests.emulator.sanitized import SANITIZER_EXIT_CODE
from yolact_deploy.cuda.specialization import Specialization, kernel_source

# Of processor time: a kernel of a check takes a fifth of a second, and a planted bug that loops is found when it is stopped.
_KERNEL_SECONDS = 5.0
_MUTANT_SECONDS = 200  # for loops that the emulator can't stop


MUTANTS: dict[str, Mutant] = {**planted_detect.MUTANTS, **planted_masks.MUTANTS}


def finds(name: str) -> str | None:
    """What the mutant's check says of it; None when it says nothing. Raises ValueError for a mutant that no longer applies."""
    mutant = MUTANTS[name]
    source = kernel_source()
    if source.count(mutant.before) != 1:
        raise ValueError(f"{name}: its text is {source.count(mutant.before)} times in the kernels, want once.")
    mutated = source.replace(mutant.before, mutant.after)

    @functools.cache
    def build(specialization: Specialization, build: Build = "plain") -> Emulator:
        kind: Build = "asan" if mutant.sanitized else "quick" if build == "plain" else build
        emulator = Emulator(compiled(mutated, specialization, kind), kind)
        emulator.limit_seconds = _KERNEL_SECONDS
        return emulator

    try:
        CHECKS[mutant.found_by](build)
    except (AssertionError, EmulatorError) as problem:
        if "g++" in str(problem):
            raise
        return str(problem).strip() or type(problem).__name__
    return None


def in_own_process(name: str) -> str:
    """ "found", "survived" or what went wrong. A mutant may write where it likes, so it runs in a fork."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (_MUTANT_SECONDS, _MUTANT_SECONDS))
            os._exit(0 if finds(name) is not None else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0:
        return "found"
    by_sanitizer = MUTANTS[name].sanitized and os.WEXITSTATUS(status) == SANITIZER_EXIT_CODE
    return "found" if by_sanitizer else "survived" if os.WEXITSTATUS(status) == 1 else "does not run"


if __name__ == "__main__":
    outcomes = {name: in_own_process(name) for name in sys.argv[1:]}
    print("\n".join(f"{name}: {outcome} ({MUTANTS[name].found_by})" for name, outcome in outcomes.items()))
    sys.exit(set(outcomes.values()) != {"found"})
