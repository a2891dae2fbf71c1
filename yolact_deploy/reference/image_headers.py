"""What kind of image a file is, how many pixels it holds and, of a JPEG, whether all of it is there: before anything is decoded.

The sizes are those that OpenCV's decoders will use. Two libraries were looked at for it: imagesize reads a GIF's size as signed
numbers and a JPEG 2000's from a box that its decoder ignores, so that a file can lie to it; Pillow has limits of its own.
Decoders fill with gray what is missing of a JPEG, and say so to nobody but stderr (ITU-T T.81, annex B, is the format).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
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
MAX_PIXELS = 100_000_000  # of an image, unless more is asked for
HEAD_BYTES = 64  # of a file, that tell its kind
Size = tuple[int, int]  # width, height
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_TIFF_FIELDS = 4096
_TEXT_HEADER_BYTES = 4096


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


class ImageHeader(NamedTuple):
    """Of an image as it is stored; EXIF may turn it."""

    kind: str  # "PNG"
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Of the whole image."""
        return self.width * self.height


def image_kind(head: bytes) -> str | None:
    """ "PNG", "JPEG" and so on, from the first HEAD_BYTES of a file; None for what is no image that is read here.

    >>> image_kind(b"GIF89a..."), image_kind(b"<html>")
    ('GIF', None)
    """
    return next((kind for kind, (signature, _) in _KINDS.items() if re.match(signature, head, re.DOTALL)), None)


def read_header(data: bytes) -> ImageHeader | None:
    """The kind and the size of an image file; None for what is no image, or does not say its size where it should."""
    kind = image_kind(data[:HEAD_BYTES])
    if kind is None:
        return None
    try:
        width, height = _KINDS[kind][1](data)
    except (struct.error, ValueError, LookupError):
        return None
    return ImageHeader(kind, width, height) if width > 0 and height > 0 else None


def _png(data: bytes) -> Size:
    return _unpack(">II", data, 16)


def _jpeg(data: bytes) -> Size:
    layout = JpegLayout(data)
    return layout.width, layout.height


def _gif(data: bytes) -> Size:
    return _unpack("<HH", data, 6)


def _bmp(data: bytes) -> Size:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # of OS/2
        return _unpack("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)  # negative: rows from the top


def _webp(data: bytes) -> Size:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF  # two bits of each are a scale for players


def _tiff(data: bytes) -> Size:
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        start, count_format, entry_format, entry_bytes = struct.unpack_from(order + "Q", data, 8)[0], "Q", "HHQ8s", 20
    else:
        start, count_format, entry_format, entry_bytes = struct.unpack_from(order + "I", data, 4)[0], "H", "HHI4s", 12
    (count,) = struct.unpack_from(order + count_format, data, start)
    start += struct.calcsize(order + count_format)
    sides: dict[int, int] = {}
    for number in range(min(count, _MAX_TIFF_FIELDS)):
        tag, kind, _, value = struct.unpack_from(order + entry_format, data, start + number * entry_bytes)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and kind in _TIFF_INTEGERS:
            sides.setdefault(tag, struct.unpack_from(order + _TIFF_INTEGERS[kind], value)[0])
    return sides[_TIFF_WIDTH], sides[_TIFF_HEIGHT]


def _netpbm(data: bytes) -> Size:
    """Numbers after the magic, between blanks and comments; in a PAM, lines of names and values."""
    head = re.sub(rb"#[^\n]*", b"", data[2:_TEXT_HEADER_BYTES])
    if data.startswith(b"P7"):
        width, height = (max(map(int, re.findall(name + rb"\s+(\d{1,9})\s", head))) for name in (b"WIDTH", b"HEIGHT"))
        return width, height
    numbers = re.match(rb"\s+(\d{1,9})\s+(\d{1,9})\s", head)
    if numbers is None:
        raise ValueError("no size")
    return int(numbers[1]), int(numbers[2])


def _jpeg2000(data: bytes) -> Size:
    """The largest of all codestreams: the decoder takes the size from there, whatever the boxes around it say."""
    sizes = []
    for found in re.finditer(rb"\xff\x4f\xff\x51", data):  # the markers SOC and SIZ
        length, x1, y1, x0, y0, components = struct.unpack_from(">H2x4I16xH", data, found.end())
        if length == 38 + 3 * components:  # else it is coded data that look like it
            sizes.append((x1 - x0, y1 - y0))
    return max(sizes, key=_area)


def _avif(data: bytes) -> Size:
    """The largest extent of any item."""
    sizes = [struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(rb"\0\0\0\x14ispe", data)]
    return max(sizes, key=_area)


def _sun_raster(data: bytes) -> Size:
    return _unpack(">II", data, 4)


def _radiance(data: bytes) -> Size:
    found = re.search(rb"\n[-+]Y (\d{1,9}) [-+]X (\d{1,9})", data[:_TEXT_HEADER_BYTES])
    if found is None:
        raise ValueError("no size")
    return int(found[2]), int(found[1])


def _unpack(form: str, data: bytes, offset: int) -> Size:
    width, height = struct.unpack_from(form, data, offset)
    return width, height


def _area(size: Size) -> int:
    return size[0] * size[1]


_KINDS: dict[str, tuple[bytes, Callable[[bytes], Size]]] = {  # how a file begins, and where its size stands
    "PNG": (rb"\x89PNG\r\n\x1a\n", _png),
    "JPEG": (rb"\xff\xd8\xff", _jpeg),
    "GIF": (rb"GIF8[79]a", _gif),
    "WebP": (rb"RIFF....WEBPVP8[ LX]", _webp),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", _tiff),
    "BMP": (rb"BM.{12}[\x0c-\x7c]\0\0\0", _bmp),
    "JPEG 2000": (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _jpeg2000),
    "AVIF": (rb"....ftypavi[fs]", _avif),
    "Netpbm": (rb"P[1-7Ff]\s", _netpbm),
    "Sun raster": (rb"\x59\xa6\x6a\x95", _sun_raster),
    "Radiance HDR": (rb"#\?(?:RADIANCE|RGBE)\n", _radiance),
}
