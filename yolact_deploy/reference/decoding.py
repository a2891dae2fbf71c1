"""Decoding image and video files: in words where it fails, and without what decoders print by themselves."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from yolact_deploy.arrays import Image
from yolact_deploy.errors import ImageError
from yolact_deploy.reference.image_headers import (
    END_MARKER,
    HEAD_BYTES,
    MAX_PIXELS,
    MAX_SCANS,
    JpegLayout,
    image_kind,
    read_header,
)

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"})
_FALLBACK_FPS = 25.0
_COUNTED_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi"})  # say how many frames they hold; others let one guess
_MIN_DECODED = 0.9  # of the frames a file says it holds: edit lists and repeated frames leave out a few

_STDERR = 2
_DECODER_MESSAGE = re.compile(
    rb"libpng (warning|error): |Corrupt JPEG data: |Premature end of JPEG file|Invalid SOS parameters|Warning: unknown JFIF"
)
_HARMLESS_MESSAGE = re.compile(rb"libpng warning: |.* extraneous bytes before marker|Warning: unknown JFIF")

_lock = threading.Lock()
_decoding = 0  # threads that do
_log_level = 0  # to go back to
_captures_messages = False
_stderr_lock = threading.Lock()  # to turn stderr away
_PNG_CHUNKS = 8  # where they begin
_CHECKSUM_BYTES = 4
_ANCILLARY = 0x20  # in a chunk's first letter: decoders may do without it
# Chunks that OpenCV's pixels do not depend on, and that libpng prints warnings about: a bad colour profile is in many photos.
_UNUSED_CHUNKS = frozenset({b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"hIST", b"sPLT"})
# Of a JPEG that ends too early, decoders read on into what follows: pixels that were not there come out of one as other than
# out of another.
_JPEG_ENDINGS = tuple(bytes([filler]) * 64 + END_MARKER for filler in (0x00, 0x55, 0xAA, 0x7E))


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what is said in words here; its level of logging is one for all threads."""
    global _decoding, _log_level
    from cv2.utils import logging

    with _lock:
        _decoding += 1
        if _decoding == 1:
            _log_level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                logging.setLogLevel(_log_level)


@contextlib.contextmanager
def capture_decoder_messages() -> Iterator[None]:
    """Keep what libpng and libjpeg print off stderr, and give `decoder_messages_to` what of it is about damage.

    Stderr is turned away for that while an image is decoded, one image at a time: something for a program to ask for, such as
    the command line, and not for a library to do unasked. Without it a decoder's own lines about a damaged file reach stderr:
    OpenCV has no other way to keep them back. The commonest, libpng's about colour profiles, never come up, since it is not
    given any.
    """
    global _captures_messages
    before, _captures_messages = _captures_messages, True
    try:
        yield
    finally:
        _captures_messages = before


@contextlib.contextmanager
def decoder_messages_to(on_warning: Callable[[str], None] | None) -> Iterator[None]:
    """Tell `on_warning` what decoders say of damage, while `capture_decoder_messages` is in force."""
    if not _captures_messages:
        yield
        return
    with _stderr_lock, tempfile.TemporaryFile() as said:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # there is no stderr
            yield
            return
        os.dup2(said.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            said.seek(0)
            for line in said.read().splitlines(keepends=True):
                if not _DECODER_MESSAGE.match(line):  # of others, who print meanwhile
                    os.write(_STDERR, line)
                elif on_warning is not None and not _HARMLESS_MESSAGE.match(line):
                    on_warning(line.decode("ascii", "backslashreplace").strip())


class UndecodableError(ValueError):
    """The message goes after "can't read the image: "."""


def decode_file(data: bytes, max_pixels: int, on_warning: Callable[[str], None]) -> Image:
    """uint8 [H, W, 3] BGR, turned upright by EXIF, without alpha, of an image file that holds at most `max_pixels`.

    `on_warning` is told what is odd about it and was read all the same, as words that go after its name. Raises
    UndecodableError.
    """
    if not data:
        raise UndecodableError("the file is empty (0 bytes).")
    kind = image_kind(data[:HEAD_BYTES])
    layout = JpegLayout(data) if kind == "JPEG" else None
    problem = _png_problem(data) if kind == "PNG" else _jpeg_problem(data, layout) if layout is not None else None
    if problem is not None:
        raise UndecodableError(f"{problem}. Copy it again.")
    header = read_header(data)
    image: Image | None = None
    if header is not None:
        check_pixels(header.width, header.height, max_pixels)
        said: list[str] = []
        if layout is None or layout.is_ended:
            image = _decode(_png_to_decode(data) if kind == "PNG" else data, said.append)
        else:
            image = _decode_unended(data)
            on_warning("lacks its end marker, but all of its pixels are there: it was read")
        if said:
            on_warning(f"is damaged, some of its pixels may be wrong; its decoder says: {'; '.join(said)}")
    if image is None:
        raise UndecodableError(
            f"it is damaged, or no image that OpenCV knows ({len(data)} bytes, beginning with {data[:8]!r})."
        )
    check_pixels(image.shape[1], image.shape[0], max_pixels)  # headers can lie
    return image


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise UndecodableError for more than `max_pixels`."""
    if width * height > max_pixels:
        raise UndecodableError(
            f"it has {width}x{height} = {width * height / 1e6:.1f} megapixels, and at most {max_pixels / 1e6:g} are read. "
            "If it is what it should be, raise max_pixels (--max-pixels)."
        )


def _png_problem(data: bytes) -> str | None:
    """What is missing or damaged in a PNG, told by the checksums of its chunks."""
    for kind, position, end in _chunks(data):
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            if not kind[0] & _ANCILLARY:
                return f"the file is damaged (a checksum is wrong between bytes {position} and {end})"
        elif kind == b"IEND":
            return None
    return _truncated(data)


def _png_to_decode(data: bytes) -> bytes:
    """A PNG without the chunks that only make libpng talk."""
    kept, position = [], 0
    for kind, begin, end in _chunks(data):
        if kind in _UNUSED_CHUNKS:
            kept.append(data[position:begin])
            position = end + _CHECKSUM_BYTES
    return b"".join((*kept, data[position:])) if kept else data


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, beginning, and end without the checksum, of each chunk of a PNG that is whole."""
    position = _PNG_CHUNKS
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + _CHECKSUM_BYTES > len(data):
            return
        yield data[position + 4 : position + 8], position, end
        position = end + _CHECKSUM_BYTES


def _jpeg_problem(data: bytes, layout: JpegLayout) -> str | None:
    """What is missing of a JPEG as far as its markers tell; of one without its end marker see `_decode_unended`."""
    if layout.scans > MAX_SCANS:
        return f"the file has more than {MAX_SCANS} scans, which would take for ever to decode"
    if not layout.is_ended and not (layout.width and layout.may_be_whole):
        return _truncated(data)
    return None


def _decode(data: bytes, on_warning: Callable[[str], None] | None = None) -> Image | None:
    """None for what OpenCV can't decode. `on_warning` is told what a decoder says of damage, where that is captured."""
    import cv2

    with quiet_opencv(), decoder_messages_to(on_warning):
        try:
            try:  # imdecode's pixels are copied for Python: twice the memory, and a third of the time
                with os.fdopen(os.memfd_create("image"), "wb") as file:
                    file.write(data)
                    file.flush()
                    decoded = cv2.imread(f"/proc/self/fd/{file.fileno()}", None, cv2.IMREAD_COLOR)
            except (AttributeError, OSError):  # another platform, or a limit on the size of files
                decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            return None
    return None if decoded is None else decoded.astype(np.uint8, copy=False)


def _decode_unended(data: bytes) -> Image:
    """Of a JPEG without its end marker. Raises UndecodableError if any pixel is missing."""
    body = data.rstrip(b"\xff")  # half a marker
    image = _decode(body + END_MARKER)
    others = (_decode(body + ending) for ending in _JPEG_ENDINGS)
    if image is None or not all(other is not None and np.array_equal(image, other) for other in others):
        raise UndecodableError(f"{_truncated(data)}. Copy it again.")
    return image


def _truncated(data: bytes) -> str:
    return f"the file is truncated ({len(data)} bytes, without its end)"


class Video(NamedTuple):
    """An open video: `frames` gives each as uint8 [H, W, 3] BGR."""

    fps: float
    frames: Iterator[Image]


def is_video(path: Path) -> bool:
    """Whether a file is a video by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


@contextlib.contextmanager
def open_video(path: Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[Video]:
    """A video file, one frame at a time. Raises ImageError when it can't be opened, or has frames of more than `max_pixels`;
    its frames do at their end, when there was none, or fewer than the file says it holds."""
    import cv2

    if path.exists() and not path.is_file():  # a decoder would wait for ever for what comes through a pipe
        raise ImageError(f"can't read the video {path}: it is no file, but a pipe, a device, a socket or a folder.")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ImageError(f"can't read the video {path}: no decoder knows it, or it is damaged.")
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        try:
            check_pixels(width, height, max_pixels)
        except UndecodableError as exc:
            raise ImageError(f"can't read the video {path}: {exc}") from exc
        yield Video(capture.get(cv2.CAP_PROP_FPS) or _FALLBACK_FPS, _frames(capture, path))
    finally:
        capture.release()


def _frames(capture: Any, path: Path) -> Iterator[Image]:
    import cv2

    count = 0
    while True:
        more, frame = capture.read()
        if not more:
            break
        count += 1
        yield frame
    if not count:
        raise ImageError(f"can't read the video {path}: no frame could be decoded.")
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if path.suffix.lower() in _COUNTED_SUFFIXES and count < _MIN_DECODED * promised:
        raise ImageError(
            f"can't read the video {path} to its end: {count} of its {promised} frames could be decoded. "
            "If it was copied or downloaded, get it again."
        )
