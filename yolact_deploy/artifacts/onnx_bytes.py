"""The bytes of an ONNX file: the wire format that it is written in, and its weights.

Of Protocol Buffers' wire format (protobuf.dev/programming-guides/encoding) there is as much as it takes to look into the file.
Only what is asked for is read, so that weights are passed over; every length is checked against the message that encloses it,
since the file may be anyone's.

Of the weights there is their digest, which an export carries in its metadata, and whether all of them are numbers. The digest is
of what the weights are and not of how a file holds them: it stays when a model is saved with other metadata, or with its weights
in other files. It is the SHA-256 of, for each initializer in the order of their names, a line of JSON with its newline, and the
values' bytes, little-endian:

    [name, TensorProto.DataType, [sizes], number of bytes]

and last, in the same form, the mask-IoU network that a YOLACT++ carries in its metadata, as it stands there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from yolact_deploy.artifacts.names import MASK_IOU_METADATA_KEY

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types; the others are of messages that nobody writes
_MAX_VARINT_BYTES = 10
_UINT64 = (1 << 64) - 1
_WINDOW_BYTES = 1 << 13
_MAX_TEXT_BYTES = 1 << 28  # of a name or a metadata entry

_CHUNK_BYTES = 1 << 17  # fits in a core's cache
_EXTERNAL = 1  # TensorProto.DataLocation
_STRING = 8  # TensorProto.DataType
# TensorProto.DataType -> an integer of the same size, and the bits of its exponent: all are set where it is no number.
_EXPONENTS: Mapping[int, tuple[str, int]] = {
    1: ("<u4", 0x7F80_0000),
    10: ("<u2", 0x7C00),
    11: ("<u8", 0x7FF0_0000_0000_0000),
    16: ("<u2", 0x7F80),
}
_PACKED_FIELDS = (4, 10)  # float_data, double_data: the very bytes
_INT32_FIELD = 5  # int32_data, in which smaller types are kept as well
_VARINT_FIELDS = {_INT32_FIELD: "<i4", 7: "<i8", 11: "<u8"}  # int64_data, uint64_data
_IN_INT32 = {2: "<u1", 3: "<i1", 4: "<u2", 5: "<i2", 9: "<u1", 10: "<u2", 12: "<u4", 16: "<u2"}


class WireError(ValueError):
    """Bytes that are no message; the text says where and why."""


class Window:
    """Bytes of a file by position, read some thousands at a time."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.size = size
        self._stream, self._start, self._held = stream, 0, b""

    def read(self, position: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises WireError when the file ends before, OSError when it can't be read."""
        offset = position - self._start
        if not 0 <= offset <= len(self._held) - count:
            self._stream.seek(position)
            self._start, self._held, offset = position, self._stream.read(max(count, _WINDOW_BYTES)), 0
            if len(self._held) < count:
                raise WireError(f"the file ends at byte {position + len(self._held)}, within a field")
        return self._held[offset : offset + count]


@dataclass(frozen=True, eq=False)
class Message:
    """The fields between two positions of a file. A field that stands there several times is a list, or the last one counts."""

    window: Window
    start: int
    end: int

    def messages(self, number: int) -> list[Message]:
        """The fields of that number that are messages, texts or bytes."""
        return [value for value in self._fields.get(number, ()) if isinstance(value, Message)]

    def integers(self, number: int) -> list[int]:
        """The field's integers, signed; each on its own or packed."""
        found: list[int] = []
        for value in self._fields.get(number, ()):
            found += value.packed() if isinstance(value, Message) else [value]
        return [value - (1 << 64) if value >> 63 else value for value in found]

    def integer(self, number: int, default: int = 0) -> int:
        """The field's integer; `default` where it is left out."""
        return next(reversed(self.integers(number)), default)

    def text(self, number: int) -> str:
        """The field's text; "" where it is left out. Raises WireError for what is no UTF-8."""
        for value in reversed(self.messages(number)):
            if value.end - value.start > _MAX_TEXT_BYTES:
                raise WireError(f"a text of {value.end - value.start} bytes begins at byte {value.start}")
            try:
                return self.window.read(value.start, value.end - value.start).decode()
            except UnicodeDecodeError as exc:
                raise WireError(f"the text at byte {value.start} is not UTF-8") from exc
        return ""

    def packed(self) -> list[int]:
        """What it holds, read as nothing but integers."""
        position, found = self.start, []
        while position < self.end:
            value, position = self._varint(position)
            found.append(value)
        return found

    @functools.cached_property
    def _fields(self) -> dict[int, list[int | Message]]:
        fields: dict[int, list[int | Message]] = {}
        position = self.start
        while position < self.end:
            begin = position
            tag, position = self._varint(position)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT and number:
                value, position = self._varint(position)
                fields.setdefault(number, []).append(value)
                continue
            if kind == _LENGTH:
                length, position = self._varint(position)
            else:
                length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind, -1)
            if number == 0 or length < 0:
                raise WireError(f"byte {begin} begins no field")
            if length > self.end - position:
                raise WireError(f"the field at byte {begin} has {length} bytes, and {self.end - position} are left")
            if kind == _LENGTH:
                fields.setdefault(number, []).append(Message(self.window, position, position + length))
            position += length
        return fields

    def _varint(self, position: int) -> tuple[int, int]:
        """The number at a position, and the position behind it."""
        value = 0
        for index, byte in enumerate(self.window.read(position, min(_MAX_VARINT_BYTES, self.end - position))):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & _UINT64, position + index + 1
        raise WireError(f"the number at byte {position} has no end")


def each(messages: Iterable[Message], number: int) -> list[Message]:
    """The messages of that number in all of `messages`: parts of one message that stand apart are one, as the format has it."""
    return [inner for message in messages for inner in message.messages(number)]


@dataclass(frozen=True)
class Weights:
    """What was read of the weights of a file."""

    sha256: str  # as above
    non_finite: Mapping[str, tuple[int, int]]  # tensor -> how many of its values are NaN or infinite, and of how many

    def describe_non_finite(self) -> str:
        """How many tensors, and the first, for a sentence."""
        name, (count, total) = next(iter(self.non_finite.items()))
        number = len(self.non_finite)
        return (
            f"NaN or infinite values in {number} of its weights, {'first in' if number > 1 else 'in'} {name} "
            f"({count} of {total} values)"
        )


def read_weights(
    initializers: Iterable[Message],  # TensorProto
    files: Mapping[str, Path],  # tensor -> the file that its values lie in, where that is not this one
    mask_iou: str | None,  # as it stands in the metadata
) -> Weights:
    """Read each value once, a part at a time. Raises WireError for a tensor that is not whole, OSError."""
    digest = hashlib.sha256()
    non_finite: dict[str, tuple[int, int]] = {}
    for name, tensor in sorted(((tensor.text(8), tensor) for tensor in initializers), key=lambda pair: pair[0]):  # name
        dtype, sizes = tensor.integer(2), tensor.integers(1)  # data_type, dims
        num_bytes, chunks = _values(tensor, dtype, files.get(name))
        digest.update(_line(name, dtype, sizes, num_bytes))
        count = 0
        for chunk in chunks:
            digest.update(chunk)
            count += _count_non_finite(chunk, dtype)
        if count:
            non_finite[name] = (count, int(np.prod(sizes, dtype=object)))
    if mask_iou is not None:
        content = mask_iou.encode()
        digest.update(_line(MASK_IOU_METADATA_KEY, _STRING, [], len(content)))
        digest.update(content)
    return Weights(digest.hexdigest(), non_finite)


def _line(name: str, dtype: int, sizes: list[int], num_bytes: int) -> bytes:
    return (json.dumps([name, dtype, sizes, num_bytes]) + "\n").encode()


def _count_non_finite(chunk: bytes, dtype: int) -> int:
    if dtype not in _EXPONENTS:
        return 0
    kind, exponent = _EXPONENTS[dtype]
    values = np.frombuffer(chunk, kind, len(chunk) // np.dtype(kind).itemsize)
    bits = values & np.array(exponent, kind)
    # Counted where there is something to count: the maximum alone costs a third.
    return int((bits == exponent).sum()) if bits.max(initial=0) == exponent else 0


def _values(tensor: Message, dtype: int, file: Path | None) -> tuple[int, Iterator[bytes]]:
    """How many bytes a tensor's values have, and these."""
    if tensor.integer(14) == _EXTERNAL and file is not None:  # data_location
        entries = {entry.text(1): entry.text(2) for entry in tensor.messages(13)}  # external_data: key, value
        size = file.stat().st_size
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries.get("length", str(size - offset)))
        except ValueError as exc:
            raise WireError(f"the place of the tensor {tensor.text(8)} in {file.name} is no number") from exc
        if not 0 <= offset <= offset + length <= size:
            raise WireError(f"the tensor {tensor.text(8)} lies outside of {file.name}, which has {size} bytes")
        return length, _of_file(file, offset, length)
    raw = tensor.messages(9)  # raw_data
    if raw:
        return raw[-1].end - raw[-1].start, _of_window(raw[-1].window, raw[-1].start, raw[-1].end)
    typed = _typed(tensor, dtype)
    return len(typed), iter([typed])


def _of_window(window: Window, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, _CHUNK_BYTES):
        yield window.read(position, min(_CHUNK_BYTES, end - position))


def _of_file(file: Path, offset: int, length: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        window = Window(stream, file.stat().st_size)
        yield from _of_window(window, offset, offset + length)


def _typed(tensor: Message, dtype: int) -> bytes:
    """Values that are not kept as raw bytes, as these."""
    for field in _PACKED_FIELDS:
        if parts := tensor.messages(field):
            return b"".join(part.window.read(part.start, part.end - part.start) for part in parts)
    for field, kind in _VARINT_FIELDS.items():
        if values := tensor.integers(field):
            kept = _IN_INT32.get(dtype, kind) if field == _INT32_FIELD else kind
            return np.array(values).astype(kept).tobytes()
    if dtype == _STRING:
        texts = [part.window.read(part.start, part.end - part.start) for part in tensor.messages(6)]  # string_data
        return json.dumps([text.hex() for text in texts]).encode()
    return b""
