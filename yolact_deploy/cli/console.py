"""How the command line talks: results on stdout, everything else on stderr, errors in words; and options that commands share."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TextIO, TypeVar

import typer
import typer.core

from yolact_deploy import __version__
from yolact_deploy.artifacts.names import (
    Calibrator,
    CpuPrecision,
    GpuPrecision,
    IoPrecision,
    OnnxRuntimeChoice,
    Progress,
)
from yolact_deploy.errors import InputWarning, OutputFailure, YolactDeployError, one_line
from yolact_deploy.spec import NmsMode
from yolact_deploy.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from yolact_deploy.reports.tables import Table


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON; stdout then holds nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda:N, or openvino:NAME for another device of OpenVINO's.")
]
OnnxRuntimeOption = Annotated[
    OnnxRuntimeChoice,
    typer.Option("--runtime", help="What runs an .onnx on a CPU; auto: the faster one of those here."),
]
CpuPrecisionOption = Annotated[
    CpuPrecision, typer.Option(help="What a CPU computes floating point in; bf16 is OpenVINO's, faster and less exact.")
]
GpuPrecisionOption = Annotated[
    GpuPrecision, typer.Option(help="What an NVIDIA GPU computes an fp32 .onnx in; tf32 is faster and less exact.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network. Default: all cores.")]
NmsOption = Annotated[NmsMode | None, typer.Option(help="Default: the model's own, FastNMS per class.")]
ArtifactArgument = Annotated[Path, typer.Argument(help="An exported .onnx, or a plan (.engine) with its sidecar.")]
ConfigOption = Annotated[str | None, typer.Option(help="A published configuration, such as yolact_base.")]
SpecOption = Annotated[Path | None, typer.Option(help='A spec file (JSON), whole or with "extends".')]

CalibOption = Annotated[Path | None, typer.Option(help="Folder of images like those the model will see, 128 or more.")]
CalibratorOption = Annotated[
    Calibrator, typer.Option(help="How INT8 ranges are chosen from the numbers that were seen.")
]
CalibCacheOption = Annotated[
    Path | None, typer.Option(help="File of the INT8 ranges (JSON): read if it is there, else written.")
]
KeepFp16Option = Annotated[list[str] | None, typer.Option(help="A module to keep out of INT8; may be repeated.")]
IoPrecisionOption = Annotated[IoPrecision, typer.Option(help="Precision of the model's inputs and outputs.")]
MaxApDropOption = Annotated[float | None, typer.Option(min=0, help="Fail when more points of AP (of 100) are lost.")]
AnnotationsOption = Annotated[Path | None, typer.Option(help="COCO annotations to measure AP with.")]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder of the annotated images.")]
AutoOption = Annotated[bool, typer.Option("--auto", help="Keep the fewest modules in FP16 that pass the gate.")]
SensitivityOption = Annotated[bool, typer.Option("--sensitivity", help="Measure what each module costs in INT8.")]
MaxPixelsOption = Annotated[
    int, typer.Option(min=1, help="Images with more pixels are refused before they are decoded.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only so many images, the first by id.")]

P = ParamSpec("P")
R = TypeVar("R")

_QUIET_DECODERS = {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # files they can't read, we name
INTERRUPTED = 130
_TERMINATED = 143


def run(app: typer.Typer) -> NoReturn:
    """Run a program of commands. Raises SystemExit."""
    for variable, quiet in _QUIET_DECODERS.items():
        os.environ.setdefault(variable, quiet)
    ended = SystemExit(0)
    try:
        with to_stdout():
            try:
                app()
            except SystemExit as exc:
                ended = exc
    except OutputFailure as exc:  # of --help and --version; for what commands print they answer themselves
        say(f"error: {exc}")
        ended = SystemExit(exc.exit_code)
    except BrokenPipeError:
        ended = SystemExit(1)
    raise ended


def print_version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """What the program does without a command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors end in a message and an exit code instead of a traceback.

    With `--debug` the traceback comes first; with `--json` stdout gets {"error": {"type", "message"}}. Being asked to end
    (Ctrl-C, SIGTERM) ends it as an error does, so that temporary files are removed on the way out.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        signal.signal(signal.SIGTERM, _on_terminate)
        try:
            from yolact_deploy.reference.decoding import capture_decoder_messages  # NumPy, which --help does without

            with warnings_as_notes(), capture_decoder_messages():
                return command(*args, **kwargs)
        except (
            typer.Exit,
            typer.Abort,
            BrokenPipeError,
            SystemExit,
        ):  # a reader that has seen enough is no error of ours
            raise
        except BaseException as exc:
            end_in_words(exc, debug=bool(kwargs.get("debug")), answer=print_json if kwargs.get("json_output") else None)

    return wrapped


def end_in_words(exc: BaseException, *, debug: bool, answer: Callable[[dict[str, Any]], None] | None) -> NoReturn:
    """End the command over an error: with its traceback first if `debug`, {"error": {"type", "message"}} for the `answer` on
    stdout, a message, and the exit code. Raises typer.Exit."""
    message, exit_code = _verdict(exc)
    if debug:
        traceback.print_exception(exc)
    if answer is not None:
        answer({"error": {"type": type(exc).__name__, "message": message}})
    say(f"error: {message}")
    raise typer.Exit(exit_code) from exc


def _verdict(exc: BaseException) -> tuple[str, int]:
    """What is said of an error, and the exit code."""
    if isinstance(exc, YolactDeployError):
        return str(exc), exc.exit_code
    if isinstance(exc, _Terminated):
        return "terminated", _TERMINATED
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(exc, MemoryError):
        return f"there is not enough memory for this: {exc or 'an allocation failed'}.", 1
    said = f"{type(exc).__name__}: {exc}"
    return f"{said}\nThis is a bug in yolact-deploy. Run it again with --debug and report it.", 1


class CommandGroup(typer.core.TyperGroup):
    """The group of commands, where wrong usage too is {"error": {"type": "UsageError", "message"}} on stdout with `--json`,
    beside the words on stderr."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments; what is wrong with them is said as `--json` asks."""
        self._wants_json = "--json" in args
        with self._usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it finds wrong with its arguments is said as `--json` asks."""
        with self._usage_errors():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """All that each command says of itself; Click would cut it to what one line holds."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.commands.items()])

    @contextlib.contextmanager
    def _usage_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            wrong_usage: Any = exc
            if hasattr(exc, "format_message"):  # Click's exceptions, which Typer may bring with it
                if type(exc).__name__ != "NoArgsIsHelpError":  # whose message is the help
                    wrong_usage.message = printable(wrong_usage.message or "")
                if self._wants_json:
                    print_json({"error": {"type": "UsageError", "message": wrong_usage.format_message()}})
            raise


@contextlib.contextmanager
def to_stdout() -> Iterator[None]:
    """What is written to stdout in the block has arrived at its end. Raises OutputFailure where there is no room for it, and
    BrokenPipeError where nobody reads any more; what comes after goes nowhere."""
    try:
        yield
        sys.stdout.flush()
    except OSError as exc:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else the rest fails once more when the process ends
        if isinstance(exc, BrokenPipeError):
            raise
        raise OutputFailure(f"can't write to standard output: {exc.strerror or exc}.") from exc


def print_json(value: Any) -> None:
    """On stdout in ASCII, as a terminal may have any encoding and a file name any bytes. Raises as `to_stdout` does."""
    with to_stdout():
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


class JsonObject:
    """A JSON object on stdout that begins with an array, whose entries are written as they come and are never all in memory.

    When nobody reads any more, `add` goes on and `end` raises BrokenPipeError; else both raise as `to_stdout` does.
    """

    def __init__(self, key: str) -> None:
        from yolact_deploy.files import JsonArray

        self._key, self._is_begun = key, False
        self._unread: BrokenPipeError | None = None
        self._array = JsonArray(self._write, depth=1)

    def add(self, entry: Mapping[str, Any]) -> None:
        """One more entry of the array."""
        try:
            with to_stdout():
                self._array.add(entry)
        except BrokenPipeError as exc:
            self._unread = exc

    def end(self, rest: Mapping[str, Any]) -> None:
        """The end of the array, and the object's other fields."""
        if self._unread is not None:
            raise self._unread
        with to_stdout():
            self._array.close()
            sys.stdout.write("," + json.dumps(rest, indent=2).removeprefix("{") + "\n")

    def _write(self, text: str) -> None:
        if self._unread is None:
            sys.stdout.write(text if self._is_begun else f'{{\n  "{self._key}": {text}')
            self._is_begun = True


@functools.cache
def console(*, stderr: bool = False) -> Console:
    """The one way to the terminal: what is printed stands there as it is, without rich's markup, emoji codes and highlights."""
    from rich import console

    class Console(console.Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # which this is called for; rich would end the process

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """A remark on stderr; what in it a terminal would act on, as in a hostile file name, is escaped."""
    with contextlib.suppress(OSError):  # where stderr is full or closed, the exit code says it still
        console(stderr=True).print(printable(text, keep_newlines=True), soft_wrap=True)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What is warned of in the input is said, each once; other warnings are as they were."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, InputWarning):
                say(f"note: {message}")
            else:
                show(message, category, filename, lineno, file, line)

        warnings.simplefilter("default", InputWarning)
        warnings.showwarning = tell
        yield


def say_notes(notes: Iterable[str], fallback: str | None) -> None:
    """What a Detector remarked, each in one line, and why it took the CPU where nothing said so yet."""
    lines = [one_line(note) for note in notes]
    if fallback is not None and not any(fallback in line for line in lines):
        lines.append(f"No GPU is used: {fallback}")
    for line in lines:
        say(f"note: {line}")


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables to stdout: in the width of a terminal; elsewhere each row as one line, for `grep` and other programs.

    Raises as `to_stdout` does.
    """
    out = console()
    with to_stdout():
        for number, table in enumerate(tables):
            if number:
                out.print()
            for line in table.lines(out.width if out.is_terminal else None):
                out.print(line, soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line of text to stdout: wrapped between words on a terminal. Raises as `to_stdout` does."""
    out, line = console(), printable(text)
    with to_stdout():
        if not out.is_terminal:
            out.print(line, soft_wrap=True)
            return
        from rich.text import Text

        from yolact_deploy.reports.tables import wrapped

        for part in wrapped(Text(line), out.width, rest="  "):
            out.print(part, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(*, beside_lines: bool = False) -> Iterator[Progress]:
    """A callback that draws a bar on stderr, on a terminal only; it is gone when the work is done. There is none where lines on
    stdout tell of the progress on the same terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    err = console(stderr=True)
    is_idle = not err.is_terminal or err.is_dumb_terminal or (beside_lines and console().is_terminal)
    with Bar(*columns, console=err, transient=True, disable=is_idle) as bar:
        tasks: dict[str, Any] = {}

        def update(what: str, step: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(printable(what), total=total)
            bar.update(tasks[what], completed=step, total=total)

        yield update


class _Terminated(BaseException):
    pass


def _on_terminate(_signal: int, _frame: Any) -> NoReturn:
    raise _Terminated
