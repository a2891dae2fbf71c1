"""Images from files and arrays, checked before anything is computed from them, and made the network's input."""

from __future__ import annotations

import glob
import itertools
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arguments import check_counts, check_paths
from yolact_deploy.arrays import FloatArray, Image, IntArray, is_device_array
from yolact_deploy.artifacts.names import ChannelOrder
from yolact_deploy.errors import ImageError, InputWarning
from yolact_deploy.files import read_bytes
from yolact_deploy.reference.decoding import UndecodableError, decode_file, is_video
from yolact_deploy.reference.image_headers import HEAD_BYTES, image_kind
from yolact_deploy.reference.image_headers import MAX_PIXELS as MAX_PIXELS
from yolact_deploy.spec import ModelSpec
from yolact_deploy.text import counted, printable

IMAGE_SUFFIXES = frozenset(
    {
        *(
            ".jpg",
            ".jpeg",
            ".jpe",
            ".jfif",
            ".png",
            ".bmp",
            ".dib",
            ".webp",
            ".tif",
            ".tiff",
            ".gif",
            ".avif",
            ".jp2",
            ".j2k",
        ),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pam"),
    }
)
_MAX_BYTES_PER_PIXEL, _MAX_METADATA_BYTES = (
    16,
    1 << 26,
)  # of a file: four channels of 32 bits; EXIF, colour profiles, previews
_SHOWN = 3  # names in a message
_WHOLE_PIXELS = 4_000_000  # up to here, one pass is the faster one
_STRIP_PIXELS = 1 << 18  # of 12 bytes


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode an image file to uint8 [H, W, 3] BGR, turned upright by its EXIF orientation.

    Grayscale is repeated into three channels, alpha is dropped, 16-bit is reduced to 8. What kind of image it is, its content
    says and not its name. Images of more than `max_pixels` are refused before they are decoded: a file of some kilobytes can
    say that it holds gigabytes. A JPEG that lacks nothing but its end marker is read, with an InputWarning. Raises ImageError
    for a file that is missing, empty, truncated, damaged, too large or no image.
    """
    check_paths(path=path)
    check_max_pixels(max_pixels)
    name = printable(os.fspath(path))
    try:
        data = read_bytes(path, max_bytes=_MAX_BYTES_PER_PIXEL * max_pixels + _MAX_METADATA_BYTES)
    except OSError as exc:
        raise ImageError(f"can't read the image {name}: {exc.strerror or exc}.") from exc
    remarks: list[str] = []
    try:
        image = decode_file(data, max_pixels, remarks.append)
    except UndecodableError as exc:
        raise ImageError(f"can't read the image {name}: {exc}") from exc
    for remark in remarks:
        warnings.warn(f"{name} {remark}.", InputWarning, stacklevel=2)
    return check_image(image, name)


def check_max_pixels(max_pixels: int) -> None:
    """Raise OptionError for a limit that is no positive whole number."""
    check_counts(max_pixels=max_pixels)


def check_image(image: Any, name: str = "image", channel_order: ChannelOrder = "bgr") -> Image:
    """An array as uint8 [H, W, 3] BGR: 2-D and one-channel arrays are taken as gray, a fourth channel is dropped.

    Raises ImageError for other types and shapes, and for an image without pixels.

    >>> check_image(np.zeros((48, 64), np.uint8)).shape  # gray
    (48, 64, 3)
    >>> check_image(np.zeros((48, 64, 3), bool))
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.ImageError: image must be uint8, found bool. Give values 0..255.
    """
    check_channel_order(channel_order)
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name} must be a NumPy array or a path, found {type(image).__name__}.")
    if image.dtype != np.uint8:
        hint = " Give values 0..255."
        if image.dtype == np.uint16:
            hint = " Divide 16-bit values by 257."
        elif np.issubdtype(image.dtype, np.floating):
            hint = " Give values 0..255: they are normalised here, by the model's own mean and deviation."
        raise ImageError(f"{name} must be uint8, found {image.dtype}.{hint}")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        is_planar = image.ndim == 3 and image.shape[0] in (1, 3)
        hint = " Put the channels last: image.permute(1, 2, 0), or np.transpose(image, (1, 2, 0))." if is_planar else ""
        raise ImageError(f"{name} must be [H, W, 3], found {list(image.shape)}.{hint}")
    if 0 in image.shape:
        raise ImageError(f"{name} has no pixels: {image.shape[1]}x{image.shape[0]}.")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    image = image[:, :, :3]
    bgr: Image = image[:, :, ::-1] if channel_order == "rgb" else image
    return bgr


def as_array(item: Any, channel_order: ChannelOrder = "bgr") -> tuple[Any, ChannelOrder]:
    """An image of another library on the host as a NumPy array, and the order of its channels; anything else as it is.

    A PIL image is RGB whatever `channel_order` says, and is taken as PIL shows it (`ImageOps.exif_transpose` turns one
    upright); of 16 bits the upper 8 count, as of a file. What knows DLPack, such as a PyTorch tensor on the CPU, is shared
    without a copy. Raises ImageError for a PIL image that can't be decoded or is of mode "I" or "F", and for an array that NumPy
    has no type for.
    """
    if isinstance(item, np.ndarray) or is_device_array(item):
        return item, channel_order
    if is_pil_image(item):
        # PIL's own conversion of these makes white of every value above 255.
        if item.mode in ("I", "F"):
            raise ImageError(
                f'a PIL image of mode "{item.mode}" has no range of its own. Give values 0..255, in mode "L".'
            )
        try:
            if item.mode.startswith("I;16"):
                return (np.asarray(item) >> 8).astype(np.uint8), "rgb"
            return np.asarray(item.convert("RGB")), "rgb"
        except (OSError, ValueError) as exc:
            raise ImageError(f"can't decode the PIL image {getattr(item, 'filename', '') or item}: {exc}.") from exc
    if hasattr(item, "__dlpack_device__"):
        try:
            return np.from_dlpack(item), channel_order
        except (BufferError, RuntimeError, TypeError) as exc:
            raise ImageError(
                f"image ({type(item).__name__} of {getattr(item, 'dtype', 'unknown type')}) can't be read as an array: {exc}. "
                "Give uint8 values 0..255."
            ) from exc
    return item, channel_order


def is_pil_image(item: Any) -> bool:
    """Whether an object is a PIL image, without importing PIL."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(item).__mro__)


def check_channel_order(channel_order: str) -> None:
    """Raise ImageError for anything but "bgr" and "rgb"."""
    if channel_order not in ("bgr", "rgb"):
        raise ImageError(f'channel_order must be "bgr" or "rgb", found {channel_order!r}.')


def list_images(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    videos: bool = False,
    recursive: bool = False,
    outside: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """The files named by `inputs`: files as given, folders as their images (and `videos`) sorted by name, patterns such as
    "photos/*.jpg" and "photos/**/*.jpg" as what they match.

    `recursive` goes into the folders of folders, but for links; nothing that lies in the folder `outside` is taken then. Of a
    folder or a pattern, a file is an image by its content or by its name, so that a damaged photo is not passed over; what is
    left out is counted in an InputWarning. Raises ImageError for a path that does not exist, a folder that can't be read, and
    a folder or a pattern without images.

    >>> [str(path) for path in list_images(["image.jpg", "*.jp[eg]*"])]
    ['image.jpg', 'image.jpg']
    """
    files: list[Path] = []
    for given in map(Path, inputs):
        if os.path.isdir(given):  # noqa: PTH112 - False for any name, however long
            files += _images_in(f"the folder {printable(str(given))}", *_entries(given, recursive, outside), videos)
        elif os.path.exists(given):  # noqa: PTH110
            files.append(given)
        elif glob.has_magic(str(given)):
            files += _images_in(f"the pattern {printable(str(given))}", *_matches(given, recursive, outside), videos)
        else:
            raise ImageError(f"{printable(str(given))} does not exist. Give image files or a folder of images.")
    return files


def _entries(folder: Path, recursive: bool, outside: str | os.PathLike[str] | None) -> tuple[list[Path], list[Path]]:
    """The files of a folder, sorted, and the folders in it that are not gone into."""
    files: list[Path] = []
    folders: list[Path] = []
    try:
        for entry in sorted(folder.iterdir()):
            if not entry.is_dir():
                files.append(entry)
            elif recursive and not entry.is_symlink():
                if outside is None or entry.resolve() != Path(outside).resolve():
                    inner = _entries(entry, recursive, outside)
                    files += inner[0]
                    folders += inner[1]
            else:
                folders.append(entry)
    except OSError as exc:
        raise ImageError(f"can't read the folder {printable(str(folder))}: {exc.strerror or exc}.") from exc
    return files, folders


def _matches(pattern: Path, recursive: bool, outside: str | os.PathLike[str] | None) -> tuple[list[Path], list[Path]]:
    """What a pattern matches, hidden names and what lies behind links aside; of the folders that it matches their files as well
    if `recursive`."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    base, rest = Path(*fixed), pattern.parts[len(fixed) :]
    try:  # by pathlib, as `**` of the glob module goes through links, for ever where one leads back
        found = sorted(base.glob(str(Path(*rest))))
    except (OSError, ValueError, re.error) as exc:
        raise ImageError(f"can't look for the pattern {printable(str(pattern))}: {exc}.") from exc
    if not any(part.startswith(".") for part in rest):
        found = [path for path in found if not any(part.startswith(".") for part in path.parts[len(base.parts) :])]
    files = [path for path in found if not path.is_dir()]
    folders = [path for path in found if path.is_dir()]
    if not recursive:
        return files, folders
    inner = [_entries(folder, recursive, outside) for folder in folders]
    return sorted({*files, *(path for listed, _ in inner for path in listed)}), [
        path for _, left in inner for path in left
    ]


def _images_in(where: str, entries: list[Path], folders: list[Path], videos: bool) -> list[Path]:
    files = [entry for entry in entries if entry.is_file() and (_is_image(entry) or (videos and is_video(entry)))]
    chosen = set(files)
    left_out = [entry.name for entry in entries if entry not in chosen]
    inner = f"{counted(len(folders), 'folder')} in it" if folders else ""
    if not files:
        found = " and ".join(part for part in (counted(len(left_out), "other file") if left_out else "", inner) if part)
        raise ImageError(f"{where} holds no images{f', only {found}' if found else ''}.")
    if left_out:
        listed = ", ".join(map(printable, left_out[:_SHOWN])) + (", ..." if len(left_out) > _SHOWN else "")
        kinds = "image or video" if videos else "image"
        warnings.warn(
            f"of {where}, {counted(len(left_out), 'file')} without an {kinds} left out: "
            f"{listed}{f'; and {inner}' if inner else ''}.",
            InputWarning,
            stacklevel=3,
        )
    return files


def _is_image(file: Path) -> bool:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            return image_kind(stream.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def preprocess(
    images: Sequence[Image],  # each [H, W, 3] BGR, any size
    spec: ModelSpec,
) -> FloatArray:
    """float32 [B, 3, S, S] RGB: stretched to the input size without keeping the aspect ratio, then (x - mean) / std.

    The resize is OpenCV's bilinear on float32, as in the original's evaluation (utils/augmentations.py, BaseTransform).
    A spec that pads has the image in the top left of a square of the padding's colour before that.

    >>> spec = ModelSpec.from_file("spec.json")
    >>> black = np.zeros((48, 64, 3), np.uint8)
    >>> preprocess([black], spec).shape
    (1, 3, 32, 32)
    >>> preprocess([black], spec)[0, :, 0, 0].round(2)  # - mean / std, red first
    array([-2.12, -2.04, -1.81], dtype=float32)
    """
    size = spec.input_size
    batch = np.empty((len(images), 3, size, size), np.float32)
    mean, std = np.array(spec.preprocess.mean_rgb, np.float32), np.array(spec.preprocess.std_rgb, np.float32)
    for image, planes in zip(images, batch, strict=True):
        resized = _resized(image, size, spec.preprocess.pad_rgb)
        for channel in range(3):
            np.subtract(resized[:, :, 2 - channel], mean[channel], out=planes[channel])
            planes[channel] /= std[channel]
    return batch


def _resized(
    image: Image,  # [H, W, 3] BGR
    size: int,
    pad_rgb: tuple[float, float, float] | None,
) -> FloatArray:  # [size, size, 3] BGR
    """A large image goes through float32 in strips, and only those of its rows that the interpolation reads: across, then down.

    The two passes are OpenCV's own order, so that they give the same bits as one. They would not where it stretches far across
    (by more than 8, with Intel's IPP), of a single row or column, and of exactly twice the size: that is other code.
    """
    height, width = image.shape[:2] if pad_rgb is None else (max(image.shape[:2]),) * 2
    if height * width <= _WHOLE_PIXELS or width <= size or height < 2 or (height, width) == (2 * size, 2 * size):
        return _resize(_rows(image, np.arange(height), width, pad_rgb), size, size)
    read = _rows_read(height, size)
    across = np.empty((len(read), size, 3), np.float32)
    for part in np.array_split(np.arange(len(read)), max(1, len(read) // max(2, _STRIP_PIXELS // width))):
        across[part] = _resize(_rows(image, read[part], width, pad_rgb), len(part), size)
    down = np.empty((size, size, 3), np.float32)
    for columns in np.array_split(np.arange(size), max(1, size // max(2, _STRIP_PIXELS // height))):
        strip = np.zeros((height, len(columns), 3), np.float32)  # as high as the image: the weights depend on it
        strip[read] = across[:, columns]
        down[:, columns] = _resize(strip, size, len(columns))
    return down


def _rows_read(height: int, size: int) -> IntArray:
    """At least the rows that a bilinear resize to `size` rows reads: two for each, and one more on either side."""
    above = np.floor((np.arange(size) + 0.5) * (height / size) - 0.5).astype(np.int64)
    return np.unique(np.clip(above[:, None] + np.arange(-1, 3), 0, height - 1))


def _rows(
    image: Image,  # [H, W, 3] BGR
    numbers: IntArray,  # [n], ascending
    width: int,
    pad_rgb: tuple[float, float, float] | None,
) -> FloatArray:  # [n, width, 3] BGR
    """Rows of an image that lies in the top left of a canvas of this width."""
    if pad_rgb is None:
        return image[_span(numbers)].astype(np.float32)
    rows = np.full((len(numbers), width, 3), pad_rgb[::-1], np.float32)
    inside = numbers[numbers < image.shape[0]]
    rows[: len(inside), : image.shape[1]] = image[_span(inside)]
    return rows


def _span(numbers: IntArray) -> IntArray | slice:
    """Numbers without a gap as a slice, which NumPy does not copy."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return numbers


def _resize(
    pixels: FloatArray,  # [H, W, 3]
    height: int,
    width: int,
) -> FloatArray:  # [height, width, 3]
    import cv2

    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)
