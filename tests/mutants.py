"""Whether the tests notice mistakes: each of mutants_list.py made in a copy of the tree, and its test run there.

    python tests/mutants.py [--only 3 17]

First the tests are run without a mistake. Then a line for each mutant: caught by its test, or survived. Exit code 1
where one survived, or where its test did not even begin.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# What takes long to import, for forks to have.
import hypothesis  # noqa: F401
import pytest
import torch  # noqa: F401
import triton  # noqa: F401
from mutants_list import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
SECONDS = 300  # that a test may take; one that does not end is caught
_FAKE = "tests/fakecuda"
_LEFT_OUT = shutil.ignore_patterns(".git", "out", "build", "__pycache__", ".*_cache", "*.egg-info")


def mutated(mutant: Mutant) -> str:
    """The file's text with the mistake. Raises ValueError where it does not have the old text once."""
    text = (ROOT / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} has {mutant.old!r} {text.count(mutant.old)} times, expected once")
    return text.replace(mutant.old, mutant.new)


class Ended(NamedTuple):
    code: int | None  # pytest's exit status; None where it did not end
    said: str


def run(tree: Path, tests: list[str], *options: str, seconds: float = SECONDS) -> Ended:
    """pytest in a copy of the tree; tests of the fake device with its plugin, in a process that has no torch yet, the
    others in a fork of this one, which has it."""
    options = ("-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", *options)
    paths = [str(tree / "src"), str(tree / "tests")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as output:
        if tests[0].startswith(_FAKE):
            command = [sys.executable, "-m", "pytest", "-p", "fakecuda.plugin", *options, *tests]
            environment = os.environ | settings | {"FAKECUDA_DEVICES": "2"}
            child = subprocess.Popen(command, cwd=tree, env=environment, stdout=output, stderr=output)
            pid = child.pid
        else:
            pid = os.fork()
            if pid == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir(tree)
                os.environ.update(settings)
                sys.dont_write_bytecode = True
                sys.path[:] = [*paths, *(path for path in sys.path if not Path(path or ".").is_relative_to(ROOT))]
                code = pytest.main([*options, *tests])
                sys.stdout.flush()
                os._exit(int(code))
        code = _waited_for(pid, seconds)
        output.seek(0)
        return Ended(code, output.read())


def _waited_for(pid: int, seconds: float) -> int | None:
    """A child's exit status; None, and its end, where it takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def failing(tree: Path, tests: list[str]) -> list[str]:
    """What does not pass without a mistake, as pytest says it."""
    code, said = run(tree, tests, "--tb=no", "-rfE", seconds=10 * SECONDS)
    lines = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines or ([] if code == 0 else [said[-500:]])


def judged(tree: Path, mutant: Mutant) -> str:
    """ "caught", "survived", or what else happened."""
    target = tree / mutant.file
    before = target.read_text()
    target.write_text(mutated(mutant))
    try:
        code, said = run(tree, [mutant.test], "-x")
    finally:
        target.write_text(before)
    if code in (1, None):
        return "caught"
    if code == 0 and " passed" in said.splitlines()[-1]:
        return "survived"
    return f"no test ran: {said[-500:]}"


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
            kind = [test for test in tests if test.startswith(_FAKE) == fake]
            if kind and not given.unchecked:
                without += failing(tree, kind)
        for said in without:
            print(f"without a mistake: {said}", flush=True)
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
    print(f"{counts.get('caught', 0)} caught of {len(numbers)}: {counts}; {len(without)} failures without a mistake")
    return int(counts.get("caught", 0) != len(numbers) or bool(without))


if __name__ == "__main__":
    sys.exit(main())
