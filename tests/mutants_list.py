"""Mistakes that somebody could make, each with the test that notices it: for mutants.py."""

from __future__ import annotations

from typing import NamedTuple

import mutants_calls
import mutants_numbers


class Mutant(NamedTuple):
    """One piece of text in place of another, which its file has once."""

    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(file, *mutant)
    for by_file in (mutants_numbers.BY_FILE, mutants_calls.BY_FILE)
    for file, mutants in by_file.items()
    for mutant in mutants
]
