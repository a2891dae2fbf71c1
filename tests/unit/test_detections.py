from __future__ import annotations

import pickle

import numpy as np
import pytest

from yolact_deploy import Detections
from yolact_deploy.reference.detections import RawDetections

COUNT = 6


@pytest.fixture(scope="module")
def found() -> Detections:
    """Six detections of three classes in a photo of 480x640, their masks from prototypes of 138x138x32."""
    rng = np.random.default_rng(5)
    corners = rng.random((COUNT, 4), np.float32).reshape(COUNT, 2, 2)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    raw = RawDetections(
        prior_idx=np.arange(COUNT) * 7,
        class_ids=np.array([2, 0, 1, 1, 0, 2]),
        scores=np.linspace(0.9, 0.2, COUNT, dtype=np.float32),
        boxes_xyxy=boxes,
        mask_coeff=rng.standard_normal((COUNT, 32), np.float32),
        proto=rng.random((138, 138, 32), np.float32),
    )
    pixels = np.trunc(boxes * np.array([640, 480, 640, 480], np.float32))
    return Detections(raw, (480, 640), pixels, names=("cat", "dog", "owl"), category_ids=(1, 2, 3))


def numbers(detections: Detections) -> list[int]:
    rows: list[int] = (detections.raw.prior_idx // 7).tolist()
    return rows


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [5]),
        (np.int32(2), [2]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [5, 3, 1]),
        ([4, -6, 4], [4, 0, 4]),
        (np.array([3, 1]), [3, 1]),
        ([], []),
        ([True, False, False, False, False, True], [0, 5]),
        (np.zeros(COUNT, bool), []),
    ],
    ids=str,
)
def test_detections_are_chosen_as_the_rows_of_an_array(found: Detections, index: object, expected: list[int]) -> None:
    chosen = found[index]  # type: ignore[index]
    assert numbers(chosen) == expected
    np.testing.assert_array_equal(chosen.masks, found.masks[expected])
    np.testing.assert_array_equal(chosen.boxes_xyxy, found.boxes_xyxy[expected])
    assert chosen.class_names == [found.class_names[row] for row in expected]


def test_a_class_is_chosen_by_comparing(found: Detections) -> None:
    assert found[found.class_ids == 1].class_names == ["dog", "dog"]
    assert numbers(found[found.scores > 0.5]) == [0, 1, 2]


@pytest.mark.parametrize(
    "index", [6, -7, [6], np.array([0, -7]), [True], np.ones(7, bool), "cat", 1.0, [[1]], [0.5], None]
)
def test_what_chooses_nothing_is_an_index_error(found: Detections, index: object) -> None:
    with pytest.raises(IndexError, match=r"detection|mask"):
        found[index]  # type: ignore[index]


def test_iteration_gives_each_detection_alone(found: Detections) -> None:
    alone = list(found)
    assert [numbers(one) for one in alone] == [[row] for row in range(COUNT)]
    assert [len(one) for one in alone] == [1] * COUNT


def test_another_process_gets_the_same_masks_for_a_fraction_of_the_prototypes_bytes(found: Detections) -> None:
    sent = pickle.dumps(found)
    assert len(sent) < found.raw.proto.nbytes / 10
    arrived = pickle.loads(sent)
    np.testing.assert_array_equal(arrived.masks, found.masks)
    assert arrived.rle() == found.rle()
    assert arrived.to_coco(7) == found.to_coco(7)
    assert arrived.class_names == found.class_names
    assert numbers(pickle.loads(pickle.dumps(arrived[2:4]))) == [2, 3]  # sent on, and fewer


def test_masks_looked_at_before_are_not_sent_dense(found: Detections) -> None:
    found.masks.any()
    assert len(pickle.dumps(found)) < found.masks.nbytes / 10
