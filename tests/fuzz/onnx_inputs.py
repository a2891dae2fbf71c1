"""ONNX files to begin with, and what can be changed in them: fields of the protobuf, the metadata, the spec in these."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto

from tests.fuzz.mutation import ODD_FLOATS, ODD_INTEGERS, ODD_TEXTS, bytes_mutation, change_bytes, change_json, odd_text
from tests.unit.engines.tiny_network import TINY_SPEC, make_model
from yolact_deploy.artifacts.names import (
    CHANNEL_ORDER_METADATA_KEY,
    CHECKPOINT_SHA256_METADATA_KEY,
    END_TO_END,
    FORM_METADATA_KEY,
    MASK_IOU_METADATA_KEY,
    MAX_BATCH_METADATA_KEY,
    PRECISION_METADATA_KEY,
    SPEC_METADATA_KEY,
    VERSION_METADATA_KEY,
    WEIGHTS_SHA256_METADATA_KEY,
)
from yolact_deploy.artifacts.onnx_file import parse_onnx
from yolact_deploy.spec import ModelSpec

# Messages and fields are those of google.protobuf, which has no types.
EXTERNAL_NAME = "weights.bin"  # lies beside the file


def onnx_seeds() -> list[bytes]:
    """Of every precision, of a YOLACT++, of one that says it goes from image to detections, of one with weights elsewhere."""
    plus = ModelSpec.from_dict({**TINY_SPEC.to_dict(), "mask_iou_layers": [[8, 3]]})
    metadata = {
        MAX_BATCH_METADATA_KEY: "16",
        VERSION_METADATA_KEY: "0.1.0",
        CHECKPOINT_SHA256_METADATA_KEY: "ab" * 32,
        PRECISION_METADATA_KEY: "fp32",
    }
    weights = parse_onnx(make_model(TINY_SPEC).SerializeToString(), "tiny.onnx").weights
    whole = make_model(TINY_SPEC, metadata={**metadata, WEIGHTS_SHA256_METADATA_KEY: weights.sha256})
    scoring = base64.b64encode(whole.SerializeToString()).decode()
    outside = make_model(TINY_SPEC)
    weight = outside.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    del weight.external_data[:]
    for key, value in (("location", EXTERNAL_NAME), ("offset", "0"), ("length", str(len(weight.raw_data)))):
        weight.external_data.add(key=key, value=value)
    weight.ClearField("raw_data")
    end_to_end = {FORM_METADATA_KEY: END_TO_END, CHANNEL_ORDER_METADATA_KEY: "bgr"}
    models = (
        whole,
        make_model(TINY_SPEC, precision="fp16"),
        make_model(TINY_SPEC, precision="int8", batch=2),
        make_model(TINY_SPEC, described=plus, metadata={MASK_IOU_METADATA_KEY: scoring}),
        make_model(TINY_SPEC, metadata=end_to_end),
        outside,
    )
    return [model.SerializeToString() for model in models]


def onnx_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Some changed in bytes alone, most in fields that stay what the format makes them."""
    if rng.random() < 0.4:
        return bytes_mutation(rng, seeds)
    model = onnx.ModelProto.FromString(rng.choice(seeds))
    for _ in range(min(4, 1 + int(rng.expovariate(1.0)))):
        rng.choice((_change_field, _change_field, _change_metadata, _change_spec))(rng, model)
    try:
        data = model.SerializeToString()
    except Exception:  # a text that is not UTF-8 is refused by some versions
        return rng.choice(seeds)
    return change_bytes(rng, data, seeds) if rng.random() < 0.1 else data


def _change_metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    entry = rng.choice(model.metadata_props) if model.metadata_props else model.metadata_props.add()
    place = rng.choice(("key", "value"))
    text = _utf8(odd_text(rng))
    if rng.random() < 0.5:
        text = change_bytes(rng, getattr(entry, place).encode()).decode("utf-8", "replace")
    setattr(entry, place, text)


def _change_spec(rng: random.Random, model: onnx.ModelProto) -> None:
    for entry in model.metadata_props:
        if entry.key == SPEC_METADATA_KEY:
            try:
                entry.value = _utf8(json.dumps(change_json(rng, json.loads(entry.value)), ensure_ascii=False))
            except (ValueError, RecursionError):  # changed already
                return


def _change_field(rng: random.Random, model: onnx.ModelProto) -> None:
    message = rng.choice(list(_messages(model)))
    filled = [field for field, _ in message.ListFields()]
    fields = filled if filled and rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_repeated(rng, field, getattr(message, field.name))
    elif field.type == field.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        _assign(rng, field, lambda value: setattr(message, field.name, value))


def _change_repeated(rng: random.Random, field: Any, values: Any) -> None:
    kind = rng.randrange(3)
    if kind == 0 and values:
        del values[rng.randrange(len(values))]
    elif kind == 1 and values:
        values.extend([values[rng.randrange(len(values))]] * rng.choice((1, 1, 30)))
    elif field.type == field.TYPE_MESSAGE:
        values.add()
    elif values:
        place = rng.randrange(len(values))
        _assign(rng, field, lambda value: values.__setitem__(place, value))
    else:
        _assign(rng, field, values.append)


def _assign(rng: random.Random, field: Any, put: Any) -> None:
    """Whatever the type of the field takes."""
    value: Any
    if field.type == field.TYPE_STRING:
        value = _utf8(rng.choice(ODD_TEXTS))
    elif field.type == field.TYPE_BYTES:
        value = rng.choice((b"", b"\0", rng.randbytes(8), b"\xff" * 100))
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        value = rng.choice(ODD_FLOATS)
    else:
        value = rng.choice((1, -1)) * rng.choice((rng.randrange(24), rng.choice(ODD_INTEGERS)))
    try:
        put(value)
    except (ValueError, TypeError, OverflowError):  # beyond the field's type
        put(type(value)())


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
