"""From calibration images to one INT8 range per tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from exporters.activations import Progress, observe
from exporters.calibration_cache import (
    CachedCalibration,
    CacheKey,
    images_digest,
    read_cache,
    spec_digest,
    write_cache,
)
from exporters.calibrators import CALIBRATORS, Calibrator, choose_range
from exporters.onnx_edit import graph_digest
from exporters.quantize import tensors_to_calibrate
from yolact_deploy.errors import CalibrationError
from yolact_deploy.files import check_writable
from yolact_deploy.spec import ModelSpec

# On the trained example it loses the least box AP (0.04 point; max 0.07, mse 0.18, percentile 0.26), at an error of the
# outputs within 0.7 dB of the best (mse).
DEFAULT_CALIBRATOR: Calibrator = "entropy"
FEW_IMAGES = 8
ADVISED_IMAGES = 128


@dataclass(frozen=True)
class Calibration:
    calibrator: Calibrator
    ranges: Mapping[str, float]  # by tensor: the magnitude that 127 stands for
    absmax: Mapping[str, float]  # by tensor: largest magnitude seen; inf where one was not finite
    images: int  # that were used
    skipped: tuple[str, ...]  # why, one sentence for each image that was not
    warnings: tuple[str, ...]
    cache: Literal["none", "written", "reused"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "calibrator": self.calibrator,
            "images": self.images,
            "skipped": list(self.skipped),
            "warnings": list(self.warnings),
            "cache": self.cache,
            "ranges": dict(self.ranges),
        }


def calibrate(
    model: onnx.ModelProto,  # float32
    spec: ModelSpec,
    images: Sequence[Path],
    *,
    calibrator: Calibrator = DEFAULT_CALIBRATOR,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Ranges of all tensors that INT8 may need, measured on `images` or taken from `cache`.

    A cache that exists must be of this model, spec, calibrator and these images (any, when none are given), else it is
    refused and left as it is; one that does not is written. Raises CalibrationError, OutputError.
    """
    if calibrator not in CALIBRATORS:
        raise CalibrationError(f"unknown calibrator {calibrator!r}; choose {', '.join(CALIBRATORS)}.")
    reusable = cache is not None and cache.exists()
    if not images and not reusable:
        raise CalibrationError(
            "INT8 needs calibration images and none were given. Give a folder of "
            f"{ADVISED_IMAGES} or so images like those the model will see (--calib DIR)."
        )
    key = CacheKey(graph_digest(model), spec_digest(spec), images_digest(images) if images else None, calibrator)
    if cache is not None and reusable:
        return _calibration(read_cache(cache, key), calibrator, "reused")
    if cache is not None:
        check_writable(cache)
    observation = observe(model, spec, images, histograms=tensors_to_calibrate(model), progress=progress)
    measured = CachedCalibration(
        ranges={name: choose_range(histogram, calibrator) for name, histogram in observation.histograms.items()},
        absmax=observation.absmax,
        images=len(observation.used),
        skipped=observation.skipped,
    )
    if cache is not None:
        write_cache(cache, key, measured)
    return _calibration(measured, calibrator, "none" if cache is None else "written")


def _calibration(
    found: CachedCalibration, calibrator: Calibrator, cache: Literal["none", "written", "reused"]
) -> Calibration:
    warnings: list[str] = []
    if found.images < FEW_IMAGES:
        warnings.append(
            f"only {found.images} calibration image{'s' if found.images != 1 else ''}: the INT8 ranges are those of a few "
            f"scenes, and what goes beyond them in others saturates. Give {ADVISED_IMAGES} or so."
        )
    if found.skipped:
        warnings.append(f"{len(found.skipped)} calibration images were skipped: {' '.join(found.skipped)}")
    return Calibration(calibrator, found.ranges, found.absmax, found.images, found.skipped, tuple(warnings), cache)
