"""Every file that others may have written is taken, or refused in words: 5,000 changed ones are tried, some in `make test`.

What is promised of each is in docs/reliability.md; `make fuzz` tries as many as there is time for.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")
if sys.platform != "linux":
    pytest.skip("memory and processes are watched as Linux does it", allow_module_level=True)

from tests.fuzz import child, planted
from tests.fuzz.campaign import Report, run
from tests.fuzz.targets import TARGETS
from yolact_deploy.errors import YolactDeployError

SEED = 20  # of all that is tried here; `make fuzz` takes another each time
FEW, MANY = 300, 5_000


def _told(report: Report) -> str:
    return "\n".join(
        f"{found['target']}: {found['what']} ({found['file']})\n{found['trace']}" for found in report.findings
    )


def test_some_hundred_inputs_are_taken_or_refused_in_words(tmp_path: Path) -> None:
    report = run(tmp_path, seed=SEED, inputs=FEW, workers=1)
    assert not report.findings, _told(report)
    assert sum(tally.inputs for tally in report.tallies.values()) >= FEW
    assert set(report.tallies) == set(TARGETS)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_thousands_of_inputs_are_taken_or_refused_in_words(tmp_path: Path, half: int) -> None:
    report = run(tmp_path, seed=SEED, inputs=MANY // 2, first=FEW + half * MANY, workers=1)
    assert not report.findings, _told(report)
    assert sum(tally.inputs for tally in report.tallies.values()) >= MANY // 2
    assert all(tally.refused for tally in report.tallies.values() if tally is not report.tallies["layers"])


def test_what_is_changed_is_taken_as_long_as_it_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the changes would try nothing but the first check."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(scratch)
    for name, target in TARGETS.items():
        path = child.lay_out(target, scratch)
        taken = [0] * len(target.readers)
        for data in target.seeds(tmp_path):
            path.write_bytes(data)
            for number, reader in enumerate(target.readers):
                with contextlib.suppress(YolactDeployError):
                    reader(path)
                    taken[number] += 1
        assert name == "name" or all(taken), name


@pytest.fixture(scope="module")
def of_planted(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A run over readers with a fault each."""
    folder = tmp_path_factory.mktemp("planted")
    return run(folder, seed=1, inputs=6 * len(planted.TARGETS), workers=1, table=planted.__name__, hang_s=4)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("raises", "ValueError: invalid literal"),
        ("exits", "SystemExit: 0"),
        ("warns", "RuntimeWarning: overflow"),
        ("hangs", "hangs"),
        ("crashes", "ends the process (SIGSEGV)"),
        ("leaves a file", "left ['left'] behind"),
        ("leaves a temporary file", "behind"),
        ("runs code", "os.system"),
        ("connects", "socket.getaddrinfo"),
        ("reads elsewhere", "opened /etc/passwd"),
        ("takes memory", "took "),
        ("takes too much memory", "MemoryError"),
        ("says nothing", "an empty message"),
        ("says too much", "a message of 5000 characters"),
        ("says an escape", r"a message with '\x1b'"),
        ("says half a character", r"a message with '\udcff'"),
    ],
)
def test_a_fault_is_found_and_its_input_kept(of_planted: Report, target: str, what: str) -> None:
    tally = of_planted.tallies[target]
    assert tally.inputs == 6, "what comes after the fault is tried as well"
    assert [what in found["what"] for found in tally.findings] == [True], tally.findings
    assert Path(tally.findings[0]["file"]).read_bytes() == planted.BAD


def test_a_refusal_in_words_is_no_fault(of_planted: Report) -> None:
    tally = of_planted.tallies["refuses"]
    assert (tally.findings, tally.taken + tally.refused) == ([], 6)
    assert tally.refused == 1


def test_an_input_is_the_same_in_every_run(tmp_path: Path) -> None:
    target = TARGETS["spec text"]
    seeds = target.seeds(tmp_path)
    first, again = ([target.input("spec text", seeds, SEED, number) for number in range(50)] for _ in range(2))
    assert first == again
    assert first != [target.input("spec text", seeds, SEED + 1, number) for number in range(50)]


@pytest.mark.slow
def test_a_kept_input_is_tried_again_by_one_command(tmp_path: Path) -> None:
    kept = tmp_path / "spec text" / "1.json"
    kept.parent.mkdir()
    kept.write_bytes(b"{}")
    command = [sys.executable, "-m", "tests.fuzz", "--replay", str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=child.ROOT)
    assert (done.returncode, done.stdout) == (0, "refused in words\n"), done.stderr
