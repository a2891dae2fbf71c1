"""The proofs of a visit to a GPU machine, without pytest: `benchmarks.figures.gpu` runs each in a process of its own.

What holds is kept claim by claim: {"claims": {name: "holds" or why not}, "said"}. A claim that ends the process, or leaves a GPU
that can do no more in it, costs that claim alone: the part is started again with those that are left.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.figures.gpu import AGAIN
from benchmarks.figures.gpu_parts import find_tool, kept_heads
from benchmarks.figures.gpu_report import Visit, run_part
from tests.emulator.checks import CHECKS
from tests.emulator.expectations import expect_masks, expect_reference
from tests.emulator.originals import CASES, MODES, expect_original
from tests.emulator.pipeline import Pipeline
from tests.goldens import golden_net
from tests.gpu.equality import SPECIALIZATIONS, expect_emulators_bits, expect_emulators_case
from tests.gpu.runner import gpu
from tests.gpu.sanitized import GOLDENS
from yolact_deploy.cuda.specialization import specialize
from yolact_deploy.errors import DeviceError
from yolact_deploy.reference.postprocess import make_priors
from yolact_deploy.spec import NmsMode

Claims = Mapping[str, Callable[[], object]]
HOLDS = "holds"
REHEARSED_CHECKS = ("confidence_exactly_at_the_threshold_is_dropped", "p17_small, fast, is the original's")
_IMAGE_HW = (480, 640)  # of the recorded image
_LEAST_S = 2.0  # left, without which no claim is begun
_WHY_CHARACTERS = 600
_SCORE_ERROR = 1e-4  # of convolutions that add in another order
_SANITIZER_START_S = 10.0  # for the sanitizer to end in, and to sum up


def smoke(visit: Visit) -> None:
    """The recorded scene: the reference's bits, and the original's detections."""
    spec, recorded = kept_heads(visit)
    inputs = {**recorded._asdict(), "priors": np.array(make_priors(spec))}

    def prove(nms: NmsMode, name: str) -> None:
        specialization = specialize(spec, nms=nms)
        pipeline = Pipeline(gpu(specialization), specialization)
        (raw,) = expect_reference(pipeline, inputs, image_hw=_IMAGE_HW)
        (masks,) = expect_masks(pipeline, [raw], _IMAGE_HW)
        golden = golden_net("yolact_resnet50")
        ours, theirs = (
            _by_class_and_prior(raw.class_ids, raw.prior_idx),
            _by_class_and_prior(golden[f"{name}.class"], golden[f"{name}.prior_idx"]),
        )  # scores that are as good as equal may be in another order
        np.testing.assert_array_equal(raw.prior_idx[ours], golden[f"{name}.prior_idx"][theirs])
        np.testing.assert_array_equal(raw.class_ids[ours], golden[f"{name}.class"][theirs])
        np.testing.assert_allclose(raw.scores[ours], golden[f"{name}.score"][theirs], rtol=0, atol=_SCORE_ERROR)
        difference = np.abs(masks.sum((1, 2))[ours] - golden[f"{name}.post.mask_area"][theirs])
        if (difference > golden[f"{name}.post.mask_border_1e-3"][theirs]).any():
            raise AssertionError(f"masks have other areas than the original's, by {difference.max()} pixels")

    modes: dict[str, tuple[NmsMode, str]] = {"fast": ("fast", "det_fast"), "cross-class": ("cross_class", "det_cross")}
    _prove(visit, "smoke", {name: partial(prove, *mode) for name, mode in modes.items()})


def _by_class_and_prior(class_ids: Any, prior_idx: Any) -> Any:
    return np.lexsort((prior_idx, class_ids))


def checks(visit: Visit) -> None:
    """Every case of the original and every directed claim; where there is a compiler, that every bit is the emulator's."""
    claims: dict[str, Callable[[], object]] = {
        f"{case['id']}, {mode}, is the original's": partial(expect_original, gpu, case, mode)
        for mode in MODES
        for case in CASES
    }
    claims |= {name: partial(check, gpu) for name, check in CHECKS.items()}
    if shutil.which("g++") is not None:
        claims |= {
            f"every bit of random heads is the emulator's, {specialization}": partial(
                expect_emulators_bits, specialization
            )
            for specialization in SPECIALIZATIONS
        }
        claims |= {
            f"{case['id']}, {mode}, is the emulator's": partial(expect_emulators_case, case, mode)
            for mode in MODES
            for case in CASES
        }
    if visit.rehearsal:
        claims = {name: claims[name] for name in REHEARSED_CHECKS}
    _prove(visit, "checks", claims)


def detector(visit: Visit) -> None:
    """Detectors on the GPU, against the CPU path."""
    from tests.gpu.detector_claims import detector_claims

    _prove(visit, "detector", detector_claims(visit))


def sanitizer(tool: str, visit: Visit) -> None:
    """A tool of compute-sanitizer over claims, as many as there is time for: what it finds, and what it watched."""
    program = find_tool("compute-sanitizer")
    if program is None:
        visit.report.keep(tool, {"claims": {}, "said": "compute-sanitizer is not installed"})
        return
    kept_heads(visit)  # made where nobody watches
    seconds = max(visit.seconds_left - _SANITIZER_START_S, 1)
    command = [program, "--tool", tool, "--error-exitcode", "66", sys.executable, "-m", "tests.gpu.sanitized"]
    command += ["--seconds", f"{seconds:.0f}", "--heads", str(visit.heads_file), *GOLDENS[: int(visit.rehearsal)]]
    left = max(visit.seconds_left, 1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        printed, code = done.stdout + done.stderr, str(done.returncode)
    except subprocess.TimeoutExpired as exc:
        printed, code = _text(exc.stdout) + _text(exc.stderr), "none, its time was up"
    begun = re.findall(r"^(\S+) begins$", printed, re.MULTILINE)
    ended = re.findall(r"^(\S+) done$", printed, re.MULTILINE)
    summaries = re.findall(r"^=+ (\w+ SUMMARY: .*)$", printed, re.MULTILINE)
    # initcheck may tell of results copied to the host whole, of which no kernel wrote all
    is_clean = "Uninitialized __global__" not in printed if tool == "initcheck" else code == "0" and bool(summaries)
    is_clean = is_clean and bool(ended) and begun == ended
    claims = {name: HOLDS if name in ended else "not ended" for name in begun}
    if not is_clean:
        claims["nothing is found"] = printed[-_WHY_CHARACTERS:].strip() or f"exit code {code}"
    said = f"exit code {code}; {'; '.join(summaries) or 'no summary'}"
    visit.report.keep(tool, {"claims": claims, "said": said, "tail": "" if is_clean else printed[-4000:]})
    if not is_clean:
        raise SystemExit(said)


def _prove(visit: Visit, part: str, claims: Claims) -> None:
    """Each in turn. Raises SystemExit with AGAIN where the process can't go on, with 1 where a claim fails or is not reached."""
    state: dict[str, Any] = visit.report.read().get(part, {}) if visit.again else {}
    found: dict[str, str] = state.get("claims", {})
    if "running" in state:
        found[state["running"]] = "the process ended in its midst"
    for name, claim in claims.items():
        if name in found:
            continue
        if visit.seconds_left < _LEAST_S:
            break
        visit.report.keep(part, {"claims": found, "running": name})
        found[name] = _held(claim, leaves=partial(_give_up, visit, part, found, name))
    missing = len(claims) - len(found)
    said = f"{missing} were not reached in time" if missing else ""
    visit.report.keep(part, {"claims": found, "said": said})
    bad = [name for name, why in found.items() if why != HOLDS]
    if bad or missing:
        raise SystemExit("; ".join(filter(None, [said, *bad])))


def _held(claim: Callable[[], object], leaves: Callable[[str], None]) -> str:
    try:
        claim()
    except Exception as exc:  # whatever a claim raises is why it does not hold
        traceback.print_exc()
        why = " ".join(f"{type(exc).__name__}: {exc}".split())[:_WHY_CHARACTERS]
        if isinstance(exc, DeviceError):
            leaves(why)
        return why
    return HOLDS


def _give_up(visit: Visit, part: str, found: dict[str, str], name: str, why: str) -> None:
    visit.report.keep(part, {"claims": {**found, name: why}})
    raise SystemExit(AGAIN)


def _text(printed: str | bytes | None) -> str:
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""


TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PARTS: Mapping[str, Callable[[Visit], None]] = {
    "smoke": smoke,
    "checks": checks,
    "detector": detector,
    **{tool: partial(sanitizer, tool) for tool in TOOLS},
}

if __name__ == "__main__":
    run_part(dict(PARTS))
