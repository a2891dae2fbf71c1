"""What is the same for every other trainer: renaming tensors by rules, and refusing what the rules do not cover."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from yolact_deploy.errors import CheckpointError
from yolact_deploy.spec import DownsampleSource

ORIGINAL = "YOLACT"  # the trainer of dbolya/yolact
_MAX_EXAMPLES = 3
_MOST_CHANNELS = 1 << 16  # of a convolution; the widest published one gives 2048

Rule = tuple[str, str | Callable[["re.Match[str]"], str | None]]  # a name's pattern, and its name there; None: left out


@dataclass(frozen=True)
class Conventions:
    """What a trainer's code computes and no tensor shows; the fields are those of `FpnSpec` and `ProtonetSpec`."""

    relu_pred_layers: bool = True
    downsample_source: DownsampleSource = "output"
    downsample_activation: Literal["none", "relu"] = "none"
    align_corners: bool = False


@dataclass(frozen=True, eq=False)
class Weights:
    """A checkpoint's tensors under the original's names."""

    trainer: str
    tensors: dict[str, Tensor]
    sources: dict[str, str]  # name here -> name in the file; empty for the original's own
    conventions: Conventions | None  # None: the original's, which its configurations can change
    recognised_by: str | None = None  # the name in the file that only this trainer writes; None for the original
    notes: tuple[str, ...] = ()

    def in_file(self, name: str) -> str:
        """The name that a tensor has in the checkpoint."""
        return self.sources.get(name, name)


@dataclass(frozen=True)
class Trainer:
    """How a trainer's checkpoints are recognised and turned into the original's."""

    name: str
    signature: str  # pattern of names that only this trainer writes
    required: tuple[tuple[str, str], ...]  # (what it is, pattern of its names), all of which a whole model has
    refused: tuple[tuple[str, str], ...]  # (pattern of names, why a checkpoint with them can't be used)
    conventions: Conventions
    convert: Callable[[Mapping[str, Tensor], Path], tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]]

    def read(self, stored: Mapping[str, Tensor], path: Path) -> Weights:
        """Raises CheckpointError for a part of a model, for another model, and for names that are not this trainer's."""
        for pattern, reason in self.refused:
            name = first_match(pattern, stored)
            if name is not None:
                raise CheckpointError(
                    f"{path} is a checkpoint of {self.name} that can't be used: {reason} (found {name})."
                )
        signed = first_match(self.signature, stored)
        for what, pattern in self.required:
            if first_match(pattern, stored) is None:
                raise CheckpointError(
                    f"{path} has names of {self.name} ({signed}), but it is no whole YOLACT: "
                    f"it has no {what} ({readable(pattern)})."
                )
        tensors, sources, notes = self.convert(stored, path)
        recognised = f"trainer {self.name}: recognised by {signed}; names mapped to the original's."
        return Weights(self.name, tensors, sources, self.conventions, signed, (recognised, *notes))


def rename(
    stored: Mapping[str, Tensor], rules: Sequence[Rule], trainer: str, path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under the names that the first matching rule gives, and the name in the file of each.

    Raises CheckpointError for names that no rule knows and for two names that mean the same tensor.
    """
    tensors: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    unknown = []
    for name, tensor in stored.items():
        match, target = next(
            ((match, target) for pattern, target in rules if (match := re.fullmatch(pattern, name))), (None, None)
        )
        if match is None or target is None:
            unknown.append(name)
            continue
        mapped = match.expand(target) if isinstance(target, str) else target(match)
        if mapped is None:
            continue
        if mapped in tensors:
            raise CheckpointError(
                f"{path} holds {sources[mapped]} and {name}, which are the same tensor of a YOLACT under names of two "
                "trainers. The file mixes two models."
            )
        tensors[mapped], sources[mapped] = tensor, name
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that a YOLACT of {trainer} with a ResNet does not have "
            f"({examples(unknown)}): another backbone or configuration, or the file mixes two models."
        )
    return tensors, sources


def convolution_shape(tensors: Mapping[str, Tensor], name: str, path: Path) -> tuple[int, ...]:
    """Shape of a convolution's weight, each size from 1 to _MOST_CHANNELS. Raises CheckpointError when it is not there."""
    if name not in tensors or tensors[name].ndim != 4:
        raise CheckpointError(f"{path} holds only a part of a YOLACT: it has no convolution {name}.")
    shape = tuple(tensors[name].shape)
    if not all(1 <= size <= _MOST_CHANNELS for size in shape):
        raise CheckpointError(f"{path}: {name} has the shape {list(shape)}, which no convolution of a YOLACT has.")
    return shape


def count(pattern: str, names: Mapping[str, Tensor]) -> int:
    """How many names match entirely."""
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def first_match(pattern: str, names: Mapping[str, Tensor]) -> str | None:
    """The first name that starts with the pattern."""
    return next((name for name in names if re.match(pattern, name)), None)


def examples(names: Iterable[str]) -> str:
    """The first names of many, for an error."""
    listed = list(names)
    return ", ".join(listed[:_MAX_EXAMPLES]) + (", ..." if len(listed) > _MAX_EXAMPLES else "")


def readable(pattern: str) -> str:
    """A pattern as a person writes it."""
    return re.sub(r"\\d\+?", "N", pattern).replace("\\.", ".") + "*"
