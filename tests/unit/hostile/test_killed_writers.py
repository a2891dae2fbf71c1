"""What writers leave behind that were killed, and what errors of writing say."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_deploy.errors import ExportError, OutputError
from yolact_deploy.files import atomic_path, write_json, write_text

WRITER = """
import sys
from yolact_deploy.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    sys.stdin.readline()
"""


def _start_writer(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process half-way through writing `target`, and the temporary file that it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def _end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    process.send_signal(how)
    process.communicate()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_of_a_target_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    killed, left = _start_writer(target)
    _end(killed, signal.SIGKILL)
    assert _names(tmp_path) == [left.name]
    write_text(target, "whole")
    assert _names(tmp_path) == ["m.onnx"]
    assert target.read_text() == "whole"


def test_several_writers_that_were_killed_leave_nothing_either(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    writers = [_start_writer(target) for _ in range(3)]
    assert len({temporary for _, temporary in writers}) == 3
    for process, _ in writers:
        _end(process, signal.SIGKILL)
    assert len(_names(tmp_path)) == 3
    write_text(target, "whole")
    assert _names(tmp_path) == ["m.onnx"]


def test_a_living_writer_is_left_alone_and_the_last_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    living, temporary = _start_writer(target)
    write_text(target, "first")
    assert temporary.read_text() == "half"
    living.communicate("go on\n")
    assert living.returncode == 0
    assert target.read_text() == "half"
    assert _names(tmp_path) == ["m.onnx"]


def test_other_targets_and_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    killed, left = _start_writer(tmp_path / "other.onnx")
    _end(killed, signal.SIGKILL)
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".m.tmp.onnx").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".m.tmp1.onnx").mkdir()
    write_text(tmp_path / "m.onnx", "whole")
    assert _names(tmp_path) == sorted([left.name, ".m.tmp.onnx", ".m.tmp1.onnx", "elsewhere", "m.onnx"])
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_file_written_within_another_one_makes_no_temporary_of_its_own(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "m.onnx") as outer:
        with atomic_path(outer) as inner:
            assert inner == outer
        write_json(outer, {"a": 1})
        assert _names(tmp_path) == [outer.name]
    assert _names(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("nested", [False, True])
def test_errors_name_the_target_and_not_the_temporary_file(tmp_path: Path, nested: bool) -> None:
    target = tmp_path / "m.onnx"

    def fail(error: Exception) -> None:
        with atomic_path(target) as temporary:
            if nested:
                with atomic_path(temporary):
                    raise error
            raise error

    with pytest.raises(OutputError, match=rf"can't write {target}: No space left on device\.$"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(OutputError, match=rf"can't write {target}: Permission denied: /etc/shadow\.$"):
        fail(PermissionError(13, "Permission denied", "/etc/shadow"))
    temporary = tmp_path / ".m.tmp.onnx"
    with pytest.raises(ExportError, match=rf"^{target} and m\.onnx are broken$"):
        fail(ExportError(f"{temporary} and {temporary.name} are broken"))
    assert _names(tmp_path) == []


def test_a_disk_that_is_full_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_text("old")
    limited = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from yolact_deploy.files import write_text\n"
        "write_text(sys.argv[1], 'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", limited, str(target)], capture_output=True, text=True)
    assert f"OutputFailure: can't write {target}: File too large." in done.stderr
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["m.onnx"]
