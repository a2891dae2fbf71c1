"""What reaches the terminal of damaged images and of names that try to act on it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text
from typer.testing import CliRunner

from tests.goldens import SHAPES
from tests.unit.hostile.image_files import chunk, encoded, noise
from yolact_deploy.cli import app
from yolact_deploy.cli.console import console, print_tables, progress_bar, say
from yolact_deploy.reference.images import read_image
from yolact_deploy.reports.tables import fact, facts, grid


def _detect(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from yolact_deploy.cli import main; main()"]
    command = [*program, "detect", str(model), *arguments, "--no-overlays", "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, cwd=model.parent)


def _png_with_bad_zlib() -> bytes:
    """Every checksum is right, and the pixels can't be unpacked."""
    data = encoded(".png")
    start = data.index(b"IDAT")
    end = start + 4 + int.from_bytes(data[start - 4 : start], "big")
    content = bytearray(data[start + 4 : end])
    content[len(content) // 2] ^= 0xFF
    return data[: start - 4] + chunk(b"IDAT", bytes(content)) + data[end + 4 :]


@pytest.fixture(scope="module")
def found(shapes_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run over images that make decoders talk."""
    folder = tmp_path_factory.mktemp("images")
    png, jpg = encoded(".png"), encoded(".jpg", noise(64, 64))
    middle = len(jpg) // 2
    for name, data in {
        "profile.png": png[:33] + chunk(b"iCCP", b"x\0\0short") + png[33:],  # libpng: "iCCP: too short"
        "zlib.png": _png_with_bad_zlib(),
        "half.png": png[: len(png) // 2],
        "corrupt.jpg": jpg[:middle] + jpg[-2:],  # libjpeg: "premature end of data segment"
        "unended.jpg": jpg[:-2],
        "half.webp": encoded(".webp")[:500],
        "half.tiff": encoded(".tiff")[:500],
        "half.gif": encoded(".gif")[:500],
        "\x1b[31mred\n.txt": b"",
    }.items():
        (folder / name).write_bytes(data)
    return folder, _detect(shapes_onnx, str(folder))


def test_decoders_do_not_talk_over_the_program(
    found: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = found
    lines = done.stderr.splitlines()
    assert all(line.startswith(("note: ", "error: ", "5 of 8 files failed")) for line in lines), done.stderr
    assert done.returncode == 1


def test_damage_that_a_decoder_went_past_is_a_note(found: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = found
    assert f"note: {folder}/unended.jpg lacks its end marker, but all of its pixels are there" in done.stderr
    assert (
        f"note: {folder}/corrupt.jpg is damaged, some of its pixels may be wrong; its decoder says: "
        "Corrupt JPEG data: premature end of data segment." in done.stderr
    )
    assert "profile.png" not in done.stderr


def test_what_was_left_out_is_said_once_and_cannot_act_on_the_terminal(
    found: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = found
    assert (
        f"note: of the folder {folder}, 1 file without an image or video left out: \\x1b[31mred\\n.txt.\n"
        in done.stderr
    )
    assert done.stderr.count("left out") == 1
    assert "\x1b" not in done.stdout + done.stderr


def test_a_library_leaves_the_stderr_of_its_program_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    code = (
        "import os, sys\n"
        "from yolact_deploy.reference import decoding\n"
        "decoding.os.dup2 = lambda *_: sys.exit('stderr was turned away')\n"
        "from yolact_deploy.reference.images import read_image\n"
        "print(read_image(sys.argv[1]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{read_image(tmp_path / 'a.png').shape}\n")


def test_a_library_is_not_talked_over_for_colour_profiles(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    png = encoded(".png")
    talk = [
        chunk(b"iCCP", b"x\0\0short"),
        chunk(b"cHRM", b"short"),
        chunk(b"gAMA", struct.pack(">I", 0)),
        chunk(b"sRGB", b"\x09"),
        chunk(b"pHYs", b""),
        chunk(b"tIME", b"\0"),
    ]
    (tmp_path / "a.png").write_bytes(png[:33] + b"".join(talk) + png[33:])
    assert np.array_equal(read_image(tmp_path / "a.png"), noise())
    assert capfd.readouterr() == ("", "")


def test_other_lines_of_the_moment_are_handed_on(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from yolact_deploy.reference.decoding import capture_decoder_messages, decoder_messages_to\n"
        "remarks = []\n"
        "with capture_decoder_messages(), decoder_messages_to(remarks.append):\n"
        "    os.write(2, b'of another thread\\nlibpng warning: iCCP\\nCorrupt JPEG data: bad Huffman code\\n')\n"
        "    os.write(2, b'Corrupt JPEG data: 4 extraneous bytes before marker 0xd9\\nhalf')\n"
        "print(remarks)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stderr == "of another thread\nhalf"
    assert done.stdout == "['Corrupt JPEG data: bad Huffman code']\n"


HOSTILE = "[red]a:x:\x1b[2J\u202e\n[/]"
SHOWN = r"[red]a:x:\x1b[2J\u202e\n[/]"


@pytest.mark.parametrize("width", [None, 30])
def test_tables_show_names_as_they_are_and_act_on_nothing(width: int | None) -> None:
    table = grid(HOSTILE, HOSTILE, f">{HOSTILE}")
    table.add_row(HOSTILE, Text(HOSTILE, "red"))
    fact(named := facts(HOSTILE), HOSTILE, HOSTILE)
    table.remarks.append(HOSTILE)
    lines = [line.plain for each in (table, named) for line in each.lines(width)]
    assert lines == [SHOWN, *[f"  {SHOWN}  {SHOWN}"] * 2, f"  {SHOWN}", SHOWN, f"  {SHOWN}  {SHOWN}"]


@pytest.mark.parametrize("command", ["detect", "eval", "bench", "inspect", "lint"])
def test_every_command_names_a_file_as_it_is(command: str, shapes_onnx: Path, tmp_path: Path) -> None:
    model = tmp_path / "[red]a:x:\x1b[2J\n.onnx"
    model.symlink_to(shapes_onnx)
    photo = tmp_path / "[red]b:x:\x1b[2J\n.png"
    photo.write_bytes(encoded(".png"))
    arguments: dict[str, tuple[object, ...]] = {
        "detect": ("detect", model, photo, "--no-overlays"),
        "eval": ("eval", model, "--images", SHAPES / "val", "--annotations", SHAPES / "val/instances.json", "--limit", 1),
        "bench": ("bench", model, "--iterations", 1, "--warmup", 0),
        "inspect": ("inspect", model),
        "lint": ("inspect", model, "--lint"),
    }  # fmt: skip
    result = CliRunner().invoke(app, [str(argument) for argument in arguments[command]])
    assert result.exit_code == 0, result.stderr
    assert (r"/[red]b:x:\x1b[2J\n.png" if command == "detect" else r"/[red]a:x:\x1b[2J\n.onnx") in result.stdout
    assert "\x1b" not in result.output


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is printed goes to a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    console.cache_clear()
    yield
    console.cache_clear()


@pytest.mark.usefixtures("terminal")
def test_progress_bars_errors_and_notes_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(HOSTILE, 1, 2)
        say(f"error: {HOSTILE}")
    shown = capsys.readouterr().err
    assert SHOWN.removesuffix(r"\n[/]") in shown
    assert rf"error: [red]a:x:\x1b[2J\u202e{chr(10)}[/]" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_lines_of_its_width_that_break_between_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    table = grid("t" * 100, "name", "why")
    path = f"/a/{'long-' * 15}path.onnx"
    table.add_row(path, " ".join(["because"] * 10))
    print_tables([table, facts("", {"name": " ".join(["word"] * 30)})])
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[:3] == ["t" * 100, f"  name{' ' * (len(path) - 2)}why", f"  {path}  because"]
    assert lines[3:13] == [f"  {' ' * len(path)}  because"] * 9 + [""]
    assert lines[13:] == ["  name" + "  word" + " word" * 13, "        word" + " word" * 13, "        word word"]


def test_elsewhere_each_row_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_tables([facts("", {"name": " ".join(["word"] * 30)})])
    assert capsys.readouterr().out == "  name" + "  word" + " word" * 29 + "\n"


_COMMAND = (sys.executable, "-c", "from yolact_deploy.cli import main; main()")


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("detect", "MODEL", "PHOTO", "--json")],
    ids=" ".join,
)  # fmt: skip
def test_output_for_which_there_is_no_room_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...], shapes_onnx: Path, tmp_path: Path
) -> None:
    paths = {"MODEL": str(shapes_onnx), "PHOTO": str(SHAPES / "val/val_public_0000.jpg")}
    command = [*_COMMAND, *(paths.get(argument, argument) for argument in arguments)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1] == "error: can't write to standard output: No space left on device."
    assert [line for line in lines if "bug" in line or "Traceback" in line or "Exception" in line] == []


@pytest.mark.parametrize(
    ("command", "as_json"),
    [
        *((command, True) for command in ("detect", "eval", "inspect", "lint", "bench", "doctor", "compare")),
        *((command, False) for command in ("detect", "inspect", "doctor")),
    ],
)
def test_no_command_takes_a_full_disk_for_a_bug(
    command: str, as_json: bool, shapes_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = SHAPES / "val/val_public_0000.jpg"
    arguments: dict[str, tuple[object, ...]] = {
        "detect": ("detect", shapes_onnx, photo, "--no-overlays"),
        "eval": ("eval", shapes_onnx, "--images", SHAPES / "val", "--annotations", SHAPES / "val/instances.json", "--limit", 1),
        "inspect": ("inspect", shapes_onnx),
        "lint": ("inspect", shapes_onnx, "--lint"),
        "bench": ("bench", shapes_onnx, "--iterations", 1, "--warmup", 0),
        "doctor": ("doctor",),
        "compare": ("compare", shapes_onnx, shapes_onnx, "--images", photo),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    monkeypatch.setattr("yolact_deploy.cli.console.say", said.append)
    for name in ("bench", "detect", "eval"):  # they took it by name
        module = {"eval": "evaluate"}.get(name, name)
        monkeypatch.setattr(f"yolact_deploy.cli.{module}.say", said.append, raising=False)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in (*arguments[command], *(["--json"] if as_json else []))])
        monkeypatch.undo()
    assert ended.value.code == 1
    assert said[-1] == "error: can't write to standard output: No space left on device."


@pytest.mark.parametrize(
    "arguments", [("--help",), ("inspect", "MODEL"), ("detect", "MODEL", "PHOTO", "--json")], ids=" ".join
)
def test_a_reader_that_has_seen_enough_hears_nothing(
    arguments: tuple[str, ...], shapes_onnx: Path, tmp_path: Path
) -> None:
    paths = {"MODEL": str(shapes_onnx), "PHOTO": str(SHAPES / "val/val_public_0000.jpg")}
    command = [*_COMMAND, *(paths.get(argument, argument) for argument in arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert [line for line in process.stderr.read().splitlines() if not line.startswith("note: ")] == []
    process.stderr.close()
    assert process.wait() in (1, 141)
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".journal"] == []


def test_a_full_stderr_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*_COMMAND, "inspect", "none.onnx"], stderr=full, stdout=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 2


def test_memory_that_is_not_there_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object) -> None:
        np.empty((1 << 40, 1 << 10))

    monkeypatch.setattr("yolact_deploy.diagnosis.examine", greedy)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "there is not enough memory for this: Unable to allocate" in result.stderr
    assert "bug" not in result.stderr


def test_the_command_line_prints_in_one_place() -> None:
    root = Path(__file__).parents[3]
    prints = re.compile(r"\bConsole\(|^ *print\(|typer\.echo\(|rich\.(table|markup|progress)", re.MULTILINE)
    elsewhere = [
        str(path.relative_to(root))
        for package in ("yolact_deploy", "exporters", "engines", "benchmarks")
        for path in sorted((root / package).rglob("*.py"))
        if "figures" not in path.parts  # the project's own, which print to whoever measures
        and path != root / "yolact_deploy/cli/console.py"
        and prints.search(path.read_text(encoding="utf-8"))
    ]
    assert elsewhere == []
