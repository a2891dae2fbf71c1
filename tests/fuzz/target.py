"""What a target of fuzzing is."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Seeds = Callable[[Path], list[bytes]]  # made in a scratch folder by the project's own writers
Mutate = Callable[[random.Random, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """A kind of input. Each of `readers` must take it, or refuse it with an error of ours."""

    file_name: str  # that an input gets: readers go by the suffix
    seeds: Seeds
    mutate: Mutate
    readers: tuple[Callable[[Path], object], ...]
    share: int  # of 100 inputs: more where an input costs little
    beside: Mapping[str, bytes] = field(default_factory=dict)  # what lies in its folder
    reads_elsewhere: bool = False  # the input names files: opening them is what it asks for

    def input(self, name: str, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
        """The same bytes for the same seed and number, in any process; `name` is the target's."""
        return self.mutate(random.Random(f"{seed}/{name}/{number}"), seeds)
