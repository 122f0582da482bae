"""The list of mutants fits the sources as they are; mutants.py runs it."""

from __future__ import annotations

import re

import pytest
from mutants import ROOT, mutated
from mutants_list import MUTANTS, NOT_NOTICED


@pytest.mark.parametrize("mutant", MUTANTS, ids=range(len(MUTANTS)))
def test_a_mutant_changes_its_file_in_one_place_and_names_a_test(mutant):
    assert mutated(mutant) != (ROOT / mutant.file).read_text()
    file, _, test = mutant.test.partition("::")
    assert re.search(rf"^def {test.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("mutant", NOT_NOTICED, ids=range(len(NOT_NOTICED)))
def test_a_mutant_that_is_not_noticed_still_is_one(mutant):
    assert mutated(mutant) != (ROOT / mutant.file).read_text()
