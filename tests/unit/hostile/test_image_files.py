"""Image files that are larger than they look, damaged, or of another kind than their names say."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.hostile.image_files import HEIGHT, KINDS, WIDTH, chunk, encoded, noise, png_of_one_color
from yolact_deploy import Detector, detect_files
from yolact_deploy.errors import ImageError, InputWarning
from yolact_deploy.files import read_bytes
from yolact_deploy.reference.decoding import open_video
from yolact_deploy.reference.image_headers import JpegLayout, image_kind, read_header
from yolact_deploy.reference.images import MAX_PIXELS, list_images, read_image

PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
SAMPLED_420 = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
OPTIMIZED = (cv2.IMWRITE_JPEG_OPTIMIZE, 1)


def _file(tmp_path: Path, data: bytes, name: str = "image") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


# Sizes before decoding.


@pytest.mark.parametrize("suffix", KINDS)
def test_sizes_are_read_before_decoding_and_are_those_of_the_decoder(tmp_path: Path, suffix: str) -> None:
    data = encoded(suffix)
    header = read_header(data)
    assert header is not None
    image = read_image(_file(tmp_path, data))
    assert (header.width, header.height) == (WIDTH, HEIGHT) == image.shape[1::-1]


@pytest.mark.parametrize("suffix", KINDS)
def test_images_beyond_the_limit_are_refused_by_their_headers(tmp_path: Path, suffix: str) -> None:
    file = _file(tmp_path, encoded(suffix))
    pixels = WIDTH * HEIGHT
    assert read_image(file, max_pixels=pixels).size == 3 * pixels
    with pytest.raises(ImageError, match=rf"{file}: it has 53x37 = 0\.0 megapixels, and at most 0\.00196 are read"):
        read_image(file, max_pixels=pixels - 1)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_of_one_color(20_000, 20_000 // 100), (20_000, 200)),
        (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)),
            (65_000, 65_000),
        ),
        (b"GIF89a" + struct.pack("<HH", 65_000, 40_000), (65_000, 40_000)),
        (b"BM" + bytes(12) + struct.pack("<Iii", 40, 30_000, -40_000), (30_000, 40_000)),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 65_000, 65_000), (65_000, 65_000)),
        (b"RIFF0000WEBPVP8X" + bytes(8) + b"\xff\xff\x00\xff\xff\x00", (65_536, 65_536)),
        (b"RIFF0000WEBPVP8 " + bytes(6) + b"\x9d\x01\x2a" + bytes(1) + b"\xff\xff\xff\x7f", (16_383, 16_383)),
        (b"P6 # a comment\n50000\n#another\n 40000 255\n", (50_000, 40_000)),
        (b"P7\nWIDTH 5\nWIDTH 50000\nHEIGHT 40000\nDEPTH 3\n", (50_000, 40_000)),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc2\x00\x08\x08\xff\xff\xff\xfe\x03", (65_534, 65_535)),
    ],
    ids=["PNG", "PNG header", "GIF", "BMP", "BMP of OS/2", "WebP", "WebP lossy", "PPM", "PAM", "JPEG"],
)
def test_sizes_are_read_as_the_formats_write_them(data: bytes, size: tuple[int, int]) -> None:
    header = read_header(data)
    assert header is not None
    assert (header.width, header.height) == size


def test_a_jpeg_2000_is_as_large_as_its_codestream_says_and_not_its_box(tmp_path: Path) -> None:
    data = bytearray(encoded(".jp2"))
    box = data.index(b"ihdr") + 4
    data[box : box + 8] = struct.pack(">II", 1, 1)
    header = read_header(bytes(data))
    assert header is not None
    assert header.pixels == WIDTH * HEIGHT


def test_gigabytes_in_kilobytes_are_refused_without_taking_them(tmp_path: Path) -> None:
    """In a process that could not hold the pixels."""
    file = _file(tmp_path, png_of_one_color(40_000, 3_000))
    assert file.stat().st_size < 500_000
    limited = (
        "import resource, sys\n"
        "import cv2\n"
        "from yolact_deploy.reference.images import read_image\n"
        "from yolact_deploy.errors import ImageError\n"
        "room = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 200_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "try:\n"
        "    read_image(sys.argv[1])\n"
        "except ImageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(file)], capture_output=True, text=True, check=True)
    assert "it has 40000x3000 = 120.0 megapixels, and at most 100 are read" in done.stdout
    assert "raise max_pixels (--max-pixels)" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "100"])
def test_a_limit_is_a_positive_whole_number(tmp_path: Path, limit: object) -> None:
    with pytest.raises(ValueError, match="max_pixels must be a whole number of at least 1"):
        read_image(_file(tmp_path, encoded(".png")), max_pixels=limit)  # type: ignore[arg-type]
    assert MAX_PIXELS == 100_000_000


def test_a_detector_and_its_command_keep_the_limit(shapes_onnx: Path, tmp_path: Path) -> None:
    file = _file(tmp_path, encoded(".png"), "photo.png")
    pixels = WIDTH * HEIGHT
    for limit, allowed in ((pixels, True), (pixels - 1, False)):
        report = detect_files(shapes_onnx, [file], device="cpu", max_pixels=limit)
        assert [summary.image_hw for summary in report.files] == [(HEIGHT, WIDTH)] * allowed
        assert len(report.failures) == 1 - allowed
    detector = Detector(shapes_onnx, device="cpu", max_pixels=pixels - 1)
    with pytest.raises(ImageError, match="it has 53x37"):
        detector(file)
    with pytest.raises(ImageError, match="it has 53x37"):
        list(detector.stream([file]))
    assert detector(noise()).image_hw == (HEIGHT, WIDTH)  # an array takes no more memory than it has
    with pytest.raises(ValueError, match="max_pixels must be"):
        Detector(shapes_onnx, device="cpu", max_pixels=0)


def test_frames_of_a_video_have_the_limit_of_images(tmp_path: Path) -> None:
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    writer.write(noise(48, 64))
    writer.release()
    with open_video(video, max_pixels=48 * 64) as opened:
        assert len(list(opened.frames)) == 1
    with pytest.raises(ImageError, match="it has 64x48"), open_video(video, max_pixels=48 * 64 - 1):
        pass


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    data = encoded(".jpg", options=PROGRESSIVE)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    last = data[scans[-1] : -2]
    file = _file(tmp_path, data[:-2] + last * 1000 + b"\xff\xd9")
    with pytest.raises(ImageError, match="more than 100 scans"):
        read_image(file)


# Damage.


@pytest.mark.parametrize("options", [(), PROGRESSIVE, RESTARTS, (*RESTARTS, *PROGRESSIVE), SAMPLED_420, OPTIMIZED])
@pytest.mark.parametrize("keep", [-1, -2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_note(
    tmp_path: Path, options: tuple[int, ...], keep: int
) -> None:
    data = encoded(".jpg", options=options)
    file = _file(tmp_path, data[:keep])
    with pytest.warns(InputWarning, match=rf"{file} lacks its end marker, but all of its pixels are there"):
        image = read_image(file)
    np.testing.assert_array_equal(image, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("options", [(), PROGRESSIVE, RESTARTS, SAMPLED_420, OPTIMIZED])
@pytest.mark.parametrize("gray", [False, True])
def test_a_jpeg_that_lacks_pixels_is_never_read(tmp_path: Path, options: tuple[int, ...], gray: bool) -> None:
    """Cut anywhere: what is read all the same has every pixel of the whole."""
    pixels = noise()[..., 0] if gray else noise()
    data = encoded(".jpg", pixels, options)
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    file = tmp_path / "cut.jpg"
    read = 0
    for keep in {*range(3, len(data) - 40, 29), *range(len(data) - 40, len(data))}:
        file.write_bytes(data[:keep])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image = read_image(file)
            except ImageError as error:
                assert "truncated" in str(error)  # noqa: PT017 - most cuts are refused, which ones is the matter
                continue
        assert [warning.category for warning in caught] == [InputWarning]
        np.testing.assert_array_equal(image, whole)
        read += 1
    assert 1 <= read < 10


def test_a_preview_inside_a_cut_jpeg_is_not_its_end(tmp_path: Path) -> None:
    preview = encoded(".jpg", noise(8, 8))
    exif = b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview
    data = encoded(".jpg")
    with_preview = data[:2] + exif + data[2:]
    np.testing.assert_array_equal(read_image(_file(tmp_path, with_preview)), read_image(_file(tmp_path, data, "plain")))
    for keep in (len(exif) + 2, len(exif) + 300, len(with_preview) // 2):
        with pytest.raises(ImageError, match="truncated"):
            read_image(_file(tmp_path, with_preview[:keep]))


def test_a_second_image_after_the_end_of_a_jpeg_may_be_cut(tmp_path: Path) -> None:
    data = encoded(".jpg")
    np.testing.assert_array_equal(
        read_image(_file(tmp_path, data + data[:500])), read_image(_file(tmp_path, data, "plain"))
    )
    assert JpegLayout(data + data[:500]).is_ended


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_png_is_refused_by_its_checksums(tmp_path: Path, place: float) -> None:
    data = bytearray(encoded(".png"))
    data[int(place * len(data))] ^= 0x40
    with pytest.raises(ImageError, match=r"the file is damaged \(a checksum is wrong between bytes"):
        read_image(_file(tmp_path, bytes(data)))


def test_a_png_with_a_damaged_remark_is_read(tmp_path: Path) -> None:
    data = encoded(".png")
    remark = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    remark[-1] ^= 1
    np.testing.assert_array_equal(read_image(_file(tmp_path, data[:33] + bytes(remark) + data[33:])), noise())


# What is no file, or not the kind its name says.


def test_devices_and_pipes_that_nobody_writes_to_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="it is a pipe that nobody writes to"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="it is a device or a socket and no file"):
        read_image("/dev/zero")


def test_an_image_is_read_from_a_pipe_whose_writer_takes_its_time(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = encoded(".png")
    held = os.open(pipe, os.O_RDWR)  # so that the reader finds a writer

    def write() -> None:
        os.write(held, data)
        os.close(held)

    writer = threading.Timer(0.05, write)
    writer.start()
    try:
        np.testing.assert_array_equal(read_image(pipe), noise())
    finally:
        writer.join()


def test_a_file_is_read_up_to_a_limit(tmp_path: Path) -> None:
    file = _file(tmp_path, b"12345")
    assert read_bytes(file, max_bytes=5) == read_bytes(file) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_bytes(file, max_bytes=4)


@pytest.mark.parametrize("suffix", KINDS)
def test_images_of_a_folder_are_told_by_content(tmp_path: Path, suffix: str) -> None:
    _file(tmp_path, encoded(suffix), "IMG_0001")
    assert list_images([tmp_path]) == [tmp_path / "IMG_0001"]


@pytest.mark.parametrize("suffix", [".gif", ".avif", ".jp2", ".jfif"])
def test_a_damaged_image_of_a_folder_is_told_by_its_name(tmp_path: Path, suffix: str) -> None:
    broken = _file(tmp_path, b"", f"photo{suffix}")
    assert list_images([tmp_path]) == [broken]


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.txt", "c.mp4", "d.csv", "e"):
        _file(tmp_path, b"x", name)
    (tmp_path / "more").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(InputWarning) as caught:
        assert [path.name for path in list_images([tmp_path])] == ["a.jpg"]
    assert str(caught[0].message) == (
        f"of the folder {tmp_path}, 5 files without an image left out: b.txt, c.mp4, d.csv, ...; and 1 folder in it."
    )
    with pytest.warns(InputWarning, match=r"4 files without an image or video left out: b\.txt, d\.csv, e, \.\.\."):
        assert [path.name for path in list_images([tmp_path], videos=True)] == ["a.jpg", "c.mp4"]


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    _file(tmp_path, b"x", "a.txt")
    (tmp_path / "more").mkdir()
    with pytest.raises(ImageError, match="holds no images, only 1 other file and 1 folder in it"):
        list_images([tmp_path])


def test_a_name_too_long_for_any_file_does_not_exist() -> None:
    for name in ("x" * 10_000, "nul\0"):
        with pytest.raises(ImageError, match="does not exist"):
            list_images([name])
        with pytest.raises(ImageError, match="can't read the image"):
            read_image(name)


def test_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    file = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(file)).write_bytes(encoded(".png"))
    np.testing.assert_array_equal(read_image(os.fsdecode(file)), noise())


@pytest.mark.parametrize(
    "head", [b"", b"B", b"BM", b"RIFF", b"P6", b"\xff\xd8", b"\0\0\0 ftypisom", b"II*", b"%PDF", b"<svg"]
)
def test_what_is_no_image_has_no_kind(head: bytes) -> None:
    assert image_kind(head) is None
