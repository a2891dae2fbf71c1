"""A trained YOLACT's checkpoint: its weights under the original's names, and the spec they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from exporters.checkpoints.inference import infer_architecture
from exporters.checkpoints.spec_choice import choose_spec
from exporters.checkpoints.trainers.recognition import as_original
from exporters.checkpoints.weights_file import read_weights
from exporters.network.yolact import Yolact
from yolact_deploy.errors import CheckpointError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec import ModelSpec

_NEVER_RUN = ("semantic_seg_conv.weight", "semantic_seg_conv.bias")
_COUNTER = ".num_batches_tracked"
_MAX_EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class LoadedCheckpoint:
    """A checkpoint that was read, understood and found whole."""

    spec: ModelSpec
    state_dict: Mapping[str, Tensor]  # every name of the model in the original's order; float32, counters int64
    notes: tuple[str, ...]  # where the spec came from, and what was forgiven
    path: Path
    sha256: str  # of the file


def load_checkpoint(
    path: str | os.PathLike[str], *, spec_file: Path | None = None, config: str | None = None
) -> LoadedCheckpoint:
    """Read a checkpoint of the original YOLACT, or of a trainer whose names are known, and find out its spec.

    The spec comes from `spec_file`, else `config`, else the file name, else the tensors. Raises CheckpointError when
    the file can't be read, is no YOLACT or does not fit the spec, SpecError when the spec file or the name is wrong.
    """
    path = Path(path)
    stored, read_notes = read_weights(path)
    notes = list(read_notes)
    weights = as_original(stored, path)
    notes += weights.notes
    tensors = drop_old_names(weights.tensors, notes)
    found = infer_architecture(tensors, path, trainer=weights.trainer, conventions=weights.conventions)
    choice = choose_spec(path, found, spec_file=spec_file, config=config)
    notes[:0] = choice.notes
    if choice.from_tensors:
        notes.append(f"seen in its tensors: {found.describe()}; `yolact-deploy inspect` tells in which.")
    complete = _complete(tensors, choice.spec, path, notes, weights.in_file)
    _check_finite(complete, path, weights.in_file)
    return LoadedCheckpoint(choice.spec, complete, tuple(notes), path, sha256_file(path))


def build_model(loaded: LoadedCheckpoint) -> Yolact:
    """The network with the checkpoint's weights, in evaluation mode on the CPU. It shares the tensors' memory."""
    with torch.device("meta"):  # skips the initialisation of weights that are replaced anyway
        model = Yolact(loaded.spec)
    model.load_state_dict(loaded.state_dict, assign=True)
    return model.eval().requires_grad_(False)


def drop_old_names(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Checkpoints from before October 2018 hold the backbone twice, as `layer1` and as `layers.0`."""
    kept = {name: t for name, t in tensors.items() if name.startswith("backbone.layers") or not _is_old(name)}
    if len(kept) < len(tensors) and any(name.startswith("backbone.layers.") for name in kept):
        notes.append(f"ignored {len(tensors) - len(kept)} duplicates under old names (backbone.layer*).")
        return kept
    return tensors


def _is_old(name: str) -> bool:
    return name.startswith("backbone.layer")


def _complete(
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    path: Path,
    notes: list[str],
    in_file: Callable[[str], str],  # a tensor's name in the file, for errors
) -> dict[str, Tensor]:
    """Exactly the entries of the model of `spec`, in its order, as float32."""
    with torch.device("meta"):
        wanted = Yolact(spec).state_dict()
    unused = [name for name in tensors if name not in wanted]
    extra_levels = [name for name in unused if name.startswith("fpn.downsample_layers.")]
    if extra_levels:
        notes.append(f"ignored {len(extra_levels)} entries of FPN levels that are not used (version 1.0 checkpoints).")
    unknown = [name for name in unused if name not in extra_levels]
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that {spec.name} does not have ({_examples(map(in_file, unknown))}): "
            "another architecture, or not only the network was saved."
        )
    missing = [name for name in wanted if name not in tensors]
    essential = [name for name in missing if name not in _NEVER_RUN and not name.endswith(_COUNTER)]
    if essential:
        raise CheckpointError(
            f"{path} lacks {len(essential)} of the {len(wanted)} tensors of {spec.name} ({_examples(essential)}): "
            "it was saved from a part of the network or from another one."
        )
    mismatched = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if mismatched:
        name = mismatched[0]
        raise CheckpointError(
            f"{path} does not fit {spec.name}: {len(mismatched)} tensors have another shape, the first is {in_file(name)}, "
            f"found {list(tensors[name].shape)}, expected {list(wanted[name].shape)}."
        )
    if any(name in _NEVER_RUN for name in missing):
        notes.append("it has no semantic_seg_conv, a training loss that is never run: set to zero.")
    if any(name.endswith(_COUNTER) for name in missing):
        notes.append("it has no num_batches_tracked counters, which are not used: set to zero.")
    _note_conversions(tensors, notes)
    return {
        name: torch.zeros(like.shape, dtype=like.dtype)
        if name in missing
        else tensors[name].to(like.dtype).contiguous()
        for name, like in wanted.items()
    }


def _note_conversions(tensors: Mapping[str, Tensor], notes: list[str]) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        count = sum(tensor.dtype == dtype for tensor in tensors.values())
        if count:
            notes.append(f"converted {count} tensors from {str(dtype).removeprefix('torch.')} to float32.")


def _check_finite(tensors: Mapping[str, Tensor], path: Path, in_file: Callable[[str], str]) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        count = int((~torch.isfinite(tensors[bad[0]])).sum())
        raise CheckpointError(
            f"{path} holds NaN or infinite weights in {len(bad)} tensors, first in {in_file(bad[0])} ({count} of "
            f"{tensors[bad[0]].numel()} values): the training diverged. Take an earlier checkpoint."
        )


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_MAX_EXAMPLES]) + (", ..." if len(listed) > _MAX_EXAMPLES else "")
