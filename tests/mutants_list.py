"""Mistakes that somebody could make, each with the test that notices it: for mutants.py."""

from __future__ import annotations

from typing import NamedTuple

import mutants_calls
import mutants_numbers
import mutants_rooms


class Mutant(NamedTuple):
    """One piece of text in place of another, which its file has once."""

    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(file, *mutant)
    for by_file in (mutants_numbers.BY_FILE, mutants_calls.BY_FILE, mutants_rooms.BY_FILE)
    for file, mutants in by_file.items()
    for mutant in mutants
]

# What no test notices, and why it may be left so; the last column in place of a test.
NOT_NOTICED = [
    Mutant(
        "kernels/persistent_tiles.py",
        "row = b if S.PACKED else tl.minimum(b, B - 1)",
        "row = b",
        "sequences that do not exist wait for rows of the next step, or past the tensor: not in the batches of quick "
        "tests",
    ),
    Mutant(
        "trigru/operators/__init__.py",
        "recording = site.recording or torch._C._get_tracing_state() is not None",
        "recording = True",
        "equal results; more is kept than has to be",
    ),
    Mutant(
        "trigru/operators/derivative.py",
        "x.view_as(x) if higher and x.requires_grad else",
        "x if higher and x.requires_grad else",
        "second derivatives of tied weights, of which there is no test",
    ),
    Mutant(
        "trigru/operators/derivative.py",
        "needed[2] = False",
        "needed[2] = needed[2]",
        "a derivative that nobody asks for, as the input of frozen layers takes none",
    ),
    Mutant(
        "trigru/checks.py",
        "if shape[-1] != layer.input_size:",
        "if False:",
        "the module's own check comes first, and the function takes input_size from the input",
    ),
    Mutant(
        "trigru/convert/weights.py",
        "given = given.detach().cpu().contiguous()",
        "given = given.detach()[:]",
        "equal on a CPU, where the tests run",
    ),
]
