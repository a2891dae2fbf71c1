"""Checkpoints to begin with, and what can be changed in them: the tensors, the zip archive around them, the pickle inside."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from exporters.network.yolact import Yolact
from tests.fuzz.mutation import bytes_mutation, change_bytes, odd_text, odd_value
from tests.unit.exporters import trainer_states
from yolact_deploy.spec import BackboneSpec, FpnSpec, HeadSpec, ModelSpec, PriorsSpec, ProtonetSpec

CANARY = "canary"  # the file that code out of a pickle would make
StateDict = dict[str, Tensor]

CHECKPOINT_SPEC = ModelSpec(
    name="tiny",
    input_size=32,
    backbone=BackboneSpec("resnet", (1, 1), (0, 1)),
    class_names=("disc", "bar"),
    category_ids=(1, 2),
    priors=PriorsSpec(((8,), (16,), (32,)), ((1.0,),) * 3),
    fpn=FpnSpec(channels=4, num_downsample=1),
    protonet=ProtonetSpec(((4, 3), (None, -2), (4, 1))),
    head=HeadSpec(extra_layers=((4, 3),)),
)
_PLUS = ModelSpec.from_dict(
    {
        **CHECKPOINT_SPEC.to_dict(),
        "backbone": {"kind": "resnet", "stages": [1, 1], "selected_layers": [0, 1], "dcn_blocks": [0, 1]},
        "mask_iou_layers": [[8, 3], [16, 3]],
    }
)
_DARKNET = ModelSpec.from_dict(
    {**CHECKPOINT_SPEC.to_dict(), "backbone": {"kind": "darknet", "stages": [1, 1], "selected_layers": [0, 1]}}
)
_CODE = f"import os; os.mkdir({CANARY!r})"


def checkpoint_seeds() -> list[bytes]:
    """Of every form that is read, each tensor as one stored number: the shapes count, and the files stay small."""
    states = [_state(spec) for spec in (CHECKPOINT_SPEC, _PLUS, _DARKNET)]
    plain = states[0]
    return [
        *map(_saved, states),
        _saved({"state_dict": plain, "epoch": 3}),
        _saved({f"module.{name}": tensor for name, tensor in plain.items()}),
        _saved(trainer_states.mmdetection()),
        _saved(trainer_states.yolact_minimal()),
        _saved(trainer_states.yolact_edge()),
        _saved(plain, zipped=False),
        _saved(_Loud()),
        _saved({**plain, "extra": _Loud()}),
        pickle.dumps(_Loud(), protocol=2),
        _safetensors(plain),
    ]


def checkpoint_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Bytes of the file, entries of the archive, opcodes of the pickle, or a state_dict that someone else wrote."""
    kind = rng.randrange(10)
    if kind < 3:
        return bytes_mutation(rng, seeds)
    if kind < 5:
        return _changed_archive(rng, rng.choice(seeds), seeds)
    try:
        return _saved(_changed_state(rng), zipped=rng.random() < 0.9)
    except Exception:  # what torch.save does not write
        return rng.choice(seeds)


def _state(spec: ModelSpec) -> StateDict:
    with torch.device("meta"):
        wanted = Yolact(spec).state_dict()
    return {name: _stored_once(like) for name, like in wanted.items()}


def _stored_once(like: Tensor) -> Tensor:
    return torch.full((1,), 0.5).expand(like.shape) if like.ndim else torch.tensor(0)


def _saved(content: Any, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def _safetensors(state: StateDict) -> bytes:
    entries = ", ".join(f'"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}' for name in state)
    header = f"{{{entries}}}".encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


class _Loud:
    """Runs code when it is unpickled by whoever does not look."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (_CODE,)


def _changed_state(rng: random.Random) -> Any:
    state: dict[Any, Any] = dict(rng.choice(_STATES[:1] * 4 + _STATES[:3] * 3 + _STATES))
    for _ in range(min(4, 1 + int(rng.expovariate(1.0)))):
        if not state:
            break
        name = rng.choice(list(state))
        kind = rng.randrange(8)
        if kind == 0:
            del state[name]
        elif kind == 1:
            state[_other_name(rng, str(name))] = state.pop(name)
        elif kind == 2:
            state[_other_name(rng, str(name))] = state[name]
        elif kind == 3:
            state[name] = odd_value(rng)
        else:
            state[name] = _other_tensor(rng, state[name])
    return rng.choice(
        (state, state, state, {rng.choice(("model", "state_dict", "net", odd_text(rng))): state}, [state])
    )


def _other_name(rng: random.Random, name: str) -> str:
    parts = name.split(".")
    place = rng.randrange(len(parts))
    changes = (
        str(rng.choice((0, 1, 2, 7, 10**6, 10**30, -1))),
        odd_text(rng),
        "weight",
        "bias",
        f"{parts[place]}.0",
        "²",
    )
    parts[place] = rng.choice(changes)
    return rng.choice((".".join(parts), ".".join(parts), odd_text(rng), f"backbone.layers.{rng.choice(parts)}"))


def _other_tensor(rng: random.Random, tensor: Any) -> Any:
    shape = list(tensor.shape) if isinstance(tensor, Tensor) else [1]
    kind = rng.randrange(8)
    if kind == 0:
        return torch.tensor(rng.choice((0, 1.5, True, 1 + 2j)))
    if kind == 1:
        dtypes = (
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.int8,
            torch.bool,
            torch.complex64,
            torch.float8_e4m3fn,
        )
        return torch.zeros(1, dtype=rng.choice(dtypes)).expand(shape)
    if kind == 2:
        return torch.full((1,), rng.choice((float("nan"), float("inf"), 1e38))).expand(shape)
    if kind == 3 and len(shape) == 4:
        return torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.tensor([1.0]), (2, 2), check_invariants=False)
    if kind == 4:
        return torch.zeros(()).expand(
            [rng.choice((10**3, 10**6)) for _ in range(rng.randint(1, 3))]
        )  # terabytes, if written out
    if shape:
        place = rng.randrange(len(shape))
        shape[place] = rng.choice((0, 1, 2, 3, shape[place] + 1, 2 * shape[place], 10**6))
        if kind == 5:
            shape = shape[:place] + shape[place + 1 :]
    return torch.zeros(()).expand(shape)


def _changed_archive(rng: random.Random, seed: bytes, seeds: Sequence[bytes]) -> bytes:
    """The same entries but for one, with checksums that are right: damage that only a look at the content shows."""
    if not seed.startswith(b"PK"):
        return _changed_pickle(rng, seed)
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    if rng.random() < 0.5:
        place = rng.randrange(len(entries))
    name, content = entries[place]
    kind = rng.randrange(6)
    if kind == 0:
        del entries[place]
    elif kind == 1:
        entries[place] = rng.choice((odd_text(rng), f"{name}x", f"../{name}", "archive/constants.pkl")), content
    elif kind == 2:
        entries.append((name, change_bytes(rng, content)))
    elif name.endswith("data.pkl"):
        entries[place] = name, _changed_pickle(rng, content)
    else:
        entries[place] = name, change_bytes(rng, content, seeds)
    stream = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", packing) as archive:
        warnings.simplefilter("ignore")  # a name may be there twice
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode()), content)
    data = stream.getvalue()
    directory = data.rindex(b"PK\x05\x06")
    if rng.random() < 0.3:  # the directory at the end, which says where all is
        return data[: directory - 200] + change_bytes(rng, data[directory - 200 :])
    return data


def _changed_pickle(rng: random.Random, data: bytes) -> bytes:
    """Opcodes left out, repeated, moved, or others in their place; among these, what runs code."""
    try:
        positions = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # it was changed before
        return change_bytes(rng, data)
    ops = [data[start:end] for start, end in zip(positions, [*positions[1:], len(data)], strict=True)]
    rest = b"" if not positions else data[len(b"".join(ops)) :]
    for _ in range(rng.choice((1, 1, 2, 4))):
        place, other = rng.randrange(len(ops)), rng.randrange(len(ops))
        kind = rng.randrange(5)
        if kind == 0:
            del ops[place]
        elif kind == 1:
            ops.insert(place, ops[other])
        elif kind == 2:
            ops[place], ops[other] = ops[other], ops[place]
        elif kind == 3:
            ops.insert(place, rng.choice(_RUNS_CODE))
        else:
            ops[place] = change_bytes(rng, ops[place])
        if not ops:
            break
    return b"".join(ops) + rest


_RUNS_CODE = (
    b"cbuiltins\nexec\n(V" + _CODE.encode() + b"\ntR",
    b"cos\nmkdir\n(V" + CANARY.encode() + b"\ntR",
    b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x06canary\x85R",
    b"(V" + CANARY.encode() + b"\nios\nmkdir\n",
    b"cos\nsystem\n(Vmkdir " + CANARY.encode() + b"\ntR",
    b"ctorch.serialization\nload\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR",
    b"ccollections\nOrderedDict\n)R",
    b"N", b"K\x05", b"}", b"]", b")", b"Q", b"b", b"R", b"\x81", b".", b"(", b"0", b"2",
)  # fmt: skip
_STATES = (
    _state(CHECKPOINT_SPEC),
    _state(_PLUS),
    _state(_DARKNET),
    trainer_states.mmdetection(),
    trainer_states.yolact_minimal(),
    trainer_states.yolact_edge(),
)
