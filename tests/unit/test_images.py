from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from exporters.checkpoints.configs import PUBLISHED
from tests.goldens import GOLDEN, SHAPES
from yolact_deploy.errors import ImageError, InputWarning
from yolact_deploy.reference.images import check_image, list_images, preprocess, read_image
from yolact_deploy.spec import ModelSpec

PHOTO = SHAPES / "val" / "val_public_0000.jpg"
BGR = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_files_of_every_depth_and_channel_count_become_bgr(tmp_path: Path) -> None:
    gray, alpha = BGR[..., 0], np.dstack([BGR, BGR[..., :1]])
    for name, written, expected in (
        ("bgr.png", BGR, BGR),
        ("gray.png", gray, np.repeat(gray[..., None], 3, axis=2)),
        ("alpha.png", alpha, BGR),
        ("deep.png", BGR.astype(np.uint16) * 257, BGR),
        ("one.png", BGR[:1, :1], BGR[:1, :1]),
    ):
        cv2.imwrite(str(tmp_path / name), written)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=name)


@pytest.mark.parametrize("keep", [0, 2, 700, -20])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    data = cv2.imencode(suffix, read_image(PHOTO))[1].tobytes()
    file = tmp_path / f"half{suffix}"
    file.write_bytes(data[:keep])
    with pytest.raises(ImageError, match=str(file)):
        read_image(file)


def test_bytes_after_the_end_of_a_jpeg_are_no_truncation(tmp_path: Path) -> None:
    (tmp_path / "trailing.jpg").write_bytes(PHOTO.read_bytes() + b"camera data")
    np.testing.assert_array_equal(read_image(tmp_path / "trailing.jpg"), read_image(PHOTO))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "No such file"),
        (lambda p: p.mkdir(), "Is a directory"),
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_text("<html>"), "it is damaged, or no image that OpenCV knows .* beginning with b'<html>'"),
    ],
)
def test_what_is_no_image_file_is_named_with_the_reason(tmp_path: Path, make: object, reason: str) -> None:
    make(tmp_path / "x.jpg")  # type: ignore[operator]
    with pytest.raises(ImageError, match=reason):
        read_image(tmp_path / "x.jpg")


def test_arrays_are_checked_and_brought_to_bgr() -> None:
    np.testing.assert_array_equal(check_image(BGR[..., ::-1], channel_order="rgb"), BGR)
    assert check_image(BGR[..., 0]).shape == check_image(BGR[..., :1]).shape == (4, 6, 3)
    assert check_image(np.dstack([BGR, BGR[..., :1]])).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels: 5x0"),
        (np.zeros((5, 5, 3), np.uint16), r"must be uint8, found uint16. Divide 16-bit values by 257"),
        (np.zeros((5, 5, 3), np.float32), "must be uint8, found float32"),
        (np.zeros((5, 5, 2), np.uint8), r"must be \[H, W, 3\], found \[5, 5, 2\]"),
        (np.zeros(5, np.uint8), r"found \[5\]"),
        ([[0]], "found list"),
    ],
)
def test_arrays_that_cannot_be_images_are_refused(image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_image(image)


def test_an_unknown_channel_order_is_refused() -> None:
    with pytest.raises(ImageError, match="'gbr'"):
        check_image(BGR, channel_order="gbr")  # type: ignore[arg-type]


def test_folders_are_listed_by_name_and_other_files_left_out(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "clip.mp4"):
        (tmp_path / name).touch()
    with pytest.warns(InputWarning, match="2 files without an image left out: clip.mp4, notes.txt"):
        assert [p.name for p in list_images([tmp_path])] == ["a.png", "b.JPG"]
    with pytest.warns(InputWarning, match="1 file without an image or video left out: notes.txt"):
        assert [p.name for p in list_images([tmp_path], videos=True)] == ["a.png", "b.JPG", "clip.mp4"]
    assert list_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]


def test_a_missing_path_and_a_folder_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        list_images([tmp_path / "none"])
    with pytest.raises(ImageError, match="holds no images"):
        list_images([tmp_path])


def test_the_networks_input_is_the_originals_bit_for_bit() -> None:
    spec = ModelSpec.from_file(SHAPES / "spec.json")
    recorded = json.loads((GOLDEN / "shapes/golden_val_public_masks.json").read_text())[0]
    image = read_image(SHAPES / "val" / recorded["file_name"])
    assert hashlib.sha256(image.tobytes()).hexdigest() == recorded["decoded_bgr_sha256"]
    with np.load(GOLDEN / "shapes/raw_heads_val_public_1001.npz") as golden:
        np.testing.assert_array_equal(preprocess([image], spec)[0], golden["input"])


def test_stretching_interpolates_between_pixel_centres_in_float() -> None:
    spec = dataclasses.replace(ModelSpec.from_file(SHAPES / "spec.json"), input_size=32)
    row = np.array([10, 30, 31], np.uint8)
    planes = preprocess([np.repeat(row[None, :, None], 3, axis=2)], spec)[0]
    centres = (np.arange(32) + 0.5) * 3 / 32 - 0.5  # in pixels of the image; beyond its edges the edge goes on
    stretched = np.interp(centres, [0, 1, 2], row.astype(float))
    for plane, mean, std in zip(planes, spec.preprocess.mean_rgb, spec.preprocess.std_rgb, strict=True):
        np.testing.assert_allclose(plane, np.tile((stretched - mean) / std, (32, 1)), atol=1e-6)  # float32 against 64


def test_darknet_divides_by_255_and_nothing_else() -> None:
    spec = PUBLISHED["yolact_darknet53"]
    flat = np.full((10, 20, 3), (51, 102, 255), np.uint8)
    planes = preprocess([flat], spec)[0]
    assert planes.shape == (3, 550, 550)
    np.testing.assert_array_equal(np.unique(planes[0]), np.float32(1))  # red first
    np.testing.assert_array_equal(np.unique(planes[2]), np.float32(51) / np.float32(255))


def test_images_of_different_sizes_share_a_batch() -> None:
    spec = ModelSpec.from_file(SHAPES / "spec.json")
    one, other = np.zeros((1, 1, 3), np.uint8), np.full((700, 3, 3), 255, np.uint8)
    batch = preprocess([one, other], spec)
    np.testing.assert_array_equal(batch[1], preprocess([other], spec)[0])
    assert batch.shape == (2, 3, 256, 256)
