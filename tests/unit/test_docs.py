"""The documents name commands and options that exist, and every command is named."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.doc_outputs import PAGES, prepare, printed, transcripts
from yolact_deploy.cli import app
from yolact_deploy.runtime.protocols import DEVICE_STAGES

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/shapes/demo.sh"]
GROUP: Any = typer.main.get_command(app)


def _command_lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^(?: *|\$ )(yolact-deploy [a-z].*)$", text, flags=re.MULTILINE) + re.findall(
        r"`(yolact-deploy [a-z][^`]*)`", text
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_documents_exist_with_their_options(path: Path) -> None:
    for line in _command_lines(path):
        _, name, *arguments = shlex.split(line.partition("|")[0], comments=True)
        assert name in GROUP.commands, line
        known = {
            option
            for parameter in GROUP.commands[name].params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {argument for argument in arguments if re.match(r"--?[a-z]", argument)} <= known, line


@pytest.mark.parametrize("path", [page for page in PAGES if page.parent.name == "docs"], ids=lambda path: path.name)
def test_a_page_begins_with_a_command_and_what_it_prints(path: Path) -> None:
    before, _, block = path.read_text(encoding="utf-8").partition("```console\n")
    assert before.count("\n") < 12
    assert "\n#" not in before.lstrip("#")
    assert block.startswith("$ ")
    assert [command for command, output in transcripts(path) if not output.strip()] == []


def test_every_page_of_the_documents_is_made_again_with_the_others() -> None:
    assert {*PAGES} == {ROOT / "README.md", *(ROOT / "docs").glob("*.md")}


def _without_figures(output: str) -> str:
    """What of an output does not depend on the machine and the moment: not its numbers, digests and notes."""
    said = "\n".join(line for line in output.splitlines() if not line.startswith("note: "))
    return " ".join(re.sub(r"[0-9a-f]{40,}|\d[\d.]*(e-\d+)?", "#", said).split())


def _check_outputs(page: str, folder: Path) -> None:
    for command, output in transcripts(ROOT / "docs" / page):
        assert _without_figures(printed(command, folder)) == _without_figures(output), f"{command}: run `make docs`"


def test_the_output_of_inspect_in_the_documents_is_what_it_prints(shapes_onnx: Path, tmp_path: Path) -> None:
    shutil.copy(shapes_onnx, tmp_path / "shapes.onnx")
    _check_outputs("artifacts.md", tmp_path)


@pytest.mark.slow
@pytest.mark.needs("torch", "tensorrt_rtx")
@pytest.mark.parametrize(
    "page",
    [
        "custom-models.md",
        "python.md",
        "detect.md",
        "runtime.md",
        "end-to-end.md",
        "yolact-plus.md",
        "other-trainers.md",
    ],
)
def test_outputs_in_the_documents_are_what_the_commands_print(page: str, shapes_onnx: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    shutil.copy(shapes_onnx, tmp_path / "shapes.onnx")
    _check_outputs(page, tmp_path)


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in GROUP.commands if f"yolact-deploy {name}" not in readme] == []


def test_every_command_and_option_has_help() -> None:
    for name, command in GROUP.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p.suffix == ".md"], ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_stages_are_documented_by_the_names_that_timed_and_bench_give_them() -> None:
    text = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+)`", text)
    assert [stage for stage in DEVICE_STAGES if stage not in named] == []


def _help(*command: str, columns: int = 1000) -> str:
    return CliRunner().invoke(app, [*command, "--help"], terminal_width=columns).stdout


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("name", GROUP.commands)
def test_help_breaks_no_option_name_and_no_choice(name: str, columns: int) -> None:
    shown = _help(name, columns=columns)
    assert max(map(len, shown.splitlines())) <= columns
    whole = [word for word in _help(name).split() if "--" in word or "|" in word]
    assert [word for word in whole if word not in shown.split()] == []


def test_the_list_of_commands_is_whole_on_a_narrow_terminal() -> None:
    shown = "".join(_help(columns=60).split())
    assert [name for name, command in GROUP.commands.items() if "".join(command.help.split()) not in shown] == []


def test_help_names_the_opsets_that_are_accepted() -> None:
    pytest.importorskip("torch")
    from exporters.onnx_export import SUPPORTED_OPSETS

    (opset,) = (parameter for parameter in GROUP.commands["export"].params if parameter.name == "opset")
    assert tuple(range(opset.min, opset.max + 1)) == SUPPORTED_OPSETS
    assert f"{SUPPORTED_OPSETS[0]}<=x<={SUPPORTED_OPSETS[-1]}" in _help("export")


def test_each_test_that_holds_a_promise_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [
        f"{file}::{test}" for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    promises = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text.partition("## How")[0], flags=re.MULTILINE)
    assert [promise for promise, tests in promises if "::test_" not in tests] == ["promise"]
