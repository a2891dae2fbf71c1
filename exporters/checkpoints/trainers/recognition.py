"""Whose checkpoint it is, by its names alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from exporters.checkpoints.trainers import mmdetection, yolact_edge, yolact_minimal
from exporters.checkpoints.trainers.mapping import ORIGINAL, Weights, first_match
from yolact_deploy.errors import CheckpointError

_TRAINERS = (mmdetection.TRAINER, yolact_edge.TRAINER, yolact_minimal.TRAINER)


def as_original(stored: Mapping[str, Tensor], path: Path) -> Weights:
    """The tensors under the original's names, in its order of classes and levels.

    Names that no other trainer is known by are left as they are. Raises CheckpointError when names of two trainers are
    mixed, or when the recognised trainer's model is not whole or not supported; `path` is named in errors.
    """
    found = [(trainer, name) for trainer in _TRAINERS if (name := first_match(trainer.signature, stored)) is not None]
    if not found:
        return Weights(ORIGINAL, dict(stored), {}, None)
    if len(found) > 1:
        (a, name_a), (b, name_b) = found[:2]
        raise CheckpointError(
            f"{path} has names of {a.name} ({name_a}) and of {b.name} ({name_b}): the file mixes two models."
        )
    return found[0][0].read(stored, path)
