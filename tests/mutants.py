"""Whether the tests notice mistakes: each of mutants_list.py made in a copy of the tree, and its test run there.

    python tests/mutants.py [--only 3 17]

First the tests are run without a mistake. Then a line for each mutant: caught by its test, or survived. Exit code 1
where one survived, or where its test did not even begin.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
SECONDS = 300  # that a test may take; one that does not end is caught
_LEFT_OUT = shutil.ignore_patterns(".git", "out", "build", "__pycache__", ".*_cache", "*.egg-info")


def mutated(mutant: Mutant) -> str:
    """The file's text with the mistake. Raises ValueError where it does not have the old text once."""
    text = (ROOT / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, expected once")
    return text.replace(mutant.old, mutant.new)


def run(tree: Path, tests: list[str]) -> subprocess.CompletedProcess:
    """pytest in a copy of the tree; tests of the fake device with its plugin."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider"]
    if tests[0].startswith("tests/fakecuda"):
        command += ["-p", "fakecuda.plugin"]
    paths = os.pathsep.join([str(tree / "src"), str(tree / "tests")])
    settings = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "FAKECUDA_DEVICES": "2"}
    return subprocess.run(
        [*command, *tests], cwd=tree, env=os.environ | settings, capture_output=True, text=True, timeout=SECONDS
    )


def as_they_are(tree: Path, tests: list[str]) -> list[str]:
    """The tests that do not pass without a mistake, of one kind."""
    try:
        found = run(tree, tests)
    except subprocess.TimeoutExpired:
        found = None
    if found is not None and found.returncode == 0:
        return []
    if len(tests) == 1:
        return tests
    half = len(tests) // 2
    return as_they_are(tree, tests[:half]) + as_they_are(tree, tests[half:])


def judged(tree: Path, mutant: Mutant) -> str:
    """ "caught", "survived", or what else happened."""
    target = tree / mutant.file
    before = target.read_text()
    target.write_text(mutated(mutant))
    try:
        found = run(tree, [mutant.test])
    except subprocess.TimeoutExpired:
        return "caught"
    finally:
        target.write_text(before)
    said = {0: "survived", 1: "caught"}.get(found.returncode)
    return said or f"no test ran: {found.stdout[-500:]}{found.stderr[-500:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="mutants by number, from 0 on")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests without a mistake first")
    given = parser.parse_args()
    numbers = given.only if given.only is not None else range(len(MUTANTS))
    without: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True, ignore=_LEFT_OUT)
        tests = sorted({MUTANTS[n].test for n in numbers})
        for fake in (False, True):
            kind = [test for test in tests if test.startswith("tests/fakecuda") == fake]
            if kind and not given.unchecked:
                without += as_they_are(tree, kind)
        for test in without:
            print(f"fails without a mistake: {test}", flush=True)
        counts: dict[str, int] = {}
        for n in numbers:
            mutant, began = MUTANTS[n], time.monotonic()
            said = judged(tree, mutant)
            kind_of = said if said in ("caught", "survived") else "not judged"
            counts[kind_of] = counts.get(kind_of, 0) + 1
            change = f"{mutant.old.strip()!r} -> {mutant.new.strip()!r}"
            print(
                f"{n:3} {said:8} {time.monotonic() - began:4.0f} s  {mutant.file}: {change}  {mutant.test}", flush=True
            )
    print(f"{counts.get('caught', 0)} caught of {len(numbers)}: {counts}; {len(without)} tests fail without a mistake")
    return int(counts.get("caught", 0) != len(numbers) or bool(without))


if __name__ == "__main__":
    sys.exit(main())
