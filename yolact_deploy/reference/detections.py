"""What a model found in an image."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.arrays import BoolArray, FloatArray, Image, IntArray
from yolact_deploy.errors import ImageError, OptionError
from yolact_deploy.optional import require
from yolact_deploy.reference.compiled_masks import CompiledMasks, choose_masks
from yolact_deploy.reference.images import check_image, read_image
from yolact_deploy.reference.mask_sources import MaskSource, RunMasks, WindowMasks
from yolact_deploy.reference.masks import MaskRegion, PrototypeMasks
from yolact_deploy.text import shorten

_SHOWN_CLASSES = 10
_MAX_DIGITS = 19


@dataclass(frozen=True, eq=False)
class RawDetections:
    """Detections of one image before they meet the image: relative boxes, coefficients and prototypes."""

    prior_idx: IntArray  # [n], row of `loc` and `conf` it came from
    class_ids: IntArray  # [n], 0 = first foreground class
    scores: FloatArray  # [n], descending
    boxes_xyxy: FloatArray  # [n, 4], relative to the image (or to the square it was padded to), not clamped
    mask_coeff: FloatArray  # [n, K]
    proto: FloatArray  # [Hp, Wp, K]; [0, 0, K] from a GPU, where the prototypes stay

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: IntArray) -> RawDetections:
        """The given rows [m], in the given order."""
        return RawDetections(
            self.prior_idx[rows],
            self.class_ids[rows],
            self.scores[rows],
            self.boxes_xyxy[rows],
            self.mask_coeff[rows],
            self.proto,
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, best first. Masks are assembled, or unpacked from what a GPU made, when first asked for.

    `boxes_xyxy` are the original YOLACT's integer pixels (as float32); `boxes_relative` the exact ones. Raises ValueError
    where there is neither a `mask_source` nor the prototypes to assemble masks from.
    """

    raw: RawDetections
    image_hw: tuple[int, int]  # of the input image, pixels
    boxes_xyxy: FloatArray  # [n, 4], pixels of the input image
    crop: bool = True  # masks end at their boxes
    names: tuple[str, ...] = ()  # of every class of the model
    category_ids: tuple[int, ...] = ()  # of every class of the model, as in its annotations
    mask_ious: FloatArray | None = None  # [n], how well YOLACT++ takes each mask to fit; None without rescoring
    canvas_hw: tuple[int, int] | None = (
        None  # of the square that the image was padded to, in its pixels; None: not padded
    )
    mask_source: MaskSource | None = None  # n masks; None: assembled from `raw`

    def __post_init__(self) -> None:
        if self.mask_source is None:
            self._assembled()
        elif len(self.mask_source) != len(self.raw):
            raise ValueError(f"{len(self.raw)} detections can't have {len(self.mask_source)} masks.")

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Detections]:
        """Each detection as Detections of one, best first."""
        return (self.take(np.array([row])) for row in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | IntArray | BoolArray) -> Detections:
        """Some of the detections: one by its number, a slice, numbers, or where a boolean mask [n] is True.

        Raises IndexError for a number that there is not, for a mask of another length, and for anything else.
        """
        return self.take(_rows(index, len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: masks as the bits of their windows instead of the prototypes of the whole image."""
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        state["raw"] = dataclasses.replace(self.raw, proto=self.raw.proto[:0, :0])
        if not isinstance(self.mask_source, (WindowMasks, RunMasks)):
            state["mask_source"] = self._windows()
        return state

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.class_names).most_common())
        best = f" ({counts}; best {self.scores[0]:.2f})" if len(self) else ""
        return f"<Detections: {len(self)}{best} in {self.image_hw[1]}x{self.image_hw[0]}>"

    @property
    def scores(self) -> FloatArray:
        """float32 [n], descending."""
        return self.raw.scores

    @property
    def mask_scores(self) -> FloatArray:
        """float32 [n]: the score of each mask, by which mask AP ranks; `scores` unless the model rescores its masks."""
        return self.scores if self.mask_ious is None else self.scores * self.mask_ious

    @property
    def class_ids(self) -> IntArray:
        """int64 [n], 0 = first foreground class."""
        return self.raw.class_ids

    @property
    def class_names(self) -> list[str]:
        """The name of each detection's class; its number where the model has no names."""
        return [self.names[i] if self.names else str(i) for i in self.class_ids.tolist()]

    @property
    def boxes_relative(self) -> FloatArray:
        """float32 [n, 4], x1 y1 x2 y2 relative to the image (to `canvas_hw` if padded), neither clamped nor rounded."""
        return self.raw.boxes_xyxy

    @cached_property
    def masks(self) -> BoolArray:
        """bool [n, H, W] at the size of the input image."""
        return self._masks_from().dense()

    def top(self, count: int) -> Detections:
        """The `count` best."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: IntArray) -> Detections:
        """The given rows [m], in the given order."""
        return dataclasses.replace(
            self,
            raw=self.raw.take(rows),
            boxes_xyxy=self.boxes_xyxy[rows],
            mask_ious=None if self.mask_ious is None else self.mask_ious[rows],
            mask_source=None if self.mask_source is None else self.mask_source.take(rows),
        )

    def of_classes(self, class_ids: Iterable[int]) -> Detections:
        """Those of some classes, 0 = first foreground class."""
        return self.take(np.flatnonzero(np.isin(self.class_ids, list(class_ids))))

    def by_mask_score(self) -> Detections:
        """The same detections with the mask's score as the one score, best first: what the original displays.

        Unchanged for a model that does not rescore its masks.
        """
        if self.mask_ious is None:
            return self
        order = np.argsort(-self.mask_scores, kind="stable")
        ranked = self.take(order)
        raw = dataclasses.replace(ranked.raw, scores=ranked.mask_scores)
        return dataclasses.replace(ranked, raw=raw, mask_ious=None)

    def assembled(self) -> Detections:
        """The same detections with all masks made now, and kept: for looking at them more than once.

        They take a bit per pixel of their windows, an eighth of what `masks` takes at most.
        """
        if self.mask_source is not None:
            return self
        return dataclasses.replace(self, mask_source=self._windows())

    def listed(self) -> Detections:
        """Those that `to_coco` lists: as the original's dump, it leaves out those whose integer box has no area."""
        boxes = self.boxes_xyxy.astype(np.float64)
        with np.errstate(invalid="ignore"):
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return self.take(np.flatnonzero(areas > 0))

    def iter_regions(self) -> Iterator[MaskRegion]:
        """Masks one at a time, each as a window outside of which it is False; for images too large to hold all masks."""
        return self._masks_from().regions()

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings, one per mask: {"size": [H, W], "counts": str}, as pycocotools writes them."""
        return self._masks_from().rle()

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result entries with bbox, segmentation and score.

        Only those of `listed`. Category ids are the model's own; without them, class ids counted from 1. A model that
        rescores its masks adds "mask_score", the score of the segmentation; "score" is then that of the box.
        """
        found = self.listed()
        boxes = found.boxes_xyxy.astype(np.float64)
        entries = [
            {
                "image_id": image_id,
                "category_id": self.category_ids[class_id] if self.category_ids else class_id + 1,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "segmentation": rle,
                "score": score,
            }
            for box, class_id, score, rle in zip(
                boxes, found.class_ids.tolist(), found.scores.tolist(), found.rle(), strict=True
            )
        ]
        if found.mask_ious is not None:
            for entry, mask_score in zip(entries, found.mask_scores.tolist(), strict=True):
                entry["mask_score"] = mask_score
        return entries

    def plot(self, image: Image | str | os.PathLike[str], *, in_place: bool = False) -> Image:
        """A copy of the image they were found in (uint8 [H, W, 3] BGR, or its path) with masks, boxes and `class score`
        labels, the best on top; boxes without area are left out. With `in_place` an array is drawn on itself, where it is
        contiguous and can be written, which for a large image saves its size in memory.

        Raises ImageError for an image of another size, or a file that can't be read.
        """
        from yolact_deploy.reference.drawing import draw

        pixels = check_image(image) if isinstance(image, np.ndarray) else read_image(image)
        if pixels.shape[:2] != self.image_hw:
            raise ImageError(
                f"these detections are of an image of {self.image_hw[1]}x{self.image_hw[0]}, this one has "
                f"{pixels.shape[1]}x{pixels.shape[0]}. Give the image they were found in."
            )
        boxes = self.boxes_xyxy
        shown = self[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
        labels = [f"{name} {score:.2f}" for name, score in zip(shown.class_names, shown.scores, strict=True)]
        regions = shown.iter_regions()
        return draw(
            pixels,
            shown.boxes_xyxy,
            shown.class_ids,
            labels,
            regions,
            in_place=in_place or not isinstance(image, np.ndarray),
        )

    def save(self, path: str | os.PathLike[str], image: Image | str | os.PathLike[str]) -> None:
        """Write `plot(image)` to `path`, as its suffix says (.jpg, .png, ...). Raises ImageError and OutputError."""
        from yolact_deploy.reference.drawing import write_image

        write_image(Path(path), self.plot(image))

    def to_supervision(self) -> Any:
        """A `supervision.Detections` with boxes, masks, confidences and class ids, and class names in `data`.

        Raises MissingDependencyError without the supervision package.
        """
        sv = require("supervision", extra="draw", purpose="Detections.to_supervision()")
        return sv.Detections(
            xyxy=self.boxes_xyxy,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.class_ids,
            data={"class_name": np.array(self.class_names, dtype=str)},
        )

    def _masks_from(self) -> MaskSource:
        return choose_masks(self._assembled()) if self.mask_source is None else self.mask_source

    def _windows(self) -> WindowMasks:
        source = self._masks_from()
        return (
            source.windows() if isinstance(source, CompiledMasks) else WindowMasks.of(source.regions(), self.image_hw)
        )

    def _assembled(self) -> PrototypeMasks:
        raw = self.raw
        return PrototypeMasks(raw.proto, raw.mask_coeff, raw.boxes_xyxy, self.image_hw, self.crop, self.canvas_hw)


def _rows(index: Any, count: int) -> IntArray:
    if isinstance(index, (int, np.integer)) and not isinstance(index, (bool, np.bool_)):
        if not -count <= index < count:
            raise IndexError(f"there is no detection {index}: there are {count}.")
        return np.array([index % count], np.int64)
    if isinstance(index, slice):
        return np.arange(count)[index]
    rows = np.asarray(index)
    if rows.size == 0 and rows.ndim == 1 and rows.dtype != np.bool_:
        return np.zeros(0, np.int64)
    if rows.ndim == 1 and rows.dtype == np.bool_:
        if len(rows) != count:
            raise IndexError(f"a mask of {len(rows)} can't choose among {count} detections.")
        return np.flatnonzero(rows)
    if rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer):
        if (rows < -count).any() or (rows >= count).any():
            raise IndexError(f"there is no detection {rows[(rows < -count) | (rows >= count)][0]}: there are {count}.")
        return rows.astype(np.int64) % max(count, 1)
    raise IndexError(f"detections are chosen by a number, a slice, numbers or a mask of booleans, found {index!r}.")


def find_classes(
    wanted: str | Sequence[str | int], names: Sequence[str], category_ids: Sequence[int]
) -> tuple[int, ...]:
    """The classes that are meant by names or category ids, 0 = first foreground class, ascending. A text may be several of
    them with commas between. Raises OptionError for one that the model does not know, with those that are like it.

    >>> find_classes("cat,7", names=("cat", "dog"), category_ids=(3, 7))
    (0, 1)
    >>> find_classes(["dgo"], names=("cat", "dog"), category_ids=(3, 7))
    Traceback (most recent call last):
        ...
    yolact_deploy.errors.OptionError: the model has no class 'dgo'. Did you mean dog?
    """
    given = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(given, (list, tuple)) or not given:
        raise OptionError(f"classes must be names or category ids, found {shorten(repr(wanted))}.")
    parts: list[Any] = []
    for each in given:
        is_several = isinstance(each, str) and each not in names
        parts += [part.strip() for part in each.split(",") if part.strip()] if is_several else [each]
    return tuple(sorted({_class_of(part, names, category_ids) for part in parts or [""]}))


def _class_of(wanted: Any, names: Sequence[str], category_ids: Sequence[int]) -> int:
    if isinstance(wanted, str) and wanted in names:
        return list(names).index(wanted)
    if isinstance(wanted, str) and wanted.isascii() and wanted.isdecimal():
        wanted = int(wanted) if len(wanted) < _MAX_DIGITS else wanted
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted in category_ids:
        return list(category_ids).index(wanted)
    folded = {name.casefold(): name for name in names}
    like = get_close_matches(wanted.casefold(), folded, cutoff=0.5) if isinstance(wanted, str) else []
    some = ", ".join(
        f"{name} ({number})" for name, number in list(zip(names, category_ids, strict=False))[:_SHOWN_CLASSES]
    )
    others = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    hint = f"Did you mean {' or '.join(folded[name] for name in like)}?" if like else f"It has {some}{others}."
    raise OptionError(f"the model has no class {shorten(repr(wanted))}. {hint}")
