"""The process in which inputs are tried, some thousands of them: what may happen to it happens to nobody else.

    python -m tests.fuzz.child JOB     a JSON object, as `campaign` writes it; what became of each target's is a line of JSON

The target that is being tried lies in the file `target`, the number of the input in `number`, and the input itself in the
folder `scratch`, under the name in `input`, so that all are known of a process that died.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import mmap
import os
import pickle
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tests.fuzz.target import Target
from yolact_deploy.errors import InputWarning, YolactDeployError

ROOT = Path(__file__).parents[2]
HANG_S = 10.0
MAX_MESSAGE_CHARS = 4000
MAX_GROWTH_BYTES = 256 << 20  # of the process, over one input
_ADDRESS_SPACE_BYTES = 2 << 30  # beyond what it takes before the first input
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FORBIDDEN = frozenset(
    {
        *(
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "os.spawn",
            "os.fork",
            "os.forkpty",
            "subprocess.Popen",
            "pty.spawn",
        ),
        *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "pickle.find_class", "os.mkdir"),
        *("os.link", "os.symlink", "shutil.rmtree"),
    }
)
_OF_THE_SYSTEM = ("/proc", "/dev", "/usr", "/lib", "/sys")
_MAY_BE_READ = (*map(str, (ROOT, Path(sys.prefix).resolve(), sys.prefix, sys.base_prefix)), *_OF_THE_SYSTEM)


class BrokenPromiseError(BaseException):
    """What an input made happen that must not; no `except Exception` on the way keeps it."""


@dataclass
class Tally:
    """What became of the inputs of a target."""

    inputs: int = 0
    taken: int = 0  # by all of its readers
    refused: int = 0  # by one or more, with an error of ours
    cpu_s: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


class Watch:
    """Hears of what must not happen while `armed`: code out of a file, a connection, a file of somebody else's."""

    def __init__(self, scratch: Path, on_hang: TextIO, hang_s: float = HANG_S) -> None:
        self.on_hang, self.hang_s = on_hang, hang_s  # where the traceback goes; how long an input may take
        self.armed = False
        self._reads_elsewhere = False
        self._seen: list[str] = []
        self._scratch = str(scratch)
        sys.addaudithook(self._hear)
        sys.unraisablehook = self._unraisable

    @contextlib.contextmanager
    def over(self, target: Target) -> Iterator[None]:
        """Watch over the block, and end the process if it takes too long. Raises BrokenPromiseError."""
        faulthandler.dump_traceback_later(self.hang_s, exit=True, file=self.on_hang)
        self.armed, self._reads_elsewhere = True, target.reads_elsewhere
        try:
            yield
        finally:
            self.armed = False
            faulthandler.cancel_dump_traceback_later()
            if self._seen:
                seen, self._seen = self._seen[0], []
                raise BrokenPromiseError(seen)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in _FORBIDDEN:
            self._seen.append(f"{event} {str(arguments)[:100]}")
        elif event == "open" and not self._reads_elsewhere and isinstance(arguments[0], str):
            path = os.path.realpath(arguments[0])
            if not path.startswith((self._scratch, *_MAY_BE_READ)):
                self._seen.append(f"opened {path[:100]}")

    def _unraisable(self, found: Any) -> None:
        if self.armed:
            self._seen.append(f"ignored {found.exc_value!r} in {found.object!r}")


def problem_with(error: YolactDeployError) -> str | None:
    """What is wrong with a message, if anything."""
    text = str(error)
    if not text.strip():
        return "an empty message"
    if len(text) > MAX_MESSAGE_CHARS:
        return f"a message of {len(text)} characters"
    if odd := [c for c in text if c != "\n" and (unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI)]:
        return f"a message with {odd[0]!r}"
    if str(pickle.loads(pickle.dumps(error))) != text:
        return "a message that pickle changes"
    return None


def try_input(target: Target, path: Path, watch: Watch) -> bool:
    """Whether every reader took the file. Raises BrokenPromiseError, or whatever a reader raised that is no error of ours."""
    before = {entry.name for entry in os.scandir(path.parent)}
    taken = True
    for reader in target.readers:
        peak_bytes = _reset_peak()
        with watch.over(target):
            try:
                reader(path)
            except YolactDeployError as error:
                taken = False
                watch.armed = False
                if problem := problem_with(error):
                    raise BrokenPromiseError(f"{type(error).__name__} has {problem}: {str(error)[:200]!r}") from error
        if (grown := _peak_bytes() - peak_bytes) > MAX_GROWTH_BYTES:
            raise BrokenPromiseError(f"took {grown >> 20} MiB")
        if left := {entry.name for entry in os.scandir(path.parent)} - before:
            for name in left:
                _remove(path.with_name(name))
            raise BrokenPromiseError(f"left {sorted(left)} behind")
    return taken


def _reset_peak() -> int:
    """Begin to measure how much memory the process takes at most; what it takes now."""
    with contextlib.suppress(OSError):  # not allowed everywhere: then only what goes beyond the peak so far is seen
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 0 if found is None else int(found[1]) * 1024


def prepare(scratch: Path) -> None:
    """Threads, warnings, temporary files and the working directory as every input finds them."""
    scratch.mkdir()
    os.chdir(scratch)
    if "torch" in sys.modules:  # of those that are tried
        sys.modules["torch"].set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", InputWarning)
    # pycocotools 2.0.11: see pyproject.toml
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning, "pycocotools.mask")
    tempfile.tempdir = str(scratch)


def limit_memory() -> None:
    """No input may take gigabytes: what asks for them gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))


def lay_out(target: Target, scratch: Path) -> Path:
    """An empty folder but for what lies beside an input; where the input goes."""
    for entry in list(scratch.iterdir()):
        _remove(entry)
    for name, content in target.beside.items():
        (scratch / name).write_bytes(content)
    return scratch / target.file_name


def describe(exc: BaseException) -> dict[str, Any]:
    """What happened and where: two with the same "key" are one mistake."""
    where = _innermost(exc.__traceback__) if not isinstance(exc, BrokenPromiseError) else ""
    what = str(exc) if isinstance(exc, BrokenPromiseError) else f"{type(exc).__name__}: {str(exc)[:200]}"
    kind = re.sub(r"[\d'].*", "", what.split(":")[0])[:80]
    return {"key": f"{kind} {where}".strip(), "what": what, "trace": "".join(traceback.format_exception(exc))[-6000:]}


def _innermost(trace: TracebackType | None) -> str:
    """The last line of ours on the way to an error."""
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if str(ROOT) in frame.filename and "/.venv/" not in frame.filename
    ]
    ours = [frame for frame in frames if "/tests/" not in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else ""


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            _remove(entry)
        path.rmdir()
    else:
        path.unlink()


def table_of(name: str) -> dict[str, Target]:
    """The targets in `TARGETS` of a module."""
    found: dict[str, Target] = importlib.import_module(name).TARGETS
    return found


def warm_up(target: Target, path: Path, seeds: Sequence[bytes]) -> None:
    """What is imported or made once is no matter of a single input."""
    for data in seeds[:3]:
        path.write_bytes(data)
        for reader in target.readers:
            with contextlib.suppress(YolactDeployError):
                reader(path)


def main(job: dict[str, Any]) -> None:
    """Try `count` inputs from number `first` on of each target in "work"; failing ones are kept in "failures"."""
    folder, failures = Path(job["folder"]).resolve(), Path(job["failures"]).resolve()
    faulthandler.enable(file=(folder / "crash.txt").open("w"))
    table = table_of(job["table"])
    scratch = folder / "scratch"
    prepare(scratch)
    (folder / "number").write_bytes(bytes(8))
    with (folder / "number").open("r+b") as stream:
        number_now = mmap.mmap(stream.fileno(), 8)
    seeds = {name: table[name].seeds(folder) for name, _, _ in job["work"]}
    watch = Watch(folder, (folder / "hang.txt").open("w"), job["hang_s"])
    for name, _, _ in job["work"]:
        warm_up(table[name], lay_out(table[name], scratch), seeds[name])
    limit_memory()
    for name, first, count in job["work"]:
        target, tally, started = table[name], Tally(), time.process_time()
        path = lay_out(target, scratch)
        (folder / "target").write_text(name)
        (folder / "input").write_text(path.name)
        for number in range(first, first + count):
            struct.pack_into("<q", number_now, 0, number)
            data = target.input(name, seeds[name], job["seed"], number)
            path.write_bytes(data)
            tally.inputs += 1
            try:
                taken = try_input(target, path, watch)
                tally.taken, tally.refused = tally.taken + taken, tally.refused + (not taken)
            except BaseException as exc:
                found = describe(exc)
                if found["key"] not in {each["key"] for each in tally.findings}:
                    kept = keep(failures, name, data, path.suffix)
                    tally.findings.append({"target": name, "number": number, "file": str(kept), **found})
        tally.cpu_s = time.process_time() - started
        print(json.dumps({"target": name, **asdict(tally)}), flush=True)


def keep(failures: Path, target: str, data: bytes, suffix: str) -> Path:
    """Where an input that broke a promise lies from now on."""
    kept = failures / target / f"{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(data)
    return kept


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
