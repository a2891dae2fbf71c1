"""Protocol Buffers' wire format (protobuf.dev/programming-guides/encoding): as much as it takes to look into an ONNX file.

Only what is asked for is read, so that a file's weights are passed over; every length is checked against the message that
encloses it, since the file may be anyone's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types; the others are of messages that nobody writes
_MAX_VARINT_BYTES = 10
_UINT64 = (1 << 64) - 1
_WINDOW_BYTES = 1 << 13
_MAX_TEXT_BYTES = 1 << 28  # of a name or a metadata entry


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
