from __future__ import annotations

from tests.emulator.sweep_exp import disagreements


def test_exp_is_the_references_on_millions_of_values() -> None:
    """Every 97th float32; `python -m tests.emulator.sweep_exp` takes them all."""
    compared, different = disagreements(97)
    assert compared > 5_000_000
    assert different == 0
