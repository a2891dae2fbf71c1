"""Every error this project raises on purpose.

    YolactDeployError
    ├── CheckpointError          a checkpoint can't be read, or does not fit its spec
    ├── SpecError                a ModelSpec is missing, malformed or contradicts the artifact
    ├── ExportError              ONNX export, or its parity check, failed
    ├── CalibrationError         INT8 calibration can't be done with what was given
    ├── EngineError              a plan can't be built or run
    │   ├── DeviceError          a device is asked for that there is not, or its driver refused
    │   │   └── DeviceMemoryError    a device or its host has no memory left for a buffer
    │   ├── BuildRequestError    a plan can't be built from what was given: the file, runtime, targets, batch or precision
    │   └── PlanMismatchError    a plan does not belong to its sidecar, this runtime or this GPU
    ├── ArtifactError            a model file is missing, unreadable or not of its kind
    ├── BenchmarkError           a measurement can't be made, or compared with an earlier one
    ├── AnnotationError          an annotation file can't be read, or does not go with the images or the model
    ├── ImageError               an input image can't be used
    ├── OptionError              an argument makes no sense; a ValueError as well
    ├── OutputError              a result can't be written where it was asked for
    │   └── OutputFailure        writing it failed half-way: the disk is full, or gone
    └── MissingDependencyError   an optional package is needed; the message has the exact `pip install`

A message says what failed, on which file or value, what was found, and what to do. ``exit_code`` is what the command line
returns for it: 2 for wrong usage or bad input, 1 for work that failed.
"""

from __future__ import annotations

from typing import Any

from yolact_deploy.text import printable

DISTRIBUTION = "yolact-deploy"  # the name that pip knows
_MAX_MESSAGE_CHARS = 4000
_END_CHARS = 1000  # of a longer one: what to do stands there


class YolactDeployError(Exception):
    r"""Whatever this project raises on purpose; `exit_code` is the command line's.

    Survives pickle and copy with its fields, whatever its constructor takes, so that workers can raise it. A message names
    what files hold, which may be anyone's: as text it has no control characters and 4,000 characters at most, `args` have all
    of it.

    >>> print(ImageError("can't read the image \x1b[2J.png"))
    can't read the image \x1b[2J.png
    """

    exit_code = 1

    def __str__(self) -> str:
        return _bounded(printable(_bounded(super().__str__()), keep_newlines=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[YolactDeployError], args: tuple[Any, ...], fields: dict[str, Any]) -> YolactDeployError:
    error = kind.__new__(kind, *args)  # a constructor need not take the message
    error.__dict__.update(fields)
    return error


def _bounded(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= _MAX_MESSAGE_CHARS:
        return text
    return f"{text[: _MAX_MESSAGE_CHARS - _END_CHARS - 1]}…{text[-_END_CHARS:]}"


def one_line(text: object) -> str:
    """A message without its line breaks and indents."""
    return " ".join(str(text).split())


class CheckpointError(YolactDeployError):
    """A checkpoint can't be read, or does not fit its spec."""

    exit_code = 2


class SpecError(YolactDeployError):
    """A ModelSpec is missing, malformed, or contradicts the artifact."""

    exit_code = 2


class ExportError(YolactDeployError):
    """ONNX export, or its parity check, failed."""

    exit_code = 1


class CalibrationError(YolactDeployError):
    """INT8 calibration can't be done with what was given."""

    exit_code = 2


class EngineError(YolactDeployError):
    """A plan can't be built or run."""

    exit_code = 1


class DeviceError(EngineError):
    """A device is asked for that there is not, or its driver refused."""

    exit_code = 2


class DeviceMemoryError(DeviceError):
    """A device or its host has no memory left for a buffer."""

    exit_code = 1


class BuildRequestError(EngineError):
    """A plan can't be built from what was given: the file, runtime, targets, batch or precision."""

    exit_code = 2


class PlanMismatchError(EngineError):
    """A plan does not belong to its sidecar, this runtime or this GPU."""

    exit_code = 2


class ArtifactError(YolactDeployError):
    """A model file is missing, unreadable, or not of its kind."""

    exit_code = 2


class BenchmarkError(YolactDeployError):
    """A measurement can't be made, or compared with an earlier one."""

    exit_code = 2


class AnnotationError(YolactDeployError):
    """An annotation file can't be read, or does not go with the images or the model."""

    exit_code = 2


class InputWarning(UserWarning):
    """An input was used otherwise than one might think: read though it is odd, or left out. The command line makes a note of
    it."""


class ImageError(YolactDeployError):
    """An input image can't be used."""

    exit_code = 2


class OptionError(YolactDeployError, ValueError):
    """An argument makes no sense: a share above 1, a count of 0, text in place of a number."""

    exit_code = 2


class OutputError(YolactDeployError):
    """A result can't be written where it was asked for."""

    exit_code = 2


class OutputFailure(OutputError):  # noqa: N818 - OutputError is its base
    """Writing a result failed half-way, where all was well before: the disk is full, or gone."""

    exit_code = 1


class MissingDependencyError(YolactDeployError):
    """An optional package is not installed; ``extra`` is the extra of this project that brings it."""

    exit_code = 2

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{purpose} needs {package}, which is not installed.\n  {pip_install(extra)}")


def pip_install(extra: str, options: str = "") -> str:
    """The command that brings an extra, from where this installation came: an index, a folder, a wheel or a repository.

    pip notes that beside what it installs (PEP 610); a source tree that nobody installed is installed from where it lies.
    """
    return " ".join(filter(None, ["pip install", options, _requirement(extra)]))


def _requirement(extra: str) -> str:
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path
    from urllib.parse import unquote, urlparse

    named = f"{DISTRIBUTION}[{extra}]"
    try:
        origin = json.loads(distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return f'-e "{Path(__file__).parents[1]}[{extra}]"'
    except ValueError:
        return f'"{named}"'
    url = str(origin.get("url", ""))
    if "vcs_info" in origin:
        return f'"{named} @ {origin["vcs_info"].get("vcs", "git")}+{url}"'
    place = unquote(urlparse(url).path)
    if not url.startswith("file:") or not Path(place).exists():  # an index, or a file that is gone
        return f'"{named}"'
    return f'{"-e " if origin.get("dir_info", {}).get("editable") else ""}"{place}[{extra}]"'
