"""The layout of a JPEG file: its size before it is decoded, and whether all of it is there.

Decoders fill with gray what is missing of a JPEG, and say so to nobody but stderr (ITU-T T.81, annex B, is the format).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

START = b"\xff\xd8\xff"
END_MARKER = b"\xff\xd9"
MAX_SCANS = 100  # each makes a decoder walk through all coefficients; common progressive files have 10

_MARKER = re.compile(
    rb"\xff([\x02-\xcf\xd8-\xfe])"
)  # not a byte of the coded data (FF 00), a restart (D0..D7) or filler
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..15, but for DHT, JPG and DAC among them
_SOI, _EOI, _SOS, _DRI = 0xD8, 0xD9, 0xDA, 0xDD
_COEFFICIENTS = 64


class _Component(NamedTuple):
    horizontal: int  # sampling factors
    vertical: int
    missing_bits: list[int]  # per coefficient, of the least significant ones; _COEFFICIENTS entries


class JpegLayout:
    """What the markers of a JPEG file say, as far as it goes."""

    def __init__(self, data: bytes) -> None:
        self.width = self.height = 0  # 0: the file ends before it says
        self.is_ended = False  # the end marker is there
        self.scans = 0
        self._components: dict[int, _Component] = {}
        self._restart_interval = 0  # in units of coded blocks; 0: none
        self._last_scan: tuple[int, tuple[int, ...]] = (len(data), ())  # where its data begin, components
        for marker, start, end in _segments(data):
            if marker == _EOI:
                self.is_ended = True
            elif marker in _FRAMES:
                self._read_frame(data[start:end])
            elif marker == _DRI and end - start >= 2:
                (self._restart_interval,) = struct.unpack_from(">H", data, start)
            elif marker == _SOS:
                self._read_scan(data[start:end], end)
        self._restarts = sum(1 for _ in _RESTART.finditer(data, self._last_scan[0]))

    @property
    def may_be_whole(self) -> bool:
        """Whether only the end marker may be missing: the scans that began hold every bit of every coefficient, and the last
        one has reached its last restart interval. Whether that one is whole only decoding tells."""
        covered = all(not any(component.missing_bits) for component in self._components.values())
        return bool(self._components) and covered and self._restarts >= self._restarts_needed()

    def _read_frame(self, content: bytes) -> None:
        if len(content) < 6:
            return
        height, width, count = struct.unpack_from(">xHHB", content)
        self.width, self.height = max(self.width, width), max(self.height, height)  # a second one is an error
        for offset in range(6, min(6 + 3 * count, len(content) - 2), 3):
            number, sampling = content[offset], content[offset + 1]
            self._components[number] = _Component(sampling >> 4 or 1, sampling & 15 or 1, [1] * _COEFFICIENTS)

    def _read_scan(self, content: bytes, end: int) -> None:
        self.scans += 1
        count = content[0] if content else 0
        if len(content) < 4 + 2 * count:
            return
        numbers = tuple(content[1 + 2 * i] for i in range(count))
        first, last, bits = content[1 + 2 * count], content[2 + 2 * count], content[3 + 2 * count] & 15
        for number in numbers:
            if number in self._components:
                missing = self._components[number].missing_bits
                missing[first : last + 1] = [bits] * len(missing[first : last + 1])
        self._last_scan = end, numbers

    def _restarts_needed(self) -> int:
        if not self._restart_interval:
            return 0
        numbers = self._last_scan[1]
        across = max(component.horizontal for component in self._components.values())
        down = max(component.vertical for component in self._components.values())
        scan = [self._components[number] for number in numbers if number in self._components]
        if len(scan) == 1:  # blocks of one component; else of all together
            units = _ceil(_ceil(self.width * scan[0].horizontal, across), 8) * _ceil(
                _ceil(self.height * scan[0].vertical, down), 8
            )
        else:
            units = _ceil(self.width, 8 * across) * _ceil(self.height, 8 * down)
        return _ceil(units, self._restart_interval) - 1


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment's content, until the end marker, the end of the data, or a segment beyond it."""
    position = 2
    scans = 0
    while scans <= MAX_SCANS and (found := _MARKER.search(data, position)) is not None:
        marker, start = found.group(1)[0], found.end()
        if marker == _SOI:
            position = start
            continue
        if marker == _EOI:
            yield marker, start, start
            return
        if start + 2 > len(data):
            return
        end = start + int.from_bytes(data[start : start + 2], "big")
        if end > len(data):
            return
        scans += marker == _SOS
        yield marker, min(start + 2, end), end
        position = max(end, start)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
