"""How the lists of mutants name tests, as pytest takes them; one parameter set is enough."""

from __future__ import annotations


def sized(schedule: str, variant: str, rows: str = "padded-forward") -> str:
    return f"tests/test_schedules.py::test_every_size[sm_90-{schedule}-{variant}-{rows}-(3, 2, 5, 7)]"


def eager(variant: str, direction: str = "forward", rows: str = "padded", bias: str = "bias") -> str:
    return f"tests/test_eager.py::test_small[{variant}-{direction}-{bias}-{rows}-(9, 4, 1, 33)-float64]"


def named(file: str, test: str) -> str:
    return f"tests/{file}.py::test_{test}"
