"""Image files of every kind that is read, and what can be wrong with them."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from yolact_deploy.arrays import Image

KINDS = (
    *(
        ".png",
        ".jpg",
        ".gif",
        ".webp",
        ".tiff",
        ".bmp",
        ".jp2",
        ".avif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pam",
        ".pfm",
        ".ras",
    ),
    ".hdr",
)
HEIGHT, WIDTH = 37, 53


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Image:
    """A uint8 [H, W, 3] image without two equal parts."""
    pixels: Image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels


def encoded(suffix: str, image: Image | None = None, options: tuple[int, ...] = ()) -> bytes:
    """An image file by OpenCV; `noise` unless another image is given."""
    pixels = noise() if image is None else image
    if suffix in (".pgm", ".pbm"):
        pixels = pixels[..., 0]
    content = pixels.astype(np.float32) if suffix in (".pfm", ".hdr") else pixels
    done, data = cv2.imencode(suffix, content, list(options))
    assert done
    return data.tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_one_color(width: int, height: int) -> bytes:
    """A PNG that is small whatever its size: made row by row, never whole in memory."""
    packer = zlib.compressobj(9)
    row = b"\0" + bytes((40, 60, 80)) * width
    packed = b"".join([packer.compress(row) for _ in range(height)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
