"""The outputs in docs/ and in the README: what stands under a "$ " line in a block of ```console is what that command printed.

`make docs` runs them all again, in one scratch folder with the bundled examples/, and writes what they print now into the pages.
`python -m tests.doc_outputs PAGE...` does so for single pages; what they take from others is made first.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In this order: later pages use files that commands of earlier ones wrote.
PAGES = tuple(
    ROOT / page
    for page in (
        "docs/custom-models.md",
        "README.md",
        "docs/python.md",
        "docs/detect.md",
        "docs/artifacts.md",
        "docs/exactness.md",
        "docs/precision.md",
        "docs/compare.md",
        "docs/benchmarking.md",
        "docs/runtime.md",
        "docs/runtimes.md",
        "docs/end-to-end.md",
        "docs/yolact-plus.md",
        "docs/other-trainers.md",
        "docs/reliability.md",
    )
)
COLUMNS = 100  # of the terminal that the commands print to
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)


def transcripts(page: Path) -> Iterator[tuple[str, str]]:
    """Each command of a page, with the output that stands there."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        _, *parts = _COMMAND.split(block)
        yield from zip(parts[::2], parts[1::2], strict=True)


def prepare(folder: Path) -> None:
    """What commands find where they run: the bundled examples, and two checkpoints that can't be bundled, without training."""
    (folder / "examples").symlink_to(ROOT / "examples")
    _write_checkpoints(folder)


def printed(command: str, folder: Path) -> str:
    """What a terminal of `COLUMNS` columns shows of a command that runs in `folder`."""
    terminal, end = pty.openpty()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(COLUMNS),
        "LINES": "50",
        "TERM": "dumb",  # neither colours nor progress bars
    }
    process = subprocess.Popen(
        ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=end, stderr=end, cwd=folder, env=environment
    )
    os.close(end)
    output = b""
    try:
        while chunk := os.read(terminal, 1 << 16):
            output += chunk
    except OSError:  # how Linux says that nobody has the other end open
        pass
    process.wait()
    os.close(terminal)
    text = output.decode("utf-8").replace("\r\n", "\n")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def refreshed(text: str, folder: Path) -> str:
    """The text of a page with what its commands print now."""

    def block_again(block: re.Match[str]) -> str:
        commands = _COMMAND.split(block[1])[1::2]
        return "```console\n" + "\n".join(f"$ {line}\n{printed(line, folder)}" for line in commands) + "```"

    return _BLOCK.sub(block_again, text)


def _write_checkpoints(folder: Path) -> None:
    import torch

    from tests.unit.exporters.plus_models import SMALL_PLUS, random_plus
    from tests.unit.exporters.trainer_states import mmdetection

    torch.save(random_plus().state_dict(), folder / "small_plus.pth")
    (folder / "small_plus.json").write_text(SMALL_PLUS.to_json(), encoding="utf-8")
    empty = {name: torch.zeros_like(tensor) for name, tensor in mmdetection().items()}
    torch.save({"state_dict": empty}, folder / "epoch_55.pth")


def main(*names: str) -> None:
    """Write the pages again, or those that are named; the files that they need of others are made on the way."""
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch))
        for page in PAGES:
            text = refreshed(page.read_text(encoding="utf-8"), Path(scratch))
            if not names or page.name in names:
                page.write_text(text, encoding="utf-8")
            if names and page.name == names[-1]:
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
