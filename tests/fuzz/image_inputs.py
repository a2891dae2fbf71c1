"""Image files of every kind to begin with, and headers that lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

from tests.fuzz.mutation import ODD_INTEGERS, bytes_mutation
from tests.unit.hostile.image_files import KINDS, chunk, encoded, noise

_EXIF = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
_PROGRESSIVE, _RESTARTS = (2, 1), (4, 1)  # cv2.IMWRITE_JPEG_PROGRESSIVE, cv2.IMWRITE_JPEG_RST_INTERVAL
_LOSSLESS = (64, 101)  # cv2.IMWRITE_WEBP_QUALITY


def image_seeds() -> list[bytes]:
    """Small ones; the formats that most people use come more often."""
    picture = noise(12, 17)
    jpeg = encoded(".jpg", picture)
    usual = [
        jpeg,
        jpeg[:2] + _EXIF + jpeg[2:],
        encoded(".jpg", picture, _PROGRESSIVE),
        encoded(".jpg", picture, _RESTARTS),
        encoded(".png", picture),
        encoded(".png", picture[..., :1]),
        encoded(".webp", picture),
        encoded(".webp", picture, _LOSSLESS),
        encoded(".bmp", picture),
        encoded(".gif", picture),
        encoded(".tiff", picture),
    ]
    return [*usual, *usual, *(encoded(suffix) for suffix in KINDS)]


def image_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Bytes changed anywhere, near the beginning, or in a PNG with its checksums made right again."""
    kind = rng.randrange(4)
    seed = rng.choice(seeds)
    if kind == 0:
        return _lie(rng, seed)
    changed = bytes_mutation(rng, [seed])
    return _with_checksums(changed) if kind == 1 and seed.startswith(b"\x89PNG") else changed


def _lie(rng: random.Random, data: bytes) -> bytes:
    """Another number among the first bytes, where most formats say how large they are."""
    width = rng.choice((2, 4))
    place = rng.randrange(max(1, min(len(data), 200) - width))
    value = rng.choice(ODD_INTEGERS) % (1 << 8 * width)
    changed = data[:place] + value.to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]
    return _with_checksums(changed) if data.startswith(b"\x89PNG") else changed


def _with_checksums(png: bytes) -> bytes:
    parts, position = [png[:8]], 8
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        parts.append(chunk(kind, content))
        position += 12 + len(content)
    return b"".join(parts)
