"""From calibration images to one INT8 range per tensor, kept on disk with digests of all it depends on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from exporters.onnx_edit import onnx_graph_digest
from exporters.precision.quantize import tensors_to_calibrate
from exporters.precision.ranges import CALIBRATORS, choose_range, observe
from yolact_deploy import __version__
from yolact_deploy.annotations import load_annotations
from yolact_deploy.artifacts.names import Calibrator, Precision, Progress
from yolact_deploy.errors import CalibrationError
from yolact_deploy.files import check_writable, sha256_file, write_json
from yolact_deploy.reference.images import list_images
from yolact_deploy.spec import ModelSpec
from yolact_deploy.spec_json import JsonError, read_json
from yolact_deploy.text import counted

# On the trained example it loses the least box AP (0.04 point; max 0.07, mse 0.18, percentile 0.26), at an error of the
# outputs within 0.7 dB of the best (mse).
DEFAULT_CALIBRATOR: Calibrator = "entropy"
FEW_IMAGES = 8
ADVISED_IMAGES = 128
CACHE_SCHEMA_VERSION = 1
_INT8_OPSET = 19  # the first whose QuantizeLinear takes half scales


def check_before_export(
    precision: Precision,
    opset: int,
    calib: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    calib_cache: str | os.PathLike[str] | None,
    max_ap_drop: float | None,
    annotations: str | os.PathLike[str] | None,
) -> None:
    """Raise CalibrationError, ImageError or AnnotationError for what would fail or have no effect after the export."""
    given = {"--calib": calib, "--calib-cache": calib_cache, "--max-ap-drop": max_ap_drop, "--annotations": annotations}
    idle = [option for option, value in given.items() if value is not None]
    if precision == "fp32" and idle:
        raise CalibrationError(
            f"{', '.join(idle)} has no effect on fp32. Add --precision fp16 or int8, or leave it out."
        )
    if precision == "int8" and opset < _INT8_OPSET:
        raise CalibrationError(f"INT8 with half scales needs opset {_INT8_OPSET}, found --opset {opset}.")
    if precision == "int8" and calib is None and calib_cache is None:
        raise CalibrationError("INT8 needs images like those the model will see: give a folder of them with --calib.")
    if calib is not None:
        list_images([calib] if isinstance(calib, (str, os.PathLike)) else calib)
    if annotations is not None:
        load_annotations(annotations)


@dataclass(frozen=True)
class Calibration:
    """Ranges of activations, and what they were taken from."""

    calibrator: Calibrator
    ranges: Mapping[str, float]  # by tensor: the magnitude that 127 stands for
    absmax: Mapping[str, float]  # by tensor: largest magnitude seen; inf where one was not finite
    images: int  # that were used, of which
    constant: int | None  # are of one colour; None: a cache of before these were counted
    distinct: int | None  # are neither that nor the same as another once resized; None as above
    skipped: tuple[str, ...]  # why, one sentence for each image that was not
    warnings: tuple[str, ...]
    cache: Literal["none", "written", "reused"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "calibrator": self.calibrator,
            "images": self.images,
            "constant_images": self.constant,
            "distinct_images": self.distinct,
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
    refused and left as it is; one that does not is written. Raises CalibrationError, also where every image is of one
    colour, and OutputError.
    """
    if calibrator not in CALIBRATORS:
        raise CalibrationError(f"unknown calibrator {calibrator!r}; choose {', '.join(CALIBRATORS)}.")
    reusable = cache is not None and cache.exists()
    if not images and not reusable:
        raise CalibrationError(
            "INT8 needs calibration images and none were given. Give a folder of "
            f"{ADVISED_IMAGES} or so images like those the model will see (--calib DIR)."
        )
    key = CacheKey(onnx_graph_digest(model), spec_digest(spec), images_digest(images) if images else None, calibrator)
    if cache is not None and reusable:
        return _calibration(read_cache(cache, key), calibrator, "reused")
    if cache is not None:
        check_writable(cache)
    observation = observe(model, spec, images, histograms=tensors_to_calibrate(model), progress=progress)
    if not observation.distinct:
        raise CalibrationError(
            f"INT8 can't be calibrated: all {observation.constant} images are of one colour each, and show no object. Ranges "
            f"taken from them fit nothing else. Give {ADVISED_IMAGES} or so images like those the model will see."
        )
    measured = CachedCalibration(
        ranges={name: choose_range(histogram, calibrator) for name, histogram in observation.histograms.items()},
        absmax=observation.absmax,
        images=len(observation.used),
        skipped=observation.skipped,
        constant=observation.constant,
        distinct=observation.distinct,
    )
    if cache is not None:
        write_cache(cache, key, measured)
    return _calibration(measured, calibrator, "none" if cache is None else "written")


def _calibration(
    found: CachedCalibration, calibrator: Calibrator, cache: Literal["none", "written", "reused"]
) -> Calibration:
    warnings = sample_warnings(found.images, found.constant, found.distinct)
    if found.skipped:
        warnings.append(f"{len(found.skipped)} calibration images were skipped: {' '.join(found.skipped)}")
    return Calibration(
        calibrator,
        found.ranges,
        found.absmax,
        found.images,
        found.constant,
        found.distinct,
        found.skipped,
        tuple(warnings),
        cache,
    )


def sample_warnings(images: int, constant: int | None, distinct: int | None) -> list[str]:
    """What is wrong with a set of calibration images: too few that tell anything, and which do not."""
    useful = images if distinct is None else distinct
    same = images - useful - (constant or 0)
    idle = [
        text
        for count, text in (
            (constant, f"{constant} of one colour, without an object"),
            (same, f"{same} the same as another once resized"),
        )
        if count
    ]
    given = counted(useful, "calibration image")
    of = f" of the {images} ({' and '.join(idle)})" if idle else ""
    if useful < FEW_IMAGES:
        return [
            f"only {given}{of}: the INT8 ranges are those of a few scenes, and what goes beyond them in others saturates. "
            f"Give {ADVISED_IMAGES} or so."
        ]
    return [f"{given}{of} tell INT8 its ranges, the others nothing: leave them out, or give others."] if idle else []


@dataclass(frozen=True)
class CacheKey:
    """What a calibration depends on: two with equal keys give equal ranges."""

    model_sha256: str  # of the float32 graph, see onnx_edit.onnx_graph_digest
    spec_sha256: str
    images_sha256: str | None  # None = whatever images the cache was made from
    calibrator: Calibrator


@dataclass(frozen=True)
class CachedCalibration:
    """What a calibration cache holds of an earlier run."""

    ranges: Mapping[str, float]  # by tensor: the magnitude that 127 stands for
    absmax: Mapping[str, float]  # by tensor: largest magnitude seen; inf where one was not finite
    images: int
    skipped: tuple[str, ...]
    constant: int | None = None  # as in `Calibration`
    distinct: int | None = None


def spec_digest(spec: ModelSpec) -> str:
    """Hex SHA-256 of the spec, so that a cache of another model is told."""
    return hashlib.sha256(spec.to_json().encode()).hexdigest()


def images_digest(images: Sequence[Path]) -> str:
    """Hex SHA-256 of the images' contents, whatever their order and folder."""
    return hashlib.sha256("".join(sorted(map(_content_digest, images))).encode()).hexdigest()


def write_cache(path: Path, key: CacheKey, calibration: CachedCalibration) -> None:
    """Raises OutputError."""
    tensors: dict[str, dict[str, float | None]] = {
        name: {"absmax": value if math.isfinite(value) else None} for name, value in calibration.absmax.items()
    }
    for name, value in calibration.ranges.items():
        tensors.setdefault(name, {})["range"] = value
    write_json(
        path,
        {
            "schema": CACHE_SCHEMA_VERSION,
            "yolact_deploy_version": __version__,
            "model_sha256": key.model_sha256,
            "spec_sha256": key.spec_sha256,
            "images_sha256": key.images_sha256,
            "calibrator": key.calibrator,
            "images": calibration.images,
            "constant_images": calibration.constant,
            "distinct_images": calibration.distinct,
            "skipped": list(calibration.skipped),
            "tensors": tensors,
        },
    )


def read_cache(path: Path, key: CacheKey) -> CachedCalibration:
    """The ranges in `path` when they are those of `key`. Raises CalibrationError saying what differs, or is malformed."""
    content = _read(path)
    if content.get("schema") != CACHE_SCHEMA_VERSION:
        raise CalibrationError(
            f"the calibration cache {path} has schema {content.get('schema')!r}, this version reads {CACHE_SCHEMA_VERSION}. "
            "Delete it, and it is made anew."
        )
    differs = list(_differences(content, key))
    if differs:
        raise CalibrationError(
            f"the calibration cache {path} was made {' and '.join(differs)}. Delete it to calibrate anew, or name another file."
        )
    try:
        tensors = content["tensors"]
        return CachedCalibration(
            ranges={name: _magnitude(entry["range"]) for name, entry in tensors.items() if "range" in entry},
            absmax={
                name: math.inf if entry["absmax"] is None else _magnitude(entry["absmax"])
                for name, entry in tensors.items()
                if "absmax" in entry
            },
            images=int(content["images"]),
            skipped=tuple(map(str, content["skipped"])),
            constant=_count(content.get("constant_images")),
            distinct=_count(content.get("distinct_images")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise CalibrationError(
            f"the calibration cache {path} is malformed ({exc!r}). Delete it, and it is made anew."
        ) from exc


def _differences(content: Mapping[str, Any], key: CacheKey) -> Iterable[str]:
    if content.get("model_sha256") != key.model_sha256:
        yield f"for another model (graph {_short(content.get('model_sha256'))}, this one is {_short(key.model_sha256)})"
    if content.get("spec_sha256") != key.spec_sha256:
        yield "with another spec, so with other preprocessing or classes"
    if key.images_sha256 is not None and content.get("images_sha256") != key.images_sha256:
        yield f"from other images ({content.get('images')} of them)"
    if content.get("calibrator") != key.calibrator:
        yield f"by the calibrator {content.get('calibrator')!r}, not {key.calibrator!r}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except OSError as exc:
        raise CalibrationError(f"can't read the calibration cache {path}: {exc.strerror or exc}.") from exc
    except JsonError as exc:
        raise CalibrationError(
            f"{path} is no calibration cache: it is not JSON ({exc}). Name another file, or delete it."
        ) from exc
    if not isinstance(content, dict):
        raise CalibrationError(
            f"{path} is no calibration cache: it holds no JSON object. Name another file, or delete it."
        )
    return content


def _magnitude(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value!r} is no magnitude")
    return number


def _count(value: Any) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"{value!r} is no count")


def _content_digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return f"unreadable {path.name}"


def _short(digest: object) -> str:
    return f"{str(digest)[:12]}…"
