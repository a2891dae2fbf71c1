"""Names of classes and models: they are printed, drawn, and tell results apart."""

from __future__ import annotations

import dataclasses

import pytest

from tests.unit.hostile.json_readers import SPEC, with_names
from yolact_deploy.errors import SpecError
from yolact_deploy.text import is_printable, printable, shorten


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("\x1b[31mred", r"holds control characters: '\\x1b\[31mred'"),
        ("two\nlines", r"holds control characters: 'two\\nlines'"),
        ("nul\x00", "holds control characters"),
        ("\x9b31m", "holds control characters"),
        ("\u202eesrever", "holds control characters"),
        ("line\u2028", "holds control characters"),
        ("half \ud800", "holds control characters"),
        ("", "is empty"),
        (" \t", "is empty"),
        ("a" * 1_000_000, "has 1000000 characters, 200 are allowed: 'a{59}…'"),
    ],
)
def test_names_that_cannot_be_shown_are_refused(name: str, problem: str) -> None:
    with pytest.raises(SpecError, match=rf"class_names\[1\] {problem}"):
        with_names("disc", name)
    with pytest.raises(SpecError, match=f"^name {problem}"):
        dataclasses.replace(SPEC, name=name)


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(SpecError, match=r"class_names\[0\] and class_names\[2\] are both 'disc'"):
        with_names("disc", "bar", "disc")


@pytest.mark.parametrize("name", ["Käfer", "甲虫", "می‌روم", "a" * 200, "emoji 🚲", "it's", ":x:", "[red]"])
def test_names_of_every_language_are_taken(name: str) -> None:
    assert with_names(name).class_names == (name,)


def test_what_a_terminal_would_act_on_is_shown_as_escapes() -> None:
    assert printable("a\x1b[2J\r\nb\u202e\udcff") == r"a\x1b[2J\r\nb\u202e\udcff"
    assert printable("a\x07\nb", keep_newlines=True) == "a\\x07\nb"
    assert printable("Käfer 甲虫 \u200c") == "Käfer 甲虫 \u200c"
    assert is_printable("")
    assert not is_printable("\x7f")


def test_long_text_is_cut_after_it_is_escaped() -> None:
    assert shorten("\x00" * 1000, 10) == r"\x00\x00\…"
    assert shorten("short") == "short"
