from __future__ import annotations

import dataclasses
import fcntl
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.emulator.expectations import CROSS, SMALL
from yolact_deploy.cuda import cache as cubin_cache
from yolact_deploy.cuda import compile as compiler
from yolact_deploy.cuda import compile as nvrtc
from yolact_deploy.cuda.cache import cache_path, cache_state, cached, put
from yolact_deploy.cuda.compile import Nvrtc, cache_key, compiled_kernels, warm
from yolact_deploy.errors import MissingDependencyError, OutputError
from yolact_deploy.files import cache_folder

ROOT = Path(__file__).parents[3]
SOME = Nvrtc("libnvrtc.so.13", (13, 0), 100, (75, 86, 90))
needs_nvrtc = pytest.mark.skipif(not nvrtc.installed(), reason="needs the wheel nvidia-cuda-nvrtc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def refuse(message: str) -> None:
    raise AssertionError(message)


def test_an_image_is_made_once_and_found_again(folder: Path) -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"image"

    assert [cached("key", make, refuse) for _ in range(3)] == [b"image"] * 3
    assert len(made) == 1
    state = cache_state()
    assert (state.folder, state.entries, state.writable) == (folder, 1, True)
    assert state.size_bytes == (folder / "key.cubin").stat().st_size


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"!",
        lambda content: content[:-3] + b"???",
        lambda content: content[60:],
    ],
    ids=["empty", "cut", "longer", "changed", "headless"],
)
def test_a_damaged_file_is_made_again(damage: object, folder: Path) -> None:
    put("key", b"a cubin of some length")
    path = cache_path("key")
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert cached("key", lambda: b"made anew", refuse) == b"made anew"
    assert cached("key", lambda: pytest.fail("made twice"), refuse) == b"made anew"


def test_a_folder_that_can_not_be_written_costs_a_notice_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file" / "cache"))
    notices: list[str] = []
    assert cached("key", lambda: b"image", notices.append) == b"image"
    assert len(notices) == 1
    assert str(tmp_path / "file" / "cache") in notices[0]
    assert "YOLACT_DEPLOY_CACHE" in notices[0]
    assert not cache_state().writable


def test_a_lock_that_is_never_let_go_of_does_not_block_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_cache, "LOCK_TIMEOUT_S", 0.2)
    folder.mkdir(parents=True)
    with (folder / "key.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cached("key", lambda: b"image", refuse) == b"image"
    assert cached("key", lambda: pytest.fail("made twice"), refuse) == b"image"


def test_of_two_processes_that_start_at_once_one_compiles(folder: Path) -> None:
    code = (
        "import time\n"
        "from yolact_deploy.cuda.cache import cached\n"
        "def make():\n"
        "    print('compiles', flush=True)\n"
        "    time.sleep(1)\n"
        "    return b'image'\n"
        "assert cached('key', make, print) == b'image'"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(outputs) == ["", "", "compiles\n"]


def test_a_process_killed_while_it_compiles_leaves_nothing_that_blocks(folder: Path) -> None:
    code = "import os\nfrom yolact_deploy.cuda.cache import cached\ncached('key', lambda: os._exit(9), print)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    assert (folder / "key.lock").exists()
    assert cached("key", lambda: b"image", refuse) == b"image"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_the_folder_is_the_platforms_unless_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", "~/chosen")
    assert cache_folder("kernels") == tmp_path / "chosen" / "kernels"
    monkeypatch.delenv("YOLACT_DEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("kernels") == tmp_path / "xdg" / "yolact-deploy" / "kernels"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder("kernels") == tmp_path / ".cache" / "yolact-deploy" / "kernels"


def test_the_key_is_of_all_that_makes_the_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        cache_key(SMALL, "sm_90", SOME),
        cache_key(CROSS, "sm_90", SOME),
        cache_key(SMALL, "sm_86", SOME),
        cache_key(SMALL, "sm_90", dataclasses.replace(SOME, version=(13, 1))),
        cache_key(SMALL, "sm_90", dataclasses.replace(SOME, size_bytes=101)),
    ]
    monkeypatch.setattr(compiler, "kernel_source", lambda: "another source")
    keys.append(cache_key(SMALL, "sm_90", SOME))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert cache_key(SMALL, "sm_90", dataclasses.replace(SOME, path="elsewhere")) == keys[0]


@needs_nvrtc
def test_kernels_are_compiled_at_first_use_and_warmed_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    (fresh,) = warm([SMALL], ["sm_90"], progress=lambda done, total: steps.append((done, total)))
    assert (fresh.was_cached, fresh.architecture, fresh.specialization) == (False, "sm_90", SMALL)
    assert steps == [(0, 1), (1, 1)]
    (again,) = warm([SMALL], ["sm_90"])
    assert again.was_cached
    monkeypatch.setattr(Nvrtc, "compile", lambda *_: pytest.fail("compiled again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = compiled_kernels(SMALL, "sm_90")
    assert image.startswith(b"\x7fELF")


@needs_nvrtc
def test_kernels_that_can_not_be_kept_are_used_and_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(Nvrtc, "compile", lambda *_: (b"image", "no warnings"))
    with pytest.warns(RuntimeWarning, match="can't be kept in .*file"):
        assert compiled_kernels(SMALL, "sm_90") == b"image"
    with pytest.raises(OutputError, match="can't be kept"):
        warm([SMALL], ["sm_90"])


def test_a_cache_that_was_filled_elsewhere_is_enough_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ((12, 9), (13, 0), (14, 2)):
        made_by = dataclasses.replace(SOME, version=version)
        put(cache_key(SMALL, "sm_90", made_by), f"of {version[0]}".encode())
    monkeypatch.setattr(compiler, "installed", lambda: ())
    assert compiled_kernels(SMALL, "sm_90", driver_version=(13, 1)) == b"of 13"  # the newest that the driver loads
    assert compiled_kernels(SMALL, "sm_90", driver_version=(12, 4)) == b"of 12"
    for specialization, architecture, driver in (
        (CROSS, "sm_90", (13, 1)),
        (SMALL, "sm_86", (13, 1)),
        (SMALL, "sm_90", (11, 8)),
    ):
        with pytest.raises(MissingDependencyError, match="nvrtc"):
            compiled_kernels(specialization, architecture, driver_version=driver)


def test_a_damaged_entry_from_elsewhere_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ((12, 9), (13, 0)):
        put(cache_key(SMALL, "sm_90", dataclasses.replace(SOME, version=version)), f"of {version[0]}".encode())
    newest = cache_path(cache_key(SMALL, "sm_90", SOME))
    newest.write_bytes(newest.read_bytes()[:-1])
    monkeypatch.setattr(compiler, "installed", lambda: ())
    assert compiled_kernels(SMALL, "sm_90", driver_version=(13, 1)) == b"of 12"
