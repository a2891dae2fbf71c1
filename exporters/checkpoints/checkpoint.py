"""A trained YOLACT's checkpoint: what is in the file, the spec it belongs to, and the network with its weights."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from exporters.checkpoints.inference import Architecture, infer_architecture
from exporters.checkpoints.spec_choice import choose_spec
from exporters.checkpoints.trainers.mapping import ORIGINAL, Weights, examples, first_match
from exporters.checkpoints.trainers.others import MMDETECTION, YOLACT_EDGE, YOLACT_MINIMAL
from exporters.checkpoints.weights_file import read_weights
from exporters.network.yolact import Yolact
from yolact_deploy.errors import CheckpointError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec import ModelSpec
from yolact_deploy.text import shorten

_OTHER_TRAINERS = (MMDETECTION, YOLACT_EDGE, YOLACT_MINIMAL)
_NEVER_RUN = "semantic_seg_conv."  # a loss of training
_LONG_NUMBER = re.compile(r"\d{5}")
_MOST_PARAMETERS = 1 << 29  # of ResNet101: 50 million
_COUNTER = ".num_batches_tracked"
_LARGEST_WEIGHT = 1e10  # no training ends there; a flipped bit of an exponent does, and older formats have no checksums
_CONVERTED = (torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, eq=False)
class CheckpointContent:
    """A file that holds a YOLACT: its tensors under the original's names, and what they tell."""

    path: Path
    weights: Weights
    architecture: Architecture
    num_stored: int  # tensors in the file
    notes: tuple[str, ...]  # what was forgiven


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
    content = read_checkpoint(path)
    choice = choose_spec(content.path, content.architecture, spec_file=spec_file, config=config)
    notes = [*choice.notes, *content.notes]
    if choice.from_tensors:
        seen = content.architecture.describe()
        notes.append(f"seen in its tensors: {seen}; `yolact-deploy inspect` tells in which.")
    state_dict = _fitted(content, choice.spec, notes)
    _check_finite(state_dict, content)
    return LoadedCheckpoint(choice.spec, state_dict, tuple(notes), content.path, sha256_file(content.path))


def build_model(loaded: LoadedCheckpoint) -> Yolact:
    """The network with the checkpoint's weights, in evaluation mode on the CPU. It shares the tensors' memory."""
    with torch.device("meta"):  # skips the initialisation of weights that are replaced anyway
        model = Yolact(loaded.spec)
    model.load_state_dict(loaded.state_dict, assign=True)
    return model.eval().requires_grad_(False)


def read_checkpoint(path: str | os.PathLike[str]) -> CheckpointContent:
    """Whose checkpoint it is and which network its tensors show. Raises CheckpointError for one that is no YOLACT."""
    path = Path(path)
    stored, notes = read_weights(path)
    _check_plausible(stored, path)
    weights = to_original_names(stored, path)
    tensors, old_names = _without_old_names(weights.tensors)
    return CheckpointContent(
        path=path,
        weights=dataclasses.replace(weights, tensors=tensors),
        architecture=infer_architecture(tensors, path, trainer=weights.trainer, conventions=weights.conventions),
        num_stored=len(stored),
        notes=(*notes, *weights.notes, *old_names),
    )


def _check_plausible(stored: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError for numbers that no network has: a file of some kilobytes can say that its tensors hold terabytes."""
    if name := next((name for name in stored if _LONG_NUMBER.search(name)), None):
        raise CheckpointError(f"{path} is no YOLACT: no network numbers a layer as {shorten(name)} does.")
    count = sum(tensor.numel() for tensor in stored.values())
    if count > _MOST_PARAMETERS:
        raise CheckpointError(
            f"{path} is no YOLACT: its tensors hold {count} numbers, and at most {_MOST_PARAMETERS} are read."
        )


def to_original_names(stored: Mapping[str, Tensor], path: Path) -> Weights:
    """The tensors under the original's names, in its order of classes and levels.

    Names that no other trainer is known by are left as they are. Raises CheckpointError when names of two trainers are
    mixed, or when the recognised trainer's model is not whole or not supported; `path` is named in errors.
    """
    signed = [(trainer, first_match(trainer.signature, stored)) for trainer in _OTHER_TRAINERS]
    found = [(trainer, name) for trainer, name in signed if name is not None]
    if not found:
        return Weights(ORIGINAL, dict(stored), {}, None)
    if len(found) > 1:
        (a, name_a), (b, name_b) = found[:2]
        raise CheckpointError(
            f"{path} has names of {a.name} ({name_a}) and of {b.name} ({name_b}): the file mixes two models."
        )
    return found[0][0].read(stored, path)


def _without_old_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Checkpoints from before October 2018 hold the backbone twice, as `layer1` and as `layers.0`."""
    old = [name for name in tensors if name.startswith("backbone.layer") and not name.startswith("backbone.layers")]
    if not old or not any(name.startswith("backbone.layers.") for name in tensors):
        return tensors, ()
    kept = {name: tensor for name, tensor in tensors.items() if name not in old}
    return kept, (f"ignored {len(old)} duplicates under old names (backbone.layer*).",)


def _fitted(content: CheckpointContent, spec: ModelSpec, notes: list[str]) -> dict[str, Tensor]:
    """Exactly the entries of the model of `spec`, in its order, as float32; what was forgiven is added to `notes`."""
    path, in_file = content.path, content.weights.in_file
    with torch.device("meta"):
        wanted = Yolact(spec).state_dict()
    tensors = _without_unfit_loss(content.weights.tensors, wanted)
    unused = [name for name in tensors if name not in wanted]
    extra_levels = [name for name in unused if name.startswith("fpn.downsample_layers.")]
    if extra_levels:
        notes.append(f"ignored {len(extra_levels)} entries of FPN levels that are not used (version 1.0 checkpoints).")
    if unknown := [name for name in unused if name not in extra_levels]:
        raise CheckpointError(
            f"{path} has {len(unknown)} tensors that {spec.name} does not have ({examples(map(in_file, unknown))}): "
            "another architecture, or not only the network was saved."
        )
    missing = [name for name in wanted if name not in tensors]
    if essential := [name for name in missing if not name.startswith(_NEVER_RUN) and not name.endswith(_COUNTER)]:
        raise CheckpointError(
            f"{path} lacks {len(essential)} of the {len(wanted)} tensors of {spec.name} ({examples(essential)}): "
            "it was saved from a part of the network or from another one."
        )
    mismatched = [name for name in wanted if name in tensors and tensors[name].shape != wanted[name].shape]
    if mismatched:
        name = mismatched[0]
        raise CheckpointError(
            f"{path} does not fit {spec.name}: {len(mismatched)} tensors have another shape, the first is {in_file(name)}, "
            f"found {list(tensors[name].shape)}, expected {list(wanted[name].shape)}."
        )
    strange = [
        name
        for name, like in wanted.items()
        if name in tensors
        and (like.is_floating_point() or tensors[name].is_complex())
        and tensors[name].dtype not in (torch.float32, *_CONVERTED)
    ]
    if strange:
        stored_as = str(tensors[strange[0]].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{path} holds {len(strange)} weights that are no floating point numbers, the first is {in_file(strange[0])} in "
            f"{stored_as}: they were quantized or converted, and their scales are not here. Give the checkpoint before that."
        )
    if unfit := [name for name in content.weights.tensors if name not in tensors]:
        shape = list(content.weights.tensors[unfit[0]].shape)
        notes.append(
            f"ignored {in_file(unfit[0])} ({shape}), which is not as {spec.name} has it: it is of a training loss that is "
            "never run, set to zero."
        )
    elif any(name.startswith(_NEVER_RUN) for name in missing):
        notes.append("it has no semantic_seg_conv, a training loss that is never run: set to zero.")
    if any(name.endswith(_COUNTER) for name in missing):
        notes.append("it has no num_batches_tracked counters, which are not used: set to zero.")
    for dtype in _CONVERTED:
        if count := sum(tensor.dtype == dtype for tensor in tensors.values()):
            notes.append(f"converted {count} tensors from {str(dtype).removeprefix('torch.')} to float32.")
    return {
        name: tensors[name].to(like.dtype).contiguous()
        if name in tensors
        else torch.zeros(like.shape, dtype=like.dtype)
        for name, like in wanted.items()
    }


def _without_unfit_loss(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a training loss has in another shape or type than `wanted`, or with values that are no numbers: it is
    never run, so that nothing in it is a reason to refuse the network."""

    def fits(name: str, tensor: Tensor) -> bool:
        like = wanted.get(name)
        return (
            like is not None
            and tensor.shape == like.shape
            and tensor.layout == torch.strided
            and tensor.dtype in (torch.float32, *_CONVERTED)
            and bool(torch.isfinite(tensor).all())
        )

    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_NEVER_RUN) or fits(name, tensor)}


def _check_finite(state_dict: Mapping[str, Tensor], content: CheckpointContent) -> None:
    bad = [name for name, tensor in state_dict.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        first = state_dict[bad[0]]
        raise CheckpointError(
            f"{content.path} holds NaN or infinite weights in {len(bad)} tensors, first in "
            f"{content.weights.in_file(bad[0])} ({int((~torch.isfinite(first)).sum())} of {first.numel()} values): the "
            "training diverged. Take an earlier checkpoint."
        )
    if huge := [
        name
        for name, tensor in state_dict.items()
        if tensor.is_floating_point() and bool((tensor.abs() > _LARGEST_WEIGHT).any())
    ]:
        raise CheckpointError(
            f"{content.path} holds weights above {_LARGEST_WEIGHT:.0e} in {len(huge)} tensors, first in "
            f"{content.weights.in_file(huge[0])} (up to {float(state_dict[huge[0]].abs().max()):.1e}): the file is damaged, or "
            "the training diverged. Get the file again, or take an earlier checkpoint."
        )
