"""A run of `detect` over many files: what it has found lies on the disk, so that a run that is broken off loses nothing.

A journal is a file of lines, a JSON object each: the first says of which run it is, every other one is a record. Each is handed
to the system as it comes: a killed process (kill -9) loses the file that it was at, and only lost power may take more. Records
belong to a piece of work, which counts when it is finished; what follows the last finished one is cut off when the journal is
opened again. What a run leaves is written from there, a line at a time: nothing of an image is kept in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolact_deploy import __version__
from yolact_deploy.errors import InputWarning, OutputError
from yolact_deploy.files import JsonArray, atomic_path, claim, writing
from yolact_deploy.reference.drawing import check_not_there
from yolact_deploy.runtime.detector import Detector

_FORM = 1  # of a journal's lines
_END = "finished"  # the key of the record that finishes a piece of work: its number
_COCO_KEYS = ("image_id", "category_id", "bbox", "segmentation", "score")


@dataclass(frozen=True)
class FileSummary:
    """An image, or a whole video."""

    file: str
    image_hw: tuple[int, int]
    counts: dict[str, int]  # of detections by class name
    overlay: str | None
    frames: int | None  # None for an image

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FileSummary:
        """As `dataclasses.asdict` and JSON wrote it. Raises KeyError, TypeError or ValueError for anything else."""
        height, width = fields["image_hw"]
        return cls(**{**fields, "image_hw": (int(height), int(width)), "counts": dict(fields["counts"])})


@dataclass(frozen=True)
class BrokenOff:
    """How far a run came that did not come to its end, and where lies what it found."""

    done: int  # files
    of: int
    coco: str | None  # the results of those: a list as whole as any
    trouble: str | None  # why these could not be written
    journal: str | None  # what `resume` goes on from


@dataclass(frozen=True)
class DetectReport:
    """What `detect_files` did; what it found went to `coco`, to the overlays, to `on_result` and to `on_listed`."""

    files: list[FileSummary]  # without those that failed
    failures: dict[str, str]  # file -> why
    backend: str
    fallback: str | None  # why the CPU was taken, where device "auto" took it
    notes: tuple[str, ...]
    broken_off: BrokenOff | None = None  # None: it came to its end

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `detect --json` without its "images"."""
        return {
            "failed": [{"file": file, "error": error} for file, error in self.failures.items()],
            "backend": self.backend,
            "fallback": self.fallback,
            "partial": self.broken_off is not None and self.broken_off.done < self.broken_off.of,
            "notes": list(self.notes),
        }


@dataclass
class Run:
    """Files that are gone through in their order, and what is known of those whose turn is over."""

    detector: Detector
    files: Sequence[Path]
    ids: Sequence[int] | None  # of the images, where they are not counted
    targets: Sequence[Path | None]  # of the overlays
    coco: Path | None
    on_listed: Callable[[dict[str, Any]], None] | None
    on_broken_off: Callable[[DetectReport], None] | None
    journal: Journal | None = None  # where anything is written, so that there is something to lose
    summaries: list[FileSummary] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    done: int = 0
    next_id: int = 1

    @property
    def is_listed(self) -> bool:
        """Whether anybody wants to have the detections."""
        return self.coco is not None or self.on_listed is not None

    def begin(self, options: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Take up the journal, or begin it. Raises OutputError where it is another run's, or overlays would be replaced."""
        journal = self.journal
        assert journal is not None
        arguments = {**self.detector.arguments, "gpu": None, "runtime": self.detector.description.partition(": ")[0]}
        request = {**options, **arguments, "detections listed": self.is_listed, "version": __version__}
        if journal.path is not None:
            request |= {"artifact": self.detector.file.sha256, "images": _digest(self.files, self.ids)}
        try:
            if journal.finished and not (resume or overwrite):
                raise OutputError(
                    f"{journal.path} is of a run that was broken off after {journal.finished} files. Go on with that run "
                    "(--resume), or replace it (--overwrite)."
                )
            if journal.finished and resume:
                try:
                    for record in journal.go_on(request):
                        _coco_entries(record)
                        if "error" in record:
                            self._count(str(record["error"]))
                        elif "summary" in record:
                            self._count(FileSummary.from_dict(record["summary"]))
                    self._miss_overlays(journal)
                except (TypeError, ValueError, KeyError, IndexError, OverflowError) as exc:
                    raise OutputError(f"{journal.path} is damaged ({exc!r}). Delete it, and begin again.") from exc
                return
            if not overwrite:
                check_not_there(self.targets)
            if resume:
                warnings.warn(
                    f"{journal.path} is not there to go on from: this run begins.", InputWarning, stacklevel=3
                )
            journal.begin(request)
        except BaseException:
            if not journal.finished:
                journal.remove()
            raise

    def _miss_overlays(self, journal: Journal) -> None:
        gone = [each.overlay for each in self.summaries if each.overlay is not None and not Path(each.overlay).exists()]
        if gone:
            raise OutputError(
                f"{len(gone)} overlays of the run that {journal.path} is of are gone, such as {gone[0]}. Put them back, or "
                "begin again (--overwrite)."
            )

    def first_id(self, number: int) -> int:
        """The image_id of a file's first image, when it is its turn."""
        return self.ids[number] if self.ids else self.next_id

    def add(self, image: Callable[[], dict[str, Any]]) -> None:
        """What was found in an image or a frame of the file that is being worked at; not asked for unless it is listed."""
        if self.journal is not None and self.is_listed:
            self.journal.add({"image": image()})

    def finish(self, summary: FileSummary) -> None:
        """The turn of a file is over."""
        if self.journal is not None:
            self.journal.finish({"summary": dataclasses.asdict(summary)})
        self._count(summary)

    def fail(self, why: str) -> None:
        """It is over, and nothing that was found in the file counts."""
        if self.journal is not None:
            self.journal.take_back()
            self.journal.finish({"error": why})
        self._count(why)

    def write(self) -> None:
        """What a run leaves that came to its end, and nothing else."""
        if self.coco is not None:
            self._write_coco(self.coco)
        self._list()
        if self.coco is not None:
            _partial_path(self.coco).unlink(missing_ok=True)
        if self.journal is not None:
            self.journal.remove()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """An error in the block costs nothing of what is done: that is written and told of before the error goes on."""
        try:
            yield
        except BaseException:
            if self.journal is not None and self.journal.finished:
                self._break_off(self.journal)
            elif self.journal is not None:
                self.journal.remove()
            raise

    def report(self, broken_off: BrokenOff | None = None) -> DetectReport:
        """What was done so far."""
        run_by = self.detector
        return DetectReport(
            self.summaries, self.failures, run_by.description, run_by.fallback, run_by.notes, broken_off
        )

    def _break_off(self, journal: Journal) -> None:
        written, trouble = None, None
        try:
            journal.take_back()
            if self.coco is not None:
                self._write_coco(_partial_path(self.coco))
                written = str(_partial_path(self.coco))
        except OutputError as exc:
            trouble = str(exc)
        self._list()
        if self.on_broken_off is not None:
            kept = str(journal.path) if journal.path is not None else None
            self.on_broken_off(self.report(BrokenOff(journal.finished, len(self.files), written, trouble, kept)))

    def _count(self, result: FileSummary | str) -> None:
        if isinstance(result, FileSummary):
            self.summaries.append(result)
            self.next_id += result.frames or 1
        else:
            self.failures[str(self.files[self.done])] = result
            self.next_id += 1
        self.done += 1

    def _write_coco(self, path: Path) -> None:
        assert self.journal is not None
        with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as stream:
            array = JsonArray(stream.write)
            for record in self.journal.records():
                for entry in _coco_entries(record):
                    array.add(entry)
            array.close()

    def _list(self) -> None:
        if self.on_listed is not None and self.journal is not None:
            for record in self.journal.records():
                if "image" in record:
                    self.on_listed(record["image"])


def _coco_entries(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Raises KeyError or TypeError for a record that nobody here wrote."""
    return [{key: entry[key] for key in _COCO_KEYS} for entry in record.get("image", {"detections": ()})["detections"]]


def _digest(files: Sequence[Path], ids: Sequence[int] | None) -> str:
    """Of names, sizes and ids, in words."""
    digest = hashlib.sha256()
    for number, file in enumerate(files):
        digest.update(os.fsencode(f"{file}\0{file.stat().st_size}\0{ids[number] if ids else ''}\0"))
    return f"{len(files)} of SHA-256 {digest.hexdigest()}"


def journal_path(coco: Path | None, folder: Path | None) -> Path | None:
    """Where the journal of a run lies that writes these; None: it writes nothing, and can't be gone on with."""
    if coco is not None:
        return coco.with_name(f"{coco.name}.journal")
    return None if folder is None else folder / "detections.journal"


def _partial_path(coco: Path) -> Path:
    """A list can't say that it is not the whole; its name can, and `coco` itself is never less than that."""
    return coco.with_name(f"{coco.stem}.partial{coco.suffix}")


class Journal:
    """The records of a run, in a file with a name, or in one that is gone with the process. Pieces of work are finished in order;
    `finished` counts them. Raises OutputError for a file that can't be made, that another run is writing, or that is no journal.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.finished = 0
        self.request: dict[str, Any] | None = None  # None: of no run yet
        self._end = self._start = 0  # of what is finished, and of the records, in bytes
        self._where = path or Path(tempfile.gettempdir(), "what was found so far")
        with writing(self._where):
            if path is None:
                with tempfile.TemporaryFile() as nameless:
                    descriptor = os.dup(nameless.fileno())
            else:
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
                descriptor = os.open(path, flags, 0o666)
            self._file = io.FileIO(descriptor, "r+")
        try:
            if path is not None and not claim(descriptor):
                raise OutputError(f"can't write {path}: another run is writing it.")
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, request: Mapping[str, Any]) -> None:
        """Forget what is there, and be the journal of this run."""
        self._end = 0
        self._cut()
        self.request, self.finished = dict(request), 0
        self._write({"journal": _FORM, "of": self.request})
        self._end = self._start = self._file.tell()

    def go_on(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The records of what is finished, after which the next piece can be added.

        Raises OutputError where the journal is of another run, and where whoever takes the records finds them damaged.
        """
        then, now = self.request or {}, json.loads(json.dumps(request))
        for key in {**then, **now}:
            if then.get(key) != now.get(key):
                raise OutputError(
                    f"{self.path} is of another run: {key} was {then.get(key)!r}, and is {now.get(key)!r} now. Give all as it "
                    "was then, or begin again (--overwrite)."
                )
        yield from self.records()
        self._cut()

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record of the piece that is being worked at."""
        self._write(record)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Append the last record of that piece, which makes it count."""
        self._write({**record, _END: self.finished})
        self._end, self.finished = self._file.tell(), self.finished + 1

    def take_back(self) -> None:
        """As if nothing had been added since the last piece was finished."""
        self._cut()

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished pieces, one at a time; those that finish one have the key "finished"."""
        for record, _ in self._lines(self._start, self._end):
            yield record

    def close(self) -> None:
        """Leave the file as it is."""
        self._file.close()

    def remove(self) -> None:
        """Close it, and delete the file: nobody has to go on with this run."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.close()

    def _read(self) -> None:
        """Find out whose it is and how far it goes."""
        found = os.fstat(self._file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(f"can't write {self.path}: it is no file.")
        if not found.st_size:
            return
        lines = self._lines(0, found.st_size)
        first, position = next(lines, ({}, 0))
        if first.get("journal") != _FORM or not isinstance(first.get("of"), dict):
            raise OutputError(
                f"{self.path} is there, and is no journal of a run that could be gone on with. Move it away, or delete it."
            )
        self.request = first["of"]
        self._end = self._start = position
        for record, position in lines:
            if record.get(_END, self.finished) != self.finished:
                break
            if _END in record:
                self._end, self.finished = position, self.finished + 1

    def _lines(self, start: int, end: int) -> Iterator[tuple[dict[str, Any], int]]:
        """The objects on the lines between two positions and where each line ends, up to the first that is not whole."""
        with os.fdopen(os.dup(self._file.fileno()), "rb") as reader:
            reader.seek(start)
            position = start
            while position < end:
                line = reader.readline()
                position += len(line)
                try:
                    record = json.loads(line) if line.endswith(b"\n") else None
                except (ValueError, RecursionError):
                    record = None
                if not isinstance(record, dict):
                    return
                yield record, position

    def _write(self, record: Mapping[str, Any]) -> None:
        with writing(self._where):
            rest = memoryview((json.dumps(record, separators=(",", ":")) + "\n").encode("ascii"))
            while rest:
                rest = rest[self._file.write(rest) :]

    def _cut(self) -> None:
        with writing(self._where):
            self._file.seek(self._end)
            self._file.truncate()
