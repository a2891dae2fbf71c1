"""Fuzzing by hand.

make fuzz MINUTES=10                         # or INPUTS=100000; SEED=n repeats a run
python -m tests.fuzz --replay FILE           # an input that was kept, again
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.fuzz import child
from tests.fuzz.campaign import TABLE, run


def main() -> int:
    """Exit code 1 where an input broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="how long; without it and --inputs, one minute")
    parser.add_argument("--inputs", type=int, help="how many instead")
    parser.add_argument("--seed", type=int, help="of the run to repeat; any without it")
    parser.add_argument(
        "--target", action="append", default=[], choices=sorted(child.table_of(TABLE)), help="all without it"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for what broke a promise")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one input that was kept there")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(
            options.replay.resolve(), options.target[0] if options.target else options.replay.resolve().parent.name
        )
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    report = run(
        options.failures,
        seed=seed,
        inputs=options.inputs,
        minutes=options.minutes or (None if options.inputs else 1),
        workers=options.workers,
        only=tuple(options.target),
    )
    print(report.table())
    for finding in report.findings:
        print(f"\n{finding['target']}: {finding['what']}\n{finding['trace']}")
        print(f"again: python -m tests.fuzz --replay '{finding['file']}'")
    return 1 if report.findings else 0


def replay(file: Path, name: str) -> int:
    """Try one input, in this process. Without --target, it is the name of the file's folder."""
    target = child.table_of(TABLE)[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        scratch = Path(folder).resolve() / "scratch"
        child.prepare(scratch)
        watch = child.Watch(scratch, sys.stderr)
        path = child.lay_out(target, scratch)
        child.warm_up(target, path, target.seeds(Path(folder)))
        shutil.copyfile(file, path)
        try:
            taken = child.try_input(target, path, watch)
        except BaseException as exc:
            print(child.describe(exc)["trace"])
            return 1
    print("taken" if taken else "refused in words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
