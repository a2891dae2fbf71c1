"""The kernels compile for every GPU generation, in registers alone."""

from __future__ import annotations

import re

import pytest

from yolact_deploy.cuda.compile import Nvrtc, choose_nvrtc, installed
from yolact_deploy.cuda.launches import ARGUMENTS
from yolact_deploy.cuda.program import BatchLayout, BatchProgram, ImageKind, ModelConstants, Request
from yolact_deploy.cuda.specialization import Geometry, Specialization, compile_options, kernel_source

COCO = Specialization(num_classes=80, num_coeff=32)
OTHERS = {
    "half": Specialization(
        80, 32, conf_logits=True, loc_fp16=True, conf_fp16=True, coeff_fp16=True, proto_fp16=True, input_fp16=True
    ),
    "padded": Specialization(80, 32, clip_boxes=True, pad=True),
    "cross_class": Specialization(80, 32, cross_class=True),
    "large": Specialization(365, 64, top_k=1024, max_detections=1024, conf_logits=True),
    "small": Specialization(1, 1, top_k=1, max_detections=1),
    "other blocks": Specialization(80, 32, geometry=Geometry(16, 4, 3, 128, 64, 256, 128, 64)),
}
REGISTERS_OF_A_BLOCK = 65536
SHARED_BYTES_OF_A_BLOCK = 48 * 1024

pytestmark = pytest.mark.skipif(not installed(), reason="needs the wheel nvidia-cuda-nvrtc")


@pytest.mark.parametrize(
    "architecture",
    [75, 90, *(pytest.param(architecture, marks=pytest.mark.slow) for architecture in (80, 86, 87, 89, 100, 120))],
)
def test_compiles_without_spills_or_stack(architecture: int) -> None:
    check_compiles(installed()[0], COCO, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("nvrtc", installed()[1:], ids=lambda nvrtc: nvrtc.name)
@pytest.mark.parametrize("architecture", [75, 90, 120])
def test_older_compilers_make_no_spills_or_stack_either(nvrtc: Nvrtc, architecture: int) -> None:
    check_compiles(nvrtc, COCO, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_specializations_compile_without_spills_or_stack(name: str) -> None:
    check_compiles(installed()[0], OTHERS[name], 75)


def test_no_fused_multiply_add_is_left_to_the_compiler() -> None:
    source = 'extern "C" __global__ void f(float* x) { x[0] = x[1] * x[2] + x[3]; }'
    exact = compile_options(COCO, "sm_90")
    fused = [option for option in exact if option != "--fmad=false"]
    nvrtc = choose_nvrtc("sm_90")
    assert nvrtc.compile(source, fused)[0] != nvrtc.compile(source, exact)[0]


def check_compiles(nvrtc: Nvrtc, specialization: Specialization, architecture: int) -> None:
    options = [*compile_options(specialization, f"sm_{architecture}"), "--ptxas-options=-v"]
    cubin, log = nvrtc.compile(kernel_source(), options)
    assert cubin.startswith(b"\x7fELF")
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(stacks) >= len(ARGUMENTS)
    assert set(stacks) == {("0", "0", "0")}, log
    threads = _threads(specialization)
    used = dict(re.findall(r"Function properties for (\w+)\n.*\n.*Used (\d+) registers", log))
    shared = dict(re.findall(r"Function properties for (\w+)\n.*\n.* (\d+) bytes smem", log))
    assert set(used) >= set(ARGUMENTS)
    for kernel, registers in used.items():
        assert int(registers) * threads[kernel] <= REGISTERS_OF_A_BLOCK
        assert int(shared.get(kernel, 0)) <= SHARED_BYTES_OF_A_BLOCK


def _threads(specialization: Specialization) -> dict[str, int]:
    """Of a block of every kernel."""
    model = ModelConstants(specialization, 64, 64, (64, 64), {}, scores_masks=True)
    layout = BatchLayout((ImageKind((64, 64), is_rgb=False, on_device=False),))
    found: dict[str, int] = {"hold_stream": 1}
    for request in (Request(masks="rle"), Request(masks="dense")):
        program = BatchProgram(model, layout, request)
        at = dict.fromkeys([*program.staging, *program.workspace, *program.results], 0)
        for launch, _ in (*program.preprocess(at), *program.detect(at), *program.masks(at)):
            found[launch.kernel] = launch.block[0] * launch.block[1] * launch.block[2]
    return found
