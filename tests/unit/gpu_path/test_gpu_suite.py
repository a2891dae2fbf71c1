"""`tests/gpu` over the stand-in libcuda: what a GPU machine is to run has run before it gets there."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.emulator import standin
from tests.emulator.driver import EmulatedDriver
from tests.emulator.expectations import SMALL, expect_masks, expect_reference, heads
from tests.emulator.originals import CASES
from tests.emulator.pipeline import Pipeline
from tests.emulator.unwritten import written_bytes
from tests.goldens import SHAPES_SPEC, postgen
from tests.gpu.runner import GpuRunner
from yolact_deploy.cuda.launches import ARGUMENTS
from yolact_deploy.cuda.specialization import Specialization, specialize
from yolact_deploy.spec import ModelSpec

ROOT = Path(__file__).parents[3]
CASE = "p17_small"
SELECTED = [
    f"tests/gpu/test_kernels.py::test_detections_boxes_and_masks_are_the_originals[{CASE}-fast]",
    f"tests/gpu/test_kernels.py::test_every_bit_of_the_originals_cases_is_the_emulators[{CASE}-fast]",
    "tests/gpu/test_kernels.py::test_kernels[confidence_exactly_at_the_threshold_is_dropped]",
    f"tests/gpu/test_kernels.py::test_every_bit_of_random_heads_is_the_emulators[{SMALL}]",
    "tests/gpu/test_detector.py::test_from_the_same_heads_every_bit_is_the_cpu_paths[True]",
    "tests/gpu/test_detector.py::test_from_the_same_heads_every_bit_is_the_cpu_paths[False]",
]


@pytest.mark.slow
@pytest.mark.needs("cuda.bindings")
def test_the_gpu_suite_passes_on_emulated_kernels(tmp_path: Path) -> None:
    specializations = [SMALL, _of_case(), specialize(ModelSpec.from_file(SHAPES_SPEC))]
    environment = standin.environment(cache_dir=tmp_path / "cache", specializations=specializations)
    results = tmp_path / "results.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={results}"]
    done = subprocess.run([*command, *SELECTED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    (suite,) = ElementTree.parse(results).iter("testsuite")
    assert (suite.get("tests"), suite.get("skipped")) == (str(len(SELECTED)), "0")


def _of_case() -> Specialization:
    inputs = postgen().make_case(next(case for case in CASES if case["id"] == CASE)["spec"])
    return Specialization(inputs["conf"].shape[2] - 1, inputs["proto"].shape[3])


def test_memory_that_nobody_wrote_is_not_uploaded_for_the_sanitizer() -> None:
    """initcheck takes for written what was uploaded."""
    driver = EmulatedDriver()
    with driver.current():
        kernels = driver.load_kernels(SMALL)
    inputs = heads(37, SMALL, priors=70)
    pipeline = Pipeline(GpuRunner(driver, kernels, guards=False), SMALL)
    expect_masks(pipeline, expect_reference(pipeline, inputs, image_hw=(9, 13)), (9, 13))
    fresh = {name for name, array in pipeline.arrays.items() if written_bytes(array) is not None}
    assert {"candidate_boxes", "count", "scores", "mask_words"} <= fresh
    assert not fresh & inputs.keys()
    uploaded = sum(
        pipeline.arrays[name].nbytes * launches
        for kernel, launches in driver.launches.items()
        for name, kind in ARGUMENTS[kernel]
        if kind == "pointer" and name not in fresh
    )
    assert driver.copied["to_device"] == uploaded
    del pipeline
    gc.collect()
    with driver.current():
        kernels.close()
    assert not driver.left_over
