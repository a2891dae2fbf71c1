from __future__ import annotations

from pathlib import Path

import pytest

from yolact_deploy.errors import MissingDependencyError, OutputError
from yolact_deploy.files import atomic_path, check_writable, sha256_file, write_json
from yolact_deploy.optional import require


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.suffix == ".onnx"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        _write_half(temporary, error)
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def _write_half(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def test_a_target_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target, reason in (
        (tmp_path / "none" / "a.json", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "a.json", "Not a directory"),
    ):
        with pytest.raises(OutputError, match=reason):
            check_writable(target)
        with pytest.raises(OutputError, match=reason):
            write_json(target, {})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_missing_package_is_an_error_with_the_install_command() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[gpu\]"):
        require("no_such_module.sub", extra="gpu", purpose="running on a GPU", package="no-such")


def test_a_broken_package_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import its_missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency"):
        require("broken_package", extra="gpu", purpose="x")
